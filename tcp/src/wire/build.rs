//! Segments without text, from numbers to bytes: for resets and bare acknowledgements outside of a connection.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{fill_ipv4_checksum, fill_tcp_checksum};
use super::{Flags, Headers, IPV4_HEADER, IPV6_HEADER, L2Header, PROTOCOL_TCP, TCP_HEADER};
use crate::FrameSink;

/// Time to live, or hop limit, of what we send (RFC 1700).
const HOP_LIMIT: u8 = 64;

/// A segment without options and text. Source and destination are of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
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
    /// The window field, not scaled.
    pub window: u16,
}

/// Sends the reset that answers `segment` (RFC 9293 §3.5.2). False: a reset must not be answered, or no frame was free.
pub fn build_rst(sink: &mut impl FrameSink, segment: &Headers) -> bool {
    let Some((seq, ack, flags)) = reset_for(segment) else { return false };
    let reset = Segment { source: segment.destination, destination: segment.source, seq, ack, flags, window: 0 };
    build_segment(sink, &segment.l2.reversed(), &reset)
}

/// Sends an acknowledgement without text and with a window of 0, as TIME-WAIT answers a FIN that comes again. False: no
/// frame was free.
pub fn build_ack(
    sink: &mut impl FrameSink,
    l2: &L2Header,
    source: SocketAddr,
    destination: SocketAddr,
    seq: u32,
    ack: u32,
) -> bool {
    build_segment(sink, l2, &Segment { source, destination, seq, ack, flags: Flags::ACK, window: 0 })
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
pub fn build_segment(sink: &mut impl FrameSink, l2: &L2Header, segment: &Segment) -> bool {
    let Some(frame) = sink.frame(segment_frame_length(l2, segment)) else { return false };
    let (source, destination) = (segment.source.ip(), segment.destination.ip());
    frame[..l2.len()].copy_from_slice(l2.as_bytes());
    let packet = &mut frame[l2.len()..];
    let ip_length = write_ip_header(packet, source, destination, TCP_HEADER);
    if source.is_ipv4() {
        fill_ipv4_checksum(&mut packet[..ip_length]);
    }
    let tcp = &mut packet[ip_length..];
    tcp.fill(0);
    tcp[0..2].copy_from_slice(&segment.source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = ((TCP_HEADER / 4) << 4) as u8;
    tcp[13] = segment.flags.bits();
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    fill_tcp_checksum(tcp, source, destination);
    true
}

/// Length in bytes of the frame that carries `segment`, without padding.
pub fn segment_frame_length(l2: &L2Header, segment: &Segment) -> usize {
    l2.len() + ip_header_length(segment.source.ip()) + TCP_HEADER
}

/// Writes an IP header without options for `payload_length` bytes of TCP to the start of `packet`; the checksum of IPv4 is
/// left 0. Returns the header's length.
pub(crate) fn write_ip_header(packet: &mut [u8], source: IpAddr, destination: IpAddr, payload_length: usize) -> usize {
    let length = ip_header_length(source);
    let header = &mut packet[..length];
    header.fill(0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((IPV4_HEADER + payload_length) as u16).to_be_bytes());
            header[6] = 0x40; // Don't fragment.
            header[8] = HOP_LIMIT;
            header[9] = PROTOCOL_TCP;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(payload_length as u16).to_be_bytes());
            header[6] = PROTOCOL_TCP;
            header[7] = HOP_LIMIT;
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
