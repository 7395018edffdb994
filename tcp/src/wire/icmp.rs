//! ICMP and ICMPv6 errors: what a router or host says about a TCP segment that it could not forward or deliver.

use std::net::SocketAddr;

use super::checksum::icmp_checksum_is_valid;
use super::parse::{Extent, locate_in_ipv4, locate_in_ipv6, locate_transport, read_u16, read_u32};
use super::{MAX_VLAN_TAGS, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP};

/// What stands before the quoted packet: type, code, checksum, and four bytes that depend on the type.
const ICMP_HEADER: usize = 8;
/// What an error must quote of a TCP header: ports and sequence number (RFC 792: "64 bits of the original datagram").
const QUOTED_TCP: usize = 8;

/// ICMP types (RFC 792). A redirect (5) says nothing about the segment.
const DESTINATION_UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// Code of "destination unreachable": fragmentation needed and DF set.
const FRAGMENTATION_NEEDED: u8 = 4;

/// ICMPv6 types (RFC 4443 §3).
const V6_DESTINATION_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;

/// No path has a smaller MTU: IPv4 (RFC 791, RFC 1191 §3) and IPv6 (RFC 8200 §5).
const IPV4_MIN_MTU: u32 = 68;
const IPV6_MIN_MTU: u32 = 1280;

/// MTUs that are common, from large to small (RFC 1191 table 7-1).
const PLATEAUS: [u32; 11] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, IPV4_MIN_MTU];

/// An ICMP error about a TCP segment. Anybody on the path, and many who are not, can send one: believe it only after its
/// sequence number was found to be outstanding (RFC 5927 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who had sent the segment. The error was sent to this address.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// VLAN ids of the error's frame, outermost first; 0 where there is no tag.
    pub vlan: [u16; MAX_VLAN_TAGS],
    /// SEG.SEQ of the segment.
    pub seq: u32,
    /// The segment's packet was too big, and this is the MTU of the next hop. IPv4 (RFC 1191): as stated, but at least 68;
    /// from a router that does not state it, the next plateau below the packet's length (§7.1). IPv6 (RFC 8201): as
    /// stated. None: the error is about something else.
    pub next_mtu: Option<u32>,
}

/// Finds the ICMP error (RFC 792) or ICMPv6 error (RFC 4443) about a TCP segment in a frame. None: it is something else, its
/// checksum is wrong, it quotes a fragment or less than the ports and the sequence number, it was not sent to the quoted
/// sender, or it says what must be discarded (RFC 8201 §4: an MTU below 1280). Never panics.
pub fn parse_icmp_error(frame: &[u8]) -> Option<IcmpError> {
    let transport = locate_transport(frame).ok()??;
    // A protocol number of the other family means nothing.
    let ipv4 = match (transport.protocol, transport.checked_ipv4) {
        (PROTOCOL_ICMP, Some(true)) => true,
        (PROTOCOL_ICMPV6, None) => false,
        _ => return None,
    };
    let message = &frame[transport.offset..transport.end];
    let (header, mut quote) = message.split_at_checked(ICMP_HEADER)?;
    let (kind, code) = (header[0], header[1]);
    let is_error = if ipv4 {
        matches!(kind, DESTINATION_UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
    } else {
        matches!(kind, V6_DESTINATION_UNREACHABLE | V6_PACKET_TOO_BIG | V6_TIME_EXCEEDED | V6_PARAMETER_PROBLEM)
    };
    if !is_error || !icmp_checksum_is_valid(message, transport.source, transport.destination) {
        return None;
    }
    // RFC 4884 §4: where there are extensions behind the quote, this is its length.
    let quoted = match kind {
        DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM if ipv4 => usize::from(header[5]) * 4,
        V6_DESTINATION_UNREACHABLE | V6_TIME_EXCEEDED if !ipv4 => usize::from(header[4]) * 8,
        _ => 0,
    };
    if quoted > 0 {
        quote = &quote[..quoted.min(quote.len())];
    }
    let locate = if ipv4 { locate_in_ipv4 } else { locate_in_ipv6 };
    let packet = locate(quote, Extent::Beginning).ok()??;
    let tcp = &quote[packet.offset..packet.end];
    if packet.protocol != PROTOCOL_TCP || tcp.len() < QUOTED_TCP || packet.source != transport.destination {
        return None;
    }
    let (source_port, destination_port) = (read_u16(tcp, 0), read_u16(tcp, 2));
    if source_port == 0 || destination_port == 0 {
        return None;
    }
    let next_mtu = match (ipv4, kind, code) {
        (true, DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED) => Some(match read_u16(header, 6) {
            0 => plateau_below(u32::from(read_u16(quote, 2))),
            stated => u32::from(stated).max(IPV4_MIN_MTU),
        }),
        (false, V6_PACKET_TOO_BIG, _) => Some(read_u32(header, 4)),
        _ => None,
    };
    if !ipv4 && next_mtu.is_some_and(|mtu| mtu < IPV6_MIN_MTU) {
        return None;
    }
    Some(IcmpError {
        source: SocketAddr::new(packet.source, source_port),
        destination: SocketAddr::new(packet.destination, destination_port),
        vlan: transport.vlan,
        seq: read_u32(tcp, 4),
        next_mtu,
    })
}

/// The largest plateau below the length of a packet that was too big.
fn plateau_below(length: u32) -> u32 {
    PLATEAUS.into_iter().find(|plateau| *plateau < length).unwrap_or(IPV4_MIN_MTU)
}
