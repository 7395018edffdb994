//! The host behind socktap: a minimal TCP with an application on it, which keeps what it reads.
//!
//! It is strict towards frames that the tap has built ([`Host::receive`]): one that an honest TCP would not have sent is a
//! failure of the test. Frames of a handshake ([`Host::receive_passed_on`]) and frames that only crossed
//! ([`Host::receive_crossed`]) are whatever an attacker wants; with these it does what a host does.

use std::net::{IpAddr, SocketAddr};

use tcp::time::{Duration, Instant};

use crate::receiver::Receiver;
use crate::wire::{self, ACK, FIN, Options, PSH, RST, Received, SYN, Segment, Shape, URG};

const RETRANSMISSION: Duration = Duration::from_millis(700);
const MSS: u16 = 1400;

/// How the host and its application behave.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Size of its receive buffer.
    pub buffer: usize,
    /// How long it waits with an ACK of what came in order.
    pub ack_delay: Duration,
    /// How long its application waits before it reads; none: it does not read.
    pub read_after: Option<Duration>,
    /// Which of the first frames to it are lost, the SYN not counted.
    pub losses: Vec<bool>,
    /// How many hops it is behind the tap: a frame whose hop limit is less does not arrive.
    pub hops: u8,
    /// Whether it agrees to timestamps, window scale and SACK.
    pub modern: bool,
    /// It remembers a SYN in the number of its SYN-ACK only (RFC 4987 §3.6), which it therefore does not repeat.
    pub cookies: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            buffer: 60_000,
            ack_delay: Duration::ZERO,
            read_after: Some(Duration::ZERO),
            losses: Vec::new(),
            hops: 3,
            modern: true,
            cookies: false,
        }
    }
}

/// What the application of a closed or reset connection had read, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection yet, or none any more.
    Listen,
    /// A SYN was answered.
    SynReceived,
    /// Open, perhaps with one or both directions closed.
    Established,
    /// The other end has reset it.
    Reset,
}

pub struct Host {
    pub habits: Habits,
    local: SocketAddr,
    remote: SocketAddr,
    pub state: State,
    /// What the application has read, from the connection's first byte on.
    pub read: Vec<u8>,
    /// What it had read of the connections before.
    pub past: Vec<Vec<u8>>,
    /// SYNs that came, repeated ones included.
    pub syns: Vec<Segment>,
    /// Frames that crossed and were no segment of its connection.
    pub ignored: Vec<&'static str>,
    connection: Connection,
    fragments: Vec<(usize, bool, Vec<u8>)>,
    arrivals: usize,
    /// Frames that it has sent.
    pub out: Vec<Vec<u8>>,
}

/// One connection, from its SYN on.
struct Connection {
    iss: u32,
    receiver: Receiver,
    /// Shifts of the windows that we and the other end offer, if agreed.
    shifts: Option<(u8, u8)>,
    /// Whether SACK is agreed.
    sack: bool,
    /// The last timestamps that came and that were sent, if agreed, and the first that was sent.
    timestamps: Option<(u32, u32, u32)>,
    ack_at: Option<Instant>,
    read_at: Option<Instant>,
    /// What the application has written, how much of it was sent, at most and since the last timeout, how much is
    /// acknowledged, and how far the window goes. (A FIN counts as one more byte.)
    written: Vec<u8>,
    reached: usize,
    sent: usize,
    acked: usize,
    edge: usize,
    closing: bool,
    retransmit_at: Option<Instant>,
}

impl Host {
    pub fn new(local: SocketAddr, remote: SocketAddr, habits: Habits) -> Self {
        Self {
            connection: Connection::new(0, 0, habits.buffer),
            habits,
            local,
            remote,
            state: State::Listen,
            read: Vec::new(),
            past: Vec::new(),
            syns: Vec::new(),
            ignored: Vec::new(),
            fragments: Vec::new(),
            arrivals: 0,
            out: Vec::new(),
        }
    }

    /// The application writes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.connection.written.extend(bytes);
    }

    /// The application closes its direction.
    pub fn close(&mut self) {
        self.connection.closing = true;
    }

    /// The application has read the end of the stream.
    pub fn has_read_the_end(&self) -> bool {
        self.connection.receiver.is_finished() && !self.connection.receiver.is_readable()
    }

    /// How many bytes have come in order, read or not.
    pub fn received(&self) -> usize {
        self.connection.receiver.in_order()
    }

    /// All that was written is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.connection.acked >= self.connection.written.len() + usize::from(self.connection.closing)
    }

    /// A frame that the tap has built.
    #[track_caller]
    pub fn receive(&mut self, now: Instant, frame: &[u8]) {
        let segment = self.read_frame(frame);
        assert!(!segment.has(SYN), "a SYN of its own: {segment:?}");
        if matches!(self.state, State::SynReceived | State::Established) {
            self.check(&segment);
        } else {
            assert!(segment.is_bare(), "text without a connection: {segment:?}");
        }
        self.arrive(now, frame, &segment);
    }

    /// A frame of a handshake, which the tap has passed on. It may be no use to anybody, as over a wire; but nothing is in it
    /// that would have to be judged.
    #[track_caller]
    pub fn receive_passed_on(&mut self, now: Instant, frame: &[u8]) {
        let segment = self.read_frame(frame);
        assert!(segment.is_bare(), "text or FIN before the handshake is complete: {segment:?}");
        self.arrive(now, frame, &segment);
    }

    #[track_caller]
    fn read_frame(&self, frame: &[u8]) -> Segment {
        let Received::Segment(source, destination, segment) = wire::receive(frame) else {
            panic!("the tap has sent {:?}: {frame:02x?}", wire::receive(frame));
        };
        assert_eq!((source, destination), (self.remote, self.local), "the tap has invented an address");
        assert!(!segment.has(URG) && segment.urgent == 0, "urgent data is data: {segment:?}");
        segment
    }

    fn arrive(&mut self, now: Instant, frame: &[u8], segment: &Segment) {
        let mut lost = wire::hop_limit(frame) < self.habits.hops;
        if !segment.has(SYN) {
            lost |= self.habits.losses.get(self.arrivals) == Some(&true);
            self.arrivals += 1;
        }
        if !lost {
            self.segment(now, segment);
        }
    }

    /// A frame that crossed as the attacker has built it.
    pub fn receive_crossed(&mut self, now: Instant, frame: &[u8]) {
        if wire::hop_limit(frame) < self.habits.hops {
            return self.ignored.push("expired");
        }
        match wire::receive(frame) {
            Received::Segment(source, destination, segment) => self.crossed(now, source, destination, &segment),
            Received::Fragment(source, destination, offset, more, bytes) => {
                self.fragments.push((offset, more, bytes));
                if let Some(packet) = self.reassemble() {
                    match wire::receive_tcp(source, destination, &packet) {
                        Received::Segment(source, destination, segment) => {
                            self.crossed(now, source, destination, &segment);
                        }
                        Received::Nothing(why) => self.ignored.push(why),
                        Received::Fragment(..) => unreachable!("a segment is no fragment"),
                    }
                } else {
                    self.ignored.push("incomplete packet");
                }
            }
            Received::Nothing(why) => self.ignored.push(why),
        }
    }

    /// When it wants to do something if nothing comes.
    pub fn poll_at(&self) -> Option<Instant> {
        let Connection { ack_at, read_at, retransmit_at, .. } = &self.connection;
        [*ack_at, *read_at, *retransmit_at].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.connection.receiver.is_readable() && self.connection.read_at.is_none() {
            self.connection.read_at = self.habits.read_after.map(|after| now + after);
        }
        if due(self.connection.read_at) {
            self.connection.read_at = None;
            let small = self.connection.receiver.offered() < self.habits.buffer / 2;
            self.read.extend(self.connection.receiver.read());
            if small && self.state == State::Established {
                self.acknowledge();
            }
        }
        if due(self.connection.ack_at) {
            self.acknowledge();
        }
        if due(self.connection.retransmit_at) {
            self.connection.retransmit_at = None;
            match self.state {
                State::SynReceived => self.answer_syn(now),
                _ => self.connection.sent = self.connection.acked,
            }
        }
        if self.state == State::Established {
            self.transmit(now);
        }
    }

    fn crossed(&mut self, now: Instant, source: SocketAddr, destination: SocketAddr, segment: &Segment) {
        if (source, destination) == (self.remote, self.local) {
            self.segment(now, segment);
        } else {
            self.ignored.push("no connection of ours");
        }
    }

    /// The packet that the fragments make up, once all have come.
    fn reassemble(&mut self) -> Option<Vec<u8>> {
        self.fragments.sort_by_key(|(offset, ..)| *offset);
        let mut packet = Vec::new();
        for (offset, more, bytes) in &self.fragments {
            if *offset != packet.len() {
                return None;
            }
            packet.extend(bytes);
            if !more {
                self.fragments.clear();
                return Some(packet);
            }
        }
        None
    }

    /// What an honest peer would not do.
    #[track_caller]
    fn check(&mut self, segment: &Segment) {
        let connection = &mut self.connection;
        if segment.has(RST) {
            let at = connection.receiver.offset(segment.seq);
            let in_order = connection.receiver.in_order() as i64;
            let edge = in_order + 1 + connection.receiver.offered() as i64;
            assert!((in_order..=edge).contains(&at), "a reset that nobody could believe: {segment:?}");
            return;
        }
        connection.receiver.check(segment);
        assert!(segment.has(ACK), "no ACK: {segment:?}");
        let acked = i64::from(segment.ack.wrapping_sub(connection.iss.wrapping_add(1)) as i32);
        assert!((0..=connection.reached as i64).contains(&acked), "an ACK of what was never sent: {segment:?}");
        match (&mut connection.timestamps, segment.options().timestamps) {
            (None, None) => {}
            (Some((recent, last, first)), Some((value, echo))) => {
                assert!(value.wrapping_sub(*recent) as i32 >= 0, "the clock runs backwards: {segment:?}");
                let known = *first..=*last;
                assert!(known.contains(&echo), "an echo of a timestamp that was never sent: {segment:?}");
            }
            (agreed, sent) => panic!("timestamps: agreed {agreed:?}, sent {sent:?}"),
        }
    }

    /// RFC 9293 §3.10.7, as far as a server needs it.
    fn segment(&mut self, now: Instant, segment: &Segment) {
        match self.state {
            State::Listen | State::Reset => {
                if segment.has(SYN) && segment.flags & (ACK | RST) == 0 {
                    self.open(now, segment);
                } else if !segment.has(RST) {
                    self.refuse(segment);
                }
            }
            State::SynReceived | State::Established => self.segment_of_connection(now, segment),
        }
    }

    fn segment_of_connection(&mut self, now: Instant, segment: &Segment) {
        let receiver = &mut self.connection.receiver;
        let at = receiver.offset(segment.seq);
        let (in_order, window) = (receiver.in_order() as i64, receiver.offered() as i64);
        if segment.has(RST) {
            if segment.seq == receiver.next() {
                self.state = if self.state == State::SynReceived { State::Listen } else { State::Reset };
                self.read.extend(self.connection.receiver.read());
                self.connection.retransmit_at = None;
                self.connection.ack_at = None;
            } else if (in_order..in_order + window).contains(&at) {
                self.acknowledge();
            }
            return;
        }
        if segment.has(SYN) {
            if self.state == State::SynReceived && at == -1 {
                self.syns.push(segment.clone());
                return self.answer_syn(now);
            }
            return self.acknowledge();
        }
        if !segment.has(ACK) {
            return;
        }
        if let (Some((recent, ..)), Some((value, _))) = (self.connection.timestamps, segment.options().timestamps) {
            // RFC 7323 §5.3.
            if (value.wrapping_sub(recent) as i32) < 0 {
                return self.acknowledge();
            }
            if at <= in_order {
                self.connection.timestamps.as_mut().expect("agreed").0 = value;
            }
        }
        if at + i64::from(segment.length()) < in_order || at > in_order + window {
            return self.acknowledge();
        }
        let connection = &mut self.connection;
        let acked = i64::from(segment.ack.wrapping_sub(connection.iss.wrapping_add(1)) as i32);
        if self.state == State::SynReceived {
            if acked != 0 {
                return self.refuse(segment);
            }
            self.state = State::Established;
            connection.retransmit_at = None;
        }
        if acked > connection.reached as i64 {
            return self.acknowledge();
        }
        let shift = connection.shifts.map_or(0, |(_, theirs)| theirs);
        if acked >= connection.acked as i64 {
            if acked as usize > connection.acked {
                connection.acked = acked as usize;
                connection.sent = connection.sent.max(connection.acked);
                connection.retransmit_at = None;
            }
            connection.edge = acked as usize + (usize::from(segment.window) << shift);
        }
        let before = connection.receiver.in_order();
        if connection.receiver.take(segment) {
            let advanced = connection.receiver.in_order() > before && !connection.receiver.is_finished();
            let at = now + if advanced { self.habits.ack_delay } else { Duration::ZERO };
            connection.ack_at = Some(connection.ack_at.map_or(at, |before| before.min(at)));
        }
    }

    fn open(&mut self, now: Instant, syn: &Segment) {
        if self.state == State::Reset {
            self.past.push(std::mem::take(&mut self.read));
        }
        self.syns.push(syn.clone());
        let iss = 0x7000_0000 + 0x0123_4567 * (self.syns.len() as u32 - 1);
        let offered = syn.options();
        let mut connection = Connection::new(iss, syn.seq, self.habits.buffer);
        connection.written = std::mem::take(&mut self.connection.written);
        connection.edge = usize::from(syn.window);
        if self.habits.modern {
            connection.shifts = offered.window_scale.map(|theirs| (2, theirs));
            connection.sack = offered.sack_permitted;
            connection.timestamps = offered.timestamps.map(|(value, _)| (value, clock(now), clock(now)));
        }
        self.connection = connection;
        self.state = State::SynReceived;
        self.answer_syn(now);
    }

    fn answer_syn(&mut self, now: Instant) {
        let connection = &mut self.connection;
        let options = Options {
            mss: Some(MSS),
            window_scale: connection.shifts.map(|(ours, _)| ours),
            sack_permitted: connection.sack,
            timestamps: connection.timestamps.map(|(recent, ..)| (clock(now), recent)),
            sack: Vec::new(),
        };
        if let Some((_, last, _)) = &mut connection.timestamps {
            *last = clock(now);
        }
        let answer = Segment {
            seq: connection.iss,
            ack: connection.receiver.next(),
            flags: SYN | ACK,
            window: connection.receiver.offer(0),
            options: options.to_bytes(),
            ..Segment::default()
        };
        connection.retransmit_at = (!self.habits.cookies).then_some(now + RETRANSMISSION);
        self.send(&answer);
    }

    /// Sends what is written and allowed, and the FIN behind it.
    fn transmit(&mut self, now: Instant) {
        let all = self.connection.written.len();
        loop {
            let connection = &mut self.connection;
            let at = connection.sent;
            let allowed = all.min(connection.edge).min(at + usize::from(MSS));
            let last = connection.closing && allowed == all && at <= all;
            if at >= allowed && !last {
                break;
            }
            let text = connection.written[at.min(all)..allowed.max(at.min(all))].to_vec();
            let flags = ACK | PSH | if last { FIN } else { 0 };
            connection.sent = allowed + usize::from(last);
            connection.reached = connection.reached.max(connection.sent);
            let segment = self.next(flags, at, text);
            self.send(&segment);
        }
        let connection = &mut self.connection;
        if connection.acked < all + usize::from(connection.closing) && connection.retransmit_at.is_none() {
            connection.retransmit_at = Some(now + RETRANSMISSION);
        }
        if let Some((_, last, _)) = &mut connection.timestamps {
            *last = clock(now);
        }
    }

    fn acknowledge(&mut self) {
        self.connection.ack_at = None;
        let reached = self.connection.reached;
        let segment = self.next(ACK, reached, Vec::new());
        self.send(&segment);
    }

    fn refuse(&mut self, segment: &Segment) {
        let reset = if segment.has(ACK) {
            Segment { seq: segment.ack, flags: RST, ..Segment::default() }
        } else {
            let ack = segment.seq.wrapping_add(segment.length());
            Segment { ack, flags: RST | ACK, ..Segment::default() }
        };
        self.send(&reset);
    }

    fn next(&mut self, flags: u8, at: usize, text: Vec<u8>) -> Segment {
        let connection = &mut self.connection;
        let options = Options {
            timestamps: connection.timestamps.map(|(recent, last, _)| (last, recent)),
            sack: if connection.sack && text.is_empty() { connection.receiver.islands() } else { Vec::new() },
            ..Options::default()
        };
        Segment {
            seq: connection.iss.wrapping_add(1).wrapping_add(at as u32),
            ack: connection.receiver.next(),
            flags,
            window: connection.receiver.offer(connection.shifts.map_or(0, |(ours, _)| ours)),
            urgent: 0,
            options: options.to_bytes(),
            text,
        }
    }

    fn send(&mut self, segment: &Segment) {
        self.out.push(wire::frame(self.local, self.remote, segment, &Shape::default()));
    }
}

impl Connection {
    fn new(iss: u32, irs: u32, buffer: usize) -> Self {
        Self {
            iss,
            receiver: Receiver::new(irs, buffer),
            shifts: None,
            sack: false,
            timestamps: None,
            ack_at: None,
            read_at: None,
            written: Vec::new(),
            reached: 0,
            sent: 0,
            acked: 0,
            edge: 0,
            closing: false,
            retransmit_at: None,
        }
    }
}

/// The host's timestamp clock: milliseconds from a number of its own.
fn clock(now: Instant) -> u32 {
    0x3000_0000 + now.total_millis() as u32
}

/// Addresses of the two hosts.
pub fn ends(v6: bool) -> [SocketAddr; 2] {
    let ips: [IpAddr; 2] = if v6 {
        ["fd00:1::7".parse().unwrap(), "fd00:2::9".parse().unwrap()]
    } else {
        ["198.51.100.7".parse().unwrap(), "203.0.113.9".parse().unwrap()]
    };
    [SocketAddr::new(ips[0], 40_000), SocketAddr::new(ips[1], 6379)]
}
