//! Headers as bytes: what is parsed, what is refused and why, and checksums.

mod common;

use std::net::SocketAddr;

use common::*;
use proptest::prelude::*;
use tcp::handshake::Syn;
use tcp::wire::{
    self, Checksum, Concealed, Envelope, Flags, L2Header, OptionWriter, ParseError, Parsed, Segment, SegmentOptions,
    Timestamps,
};

fn frame(network: Network) -> Vec<u8> {
    let segment = seg(PSH_ACK, 0x0102_0304, 0x0506_0708).options(&[1, 1, 1, 1]).with(b"payload");
    segment.to_frame(&network.l2(), network.client(), network.server())
}

fn tcp_offset(network: Network) -> usize {
    network.l2().len() + if network.v6 { 40 } else { 20 }
}

#[test]
fn a_segment_in_all_its_parts() {
    for network in NETWORKS {
        let mut frame = frame(network);
        let end = frame.len();
        frame.extend([0; 4]); // Padding.
        let Ok(Parsed::Tcp(h)) = wire::parse(&frame) else { panic!("{network:?}") };
        assert_eq!((h.source, h.destination), (network.client(), network.server()));
        assert_eq!((h.seq, h.ack, h.window), (0x0102_0304, 0x0506_0708, 8192));
        assert_eq!(h.flags, PSH_ACK);
        assert_eq!((h.ip_offset, h.tcp_offset), (network.l2().len(), tcp_offset(network)));
        assert_eq!((h.payload_offset, h.end), (h.tcp_offset + 24, end));
        assert_eq!((h.payload_len(), h.segment_len()), (7, 7));
        assert_eq!(h.l2, network.l2());
        let ids = [[0, 0], [100, 0], [100, 101]];
        assert_eq!(h.vlan, ids[network.tags]);
        assert_eq!(wire::verify_tcp_checksum(&frame, &h), Checksum::Valid);
        for at in h.tcp_offset..h.end {
            frame[at] ^= 0x10;
            assert_eq!(wire::verify_tcp_checksum(&frame, &h), Checksum::Invalid);
            frame[at] ^= 0x10;
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_refused() {
    for network in NETWORKS {
        let frame = frame(network);
        for length in 0..frame.len() {
            assert_eq!(wire::parse(&frame[..length]), Err(ParseError::Truncated), "{length} bytes");
        }
    }
}

#[test]
fn contradictions_have_names() {
    let v4 = NETWORKS[1];
    let v6 = NETWORKS[3];
    let (ip4, ip6) = (v4.l2().len(), v6.l2().len());
    let refix = |frame: &mut [u8]| {
        frame[ip4 + 10..ip4 + 12].fill(0);
        let sum = naive_sum(&frame[ip4..ip4 + 20], 0);
        frame[ip4 + 10..ip4 + 12].copy_from_slice(&(!sum as u16).to_be_bytes());
    };
    type Change = (Network, usize, u8, Result<Parsed, ParseError>);
    let changes: [Change; 16] = [
        (v4, ip4, 0x55, Err(ParseError::BadIpHeader)),            // Version.
        (v4, ip4, 0x44, Err(ParseError::BadIpHeader)),            // Header length.
        (v4, ip4 + 3, 19, Err(ParseError::BadIpHeader)),          // Total length.
        (v4, ip4 + 2, 1, Err(ParseError::Truncated)),             // Total length.
        (v4, ip4 + 6, 0x20, Ok(Parsed::Other)),                   // More fragments.
        (v4, ip4 + 7, 1, Ok(Parsed::Other)),                      // Fragment offset.
        (v4, ip4 + 9, 17, Ok(Parsed::Other)),                     // UDP.
        (v4, ip4 + 20 + 12, 0x40, Err(ParseError::BadTcpHeader)), // Data offset.
        (v4, ip4 + 20 + 12, 0xf0, Err(ParseError::BadTcpHeader)), // Data offset.
        (v4, ip4 - 2, 0x09, Ok(Parsed::Other)),                   // EtherType.
        (v6, ip6, 0x40, Err(ParseError::BadIpHeader)),            // Version.
        (v6, ip6 + 5, 10, Err(ParseError::BadTcpHeader)),         // Payload length.
        (v6, ip6 + 6, 44, Ok(Parsed::Other)),                     // Fragment.
        (v6, ip6 + 6, 51, Ok(Parsed::Other)),                     // Authentication header.
        (v6, ip6 + 6, 60, Err(ParseError::BadIpHeader)),          // Options longer than the packet.
        (v6, ip6 - 2, 0x81, Ok(Parsed::Other)),                   // A third tag, nearly.
    ];
    for (network, at, value, expected) in changes {
        let mut frame = frame(network);
        frame[at] = value;
        if !network.v6 {
            refix(&mut frame);
        }
        assert_eq!(wire::parse(&frame), expected, "{network:?}: byte {at} = {value:#x}");
    }
    let mut bad = frame(v4);
    bad[ip4 + 8] ^= 1;
    assert_eq!(wire::parse(&bad), Err(ParseError::BadIpChecksum));
    let mut no_port = frame(v6);
    no_port[ip6 + 40..ip6 + 42].fill(0);
    assert!(matches!(wire::parse(&no_port), Ok(Parsed::Tcp(headers)) if headers.source.port() == 0));
    let names: std::collections::BTreeSet<_> = ParseError::ALL.iter().map(|error| error.as_str()).collect();
    assert_eq!(names.len(), ParseError::ALL.len());
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let network = NETWORKS[2];
    let plain = frame(network);
    let with = |first: u8, headers: &[u8]| {
        let mut frame = plain[..54].to_vec();
        frame.extend(headers);
        frame.extend(&plain[54..]);
        frame[20] = first;
        let length = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        frame
    };
    let pad = [1, 4, 0, 0, 0, 0];
    let header = |next: u8| [&[next, 0][..], &pad].concat();
    // Hop-by-hop, routing with nothing left, destination options.
    let chain = [header(43), vec![60, 0, 4, 0, 0, 0, 0, 0], header(6)].concat();
    let frame = with(0, &chain);
    let Ok(Parsed::Tcp(h)) = wire::parse(&frame) else { panic!() };
    assert_eq!((h.tcp_offset, h.payload_len()), (54 + 24, 7));
    assert_eq!(wire::verify_tcp_checksum(&frame, &h), Checksum::Valid);
    // A segment left: the destination is another one.
    assert_eq!(wire::parse(&with(43, &[6, 0, 4, 1, 0, 0, 0, 0])), Ok(Parsed::Other));
    // A fragment behind options.
    assert_eq!(wire::parse(&with(60, &header(44))), Ok(Parsed::Other));
    // More than anyone sends.
    let many: Vec<u8> = (0..9).flat_map(|at| header(if at == 8 { 6 } else { 60 })).collect();
    assert_eq!(wire::parse(&with(60, &many)), Ok(Parsed::Other));
}

/// The plain frame of an IPv6 network without tags, with these headers between IP and TCP.
fn with_extension_headers(first: u8, headers: &[u8]) -> Vec<u8> {
    let mut frame = frame(NETWORKS[2]);
    frame.splice(54..54, headers.iter().copied());
    frame[20] = first;
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame
}

/// What is found in a frame that is no segment: the ports, and whether it is a fragment. The addresses are right.
#[track_caller]
fn concealed(network: Network, frame: &[u8]) -> Option<(Option<(u16, u16)>, bool)> {
    assert!(!matches!(wire::parse(frame), Ok(Parsed::Tcp(_))));
    wire::find_concealed(frame).map(|Concealed { source, destination, ports, is_fragment }| {
        assert_eq!((source, destination), (network.client().ip(), network.server().ip()));
        (ports, is_fragment)
    })
}

#[test]
fn tcp_is_found_in_what_is_no_segment() {
    let ports = Some((40000, 6379));
    let readable = Some((ports, false));
    let unreadable = Some((None, false));
    let fragment = Some((None, true));
    for network in NETWORKS {
        let whole = frame(network);
        let (ip, tcp) = (network.l2().len(), tcp_offset(network));
        for length in 0..whole.len() {
            let expected = match length {
                _ if length < tcp => None,
                _ if length < tcp + 4 => unreadable,
                _ => readable,
            };
            assert_eq!(concealed(network, &whole[..length]), expected, "{network:?}: {length} bytes");
        }
        let changed = |at: usize, value: u8| {
            let mut frame = whole.clone();
            frame[at] = value;
            concealed(network, &frame)
        };
        assert_eq!(changed(ip, 0x20 | whole[ip] & 15), None);
        assert_eq!(changed(tcp + 12, 0x40), readable);
        let protocol = ip + if network.v6 { 6 } else { 9 };
        for other in [1, 17, 47, 50, 51, 58, 59] {
            assert_eq!(changed(protocol, other), None);
        }
        if network.v6 {
            assert_eq!(changed(ip + 5, 10), readable);
            assert_eq!(changed(ip + 5, 0), unreadable);
        } else {
            assert_eq!(changed(ip, 0x44), unreadable);
            assert_eq!(changed(ip + 3, 19), readable);
            assert_eq!(changed(ip + 8, 1), readable); // A wrong checksum.
            assert_eq!(changed(ip + 6, 0x20), fragment);
            assert_eq!(changed(ip + 7, 1), fragment);
        }
    }
}

#[test]
fn tcp_is_found_behind_ipv6_extension_headers() {
    let network = NETWORKS[2];
    let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |kinds: &[u8]| {
        let headers: Vec<u8> = kinds[1..].iter().flat_map(|next| header(*next)).collect();
        concealed(network, &with_extension_headers(kinds[0], &headers))
    };
    let fragment = Some((None, true));
    let unreadable = Some((None, false));
    // Atomic ones, and ones with something before the TCP header.
    for kinds in [&[44, 6][..], &[0, 44, 6], &[44, 60, 6], &[44, 44, 6], &[60, 60, 60, 60, 60, 60, 60, 60, 44, 6]] {
        assert_eq!(chain(kinds), fragment, "{kinds:?}");
    }
    for kinds in [&[44, 17][..], &[44, 58], &[0, 44, 17], &[0, 17], &[0, 58], &[44, 51, 6], &[51, 6], &[60, 59]] {
        assert_eq!(chain(kinds), None, "{kinds:?}");
    }
    // More than are looked behind: nobody knows.
    assert_eq!(chain(&[60, 60, 60, 60, 60, 60, 60, 60, 60, 6]), unreadable);
    assert_eq!(chain(&[60, 60, 60, 60, 60, 60, 60, 60, 60, 17]), unreadable);
    // A segment left.
    let routed = with_extension_headers(43, &[6, 0, 4, 1, 0, 0, 0, 0]);
    assert_eq!(concealed(network, &routed), Some((Some((40000, 6379)), false)));
    // Cut in the chain.
    let cut = with_extension_headers(0, &header(44))[..54 + 9].to_vec();
    assert_eq!(concealed(network, &cut), unreadable);
    // As a jumbogram, with and without what says its length.
    let mut jumbogram = with_extension_headers(0, &header(6));
    jumbogram[18..20].fill(0);
    assert_eq!(concealed(network, &jumbogram), unreadable);
    jumbogram[54..62].copy_from_slice(&[6, 0, 0xc2, 4, 0, 0, 0, 39]);
    assert_eq!(concealed(network, &jumbogram), unreadable);
    jumbogram[54] = 17;
    assert_eq!(concealed(network, &jumbogram), None);
}

#[test]
fn partial_checksums_are_completed_and_complete_ones_stay() {
    for network in NETWORKS {
        let (source, destination) = (network.client().ip(), network.server().ip());
        let udp =
            ip_frame(&network.l2(), source, destination, 17, 6, [&[0, 53, 0, 54, 0, 13, 0, 0][..], b"query"].concat());
        for (good, protocol, field) in [(frame(network), 6, 16), (udp, 17, 6)] {
            let field = tcp_offset(network) + field;
            let mut frame = good.clone();
            assert!(!wire::complete_partial_checksum(&mut frame));
            assert!(frame == good);
            let pseudo = pseudo_sum(source, destination, protocol, frame.len() - tcp_offset(network)) as u16;
            frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
            if let Ok(Parsed::Tcp(h)) = wire::parse(&frame) {
                assert_eq!(wire::verify_tcp_checksum(&frame, &h), Checksum::Partial);
            }
            assert!(wire::complete_partial_checksum(&mut frame));
            assert!(frame == good);
            frame[field] ^= 1;
            let wrong = frame.clone();
            assert!(!wire::complete_partial_checksum(&mut frame));
            assert!(frame == wrong);
        }
    }
}

#[test]
fn link_layer_headers_are_reversed() {
    let l2 = NETWORKS[3].l2();
    assert_eq!(l2.reversed().as_bytes()[..12], [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 9]);
    assert_eq!(l2.reversed().as_bytes()[12..], l2.as_bytes()[12..]);
    assert_eq!(l2.reversed().reversed(), l2);
    assert_eq!(L2Header::from_bytes(&[0; 15]), None);
}

#[test]
fn flags_are_printed_by_name() {
    assert_eq!(format!("{:?} {:?}", SYN_ACK, Flags::default()), "SYN|ACK -");
}

/// An address of the family, a port, and what is below TCP.
fn ends_and_envelope() -> impl Strategy<Value = (SocketAddr, SocketAddr, Envelope)> {
    (0..4usize, 1u16.., 1u16.., any::<u8>(), any::<u8>(), any::<u32>()).prop_map(
        |(at, from, to, hops, class, label)| {
            let network = NETWORKS[at];
            let (mut source, mut destination) = (network.client(), network.server());
            source.set_port(from);
            destination.set_port(to);
            let flow_label = if network.v6 { label & 0xf_ffff } else { 0 };
            (source, destination, Envelope { l2: network.l2(), hop_limit: hops, traffic_class: class & !3, flow_label })
        },
    )
}

/// Timestamps and SACK blocks, as many as there is room for.
fn written_options() -> impl Strategy<Value = OptionWriter> {
    let stamp = prop::option::of((any::<u32>(), any::<u32>()));
    (stamp, prop::collection::vec(any::<(u32, u32)>(), 0..6)).prop_map(|(stamp, blocks)| {
        let mut options = OptionWriter::default();
        stamp.into_iter().for_each(|(value, echo)| options.timestamps(Timestamps { value, echo }));
        options.sack(blocks.into_iter());
        options
    })
}

/// RFC 9293 §3.5.2, group 1: what answers a segment to no connection.
#[test]
fn resets_answer_what_belongs_to_no_connection() {
    let network = NETWORKS[1];
    let mut sink = Sink::default();
    for (segment, expected) in [
        (seg(ACK, 5, 9), Some((RST, 9, 0))),
        (seg(SYN, 5, 0), Some((RST_ACK, 0, 6))),
        (seg(Flags::FIN, 5, 0).with(b"abc"), Some((RST_ACK, 0, 9))),
        (seg(RST, 5, 0), None),
    ] {
        let (h, _) = Seg::from_frame(&segment.to_frame(&network.l2(), network.client(), network.server()));
        assert_eq!(wire::build_rst(&mut sink, &h.envelope().reversed(), &h), expected.is_some());
        let sent = sink.frames.pop_front().map(|frame| {
            let (answer, segment) = Seg::from_frame(&frame);
            assert_eq!((answer.source, answer.destination), (h.destination, h.source));
            assert_eq!(answer.envelope(), h.envelope().reversed());
            (segment.flags, segment.seq, segment.ack)
        });
        assert_eq!(sent, expected);
    }
    sink.free = 0;
    let (h, _) = Seg::from_frame(&frame(network));
    assert!(!wire::build_rst(&mut sink, &h.envelope(), &h), "no frame is free");
}

proptest! {
    /// All of a segment comes back: numbers, options, text in two pieces, and everything below.
    #[test]
    fn what_is_built_is_parsed(
        (source, destination, envelope) in ends_and_envelope(),
        (seq, ack, flags, window) in any::<(u32, u32, u8, u16)>(),
        options in written_options(),
        text in prop::collection::vec(any::<u8>(), 0..1461),
        cut: prop::sample::Index,
    ) {
        let (first, second) = text.split_at(cut.index(text.len() + 1));
        let (flags, payload) = (Flags::from_bits(flags), [first, second]);
        let segment = Segment { source, destination, seq, ack, flags, window, options: options.as_bytes(), payload };
        let mut sink = Sink::default();
        prop_assert!(wire::build_segment(&mut sink, &envelope, &segment));
        let (h, parsed) = Seg::from_frame(&sink.frames[0]);
        let expected = Seg { seq, ack, flags, window, options: options.as_bytes().to_vec(), payload: text };
        prop_assert_eq!(parsed, expected);
        prop_assert_eq!((h.source, h.destination, h.envelope()), (source, destination, envelope));
        prop_assert_eq!(h.segment_len() as usize, h.payload_len() + usize::from(flags.syn()) + usize::from(flags.fin()));
    }

    #[test]
    fn checksums_agree_with_the_naive_sum(network in 0..4usize, payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        // `to_frame` sums word by word; `from_frame` checks with the crate.
        let network = NETWORKS[network];
        let segment = seg(ACK, 1, 2).with(&payload);
        let frame = segment.to_frame(&network.l2(), network.client(), network.server());
        prop_assert_eq!(Seg::from_frame(&frame).1, segment);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..6usize) {
        // Most random bytes would not get far.
        let start: &[u8] = match kind {
            0 => &[],
            1 => &[0x08, 0x00, 0x45],
            2 => &[0x86, 0xdd, 0x60],
            3 => &[0x81, 0x00, 0, 1, 0x08, 0x00, 0x46],
            4 => &[0x88, 0xa8, 0, 1, 0x81, 0x00, 0, 2, 0x86, 0xdd, 0x60],
            _ => &[0x08, 0x06],
        };
        if bytes.len() >= 12 + start.len() && !start.is_empty() {
            bytes[12..12 + start.len()].copy_from_slice(start);
        }
        look_into(&mut bytes);
    }

    #[test]
    fn no_change_of_a_good_frame_makes_the_parser_panic(
        network in 0..4usize,
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..150,
    ) {
        let mut frame = frame(NETWORKS[network]);
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut);
        look_into(&mut frame);
    }
}

/// Whatever the bytes are: offsets are in order and within the frame, and all that works on headers works.
fn look_into(frame: &mut [u8]) {
    let _ = wire::find_concealed(frame);
    if let Ok(Parsed::Tcp(h)) = wire::parse(frame) {
        assert!(h.ip_offset < h.tcp_offset && h.tcp_offset + 20 <= h.payload_offset);
        assert!(h.payload_offset <= h.end && h.end <= frame.len());
        wire::verify_tcp_checksum(frame, &h);
        SegmentOptions::parse(h.options(frame));
        let syn = Syn::new(frame, &h);
        assert!(syn.options.window_scale.is_none_or(|shift| shift <= 14));
        tcp::handshake::relay(frame, &h, 1500, &mut Sink::default());
    }
    wire::complete_partial_checksum(frame);
}
