//! Ethernet, IP and TCP headers as bytes: parse, build, checksums; and ICMP errors about segments. Addresses are those of
//! `std::net`.
//!
//! [`parse`] looks at a frame once; the [`Headers`] that it returns cannot point outside of that frame. Nothing here panics
//! on any bytes.

mod build;
mod checksum;
mod icmp;
mod options;
mod parse;

use std::fmt;
use std::net::SocketAddr;

pub(crate) use build::write_ip_header;
pub use build::{Segment, build_rst, build_segment, reset_for};
pub use checksum::{Checksum, complete_partial_checksum, verify_tcp_checksum};
pub(crate) use checksum::{fill_ipv4_checksum, fill_tcp_checksum};
pub use icmp::{IcmpError, parse_icmp_error};
pub(crate) use options::{KIND_MSS, Walk};
pub use options::{MAX_SACK_BLOCKS, OptionWriter, SackBlock, SegmentOptions, SynOptions, Timestamps};
pub use parse::{Concealed, ParseError, Parsed, find_concealed, parse};
use parse::{Transport, locate_transport};
pub(crate) use parse::{read_u16, read_u32};

/// Ethernet header without tags: two addresses and the EtherType.
pub const ETHERNET_HEADER: usize = 14;
/// One VLAN tag (IEEE 802.1Q).
pub const VLAN_TAG: usize = 4;
/// VLAN tags that we look behind.
pub const MAX_VLAN_TAGS: usize = 2;
/// IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;
/// TCP header without options.
pub const TCP_HEADER: usize = 20;

/// The two bits of ECN in a traffic class (RFC 3168 §5).
pub(crate) const ECN_BITS: u8 = 0b11;
const MAX_L2_HEADER: usize = ETHERNET_HEADER + MAX_VLAN_TAGS * VLAN_TAG;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// An Ethernet header with its VLAN tags, up to and including the EtherType of the payload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct L2Header {
    bytes: [u8; MAX_L2_HEADER],
    length: u8,
}

impl L2Header {
    /// From the start of a frame up to and including the EtherType of the payload. None: `bytes` is not 14, 18 or 22 long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        matches!(bytes.len(), 14 | 18 | 22).then(|| Self::new(bytes))
    }

    /// `bytes` is 14, 18 or 22 long.
    fn new(bytes: &[u8]) -> Self {
        let mut header = Self { bytes: [0; MAX_L2_HEADER], length: bytes.len() as u8 };
        header.bytes[..bytes.len()].copy_from_slice(bytes);
        header
    }

    /// The header as it is on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// Its length: 14, 18 or 22 bytes.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// The same header with the two addresses exchanged: for an answer.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = *self;
        reversed.bytes[..6].copy_from_slice(&self.bytes[6..12]);
        reversed.bytes[6..12].copy_from_slice(&self.bytes[..6]);
        reversed
    }
}

impl Default for L2Header {
    /// All zero, without tags.
    fn default() -> Self {
        Self::new(&[0; ETHERNET_HEADER])
    }
}

impl fmt::Debug for L2Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L2Header({:02x?})", self.as_bytes())
    }
}

/// What a segment is wrapped in: the headers below TCP, as far as they are not addresses. A side's segments carry those that
/// the host across has sent last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The Ethernet header, tags included.
    pub l2: L2Header,
    /// Time to live (IPv4) or hop limit (IPv6).
    pub hop_limit: u8,
    /// DSCP in the upper six bits; the two bits of ECN are 0.
    pub traffic_class: u8,
    /// The flow label of IPv6; 0 for IPv4.
    pub flow_label: u32,
}

impl Envelope {
    /// The same on the way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { l2: self.l2.reversed(), ..*self }
    }
}

/// The control bits of a TCP header (RFC 9293 §3.1), without the reserved ones.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// From the byte of the header.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte of the header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// All of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// RST is set.
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// PSH is set.
    pub const fn psh(self) -> bool {
        self.contains(Self::PSH)
    }

    /// ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// URG is set.
    pub const fn urg(self) -> bool {
        self.contains(Self::URG)
    }

    /// ECE is set.
    pub const fn ece(self) -> bool {
        self.contains(Self::ECE)
    }

    /// CWR is set.
    pub const fn cwr(self) -> bool {
        self.contains(Self::CWR)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut separator = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 & 1 << bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if self.0 == 0 { f.write_str("-") } else { Ok(()) }
    }
}

/// The parsed headers of a TCP segment. Offsets are in bytes from the start of the frame; each is at most the next one,
/// and `end` is at most the frame's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The Ethernet header, tags included.
    pub l2: L2Header,
    /// Where the IP header begins.
    pub ip_offset: usize,
    /// Where the TCP header begins.
    pub tcp_offset: usize,
    /// Where the segment's text begins.
    pub payload_offset: usize,
    /// Where the IP packet ends; Ethernet padding is beyond.
    pub end: usize,
    /// Address and port of the sender.
    pub source: SocketAddr,
    /// Address and port of the receiver.
    pub destination: SocketAddr,
    /// VLAN ids, outermost first; 0 where there is no tag.
    pub vlan: [u16; MAX_VLAN_TAGS],
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK; without meaning if the ACK flag is not set.
    pub ack: u32,
    /// The control bits.
    pub flags: Flags,
    /// The window field, not scaled.
    pub window: u16,
    /// Time to live (IPv4) or hop limit (IPv6).
    pub hop_limit: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// The flow label of IPv6; 0 for IPv4.
    pub flow_label: u32,
}

impl Headers {
    /// What the segment is wrapped in. Congestion marks are not part of it: we do not take part in ECN.
    pub fn envelope(&self) -> Envelope {
        let Self { l2, hop_limit, traffic_class, flow_label, .. } = *self;
        Envelope { l2, hop_limit, traffic_class: traffic_class & !ECN_BITS, flow_label }
    }

    /// The bytes of the TCP options. `frame`: the one that the headers were parsed from.
    pub fn options<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        &frame[self.tcp_offset + TCP_HEADER..self.payload_offset]
    }

    /// Bytes of text in the segment.
    pub fn payload_len(&self) -> usize {
        self.end - self.payload_offset
    }

    /// SEG.LEN: text, SYN and FIN (RFC 9293 §3.4).
    pub fn segment_len(&self) -> u32 {
        self.payload_len() as u32 + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }
}
