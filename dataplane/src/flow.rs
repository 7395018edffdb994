//! One flow: two sides, two directions, and how it opens and ends.
//!
//! ```text
//!            SYN of the client               both have acknowledged the other's SYN          both closed
//!   (none) ───────────────────▶ Opening ─────────────────────────────────────────▶ Open ───────────────────▶ Over ──▶ (none)
//!                                  │ a valid reset                                   │ reset, disconnect:      ▲
//!                                  ▼                                                 ▼ drain the far side,     │
//!                               (none)                                                 then reset it ──────────┘
//! ```

use config::OnParseError;
use tap_engine::FlowInfo;
use tcp::time::{Duration, Instant};
use tcp::wire::{Envelope, Headers, L2Header};
use tcp::{Connection, FrameSink, Options, Remains, Stack};

use crate::counters::TapCounters;
use crate::flow_event::EventKind;
use crate::opening::Opening;
use crate::pump::{Direction, Pump, Pumped};
use crate::steer::{FlowKey, Side};
use crate::worker::TapState;

/// How long a side may leave our bytes unacknowledged without a sign of life: R2 of RFC 9293 §3.8.3.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the far side may take to acknowledge what had passed before a reset.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a flow that is over answers what comes late.
pub const TIME_WAIT: Duration = Duration::from_secs(10);

/// A flow of one worker.
pub struct Flow {
    /// Index of its tap.
    pub tap: usize,
    /// What segments to each side are wrapped in: what the host across wrote last.
    envelopes: [Envelope; 2],
    /// The highest hop limit that each of them had.
    hop_limits: [u8; 2],
    /// In the worker's list of flows to pump.
    pub touched: bool,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Where a flow is in its life.
pub enum Phase {
    /// The handshake passes through.
    Opening(Box<Opening>),
    /// Both sides are terminated.
    Open(Box<Open>),
    /// Both sides are over.
    Over(Box<Over>),
}

/// A flow with two sides.
pub struct Open {
    /// The terminated connections, by side.
    pub sides: [Connection; 2],
    /// The byte paths, by the side that they come from.
    directions: [Direction; 2],
    /// What programs see of the flow, by the side that the bytes come from.
    infos: [FlowInfo; 2],
    /// The number of the client's SYN.
    client_iss: u32,
    /// Since when each side owes us an acknowledgement without a sign of life.
    unanswered: [Option<Instant>; 2],
    /// By side: its host has asked whether the host across is still there, and that one was asked.
    asks: [bool; 2],
    ending: Option<Ending>,
}

/// How a flow ends that is not closed by both hosts.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// What had passed before is still on its way to `to`, which is reset afterwards.
    Drain { to: Side, deadline: Instant },
    /// Both sides are reset.
    Reset,
}

/// What is left of a flow: enough to answer what comes late.
pub struct Over {
    /// Since when.
    pub since: Instant,
    /// What is left of each side, if it has something to say.
    pub remains: [Option<Remains>; 2],
    /// The number of the client's SYN.
    pub client_iss: u32,
}

/// What became of a flow that was pumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Lives,
    /// It is over.
    Ended,
}

impl Flow {
    /// A flow whose client has sent a SYN, with these headers. `timeout`: how long its handshake may stand still.
    pub fn new(now: Instant, tap: usize, syn: &Headers, timeout: Duration) -> Self {
        let envelope = syn.envelope();
        Self {
            tap,
            envelopes: [envelope.reversed(), envelope],
            hop_limits: [envelope.hop_limit; 2],
            touched: false,
            phase: Phase::Opening(Box::new(Opening::new(now, timeout))),
        }
    }

    /// The host on side `from` has sent a segment with these headers: what is sent in its name looks the same from now on.
    pub fn wrap_like(&mut self, from: Side, headers: &Headers) {
        let to = from.other() as usize;
        self.envelopes[to] = headers.envelope();
        self.hop_limits[to] = self.hop_limits[to].max(headers.hop_limit);
    }

    /// What a segment to side `to` is wrapped in. A reset must arrive: a host that lets its own expire behind us would keep
    /// its connection to the other host, and only we had lost it.
    pub fn envelope(&self, to: Side, reset: bool) -> Envelope {
        let envelope = self.envelopes[to as usize];
        let hop_limit = if reset { self.hop_limits[to as usize] } else { envelope.hop_limit };
        Envelope { hop_limit, ..envelope }
    }

    /// Takes received bytes through the programs and notices what the sides have become.
    pub fn pump(&mut self, now: Instant, context: &mut Context<'_>) -> Outcome {
        match &mut self.phase {
            Phase::Opening(opening) if now >= opening.deadline() => {
                context.counters.flows_timed_out += 1;
                return Outcome::Ended;
            }
            Phase::Over(over) if now >= over.since + TIME_WAIT => return Outcome::Ended,
            Phase::Open(open) => open.pump(now, context),
            Phase::Opening(_) | Phase::Over(_) => {}
        }
        Outcome::Lives
    }

    /// Resets both sides with the next transmission: we are going away.
    pub fn abort(&mut self) {
        match &mut self.phase {
            Phase::Open(open) => {
                open.sides.iter_mut().for_each(Connection::abort);
                open.ending = Some(Ending::Reset);
            }
            // Of a handshake we are no part: it goes on without us.
            Phase::Opening(_) | Phase::Over(_) => {}
        }
    }

    /// Emits what side `to` has to send. False: nothing more at the moment.
    pub fn poll_transmit(&mut self, now: Instant, to: Side, stack: &mut Stack, sink: &mut impl FrameSink) -> bool {
        let Phase::Open(open) = &self.phase else { return false };
        let envelope = self.envelope(to, open.sides[to as usize].has_reset_to_send());
        let Phase::Open(open) = &mut self.phase else { return false };
        open.sides[to as usize].poll_transmit(stack, now, &envelope, sink)
    }

    /// When the flow has to be looked at again if nothing comes in.
    pub fn poll_at(&mut self, now: Instant, message_timeout: Option<Duration>) -> Option<Instant> {
        match &mut self.phase {
            Phase::Opening(opening) => Some(opening.deadline()),
            Phase::Open(open) => open.poll_at(now, message_timeout),
            Phase::Over(over) => Some(over.since + TIME_WAIT),
        }
    }

    /// After everything was sent that could be sent: keeps of a flow whose sides are all over only what may be asked for
    /// late, or says that nothing of it is left.
    pub fn settle(&mut self, now: Instant, counters: &mut TapCounters) -> Outcome {
        let Phase::Open(open) = &self.phase else { return Outcome::Lives };
        if !open.is_over() {
            return Outcome::Lives;
        }
        if open.ending.is_none() {
            counters.flows_closed += 1;
        }
        let remains = Side::BOTH.map(|side| open.sides[side as usize].remains());
        if remains.iter().all(Option::is_none) {
            return Outcome::Ended;
        }
        let over = Over { since: now, remains, client_iss: open.client_iss };
        self.phase = Phase::Over(Box::new(over));
        Outcome::Lives
    }
}

/// What a flow needs of its worker while it is pumped.
pub struct Context<'a> {
    /// The flow's tap.
    pub tap: &'a mut TapState,
    /// The tap's counters.
    pub counters: &'a mut TapCounters,
    /// Message memory of the worker.
    pub buffer: &'a mut tap_engine::MessageBuffer,
    /// Reports an event; the side is the one that the bytes came from.
    pub events: &'a mut dyn FnMut(Option<Side>, EventKind),
}

impl Context<'_> {
    fn tell(&mut self, from: Option<Side>, event: EventKind) {
        (self.events)(from, event);
    }
}

impl Open {
    /// Both sides of a flow whose handshake was completed by a segment of the host on side `by`. The other one waits for
    /// its acknowledgement, which we owe it now.
    pub fn new(
        now: Instant,
        opening: &Opening,
        by: Side,
        key: &FlowKey,
        stacks: &mut [Stack; 2],
        tap: &TapState,
        options: &Options,
    ) -> Option<Self> {
        let mut open = |to: Side| {
            let (stack, handshake) = (&mut stacks[to as usize], opening.handshake(to, key)?);
            let open = if to == by { Connection::passive_open } else { Connection::active_open };
            open(stack, now, &handshake, options).ok()
        };
        let (local, remote) = match tap.application {
            Side::Server => (key.server, key.client),
            Side::Client => (key.client, key.server),
        };
        Some(Self {
            sides: [open(Side::Client)?, open(Side::Server)?],
            directions: Side::BOTH.map(|from| Direction::new(tap.judges(from))),
            infos: [FlowInfo::new(local, remote).with_birth(now.total_micros() as u64); 2],
            client_iss: opening.client_iss()?,
            unanswered: [None; 2],
            asks: [false; 2],
            ending: None,
        })
    }

    /// Tells the programs more of the flow: the outer tag of its frames, a number that only its packets share, and the interface
    /// that the bytes of each side come in on.
    pub fn describe(&mut self, l2: &L2Header, hash: u32, ifindex: [u32; 2]) {
        for (info, ifindex) in self.infos.iter_mut().zip(ifindex) {
            *info = info.with_hash(hash).with_ifindex(ifindex);
            // Behind two addresses; without a tag, two bytes are left.
            if let [p, q, c, d, ..] = l2.as_bytes()[12..] {
                *info = info.with_vlan(u16::from_be_bytes([c, d]), u16::from_be_bytes([p, q]));
            }
        }
    }

    /// A segment of the host on side `from` has entered its connection.
    pub fn heard(&mut self, now: Instant, from: Side) {
        let (near, far) = (from as usize, from.other() as usize);
        self.unanswered[near] = self.unanswered[near].map(|_| now);
        if std::mem::take(&mut self.asks[far]) {
            self.sides[far].acknowledge();
        }
        if self.sides[near].take_probe() {
            // Whether the host across is there, only that one can say (RFC 9293 §3.8.4). While something is on its way to
            // it, our own retransmissions find out; and a closed window is nothing to be asked about.
            let quiet = self.sides[near].receive_queue() == 0 && !self.sides[far].awaits_ack();
            if quiet && !self.sides[far].is_closed() && !self.sides[far].is_time_wait() {
                self.asks[near] = true;
                self.sides[far].send_probe();
            } else {
                self.sides[near].acknowledge();
            }
        }
    }

    /// The path to the host on side `to` does not carry packets that we have sent, only such of up to `mtu` bytes. True: the
    /// error that says so quotes what is on its way.
    pub fn handle_packet_too_big(&mut self, now: Instant, to: Side, seq: u32, mtu: usize) -> bool {
        self.sides[to as usize].handle_packet_too_big(now, seq, mtu)
    }

    /// Nothing is owed to either host any more. (One whose connection is over may have sent bytes that the other one still
    /// waits for.)
    pub fn is_over(&self) -> bool {
        self.sides.iter().all(|side| side.is_closed() || side.is_time_wait())
    }

    /// Whether the client's SYN had this number.
    pub fn was_opened_by(&self, seq: u32) -> bool {
        self.client_iss == seq
    }

    fn pump(&mut self, now: Instant, context: &mut Context<'_>) {
        if self.ending.is_none() {
            self.pump_directions(now, context);
        }
        if self.ending.is_none() {
            self.notice_reset_and_silence(now, context);
        }
        if let Some(Ending::Drain { to, deadline }) = self.ending {
            self.drain(now, to, deadline);
        }
        for (since, side) in self.unanswered.iter_mut().zip(&self.sides) {
            *since = side.awaits_ack().then(|| since.unwrap_or(now));
        }
    }

    /// Moves on what had passed before the end; when it is acknowledged, or takes too long, resets side `to`.
    fn drain(&mut self, now: Instant, to: Side, deadline: Instant) {
        let [client, server] = &mut self.sides;
        let (near, far) = match to {
            Side::Client => (server, client),
            Side::Server => (client, server),
        };
        let moved_all = self.directions[to.other() as usize].flush(near, far);
        let unread = far.receive_queue();
        far.consume(unread);
        if far.is_closed() || (moved_all && far.send_queue() == 0) || now >= deadline {
            far.abort();
            self.ending = Some(Ending::Reset);
        }
    }

    fn pump_directions(&mut self, now: Instant, context: &mut Context<'_>) {
        for from in Side::BOTH {
            // A policy that goes on pumps once more in its new mode, which cannot fail again.
            while let Err(trouble) = self.pump_direction(now, from, context) {
                let disconnect = self.apply_policy(from, trouble, context);
                if disconnect {
                    context.counters.flows_disconnected += 1;
                    return self.end(now, from);
                }
            }
        }
    }

    fn pump_direction(&mut self, now: Instant, from: Side, context: &mut Context<'_>) -> Result<(), Pumped> {
        let [client, server] = &mut self.sides;
        let (near, far) = match from {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let kind = context.tap.kind_from(from);
        let mut pump = Pump {
            observe: context.tap.observe,
            message_timeout: context.tap.message_timeout,
            programs: &context.tap.programs[kind],
            flow: &mut self.infos[from as usize],
            buffer: context.buffer,
            counters: &mut context.counters.directions[kind],
        };
        let events = &mut context.events;
        let mut tell = |what| (events)(Some(from), EventKind::from(what));
        self.directions[from as usize].pump(now, near, far, &mut pump, &mut tell)
    }

    /// Applies the tap's policy to a direction that came to an error or a disconnect. True: the flow ends.
    fn apply_policy(&mut self, from: Side, trouble: Pumped, context: &mut Context<'_>) -> bool {
        context.tell(Some(from), EventKind::from(trouble));
        let policy = match trouble {
            Pumped::Error(_) if context.tap.observe => OnParseError::Pass,
            Pumped::Error(_) => context.tap.on_parse_error,
            Pumped::Disconnect(_) | Pumped::Dropped(_) | Pumped::Differs(_) => OnParseError::Disconnect,
        };
        match policy {
            OnParseError::Disconnect => return true,
            OnParseError::Drop => self.directions[from as usize].discard(),
            OnParseError::Pass => self.directions.iter_mut().for_each(Direction::stop_judging),
        }
        false
    }

    fn notice_reset_and_silence(&mut self, now: Instant, context: &mut Context<'_>) {
        for side in Side::BOTH {
            let connection = &self.sides[side as usize];
            if connection.was_reset() {
                context.counters.flows_reset += 1;
                return self.end(now, side);
            }
            if self.silence_deadline(side).is_some_and(|deadline| now >= deadline) {
                context.counters.flows_timed_out += 1;
                context.tell(Some(side), EventKind::TimedOut);
                return self.end(now, side);
            }
        }
    }

    /// When we give up on a side that owes us an acknowledgement.
    fn silence_deadline(&self, side: Side) -> Option<Instant> {
        Some(self.unanswered[side as usize]? + SILENCE_TIMEOUT)
    }

    /// Ends the flow because of what came from (or became of) side `near`: it is reset now, the other side as soon as it
    /// has acknowledged what had passed before.
    fn end(&mut self, now: Instant, near: Side) {
        self.sides[near as usize].abort();
        self.directions.iter_mut().for_each(Direction::release);
        self.ending = Some(Ending::Drain { to: near.other(), deadline: now + DRAIN_TIMEOUT });
    }

    fn poll_at(&mut self, now: Instant, message_timeout: Option<Duration>) -> Option<Instant> {
        let connections = Side::BOTH.map(|side| self.sides[side as usize].poll_at(now));
        let rest = match self.ending {
            Some(Ending::Drain { deadline, .. }) => [Some(deadline), None, None, None],
            Some(Ending::Reset) => [None; 4],
            None => [
                self.directions[0].deadline(message_timeout),
                self.directions[1].deadline(message_timeout),
                self.silence_deadline(Side::Client),
                self.silence_deadline(Side::Server),
            ],
        };
        earliest(connections.into_iter().chain(rest))
    }
}

fn earliest(deadlines: impl IntoIterator<Item = Option<Instant>>) -> Option<Instant> {
    deadlines.into_iter().flatten().min()
}
