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
const FRAGMENT: u8 = 44;
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
    /// The TCP header does not fit into its packet.
    #[error("the TCP header does not fit into its packet")]
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
    if header_length < TCP_HEADER || header_length > tcp.len() {
        return Err(ParseError::BadTcpHeader);
    }
    Ok(Parsed::Tcp(Headers {
        l2: L2Header::new(&frame[..transport.ip_offset]),
        ip_offset: transport.ip_offset,
        tcp_offset: transport.offset,
        payload_offset: transport.offset + header_length,
        end: transport.end,
        source: SocketAddr::new(transport.source, read_u16(tcp, 0)),
        destination: SocketAddr::new(transport.destination, read_u16(tcp, 2)),
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

/// What is or may be TCP in a frame of which [`parse`] makes no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concealed {
    /// Source address of the IP packet.
    pub source: IpAddr,
    /// Its destination address; with segments left in an IPv6 routing header, the next one.
    pub destination: IpAddr,
    /// Source and destination port, if the frame has them where a segment would.
    pub ports: Option<(u16, u16)>,
    /// It is an IP fragment, atomic ones (RFC 6946) included: only its receiver knows the segment.
    pub is_fragment: bool,
}

/// Finds TCP, or what may be TCP, in a frame of which [`parse`] makes no segment, be it for an error or not. A receiver may
/// be less strict and read a segment there. None: the frame is not IP, is cut before the end of its addresses, or carries
/// something else than TCP. Never panics.
///
/// Lengths that the packet gives are not believed here, but that of an IPv6 packet which gives none (0) conceals where it
/// ends. What is behind more IPv6 extension headers than we look behind may be TCP; what is behind AH or ESP (RFC 4302, RFC
/// 4303) is not, since only two hosts that share a key for it can talk that way.
pub fn find_concealed(frame: &[u8]) -> Option<Concealed> {
    let network = locate_network(frame).ok()?;
    let packet = &frame[network.offset..];
    match network.ethertype {
        ETHERTYPE_IPV4 => find_concealed_in_ipv4(packet),
        ETHERTYPE_IPV6 => find_concealed_in_ipv6(packet),
        _ => None,
    }
}

fn find_concealed_in_ipv4(packet: &[u8]) -> Option<Concealed> {
    if packet.len() < IPV4_HEADER || packet[0] >> 4 != 4 || packet[9] != PROTOCOL_TCP {
        return None;
    }
    let header_length = usize::from(packet[0] & 0x0f) * 4;
    let is_readable = header_length >= IPV4_HEADER;
    let is_fragment = is_readable && is_ipv4_fragment(packet);
    Some(Concealed {
        source: Ipv4Addr::from(read_u32(packet, 12)).into(),
        destination: Ipv4Addr::from(read_u32(packet, 16)).into(),
        ports: if is_readable && !is_fragment { ports(packet, header_length) } else { None },
        is_fragment,
    })
}

fn find_concealed_in_ipv6(packet: &[u8]) -> Option<Concealed> {
    if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
        return None;
    }
    let has_length = read_u16(packet, 4) != 0;
    let mut concealed = Concealed {
        source: ipv6_address(&packet[8..24]).into(),
        destination: ipv6_address(&packet[24..40]).into(),
        ports: None,
        is_fragment: false,
    };
    let (mut protocol, mut offset) = (packet[6], IPV6_HEADER);
    for extension_headers in 0.. {
        match protocol {
            PROTOCOL_TCP => {
                concealed.ports = if has_length { ports(packet, offset) } else { None };
                break;
            }
            FRAGMENT | HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {}
            _ => return None,
        }
        let Some(&[next, length]) = packet.get(offset..offset + 2) else { break };
        if protocol == FRAGMENT {
            // Each fragment says what the packet begins with, and the receiver believes the first (RFC 8200 §4.5).
            if !matches!(next, PROTOCOL_TCP | FRAGMENT | HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
                return None;
            }
            concealed.is_fragment = true;
            break;
        }
        if extension_headers == MAX_EXTENSION_HEADERS {
            break;
        }
        protocol = next;
        offset += 8 + usize::from(length) * 8;
    }
    Some(concealed)
}

/// The ports of a segment that begins at `offset`, if they are there.
fn ports(packet: &[u8], offset: usize) -> Option<(u16, u16)> {
    let ports = packet.get(offset..offset + 4)?;
    Some((read_u16(ports, 0), read_u16(ports, 2)))
}

/// The network packet in a frame.
struct Network {
    vlan: [u16; MAX_VLAN_TAGS],
    offset: usize,
    ethertype: u16,
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

/// Finds the network packet behind the VLAN tags.
fn locate_network(frame: &[u8]) -> Result<Network, ParseError> {
    if frame.len() < ETHERNET_HEADER {
        return Err(ParseError::Truncated);
    }
    let mut vlan = [0; MAX_VLAN_TAGS];
    let mut offset = ETHERNET_HEADER;
    let mut ethertype = read_u16(frame, 12);
    for id in &mut vlan {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        if frame.len() < offset + VLAN_TAG {
            return Err(ParseError::Truncated);
        }
        *id = read_u16(frame, offset) & 0x0fff;
        ethertype = read_u16(frame, offset + 2);
        offset += VLAN_TAG;
    }
    Ok(Network { vlan, offset, ethertype })
}

/// Finds the transport packet. None: no IP, a fragment, or something that we do not look into.
pub(super) fn locate_transport(frame: &[u8]) -> Result<Option<Transport>, ParseError> {
    let Network { vlan, offset: ip_offset, ethertype } = locate_network(frame)?;
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
    if is_ipv4_fragment(packet) {
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

/// More fragments, or an offset.
fn is_ipv4_fragment(packet: &[u8]) -> bool {
    read_u16(packet, 6) & 0x3fff != 0
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
