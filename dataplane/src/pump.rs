//! One direction of a flow: received bytes → stream parser → verdict → the far side's send queue.
//!
//! Bytes stay in the near side's receive queue until they are judged *and* the far side has room for them. So the queue is
//! all the buffering there is: when the far side is full we stop reading, and the near side's window closes.
//!
//! ```text
//!            receive queue of `from`                      send queue of `to`
//!   ┌─────────────┬──────────────┬─────────────┐          ┌──────────────────┐
//!   │ passed,     │ next message │ beginning   │ splice   │                  │
//!   │ not yet sent│ (judged from │ of another  │ ───────▶ │                  │──▶ wire
//!   │             │  a copy)     │             │          │                  │
//!   └─────────────┴──────────────┴─────────────┘          └──────────────────┘
//! ```
//! Programs see a copy of the bytes; what goes on are the bytes that the sender sent, never what a program wrote.

use tap_engine::{Filter, FlowInfo, MessageBuffer, Step, StreamState, Verdict};
use tcp::Connection;
use tcp::time::{Duration, Instant};

use crate::counters::{DirectionCounters, MessageError};

/// How a direction's bytes are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Message by message.
    Judged,
    /// All pass: no programs, or after an error with the policy `pass`.
    Unjudged,
    /// All are acknowledged and go nowhere: after an error with the policy `drop`.
    Discarded,
}

/// The state of one direction of one flow.
#[derive(Debug)]
pub struct Direction {
    stream: StreamState,
    mode: Mode,
    /// Bytes at the head of the receive queue that have passed and wait for room.
    passing: usize,
    /// Then: bytes of a dropped message that wait behind them.
    dropping: usize,
    /// Length of the message behind these, once the parser has said it.
    known_length: Option<usize>,
    /// Length of the receive queue when the parser last asked for more.
    looked_at: usize,
    /// When the incomplete message at the head began to wait.
    since: Option<Instant>,
    /// The near side's FIN was handed on.
    finished: bool,
}

/// What the pump needs besides the two connections.
pub struct Pump<'a> {
    /// The programs of this direction; none: its bytes are not judged.
    pub filter: Option<&'a mut Filter>,
    /// What the programs may know of the flow.
    pub flow: &'a mut FlowInfo,
    /// Memory that programs can read; at least as large as a receive queue.
    pub buffer: &'a mut MessageBuffer,
    /// Judge and count, but pass everything.
    pub observe: bool,
    /// How long a message may stay incomplete.
    pub message_timeout: Option<Duration>,
    /// Where to count.
    pub counters: &'a mut DirectionCounters,
}

/// What is worth telling about a pumped direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pumped {
    /// A message of this many bytes was dropped.
    Dropped(usize),
    /// A message of this many bytes asks to disconnect the flow.
    Disconnect(usize),
    /// The direction cannot be cut into messages any more.
    Error(MessageError),
}

impl Direction {
    /// A direction at its beginning; `judged` is whether it has programs.
    pub fn new(judged: bool) -> Self {
        Self {
            stream: StreamState::default(),
            mode: if judged { Mode::Judged } else { Mode::Unjudged },
            passing: 0,
            dropping: 0,
            known_length: None,
            looked_at: 0,
            since: None,
            finished: false,
        }
    }

    /// When the message at the head times out.
    pub fn deadline(&self, message_timeout: Option<Duration>) -> Option<Instant> {
        Some(self.since? + message_timeout?)
    }

    /// From now on everything passes unjudged.
    pub fn stop_judging(&mut self) {
        self.mode = Mode::Unjudged;
        self.since = None;
    }

    /// From now on everything is discarded.
    pub fn discard(&mut self) {
        self.mode = Mode::Discarded;
        self.since = None;
    }

    /// Moves on as far as bytes and room allow. `tell` hears of dropped messages. An `Err` is a disconnect or an error: the
    /// caller applies the policy, and may pump again after [`stop_judging`](Self::stop_judging) or [`discard`](Self::discard).
    pub fn pump(
        &mut self,
        now: Instant,
        from: &mut Connection,
        to: &mut Connection,
        pump: &mut Pump<'_>,
        tell: &mut impl FnMut(Pumped),
    ) -> Result<(), Pumped> {
        while self.move_judged(now, from, to) {
            let progress = match (self.mode, &mut pump.filter) {
                (Mode::Discarded, _) => {
                    let length = from.receive_queue();
                    from.consume(length);
                    pump.counters.discarded_bytes += length as u64;
                    false
                }
                (Mode::Judged, Some(_)) => self.judge(now, from, pump, tell)?,
                (Mode::Judged | Mode::Unjudged, _) => {
                    pump.counters.unjudged_bytes += tcp::splice(from, to, usize::MAX) as u64;
                    false
                }
            };
            if !progress {
                break;
            }
        }
        if from.fin_received() && !self.finished && self.passing == 0 && self.dropping == 0 {
            if from.receive_queue() == 0 {
                to.finish();
                self.finished = true;
            } else if self.mode == Mode::Judged {
                return Err(self.error(MessageError::CutShort, pump.counters));
            }
        }
        if self.deadline(pump.message_timeout).is_some_and(|deadline| deadline <= now) {
            return Err(self.error(MessageError::Timeout, pump.counters));
        }
        Ok(())
    }

    /// Moves what was judged out of the receive queue. False: the far side has no room for all of it.
    fn move_judged(&mut self, now: Instant, from: &mut Connection, to: &mut Connection) -> bool {
        if self.passing > 0 {
            self.passing -= tcp::splice(from, to, self.passing);
            if self.passing > 0 {
                // While our window may be closed, it is not the sender who keeps a message waiting.
                self.since = self.since.map(|_| now);
                return false;
            }
        }
        if self.dropping > 0 {
            from.consume(std::mem::take(&mut self.dropping));
        }
        true
    }

    /// Judges the messages at the head of the receive queue up to and including the first that is dropped. True: there is
    /// something to move, and perhaps more to judge behind it.
    fn judge(
        &mut self,
        now: Instant,
        from: &mut Connection,
        pump: &mut Pump<'_>,
        tell: &mut impl FnMut(Pumped),
    ) -> Result<bool, Pumped> {
        debug_assert!(self.passing == 0 && self.dropping == 0);
        let available = from.receive_queue();
        if available <= self.looked_at || self.known_length.is_some_and(|length| available < length) {
            return Ok(false);
        }
        let filter = pump.filter.as_deref_mut().expect("a judged direction has programs");
        let available = from.peek(pump.buffer.as_mut_slice());
        let now_ns = now.total_micros().max(0) as u64 * 1000;
        while self.passing < available {
            match filter.next(&mut self.stream, pump.flow, now_ns, pump.buffer, self.passing, available) {
                Step::NeedMore { known_length } => {
                    self.known_length = known_length;
                    self.looked_at = available - self.passing;
                    self.since.get_or_insert(now);
                    break;
                }
                Step::Message { length, verdict } => {
                    debug_assert!(0 < length && length <= available - self.passing);
                    self.known_length = None;
                    self.looked_at = 0;
                    self.since = None;
                    pump.counters.messages[verdict as usize] += 1;
                    pump.counters.bytes[verdict as usize] += length as u64;
                    match verdict {
                        Verdict::Pass => self.passing += length,
                        Verdict::Drop | Verdict::Disconnect if pump.observe => {
                            tell(if verdict == Verdict::Drop {
                                Pumped::Dropped(length)
                            } else {
                                Pumped::Disconnect(length)
                            });
                            self.passing += length;
                        }
                        Verdict::Drop => {
                            tell(Pumped::Dropped(length));
                            self.dropping = length;
                            break;
                        }
                        Verdict::Disconnect => return Err(Pumped::Disconnect(length)),
                    }
                }
                Step::Error(error) => return Err(self.error(MessageError::Stream(error), pump.counters)),
            }
        }
        Ok(self.passing > 0 || self.dropping > 0)
    }

    fn error(&mut self, error: MessageError, counters: &mut DirectionCounters) -> Pumped {
        counters.errors[error.index()] += 1;
        self.since = None;
        Pumped::Error(error)
    }

    /// For a flow that ends: moves the passed bytes as far as there is room, and judges nothing behind them. True: all of
    /// them have moved.
    pub fn flush(&mut self, from: &mut Connection, to: &mut Connection) -> bool {
        self.passing -= tcp::splice(from, to, self.passing);
        self.passing == 0
    }
}
