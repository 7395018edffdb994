//! Whatever a peer sends: no panic, no spinning, nothing that it was not allowed to send.

mod common;

use common::*;
use proptest::prelude::*;
use tcp::time::Duration;
use tcp::wire::{self, Flags};
use tcp::{Connection, Options, Stack, State};

/// One thing that happens to a connection.
#[derive(Clone, Debug)]
enum Event {
    Segment { seq: Near, ack: Near, flags: u8, window: u16, options: Vec<u8>, length: usize },
    Send(usize),
    Consume(usize),
    Finish,
    Abort,
    Wait(u64),
    Transmit { room: usize },
    Due,
}

/// A number near one that means something.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// What is expected next, plus this.
    Next(i32),
    /// The right edge of the window, more or less.
    Far(i32),
    Any(u32),
}

fn near() -> impl Strategy<Value = Near> {
    prop_oneof![
        4 => Just(Near::Next(0)),
        4 => (-3i32..4).prop_map(Near::Next),
        4 => (-5000i32..5000).prop_map(Near::Next),
        3 => (-3i32..4).prop_map(Near::Far),
        2 => (-3000i32..3000).prop_map(Near::Far),
        1 => any::<u32>().prop_map(Near::Any),
        1 => (-2i32..3).prop_map(|at| Near::Next(i32::MAX.wrapping_add(at))),
    ]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        10 => Just(Flags::ACK.bits()),
        4 => Just(FIN_ACK.bits()),
        3 => Just(SYN_ACK.bits()),
        1 => Just(SYN.bits()),
        1 => Just(RST.bits()),
        2 => any::<u8>().prop_map(|flags| flags & !RST.bits()),
        1 => any::<u8>(),
    ]
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => Just(Vec::new()),
        2 => (0u8..20, any::<[u8; 2]>()).prop_map(|(shift, mss)| vec![2, 4, mss[0], mss[1], 3, 3, shift, 4, 2, 0, 0, 0]),
        2 => proptest::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..40),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let window = prop_oneof![Just(0u16), 0u16..10, any::<u16>()];
    let length = prop_oneof![4 => Just(0usize), 2 => 1usize..10, 4 => 1usize..1461, 1 => 1usize..9000];
    let segment =
        (near(), near(), flags(), window, options(), length).prop_map(|(seq, ack, flags, window, options, length)| {
            Event::Segment { seq, ack, flags, window, options, length }
        });
    prop_oneof![
        12 => segment,
        2 => (1usize..20_000).prop_map(Event::Send),
        2 => (1usize..20_000).prop_map(Event::Consume),
        1 => Just(Event::Finish),
        1 => (0u64..3000).prop_map(Event::Wait),
        4 => (0usize..4).prop_map(|room| Event::Transmit { room }),
        4 => Just(Event::Transmit { room: usize::MAX }),
        2 => Just(Event::Due),
    ]
}

/// Starts a connection, as `start` says, in SYN-SENT, SYN-RECEIVED or ESTABLISHED.
fn start(start: usize, network: Network, options: &Options, iss: u32, irs: u32, syn_options: &[u8]) -> Script {
    if start == 0 {
        let mut stack = Stack::new(1, MTU);
        let now = tcp::time::Instant::from_secs(9);
        let connection =
            Connection::active_open(&mut stack, now, network.server(), network.client(), iss, options).unwrap();
        return Script { network, now, stack, connection, sink: Sink::default() };
    }
    let mut script = Script::passive(network, options, iss, seg(SYN, irs, 0).options(syn_options));
    if start > 1 {
        script.transmit_one();
        script.receive(seg(ACK, irs.wrapping_add(1), iss.wrapping_add(1)).window(3000));
        assert_eq!(script.connection.state(), State::Established);
    }
    script
}

fn run(script: &mut Script, event: &Event, edge: &mut u32) {
    let connection = &mut script.connection;
    match *event {
        Event::Segment { seq, ack, flags, window, ref options, length } => {
            let place = |near, next: u32, far: u32| match near {
                Near::Next(by) => next.wrapping_add_signed(by),
                Near::Far(by) => far.wrapping_add_signed(by),
                Near::Any(number) => number,
            };
            let seq = place(seq, connection.rcv_nxt(), *edge);
            let ack =
                place(ack, connection.snd_nxt(), connection.snd_nxt().wrapping_sub(connection.send_queue() as u32));
            let segment = Seg {
                seq,
                ack,
                flags: Flags::from_bits(flags),
                window,
                options: options.clone(),
                payload: vec![seq as u8; length],
            };
            let before = (connection.receive_queue(), connection.state());
            script.receive(segment);
            let answers: Vec<_> = script.sink.frames.drain(..).map(|frame| Seg::from_frame(&frame).1).collect();
            assert!(answers.len() <= 2);
            let connection = &script.connection;
            // Not one byte behind the window that we offered.
            if connection.receive_queue() > before.0 {
                let behind = connection.rcv_nxt().wrapping_sub(*edge) as i32;
                assert!(behind <= 1, "{behind} bytes behind the window");
            }
            if connection.was_reset() && before.1 != State::Closed {
                assert!(Flags::from_bits(flags).rst() && before.1 != State::TimeWait);
            }
            look(&answers, edge);
        }
        Event::Send(length) => {
            let room = connection.send_room();
            assert_eq!(connection.send(&vec![3; length]), length.min(room));
        }
        Event::Consume(length) => {
            let before = connection.receive_queue();
            connection.consume(length);
            assert_eq!(connection.receive_queue(), before - length.min(before));
        }
        Event::Finish => connection.finish(),
        Event::Abort => connection.abort(),
        Event::Wait(millis) => script.wait(millis),
        Event::Transmit { room } => transmit(script, room, edge),
        Event::Due => {
            if let Some(due) = script.poll_at() {
                assert!(due >= script.now);
                script.now = due;
                transmit(script, usize::MAX, edge);
            }
        }
    }
}

fn transmit(script: &mut Script, room: usize, edge: &mut u32) {
    script.sink.room = room;
    look(&script.transmit(), edge);
    script.sink.room = usize::MAX;
    // Nothing can be sent now that was not: no caller spins.
    if let Some(due) = script.poll_at() {
        assert!(due > script.now, "due at {due}, now {}", script.now);
    }
}

/// Notes how far our windows reach.
fn look(sent: &[Seg], edge: &mut u32) {
    for segment in sent.iter().filter(|segment| segment.flags.ack() && !segment.flags.rst()) {
        let shift = if segment.flags.syn() { 0 } else { LARGEST_SHIFT };
        let offered = segment.ack.wrapping_add(u32::from(segment.window) << shift);
        if (offered.wrapping_sub(*edge) as i32) > 0 {
            *edge = offered;
        }
    }
}

/// Up to 128 KiB: a shift of at most 1, so that the test need not know whether it was agreed on.
const LARGEST_SHIFT: u32 = 1;
const BUFFERS: Options = Options { receive_buffer: 100_000, send_buffer: 30_000 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn no_segments_do_harm(
        first in 0..4usize,
        network in 0..4usize,
        small: bool,
        numbers: (u32, u32),
        syn_options in options(),
        events in proptest::collection::vec(event(), 1..60),
        abort: bool,
    ) {
        let options = if small { Options { receive_buffer: 3000, send_buffer: 2000 } } else { BUFFERS };
        let mut script = start(first, NETWORKS[network], &options, numbers.0, numbers.1, &syn_options);
        // The window of the handshake, at most.
        let mut edge = numbers.1.wrapping_add(1).wrapping_add(options.receive_buffer as u32);
        for event in &events {
            if first == 0 && script.connection.peer_iss().is_none() {
                // The window of an active open begins where the peer says.
                run(&mut script, event, &mut edge);
                if let Some(irs) = script.connection.peer_iss() {
                    edge = irs.wrapping_add(1).wrapping_add(options.receive_buffer as u32);
                }
                continue;
            }
            run(&mut script, event, &mut edge);
        }
        if abort {
            run(&mut script, &Event::Abort, &mut edge);
        }
        // Time alone brings it to rest or keeps it in the steps of its timers.
        for _ in 0..20 {
            let Some(due) = script.poll_at() else { break };
            script.now = due.max(script.now + Duration::from_micros(1));
            transmit(&mut script, usize::MAX, &mut edge);
        }
        if abort {
            assert_eq!(script.connection.state() == State::TimeWait, !script.connection.is_closed());
        }
        drop(script.take(usize::MAX >> 44));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6usize) {
        // Most random bytes would not get far.
        let start: &[u8] = match kind {
            0 => &[],
            1 => &[0x08, 0x00, 0x45],
            2 => &[0x86, 0xdd, 0x60],
            3 => &[0x81, 0x00, 0, 1, 0x08, 0x00, 0x46],
            4 => &[0x88, 0xa8, 0, 1, 0x81, 0x00, 0, 2, 0x86, 0xdd, 0x60],
            _ => &[0x08, 0x06],
        };
        if bytes.len() >= 12 + start.len() && !start.is_empty() {
            bytes[12..12 + start.len()].copy_from_slice(start);
        }
        if let Ok(wire::Parsed::Tcp(h)) = wire::parse(&bytes) {
            wire::verify_tcp_checksum(&bytes, &h);
        }
        wire::complete_partial_checksum(&mut bytes);
    }

    #[test]
    fn no_change_of_a_good_frame_makes_the_parser_panic(
        network in 0..4usize,
        changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..150,
    ) {
        let network = NETWORKS[network];
        let mut frame = seg(PSH_ACK, 1, 2).options(&[1; 12]).with(&[7; 30]).to_frame(
            &network.l2(), network.client(), network.server(),
        );
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut);
        if let Ok(wire::Parsed::Tcp(h)) = wire::parse(&frame) {
            prop_assert!(h.ip_offset < h.tcp_offset && h.tcp_offset + 20 <= h.payload_offset);
            prop_assert!(h.payload_offset <= h.end && h.end <= frame.len());
            wire::verify_tcp_checksum(&frame, &h);
        }
        wire::complete_partial_checksum(&mut frame);
    }
}
