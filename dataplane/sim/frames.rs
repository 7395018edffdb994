//! What the simulator itself knows of frames, told by smoltcp's views and not by the code under test.

use std::ops::Range;

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket};

/// Length of an Ethernet header with `tags` VLAN tags.
pub fn header_length(frame: &[u8]) -> Option<usize> {
    let mut offset = 12;
    while matches!(frame.get(offset..offset + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
        offset += 4;
    }
    Some(offset + 2)
}

/// An Ethernet header.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], vlan: &[u16], ipv6: bool) -> Vec<u8> {
    let mut header = [destination, source].concat();
    for (position, tag) in vlan.iter().enumerate() {
        let outer = position + 1 < vlan.len();
        header.extend(if outer { [0x88, 0xa8] } else { [0x81, 0x00] });
        header.extend(tag.to_be_bytes());
    }
    header.extend(if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    header
}

/// A TCP segment as the simulator looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// SYN flag.
    pub syn: bool,
    /// ACK flag.
    pub has_ack: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// Window field.
    pub window: u16,
    /// Bytes of payload.
    pub payload: usize,
    /// Length of the IP packet.
    pub ip_length: usize,
    /// All checksums are right.
    pub checksums_good: bool,
}

/// Looks at a frame. None: not TCP over IPv4 or IPv6 (as plain as smoltcp sends it), or malformed.
pub fn segment(frame: &[u8]) -> Option<Segment> {
    let (header, packet) = frame.split_at_checked(header_length(frame)?)?;
    let (source, destination, tcp, header_good) = match header[header.len() - 2..] {
        [0x08, 0x00] => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            if ip.next_header() != IpProtocol::Tcp {
                return None;
            }
            let range = usize::from(ip.header_len())..usize::from(ip.total_len());
            (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()), range, ip.verify_checksum())
        }
        [0x86, 0xdd] => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            if ip.next_header() != IpProtocol::Tcp {
                return None;
            }
            (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()), 40..ip.total_len(), true)
        }
        _ => return None,
    };
    let ip_length = tcp.end;
    let tcp = TcpPacket::new_checked(packet.get(tcp)?).ok()?;
    Some(Segment {
        source: tcp.src_port(),
        destination: tcp.dst_port(),
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack_number().0 as u32,
        syn: tcp.syn(),
        has_ack: tcp.ack(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        window: tcp.window_len(),
        payload: tcp.payload().len(),
        ip_length,
        checksums_good: header_good && tcp.verify_checksum(&source, &destination),
    })
}

/// The bytes of a segment's TCP options, and of its text.
pub fn options_and_payload(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let ip = header_length(frame)?;
    let length = segment(frame)?.ip_length;
    let tcp = TcpPacket::new_checked(frame.get(ip + if frame[ip] >> 4 == 4 { 20 } else { 40 }..ip + length)?).ok()?;
    let text = usize::from(tcp.header_len());
    let bytes = tcp.into_inner();
    Some((&bytes[20..text], &bytes[text..]))
}

/// The TSval of a segment.
pub fn timestamp(frame: &[u8]) -> Option<u32> {
    let (options, _) = options_and_payload(frame)?;
    find_option(options, |option| match option {
        TcpOption::TimeStamp { tsval, .. } => Some(tsval),
        _ => None,
    })
}

/// The shift that options of a SYN offer.
pub fn window_scale(options: &[u8]) -> Option<u8> {
    find_option(options, |option| match option {
        TcpOption::WindowScale(shift) => Some(shift),
        _ => None,
    })
}

fn find_option<T>(mut options: &[u8], find: impl Fn(TcpOption<'_>) -> Option<T>) -> Option<T> {
    while let Ok((rest, option)) = TcpOption::parse(options) {
        if option == TcpOption::EndOfList {
            break;
        }
        if let Some(found) = find(option) {
            return Some(found);
        }
        options = rest;
    }
    None
}

/// The bytes in which every change within one byte makes a checksum wrong: the IPv4 header without its length nibble, the
/// IPv6 addresses, the TCP segment. Empty if it is not a TCP frame.
pub fn covered_by_checksum(frame: &[u8]) -> Range<usize> {
    let (Some(segment), Some(ip)) = (segment(frame), header_length(frame)) else { return 0..0 };
    let first = if frame[ip] >> 4 == 4 { ip + 1 } else { ip + 8 };
    first..ip + segment.ip_length
}

impl std::fmt::Display for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = [(self.syn, 'S'), (self.fin, 'F'), (self.rst, 'R'), (self.has_ack, '.')];
        let flags: String = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
        let Self { source, destination, seq, ack, window, payload, .. } = self;
        write!(f, "{source} > {destination} [{flags}] seq {seq} ack {ack} win {window} len {payload}")?;
        if self.checksums_good { Ok(()) } else { write!(f, " BAD CHECKSUM") }
    }
}
