//! A worker between an attacking client, which is the test, and a strict host.
//!
//! ```text
//!   test ──▶ Lab::client_sends ──▶ Worker ──▶ Host::receive
//!   Client::hears ◀─────────────── Worker ◀── Host::out
//! ```
//! Frames take no time; time passes only in [`Lab::wait`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use config::Midstream;
use dataplane::counters::DirectionCounters;
use dataplane::flow_event::EventKind;
use dataplane::programs::{Generations, Programs};
use dataplane::steer::Selection;
use dataplane::worker::{Tap, TapChange, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use tap_engine::{Filter, Kind, Object};
use tcp::time::{Duration, Instant};

use crate::host::{self, Habits, Host};
use crate::receiver::Receiver;
use crate::wire::{self, ACK, Damage, FIN, Options, PSH, RST, Received, SYN, Segment, Shape, URG};

/// The longest message that the tap takes.
pub const LONGEST: usize = 1000;

const CLIENT_ISS: u32 = 0xffff_ff00; // Numbers wrap after 255 bytes.
const CLIENT_CLOCK: u32 = 0x5000_0000;

/// The filter for messages behind a length.
pub static LEN4: LazyLock<Arc<Object>> = LazyLock::new(|| {
    Arc::new(Object::from_bytes("len4", tap_engine::shipped::LEN4).expect("the shipped filter is an object"))
});

/// The worker under test, with one tap that judges both directions.
fn worker(midstream: Midstream) -> Worker {
    let filter = || {
        let program = |name, kind| LEN4.program(name, kind).expect("the shipped filter has its programs");
        let parser = program("parse_len4", Kind::StreamParser);
        let verdict = program("by_first_byte", Kind::StreamVerdict);
        Some(Filter::new(parser, Some(verdict), LONGEST))
    };
    let tap = Tap {
        name: "len4".into(),
        selection: Selection { server_ports: vec![6379..=6379], ..Selection::default() },
        state: TapState {
            programs: [filter(), filter()].map(|filter| Generations::new(filter.map(Programs::from))),
            application: Side::Server,
            observe: false,
            on_parse_error: config::OnParseError::Disconnect,
            message_timeout: None,
            midstream,
        },
    };
    let config = WorkerConfig {
        index: 0,
        workers: 1,
        seed: 1,
        owner_seed: 2,
        mtu: [1500; 2],
        ifindex: [1, 2],
        accept_partial_checksums: [false; 2],
        fragments: config::Fragments::Drop,
        flows: 10,
        message: LONGEST,
        taps: vec![tap],
    };
    Worker::new(config, Instant::ZERO).expect("memory for messages")
}

/// A message that passes.
pub fn pass(text: &str) -> Vec<u8> {
    message(b'P', text.as_bytes())
}

/// A message that is dropped.
pub fn forbidden(text: &str) -> Vec<u8> {
    message(b'D', text.as_bytes())
}

/// A message that disconnects.
pub fn fatal(text: &str) -> Vec<u8> {
    message(b'X', text.as_bytes())
}

/// A message with this verdict.
pub fn message(verdict: u8, text: &[u8]) -> Vec<u8> {
    let length = (1 + text.len() as u32).to_be_bytes();
    [&length[..], &[verdict], text].concat()
}

/// A segment of the client, as a test describes it: in offsets of the stream, and right where nothing else is said.
#[derive(Clone, Debug)]
pub struct Sends {
    /// Offset of the first byte; the SYN is at -1.
    pub at: i64,
    pub text: Vec<u8>,
    pub flags: u8,
    /// The acknowledgement number: so far from the right one.
    pub ack: i64,
    pub window: u16,
    pub urgent: u16,
    pub stamp: Stamp,
    /// Further options.
    pub options: Vec<u8>,
    pub shape: Shape,
    pub port: Option<u16>,
}

/// Timestamps of a segment, if the hosts have agreed on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    Right,
    /// From before the connection.
    Old,
    Missing,
}

/// Text at this offset.
pub fn text(at: usize, text: &[u8]) -> Sends {
    flags(ACK | PSH, at as i64).with(text)
}

/// A segment without text.
pub fn flags(flags: u8, at: i64) -> Sends {
    Sends {
        at,
        text: Vec::new(),
        flags,
        ack: 0,
        window: 60_000,
        urgent: 0,
        stamp: Stamp::Right,
        options: Vec::new(),
        shape: Shape::default(),
        port: None,
    }
}

impl Sends {
    pub fn with(self, text: &[u8]) -> Self {
        Self { text: text.to_vec(), ..self }
    }

    pub fn also(self, flags: u8) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    pub fn without_ack(self) -> Self {
        Self { flags: self.flags & !ACK, ..self }
    }

    pub fn fin(self) -> Self {
        self.also(FIN)
    }

    /// Bytes before `pointer` are urgent.
    pub fn urgent(self, pointer: u16) -> Self {
        Self { urgent: pointer, ..self.also(URG) }
    }

    /// Acknowledges so much more than it should.
    pub fn acking(self, ack: i64) -> Self {
        Self { ack, ..self }
    }

    pub fn stamped(self, stamp: Stamp) -> Self {
        Self { stamp, ..self }
    }

    pub fn option(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    pub fn damaged(self, damage: Damage) -> Self {
        Self { shape: Shape { damage, ..self.shape }, ..self }
    }

    pub fn bad_checksum(self) -> Self {
        self.damaged(Damage::TcpChecksum)
    }

    pub fn hop_limit(self, hop_limit: u8) -> Self {
        Self { shape: Shape { hop_limit, ..self.shape }, ..self }
    }

    /// With IPv4 options or IPv6 destination options.
    pub fn extra(self, extra: usize) -> Self {
        Self { shape: Shape { extra, ..self.shape }, ..self }
    }

    /// In an IPv6 packet that does not say its length.
    pub fn without_length(self) -> Self {
        self.damaged(Damage::NoLength)
    }

    pub fn fragment(self, offset: u16, more: bool) -> Self {
        Self { shape: Shape { fragment: Some((offset, more)), ..self.shape }, ..self }
    }

    pub fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }
}

/// What the client knows of its connection.
pub struct Client {
    ends: [SocketAddr; 2],
    /// Its initial sequence number.
    pub iss: u32,
    offers: Options,
    /// The options of the SYN-ACK that it got.
    agreed: Option<Options>,
    receiver: Option<Receiver>,
    /// The last timestamp that came.
    echo: u32,
    /// How much is acknowledged (a FIN counts as one byte), and how far the window has ever gone.
    pub acked: usize,
    pub edge: usize,
    /// Behind the last byte that it ever sent with a number that was acceptable.
    reached: usize,
    /// What the connection has brought it to read.
    pub read: Vec<u8>,
    /// It was reset.
    pub was_reset: bool,
    /// The other end has begun another connection with these ports.
    was_replaced: bool,
    /// Segments that came since a test last looked.
    heard: Vec<Segment>,
}

pub struct Lab {
    worker: Worker,
    pub now: Instant,
    pub client: Client,
    pub server: Host,
    ports: Ports,
}

/// Frames that the worker has sent.
#[derive(Default)]
struct Ports(VecDeque<(Side, Vec<u8>)>);

impl Output for Ports {
    fn room(&self, _: Side) -> usize {
        usize::MAX
    }

    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]> {
        self.0.push_back((to, vec![0xa5; length]));
        self.0.back_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}

/// Opening.
impl Lab {
    /// Nothing has happened yet. `modern`: both hosts know timestamps, window scale and SACK.
    pub fn new(v6: bool, modern: bool, habits: Habits) -> Self {
        let ends = host::ends(v6);
        let now = Instant::from_secs(1000);
        let offers = Options {
            mss: Some(1400),
            window_scale: modern.then_some(3),
            sack_permitted: modern,
            timestamps: modern.then_some((0, 0)),
            sack: Vec::new(),
        };
        Self {
            worker: worker(Midstream::Reset),
            now,
            client: Client::new(ends, CLIENT_ISS, offers),
            server: Host::new(ends[1], ends[0], habits),
            ports: Ports::default(),
        }
    }

    /// Of connections that were open before, what the client sends crosses unjudged.
    pub fn passing_midstream(mut self) -> Self {
        self.worker = worker(Midstream::Pass);
        self
    }

    /// Nothing has happened yet: both families, hosts with options and without.
    pub fn closed() -> impl Iterator<Item = Self> {
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        kinds.into_iter().map(|(v6, modern)| Self::new(v6, modern, Habits::default()))
    }

    /// The handshake is complete: both families, hosts with options and without.
    pub fn opened() -> impl Iterator<Item = Self> {
        Self::closed().map(Self::open)
    }

    /// The handshake, as an honest client goes through it.
    pub fn open(mut self) -> Self {
        self.client_sends(flags(SYN, -1));
        self.client.finds_syn_ack();
        self.client_sends(flags(ACK, 0));
        for _ in 0..30 {
            // Its ACK may be lost.
            if self.server.state == host::State::SynReceived {
                self.wait(500);
            }
        }
        assert_eq!(self.server.state, host::State::Established);
        self.client.heard.clear();
        self
    }

    /// The client begins anew with this initial sequence number, and with the same ports.
    pub fn client_begins_anew(&mut self, iss: u32) {
        self.client = Client::new(self.client.ends, iss, self.client.offers.clone());
    }
}

/// Frames and time.
impl Lab {
    pub fn is_v6(&self) -> bool {
        self.client.ends[0].is_ipv6()
    }

    /// The client sends a segment, and everybody does what is to be done at once.
    pub fn client_sends(&mut self, sends: Sends) -> Fate {
        let fate = self.client_sends_without_pause(sends);
        self.settle();
        fate
    }

    /// The client sends a segment, and more will come before the worker has looked at it.
    pub fn client_sends_without_pause(&mut self, sends: Sends) -> Fate {
        let frame = self.client.frame(self.now, &sends);
        self.client_sends_frame(frame)
    }

    pub fn client_sends_frame(&mut self, frame: Vec<u8>) -> Fate {
        let mut received = frame.clone();
        let fate = self.worker.handle_frame(self.now, Side::Client, &mut received, &mut self.ports);
        if fate == Fate::Forward {
            assert_eq!(received, frame, "a frame was changed on its way across");
            self.server.receive_crossed(self.now, &frame);
        }
        self.deliver(Some(Side::Client));
        fate
    }

    /// The client sends its segment in IP fragments of `piece` bytes.
    pub fn client_sends_fragments(&mut self, sends: &Sends, piece: usize) -> Vec<Fate> {
        let segment = self.client.segment(self.now, sends);
        let [source, destination] = self.client.ends;
        let fragments = wire::fragments(source, destination, &segment, piece);
        let fates = fragments.into_iter().map(|frame| self.client_sends_frame(frame)).collect();
        self.settle();
        fates
    }

    /// An honest client sends the stream from where it is acknowledged to its end.
    pub fn client_finishes(&mut self, stream: &[u8]) {
        let mut patience = 600;
        while self.client.acked < stream.len() && patience > 0 && !self.client.was_reset {
            let at = self.client.acked;
            let allowed = self.client.edge.min(stream.len()).min(at + 1400);
            if at < allowed {
                self.client_sends(text(at, &stream[at..allowed]));
            } else {
                self.client_sends(text(at, &stream[at..=at]));
            }
            if self.client.acked == at {
                self.wait(100);
            }
            patience = if self.client.acked == at { patience - 1 } else { 600 };
        }
        self.wait(100);
    }

    /// Time passes.
    pub fn wait(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        self.settle();
        while let Some(next) = self.poll_at().filter(|&next| next < end) {
            self.now = next.max(self.now + Duration::from_micros(1));
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// The tap gets other programs.
    pub fn change_programs(&mut self, programs: [Option<Programs>; 2]) {
        let on_parse_error = config::OnParseError::Disconnect;
        self.worker.change_taps(vec![TapChange { programs, observe: false, on_parse_error, message_timeout: None }]);
        self.settle();
    }

    /// Earlier programs that the flow still needs.
    pub fn earlier_programs(&self) -> usize {
        self.worker.earlier_programs()
    }

    /// Everybody does what is to be done at this moment; and what the worker tells of the client's messages.
    pub fn settle_and_tell(&mut self) -> Vec<EventKind> {
        self.worker.pump(self.now);
        let told = self.worker.drain_events().map(|event| event.kind).collect();
        self.settle();
        told
    }

    /// Everybody does what is to be done at this moment.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "frames go to and fro without end");
            if self.worker.poll_at().is_some_and(|at| at <= self.now) {
                self.worker.handle_timeouts(self.now);
            }
            self.worker.pump(self.now);
            self.worker.poll_transmit(self.now, &mut self.ports);
            self.deliver(None);
            self.server.poll(self.now);
            if self.server.out.is_empty() {
                break;
            }
            for mut frame in std::mem::take(&mut self.server.out) {
                if self.worker.handle_frame(self.now, Side::Server, &mut frame, &mut self.ports) == Fate::Forward {
                    self.client.hears(&frame);
                }
                self.deliver(Some(Side::Server));
            }
        }
        let _ = self.worker.drain_events().count();
    }

    /// What the worker has sent arrives. `by`: it was sent at once because of a segment of that side: it is an answer to it,
    /// or is the segment itself, passed on. All else waits until the worker is pumped.
    #[track_caller]
    fn deliver(&mut self, by: Option<Side>) {
        for (to, frame) in std::mem::take(&mut self.ports.0) {
            match (to, by) {
                (Side::Client, Some(Side::Server)) => self.client.hears_passed_on(&frame),
                (Side::Client, _) => self.client.hears(&frame),
                (Side::Server, Some(Side::Client)) => self.server.receive_passed_on(self.now, &frame),
                (Side::Server, _) => self.server.receive(self.now, &frame),
            }
        }
    }

    fn poll_at(&self) -> Option<Instant> {
        [self.worker.poll_at(), self.server.poll_at()].into_iter().flatten().min()
    }
}

/// What happened.
impl Lab {
    /// What was counted of what the server receives.
    pub fn judged(&self) -> DirectionCounters {
        self.worker.counters().taps[0].directions[0]
    }

    /// What was counted of what the server sends.
    pub fn judged_of_server(&self) -> DirectionCounters {
        self.worker.counters().taps[0].directions[1]
    }

    /// Flows that the worker holds.
    pub fn flows(&self) -> usize {
        self.worker.flow_count()
    }

    /// The server's application has read these messages and nothing else, and they are what the verdict has passed.
    #[track_caller]
    pub fn server_has_read(&self, messages: &[Vec<u8>]) {
        assert_eq!(Shown(&self.server.read), Shown(&messages.concat()));
        let judged = self.judged();
        assert_eq!((judged.messages[0], judged.bytes[0]), (messages.len() as u64, self.server.read.len() as u64));
        assert_eq!((judged.unjudged_bytes, judged.discarded_bytes), (0, 0));
    }

    /// As [`Self::server_has_read`], where contradictory segments leave a choice.
    #[track_caller]
    pub fn server_has_read_one_of(&self, choices: &[&[Vec<u8>]]) {
        let choice = choices.iter().find(|messages| messages.concat() == self.server.read);
        self.server_has_read(choice.unwrap_or(&choices[0]));
    }

    /// So many messages were dropped.
    #[track_caller]
    pub fn were_dropped(&self, messages: u64) {
        assert_eq!(self.judged().messages[1], messages);
    }

    /// The flow is over: the server was reset, and when nothing late can come any more, the worker has forgotten it.
    #[track_caller]
    pub fn is_reset(&mut self) {
        self.wait(20_000);
        assert_eq!((self.server.state, self.flows()), (host::State::Reset, 0));
    }

    /// The last thing that the client heard is a bare ACK of all that it has sent, and that is all.
    #[track_caller]
    pub fn is_challenged(&mut self) {
        let heard = self.client.heard();
        let challenge = |segment: &Segment| segment.flags == ACK && segment.text.is_empty();
        assert!(matches!(&heard[..], [segment] if challenge(segment)), "{heard:?}");
    }

    /// The client hears nothing.
    #[track_caller]
    pub fn is_not_answered(&mut self) {
        assert_eq!(self.client.heard(), []);
    }

    /// The flow is open on both sides.
    #[track_caller]
    pub fn is_open(&self) {
        assert!(!self.client.was_reset, "the client was reset");
        assert_eq!(self.server.state, host::State::Established);
        assert_eq!(self.flows(), 1);
    }
}

impl Client {
    fn new(ends: [SocketAddr; 2], iss: u32, offers: Options) -> Self {
        Self {
            ends,
            iss,
            offers,
            agreed: None,
            receiver: None,
            echo: 0,
            acked: 0,
            edge: 0,
            reached: 0,
            read: Vec::new(),
            was_reset: false,
            was_replaced: false,
            heard: Vec::new(),
        }
    }

    /// A SYN-ACK has come.
    #[track_caller]
    pub fn finds_syn_ack(&self) {
        assert!(self.receiver.is_some(), "no SYN-ACK came: {:?}", self.heard);
    }

    /// Takes the segments that came since the last call.
    pub fn heard(&mut self) -> Vec<Segment> {
        std::mem::take(&mut self.heard)
    }

    /// Whether the hosts have agreed on timestamps.
    pub fn has_timestamps(&self) -> bool {
        self.agreed.as_ref().is_some_and(|options| options.timestamps.is_some())
    }

    /// Shift of the windows that come.
    pub fn shift(&self) -> u8 {
        let agreed = self.agreed.as_ref().and_then(|options| options.window_scale);
        self.offers.window_scale.and(agreed).unwrap_or(0)
    }

    /// The segment that a description means.
    pub fn segment(&self, now: Instant, sends: &Sends) -> Segment {
        let mut options = Vec::new();
        let value = CLIENT_CLOCK + now.total_millis() as u32;
        if sends.flags & (SYN | ACK) == SYN {
            let timestamps = self.offers.timestamps.map(|_| (value, 0));
            options = Options { timestamps, ..self.offers.clone() }.to_bytes();
        } else if self.has_timestamps() {
            let value = match sends.stamp {
                Stamp::Right => Some(value),
                Stamp::Old => Some(CLIENT_CLOCK - 1000),
                Stamp::Missing => None,
            };
            let timestamps = value.map(|value| (value, self.echo));
            options = Options { timestamps, ..Options::default() }.to_bytes();
        }
        options.extend(&sends.options);
        let right = self.receiver.as_ref().map_or(0, Receiver::next);
        let ack = if sends.flags & ACK == 0 { 0 } else { right.wrapping_add(sends.ack as u32) };
        Segment {
            seq: self.iss.wrapping_add(1).wrapping_add(sends.at as u32),
            ack,
            flags: sends.flags,
            window: sends.window,
            urgent: sends.urgent,
            options,
            text: sends.text.clone(),
        }
    }

    /// The frame that a description means.
    pub fn frame(&mut self, now: Instant, sends: &Sends) -> Vec<u8> {
        let segment = self.segment(now, sends);
        let end = sends.at + i64::from(segment.length());
        if (-1..1 << 30).contains(&sends.at) {
            self.reached = self.reached.max(end.max(0) as usize);
        }
        let [mut source, destination] = self.ends;
        if let Some(port) = sends.port {
            source.set_port(port);
        }
        wire::frame(source, destination, &segment, &sends.shape)
    }

    /// A frame that the tap has built.
    #[track_caller]
    fn hears(&mut self, frame: &[u8]) {
        if let Some(segment) = self.read_frame(frame) {
            if let Some(receiver) = &mut self.receiver
                && !segment.has(SYN)
                && !segment.has(RST)
            {
                receiver.check(&segment);
            }
            self.takes(&segment);
        }
    }

    /// A frame of the server's handshake. (A bare ACK may be one of an older connection.)
    #[track_caller]
    fn hears_passed_on(&mut self, frame: &[u8]) {
        if let Some(segment) = self.read_frame(frame) {
            assert!(segment.is_bare(), "text or FIN before the handshake is complete: {segment:?}");
            if segment.has(SYN) || segment.has(RST) {
                self.takes(&segment);
            }
        }
    }

    /// The segment in a frame that came, if the client's connection is still there.
    #[track_caller]
    fn read_frame(&mut self, frame: &[u8]) -> Option<Segment> {
        let Received::Segment(source, destination, segment) = wire::receive(frame) else {
            panic!("the tap has sent {:?}: {frame:02x?}", wire::receive(frame));
        };
        assert_eq!(source, self.ends[1], "the tap has invented an address");
        self.heard.push(segment.clone());
        let has_connection = destination == self.ends[0] && !self.was_reset && !self.was_replaced;
        has_connection.then_some(segment)
    }

    #[track_caller]
    fn takes(&mut self, segment: &Segment) {
        if segment.has(RST) {
            self.was_reset |= match &self.receiver {
                Some(receiver) => segment.seq == receiver.next(),
                None => segment.has(ACK) && segment.ack == self.iss.wrapping_add(1),
            };
            return;
        }
        if let Some((value, _)) = segment.options().timestamps {
            self.echo = value;
        }
        if segment.has(SYN | ACK) {
            if self.receiver.is_none() && segment.ack == self.iss.wrapping_add(1) {
                self.agreed = Some(segment.options());
                let mut receiver = Receiver::new(segment.seq, 60_000 << self.shift_of_ours());
                receiver.offer(self.shift_of_ours());
                self.receiver = Some(receiver);
                self.edge = usize::from(segment.window);
            }
            self.was_replaced = segment.ack != self.iss.wrapping_add(1);
            return;
        }
        let shift = self.shift_of_ours();
        if let Some(receiver) = &mut self.receiver {
            receiver.take(segment);
            self.read.extend(receiver.read());
            receiver.offer(shift);
            self.is_acknowledged(segment);
        }
    }

    fn is_acknowledged(&mut self, segment: &Segment) {
        assert!(segment.has(ACK), "no ACK: {segment:?}");
        let acked = segment.ack.wrapping_sub(self.iss.wrapping_add(1)) as usize;
        assert!(acked <= self.reached, "an ACK of byte {acked}, and {} were sent", self.reached);
        assert!(acked >= self.acked, "an ACK of {acked} after one of {}", self.acked);
        self.acked = acked;
        self.edge = self.edge.max(acked + (usize::from(segment.window) << self.shift()));
    }

    fn shift_of_ours(&self) -> u8 {
        let agreed = self.agreed.as_ref().and_then(|options| options.window_scale);
        agreed.and(self.offers.window_scale).unwrap_or(0)
    }
}

/// Bytes as a person reads them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a>(pub &'a [u8]);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
