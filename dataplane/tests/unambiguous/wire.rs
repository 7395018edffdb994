//! Frames, byte by byte: written here and not with the crate under test, so that both do not share a mistake.

use std::net::{IpAddr, SocketAddr};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A TCP segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub text: Vec<u8>,
}

impl Segment {
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// What it takes of the sequence space.
    pub fn length(&self) -> u32 {
        self.text.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// It has neither text nor FIN.
    pub fn is_bare(&self) -> bool {
        self.text.is_empty() && !self.has(FIN)
    }

    pub fn options(&self) -> Options {
        Options::parse(&self.options)
    }
}

/// The options that the two hosts know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<(u32, u32)>,
    pub sack: Vec<(u32, u32)>,
}

impl Options {
    pub fn parse(bytes: &[u8]) -> Self {
        let mut options = Self::default();
        let mut rest = bytes;
        while let [kind, tail @ ..] = rest {
            let length = match (kind, tail) {
                (0, _) => break,
                (1, _) => 1,
                (_, [length, ..]) if (2..=rest.len()).contains(&usize::from(*length)) => usize::from(*length),
                _ => break,
            };
            let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
            match (kind, length) {
                (2, 4) => options.mss = Some(u16::from_be_bytes([rest[2], rest[3]])),
                (3, 3) => options.window_scale = Some(rest[2].min(14)),
                (4, 2) => options.sack_permitted = true,
                (5, 10 | 18 | 26 | 34) => {
                    options.sack = (2..length).step_by(8).map(|at| (number(at), number(at + 4))).collect();
                }
                (8, 10) => options.timestamps = Some((number(2), number(6))),
                _ => {}
            }
            rest = &rest[length..];
        }
        options
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(mss) = self.mss {
            bytes.extend([2, 4]);
            bytes.extend(mss.to_be_bytes());
        }
        if self.sack_permitted {
            bytes.extend([1, 1, 4, 2]);
        }
        if let Some((value, echo)) = self.timestamps {
            bytes.extend([1, 1, 8, 10]);
            bytes.extend([value.to_be_bytes(), echo.to_be_bytes()].concat());
        }
        if let Some(shift) = self.window_scale {
            bytes.extend([1, 3, 3, shift]);
        }
        if !self.sack.is_empty() {
            bytes.extend([1, 1, 5, 2 + 8 * self.sack.len() as u8]);
            self.sack.iter().for_each(|(begin, end)| bytes.extend([begin.to_be_bytes(), end.to_be_bytes()].concat()));
        }
        bytes
    }
}

/// How a packet carries its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// 8-byte pieces between the IP header and TCP: IPv4 options, or so many IPv6 destination options headers.
    pub extra: usize,
    /// Offset in 8-byte units and "more fragments" of an IP fragment. With (0, false), IPv6 has an "atomic" fragment (RFC
    /// 6946), and IPv4 an unfragmented packet.
    pub fragment: Option<(u16, bool)>,
    /// What is wrong with it.
    pub damage: Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    None,
    /// The TCP checksum.
    TcpChecksum,
    /// The checksum of the IPv4 header; IPv6 has none: the TCP checksum there.
    IpChecksum,
    /// The TCP header's length is given as less than 20 bytes.
    ShortHeader,
    /// The TCP header's length is given as more than the packet has.
    LongHeader,
    /// The IP packet's length is given as more than the frame has.
    LongPacket,
    /// The IPv6 packet's length is given as 0, and a hop-by-hop header comes first.
    NoLength,
}

impl Default for Shape {
    fn default() -> Self {
        Self { hop_limit: 57, extra: 0, fragment: None, damage: Damage::None }
    }
}

/// A frame with this segment.
pub fn frame(source: SocketAddr, destination: SocketAddr, segment: &Segment, shape: &Shape) -> Vec<u8> {
    packet(source.ip(), destination.ip(), &tcp(source, destination, segment, shape), shape)
}

/// The segment in IP fragments that begin at the multiples of `piece` bytes.
pub fn fragments(source: SocketAddr, destination: SocketAddr, segment: &Segment, piece: usize) -> Vec<Vec<u8>> {
    assert!(piece.is_multiple_of(8));
    let bytes = tcp(source, destination, segment, &Shape::default());
    let pieces = bytes.chunks(piece).enumerate();
    let fragment = |(index, chunk): (usize, &[u8])| {
        let more = (index + 1) * piece < bytes.len();
        let shape = Shape { fragment: Some(((index * piece / 8) as u16, more)), ..Shape::default() };
        packet(source.ip(), destination.ip(), chunk, &shape)
    };
    pieces.map(fragment).collect()
}

fn tcp(source: SocketAddr, destination: SocketAddr, segment: &Segment, shape: &Shape) -> Vec<u8> {
    let mut options = segment.options.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    assert!(options.len() <= 40, "too many options: {options:02x?}");
    let mut tcp = Vec::new();
    tcp.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
    tcp.extend([segment.seq.to_be_bytes(), segment.ack.to_be_bytes()].concat());
    let header = match shape.damage {
        Damage::ShortHeader => 16,
        Damage::LongHeader => 60,
        _ => 20 + options.len(),
    };
    tcp.extend([(header / 4 * 16) as u8, segment.flags]);
    tcp.extend([segment.window.to_be_bytes(), [0; 2], segment.urgent.to_be_bytes()].concat());
    tcp.extend(options);
    tcp.extend(&segment.text);
    let sum = !folded(sum(&tcp) + pseudo_header(source.ip(), destination.ip(), tcp.len()));
    let v6_damage = shape.damage == Damage::IpChecksum && source.is_ipv6();
    let damaged = shape.damage == Damage::TcpChecksum || v6_damage;
    // Neither wrong by a carry only, nor the sum of the pseudo-header alone.
    let sum = if damaged { sum ^ 0x5a5a } else { sum };
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

fn packet(source: IpAddr, destination: IpAddr, payload: &[u8], shape: &Shape) -> Vec<u8> {
    let ethertype = if source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let mut frame = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], &ethertype[..]].concat();
    let beyond = if shape.damage == Damage::LongPacket { 1 } else { 0 };
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = 20 + 8 * shape.extra;
            assert!(length <= 60);
            let mut header = vec![0x40 + (length / 4) as u8, 0];
            header.extend(((length + payload.len() + beyond) as u16).to_be_bytes());
            header.extend([0x12, 0x34]);
            let (offset, more) = shape.fragment.unwrap_or((0, false));
            header.extend((offset + if more { 0x2000 } else { 0 }).to_be_bytes());
            header.extend([shape.hop_limit, TCP, 0, 0]);
            header.extend([source.octets(), destination.octets()].concat());
            header.resize(length, 1); // Option 1: no operation.
            let sum = !folded(sum(&header)) ^ if shape.damage == Damage::IpChecksum { 0x5a5a } else { 0 };
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let no_length = shape.damage == Damage::NoLength;
            let mut chain = if no_length { vec![HOP_BY_HOP] } else { vec![DESTINATION_OPTIONS; shape.extra] };
            chain.extend(shape.fragment.map(|_| FRAGMENT));
            chain.push(TCP);
            frame.extend([0x60, 0, 0, 0]);
            let length = 8 * (chain.len() - 1) + payload.len() + beyond;
            frame.extend(if no_length { [0; 2] } else { (length as u16).to_be_bytes() });
            frame.extend([chain[0], shape.hop_limit]);
            frame.extend([source.octets(), destination.octets()].concat());
            for pair in chain.windows(2) {
                let (offset, more) = shape.fragment.unwrap_or((0, false));
                match pair[0] {
                    FRAGMENT => {
                        frame.extend([pair[1], 0]);
                        frame.extend((offset * 8 + u16::from(more)).to_be_bytes());
                        frame.extend([0, 0, 0x12, 0x34]);
                    }
                    _ => frame.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]), // Option 1: padding.
                }
            }
        }
        _ => panic!("two address families"),
    }
    frame.extend(payload);
    frame
}

/// What a host's IP makes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A good segment, where it came from and where it goes to.
    Segment(SocketAddr, SocketAddr, Segment),
    /// A piece of a packet: its offset in bytes, whether more follow, and what is in it.
    Fragment(IpAddr, IpAddr, usize, bool, Vec<u8>),
    /// Nothing, because.
    Nothing(&'static str),
}

/// What a host does with a frame until it comes to its TCP.
pub fn receive(frame: &[u8]) -> Received {
    let packet = &frame[ETHERNET..];
    match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0800 => receive_ipv4(packet),
        0x86dd => receive_ipv6(packet),
        _ => Received::Nothing("not IP"),
    }
}

/// TTL or hop limit.
pub fn hop_limit(frame: &[u8]) -> u8 {
    let is_v4 = frame[ETHERNET] >> 4 == 4;
    frame[ETHERNET + if is_v4 { 8 } else { 7 }]
}

fn receive_ipv4(packet: &[u8]) -> Received {
    let header = usize::from(packet[0] & 15) * 4;
    let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if packet[0] >> 4 != 4 || header < 20 || end < header || end > packet.len() {
        return Received::Nothing("bad lengths in the IP header");
    }
    if folded(sum(&packet[..header])) != 0xffff {
        return Received::Nothing("bad IP checksum");
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let (source, destination, payload) = (address(12), address(16), &packet[header..end]);
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    if fragment & 0x3fff != 0 {
        let (offset, more) = (usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
        return Received::Fragment(source, destination, offset, more, payload.to_vec());
    }
    if packet[9] != TCP {
        return Received::Nothing("not TCP");
    }
    receive_tcp(source, destination, payload)
}

fn receive_ipv6(packet: &[u8]) -> Received {
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    // Linux leaves the length of what may be a jumbogram to its option, and is content when there is none.
    let end = if length == 0 && packet[6] == HOP_BY_HOP { packet.len() } else { 40 + length };
    if packet[0] >> 4 != 6 || end > packet.len() {
        return Received::Nothing("bad lengths in the IP header");
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let (source, destination) = (address(8), address(24));
    let (mut next, mut rest) = (packet[6], &packet[40..end]);
    loop {
        match next {
            TCP => return receive_tcp(source, destination, rest),
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING if rest.len() >= 8 => {
                let length = 8 + 8 * usize::from(rest[1]);
                if rest.len() < length {
                    return Received::Nothing("bad extension header");
                }
                (next, rest) = (rest[0], &rest[length..]);
            }
            FRAGMENT if rest.len() >= 8 => {
                let fragment = u16::from_be_bytes([rest[2], rest[3]]);
                (next, rest) = (rest[0], &rest[8..]);
                if fragment != 0 {
                    let (offset, more) = (usize::from(fragment & !7), fragment & 1 != 0);
                    return Received::Fragment(source, destination, offset, more, rest.to_vec());
                }
            }
            _ => return Received::Nothing("not TCP"),
        }
    }
}

/// What a host's TCP makes of a packet before it looks for the connection.
pub fn receive_tcp(source: IpAddr, destination: IpAddr, tcp: &[u8]) -> Received {
    if tcp.len() < 20 {
        return Received::Nothing("short TCP header");
    }
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < 20 || header > tcp.len() {
        return Received::Nothing("bad TCP header length");
    }
    if folded(sum(tcp) + pseudo_header(source, destination, tcp.len())) != 0xffff {
        return Received::Nothing("bad TCP checksum");
    }
    let short = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let long = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
    let segment = Segment {
        seq: long(4),
        ack: long(8),
        flags: tcp[13],
        window: short(14),
        urgent: short(18),
        options: tcp[20..header].to_vec(),
        text: tcp[header..].to_vec(),
    };
    Received::Segment(SocketAddr::new(source, short(0)), SocketAddr::new(destination, short(2)), segment)
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u32 {
    let octets = |address| match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    sum(&octets(source)) + sum(&octets(destination)) + u32::from(TCP) + length as u32
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |&low| u32::from(low))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
