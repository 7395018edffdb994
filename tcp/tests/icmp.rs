//! ICMP and ICMPv6 errors: which are taken, what they say, and which are not.

mod common;

use common::*;
use proptest::prelude::*;
use tcp::wire::{IcmpError, parse_icmp_error};

const SEQ: u32 = 0x0102_0304;
const VLANS: [[u16; 2]; 3] = [[0, 0], [100, 0], [100, 101]];

/// The packet of a segment from the client, without its Ethernet header.
fn packet(network: Network) -> Vec<u8> {
    let frame = seg(PSH_ACK, SEQ, 7).with(&[b'x'; 100]).to_frame(&network.l2(), network.client(), network.server());
    frame[network.l2().len()..].to_vec()
}

/// An error to the client. `kind`: type and code; `rest`: the last four bytes of the ICMP header.
fn error(network: Network, kind: (u8, u8), rest: [u8; 4], quote: &[u8]) -> Vec<u8> {
    let message = [&[kind.0, kind.1, 0, 0], &rest[..], quote].concat();
    let (router, client) = (network.server().ip(), network.client().ip());
    let l2 = network.l2().reversed();
    if network.v6 {
        return ip_frame(&l2, router, client, 58, 2, message);
    }
    // The checksum of ICMP is without a pseudo-header.
    let mut frame = ip_frame(&l2, router, client, 1, 2, message);
    set_checksum(&mut frame, l2.len() + 20, 2);
    frame
}

/// Writes the checksum at `start + field` over all from `start` on.
fn set_checksum(bytes: &mut [u8], start: usize, field: usize) {
    bytes[start + field..start + field + 2].fill(0);
    let sum = naive_sum(&bytes[start..], 0);
    bytes[start + field..start + field + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
}

/// What is expected of an error about [`packet`].
fn about(network: Network, next_mtu: Option<u32>) -> Option<IcmpError> {
    let (source, destination) = (network.client(), network.server());
    Some(IcmpError { source, destination, vlan: VLANS[network.tags], seq: SEQ, next_mtu })
}

/// Where the TCP header is in [`packet`].
fn tcp_offset(network: Network) -> usize {
    if network.v6 { 40 } else { 20 }
}

#[test]
fn errors_of_all_types() {
    for network in NETWORKS {
        let quote = packet(network);
        for kind in 0..=255 {
            for code in [0, 1, 3, 4, 5] {
                // An MTU of 1400; for the other types a pointer, or unused.
                let rest = [0, 0, 5, 120];
                let next_mtu =
                    if network.v6 { (kind == 2).then_some(1400) } else { (kind == 3 && code == 4).then_some(1400) };
                let taken = if network.v6 { (1..=4).contains(&kind) } else { [3, 4, 11, 12].contains(&kind) };
                let expected = if taken { about(network, next_mtu) } else { None };
                let frame = error(network, (kind, code), rest, &quote);
                assert_eq!(parse_icmp_error(&frame), expected, "{network:?}: type {kind}, code {code}");
            }
        }
    }
}

#[test]
fn a_quote_may_end_behind_the_sequence_number_and_not_before() {
    for network in NETWORKS {
        let (kind, rest) = if network.v6 { ((2, 0), [0, 0, 5, 120]) } else { ((3, 4), [0, 0, 5, 120]) };
        let quote = packet(network);
        for length in 0..quote.len() {
            let frame = error(network, kind, rest, &quote[..length]);
            let enough = length >= tcp_offset(network) + 8;
            let expected = if enough { about(network, Some(1400)) } else { None };
            assert_eq!(parse_icmp_error(&frame), expected, "{network:?}: {length} bytes");
        }
        let frame = error(network, kind, rest, &quote);
        for length in 0..frame.len() {
            assert_eq!(parse_icmp_error(&frame[..length]), None, "{network:?}: a frame of {length} bytes");
        }
    }
}

#[test]
fn a_changed_bit_is_no_error() {
    for network in NETWORKS {
        let frame = error(network, (3, 0), [0; 4], &packet(network));
        let start = network.l2().len() + tcp_offset(network);
        for at in start..frame.len() {
            let mut frame = frame.clone();
            frame[at] ^= 0x10;
            assert_eq!(parse_icmp_error(&frame), None, "{network:?}: byte {at}");
        }
    }
    // Nor is one whose IPv4 header is damaged: its time to live.
    let network = NETWORKS[0];
    let mut frame = error(network, (3, 0), [0; 4], &packet(network));
    frame[network.l2().len() + 8] ^= 1;
    assert_eq!(parse_icmp_error(&frame), None);
}

#[test]
fn next_hop_mtu_of_ipv4() {
    let network = NETWORKS[1];
    // (total length of the quoted packet, stated MTU, what comes of it); the plateaus are those of RFC 1191.
    let cases: [(u16, u16, u32); 14] = [
        (1500, 1400, 1400),
        (1500, 65535, 65535),
        (1500, 68, 68),
        (1500, 67, 68),
        (1500, 1, 68),
        (65535, 0, 32000),
        (32001, 0, 32000),
        (32000, 0, 17914),
        (9000, 0, 8166),
        (1500, 0, 1492),
        (1492, 0, 1006),
        (296, 0, 68),
        (69, 0, 68),
        (40, 0, 68),
    ];
    for (length, stated, expected) in cases {
        let mut quote = packet(network);
        quote[2..4].copy_from_slice(&length.to_be_bytes());
        let [high, low] = stated.to_be_bytes();
        let frame = error(network, (3, 4), [0, 0, high, low], &quote[..28]);
        assert_eq!(parse_icmp_error(&frame), about(network, Some(expected)), "{length} {stated}");
    }
}

#[test]
fn next_hop_mtu_of_ipv6() {
    let network = NETWORKS[3];
    for (stated, expected) in [(0u32, None), (1279, None), (1280, Some(1280)), (u32::MAX, Some(u32::MAX))] {
        let frame = error(network, (2, 0), stated.to_be_bytes(), &packet(network));
        let expected = expected.and_then(|mtu| about(network, Some(mtu)));
        assert_eq!(parse_icmp_error(&frame), expected, "{stated}");
    }
}

#[test]
fn quotes_that_are_no_segment_of_the_receiver() {
    let changes: [(bool, usize, &[u8]); 14] = [
        (false, 0, &[0x65]),    // Version.
        (false, 0, &[0x44]),    // Header length.
        (false, 2, &[0, 19]),   // Total length.
        (false, 2, &[0, 27]),   // Total length: 7 bytes of TCP.
        (false, 6, &[0x20, 0]), // A first fragment.
        (false, 6, &[0, 0xb9]), // A last fragment.
        (false, 9, &[17]),      // UDP.
        (false, 15, &[8]),      // Another sender.
        (false, 20, &[0, 0]),   // Port 0.
        (false, 22, &[0, 0]),   // Port 0.
        (true, 0, &[0x40]),     // Version.
        (true, 4, &[0, 7]),     // Payload length: 7 bytes of TCP.
        (true, 6, &[44]),       // Fragment.
        (true, 23, &[8]),       // Another sender.
    ];
    for (v6, at, bytes) in changes {
        let network = NETWORKS[if v6 { 2 } else { 0 }];
        let mut quote = packet(network);
        quote[at..at + bytes.len()].copy_from_slice(bytes);
        let frame = error(network, (3, 0), [0; 4], &quote);
        assert_eq!(parse_icmp_error(&frame), None, "{network:?}: {bytes:?} at {at}");
    }
    // The protocol of the other family; a packet of the other family.
    let (v4, v6) = (NETWORKS[0], NETWORKS[2]);
    for network in [v4, v6] {
        let mut frame = error(network, (3, 0), [0; 4], &packet(network));
        let at = network.l2().len();
        if network.v6 {
            frame[at + 6] = 1;
        } else {
            frame[at + 9] = 58;
            set_checksum(&mut frame[..at + 20], at, 10);
        }
        assert_eq!(parse_icmp_error(&frame), None);
        let other = if network.v6 { v4 } else { v6 };
        assert_eq!(parse_icmp_error(&error(network, (3, 0), [0; 4], &packet(other))), None);
    }
}

#[test]
fn options_of_a_quoted_ipv4_header() {
    let network = NETWORKS[0];
    let plain = packet(network);
    let quote = [&[0x46], &plain[1..20], &[1, 1, 1, 1], &plain[20..28]].concat();
    assert_eq!(parse_icmp_error(&error(network, (11, 0), [0; 4], &quote)), about(network, None));
    assert_eq!(parse_icmp_error(&error(network, (11, 0), [0; 4], &quote[..31])), None);
    // As many as there can be, and none of them quoted.
    let quote = [&[0x4f], &plain[1..28]].concat();
    assert_eq!(parse_icmp_error(&error(network, (11, 0), [0; 4], &quote)), None);
}

#[test]
fn extension_headers_of_a_quoted_ipv6_packet() {
    let network = NETWORKS[2];
    let plain = packet(network);
    let with = |first: u8, headers: &[u8], tcp: usize| {
        let mut quote = [&plain[..40], headers, &plain[40..40 + tcp]].concat();
        quote[6] = first;
        let length = (headers.len() + plain.len() - 40) as u16;
        quote[4..6].copy_from_slice(&length.to_be_bytes());
        parse_icmp_error(&error(network, (2, 0), [0, 0, 5, 120], &quote))
    };
    let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = [header(43), [60, 0, 4, 0, 0, 0, 0, 0], header(6)].concat();
    assert_eq!(with(0, &chain, 8), about(network, Some(1400)));
    assert_eq!(with(0, &chain, 7), None);
    // Cut within the chain, a segment left, a fragment, more than anyone sends.
    assert_eq!(with(0, &chain[..12], 0), None);
    assert_eq!(with(43, &[6, 0, 4, 1, 0, 0, 0, 0], 20), None);
    assert_eq!(with(60, &header(44), 20), None);
    let many: Vec<u8> = (0..9).flat_map(|at| header(if at == 8 { 6 } else { 60 })).collect();
    assert_eq!(with(60, &many, 20), None);
    // In the error's own packet too.
    let frame = error(network, (2, 0), [0, 0, 5, 120], &plain);
    let mut outer = [&frame[..54], &header(58), &frame[54..]].concat();
    outer[20] = 0;
    let length = (outer.len() - 54) as u16;
    outer[18..20].copy_from_slice(&length.to_be_bytes());
    assert_eq!(parse_icmp_error(&outer), about(network, Some(1400)));
}

/// RFC 4884: a quote is filled up to 128 bytes, and extensions follow.
#[test]
fn extensions_behind_the_quote_are_not_of_the_segment() {
    for (network, kind, length) in [(NETWORKS[0], 3, 5), (NETWORKS[0], 12, 5), (NETWORKS[2], 1, 4), (NETWORKS[2], 3, 4)]
    {
        let unit = if network.v6 { 8 } else { 4 };
        let header = tcp_offset(network);
        let mut quote = packet(network)[..header + 20].to_vec();
        quote.resize(128, 0);
        quote.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0, 0, 0]);
        let mut rest = [0; 4];
        rest[length - 4] = 128 / unit;
        assert_eq!(parse_icmp_error(&error(network, (kind, 0), rest, &quote)), about(network, None));
        rest[length - 4] = (header as u8 + 8) / unit;
        assert_eq!(parse_icmp_error(&error(network, (kind, 0), rest, &quote)), about(network, None));
        rest[length - 4] -= 1;
        assert_eq!(parse_icmp_error(&error(network, (kind, 0), rest, &quote)), None);
        // Longer than there is: then it ends where the message does.
        rest[length - 4] = 255;
        assert_eq!(parse_icmp_error(&error(network, (kind, 0), rest, &quote)), about(network, None));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_icmp_error(&bytes);
    }

    /// A good error with a few bytes of its quote and of its header changed, and good checksums again.
    #[test]
    fn any_quote_is_answered(
        network in 0..4usize,
        kind in 0u8..13,
        code in 0u8..6,
        rest: [u8; 4],
        length in 0usize..160,
        changes in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
    ) {
        let network = NETWORKS[network];
        let mut quote = packet(network);
        quote.truncate(length);
        for (at, value) in changes {
            if let Some(byte) = quote.get_mut(at) {
                *byte = value;
            }
        }
        let found = parse_icmp_error(&error(network, (kind, code), rest, &quote));
        if let Some(found) = found {
            prop_assert_eq!(found.source.ip(), network.client().ip());
            prop_assert_eq!(found.vlan, VLANS[network.tags]);
            let least = [68, 1280][usize::from(network.v6)];
            prop_assert!(found.next_mtu.is_none_or(|mtu| mtu >= least));
        }
    }

    /// The same, cut and damaged anywhere, without good checksums.
    #[test]
    fn any_damage_is_answered(network in 0..4usize, cut in 0usize..250, at in 0usize..250, value: u8) {
        let network = NETWORKS[network];
        let mut frame = error(network, (3, 4), [0; 4], &packet(network));
        frame.truncate(cut);
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
        let _ = parse_icmp_error(&frame);
    }
}
