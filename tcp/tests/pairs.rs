//! Two connections joined by a network in memory, in virtual time: every byte arrives, whatever the network does.

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use tcp::handshake::Syn;
use tcp::time::{Duration, Instant};
use tcp::wire::{Envelope, SynOptions, Timestamps};
use tcp::{Connection, Handshake, Options, Stack, State, splice};

/// A small generator for decisions within a test.
#[derive(Clone, Copy)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Bytes that tell where they belong.
fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[1] ^ salt).collect()
}

/// What the ends agree on.
#[derive(Clone, Copy, Debug)]
struct Features {
    sack: bool,
    timestamps: bool,
    /// The shift of each end.
    scale: Option<[u8; 2]>,
    mss: u16,
}

/// As two Linux hosts.
const ALL: Features = Features { sack: true, timestamps: true, scale: Some([7, 7]), mss: 1460 };
/// As two hosts of 1990.
const NONE: Features = Features { sack: false, timestamps: false, scale: None, mss: 1460 };

impl Features {
    /// By its bits: each with each.
    fn number(bits: usize) -> Self {
        let scale = (bits & 4 != 0).then_some([7, 3]);
        Self { sack: bits & 1 != 0, timestamps: bits & 2 != 0, scale, mss: 1460 }
    }

    fn syn(&self, end: usize, seq: u32) -> Syn {
        let options = SynOptions {
            mss: Some(self.mss),
            window_scale: self.scale.map(|scale| scale[end]),
            sack_permitted: self.sack,
            timestamps: self.timestamps.then_some(Timestamps { value: seq ^ 0x5555_5555, echo: 0 }),
        };
        Syn { seq, window: u16::MAX, options }
    }
}

/// What happens to a frame on its way.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// One way; and how much longer one frame of so many may take.
    delay: Duration,
    jitter_us: usize,
    late: usize,
    /// Frames of a thousand that get lost, and that arrive twice.
    loss: usize,
    twice: usize,
}

const PERFECT: Path = Path { delay: Duration::from_millis(5), jitter_us: 0, late: 1, loss: 0, twice: 0 };

struct End {
    stack: Stack,
    connection: Connection,
    envelope: Envelope,
}

/// Two connections: 0 has opened, 1 has answered.
struct Pair {
    ends: [End; 2],
    now: Instant,
    path: Path,
    dice: Dice,
    /// Frames on their way: when they arrive, a number, where, and what.
    wire: BTreeMap<(Instant, usize), (usize, Vec<u8>)>,
    sent: usize,
    /// Frames with text that got lost.
    lost_text: u64,
    /// This frame gets lost.
    doomed: Option<usize>,
}

impl Pair {
    fn new(network: Network, features: &Features, iss: [u32; 2], options: Options, path: Path) -> Self {
        let now = Instant::from_secs(5);
        let addresses = [network.client(), network.server()];
        let end = |at: usize| {
            let mut stack = Stack::new(at as u64, MTU);
            let (ours, peers) = (features.syn(at, iss[at]), features.syn(1 - at, iss[1 - at]));
            let (local, remote) = (addresses[at], addresses[1 - at]);
            let handshake = Handshake { local, remote, ours, peers, rtt: Some(path.delay * 2) };
            let open = if at == 0 { Connection::active_open } else { Connection::passive_open };
            let connection = open(&mut stack, now, &handshake, &options).unwrap();
            let envelope = network.envelope();
            End { stack, connection, envelope: if at == 0 { envelope.reversed() } else { envelope } }
        };
        let (ends, wire) = ([end(0), end(1)], BTreeMap::new());
        Self { ends, now, path, dice: Dice(path.loss as u64), wire, sent: 0, lost_text: 0, doomed: None }
    }

    fn perfect(network: Network, features: &Features) -> Self {
        Self::new(network, features, [u32::MAX, 77], BUFFER, PERFECT)
    }

    /// Both ends send what they have.
    fn transmit(&mut self) {
        for from in 0..2 {
            let end = &mut self.ends[from];
            let mut sink = Sink::default();
            while end.connection.poll_transmit(&mut end.stack, self.now, &end.envelope, &mut sink) {
                assert!(sink.frames.len() < TOO_MANY, "an end that never stops");
            }
            sink.frames.into_iter().for_each(|frame| self.carry(1 - from, frame));
        }
    }

    fn carry(&mut self, to: usize, frame: Vec<u8>) {
        let (h, _) = Seg::from_frame(&frame);
        let lost = self.dice.roll(1000) < self.path.loss || self.doomed == Some(self.sent);
        self.lost_text += u64::from(lost && h.payload_len() > 0);
        let copies = if lost { 0 } else { 1 + usize::from(self.dice.roll(1000) < self.path.twice) };
        for _ in 0..copies {
            let is_late = self.dice.roll(self.path.late) == 0;
            let late = Duration::from_micros(if is_late { self.dice.roll(self.path.jitter_us + 1) as u64 } else { 0 });
            self.wire.insert((self.now + self.path.delay + late, self.sent), (to, frame.clone()));
            self.sent += 1;
        }
        self.sent += usize::from(lost);
    }

    /// What arrives now.
    fn deliver(&mut self) {
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, mut frame) = entry.remove();
            let (h, _) = Seg::from_frame(&frame);
            let end = &mut self.ends[to];
            end.connection.handle_segment(&mut end.stack, self.now, &mut frame, &h);
        }
    }

    /// When something happens next.
    fn next(&self) -> Option<Instant> {
        let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
        let due = self.ends.iter().filter_map(|end| end.connection.poll_at(self.now));
        due.chain(arrival).min()
    }

    /// One thing happens; not later than `limit`. False: nothing will.
    fn step(&mut self, limit: Option<Instant>) -> bool {
        self.transmit();
        let Some(next) = self.next().into_iter().chain(limit).min() else { return false };
        assert!(next > self.now, "something is due, and nothing was sent");
        self.now = next;
        self.deliver();
        true
    }

    /// Until nothing happens any more.
    fn settle(&mut self) {
        (0..TOO_MANY).find(|_| !self.step(None)).expect("two ends that come to rest");
    }

    fn connection(&mut self, at: usize) -> &mut Connection {
        &mut self.ends[at].connection
    }
}

/// An application at one end: what it sends, and what it has got.
struct Application<'a> {
    text: &'a [u8],
    sent: usize,
    got: Vec<u8>,
}

impl Application<'_> {
    /// Sends and reads random pieces. True: it could do more, if it were asked again.
    fn act(&mut self, connection: &mut Connection, dice: &mut Dice) -> bool {
        let piece = (1 + dice.roll(20_000)).min(self.text.len() - self.sent);
        self.sent += connection.send(&self.text[self.sent..][..piece]);
        if self.sent == self.text.len() {
            connection.finish();
        }
        let mut read = vec![0; 1 + dice.roll(20_000)];
        let length = connection.peek(&mut read);
        assert_eq!(length, read.len().min(connection.receive_queue()));
        let used = dice.roll(length + 1);
        connection.consume(used);
        self.got.extend(&read[..used]);
        connection.receive_queue() > 0 || (connection.send_room() > 0 && self.sent < self.text.len())
    }
}

/// Sends `texts[i]` from end `i`, both ways at once; then both close.
fn exchange(pair: &mut Pair, texts: [&[u8]; 2], seed: u64) {
    let mut dice = Dice(seed);
    let mut applications = texts.map(|text| Application { text, sent: 0, got: Vec::new() });
    let end = pair.now + Duration::from_secs(36_000);
    loop {
        let mut busy = false;
        for (at, application) in applications.iter_mut().enumerate() {
            busy |= application.act(pair.connection(at), &mut dice);
        }
        let soon = busy.then(|| pair.now + Duration::from_micros(1 + dice.roll(2000) as u64));
        if !pair.step(soon) {
            break;
        }
        assert!(pair.now < end, "{:?}", pair.ends.each_ref().map(|end| end.connection.state()));
    }
    for (at, end) in pair.ends.iter().enumerate() {
        let connection = &end.connection;
        assert!(applications[at].got == texts[1 - at], "end {at} got something else");
        assert!(connection.is_closed() || connection.is_time_wait(), "{:?}", connection.state());
        assert!(connection.fin_received() && !connection.was_reset() && !connection.awaits_ack());
    }
}

#[test]
fn what_is_sent_arrives_with_all_features() {
    for (bits, network) in (0..8).zip(NETWORKS.into_iter().cycle()) {
        let mut pair = Pair::perfect(network, &Features::number(bits));
        exchange(&mut pair, [&pattern(1 << 19, 0), &pattern(1 << 19, 77)], bits as u64);
        assert!(pair.ends.iter().all(|end| end.stack.counters().retransmissions == 0), "{bits}");
    }
}

/// Both directions cross both the signed and the unsigned wrap.
#[test]
fn numbers_wrap_under_way() {
    for iss in [u32::MAX - 100_000, i32::MAX as u32 - 100_000] {
        for bits in 0..8 {
            let path = Path { loss: 20, ..PERFECT };
            let features = Features::number(bits);
            let mut pair = Pair::new(NETWORKS[0], &features, [iss, iss.wrapping_add(50_000)], BUFFER, path);
            exchange(&mut pair, [&pattern(300_000, 3), &pattern(300_000, 4)], 9);
        }
    }
}

/// Sends `length` bytes one way to a reader that keeps up; returns how long that takes.
fn bulk(pair: &mut Pair, length: usize) -> Duration {
    let text = pattern(length, 5);
    let (mut sent, mut got, begin) = (0, 0, pair.now);
    let mut read = vec![0; 8 << 20];
    while got < length {
        sent += pair.connection(0).send(&text[sent..]);
        let new = pair.connection(1).peek(&mut read);
        assert!(read[..new] == text[got..got + new]);
        pair.connection(1).consume(new);
        got += new;
        assert!(pair.step(None) || got == length);
    }
    pair.now - begin
}

/// RFC 9293 §3.8.6: a reader that keeps up is sent a window a round trip, and no timer is waited for; the window grows if it can.
#[test]
fn bulk_needs_no_timer() {
    for bits in 0..8 {
        let features = Features::number(bits);
        let mut pair = Pair::perfect(NETWORKS[0], &features);
        let time = bulk(&mut pair, 8 << 20);
        let limit = if features.scale.is_some() { 400 } else { 1450 };
        assert!(time < Duration::from_millis(limit), "{features:?}: {time}");
        assert!(pair.ends.iter().all(|end| end.stack.counters().retransmissions == 0));
    }
}

/// RFC 8985: losses are found out by what arrives behind them: each costs one segment, and hardly ever a timeout.
#[test]
fn losses_are_repaired_once() {
    let mut pair = Pair::new(NETWORKS[0], &ALL, [1, 2], BUFFER, Path { loss: 10, ..PERFECT });
    bulk(&mut pair, 8 << 20);
    let counters = pair.ends[0].stack.counters();
    assert!(pair.lost_text > 40);
    assert!(counters.retransmissions <= pair.lost_text * 11 / 10 + 5, "{} lost: {counters:?}", pair.lost_text);
    assert!(counters.retransmission_timeouts <= 1, "{counters:?}");
}

/// RFC 8985 §3.2: a path that only reorders is no path that loses. (Not more than a receiver can put in order.)
#[test]
fn reordering_is_no_loss() {
    let mut pair = Pair::new(NETWORKS[0], &ALL, [1, 2], BUFFER, Path { jitter_us: 1000, late: 100, ..PERFECT });
    bulk(&mut pair, 8 << 20);
    let counters = pair.ends[0].stack.counters();
    assert!(counters.retransmissions < 60, "1 % of 5800: {counters:?}");
    assert_eq!(counters.retransmission_timeouts, 0);
}

#[test]
fn splice_joins_two_connections() {
    let (mut left, mut right) = (Pair::perfect(NETWORKS[0], &ALL), Pair::perfect(NETWORKS[2], &NONE));
    let text = pattern(500_000, 6);
    let (mut sent, mut got) = (0, Vec::<u8>::new());
    let mut dice = Dice(8);
    while got.len() < text.len() {
        sent += left.connection(0).send(&text[sent..]);
        left.step(Some(left.now + Duration::from_millis(1)));
        let limit = dice.roll(20_000);
        let (from, to) = (left.connection(1), right.connection(0));
        let expected = limit.min(from.receive_queue()).min(to.send_room());
        assert_eq!(splice(from, to, limit), expected);
        right.step(Some(right.now + Duration::from_millis(1)));
        let end = right.connection(1);
        let mut read = vec![0; dice.roll(30_000)];
        let length = end.peek(&mut read);
        end.consume(length);
        got.extend(&read[..length]);
    }
    assert!(got == text);
}

#[test]
fn each_end_can_reset_the_other() {
    for (network, resetting) in NETWORKS.into_iter().flat_map(|network| [(network, 0), (network, 1)]) {
        let mut pair = Pair::perfect(network, &ALL);
        pair.connection(resetting).send(b"last words");
        pair.settle();
        pair.connection(resetting).abort();
        pair.settle();
        let other = pair.connection(1 - resetting);
        assert!(other.was_reset());
        assert_eq!(other.receive_queue(), 10);
        assert!(pair.connection(resetting).is_closed());
        assert_eq!(pair.next(), None);
    }
}

#[test]
fn half_close_both_ways() {
    for first in 0..2 {
        let mut pair = Pair::perfect(NETWORKS[3], &ALL);
        pair.connection(first).finish();
        pair.settle();
        let other = pair.connection(1 - first);
        assert_eq!((other.state(), other.fin_received()), (State::CloseWait, true));
        assert_eq!(other.send(b"still talking"), 13);
        pair.settle();
        assert_eq!(pair.connection(first).receive_queue(), 13);
        pair.connection(1 - first).finish();
        pair.settle();
        assert!(pair.connection(first).is_time_wait());
        assert!(pair.connection(1 - first).is_closed());
    }
}

#[test]
fn both_close_at_once() {
    let mut pair = Pair::perfect(NETWORKS[0], &ALL);
    (0..2).for_each(|at| pair.connection(at).finish());
    pair.settle();
    assert!((0..2).all(|at| pair.connection(at).is_time_wait()));
}

/// A request and an answer, with one frame lost: whichever it is, both end in time.
#[test]
fn every_single_loss_of_a_short_connection_is_healed() {
    for (features, lost) in [ALL, NONE].into_iter().flat_map(|features| (0..16).map(move |lost| (features, lost))) {
        let mut pair = Pair::perfect(NETWORKS[1], &features);
        pair.doomed = Some(lost);
        let begin = pair.now;
        pair.connection(0).send(b"request");
        pair.connection(0).finish();
        while pair.step(None) {
            let server = pair.connection(1);
            if server.fin_received() && server.state() == State::CloseWait {
                assert_eq!(server.receive_queue(), 7);
                server.send(b"answer");
                server.finish();
            }
        }
        assert!(pair.connection(0).is_time_wait() && pair.connection(1).is_closed(), "frame {lost}");
        assert_eq!(pair.connection(0).receive_queue(), 6);
        assert!(pair.now - begin < Duration::from_millis(500), "frame {lost}: {}", pair.now - begin);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn random_pieces_over_a_bad_path_are_exact(
        network in 0..4usize,
        bits in 0..8usize,
        scale in proptest::array::uniform2(0u8..15),
        mss in prop_oneof![Just(1460), 1u16..1460],
        receive_buffer in 65_536usize..200_000,
        iss: [u32; 2],
        lengths in proptest::array::uniform2(0usize..60_000),
        path in (0..30_000u64, 0..20_000usize, 1..10usize, 0..200usize, 0..100usize),
        seed: u64,
    ) {
        let mut features = Features { mss, ..Features::number(bits) };
        features.scale = features.scale.and(Some(scale));
        let (delay, jitter_us, late, loss, twice) = path;
        let path = Path { delay: Duration::from_micros(1 + delay), jitter_us, late, loss, twice };
        let mut pair = Pair::new(NETWORKS[network], &features, iss, Options { receive_buffer }, path);
        pair.dice = Dice(seed);
        exchange(&mut pair, [&pattern(lengths[0], 1), &pattern(lengths[1], 2)], seed);
    }
}
