//! Two ends in memory and in virtual time, and frames built without the crate under test.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of this")]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use tcp::time::{Duration, Instant};
use tcp::wire::{self, Checksum, Flags, Headers, L2Header, Parsed};
use tcp::{Connection, FrameSink, Options, Stack, State};

pub const MTU: usize = 1500;
pub const OPTIONS: Options = Options { receive_buffer: 64 * 1024, send_buffer: 64 * 1024 };

/// What a connection runs over.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub v6: bool,
    pub tags: usize,
}

pub const NETWORKS: [Network; 4] = [
    Network { v6: false, tags: 0 },
    Network { v6: false, tags: 1 },
    Network { v6: true, tags: 0 },
    Network { v6: true, tags: 2 },
];

impl Network {
    pub fn client(self) -> SocketAddr {
        if self.v6 { "[fd00:1::7]:40000".parse().unwrap() } else { "198.51.100.7:40000".parse().unwrap() }
    }

    pub fn server(self) -> SocketAddr {
        if self.v6 { "[fd00:2::9]:6379".parse().unwrap() } else { "203.0.113.9:6379".parse().unwrap() }
    }

    /// As frames towards the server have it.
    pub fn l2(self) -> L2Header {
        let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 7];
        for tag in 0..self.tags {
            bytes.extend(if self.tags == 2 && tag == 0 { [0x88, 0xa8] } else { [0x81, 0x00] });
            bytes.extend([0x60, 100 + tag as u8]);
        }
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        L2Header::from_bytes(&bytes).unwrap()
    }
}

/// Collects frames. New ones are full of rubbish, as reused ones are.
#[derive(Debug)]
pub struct Sink {
    pub frames: VecDeque<Vec<u8>>,
    pub room: usize,
    pub tells_room: bool,
}

impl Default for Sink {
    fn default() -> Self {
        Self { frames: VecDeque::new(), room: usize::MAX, tells_room: true }
    }
}

impl FrameSink for Sink {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.room = self.room.checked_sub(1)?;
        self.frames.push_back(vec![0xa5; length]);
        self.frames.back_mut().map(Vec::as_mut_slice)
    }

    fn room(&self) -> usize {
        if self.tells_room { self.room } else { usize::MAX }
    }
}

/// A segment as a test writes and reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seg {
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

pub fn seg(flags: Flags, seq: u32, ack: u32) -> Seg {
    Seg { seq, ack, flags, window: 8192, options: Vec::new(), payload: Vec::new() }
}

impl Seg {
    pub fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub fn to_frame(&self, l2: &L2Header, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(source.port().to_be_bytes());
        tcp.extend(destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let mut options = self.options.clone();
        options.resize(self.options.len().next_multiple_of(4).min(40), 0);
        tcp.extend([(((20 + options.len()) / 4) << 4) as u8, self.flags.bits()]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.extend(&self.payload);
        ip_frame(l2, source.ip(), destination.ip(), 6, 16, tcp)
    }

    pub fn from_frame(frame: &[u8]) -> (Headers, Self) {
        let Ok(Parsed::Tcp(h)) = wire::parse(frame) else { panic!("not a segment: {frame:02x?}") };
        assert_eq!(wire::verify_tcp_checksum(frame, &h), Checksum::Valid);
        assert_eq!(h.end, frame.len());
        let segment = Self {
            seq: h.seq,
            ack: h.ack,
            flags: h.flags,
            window: h.window,
            options: frame[h.tcp_offset + 20..h.payload_offset].to_vec(),
            payload: frame[h.payload_offset..h.end].to_vec(),
        };
        (h, segment)
    }
}

/// The checksum of RFC 1071, word by word.
pub fn naive_sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let sum = sum + (u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
        (sum & 0xffff) + (sum >> 16)
    })
}

pub fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend((length as u32).to_be_bytes());
    naive_sum(&bytes, 0)
}

/// A frame around a transport packet whose checksum field is at `field`.
pub fn ip_frame(
    l2: &L2Header,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    field: usize,
    mut packet: Vec<u8>,
) -> Vec<u8> {
    let sum = naive_sum(&packet, pseudo_sum(source, destination, protocol, packet.len()));
    packet[field..field + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
    let mut frame = l2.as_bytes().to_vec();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + packet.len() as u16).to_be_bytes());
            header.extend([0x12, 0x34, 0x40, 0, 57, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = naive_sum(&header, 0);
            header[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x60, 1, 2, 3]);
            frame.extend((packet.len() as u16).to_be_bytes());
            frame.extend([protocol, 57]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend(packet);
    frame
}

/// A connection whose peer is the test: it reads like a transcript.
pub struct Script {
    pub network: Network,
    pub now: Instant,
    pub stack: Stack,
    pub connection: Connection,
    pub sink: Sink,
}

pub const ISS: u32 = 0x1000_0000;
pub const IRS: u32 = 0x2000_0000;
pub const SYN: Flags = Flags::SYN;
pub const ACK: Flags = Flags::ACK;
pub const RST: Flags = Flags::RST;
pub const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
pub const FIN_ACK: Flags = Flags::FIN.with(Flags::ACK);
pub const PSH_ACK: Flags = Flags::PSH.with(Flags::ACK);
pub const RST_ACK: Flags = Flags::RST.with(Flags::ACK);

impl Script {
    /// Our end is the server's: it answers a SYN.
    pub fn passive(network: Network, options: &Options, iss: u32, syn: Seg) -> Self {
        let mut stack = Stack::new(7, MTU);
        let frame = syn.to_frame(&network.l2(), network.client(), network.server());
        let (h, _) = Seg::from_frame(&frame);
        let now = Instant::from_secs(1000);
        let connection = Connection::passive_open(&mut stack, now, &frame, &h, iss, options).unwrap();
        Self { network, now, stack, connection, sink: Sink::default() }
    }

    /// Our end is the server's, and the handshake is done. The peer has no window scale; its window is 8192.
    pub fn established(network: Network, options: &Options) -> Self {
        let mut script = Self::passive(network, options, ISS, seg(SYN, IRS, 0).options(&[2, 4, 5, 180]));
        let answers = script.transmit();
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].flags, answers[0].seq, answers[0].ack), (SYN_ACK, ISS, IRS + 1));
        script.receive(seg(ACK, IRS + 1, ISS + 1));
        assert_eq!(script.connection.state(), State::Established);
        script.silent();
        script
    }

    /// The peer sends a segment. Answers to it are returned by the next [`Self::transmit`].
    pub fn receive(&mut self, segment: Seg) {
        let (peer, us) = (self.connection.remote(), self.connection.local());
        self.receive_frame(segment.to_frame(&self.network.l2(), peer, us));
    }

    pub fn receive_frame(&mut self, mut frame: Vec<u8>) {
        let Ok(Parsed::Tcp(h)) = wire::parse(&frame) else { panic!("not a segment") };
        let Self { stack, connection, sink, now, .. } = self;
        connection.handle_segment(stack, *now, &mut frame, &h, &h.l2.reversed(), sink);
    }

    /// All that our end sends now.
    pub fn transmit(&mut self) -> Vec<Seg> {
        let Self { stack, connection, sink, now, network } = self;
        while connection.poll_transmit(stack, *now, &network.l2().reversed(), sink) {
            assert!(
                sink.frames.len() < 1000,
                "a connection that never stops: {:?}",
                Seg::from_frame(&sink.frames[998])
            );
        }
        let sent = sink.frames.drain(..).map(|frame| {
            let (h, segment) = Seg::from_frame(&frame);
            assert_eq!((h.source, h.destination), (connection.local(), connection.remote()));
            assert_eq!(h.l2, network.l2().reversed());
            segment
        });
        sent.collect()
    }

    pub fn silent(&mut self) {
        assert_eq!(self.transmit(), []);
    }

    /// Our end sends one segment.
    pub fn transmit_one(&mut self) -> Seg {
        let mut sent = self.transmit();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    pub fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    pub fn poll_at(&mut self) -> Option<Instant> {
        self.connection.poll_at(&mut self.stack, self.now)
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let peeked = self.connection.peek(&mut bytes);
        bytes.truncate(peeked);
        self.connection.consume(peeked);
        bytes
    }
}

/// One end of a pair.
pub struct End {
    pub stack: Stack,
    pub connection: Connection,
    pub l2: L2Header,
}

/// Two connections joined in memory: 0 opens, 1 answers.
pub struct Pair {
    pub ends: [End; 2],
    pub now: Instant,
    /// Frames on the way, with the end that they go to.
    pub wire: VecDeque<(usize, Vec<u8>)>,
    pub carried: usize,
}

impl Pair {
    pub fn open(network: Network, options: [&Options; 2], iss: [u32; 2]) -> Self {
        let now = Instant::from_secs(5);
        let mut stacks = [Stack::new(1, MTU), Stack::new(2, MTU)];
        let mut client =
            Connection::active_open(&mut stacks[0], now, network.client(), network.server(), iss[0], options[0])
                .unwrap();
        let mut sink = Sink::default();
        assert!(client.poll_transmit(&mut stacks[0], now, &network.l2(), &mut sink));
        assert!(!client.poll_transmit(&mut stacks[0], now, &network.l2(), &mut sink));
        let syn = sink.frames.pop_front().unwrap();
        let (h, segment) = Seg::from_frame(&syn);
        assert_eq!((segment.flags, segment.seq), (SYN, iss[0]));
        let server = Connection::passive_open(&mut stacks[1], now, &syn, &h, iss[1], options[1]).unwrap();
        let [first, second] = stacks;
        Self {
            ends: [
                End { stack: first, connection: client, l2: network.l2() },
                End { stack: second, connection: server, l2: network.l2().reversed() },
            ],
            now,
            wire: VecDeque::new(),
            carried: 0,
        }
    }

    /// Both ends send what they have; then all frames on the way that `passes` lets through arrive. True: something moved.
    pub fn step(&mut self, mut passes: impl FnMut(usize, usize, &Headers) -> bool) -> bool {
        let mut moved = false;
        for (from, end) in self.ends.iter_mut().enumerate() {
            let mut sink = Sink::default();
            while end.connection.poll_transmit(&mut end.stack, self.now, &end.l2, &mut sink) {
                assert!(sink.frames.len() < 10_000, "an end that never stops");
            }
            self.wire.extend(sink.frames.into_iter().map(|frame| (1 - from, frame)));
        }
        for _ in 0..self.wire.len() {
            let (to, mut frame) = self.wire.pop_front().unwrap();
            moved = true;
            let (h, _) = Seg::from_frame(&frame);
            let number = self.carried;
            self.carried += 1;
            if !passes(number, to, &h) {
                continue;
            }
            let end = &mut self.ends[to];
            let mut sink = Sink::default();
            end.connection.handle_segment(&mut end.stack, self.now, &mut frame, &h, &end.l2, &mut sink);
            self.wire.extend(sink.frames.into_iter().map(|frame| (1 - to, frame)));
        }
        moved
    }

    /// Steps without loss until nothing moves.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step(|_, _, _| true) {
                return;
            }
        }
        panic!("the two ends never come to rest");
    }

    /// Waits for the next deadline. False: there is none.
    pub fn sleep(&mut self) -> bool {
        let now = self.now;
        let deadlines = self.ends.iter_mut().filter_map(|end| end.connection.poll_at(&mut end.stack, now));
        let Some(next) = deadlines.min() else { return false };
        assert!(next > now, "nothing was sent, and yet something is due now");
        self.now = next;
        true
    }

    pub fn connections(&mut self) -> (&mut Connection, &mut Connection) {
        let [client, server] = &mut self.ends;
        (&mut client.connection, &mut server.connection)
    }
}
