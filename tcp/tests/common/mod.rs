//! Frames built without the crate under test, and a connection whose peer is a test.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of this")]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use tcp::handshake::Syn;
use tcp::time::{Duration, Instant};
use tcp::wire::{self, Checksum, Envelope, Flags, Headers, L2Header, Parsed, SynOptions, Timestamps};
use tcp::{Connection, FrameSink, Handshake, Options, Stack};

pub const MTU: usize = 1500;
/// The buffer that a connection begins with.
pub const BUFFER: Options = Options { receive_buffer: 64 * 1024 };
/// More segments than any connection sends at a time.
pub const TOO_MANY: usize = 10_000;

pub const SYN: Flags = Flags::SYN;
pub const ACK: Flags = Flags::ACK;
pub const RST: Flags = Flags::RST;
pub const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
pub const FIN_ACK: Flags = Flags::FIN.with(Flags::ACK);
pub const PSH_ACK: Flags = Flags::PSH.with(Flags::ACK);
pub const RST_ACK: Flags = Flags::RST.with(Flags::ACK);

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

    /// What our end's segments, which go to the client, are wrapped in.
    pub fn envelope(self) -> Envelope {
        let flow_label = if self.v6 { 0xa_bcde } else { 0 };
        Envelope { l2: self.l2().reversed(), hop_limit: 61, traffic_class: 0xb8, flow_label }
    }
}

/// Collects frames. New ones are full of rubbish, as reused ones are.
#[derive(Debug)]
pub struct Sink {
    pub frames: VecDeque<Vec<u8>>,
    /// Frames that are free.
    pub free: usize,
}

impl Default for Sink {
    fn default() -> Self {
        Self { frames: VecDeque::new(), free: usize::MAX }
    }
}

impl FrameSink for Sink {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.free = self.free.checked_sub(1)?;
        self.frames.push_back(vec![0xa5; length]);
        self.frames.back_mut().map(Vec::as_mut_slice)
    }
}

/// A segment as it is on the wire.
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
            options: h.options(frame).to_vec(),
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

/// What a handshake has led to.
#[derive(Clone, Debug)]
pub struct Setup {
    pub network: Network,
    pub mtu: usize,
    /// What the peer was shown as our end's, and what it has sent.
    pub ours: Syn,
    pub peers: Syn,
    pub rtt: Option<Duration>,
    pub options: Options,
    /// The peer waits for the ACK of its SYN.
    pub active: bool,
}

/// Numbers of which the first text crosses the unsigned wrap, and the signed one.
pub const ISS: u32 = u32::MAX - 2;
pub const IRS: u32 = i32::MAX as u32 - 2;

impl Default for Setup {
    /// A peer with SACK, without window scale and timestamps, which has answered within 100 ms: so the first retransmission
    /// timeout is 300 ms.
    fn default() -> Self {
        let options = SynOptions { mss: Some(1460), sack_permitted: true, ..SynOptions::default() };
        Self {
            network: NETWORKS[0],
            mtu: MTU,
            ours: Syn { seq: ISS, window: u16::MAX, options },
            peers: Syn { seq: IRS, window: u16::MAX, options },
            rtt: Some(Duration::from_millis(100)),
            options: BUFFER,
            active: false,
        }
    }
}

impl Setup {
    pub fn on(network: Network) -> Self {
        Self { network, ..Self::default() }
    }

    /// Both ends offer these shifts; None: it offers none.
    #[must_use]
    pub fn scales(mut self, ours: Option<u8>, peers: Option<u8>) -> Self {
        (self.ours.options.window_scale, self.peers.options.window_scale) = (ours, peers);
        self
    }

    /// Both ends use timestamps, and have shown these values.
    #[must_use]
    pub fn timestamps(mut self, ours: u32, peers: u32) -> Self {
        self.ours.options.timestamps = Some(Timestamps { value: ours, echo: 0 });
        self.peers.options.timestamps = Some(Timestamps { value: peers, echo: ours });
        self
    }

    /// The peer knows no SACK.
    #[must_use]
    pub fn without_sack(mut self) -> Self {
        self.peers.options.sack_permitted = false;
        self
    }

    /// Our end is the server's.
    pub fn handshake(&self) -> Handshake {
        let (local, remote) = (self.network.server(), self.network.client());
        Handshake { local, remote, ours: self.ours, peers: self.peers, rtt: self.rtt }
    }
}

/// A connection whose peer is the test.
pub struct Script {
    pub setup: Setup,
    pub now: Instant,
    pub stack: Stack,
    pub connection: Connection,
    pub sink: Sink,
}

impl Script {
    pub fn new(setup: Setup) -> Self {
        let mut stack = Stack::new(7, setup.mtu);
        let now = Instant::from_secs(1000);
        let open = if setup.active { Connection::active_open } else { Connection::passive_open };
        let connection = open(&mut stack, now, &setup.handshake(), &setup.options).unwrap();
        Self { setup, now, stack, connection, sink: Sink::default() }
    }

    /// A segment of the peer as a frame.
    pub fn frame(&self, segment: &Seg) -> Vec<u8> {
        segment.to_frame(&self.setup.network.l2(), self.connection.remote(), self.connection.local())
    }

    /// The peer sends a segment.
    pub fn receive(&mut self, segment: &Seg) {
        self.receive_frame(self.frame(segment));
    }

    pub fn receive_frame(&mut self, mut frame: Vec<u8>) {
        let Ok(Parsed::Tcp(h)) = wire::parse(&frame) else { panic!("not a segment") };
        self.connection.handle_segment(&mut self.stack, self.now, &mut frame, &h);
    }

    /// All that our end sends now.
    pub fn transmit(&mut self) -> Vec<Seg> {
        let Self { stack, connection, sink, now, setup } = self;
        let envelope = setup.network.envelope();
        while connection.poll_transmit(stack, *now, &envelope, sink) {
            assert!(sink.frames.len() < TOO_MANY, "a connection that never stops");
        }
        if let Some(due) = connection.poll_at(*now) {
            assert!(due > *now, "a caller would spin");
        }
        let (ends, mtu) = ((connection.local(), connection.remote()), stack.mtu());
        let read = |frame: Vec<u8>| {
            let (h, segment) = Seg::from_frame(&frame);
            assert!(frame.len() <= mtu + envelope.l2.len(), "more than the path carries");
            assert_eq!(((h.source, h.destination), h.envelope()), (ends, envelope));
            segment
        };
        sink.frames.drain(..).map(read).collect()
    }

    pub fn poll_at(&self) -> Option<Instant> {
        self.connection.poll_at(self.now)
    }

    /// Takes up to `length` bytes from the receive queue.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.min(self.connection.receive_queue())];
        let peeked = self.connection.peek(&mut bytes);
        assert_eq!(peeked, bytes.len());
        self.connection.consume(peeked);
        bytes
    }
}
