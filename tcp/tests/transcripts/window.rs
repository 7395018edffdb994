//! Our window: how it closes and opens (RFC 9293 §3.8.6), and its scale (RFC 7323 §2).

use proptest::prelude::*;
use tcp::Options;
use tcp::time::Duration;

use crate::common::{ACK, NETWORKS, Setup, seg};
use crate::play::{Transcript, lines, text};

/// The whole window that was shown with the SYN is filled.
fn filled(setup: Setup) -> Transcript {
    let mut script = Transcript::new(setup);
    script.play(&(lines("< .", 1..65_536, 1285, "ack 1") + "> . 1 ack 65536 win 0"));
    script
}

/// RFC 9293 §3.8.6.1: "the receiver [...] must send an acknowledgment with zero window" and answer probes; what a probe carries
/// comes again.
#[test]
fn a_closed_window_answers_probes() {
    for network in NETWORKS {
        let mut script = filled(Setup::on(network));
        script.play(
            "< . 65536:65537 ack 1
             > . 1 ack 65536 win 0
             +1000 < . 65536:65537 ack 1
             > . 1 ack 65536 win 0
             +1000",
        );
        // Linux probes with a number that it has used.
        script.play("< . 65535 ack 1");
        assert!(script.connection.take_probe());
        script.play("acknowledge\n > . 1 ack 65536 win 0\n read 65535\n > . 1 ack 65536 win 65535");
    }
}

/// RFC 9293 §3.10.7.4, first: "if the RCV.WND is zero, no segments will be acceptable, but special allowance should be made to
/// accept valid ACKs".
#[test]
fn a_closed_window_takes_acks() {
    let mut script = filled(Setup::default());
    script.play(
        "send 10
         > P. 1:11 ack 65536
         < . 65536:65537 ack 6
         > . 11 ack 65536 win 0",
    );
    assert_eq!(script.connection.send_queue(), 5);
    script.play("< . 65536 ack 11");
    assert_eq!(script.connection.send_queue(), 0);
}

/// RFC 9293 §3.8.6.2.2: "the receiver's SWS avoidance algorithm [...]: keep the window fixed until [...] min(Fr * RCV.BUFF,
/// Eff.snd.MSS)" can be added.
#[test]
fn a_window_opens_by_a_segment_at_least() {
    let mut script = filled(Setup::default());
    for _ in 0..64 {
        script.play("read 20\n acknowledge\n > . 1 ack 65536 win 0");
    }
    script.play("read 4\n acknowledge\n > . 1 ack 65536 win 0\n read 6\n > . 1 ack 65536 win 1289");
}

/// The peer is told of a window that has become twice as large, and not of less.
#[test]
fn an_open_window_is_told_of_when_it_is_twice_as_large() {
    filled(Setup::default()).play(
        "read 2000
         > . 1 ack 65536 win 1999
         read 1998
         +1000 read 4
         > . 1 ack 65536 win 4001
         read 3998
         +1000 < . 65536:65636 ack 1
         > . 1 ack 65636 win 7899
         read 57635
         > . 1 ack 65636 win 65535
         read 0",
    );
}

/// RFC 9293 §3.8.6.2: a slow reader does not make the peer send tiny segments: each window that is shown has room for a full one.
#[test]
fn a_slow_reader_makes_no_silly_windows() {
    let mut script = filled(Setup::default());
    for _ in 0..500 {
        let length = script.connection.receive_queue().min(100);
        script.take(length);
        for ack in script.transmit() {
            assert!(ack.window >= 1285, "{}", ack.window);
            let begin = ack.ack.wrapping_sub(script.setup.peers.seq);
            let segment = seg(ACK, ack.ack, script.connection.snd_nxt()).with(&text(begin, 1285));
            script.receive(&segment);
            assert!(script.transmit().iter().all(|ack| ack.window == 0 || ack.window >= 100));
        }
    }
}

/// RFC 7323 §2.3: our field is shifted by what our end's SYN has said, the peer's by what its SYN has said; in SYNs by nothing.
#[test]
fn each_side_has_its_own_scale() {
    let mut script = Transcript::new(Setup::default().scales(Some(7), Some(2)));
    script.play(
        "acknowledge
         > . 1 ack 1 win 511
         < . 1:1001 ack 1 win 250
         +10 > . 1 ack 1001 win 504
         send 1000
         > P. 1:1001 ack 1001
         send 1
         +100 < . 1001 ack 1001 win 0
         +300 > . 1000 ack 1001",
    );
}

/// RFC 7323 §2.2: "the three-byte Window Scale option MAY be sent in a SYN [...]. Both sides MUST send it" for either to use it.
#[test]
fn a_scale_that_one_side_offers_is_none() {
    for (ours, peers) in [(Some(7), None), (None, Some(7))] {
        let mut script = Transcript::new(Setup::default().scales(ours, peers));
        script.play(
            "< . 1:1001 ack 1 win 300
             +10 > . 1 ack 1001 win 64535
             send 600
             +300 > . 1:301 ack 1001",
        );
    }
}

/// RFC 7323 §2.3: the largest shift; with it, units are 16 KiB.
#[test]
fn the_largest_scale() {
    let mut script = Transcript::new(Setup::default().scales(Some(14), Some(14)));
    script.play(
        "acknowledge
         > . 1 ack 1 win 3
         < . 1:2 ack 1 win 65535
         read 1
         +10 > . 1 ack 2 win 3",
    );
    script.play(&("send 14600\n".to_owned() + &lines("> .", 1..13_141, 1460, "ack 2") + "> P. 13141:14601 ack 2"));
}

/// Without the option, no more than 65535 is shown of a larger buffer; all of it is used.
#[test]
fn a_large_buffer_without_scale() {
    let options = Options { receive_buffer: 200_000 };
    let mut script = Transcript::new(Setup { options, ..Setup::default() });
    for (range, window) in [(1..65_536, 65_535), (65_536..131_071, 65_535), (131_071..196_606, 3_391)] {
        let end = range.end;
        script.play(&(lines("< .", range, 1285, "ack 1") + &format!("> . 1 ack {end} win {window}")));
    }
    script.play("read 196605\n > . 1 ack 196606 win 65535");
}

/// What a random reader and a random peer do.
#[derive(Clone, Debug)]
enum Event {
    /// So much of what the window has room for, in order or behind a hole.
    Text {
        length: prop::sample::Index,
        hole: bool,
    },
    Read(u32),
    Wait(u64),
    Acknowledge,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), prop::bool::weighted(0.2)).prop_map(|(length, hole)| Event::Text { length, hole }),
        3 => (0u32..80_000).prop_map(Event::Read),
        2 => (0u64..200).prop_map(Event::Wait),
        1 => Just(Event::Acknowledge),
    ]
}

/// How far a peer has been told that it may send.
struct Shown {
    /// The largest right edge, and the last one, as numbers of the peer.
    largest: u32,
    last: u32,
    unit: u32,
}

impl Shown {
    /// RFC 9293 §3.8.6: "a TCP receiver SHOULD NOT shrink the window", but for rounding (RFC 7323 §2.4).
    fn note(&mut self, script: &mut Transcript) {
        for ack in script.transmit() {
            let number = ack.ack.wrapping_sub(script.setup.peers.seq);
            self.last = number + u32::from(ack.window) * self.unit;
            assert!(self.last + self.unit > self.largest, "{} after {}", self.last, self.largest);
            self.largest = self.largest.max(self.last);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The window never shrinks, and all that lies within it is accepted: also what a peer has sent that was told of an edge
    /// before that was rounded down since.
    #[test]
    fn what_was_offered_is_taken(
        shift in 0u8..15,
        buffer in prop_oneof![Just(65_536usize), 65_536usize..300_000, Just(1 << 20)],
        numbers in any::<(u32, u32)>(),
        window in prop_oneof![Just(u16::MAX), 1u16..],
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut setup = Setup::default().scales(Some(shift), Some(0));
        (setup.ours.seq, setup.peers.seq, setup.ours.window) = (numbers.0, numbers.1, window);
        setup.options.receive_buffer = buffer;
        let mut shown = Shown { largest: 1 + u32::from(window), last: 1 + u32::from(window), unit: 1 << shift };
        let mut script = Transcript::new(setup);
        for event in events {
            match event {
                Event::Text { length, hole } => {
                    let next = script.connection.rcv_nxt().wrapping_sub(script.setup.peers.seq);
                    let room = shown.largest.saturating_sub(next) as usize;
                    let length = length.index(room + 1) as u32;
                    let skip = if hole { length / 2 } else { 0 };
                    text_arrives(&mut script, &mut shown, next + skip, next + length);
                    let now = script.connection.rcv_nxt().wrapping_sub(script.setup.peers.seq);
                    prop_assert!(skip > 0 || now >= next + length, "not taken: {next} + {length}, up to {now}");
                }
                Event::Read(length) => drop(script.take(length as usize)),
                Event::Wait(millis) => script.now += Duration::from_millis(millis),
                Event::Acknowledge => script.connection.acknowledge(),
            }
            shown.note(&mut script);
        }
        // A window that is closed for good would be the end.
        script.take(usize::MAX);
        shown.note(&mut script);
        let next = script.connection.rcv_nxt().wrapping_sub(script.setup.peers.seq);
        prop_assert!(shown.last > next, "{} at {next}", shown.last);
    }
}

fn text_arrives(script: &mut Transcript, shown: &mut Shown, begin: u32, end: u32) {
    let mut dice = begin;
    let mut at = begin;
    while at < end {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (1 + (dice >> 20) % 1460).min(end - at);
        let segment = seg(ACK, script.setup.peers.seq.wrapping_add(at), script.connection.snd_nxt());
        script.receive(&segment.with(&text(at, length)));
        at += length;
        if dice & 3 == 0 {
            shown.note(script);
        }
    }
}
