//! One worker's core, sans-IO: frames and time in, frames out.
//!
//! Call order, a batch at a time:
//! 1. [`Worker::handle_frame`] for each received frame,
//! 2. [`Worker::handle_timeouts`] if [`Worker::poll_at`] has come,
//! 3. [`Worker::pump`] once,
//! 4. [`Worker::poll_transmit`] once,
//!
//! then wait for frames, or until `poll_at`.

use std::collections::VecDeque;

use config::{Fragments, Midstream, OnParseError};
use tap_engine::MessageBuffer;
use tcp::time::{Duration, Instant};
use tcp::wire::{self, Headers, IcmpError};
use tcp::{FrameSink, Options, Stack};

use crate::counters::{Counters, DropReason};
use crate::flow::{Context, Flow, Open, Outcome, Phase};
use crate::flow_event::{EventKind, FlowEvent, FlowEvents};
use crate::flow_table::{FlowId, FlowTable, KeyHasher};
use crate::opening::{COOKIE_TIMEOUT, HANDSHAKE_TIMEOUT, Step};
use crate::programs::{Generations, Programs};
use crate::steer::{FlowKey, Selection, Side, Steered, steer};
use crate::timers::Timers;

/// Receive and send queue of a side are at least this large, in bytes.
const MIN_QUEUE: usize = 64 * 1024;
/// Room in a receive queue beside the longest message, in segments: senders do not send into a window smaller than one
/// segment (RFC 9293 §3.8.6.2.1), and the end of a message must not wait for that.
const SPARE_SEGMENTS: usize = 4;

/// Flows that one batch looks at after a change of taps: few enough to delay nobody.
const CHANGED_AT_ONCE: usize = 128;

/// A tap as a worker runs it.
pub struct Tap {
    /// Its name, for counters and events.
    pub name: String,
    /// The flows that it takes.
    pub selection: Selection,
    /// How it treats them.
    pub state: TapState,
}

/// Programs and policies of a tap.
pub struct TapState {
    /// Programs of the directions `receive` and `send`.
    pub programs: [Generations; 2],
    /// The side where the application is: `receive` is what goes there.
    pub application: Side,
    /// Judge, count and report, but pass everything.
    pub observe: bool,
    /// The policy for what cannot be cut into messages.
    pub on_parse_error: OnParseError,
    /// How long a message may stay incomplete.
    pub message_timeout: Option<Duration>,
    /// The policy for segments of connections that we did not see open.
    pub midstream: Midstream,
}

impl TapState {
    /// Names of the directions, in the order of `programs`.
    pub const KINDS: [&'static str; 2] = ["receive", "send"];

    /// Which of `programs` judges what comes from a side.
    pub fn kind_from(&self, from: Side) -> usize {
        usize::from(from == self.application)
    }

    /// Whether there are programs that judge what comes from a side.
    pub fn judges(&self, from: Side) -> bool {
        self.programs[self.kind_from(from)].judges()
    }

    fn change(&mut self, change: TapChange) {
        for (generations, programs) in self.programs.iter_mut().zip(change.programs) {
            generations.replace(programs);
        }
        self.observe = change.observe;
        self.on_parse_error = change.on_parse_error;
        self.message_timeout = change.message_timeout;
    }
}

/// What can change of a tap while its flows go on. Fields as in [`TapState`].
#[derive(Debug)]
pub struct TapChange {
    /// New programs of the directions `receive` and `send`; none: not judged any more.
    pub programs: [Option<Programs>; 2],
    /// Judge, count and report, but pass everything.
    pub observe: bool,
    /// The policy for what cannot be cut into messages.
    pub on_parse_error: OnParseError,
    /// How long a message may stay incomplete.
    pub message_timeout: Option<Duration>,
}

/// What a worker is made from.
pub struct WorkerConfig {
    /// Its number among `workers`.
    pub index: usize,
    /// How many workers share the flows.
    pub workers: usize,
    /// Secret for hashes and sequence numbers; `owner_seed` must be the same for all workers.
    pub seed: u64,
    /// Secret by which all workers agree who owns a flow.
    pub owner_seed: u64,
    /// Largest IP packet, in bytes, by side.
    pub mtu: [usize; 2],
    /// The kernel's number of each port, by side; programs can ask for it.
    pub ifindex: [u32; 2],
    /// By side: frames of a sender on this machine may carry a checksum that is not complete.
    pub accept_partial_checksums: [bool; 2],
    /// The policy for fragments of TCP between addresses that a tap selects.
    pub fragments: Fragments,
    /// The most flows at a time.
    pub flows: usize,
    /// The longest message in bytes.
    pub message: usize,
    /// The taps, in the order of the ops file.
    pub taps: Vec<Tap>,
}

/// What became of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has done its work.
    Consumed,
    /// Send it out of the other port.
    Forward,
    /// Give it to the worker with this number.
    HandOver(usize),
    /// It was dropped and counted.
    Dropped(DropReason),
}

/// Where outgoing frames go.
pub trait Output {
    /// How many more frames can be sent on the port of side `to` at the moment.
    fn room(&self, to: Side) -> usize;
    /// A frame of `length` bytes that is sent when the borrow ends; none if there is no room.
    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]>;
}

/// The core of one worker.
pub struct Worker {
    index: usize,
    workers: u64,
    owner_hasher: KeyHasher,
    accept_partial: [bool; 2],
    ifindex: [u32; 2],
    fragments: Fragments,
    stacks: [Stack; 2],
    flows: FlowTable<Flow>,
    timers: Timers,
    taps: Vec<Tap>,
    buffer: MessageBuffer,
    options: Options,
    counters: Counters,
    events: FlowEvents,
    /// Flows that something happened to since they were last pumped.
    touched: Vec<FlowId>,
    /// Flows that are over, oldest first: what makes room when the table is full.
    over: VecDeque<(FlowId, Instant)>,
    /// Scratch: flows whose deadline has come.
    expired: Vec<FlowId>,
    /// Flows from this number on have not been looked at since the taps changed.
    unchanged: Option<FlowId>,
}

impl Worker {
    /// A worker without flows, at `now`.
    pub fn new(config: WorkerConfig, now: Instant) -> Result<Self, tap_engine::MemoryError> {
        assert!(config.index < config.workers);
        let queue = MIN_QUEUE.max(config.message + SPARE_SEGMENTS * config.mtu[0].max(config.mtu[1]));
        let mut seeds = [config.seed, config.seed ^ 0x9e37_79b9_7f4a_7c15].into_iter().zip(config.mtu);
        let mut stack = || seeds.next().map(|(seed, mtu)| Stack::new(seed, mtu)).expect("two sides");
        Ok(Self {
            index: config.index,
            workers: config.workers as u64,
            owner_hasher: KeyHasher::new(config.owner_seed),
            accept_partial: config.accept_partial_checksums,
            ifindex: config.ifindex,
            fragments: config.fragments,
            stacks: [stack(), stack()],
            flows: FlowTable::new(config.flows, KeyHasher::new(config.seed)),
            timers: Timers::new(now),
            counters: Counters::new(config.taps.len()),
            taps: config.taps,
            buffer: MessageBuffer::new(queue)?,
            options: Options { receive_buffer: queue },
            events: FlowEvents::default(),
            touched: Vec::new(),
            over: VecDeque::new(),
            expired: Vec::new(),
            unchanged: None,
        })
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Events that were not reported because too many happened at once.
    pub fn events_lost(&self) -> u64 {
        self.events.lost()
    }

    /// What the TCP of each port has counted.
    pub fn tcp_counters(&self) -> [tcp::Counters; 2] {
        [*self.stacks[0].counters(), *self.stacks[1].counters()]
    }

    /// Number of flows, those that are over and still answer included.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Takes the events that happened since the last call.
    pub fn drain_events(&mut self) -> impl Iterator<Item = FlowEvent> {
        self.events.drain()
    }

    /// When [`handle_timeouts`](Self::handle_timeouts) is due if nothing comes in.
    pub fn poll_at(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// True when flows wait to be pumped or for room to transmit: do not sleep.
    pub fn has_work(&self) -> bool {
        !self.touched.is_empty() || self.unchanged.is_some()
    }

    /// Changes the taps, in their order. Each flow goes on with the new programs from its next message on; those that nothing is
    /// received for are looked at some at a time, with the next batches.
    ///
    /// # Panics
    /// If there are more or fewer changes than taps.
    pub fn change_taps(&mut self, changes: Vec<TapChange>) {
        assert_eq!(changes.len(), self.taps.len(), "a change for each tap");
        for (tap, change) in self.taps.iter_mut().zip(changes) {
            tap.selection.observes = change.observe;
            tap.state.change(change);
        }
        self.unchanged = Some(0);
    }

    /// Earlier generations of programs that flows still need, in all taps and directions.
    pub fn earlier_programs(&self) -> usize {
        self.taps.iter().flat_map(|tap| &tap.state.programs).map(Generations::earlier).sum()
    }

    /// Takes in one frame that came on the port of side `from`.
    pub fn handle_frame(&mut self, now: Instant, from: Side, frame: &mut [u8], out: &mut impl Output) -> Fate {
        self.counters.frames_received[from as usize] += 1;
        let selections = self.taps.iter().map(|tap| &tap.selection);
        match steer(from, frame, self.accept_partial[from as usize], self.fragments, selections) {
            Ok(Steered::Forward) => {
                self.counters.frames_forwarded[from as usize] += 1;
                Fate::Forward
            }
            Ok(Steered::Tap { tap, key, headers }) => {
                let owner = self.owner(&key);
                if owner != self.index {
                    return self.hand_over(from, owner);
                }
                match self.handle_segment(now, from, tap, &key, &headers, frame, out) {
                    Ok(fate) => fate,
                    Err(reason) => Fate::Dropped(self.counters.drop(reason)),
                }
            }
            Ok(Steered::Icmp { key, error, .. }) => {
                let owner = self.owner(&key);
                if owner != self.index {
                    return self.hand_over(from, owner);
                }
                self.handle_icmp(now, from, &key, &error);
                self.counters.frames_forwarded[from as usize] += 1;
                Fate::Forward
            }
            Err(reason) => Fate::Dropped(self.counters.drop(reason)),
        }
    }

    /// The frame that came in on the port of side `from` belongs to a flow of another worker, which counts it.
    fn hand_over(&mut self, from: Side, owner: usize) -> Fate {
        self.counters.frames_received[from as usize] -= 1;
        self.counters.frames_handed_over += 1;
        Fate::HandOver(owner)
    }

    /// An ICMP error about a segment of a flow of this worker, if there is such a flow. It came from the path to the host on
    /// side `from`, and is about what that one was sent.
    fn handle_icmp(&mut self, now: Instant, from: Side, key: &FlowKey, error: &IcmpError) {
        self.counters.icmp_errors_seen += 1;
        let Some(mtu) = error.next_mtu else { return };
        let Some(id) = self.flows.find(key) else { return };
        if let Phase::Open(open) = &mut self.flows[id].phase
            && open.handle_packet_too_big(now, from, error.seq, mtu as usize)
        {
            self.counters.segments_shortened += 1;
            self.touch(id);
        }
    }

    /// Counts a frame that was lost after [`handle_frame`](Self::handle_frame) had decided about it.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.counters.drop(reason);
    }

    /// Touches every flow whose deadline has come.
    pub fn handle_timeouts(&mut self, now: Instant) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expire(now, &mut expired);
        for id in expired.drain(..) {
            self.touch(id);
        }
        self.expired = expired;
    }

    /// Takes what the touched flows have received through parser and verdict.
    pub fn pump(&mut self, now: Instant) {
        self.touch_unchanged();
        for position in 0..self.touched.len() {
            let id = self.touched[position];
            // A flow may have been removed since it was touched, and its number given to another one.
            if self.flows.get_mut(id).is_none_or(|flow| !flow.touched) {
                continue;
            }
            let key = *self.flows.key(id);
            let flow = &mut self.flows[id];
            let tap = flow.tap;
            let events = &mut self.events;
            let mut tell = |from, kind| events.push(FlowEvent { at: now, tap, key, from, kind });
            let mut context = Context {
                tap: &mut self.taps[tap].state,
                counters: &mut self.counters.taps[tap],
                buffer: &mut self.buffer,
                events: &mut tell,
            };
            if flow.pump(now, &mut context) == Outcome::Ended {
                self.remove(id);
            }
        }
    }

    /// Emits the segments of the touched flows, as far as there is room; the rest stays touched.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut impl Output) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&id| {
            let Some(flow) = self.flows.get_mut(id).filter(|flow| flow.touched) else { return false };
            for to in Side::BOTH {
                let stack = &mut self.stacks[to as usize];
                loop {
                    if out.room(to) == 0 {
                        return true;
                    }
                    if !flow.poll_transmit(now, to, stack, &mut ToSide { out, to }) {
                        break;
                    }
                    self.counters.frames_sent[to as usize] += 1;
                }
            }
            flow.touched = false;
            self.settle(now, id);
            false
        });
        // `retain` may have run while `self.touched` took nothing: nothing above touches a flow.
        debug_assert!(self.touched.is_empty());
        self.touched = touched;
    }

    /// Resets all flows: their RSTs leave with the next `poll_transmit`.
    pub fn abort_all(&mut self) {
        for id in 0..self.flows.capacity() as FlowId {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.abort();
                self.touch(id);
            }
        }
    }

    /// Decides about a segment of a flow of this worker.
    #[expect(clippy::too_many_arguments, reason = "a segment, where it came from and where answers go")]
    fn handle_segment(
        &mut self,
        now: Instant,
        from: Side,
        tap: usize,
        key: &FlowKey,
        headers: &Headers,
        frame: &mut [u8],
        out: &mut impl Output,
    ) -> Result<Fate, DropReason> {
        let flags = headers.flags;
        let opens = from == Side::Client && flags.syn() && !flags.ack() && !flags.rst() && !flags.fin();
        if let Some(id) = self.flows.find(key) {
            if !(opens && self.gives_way(id, headers.seq)) {
                return self.handle_known(now, from, id, headers, frame, out).map(|()| Fate::Consumed);
            }
            self.remove(id);
        }
        if !opens {
            return self.handle_midstream(from, tap, headers, frame, out);
        }
        if !tcp::is_possible(key.client, key.server) {
            return Err(DropReason::Unaddressable);
        }
        if !self.make_room() {
            self.events.push(FlowEvent { at: now, tap, key: *key, from: Some(from), kind: EventKind::TableFull });
            return Err(DropReason::TableFull);
        }
        let passes_later = self.taps[tap].state.midstream == Midstream::Pass;
        let timeout = if passes_later { COOKIE_TIMEOUT } else { HANDSHAKE_TIMEOUT };
        let flow = Flow::new(now, tap, headers, timeout);
        let id = self.flows.insert(*key, flow).map_err(|_| DropReason::TableFull)?;
        self.counters.taps[tap].flows_opened += 1;
        self.touch(id);
        self.handle_known(now, from, id, headers, frame, out).map(|()| Fate::Consumed)
    }

    /// A segment that belongs to no flow and opens none: its connection was there before we were.
    fn handle_midstream(
        &mut self,
        from: Side,
        tap: usize,
        headers: &Headers,
        frame: &mut [u8],
        out: &mut impl Output,
    ) -> Result<Fate, DropReason> {
        // A SYN without ACK (with FIN, or from the server) may still open a connection, and that would never be judged.
        let opens = headers.flags.syn() && !headers.flags.ack();
        // Of a connection that cannot be opened through us, to or from port 0, no segment crosses.
        let is_possible = tcp::is_possible(headers.source, headers.destination);
        match self.taps[tap].state.midstream {
            Midstream::Pass if !opens && is_possible => {
                if self.accept_partial[from as usize] {
                    wire::complete_partial_checksum(frame);
                }
                self.counters.taps[tap].midstream_passed += 1;
                self.counters.frames_forwarded[from as usize] += 1;
                return Ok(Fate::Forward);
            }
            // RFC 9293 §3.10.7.1: what arrives for no connection is reset, except a reset.
            Midstream::Reset | Midstream::Pass if !headers.flags.rst() => {
                wire::build_rst(&mut ToSide { out, to: from }, &headers.envelope().reversed(), headers);
            }
            _ => {}
        }
        Err(DropReason::Midstream)
    }

    /// A segment of a flow that is in the table.
    fn handle_known(
        &mut self,
        now: Instant,
        from: Side,
        id: FlowId,
        headers: &Headers,
        frame: &mut [u8],
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let flow = &mut self.flows[id];
        flow.wrap_like(from, headers);
        let answer = flow.envelope(from, true);
        match &mut flow.phase {
            Phase::Opening(opening) => {
                let step = opening.handle_segment(now, from, frame, headers);
                return self.pass_handshake(now, from, id, step, headers, frame, out);
            }
            Phase::Open(open) => {
                open.sides[from as usize].handle_segment(&mut self.stacks[from as usize], now, frame, headers);
                open.heard(now, from);
            }
            Phase::Over(over) => {
                if let Some(remains) = over.remains[from as usize] {
                    remains.answer(now, headers, &answer, &mut ToSide { out, to: from });
                }
                return Err(DropReason::TimeWait);
            }
        }
        self.touch(id);
        Ok(())
    }

    /// A segment of a handshake that is not complete, or is so with it.
    #[expect(clippy::too_many_arguments, reason = "a segment, where it came from and where it goes")]
    fn pass_handshake(
        &mut self,
        now: Instant,
        from: Side,
        id: FlowId,
        step: Step,
        headers: &Headers,
        frame: &mut [u8],
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        match step {
            Step::Drop(reason) => return Err(reason),
            Step::Relay => self.relay(from, headers, frame, out)?,
            Step::Reset => {
                let tap = self.flows[id].tap;
                let refused = from == Side::Server;
                let counters = &mut self.counters.taps[tap];
                *if refused { &mut counters.flows_refused } else { &mut counters.flows_reset } += 1;
                if refused {
                    let key = *self.flows.key(id);
                    self.events.push(FlowEvent { at: now, tap, key, from: None, kind: EventKind::Refused });
                }
                // The reset may not arrive: it could be made to expire behind us. As long as the flow is known, nothing of it
                // passes unjudged.
                if self.taps[tap].state.midstream == Midstream::Pass {
                    self.touch(id);
                } else {
                    self.remove(id);
                }
                return self.relay(from, headers, frame, out);
            }
            Step::Establish => {
                self.establish(now, from, id).ok_or(DropReason::Unaddressable)?;
                // Its ACK and its text count already. (A SYN-ACK of two SYNs that crossed has been taken for what it is.)
                if let Phase::Open(open) = &mut self.flows[id].phase
                    && !headers.flags.syn()
                {
                    open.sides[from as usize].handle_segment(&mut self.stacks[from as usize], now, frame, headers);
                }
            }
        }
        self.touch(id);
        Ok(())
    }

    /// Passes a segment of a handshake on to the other host.
    fn relay(&mut self, from: Side, headers: &Headers, frame: &[u8], out: &mut impl Output) -> Result<(), DropReason> {
        let mtu = self.stacks.iter().map(Stack::mtu).min().expect("two stacks");
        let to = from.other();
        let changes = tcp::handshake::relay(frame, headers, mtu, &mut ToSide { out, to });
        let changes = changes.ok_or(DropReason::TransmitFull)?;
        self.counters.frames_sent[to as usize] += 1;
        self.counters.handshakes.add(&changes);
        Ok(())
    }

    /// Terminates both sides of a flow whose handshake the host on side `by` has completed.
    fn establish(&mut self, now: Instant, by: Side, id: FlowId) -> Option<()> {
        let key = *self.flows.key(id);
        let flow = &mut self.flows[id];
        let Phase::Opening(opening) = &flow.phase else { return None };
        let tap = &self.taps[flow.tap].state;
        let mut open = Open::new(now, opening, by, &key, &mut self.stacks, tap, &self.options)?;
        open.describe(&flow.envelope(by, false).l2, self.owner_hasher.hash(&key) as u32, self.ifindex);
        flow.phase = Phase::Open(Box::new(open));
        self.counters.taps[flow.tap].flows_established += 1;
        Some(())
    }

    /// Whether a SYN of the client with number `seq` replaces flow `id`: nothing of that is owed to either host any more, and
    /// it is not the flow's own SYN that comes late. (RFC 9293 §3.10.7.4, RFC 6191: the server judges the number, since it
    /// gets the client's own.)
    fn gives_way(&self, id: FlowId, seq: u32) -> bool {
        match &self.flows[id].phase {
            Phase::Opening(_) => false,
            Phase::Open(open) => open.is_over() && !open.was_opened_by(seq),
            Phase::Over(over) => over.client_iss != seq,
        }
    }

    /// When the table is full, the oldest flow that is over gives way.
    fn make_room(&mut self) -> bool {
        while self.flows.is_full() {
            let Some((id, since)) = self.over.pop_front() else { return false };
            if self.is_over_since(id, since) {
                self.remove(id);
            }
        }
        true
    }

    fn is_over_since(&mut self, id: FlowId, since: Instant) -> bool {
        let flow = self.flows.get_mut(id);
        matches!(flow, Some(Flow { phase: Phase::Over(over), .. }) if over.since == since)
    }

    /// Files a flow that has sent all it could: when to look at it again, or that it is over.
    fn settle(&mut self, now: Instant, id: FlowId) {
        let flow = &mut self.flows[id];
        let was_open = matches!(flow.phase, Phase::Open(_));
        if flow.settle(now, &mut self.counters.taps[flow.tap]) == Outcome::Ended {
            return self.remove(id);
        }
        if was_open && matches!(flow.phase, Phase::Over(_)) {
            while let Some(&(oldest, since)) = self.over.front()
                && !self.is_over_since(oldest, since)
            {
                self.over.pop_front();
            }
            self.over.push_back((id, now));
        }
        let flow = &mut self.flows[id];
        let message_timeout = self.taps[flow.tap].state.message_timeout;
        match flow.poll_at(now, message_timeout) {
            Some(deadline) => self.timers.set(id, deadline),
            None => self.timers.cancel(id),
        }
    }

    /// Touches the next flows that the last change of taps has not reached.
    fn touch_unchanged(&mut self) {
        let Some(first) = self.unchanged else { return };
        let end = (first as usize + CHANGED_AT_ONCE).min(self.flows.capacity());
        for id in first..end as FlowId {
            self.touch(id);
        }
        self.unchanged = (end < self.flows.capacity()).then_some(end as FlowId);
    }

    fn touch(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !std::mem::replace(&mut flow.touched, true)
        {
            self.touched.push(id);
        }
    }

    fn remove(&mut self, id: FlowId) {
        self.timers.cancel(id);
        self.flows.remove(id);
    }

    /// Which worker a flow belongs to.
    fn owner(&self, key: &FlowKey) -> usize {
        // Multiply-shift maps the hash to 0..workers without a division.
        ((u128::from(self.owner_hasher.hash(key)) * u128::from(self.workers)) >> 64) as usize
    }
}

/// One port of an [`Output`].
struct ToSide<'a, O> {
    out: &'a mut O,
    to: Side,
}

impl<O: Output> FrameSink for ToSide<'_, O> {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.out.frame(self.to, length)
    }
}
