//! What each station of a frame's walk costs, without any network: `cargo bench -p benches`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a benchmark program has no users but its reader")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::Side;
use dataplane::flow_table::{FlowTable, KeyHasher};
use dataplane::steer::{FlowKey, Fragments, Selection, steer};
use dataplane::timers::Timers;
use divan::Bencher;
use tap_engine::{Filter, FlowInfo, Kind, MessageBuffer, Object, Step, StreamState};
use tcp::time::{Duration, Instant};

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40000);
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 2], 80);

fn main() {
    divan::main();
}

/// A frame with a 64-byte payload between [`CLIENT`] and [`SERVER`].
fn frame() -> Vec<u8> {
    let payload = [7; 64];
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let mut ip = vec![0x45, 0, 0, 40 + payload.len() as u8, 0, 1, 0x40, 0, 64, 6, 0, 0];
    ip.extend(CLIENT.0.iter().chain(&SERVER.0));
    let sum = checksum(ip.chunks(2));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [CLIENT.1.to_be_bytes(), SERVER.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    let pseudo = [&ip[12..20], &[0, 6, 0, tcp.len() as u8]].concat();
    let sum = checksum(pseudo.chunks(2).chain(tcp.chunks(2)));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(tcp);
    frame
}

fn checksum<'a>(words: impl Iterator<Item = &'a [u8]>) -> u16 {
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn key(number: u32) -> FlowKey {
    let [_, a, b, c] = number.to_be_bytes();
    FlowKey { client: SocketAddr::from(([10, a, b, c], CLIENT.1)), server: SERVER.into(), vlan: [0; 2] }
}

/// Headers parsed, tap found, checksum verified.
#[divan::bench]
fn steer_a_frame(bencher: Bencher) {
    let mut frame = frame();
    let selection = Selection { server_ports: vec![80..=80], ..Selection::default() };
    bencher.bench_local(|| {
        let steered = steer(Side::Client, black_box(&mut frame), false, Fragments::Drop, [&selection].into_iter());
        assert!(matches!(steered, Ok(dataplane::steer::Steered::Tap { .. })));
    });
}

#[divan::bench(args = [10, 100_000, 1_000_000])]
fn find_a_flow(bencher: Bencher, flows: u32) {
    let mut table = FlowTable::new(flows as usize, KeyHasher::new(1));
    for number in 0..flows {
        table.insert(key(number), number).expect("below the limit");
    }
    let mut number = 0u32;
    bencher.bench_local(|| {
        number = number.wrapping_add(7919) % flows;
        table.find(black_box(&key(number)))
    });
}

/// The deadline of one of 100,000 flows moves.
#[divan::bench]
fn move_a_timer(bencher: Bencher) {
    let mut timers = Timers::new(Instant::ZERO);
    for id in 0..100_000 {
        timers.set(id, Instant::from_millis(i64::from(id)));
    }
    let mut step = 0u32;
    bencher.bench_local(|| {
        step = step.wrapping_add(1);
        timers.set(step % 100_000, Instant::ZERO + Duration::from_micros(u64::from(step) * 700));
    });
}

/// Stream parser and verdict on a message of `length` bytes behind a 4-byte length.
#[divan::bench(args = [64, 1460, 16_384])]
fn judge_a_message(bencher: Bencher, length: usize) {
    let object = Arc::new(Object::from_bytes("len4", tap_engine::shipped::LEN4).expect("an object"));
    let program = |name, kind| object.program(name, kind).expect("a function of the object");
    let parser = program("parse_len4", Kind::StreamParser);
    let mut filter = Filter::new(parser, Some(program("by_first_byte", Kind::StreamVerdict)), 65536);
    let mut buffer = MessageBuffer::new(65536).expect("memory");
    buffer.as_mut_slice()[..4].copy_from_slice(&(length as u32 - 4).to_be_bytes());
    let mut flow = FlowInfo::new(SERVER.into(), CLIENT.into());
    bencher.bench_local(|| {
        let step = filter.next(&mut StreamState::default(), &mut flow, 0, &mut buffer, 0, length);
        assert!(matches!(step, Step::Message { .. }));
    });
}
