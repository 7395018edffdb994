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

use config::OnParseError;
use tap_engine::{Filter, MessageBuffer};
use tcp::time::{Duration, Instant};
use tcp::wire::{self, Headers};
use tcp::{FrameSink, Options, Stack};

use crate::counters::{Counters, DropReason};
use crate::flow::{Context, Flow, Outcome, Phase};
use crate::flow_event::{EventKind, FlowEvent, FlowEvents};
use crate::flow_table::{FlowId, FlowTable, KeyHasher};
use crate::steer::{FlowKey, Selection, Side, Steered, steer};
use crate::timers::Timers;

/// Receive and send queue of a side are at least this large, in bytes.
const MIN_QUEUE: usize = 64 * 1024;
/// Room in a receive queue beside the longest message, in segments: senders do not send into a window smaller than one
/// segment (RFC 9293 §3.8.6.2.1), and the end of a message must not wait for that.
const SPARE_SEGMENTS: usize = 4;

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
    /// Programs of the directions `receive` and `send`; none: not judged.
    pub filters: [Option<Filter>; 2],
    /// The side where the application is: `receive` is what goes there.
    pub application: Side,
    /// Judge, count and report, but pass everything.
    pub observe: bool,
    /// The policy for what cannot be cut into messages.
    pub on_parse_error: OnParseError,
    /// How long a message may stay incomplete.
    pub message_timeout: Option<Duration>,
}

impl TapState {
    /// Names of the directions, in the order of `filters`.
    pub const KINDS: [&'static str; 2] = ["receive", "send"];

    /// Which of `filters` judges what comes from a side.
    pub fn kind_from(&self, from: Side) -> usize {
        usize::from(from == self.application)
    }

    /// The programs that judge what comes from a side.
    pub fn filter_from(&self, from: Side) -> Option<&Filter> {
        self.filters[self.kind_from(from)].as_ref()
    }
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
    /// By side: frames of a sender on this machine may carry a checksum that is not complete.
    pub accept_partial_checksums: [bool; 2],
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
    /// Closed flows, oldest first: what makes room when the table is full.
    time_wait: VecDeque<(FlowId, Instant)>,
    /// Scratch: flows whose deadline has come.
    expired: Vec<FlowId>,
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
            stacks: [stack(), stack()],
            flows: FlowTable::new(config.flows, KeyHasher::new(config.seed)),
            timers: Timers::new(now),
            counters: Counters::new(config.taps.len()),
            taps: config.taps,
            buffer: MessageBuffer::new(queue)?,
            options: Options { receive_buffer: queue, send_buffer: queue },
            events: FlowEvents::default(),
            touched: Vec::new(),
            time_wait: VecDeque::new(),
            expired: Vec::new(),
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

    /// Number of flows, those in TIME-WAIT included.
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
        !self.touched.is_empty()
    }

    /// Takes in one frame that came on the port of side `from`.
    pub fn handle_frame(&mut self, now: Instant, from: Side, frame: &mut [u8], out: &mut impl Output) -> Fate {
        self.counters.frames_received[from as usize] += 1;
        let selections = self.taps.iter().map(|tap| &tap.selection);
        match steer(from, frame, self.accept_partial[from as usize], selections) {
            Ok(Steered::Forward) => {
                self.counters.frames_forwarded[from as usize] += 1;
                Fate::Forward
            }
            Ok(Steered::Tap { tap, key, headers }) => {
                let owner = self.owner(&key);
                if owner != self.index {
                    self.counters.frames_received[from as usize] -= 1;
                    self.counters.frames_handed_over += 1;
                    return Fate::HandOver(owner);
                }
                match self.handle_segment(now, from, tap, &key, &headers, frame, out) {
                    Ok(()) => Fate::Consumed,
                    Err(reason) => Fate::Dropped(self.counters.drop(reason)),
                }
            }
            Err(reason) => Fate::Dropped(self.counters.drop(reason)),
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
    pub fn pump(&mut self, now: Instant, out: &mut impl Output) {
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
                stacks: &mut self.stacks,
                tap: &mut self.taps[tap].state,
                counters: &mut self.counters.taps[tap],
                buffer: &mut self.buffer,
                options: &self.options,
                key: &key,
                events: &mut tell,
            };
            match flow.pump(now, &mut context) {
                Outcome::Lives => {}
                Outcome::Refused => {
                    if let Phase::Opening(opening) = &flow.phase {
                        let headers = *opening.syn_headers();
                        wire::build_rst(&mut ToSide { out, to: Side::Client }, &headers);
                    }
                    self.remove(id);
                }
                Outcome::Ended => self.remove(id),
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
    ) -> Result<(), DropReason> {
        let flags = headers.flags;
        let opens = from == Side::Client && flags.syn() && !flags.ack() && !flags.rst() && !flags.fin();
        if let Some(id) = self.flows.find(key) {
            if !(opens && self.gives_way(id, headers.seq)) {
                return self.handle_known(now, from, id, headers, frame, out);
            }
            self.remove(id);
        }
        if !opens {
            // RFC 9293 §3.10.7.1: what arrives for no connection is reset, except a reset.
            if !headers.flags.rst() {
                wire::build_rst(&mut ToSide { out, to: from }, headers);
            }
            return Err(DropReason::Midstream);
        }
        if !self.make_room() {
            self.events.push(FlowEvent { at: now, tap, key: *key, from: Some(from), kind: EventKind::TableFull });
            return Err(DropReason::TableFull);
        }
        let flow = Flow::open(&mut self.stacks, now, tap, key, frame, headers, &self.options)
            .map_err(|_| DropReason::Unaddressable)?;
        let id = self.flows.insert(*key, flow).map_err(|_| DropReason::TableFull)?;
        self.counters.taps[tap].flows_opened += 1;
        self.touch(id);
        Ok(())
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
        flow.l2[from.other() as usize] = headers.l2;
        let answer = headers.l2.reversed();
        let stack = &mut self.stacks[from as usize];
        let sink = &mut ToSide { out, to: from };
        match &mut flow.phase {
            Phase::Opening(opening) => match from {
                Side::Client if headers.flags.syn() => {
                    return if opening.handle_syn(now, headers) { Ok(()) } else { Err(DropReason::SynConflict) };
                }
                Side::Client => return Err(DropReason::NotYetOpen),
                Side::Server => opening.server().handle_segment(stack, now, frame, headers, &answer, sink),
            },
            Phase::Open(open) => {
                open.sides[from as usize].handle_segment(stack, now, frame, headers, &answer, sink);
                open.heard(now, from);
            }
            Phase::TimeWait(wait) => {
                // RFC 9293 §3.10.7.4, TIME-WAIT: what arrives is answered with an ACK.
                if let Some((seq, ack)) = wait.numbers[from as usize]
                    && headers.segment_len() > 0
                    && !headers.flags.rst()
                {
                    wire::build_ack(sink, &answer, headers.destination, headers.source, seq, ack);
                }
                return Err(DropReason::TimeWait);
            }
        }
        self.touch(id);
        Ok(())
    }

    /// Whether a SYN of the client with number `seq` replaces flow `id`: nothing of that is owed to either host any more, and
    /// it is not the flow's own SYN that comes late. (RFC 9293 §3.10.7.4, RFC 6191: the server judges the number, since it
    /// gets the client's own.)
    fn gives_way(&self, id: FlowId, seq: u32) -> bool {
        match &self.flows[id].phase {
            Phase::Opening(_) => false,
            Phase::Open(open) => open.is_over() && !open.was_opened_by(seq),
            Phase::TimeWait(wait) => wait.client_iss != seq,
        }
    }

    /// When the table is full, the oldest flow in TIME-WAIT gives way.
    fn make_room(&mut self) -> bool {
        while self.flows.is_full() {
            let Some((id, since)) = self.time_wait.pop_front() else { return false };
            if self.waits_since(id, since) {
                self.remove(id);
            }
        }
        true
    }

    fn waits_since(&mut self, id: FlowId, since: Instant) -> bool {
        let flow = self.flows.get_mut(id);
        matches!(flow, Some(Flow { phase: Phase::TimeWait(wait), .. }) if wait.since == since)
    }

    /// Files a flow that has sent all it could: when to look at it again, or that it is over.
    fn settle(&mut self, now: Instant, id: FlowId) {
        let flow = &mut self.flows[id];
        let was_open = matches!(flow.phase, Phase::Open(_));
        if flow.settle(now, &mut self.counters.taps[flow.tap]) == Outcome::Ended {
            return self.remove(id);
        }
        if was_open && matches!(flow.phase, Phase::TimeWait(_)) {
            while let Some(&(oldest, since)) = self.time_wait.front()
                && !self.waits_since(oldest, since)
            {
                self.time_wait.pop_front();
            }
            self.time_wait.push_back((id, now));
        }
        let flow = &mut self.flows[id];
        let message_timeout = self.taps[flow.tap].state.message_timeout;
        match flow.poll_at(now, &mut self.stacks, message_timeout) {
            Some(deadline) => self.timers.set(id, deadline),
            None => self.timers.cancel(id),
        }
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
    fn room(&self) -> usize {
        self.out.room(self.to)
    }

    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.out.frame(self.to, length)
    }
}
