//! One flow: two sides, two directions, and how it opens and ends.
//!
//! ```text
//!            SYN of the client                 SYN-ACK of the server            both closed
//!   (none) ───────────────────▶ Opening ───────────────────────────▶ Open ───────────────────▶ TimeWait ──▶ (none)
//!                                  │ RST: the client is refused        │ reset, disconnect:
//!                                  ▼                                   ▼ drain the far side, then reset it
//!                               (none)                               (none)
//! ```

use config::OnParseError;
use tap_engine::FlowInfo;
use tcp::time::{Duration, Instant};
use tcp::wire::{Headers, L2Header};
use tcp::{Connection, FrameSink, Options, Stack};

use crate::counters::TapCounters;
use crate::flow_event::EventKind;
use crate::pump::{Direction, Pump, Pumped};
use crate::steer::{FlowKey, Side};
use crate::worker::TapState;

/// How long a flow may wait for its server, or for the last ACK of the client's handshake, without hearing anything.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a side may leave our bytes unacknowledged without a sign of life: R2 of RFC 9293 §3.8.3.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the far side may take to acknowledge what had passed before a reset.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a closed flow answers retransmitted FINs.
pub const TIME_WAIT: Duration = Duration::from_secs(10);

/// A flow of one worker.
pub struct Flow {
    /// Index of its tap.
    pub tap: usize,
    /// Link-layer headers for what we send to each side: those that the hosts across wrote last.
    pub l2: [L2Header; 2],
    /// In the worker's list of flows to pump.
    pub touched: bool,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Where a flow is in its life.
pub enum Phase {
    /// The client's SYN is held while we open the server side.
    Opening(Box<Opening>),
    /// Both sides exist.
    Open(Box<Open>),
    /// Both sides are closed.
    TimeWait(TimeWait),
}

/// A flow whose server has not answered yet.
pub struct Opening {
    server: Connection,
    /// The frame with the client's SYN.
    syn: Box<[u8]>,
    headers: Headers,
    /// When the client last sent it.
    last_syn: Instant,
}

/// A flow with two sides.
pub struct Open {
    /// The terminated connections, by side.
    pub sides: [Connection; 2],
    /// The byte paths, by the side that they come from.
    directions: [Direction; 2],
    info: FlowInfo,
    /// The number of the client's SYN.
    client_iss: u32,
    /// Since when each side owes us an acknowledgement without a sign of life.
    unanswered: [Option<Instant>; 2],
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

/// What is left of a flow that both hosts closed: enough to acknowledge a FIN once more.
pub struct TimeWait {
    /// When it began.
    pub since: Instant,
    /// By side: our next sequence number and the one that we expect, if that side is in TIME-WAIT.
    pub numbers: [Option<(u32, u32)>; 2],
    /// The number of the client's SYN.
    pub client_iss: u32,
}

/// What became of a flow that was pumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Lives,
    /// The server refused: the client is to be reset, then the flow is over.
    Refused,
    /// It is over.
    Ended,
}

impl Flow {
    /// Opens the server side for a client's SYN. The SYN to the server leaves with the next transmission.
    pub fn open(
        stacks: &mut [Stack; 2],
        now: Instant,
        tap: usize,
        key: &FlowKey,
        syn: &[u8],
        headers: &Headers,
        options: &Options,
    ) -> Result<Self, tcp::OpenError> {
        let stack = &mut stacks[Side::Server as usize];
        let server = Connection::active_open(stack, now, key.client, key.server, headers.seq, options)?;
        let opening = Opening { server, syn: syn[..headers.end].into(), headers: *headers, last_syn: now };
        Ok(Self {
            tap,
            l2: [headers.l2.reversed(), headers.l2],
            touched: false,
            phase: Phase::Opening(Box::new(opening)),
        })
    }

    /// Takes received bytes through the programs and notices what the sides have become.
    pub fn pump(&mut self, now: Instant, context: &mut Context<'_>) -> Outcome {
        if let Phase::Opening(opening) = &mut self.phase {
            if opening.server.was_reset() {
                context.counters.flows_refused += 1;
                context.tell(None, EventKind::Refused);
                return Outcome::Refused;
            }
            if !opening.server.is_established_or_later() {
                if now >= opening.last_syn + HANDSHAKE_TIMEOUT {
                    context.counters.flows_timed_out += 1;
                    return Outcome::Ended;
                }
                return Outcome::Lives;
            }
            let Ok(client) = opening.answer(now, context) else { return Outcome::Refused };
            let Phase::Opening(opening) = std::mem::replace(&mut self.phase, TimeWait::NOTHING) else { unreachable!() };
            self.phase = Phase::Open(Box::new(opening.establish(client, context)));
            context.counters.flows_established += 1;
        }
        match &mut self.phase {
            Phase::Open(open) => open.pump(now, context),
            Phase::TimeWait(wait) if now >= wait.since + TIME_WAIT => return Outcome::Ended,
            Phase::Opening(_) | Phase::TimeWait(_) => {}
        }
        Outcome::Lives
    }

    /// Resets both sides with the next transmission: we are going away.
    pub fn abort(&mut self) {
        match &mut self.phase {
            Phase::Opening(opening) => opening.server.abort(),
            Phase::Open(open) => {
                open.sides.iter_mut().for_each(Connection::abort);
                open.ending = Some(Ending::Reset);
            }
            Phase::TimeWait(_) => {}
        }
    }

    /// Emits what side `to` has to send. False: nothing more at the moment.
    pub fn poll_transmit(&mut self, now: Instant, to: Side, stack: &mut Stack, sink: &mut impl FrameSink) -> bool {
        let l2 = &self.l2[to as usize];
        match &mut self.phase {
            Phase::Opening(opening) if to == Side::Server => opening.server.poll_transmit(stack, now, l2, sink),
            Phase::Open(open) => open.sides[to as usize].poll_transmit(stack, now, l2, sink),
            Phase::Opening(_) | Phase::TimeWait(_) => false,
        }
    }

    /// When the flow has to be looked at again if nothing comes in.
    pub fn poll_at(
        &mut self,
        now: Instant,
        stacks: &mut [Stack; 2],
        message_timeout: Option<Duration>,
    ) -> Option<Instant> {
        match &mut self.phase {
            Phase::Opening(opening) => {
                let retransmission = opening.server.poll_at(&mut stacks[Side::Server as usize], now);
                earliest([retransmission, Some(opening.last_syn + HANDSHAKE_TIMEOUT)])
            }
            Phase::Open(open) => open.poll_at(now, stacks, message_timeout),
            Phase::TimeWait(wait) => Some(wait.since + TIME_WAIT),
        }
    }

    /// After everything was sent that could be sent: turns a flow whose sides are all closed into its TIME-WAIT record,
    /// or says that nothing of it is left.
    pub fn settle(&mut self, now: Instant, counters: &mut TapCounters) -> Outcome {
        let Phase::Open(open) = &self.phase else { return Outcome::Lives };
        if !open.is_over() {
            return Outcome::Lives;
        }
        if open.ending.is_none() {
            counters.flows_closed += 1;
        }
        let numbers = Side::BOTH.map(|side| {
            let side = &open.sides[side as usize];
            side.is_time_wait().then(|| (side.snd_nxt(), side.rcv_nxt()))
        });
        if numbers == [None, None] {
            return Outcome::Ended;
        }
        let client_iss = open.client_iss;
        self.phase = Phase::TimeWait(TimeWait { since: now, numbers, client_iss });
        Outcome::Lives
    }
}

impl TimeWait {
    const NOTHING: Phase = Phase::TimeWait(TimeWait { since: Instant::ZERO, numbers: [None, None], client_iss: 0 });
}

/// What a flow needs of its worker while it is pumped.
pub struct Context<'a> {
    /// Network stacks, by side.
    pub stacks: &'a mut [Stack; 2],
    /// The flow's tap.
    pub tap: &'a mut TapState,
    /// The tap's counters.
    pub counters: &'a mut TapCounters,
    /// Message memory of the worker.
    pub buffer: &'a mut tap_engine::MessageBuffer,
    /// Sizes of a side's queues.
    pub options: &'a Options,
    /// The flow's ends.
    pub key: &'a FlowKey,
    /// Reports an event; the side is the one that the bytes came from.
    pub events: &'a mut dyn FnMut(Option<Side>, EventKind),
}

impl Context<'_> {
    fn tell(&mut self, from: Option<Side>, event: EventKind) {
        (self.events)(from, event);
    }
}

impl Opening {
    /// The client sent its SYN again.
    pub fn handle_syn(&mut self, now: Instant, headers: &Headers) -> bool {
        let same = headers.seq == self.headers.seq;
        if same {
            self.last_syn = now;
        }
        same
    }

    /// The connection to the server.
    pub fn server(&mut self) -> &mut Connection {
        &mut self.server
    }

    /// The headers of the client's SYN.
    pub fn syn_headers(&self) -> &Headers {
        &self.headers
    }

    /// The server has answered: so do we, with its sequence number.
    fn answer(&self, now: Instant, context: &mut Context<'_>) -> Result<Connection, tcp::OpenError> {
        let iss = self.server.peer_iss().expect("a server that has answered has sent its sequence number");
        let stack = &mut context.stacks[Side::Client as usize];
        Connection::passive_open(stack, now, &self.syn, &self.headers, iss, context.options)
    }

    fn establish(self: Box<Self>, client: Connection, context: &Context<'_>) -> Open {
        let (local, remote) = match context.tap.application {
            Side::Server => (context.key.server, context.key.client),
            Side::Client => (context.key.client, context.key.server),
        };
        let judged = Side::BOTH.map(|from| context.tap.filter_from(from).is_some());
        Open {
            sides: [client, self.server],
            directions: judged.map(Direction::new),
            info: FlowInfo::new(local, remote),
            client_iss: self.headers.seq,
            unanswered: [None; 2],
            ending: None,
        }
    }
}

impl Open {
    /// A segment of side `from` has entered its connection.
    pub fn heard(&mut self, now: Instant, from: Side) {
        self.unanswered[from as usize] = self.unanswered[from as usize].map(|_| now);
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
            filter: context.tap.filters[kind].as_mut(),
            flow: &self.info,
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
            Pumped::Disconnect(_) | Pumped::Dropped(_) => OnParseError::Disconnect,
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
        let open = self.sides[side as usize].is_established_or_later();
        Some(self.unanswered[side as usize]? + if open { SILENCE_TIMEOUT } else { HANDSHAKE_TIMEOUT })
    }

    /// Ends the flow because of what came from (or became of) side `near`: it is reset now, the other side as soon as it
    /// has acknowledged what had passed before.
    fn end(&mut self, now: Instant, near: Side) {
        self.sides[near as usize].abort();
        self.ending = Some(Ending::Drain { to: near.other(), deadline: now + DRAIN_TIMEOUT });
    }

    fn poll_at(&mut self, now: Instant, stacks: &mut [Stack; 2], message_timeout: Option<Duration>) -> Option<Instant> {
        let [client_stack, server_stack] = stacks;
        let [client, server] = &mut self.sides;
        let connections = [client.poll_at(client_stack, now), server.poll_at(server_stack, now)];
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
