//! The Internet checksum (RFC 1071) of IPv4 headers and of TCP and UDP with their pseudo-header.

use std::net::IpAddr;

use super::{Headers, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Transport, locate_transport, read_u16};

/// Where the checksum field is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum field is in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Length of a UDP header.
const UDP_HEADER: usize = 8;

/// What a TCP checksum field turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Right.
    Valid,
    /// The sum of the pseudo-header alone, not complemented: the sender is a socket of this machine that left the rest to
    /// a device (`CHECKSUM_PARTIAL`). Take it as valid only from devices that can deliver such frames.
    Partial,
    /// Wrong.
    Invalid,
}

/// Checks the TCP checksum of a parsed segment. Never panics if `h` was parsed from `frame`.
pub fn verify_tcp_checksum(frame: &[u8], h: &Headers) -> Checksum {
    let segment = &frame[h.tcp_offset..h.end];
    let pseudo = pseudo_header(h.source.ip(), h.destination.ip(), PROTOCOL_TCP, segment.len());
    if fold(pseudo + sum(segment)) == 0xffff {
        return Checksum::Valid;
    }
    if read_u16(segment, TCP_CHECKSUM) == fold(pseudo) { Checksum::Partial } else { Checksum::Invalid }
}

/// Completes the checksum of an unfragmented TCP or UDP packet whose field holds the sum of the pseudo-header alone. True if
/// it did. All other frames stay as they are. Never panics.
pub fn complete_partial_checksum(frame: &mut [u8]) -> bool {
    let Ok(Some(transport)) = locate_transport(frame) else { return false };
    let field = match transport.protocol {
        PROTOCOL_TCP => TCP_CHECKSUM,
        PROTOCOL_UDP => UDP_CHECKSUM,
        _ => return false,
    };
    let Transport { offset, end, source, destination, protocol, .. } = transport;
    let packet = &mut frame[offset..end];
    if packet.len() < field + 2 || (protocol == PROTOCOL_UDP && packet.len() < UDP_HEADER) {
        return false;
    }
    let pseudo = pseudo_header(source, destination, protocol, packet.len());
    // A complete checksum can have this value too; then everything sums to 0xffff, and it stays.
    if read_u16(packet, field) != fold(pseudo) || fold(pseudo + sum(packet)) == 0xffff {
        return false;
    }
    // The pseudo-header's sum in the field takes part, as `skb_checksum_help` of the kernel has it.
    let mut value = !fold(sum(packet));
    if value == 0 && protocol == PROTOCOL_UDP {
        value = 0xffff; // RFC 768: zero means "no checksum".
    }
    packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
    true
}

/// Writes the checksum of the TCP segment `segment` (header and payload) into its field.
pub(crate) fn fill_tcp_checksum(segment: &mut [u8], source: IpAddr, destination: IpAddr) {
    segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
    let value = !fold(pseudo_header(source, destination, PROTOCOL_TCP, segment.len()) + sum(segment));
    segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the header checksum of the IPv4 header `header`.
pub(crate) fn fill_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let value = !fold(sum(header));
    header[10..12].copy_from_slice(&value.to_be_bytes());
}

/// Whether an IPv4 header's checksum is right.
pub(super) fn ipv4_checksum_is_valid(header: &[u8]) -> bool {
    fold(sum(header)) == 0xffff
}

/// Whether the checksum of an ICMP message (RFC 792), or between IPv6 addresses of an ICMPv6 message (RFC 4443 §2.3), is
/// right. Both addresses are of one family.
pub(super) fn icmp_checksum_is_valid(message: &[u8], source: IpAddr, destination: IpAddr) -> bool {
    let pseudo = if source.is_ipv6() { pseudo_header(source, destination, PROTOCOL_ICMPV6, message.len()) } else { 0 };
    fold(pseudo + sum(message)) == 0xffff
}

/// The one's-complement sum of `bytes` as big-endian 16-bit words, not folded. An odd last byte is the high half of a word.
///
/// It adds 32-bit words in 64-bit accumulators: below 2^32 words nothing can overflow.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 4];
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = chunks.remainder().chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    // RFC 1071 §2(B): the sum is the same in either byte order but for a swap at the end.
    u64::from(u16::from_be(fold(total)))
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => sum(&source.octets()) + sum(&destination.octets()),
        _ => unreachable!("both addresses come from one IP header"),
    };
    addresses + u64::from(protocol) + length as u64
}

fn fold(mut sum: u64) -> u16 {
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn largest_packet_does_not_overflow() {
        assert_eq!(fold(sum(&[0xff; 65535])), naive(&[0xff; 65535]));
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fold(sum(&bytes)), naive(&bytes));
        }
    }
}
