//! Segments from numbers to bytes.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{fill_ipv4_checksum, fill_tcp_checksum};
use super::{Envelope, Flags, Headers, IPV4_HEADER, IPV6_HEADER, PROTOCOL_TCP, TCP_HEADER};
use crate::FrameSink;

/// A segment to be sent. Source and destination are of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Address and port of the sender.
    pub source: SocketAddr,
    /// Address and port of the receiver.
    pub destination: SocketAddr,
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK; 0 if there is no ACK flag.
    pub ack: u32,
    /// The control bits.
    pub flags: Flags,
    /// The window field, scaled.
    pub window: u16,
    /// The options: whole words, at most 40 bytes.
    pub options: &'a [u8],
    /// The text, in two pieces.
    pub payload: [&'a [u8]; 2],
}

/// Sends the reset that answers `segment` (RFC 9293 §3.5.2). False: a reset must not be answered, or no frame was free.
pub fn build_rst(sink: &mut impl FrameSink, envelope: &Envelope, segment: &Headers) -> bool {
    let Some((seq, ack, flags)) = reset_for(segment) else { return false };
    let (source, destination) = (segment.destination, segment.source);
    let reset = Segment { source, destination, seq, ack, flags, window: 0, options: &[], payload: [&[]; 2] };
    build_segment(sink, envelope, &reset)
}

/// The sequence number, acknowledgement number and control bits of the reset that answers a segment to no connection
/// (RFC 9293 §3.5.2, group 1). None: a reset is never answered.
pub fn reset_for(segment: &Headers) -> Option<(u32, u32, Flags)> {
    if segment.flags.rst() {
        None
    } else if segment.flags.ack() {
        Some((segment.ack, 0, Flags::RST))
    } else {
        Some((0, segment.seq.wrapping_add(segment.segment_len()), Flags::RST.with(Flags::ACK)))
    }
}

/// Sends a segment. False: no frame was free.
pub fn build_segment(sink: &mut impl FrameSink, envelope: &Envelope, segment: &Segment<'_>) -> bool {
    debug_assert!(segment.options.len().is_multiple_of(4) && segment.options.len() <= 40);
    let header_length = TCP_HEADER + segment.options.len();
    let tcp_length = header_length + segment.payload[0].len() + segment.payload[1].len();
    let l2 = &envelope.l2;
    let (source, destination) = (segment.source.ip(), segment.destination.ip());
    let Some(frame) = sink.frame(l2.len() + ip_header_length(source) + tcp_length) else { return false };
    frame[..l2.len()].copy_from_slice(l2.as_bytes());
    let packet = &mut frame[l2.len()..];
    let ip_length = write_ip_header(packet, envelope, source, destination, tcp_length);
    if source.is_ipv4() {
        fill_ipv4_checksum(&mut packet[..ip_length]);
    }
    let tcp = &mut packet[ip_length..];
    tcp[0..2].copy_from_slice(&segment.source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = ((header_length / 4) << 4) as u8;
    tcp[13] = segment.flags.bits();
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    tcp[16..20].fill(0); // Checksum and urgent pointer.
    tcp[TCP_HEADER..header_length].copy_from_slice(segment.options);
    let (first, second) = tcp[header_length..].split_at_mut(segment.payload[0].len());
    first.copy_from_slice(segment.payload[0]);
    second.copy_from_slice(segment.payload[1]);
    fill_tcp_checksum(tcp, source, destination);
    true
}

/// Writes an IP header without options for `payload_length` bytes of TCP to the start of `packet`; the checksum of IPv4 is
/// left 0. Returns the header's length.
pub(crate) fn write_ip_header(
    packet: &mut [u8],
    envelope: &Envelope,
    source: IpAddr,
    destination: IpAddr,
    payload_length: usize,
) -> usize {
    let length = ip_header_length(source);
    let header = &mut packet[..length];
    header.fill(0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header[0] = 0x45;
            header[1] = envelope.traffic_class;
            header[2..4].copy_from_slice(&((IPV4_HEADER + payload_length) as u16).to_be_bytes());
            header[6] = 0x40; // Don't fragment.
            header[8] = envelope.hop_limit;
            header[9] = PROTOCOL_TCP;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let first = 6 << 28 | u32::from(envelope.traffic_class) << 20 | envelope.flow_label;
            header[0..4].copy_from_slice(&first.to_be_bytes());
            header[4..6].copy_from_slice(&(payload_length as u16).to_be_bytes());
            header[6] = PROTOCOL_TCP;
            header[7] = envelope.hop_limit;
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("both ends of a connection are of one address family"),
    }
    length
}

fn ip_header_length(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}
