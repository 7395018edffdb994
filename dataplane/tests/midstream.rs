//! What each `midstream` policy makes of a segment that belongs to no flow.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use config::Midstream;
use dataplane::counters::DropReason;
use dataplane::steer::Selection;
use dataplane::worker::{Tap, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use tcp::FrameSink;
use tcp::time::Instant;
use tcp::wire::{self, Envelope, Flags, L2Header, Parsed, Segment};

/// Keeps the frames that the worker sends of its own accord.
#[derive(Default)]
struct Sent(Vec<(Side, Vec<u8>)>);

impl Output for Sent {
    fn room(&self, _: Side) -> usize {
        64
    }

    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]> {
        self.0.push((to, vec![0; length]));
        self.0.last_mut().map(|(_, frame)| &mut frame[..])
    }
}

impl FrameSink for Sent {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        Output::frame(self, Side::Server, length)
    }
}

fn worker(midstream: Midstream) -> Worker {
    let state = TapState {
        programs: Default::default(),
        application: Side::Server,
        observe: false,
        on_parse_error: config::OnParseError::Disconnect,
        message_timeout: None,
        midstream,
    };
    let selection = Selection { server_ports: vec![80..=80], ..Selection::default() };
    let config = WorkerConfig {
        index: 0,
        workers: 1,
        seed: 1,
        owner_seed: 2,
        mtu: [1500; 2],
        ifindex: [1, 2],
        accept_partial_checksums: [true, false],
        fragments: config::Fragments::Drop,
        flows: 10,
        message: 1000,
        taps: vec![Tap { name: "all".into(), selection, state }],
    };
    Worker::new(config, Instant::ZERO).unwrap()
}

/// A segment of the connection between two hosts.
fn segment(from: Side, flags: Flags) -> Vec<u8> {
    segment_of("10.0.0.1:4000", from, flags)
}

/// The same, with another client.
fn segment_of(client: &str, from: Side, flags: Flags) -> Vec<u8> {
    let (client, server): (SocketAddr, SocketAddr) = (client.parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let (source, destination) = if from == Side::Client { (client, server) } else { (server, client) };
    let l2 = L2Header::from_bytes(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]).unwrap();
    let segment =
        Segment { source, destination, seq: 1000, ack: 2000, flags, window: 100, options: &[], payload: [&[]; 2] };
    let mut sent = Sent::default();
    assert!(wire::build_segment(&mut sent, &Envelope { l2, hop_limit: 64, ..Envelope::default() }, &segment));
    sent.0.remove(0).1
}

/// What becomes of the segment, whether its sender was reset, and `[passed, dropped]` of the counters.
fn handle(midstream: Midstream, from: Side, mut frame: Vec<u8>) -> (Fate, bool, [u64; 2]) {
    let (mut worker, mut out) = (worker(midstream), Sent::default());
    let fate = worker.handle_frame(Instant::from_secs(1), from, &mut frame, &mut out);
    let Ok(Parsed::Tcp(headers)) = wire::parse(&frame) else { panic!("still a segment") };
    assert_eq!(wire::verify_tcp_checksum(&frame, &headers), wire::Checksum::Valid);
    assert_eq!(worker.flow_count(), 0);
    let reset = match &out.0[..] {
        [] => false,
        [(to, reset)] => {
            let Ok(Parsed::Tcp(reset)) = wire::parse(reset) else { panic!("a segment") };
            assert!(reset.flags.rst() && *to == from && reset.destination == headers.source);
            true
        }
        more => panic!("{more:?}"),
    };
    let counters = worker.counters();
    let passed = counters.taps[0].midstream_passed;
    assert_eq!(counters.frames_forwarded[from as usize], passed);
    (fate, reset, [passed, counters.dropped[DropReason::Midstream as usize]])
}

#[test]
fn each_policy_does_what_it_says() {
    let dropped = |reset| (Fate::Dropped(DropReason::Midstream), reset, [0, 1]);
    let passed = (Fate::Forward, false, [1, 0]);
    let (ack, rst) = (Flags::ACK, Flags::RST);
    for from in Side::BOTH {
        for flags in [ack, ack.with(Flags::PSH), ack.with(Flags::FIN), ack.with(Flags::SYN), rst, rst.with(ack)] {
            assert_eq!(handle(Midstream::Reset, from, segment(from, flags)), dropped(!flags.rst()), "{flags:?}");
            assert_eq!(handle(Midstream::Drop, from, segment(from, flags)), dropped(false), "{flags:?}");
            assert_eq!(handle(Midstream::Pass, from, segment(from, flags)), passed, "{flags:?}");
        }
    }
}

#[test]
fn what_may_open_a_connection_never_passes() {
    for (from, flags) in [(Side::Client, Flags::SYN.with(Flags::FIN)), (Side::Server, Flags::SYN)] {
        for (midstream, reset) in [(Midstream::Reset, true), (Midstream::Drop, false), (Midstream::Pass, true)] {
            let expected = (Fate::Dropped(DropReason::Midstream), reset, [0, 1]);
            assert_eq!(handle(midstream, from, segment(from, flags)), expected, "{midstream:?} {from:?} {flags:?}");
        }
    }
}

#[test]
fn port_0_never_crosses() {
    let syn = segment_of("10.0.0.1:0", Side::Client, Flags::SYN);
    for midstream in [Midstream::Reset, Midstream::Drop, Midstream::Pass] {
        let expected = (Fate::Dropped(DropReason::Unaddressable), false, [0, 0]);
        assert_eq!(handle(midstream, Side::Client, syn.clone()), expected);
        for from in Side::BOTH {
            for flags in [Flags::ACK, Flags::ACK.with(Flags::PSH), Flags::ACK.with(Flags::SYN), Flags::RST] {
                let reset = midstream != Midstream::Drop && !flags.rst();
                let expected = (Fate::Dropped(DropReason::Midstream), reset, [0, 1]);
                let frame = segment_of("10.0.0.1:0", from, flags);
                assert_eq!(handle(midstream, from, frame), expected, "{midstream:?} {from:?} {flags:?}");
            }
        }
    }
}

#[test]
fn a_partial_checksum_is_completed_on_the_way_across() {
    let mut frame = segment(Side::Client, Flags::ACK);
    // The sum of the pseudo-header alone: both addresses, the protocol, the length.
    let sum = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 6 + 20u16;
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(handle(Midstream::Pass, Side::Client, frame), (Fate::Forward, false, [1, 0]));
}
