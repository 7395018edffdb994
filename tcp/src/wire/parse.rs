//! From a frame's bytes to [`Headers`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::checksum::ipv4_checksum_is_valid;
use super::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Flags, Headers, IPV4_HEADER,
    IPV6_HEADER, L2Header, MAX_VLAN_TAGS, PROTOCOL_TCP, TCP_HEADER, VLAN_TAG,
};

/// IPv6 extension headers that we look behind. More are no TCP of ours.
const MAX_EXTENSION_HEADERS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A TCP segment in one piece.
    Tcp(Headers),
    /// Not TCP, or a fragment, or something that we do not look into (a third VLAN tag, an IPv6 routing header with
    /// segments left): it belongs across and never to the tap.
    Other,
}

/// Why a frame that should be a TCP segment is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The frame ends before the packet that it carries.
    #[error("the frame ends before its packet does")]
    Truncated,
    /// An IP header contradicts itself: version, header length, total length.
    #[error("the IP header contradicts itself")]
    BadIpHeader,
    /// The checksum of an IPv4 header is wrong.
    #[error("the checksum of the IPv4 header is wrong")]
    BadIpChecksum,
    /// The TCP header does not fit into its packet, or a port is 0.
    #[error("the TCP header does not fit into its packet, or a port is 0")]
    BadTcpHeader,
}

impl ParseError {
    /// All of them, for counters.
    pub const ALL: [Self; 4] = [Self::Truncated, Self::BadIpHeader, Self::BadIpChecksum, Self::BadTcpHeader];

    /// A name for counters and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadIpHeader => "bad_ip_header",
            Self::BadIpChecksum => "bad_ip_checksum",
            Self::BadTcpHeader => "bad_tcp_header",
        }
    }
}

/// Parses a frame. The TCP checksum is not looked at (see [`super::verify_tcp_checksum`]). Never panics.
pub fn parse(frame: &[u8]) -> Result<Parsed, ParseError> {
    let Some(transport) = locate_transport(frame)? else { return Ok(Parsed::Other) };
    if transport.protocol != PROTOCOL_TCP {
        return Ok(Parsed::Other);
    }
    if transport.checked_ipv4 == Some(false) {
        return Err(ParseError::BadIpChecksum);
    }
    let tcp = &frame[transport.offset..transport.end];
    if tcp.len() < TCP_HEADER {
        return Err(ParseError::BadTcpHeader);
    }
    let header_length = usize::from(tcp[12] >> 4) * 4;
    let (source_port, destination_port) = (read_u16(tcp, 0), read_u16(tcp, 2));
    if header_length < TCP_HEADER || header_length > tcp.len() || source_port == 0 || destination_port == 0 {
        return Err(ParseError::BadTcpHeader);
    }
    Ok(Parsed::Tcp(Headers {
        l2: L2Header::new(&frame[..transport.ip_offset]),
        ip_offset: transport.ip_offset,
        tcp_offset: transport.offset,
        payload_offset: transport.offset + header_length,
        end: transport.end,
        source: SocketAddr::new(transport.source, source_port),
        destination: SocketAddr::new(transport.destination, destination_port),
        vlan: transport.vlan,
        seq: read_u32(tcp, 4),
        ack: read_u32(tcp, 8),
        flags: Flags::from_bits(tcp[13]),
        window: read_u16(tcp, 14),
        hop_limit: transport.hop_limit,
        traffic_class: transport.traffic_class,
        flow_label: transport.flow_label,
    }))
}

/// The transport packet in a frame.
pub(super) struct Transport {
    pub(super) vlan: [u16; MAX_VLAN_TAGS],
    pub(super) ip_offset: usize,
    pub(super) protocol: u8,
    pub(super) offset: usize,
    pub(super) end: usize,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    hop_limit: u8,
    traffic_class: u8,
    flow_label: u32,
    /// Whether the IPv4 header's checksum is right; None: IPv6.
    pub(super) checked_ipv4: Option<bool>,
}

/// How much of a packet has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Its beginning, as an ICMP error quotes it: [`Transport::end`] is where the quote ends, if the packet does not earlier.
    Beginning,
}

/// Finds the transport packet. None: no IP, a fragment, or something that we do not look into.
pub(super) fn locate_transport(frame: &[u8]) -> Result<Option<Transport>, ParseError> {
    if frame.len() < ETHERNET_HEADER {
        return Err(ParseError::Truncated);
    }
    let mut vlan = [0; MAX_VLAN_TAGS];
    let mut ip_offset = ETHERNET_HEADER;
    let mut ethertype = read_u16(frame, 12);
    for id in &mut vlan {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        if frame.len() < ip_offset + VLAN_TAG {
            return Err(ParseError::Truncated);
        }
        *id = read_u16(frame, ip_offset) & 0x0fff;
        ethertype = read_u16(frame, ip_offset + 2);
        ip_offset += VLAN_TAG;
    }
    let transport = match ethertype {
        ETHERTYPE_IPV4 => locate_in_ipv4(&frame[ip_offset..], Extent::Whole)?,
        ETHERTYPE_IPV6 => locate_in_ipv6(&frame[ip_offset..], Extent::Whole)?,
        _ => None,
    };
    Ok(transport.map(|found| Transport {
        vlan,
        ip_offset,
        offset: ip_offset + found.offset,
        end: ip_offset + found.end,
        ..found
    }))
}

/// Offsets are those in `packet`.
pub(super) fn locate_in_ipv4(packet: &[u8], extent: Extent) -> Result<Option<Transport>, ParseError> {
    if packet.len() < IPV4_HEADER {
        return Err(ParseError::Truncated);
    }
    let header_length = usize::from(packet[0] & 0x0f) * 4;
    let mut end = usize::from(read_u16(packet, 2));
    if packet[0] >> 4 != 4 || header_length < IPV4_HEADER || end < header_length {
        return Err(ParseError::BadIpHeader);
    }
    if end > packet.len() {
        if extent == Extent::Whole || header_length > packet.len() {
            return Err(ParseError::Truncated);
        }
        end = packet.len();
    }
    // More fragments, or an offset: a fragment.
    if read_u16(packet, 6) & 0x3fff != 0 {
        return Ok(None);
    }
    Ok(Some(Transport {
        vlan: [0; MAX_VLAN_TAGS],
        ip_offset: 0,
        protocol: packet[9],
        offset: header_length,
        end,
        source: Ipv4Addr::from(read_u32(packet, 12)).into(),
        destination: Ipv4Addr::from(read_u32(packet, 16)).into(),
        hop_limit: packet[8],
        traffic_class: packet[1],
        flow_label: 0,
        checked_ipv4: Some(ipv4_checksum_is_valid(&packet[..header_length])),
    }))
}

/// Offsets are those in `packet`.
pub(super) fn locate_in_ipv6(packet: &[u8], extent: Extent) -> Result<Option<Transport>, ParseError> {
    if packet.len() < IPV6_HEADER {
        return Err(ParseError::Truncated);
    }
    if packet[0] >> 4 != 6 {
        return Err(ParseError::BadIpHeader);
    }
    let mut end = IPV6_HEADER + usize::from(read_u16(packet, 4));
    if end > packet.len() {
        if extent == Extent::Whole {
            return Err(ParseError::Truncated);
        }
        end = packet.len();
    }
    let mut protocol = packet[6];
    let mut offset = IPV6_HEADER;
    let mut extension_headers = 0;
    while matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        if extension_headers == MAX_EXTENSION_HEADERS {
            return Ok(None);
        }
        extension_headers += 1;
        if offset + 8 > end {
            return Err(ParseError::BadIpHeader);
        }
        // RFC 8200 §4.4: with segments left, the destination is not the last one, nor the one in the checksum.
        if protocol == ROUTING && packet[offset + 3] != 0 {
            return Ok(None);
        }
        protocol = packet[offset];
        offset += 8 + usize::from(packet[offset + 1]) * 8;
        if offset > end {
            return Err(ParseError::BadIpHeader);
        }
    }
    Ok(Some(Transport {
        vlan: [0; MAX_VLAN_TAGS],
        ip_offset: 0,
        protocol,
        offset,
        end,
        source: ipv6_address(&packet[8..24]).into(),
        destination: ipv6_address(&packet[24..40]).into(),
        hop_limit: packet[7],
        traffic_class: (read_u16(packet, 0) >> 4) as u8,
        flow_label: read_u32(packet, 0) & 0x000f_ffff,
        checked_ipv4: None,
    }))
}

fn ipv6_address(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    octets.into()
}

/// The big-endian number at `at`.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian number at `at`.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
