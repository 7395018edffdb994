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

use tap_engine::{FlowInfo, MessageBuffer, Step, StreamState, Verdict};
use tcp::Connection;
use tcp::time::{Duration, Instant};

use crate::counters::{DirectionCounters, MessageError};
use crate::flow_event::Difference;
use crate::programs::{Generations, Held, Taken};

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
    /// What the message at the head is cut and judged by.
    held: Held,
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
    /// The programs of this direction; without, its bytes are not judged.
    pub programs: &'a Generations,
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
    /// The shadow would have decided otherwise.
    Differs(Difference),
}

impl Direction {
    /// A direction at its beginning; `judged` is whether it has programs.
    pub fn new(judged: bool) -> Self {
        Self {
            stream: StreamState::default(),
            held: Held::default(),
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
        self.held.release();
    }

    /// From now on everything is discarded.
    pub fn discard(&mut self) {
        self.mode = Mode::Discarded;
        self.since = None;
        self.held.release();
    }

    /// Nothing is judged any more: the flow ends.
    pub fn release(&mut self) {
        self.held.release();
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
            if self.mode == Mode::Judged {
                self.take_up(pump.programs);
            }
            let progress = match self.mode {
                Mode::Discarded => {
                    let length = from.receive_queue();
                    from.consume(length);
                    pump.counters.discarded_bytes += length as u64;
                    false
                }
                Mode::Judged => self.judge(now, from, pump, tell)?,
                Mode::Unjudged => {
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

    /// Makes sure of programs for the message at the head. New ones begin at its first byte; but a message whose length is known
    /// ends with those that said it. Without any, the direction goes on unjudged, for good: nobody could say any more where a
    /// message begins.
    fn take_up(&mut self, programs: &Generations) {
        let in_message = self.known_length.is_some();
        match self.held.take_up(programs, in_message) {
            Taken::Changed if !in_message => {
                self.stream = StreamState::default();
                self.looked_at = 0;
            }
            // The same ones; or those of its message were withdrawn, and its length stays what it is.
            Taken::Same | Taken::Changed => {}
            Taken::Nothing => self.stop_judging(),
        }
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
        let generation = self.held.generation().expect("a judged direction has programs");
        let mut programs = generation.programs();
        let available = from.peek(pump.buffer.as_mut_slice());
        let now_ns = now.total_micros().max(0) as u64 * 1000;
        while self.passing < available {
            match programs.filter.next(&mut self.stream, pump.flow, now_ns, pump.buffer, self.passing, available) {
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
                    let message = self.passing..self.passing + length;
                    if let Some(shadow) = programs.ask_shadow(pump.flow, now_ns, pump.buffer, message) {
                        pump.counters.count_shadow(verdict, shadow);
                        if shadow != Ok(verdict) {
                            tell(Pumped::Differs(Difference { length, live: verdict, shadow }));
                        }
                    }
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
                    if self.held.is_outdated(pump.programs) {
                        break;
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
