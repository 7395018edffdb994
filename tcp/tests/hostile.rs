//! Whatever a peer sends, in whatever state: no panic, no spinning, nothing that it was not allowed to send, no flood of answers.

mod common;

use common::*;
use proptest::prelude::*;
use tcp::State;
use tcp::time::Duration;
use tcp::wire::{Flags, OptionWriter, Timestamps};

/// One thing that happens to a connection.
#[derive(Clone, Debug)]
enum Event {
    Segment { seq: Near, ack: Near, flags: u8, window: u16, options: Said, length: usize },
    Send(usize),
    Consume(usize),
    Finish,
    Abort,
    Probe,
    Acknowledge,
    TooBig { seq: Near, mtu: usize },
    Wait(u64),
    Transmit { free: usize },
    Due,
}

/// A number near one that means something.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// What is expected next, plus this.
    Next(i32),
    /// The right edge of the window, or what is acknowledged, more or less.
    Far(i32),
    Any(u32),
}

/// Options.
#[derive(Clone, Debug)]
enum Said {
    Bytes(Vec<u8>),
    /// A timestamp, this much later than it should be; and blocks.
    Proper {
        late: Option<i32>,
        echo: u32,
        blocks: Vec<(Near, Near)>,
    },
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
        20 => Just(ACK.bits()),
        4 => Just(FIN_ACK.bits()),
        2 => Just(SYN_ACK.bits()),
        1 => Just(SYN.bits()),
        1 => Just(RST.bits()),
        2 => any::<u8>().prop_map(|flags| flags & !RST.bits()),
        1 => any::<u8>(),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    let late = prop_oneof![2 => Just(Some(0)), 2 => (-5i32..5).prop_map(Some), 1 => any::<i32>().prop_map(Some), 1 => Just(None)];
    let blocks = prop::collection::vec((near(), near()), 0..5);
    prop_oneof![
        4 => (late, any::<u32>(), blocks).prop_map(|(late, echo, blocks)| Said::Proper { late, echo, blocks }),
        1 => prop::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..40).prop_map(Said::Bytes),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let window = prop_oneof![Just(0u16), 0u16..10, any::<u16>(), Just(u16::MAX)];
    let length = prop_oneof![4 => Just(0usize), 2 => 1usize..10, 4 => 1usize..1461, 1 => 1usize..9000];
    let segment =
        (near(), near(), flags(), window, said(), length).prop_map(|(seq, ack, flags, window, options, length)| {
            Event::Segment { seq, ack, flags, window, options, length }
        });
    prop_oneof![
        14 => segment,
        3 => (1usize..40_000).prop_map(Event::Send),
        2 => (1usize..40_000).prop_map(Event::Consume),
        1 => Just(Event::Finish),
        1 => Just(Event::Probe),
        1 => Just(Event::Acknowledge),
        1 => (near(), 0usize..1600).prop_map(|(seq, mtu)| Event::TooBig { seq, mtu }),
        1 => (0u64..3000).prop_map(Event::Wait),
        4 => (0usize..4).prop_map(|free| Event::Transmit { free }),
        4 => Just(Event::Transmit { free: usize::MAX }),
        3 => Just(Event::Due),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let numbers = any::<(u32, u32, u16, u16)>();
    let shifts = prop::option::of((0u8..15, 0u8..15));
    let mss = prop_oneof![Just(Some(1460)), Just(None), any::<u16>().prop_map(Some)];
    let rest = (0..4usize, 60_000usize..200_000, prop::option::of(0u64..500), any::<(bool, bool, bool)>());
    (numbers, shifts, mss, rest).prop_map(|(numbers, shifts, mss, (network, buffer, rtt, (sack, stamps, active)))| {
        let mut setup =
            Setup { active, ..Setup::on(NETWORKS[network]) }.scales(shifts.map(|s| s.0), shifts.map(|s| s.1));
        if stamps {
            setup = setup.timestamps(numbers.0, numbers.1);
        }
        (setup.ours.seq, setup.peers.seq, setup.ours.window, setup.peers.window) = numbers;
        setup.peers.options.sack_permitted = sack;
        setup.peers.options.mss = mss;
        setup.options.receive_buffer = buffer;
        setup.rtt = rtt.map(Duration::from_millis);
        setup
    })
}

/// A connection, and how far its peer was told that it may send.
struct Victim {
    script: Script,
    edge: u32,
    shift: u32,
}

impl Victim {
    fn new(setup: Setup) -> Self {
        let edge = setup.peers.seq.wrapping_add(1).wrapping_add(u32::from(setup.ours.window));
        let scales = setup.ours.options.window_scale.zip(setup.peers.options.window_scale);
        Self { script: Script::new(setup), edge, shift: scales.map_or(0, |scales| u32::from(scales.0)) }
    }

    /// Led to a state, by what an honest peer sends.
    fn in_state(setup: Setup, state: State) -> Self {
        let mut victim = Self::new(setup);
        if state != State::Established {
            victim.hear(ACK, 0); // A window that has room for a FIN.
        }
        let we_first = matches!(state, State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait);
        if we_first {
            victim.act(&Event::Finish);
            victim.transmit(usize::MAX);
        }
        match state {
            State::FinWait2 => victim.hear(ACK, 0),
            State::CloseWait | State::LastAck => victim.hear(FIN_ACK, 0),
            State::Closing => victim.hear(FIN_ACK, 1),
            State::TimeWait => victim.hear(FIN_ACK, 0),
            _ => {}
        }
        victim.transmit(usize::MAX);
        if state == State::LastAck {
            victim.act(&Event::Finish);
            victim.transmit(usize::MAX);
        }
        assert_eq!(victim.script.connection.state(), state);
        victim
    }

    /// A segment in order, that leaves `unacked` numbers unacknowledged.
    fn hear(&mut self, flags: Flags, unacked: u32) {
        let connection = &self.script.connection;
        self.script.receive(&seg(flags, connection.rcv_nxt(), connection.snd_nxt().wrapping_sub(unacked)));
    }

    fn act(&mut self, event: &Event) {
        let connection = &mut self.script.connection;
        match *event {
            Event::Segment { .. } => self.receive(event),
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
            Event::Probe => connection.send_probe(),
            Event::Acknowledge => connection.acknowledge(),
            Event::TooBig { seq, mtu } => {
                let seq = self.ours(seq);
                self.script.connection.handle_packet_too_big(self.script.now, seq, mtu);
            }
            Event::Wait(millis) => self.script.now += Duration::from_millis(millis),
            Event::Transmit { free } => self.transmit(free),
            Event::Due => {
                if let Some(due) = self.script.poll_at() {
                    assert!(due >= self.script.now);
                    self.script.now = due;
                    self.transmit(usize::MAX);
                }
            }
        }
    }

    /// A number of ours.
    fn ours(&self, near: Near) -> u32 {
        let connection = &self.script.connection;
        let acked = connection.snd_nxt().wrapping_sub(connection.send_queue() as u32);
        place(near, connection.snd_nxt(), acked)
    }

    fn receive(&mut self, event: &Event) {
        let Event::Segment { seq, ack, flags, window, ref options, length } = *event else { return };
        let connection = &self.script.connection;
        let (queue, state, next) = (connection.receive_queue(), connection.state(), connection.rcv_nxt());
        let (seq, ack, flags) = (place(seq, next, self.edge), self.ours(ack), Flags::from_bits(flags));
        let (options, payload) = (self.options(options), vec![seq as u8; length]);
        self.script.receive(&Seg { seq, ack, flags, window, options, payload });
        let connection = &self.script.connection;
        if connection.receive_queue() > queue {
            let behind = connection.rcv_nxt().wrapping_sub(self.edge) as i32;
            assert!(behind <= 1, "{behind} bytes behind the window");
        }
        if connection.was_reset() && state != State::Closed {
            assert!(flags.rst() && seq == next && state != State::TimeWait);
        }
        assert!(connection.rcv_nxt().wrapping_sub(next) <= 1 << 23, "it never goes back");
    }

    fn options(&self, said: &Said) -> Vec<u8> {
        match said {
            Said::Bytes(bytes) => bytes.clone(),
            Said::Proper { late, echo, blocks } => {
                let mut options = OptionWriter::default();
                if let (Some(late), Some(stamp)) = (late, self.script.setup.peers.options.timestamps) {
                    let elapsed = self.script.now.total_millis() as u32;
                    let value = stamp.value.wrapping_add(elapsed).wrapping_add_signed(*late);
                    options.timestamps(Timestamps { value, echo: *echo });
                }
                options.sack(blocks.iter().map(|&(left, right)| (self.ours(left), self.ours(right))));
                options.as_bytes().to_vec()
            }
        }
    }

    /// Sends all that there is. Answers without text are few, whatever has come.
    fn transmit(&mut self, free: usize) {
        self.script.sink.free = free;
        let before = self.script.connection.snd_nxt();
        let sent = self.script.transmit();
        self.script.sink.free = usize::MAX;
        assert!(sent.iter().filter(|segment| segment.payload.is_empty()).count() <= 7, "{sent:?}");
        assert!(self.script.connection.snd_nxt().wrapping_sub(before) <= 1 << 24, "it never goes back");
        for segment in sent.iter().filter(|segment| segment.flags.ack() && !segment.flags.rst()) {
            let offered = segment.ack.wrapping_add(u32::from(segment.window) << self.shift);
            if (offered.wrapping_sub(self.edge) as i32) > 0 {
                self.edge = offered;
            }
        }
    }
}

fn place(near: Near, next: u32, far: u32) -> u32 {
    match near {
        Near::Next(by) => next.wrapping_add_signed(by),
        Near::Far(by) => far.wrapping_add_signed(by),
        Near::Any(number) => number,
    }
}

const STATES: [State; 7] = [
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_segments_do_harm(
        setup in setup(),
        state in prop_oneof![2 => Just(State::Established), 1 => prop::sample::select(&STATES[..])],
        events in prop::collection::vec(event(), 1..60),
        abort: bool,
    ) {
        let mut victim = Victim::in_state(setup, state);
        events.iter().for_each(|event| victim.act(event));
        if abort {
            victim.act(&Event::Abort);
        }
        // Time alone brings it to rest or keeps it in the steps of its timers.
        for _ in 0..20 {
            let Some(due) = victim.script.poll_at() else { break };
            victim.script.now = due.max(victim.script.now + Duration::from_micros(1));
            victim.transmit(usize::MAX);
        }
        if abort {
            let connection = &victim.script.connection;
            prop_assert_eq!(connection.state() == State::TimeWait, !connection.is_closed());
        }
        victim.script.take(usize::MAX);
    }

    /// What is left of a connection answers each segment once at most, and never a reset.
    #[test]
    fn remains_do_no_harm(setup in setup(), abort: bool, events in prop::collection::vec(event(), 1..20)) {
        let mut victim = Victim::in_state(setup, if abort { State::FinWait2 } else { State::TimeWait });
        victim.act(&if abort { Event::Abort } else { Event::Acknowledge });
        victim.transmit(usize::MAX);
        let remains = victim.script.connection.remains().unwrap();
        for event in &events {
            let Event::Segment { seq, ack, flags, window, options, length } = event else { continue };
            let connection = &victim.script.connection;
            let (seq, ack) = (place(*seq, connection.rcv_nxt(), victim.edge), victim.ours(*ack));
            let (options, payload) = (victim.options(options), vec![1; *length]);
            let segment = Seg { seq, ack, flags: Flags::from_bits(*flags), window: *window, options, payload };
            let (h, _) = Seg::from_frame(&victim.script.frame(&segment));
            let mut sink = Sink::default();
            let answered = remains.answer(victim.script.now, &h, &h.envelope().reversed(), &mut sink);
            prop_assert_eq!(sink.frames.len(), usize::from(answered));
            prop_assert!(!(answered && h.flags.rst()));
            sink.frames.iter().for_each(|frame| drop(Seg::from_frame(frame)));
        }
    }
}
