//! Sequences of segments that proptest invents, and shrinks when one is found that the oracle cannot explain.
//!
//! The client has a stream of messages. It sends pieces of it, and pieces of another stream that contradicts it, in any
//! order, overlapping, odd in all ways that a receiver must accept or may reject; and between them segments that no receiver
//! may accept, with text of a third kind (*poison*). In the end it sends its stream plainly.

use dataplane::Fate;
use proptest::prelude::*;
use tcp::time::Duration;

use crate::explain::{Candidates, Outcome, explain};
use crate::host::{Habits, State};
use crate::lab::{Lab, Sends, Shown, Stamp, flags, message, text};
use crate::wire::{ACK, Damage, FIN, RST, SYN};

/// Further than any window reaches.
const FAR: i64 = 1 << 30;

/// A run.
#[derive(Clone)]
struct Run {
    v6: bool,
    habits: Habits,
    /// The stream, and the one that contradicts it: of the same length.
    streams: [Vec<u8>; 2],
    /// The same messages, with other text, all of which would pass.
    poison: Vec<u8>,
    acts: Vec<Act>,
    /// In the end both hosts close.
    closes: bool,
}

#[derive(Clone, Debug)]
enum Act {
    /// A piece of one of the streams.
    Piece { stream: usize, place: Place, length: usize, how: How },
    /// A piece of poison.
    Poison { kind: Poison, place: Place, length: usize, pause: bool },
    /// A reset, somewhere.
    Reset { place: Place, damage: Damage },
    /// The server writes a message.
    ServerWrites(u8, usize),
    /// Milliseconds pass.
    Wait(u64),
    /// So many segments of the stream, from what is acknowledged, or was sent by this act, as far as the window allows.
    Plain(usize),
}

/// Where in the stream a piece begins.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// So many 65536ths of its length from its begin.
    Of(u16),
    /// So far from what is acknowledged.
    Near(i64),
    /// So far from the window's edge.
    Edge(i64),
}

/// What is odd about a segment that may be accepted.
#[derive(Clone, Copy, Debug)]
struct How {
    fin: bool,
    urgent: Option<u16>,
    extra: usize,
    hop_limit: u8,
    /// How much older than possible its ACK is: within what a receiver takes.
    old_ack: i64,
    stamp: Stamp,
    window: u16,
    /// The worker looks at it before the next one comes.
    pause: bool,
}

/// Why a segment must not be accepted.
#[derive(Clone, Copy, Debug)]
enum Poison {
    Damaged(Damage),
    NoAck,
    /// It acknowledges so much that was never sent.
    AckAhead(i64),
    /// It acknowledges so much less than what was acknowledged.
    AckBehind(i64),
    OldTimestamp,
    Syn,
    SynAck,
    /// So far below what is acknowledged.
    Below(i64),
    /// So far beyond the window.
    Beyond(i64),
    OtherPort,
    /// The first or a later piece of an IP packet whose last piece never comes.
    Fragment(u16),
}

/// How large things are.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// Longest text of a message.
    longest: usize,
    /// Most messages.
    messages: usize,
    /// Most acts.
    acts: usize,
    /// Smallest receive buffer of the server.
    buffer: usize,
    /// Longest time until the server's application reads.
    read_after: u64,
}

fn messages(scale: Scale, verdicts: &'static [u8]) -> impl Strategy<Value = Vec<(u8, usize)>> {
    let least = 1 + scale.messages / 2 * usize::from(scale.messages > 20);
    prop::collection::vec((prop::sample::select(verdicts), 0..scale.longest), least..=scale.messages)
}

/// The messages as a stream, in letters that tell where a byte is from.
fn stream(messages: &[(u8, usize)], alphabet: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for &(verdict, length) in messages {
        let at = stream.len() + 5;
        let text: Vec<u8> = (at..at + length).map(|at| alphabet[at % alphabet.len()]).collect();
        stream.extend(message(verdict, &text));
    }
    stream
}

const LOWER: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const UPPER: &[u8] = b"ABCEFGHIJKLMNOQRSTUVWYZ"; // No verdict among them.
const DIGITS: &[u8] = b"0123456789";

/// The stream, the contradictory one and the poison.
fn streams(scale: Scale) -> impl Strategy<Value = ([Vec<u8>; 2], Vec<u8>)> {
    let verdicts = prop_oneof![3 => Just(&b"PPPPDDD"[..]), 1 => Just(&b"PPPPPPDDDDX"[..])];
    let other = prop_oneof![
        // The same lengths, other verdicts.
        3 => prop::collection::vec(prop::sample::select(b"PPPPDD"), scale.messages).prop_map(|verdicts| (Some(verdicts), Vec::new())),
        // Other lengths, too.
        1 => messages(scale, b"PPPPDD").prop_map(|messages| (None, messages)),
    ];
    (verdicts.prop_flat_map(move |verdicts| messages(scale, verdicts)), other).prop_map(
        |(true_messages, (verdicts, other_messages))| {
            let true_stream = stream(&true_messages, LOWER);
            let other_stream = match verdicts {
                Some(verdicts) => {
                    let lengths = true_messages.iter().map(|&(_, length)| length);
                    stream(&verdicts.into_iter().zip(lengths).collect::<Vec<_>>(), UPPER)
                }
                None => {
                    let mut other = stream(&other_messages, UPPER);
                    other.resize(true_stream.len(), b'Z');
                    other
                }
            };
            let passing: Vec<_> = true_messages.iter().map(|&(_, length)| (b'P', length)).collect();
            let poison = stream(&passing, DIGITS);
            ([true_stream, other_stream], poison)
        },
    )
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => any::<u16>().prop_map(Place::Of),
        4 => (-20i64..60).prop_map(Place::Near),
        4 => Just(Place::Near(0)),
        1 => (-1500i64..20).prop_map(Place::Edge),
    ]
}

fn length(longest: usize) -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), 1usize..12, 1..longest.max(2), Just(usize::MAX)]
}

fn how(ends: bool) -> impl Strategy<Value = How> {
    let fin = prop::bool::weighted(if ends { 0.03 } else { 0.0 });
    let urgent = prop::option::weighted(0.2, prop_oneof![0u16..40, any::<u16>()]);
    let old_ack = prop_oneof![4 => Just(0), 1 => 0i64..30_000];
    let stamp = prop_oneof![9 => Just(Stamp::Right), 1 => Just(Stamp::Missing)];
    let window = prop_oneof![9 => Just(60_000), 1 => any::<u16>()];
    let extra = prop_oneof![4 => Just(0usize), 1 => 1usize..6];
    let hop_limit = prop_oneof![4 => Just(57), 1 => 0u8..3];
    (fin, urgent, extra, hop_limit, old_ack, stamp, window, any::<bool>()).prop_map(
        |(fin, urgent, extra, hop_limit, old_ack, stamp, window, pause)| How {
            fin,
            urgent,
            extra,
            hop_limit,
            old_ack,
            stamp,
            window,
            pause,
        },
    )
}

fn damage() -> impl Strategy<Value = Damage> {
    prop::sample::select(vec![
        Damage::TcpChecksum,
        Damage::IpChecksum,
        Damage::ShortHeader,
        Damage::LongHeader,
        Damage::LongPacket,
    ])
}

fn poison() -> impl Strategy<Value = Poison> {
    prop_oneof![
        3 => damage().prop_map(Poison::Damaged),
        2 => Just(Poison::NoAck),
        1 => prop_oneof![1i64..10, 1..FAR].prop_map(Poison::AckAhead),
        1 => (500_000..FAR).prop_map(Poison::AckBehind),
        2 => Just(Poison::OldTimestamp),
        1 => Just(Poison::Syn),
        1 => Just(Poison::SynAck),
        1 => (0..FAR).prop_map(Poison::Below),
        1 => (0..FAR).prop_map(Poison::Beyond),
        1 => Just(Poison::OtherPort),
        1 => (0u16..4).prop_map(Poison::Fragment),
    ]
}

/// An act. `ends`: it may be one that ends the flow.
fn act(scale: Scale, ends: bool) -> impl Strategy<Value = Act> {
    let piece = (any::<bool>(), place(), length(scale.longest), how(ends))
        .prop_map(|(other, place, length, how)| Act::Piece { stream: usize::from(other), place, length, how });
    let poison = (poison(), place(), length(scale.longest), any::<bool>())
        .prop_map(|(kind, place, length, pause)| Act::Poison { kind, place, length, pause });
    let reset = (place(), prop_oneof![u32::from(ends) => Just(Damage::None), 6 => damage()])
        .prop_map(|(place, damage)| Act::Reset { place, damage });
    let wait = prop_oneof![0u64..50, 0u64..3000].prop_map(Act::Wait);
    let writes = (prop::sample::select(b"PPPD"), 0..scale.longest)
        .prop_map(|(verdict, length)| Act::ServerWrites(verdict, length));
    let plain = (1usize..60).prop_map(Act::Plain);
    let plain_weight = if scale.messages > 20 { 6 } else { 0 };
    prop_oneof![12 => piece, 8 => poison, 1 => reset, 2 => wait, 1 => writes, plain_weight => plain]
}

fn habits(scale: Scale) -> impl Strategy<Value = Habits> {
    let millis = |most: u64| prop_oneof![Just(0), 0..most].prop_map(Duration::from_millis);
    let buffer = prop_oneof![Just(60_000), scale.buffer..scale.buffer + 500];
    // Never more than two in a row: each doubles the time until the next attempt, up to a minute, and a flow whose server is
    // silent for three minutes is given up.
    let bursts = prop::collection::vec((0usize..3, 1usize..5), 0..8);
    let losses = prop_oneof![Just(Vec::new()), bursts].prop_map(|bursts| {
        let burst = |(lost, arrive)| [vec![true; lost], vec![false; arrive]].concat();
        bursts.into_iter().flat_map(burst).collect()
    });
    let hops = prop_oneof![Just(0), Just(3)];
    (buffer, millis(400), millis(scale.read_after), losses, hops, any::<bool>()).prop_map(
        |(buffer, ack_delay, read_after, losses, hops, modern)| Habits {
            buffer,
            ack_delay,
            read_after: Some(read_after),
            losses,
            hops,
            modern,
            ..Habits::default()
        },
    )
}

fn run(scale: Scale) -> impl Strategy<Value = Run> {
    let acts = any::<bool>().prop_flat_map(move |ends| prop::collection::vec(act(scale, ends), 1..scale.acts));
    (any::<bool>(), habits(scale), streams(scale), acts, any::<bool>())
        .prop_map(|(v6, habits, (streams, poison), acts, closes)| Run { v6, habits, streams, poison, acts, closes })
}

/// Behind the last byte that the tap may take: it offers up to one unit of a scaled window less than it has room for.
fn edge(lab: &Lab) -> usize {
    match lab.client.shift() {
        0 => lab.client.edge,
        shift => lab.client.edge + (1 << shift),
    }
}

/// What was sent so far that may have an effect.
#[derive(Default)]
struct Sent {
    candidates: Candidates,
    /// A FIN or a reset that may be accepted.
    ends: bool,
    /// What the server has written that passes.
    server: Vec<u8>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { v6, habits, streams: [stream, other], closes, .. } = self;
        writeln!(f, "v6 {v6}, closes {closes}, {habits:?}")?;
        writeln!(f, "  stream {:?}\n  other  {:?}", Shown(stream), Shown(other))?;
        self.acts.iter().try_for_each(|act| writeln!(f, "  {act:?}"))
    }
}

impl Run {
    fn range(&self, lab: &Lab, place: Place, length: usize) -> std::ops::Range<usize> {
        let all = self.streams[0].len();
        let at = match place {
            Place::Of(part) => (all * usize::from(part)) >> 16,
            Place::Near(by) => (lab.client.acked as i64 + by).clamp(0, all as i64 - 1) as usize,
            Place::Edge(by) => (lab.client.edge as i64 + by).clamp(0, all as i64 - 1) as usize,
        };
        at..all.min(at.saturating_add(length).min(at + 1300))
    }

    fn act(&self, lab: &mut Lab, act: &Act, sent: &mut Sent) {
        match *act {
            Act::Piece { stream, place, length, how } => {
                let range = self.range(lab, place, length);
                let piece = &self.streams[stream][range.clone()];
                let first = range.start.max(lab.client.acked).min(range.end);
                let last = range.end.min(edge(lab)).max(first);
                sent.candidates.add(first, &piece[first - range.start..last - range.start]);
                sent.ends |= how.fin;
                let mut sends = text(range.start, piece).acking(-how.old_ack).stamped(how.stamp);
                sends = sends.extra(how.extra).hop_limit(how.hop_limit);
                sends.window = how.window;
                if how.fin {
                    sends = sends.fin();
                }
                if let Some(pointer) = how.urgent {
                    sends = sends.urgent(pointer);
                }
                self.send(lab, sends, how.pause);
            }
            Act::Poison { kind, place, length, pause } => {
                let range = self.range(lab, place, length);
                if let Some(sends) = self.poisonous(lab, kind, range) {
                    let fate = self.send(lab, sends, pause);
                    assert!(fate != Fate::Forward, "{kind:?} has crossed");
                }
            }
            Act::Reset { place, damage } => {
                let at = self.range(lab, place, 1).start as i64;
                sent.ends |= damage == Damage::None;
                lab.client_sends(flags(RST, at).damaged(damage));
            }
            Act::ServerWrites(verdict, length) => {
                let message = message(verdict, &vec![b'-'; length]);
                lab.server.write(&message);
                if verdict == b'P' {
                    sent.server.extend(message);
                }
            }
            Act::Wait(millis) => lab.wait(millis),
            Act::Plain(segments) => {
                let stream = &self.streams[0];
                let allowed = lab.client.edge.min(stream.len());
                let begin = lab.client.acked.min(allowed);
                for (index, piece) in stream[begin..allowed].chunks(1300).take(segments).enumerate() {
                    let at = begin + index * 1300;
                    sent.candidates.add(at, piece);
                    lab.client_sends(text(at, piece));
                }
            }
        }
    }

    fn send(&self, lab: &mut Lab, sends: Sends, pause: bool) -> Fate {
        if pause { lab.client_sends(sends) } else { lab.client_sends_without_pause(sends) }
    }

    /// A segment with poison; none if the reason does not apply.
    fn poisonous(&self, lab: &Lab, kind: Poison, range: std::ops::Range<usize>) -> Option<Sends> {
        let mut sends = text(range.start, &self.poison[range]);
        if matches!(kind, Poison::Damaged(Damage::LongHeader)) {
            // A longer text would be in a header of that length.
            sends.text.truncate(20);
        }
        Some(match kind {
            Poison::Damaged(damage) => sends.damaged(damage),
            Poison::NoAck => sends.without_ack(),
            Poison::AckAhead(by) => sends.acking(by),
            Poison::AckBehind(by) => sends.acking(-by),
            Poison::OldTimestamp if lab.client.has_timestamps() => sends.stamped(Stamp::Old),
            Poison::OldTimestamp => return None,
            Poison::Syn => Sends { flags: SYN, ..sends },
            Poison::SynAck => sends.also(SYN),
            Poison::Below(by) => Sends { at: lab.client.acked as i64 - sends.text.len() as i64 - by, ..sends },
            Poison::Beyond(by) => Sends { at: edge(lab) as i64 + by, ..sends },
            Poison::OtherPort => sends.port(40_001),
            Poison::Fragment(offset) => sends.fragment(offset, true),
        })
    }

    /// Runs it and checks all that is promised.
    fn check(&self) {
        let mut lab = Lab::new(self.v6, self.habits.modern, self.habits.clone()).open();
        let mut sent = Sent::default();
        for act in &self.acts {
            self.act(&mut lab, act, &mut sent);
        }
        lab.settle();
        let stream = &self.streams[0];
        sent.candidates.add(lab.client.acked.min(stream.len()), &stream[lab.client.acked.min(stream.len())..]);
        lab.client_finishes(stream);
        // A server that reads slowly has time enough.
        for _ in 0..1000 {
            let ended = lab.client.was_reset || lab.server.state != State::Established;
            let all_read = lab.server.read.len() as u64 >= lab.judged().bytes[0];
            if ended || (all_read && lab.server.is_idle() && lab.client.read.len() >= sent.server.len()) {
                break;
            }
            lab.client_sends(flags(ACK, lab.client.acked as i64));
            lab.wait(1000);
        }
        lab.wait(60_000);
        self.judge(lab, &sent);
    }

    fn judge(&self, mut lab: Lab, sent: &Sent) {
        let judged = lab.judged();
        let [passed, dropped, fatal] = judged.messages;
        let errors: u64 = judged.errors.iter().sum();
        let goes_on = fatal == 0 && errors == 0 && !sent.ends;
        let all_arrives = goes_on || self.drains_in_time();

        // The server has read all that has passed, and nothing else.
        // (A SYN after a reset begins another connection, of which the client cannot know the numbers.)
        let read = [lab.server.past.concat(), lab.server.read.clone()].concat();
        let whole = whole_messages(&read);
        assert_eq!((judged.unjudged_bytes, judged.discarded_bytes), (0, 0));
        if all_arrives {
            assert_eq!((whole.0, whole.1), (passed, read.len()), "messages and bytes in {:?}", Shown(&read));
            assert_eq!(judged.bytes[0], read.len() as u64);
        } else {
            // A flow that ends waits only so long for a server to acknowledge.
            assert!(whole.0 <= passed && read.len() as u64 <= judged.bytes[0]);
        }

        // It is what the client has sent.
        let least = if all_arrives { dropped } else { 0 };
        let outcome = Outcome {
            read: &read[..whole.1],
            dropped: least..=dropped,
            judged: all_arrives.then_some(judged.bytes[0] + judged.bytes[1]),
            fatal: (fatal > 0 && all_arrives).then_some(judged.bytes[2]),
            // A reset does not tell it.
            acked: if goes_on { lab.client.acked } else { usize::MAX },
        };
        let explained = explain(&sent.candidates, &outcome);
        let explained = explained.unwrap_or_else(|(at, position)| {
            panic!(
                "nothing that was sent from {at} on explains what was read from {position} on: {:?}",
                Shown(&read[position..])
            )
        });

        // What has passed of the server's messages came to the client.
        assert!(sent.server.starts_with(&lab.client.read));
        if goes_on {
            lab.is_open();
            assert_eq!(lab.client.acked, self.streams[0].len());
            assert_eq!(Shown(&lab.client.read), Shown(&sent.server));
            assert_eq!(lab.judged_of_server().bytes[0], sent.server.len() as u64);
        }
        if all_arrives {
            self.replay(&lab, &read, &explained);
        }
        if goes_on && self.closes {
            close(&mut lab);
        }
    }

    /// Whether the server surely acknowledges all that has passed before the tap has no more patience with a flow that ends.
    fn drains_in_time(&self) -> bool {
        let Habits { buffer, ack_delay, read_after, losses, hops, .. } = &self.habits;
        // What follows such a segment goes no further than that.
        let expires = |act: &Act| matches!(act, Act::Piece { how, .. } if how.hop_limit < *hops);
        if losses.contains(&true) || self.acts.iter().any(expires) {
            return false;
        }
        let rounds = 2 + self.streams[0].len() / buffer;
        let round = *ack_delay + read_after.expect("it reads");
        round * (rounds as u32) < dataplane::flow::DRAIN_TIMEOUT
    }

    /// The same bytes, sent plainly, are the same messages with the same verdicts.
    fn replay(&self, lab: &Lab, read: &[u8], explained: &[u8]) {
        let mut plain = Lab::new(self.v6, self.habits.modern, Habits::default()).open();
        plain.client_finishes(explained);
        plain.wait(20_000);
        assert_eq!(Shown(&plain.server.read), Shown(read));
        assert_eq!(plain.judged().messages, lab.judged().messages);
        assert_eq!(plain.judged().bytes, lab.judged().bytes);
    }
}

/// Both hosts close. If the stream ends with a whole message, that is the end of the flow, too.
fn close(lab: &mut Lab) {
    lab.client_sends(flags(FIN | ACK, lab.client.acked as i64));
    lab.wait(170_000);
    if lab.judged().errors.iter().sum::<u64>() > 0 {
        return;
    }
    assert!(lab.server.has_read_the_end());
    lab.server.close();
    lab.settle();
    lab.client_sends(flags(ACK, lab.client.acked as i64));
    lab.wait(60_000);
    assert!(lab.server.is_idle());
    assert_eq!((lab.flows(), lab.server.state), (0, State::Established));
}

/// How many whole messages that pass the bytes begin with, and how long these are.
fn whole_messages(bytes: &[u8]) -> (u64, usize) {
    let (mut messages, mut at) = (0, 0);
    while let Some(header) = bytes.get(at..at + 4) {
        let length = 4 + u32::from_be_bytes(header.try_into().expect("four bytes")) as usize;
        let Some(message) = bytes.get(at..at + length) else { break };
        assert!(!matches!(message.get(4), Some(b'D' | b'X')), "a forbidden message: {:?}", Shown(message));
        messages += 1;
        at += length;
    }
    (messages, at)
}

/// Short messages, and pieces of a few bytes.
const SHORT: Scale = Scale { longest: 40, messages: 12, acts: 80, buffer: 20, read_after: 200 };
/// More bytes than the tap has room for, and a server that reads slowly: the window closes, and opens again.
const LONG: Scale = Scale { longest: 950, messages: 400, acts: 60, buffer: 2000, read_after: 2000 };

proptest! {
    // PROPTEST_CASES has the last word.
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_server_reads_what_was_judged_of_short_messages(run in run(SHORT)) {
        run.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_server_reads_what_was_judged_at_the_edge_of_a_window(run in run(LONG)) {
        run.check();
    }
}
