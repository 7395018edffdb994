//! Transcripts as text, in the manner of packetdrill: an event a line.
//!
//! ```text
//! +30  < P. 1:6 ack 1 win 500     30 ms later, the peer sends
//!      > . 1 ack 6                we send; not earlier, and nothing before it
//! ```
//! A segment is its flags (`.` is ACK), its first sequence number, after a colon the number behind its text, and as needed `ack`,
//! `win` (65535 if the peer does not say), `ts` value/echo, `sack` blocks. Numbers count from the SYN of their sender, which is 0.
//! What is said of our segments must be so; SACK blocks that are not named must not be there. The text of each number is known,
//! and always checked.
//!
//! Successive events without `>` between are one batch: we send when it is asked what we send, and before time passes.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use tcp::time::Duration;
use tcp::wire::{Flags, OptionWriter, SegmentOptions, Timestamps};
use tcp::{Remains, State};

use crate::common::{Script, Seg, Setup};

/// A script, and how far it has come.
pub struct Transcript {
    script: Script,
    sent: VecDeque<Packet>,
    /// Numbers behind the text that was queued, and that was read.
    queued: u32,
    read: u32,
    remains: Option<Remains>,
}

impl Deref for Transcript {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.script
    }
}

impl DerefMut for Transcript {
    fn deref_mut(&mut self) -> &mut Script {
        &mut self.script
    }
}

impl Transcript {
    /// Of a connection that has just opened.
    pub fn new(setup: Setup) -> Self {
        Self { script: Script::new(setup), sent: VecDeque::new(), queued: 1, read: 1, remains: None }
    }

    /// Plays events.
    #[track_caller]
    pub fn play(&mut self, events: &str) {
        for line in events.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (wait, event) = match line.strip_prefix('+') {
                Some(rest) => rest.split_once(' ').unwrap_or((rest, "")),
                None => ("0", line),
            };
            if wait != "0" {
                self.pass(wait.parse().expect("milliseconds"), line);
            }
            self.event(event.trim(), line);
        }
        self.rest("the end");
    }

    /// Only the peer sends, whatever we say to it.
    pub fn peer(&mut self, segment: &str) {
        self.receive(&Packet::parse(segment));
    }

    /// Time passes in silence.
    #[track_caller]
    fn pass(&mut self, millis: f64, line: &str) {
        self.rest(line);
        let until = self.now + Duration::from_micros((millis * 1000.0) as u64);
        while let Some(due) = self.poll_at().filter(|&due| due < until) {
            self.now = due;
            self.rest(line);
        }
        self.now = until;
    }

    /// Nothing is to be sent now.
    #[track_caller]
    fn rest(&mut self, line: &str) {
        if self.sent.is_empty() {
            self.transmit();
        }
        self.expect_nothing(line);
    }

    #[track_caller]
    fn expect_nothing(&self, line: &str) {
        assert!(self.sent.is_empty(), "before `{line}`, at {}, we send {:?}", self.now, self.sent);
    }

    #[track_caller]
    fn event(&mut self, event: &str, line: &str) {
        let (name, rest) = event.split_once(' ').unwrap_or((event, ""));
        if name == ">" {
            return self.expect(&Packet::parse(rest), line);
        }
        self.expect_nothing(line);
        let number = || rest.parse::<u32>().unwrap_or_else(|_| panic!("a number: {line}"));
        match name {
            "" => {}
            "<" => self.receive(&Packet::parse(rest)),
            "send" => self.send(number()),
            "read" => self.read(number()),
            "finish" => self.connection.finish(),
            "abort" => self.connection.abort(),
            "probe" => self.connection.send_probe(),
            "acknowledge" => self.connection.acknowledge(),
            "frames" => self.sink.free = number() as usize,
            "is" => assert_eq!(format!("{:?}", self.connection.state()), rest),
            "bury" => self.remains = Some(self.connection.remains().expect("something is to be kept")),
            _ => panic!("what is `{line}`?"),
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &Packet, line: &str) {
        if self.sent.is_empty() {
            self.transmit();
        }
        let Some(sent) = self.sent.pop_front() else {
            panic!("nothing is sent: `{line}`; the next deadline is {:?}, now is {}", self.poll_at(), self.now);
        };
        assert!(expected.is(&sent), "we send `{sent:?}`, not `{line}`; then {:?}", self.sent);
    }

    fn transmit(&mut self) {
        if self.remains.is_none() {
            let sent = self.script.transmit();
            self.sent.extend(sent.iter().map(|segment| Packet::ours(segment, &self.script.setup)));
        }
    }

    fn receive(&mut self, packet: &Packet) {
        let segment = packet.of_the_peer(&self.setup);
        let Some(remains) = self.remains else { return self.script.receive(&segment) };
        let (h, _) = Seg::from_frame(&self.frame(&segment));
        let Script { now, setup, sink, .. } = &mut self.script;
        let answers = remains.answer(*now, &h, &setup.network.envelope(), sink);
        let sent: Vec<_> = sink.frames.drain(..).map(|frame| Seg::from_frame(&frame).1).collect();
        assert_eq!(answers, !sent.is_empty());
        self.sent.extend(sent.iter().map(|segment| Packet::ours(segment, &self.script.setup)));
    }

    /// Queues all of `length` bytes.
    #[track_caller]
    fn send(&mut self, length: u32) {
        let bytes = text(self.queued, length);
        assert_eq!(self.connection.send(&bytes), bytes.len());
        self.queued += length;
    }

    /// Reads exactly `length` bytes.
    #[track_caller]
    fn read(&mut self, length: u32) {
        assert!(self.take(length as usize) == text(self.read, length), "not the text from {} on", self.read);
        self.read += length;
    }
}

/// A segment a line: the text of `range` in pieces of `each` bytes.
pub fn lines(before: &str, range: Range<u32>, each: usize, behind: &str) -> String {
    let line = |begin: u32| format!("{before} {begin}:{} {behind}\n", range.end.min(begin + each as u32));
    range.clone().step_by(each).map(line).collect()
}

/// All states, and a transcript of a connection in each; then our next number, and the peer's.
pub fn in_every_state(setup: &Setup) -> impl Iterator<Item = (State, Transcript, u32, u32)> {
    [
        (State::Established, "", 1, 1),
        (State::FinWait1, "finish\n > F. 1 ack 1", 2, 1),
        (State::FinWait2, "finish\n > F. 1 ack 1\n < . 1 ack 2", 2, 1),
        (State::CloseWait, "< F. 1 ack 1\n > . 1 ack 2", 1, 2),
        (State::Closing, "finish\n > F. 1 ack 1\n < F. 1 ack 1\n > . 2 ack 2", 2, 2),
        (State::LastAck, "< F. 1 ack 1\n > . 1 ack 2\n finish\n > F. 1 ack 2", 2, 2),
        (State::TimeWait, "finish\n > F. 1 ack 1\n < F. 1 ack 2\n > . 2 ack 2", 2, 2),
    ]
    .into_iter()
    .map(|(state, events, ours, theirs)| {
        let mut script = Transcript::new(setup.clone());
        script.play(events);
        assert_eq!(script.connection.state(), state);
        (state, script, ours, theirs)
    })
}

/// The text of `length` numbers from `seq` on.
pub fn text(seq: u32, length: u32) -> Vec<u8> {
    (0..length).map(|at| (seq.wrapping_add(at).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A segment as a transcript has it.
#[derive(Clone, Default)]
struct Packet {
    flags: u8,
    seq: u32,
    length: u32,
    ack: Option<u32>,
    window: Option<u16>,
    stamp: Option<(u32, u32)>,
    sack: Vec<(u32, u32)>,
}

/// By the bits of a header.
const FLAGS: &str = "FSRP.UEW";

impl Packet {
    fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let bit = |flag| 1 << FLAGS.find(flag).unwrap_or_else(|| panic!("a flag: {line}"));
        let flags = words.next().expect("flags").chars().filter(|&flag| flag != '-').map(bit).sum();
        let (seq, end) = range(words.next().expect("a sequence number"));
        let mut packet = Self { flags, seq, length: end.wrapping_sub(seq), ..Self::default() };
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("a value: {line}"));
            match word {
                "ack" => packet.ack = Some(number(value())),
                "win" => packet.window = Some(number(value()) as u16),
                "ts" => packet.stamp = value().split_once('/').map(|(value, echo)| (number(value), number(echo))),
                "sack" => packet.sack = words.by_ref().map(range).collect(),
                _ => panic!("what is `{word}` in `{line}`?"),
            }
        }
        packet
    }

    /// A segment that we have sent.
    fn ours(segment: &Seg, setup: &Setup) -> Self {
        let theirs = |number: u32| number.wrapping_sub(setup.peers.seq);
        let options = SegmentOptions::parse(&segment.options);
        let seq = segment.seq.wrapping_sub(setup.ours.seq);
        let length = segment.payload.len() as u32;
        assert!(segment.payload == text(seq, length), "not the text from {seq} on");
        Self {
            flags: segment.flags.bits(),
            seq,
            length,
            ack: segment.flags.ack().then(|| theirs(segment.ack)),
            window: Some(segment.window),
            stamp: options.timestamps.map(|stamp| (stamp.value, stamp.echo)),
            sack: options.sack.iter().map(|&(left, right)| (theirs(left), theirs(right))).collect(),
        }
    }

    /// As the peer sends it.
    fn of_the_peer(&self, setup: &Setup) -> Seg {
        let ours = |number: u32| number.wrapping_add(setup.ours.seq);
        let mut options = OptionWriter::default();
        self.stamp.into_iter().for_each(|(value, echo)| options.timestamps(Timestamps { value, echo }));
        options.sack(self.sack.iter().map(|&(left, right)| (ours(left), ours(right))));
        Seg {
            seq: self.seq.wrapping_add(setup.peers.seq),
            ack: self.ack.map_or(0, ours),
            flags: Flags::from_bits(self.flags),
            window: self.window.unwrap_or(u16::MAX),
            options: options.as_bytes().to_vec(),
            payload: text(self.seq, self.length),
        }
    }

    /// All that is said of it is true of `sent`.
    fn is(&self, sent: &Self) -> bool {
        (self.flags, self.seq, self.length, self.ack) == (sent.flags, sent.seq, sent.length, sent.ack)
            && self.sack == sent.sack
            && (self.window.is_none() || self.window == sent.window)
            && (self.stamp.is_none() || self.stamp == sent.stamp)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        FLAGS
            .chars()
            .enumerate()
            .filter(|(bit, _)| self.flags & 1 << bit != 0)
            .try_for_each(|(_, c)| write!(f, "{c}"))?;
        write!(f, " {}", self.seq)?;
        if self.length > 0 {
            write!(f, ":{}", self.seq.wrapping_add(self.length))?;
        }
        self.ack.iter().try_for_each(|ack| write!(f, " ack {ack}"))?;
        self.window.iter().try_for_each(|window| write!(f, " win {window}"))?;
        self.stamp.iter().try_for_each(|(value, echo)| write!(f, " ts {value}/{echo}"))?;
        self.sack
            .iter()
            .enumerate()
            .try_for_each(|(at, (left, right))| write!(f, "{}{left}:{right}", if at == 0 { " sack " } else { " " }))
    }
}

/// `a:b`, or `a` alone for nothing at `a`.
fn range(word: &str) -> (u32, u32) {
    let (begin, end) = word.split_once(':').unwrap_or((word, word));
    (number(begin), number(end))
}

/// Below 0: before the SYN.
fn number(word: &str) -> u32 {
    word.parse::<i64>().unwrap_or_else(|_| panic!("not a number: {word}")) as u32
}
