//! Whatever frames come in, in whatever order: the worker does not panic, keeps its limits, and comes to rest.
#![forbid(unsafe_code)]

use std::sync::Arc;

use dataplane::programs::{Generations, Programs};
use dataplane::steer::Selection;
use dataplane::worker::{Tap, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use proptest::prelude::*;
use tap_engine::{Filter, Kind, Object};
use tcp::time::{Duration, Instant};

const FLOWS: usize = 3;

/// Takes frames as long as there is room, and forgets them.
struct Sink {
    room: usize,
    frame: Vec<u8>,
}

impl Output for Sink {
    fn room(&self, _: Side) -> usize {
        self.room
    }

    fn frame(&mut self, _: Side, length: usize) -> Option<&mut [u8]> {
        self.room = self.room.checked_sub(1)?;
        self.frame.clear();
        self.frame.resize(length, 0);
        Some(&mut self.frame)
    }
}

fn worker() -> Worker {
    let object = Arc::new(Object::from_bytes("len4", tap_engine::shipped::LEN4).unwrap());
    let filter = || {
        let parser = object.program("parse_len4", Kind::StreamParser).unwrap();
        let verdict = object.program("by_first_byte", Kind::StreamVerdict).unwrap();
        Some(Filter::new(parser, Some(verdict), 1000))
    };
    let tap = Tap {
        name: "hostile".into(),
        selection: Selection { server_ports: vec![80..=80], ..Selection::default() },
        state: TapState {
            programs: [filter(), filter()].map(|filter| Generations::new(filter.map(Programs::from))),
            application: Side::Server,
            observe: false,
            on_parse_error: config::OnParseError::Disconnect,
            message_timeout: Some(Duration::from_secs(5)),
            midstream: config::Midstream::Reset,
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
        flows: FLOWS,
        message: 1000,
        taps: vec![tap],
    };
    Worker::new(config, Instant::ZERO).unwrap()
}

/// A segment of one of a few flows, with numbers near those that would be right.
#[derive(Clone, Debug)]
struct Hostile {
    from: Side,
    client_port: u16,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    payload: Vec<u8>,
    /// Options, in whole words.
    options: Vec<u8>,
    /// A byte of the finished frame to change, and how.
    damage: Option<(usize, u8)>,
    /// Microseconds until the next one.
    pause: u64,
    pump: bool,
    room: usize,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let number =
        || prop_oneof![0u32..4, 995u32..1010, Just(0x7fff_ffff), Just(0x8000_0000), Just(u32::MAX), any::<u32>()];
    let payload = prop_oneof![
        3 => Just(Vec::new()),
        2 => Just(vec![0, 0, 0, 2, b'a', b'b']),
        1 => Just(vec![0, 0, 0, 1, b'D', 0, 0, 0, 1, b'X']),
        2 => prop::collection::vec(any::<u8>(), 1..40),
    ];
    let usual = prop::sample::select(vec![0x02u8, 0x02, 0x12, 0x10, 0x10, 0x18, 0x11, 0x04, 0x14]);
    let flags = prop_oneof![5 => usual, 1 => any::<u8>()];
    let from = prop_oneof![Just(Side::Client), Just(Side::Server)];
    let options = prop::collection::vec(any::<u8>(), 0..3).prop_map(|words| words.repeat(4));
    let damage = prop::option::weighted(0.1, (0usize..90, any::<u8>()));
    let pause = prop_oneof![5 => 0u64..2000, 1 => 0u64..20_000_000];
    let room = prop_oneof![4 => Just(64usize), 1 => 0usize..3];
    (from, 1u16..6, flags, number(), number(), any::<u16>(), payload, options, damage, (pause, any::<bool>(), room))
        .prop_map(|(from, client_port, flags, seq, ack, window, payload, options, damage, (pause, pump, room))| {
            Hostile { from, client_port, flags, seq, ack, window, payload, options, damage, pause, pump, room }
        })
}

impl Hostile {
    fn frame(&self) -> Vec<u8> {
        let (client, server) = (([10, 0, 0, 1], self.client_port), ([10, 0, 0, 2], 80));
        let (source, destination) = if self.from == Side::Client { (client, server) } else { (server, client) };
        let tcp_length = 20 + self.options.len() + self.payload.len();
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        frame.extend((20 + tcp_length as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(source.0.iter().chain(&destination.0));
        let sum = checksum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend([source.1.to_be_bytes(), destination.1.to_be_bytes()].concat());
        frame.extend([self.seq.to_be_bytes(), self.ack.to_be_bytes()].concat());
        frame.extend([((20 + self.options.len()) * 4) as u8, self.flags]);
        frame.extend(self.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(self.options.iter().chain(&self.payload));
        let addresses =
            frame[26..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
        let sum = checksum(&frame[34..], addresses + 6 + tcp_length as u32);
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        if let Some((at, change)) = self.damage {
            let at = at % frame.len();
            frame[at] ^= change;
        }
        frame
    }
}

/// The internet checksum of `bytes`, begun with `sum`.
fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let word = |chunk: &[u8]| u32::from(u16::from_be_bytes([chunk[0], chunk.get(1).copied().unwrap_or(0)]));
    let mut sum = sum + bytes.chunks(2).map(word).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Lets time pass until no deadline is left.
fn come_to_rest(worker: &mut Worker, now: &mut Instant) {
    let end = *now + Duration::from_secs(1000);
    loop {
        let mut out = Sink { room: usize::MAX, frame: Vec::new() };
        worker.handle_timeouts(*now);
        worker.pump(*now);
        worker.poll_transmit(*now, &mut out);
        match worker.poll_at() {
            Some(at) if at <= end => *now = (*now + Duration::from_micros(1)).max(at),
            _ => break,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_frames_make_it_panic_or_grow(frames in prop::collection::vec(hostile(), 1..120)) {
        let mut worker = worker();
        let mut now = Instant::from_secs(1);
        for hostile in &frames {
            let mut out = Sink { room: hostile.room, frame: Vec::new() };
            let mut frame = hostile.frame();
            let fate = worker.handle_frame(now, hostile.from, &mut frame, &mut out);
            prop_assert!(!matches!(fate, Fate::HandOver(_)));
            if hostile.pump {
                worker.handle_timeouts(now);
                worker.pump(now);
                worker.poll_transmit(now, &mut out);
            }
            prop_assert!(worker.flow_count() <= FLOWS);
            now += Duration::from_micros(hostile.pause);
        }
        come_to_rest(&mut worker, &mut now);
        // Flows that are open and idle may stay; none may still wait for something.
        prop_assert!(!worker.has_work());
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
        let mut worker = worker();
        let mut out = Sink { room: 64, frame: Vec::new() };
        worker.handle_frame(Instant::from_secs(1), Side::Client, &mut bytes, &mut out);
        let hostile = Hostile {
            from: Side::Client, client_port: 1, flags: 2, seq: 1, ack: 0, window: 0, payload: bytes, options: vec![],
            damage: None, pause: 0, pump: false, room: 0,
        };
        let mut frame = hostile.frame();
        frame.truncate(cut.min(frame.len()));
        worker.handle_frame(Instant::from_secs(1), Side::Client, &mut frame, &mut out);
    }
}
