//! Faults of smoltcp 0.14's sockets, put right outside of them so that the hosts behave as RFC 9293 says.
//!
//! - After a retransmission timeout a socket takes its next sequence number back to the oldest unacknowledged one, and
//!   sends bare ACKs with it. The other host, which has those bytes, must discard such a segment with the ACK in it
//!   (§3.10.7.4). When both do so, they are stuck for ever. Here a bare ACK carries the highest number sent so far.
//! - A fast retransmission ignores the window; a receiver cuts off the bytes beyond its window but takes the FIN behind
//!   them, and so loses the bytes. Here such a FIN is taken off.
//! - A keep-alive probe carries a zero byte in the place of the last byte or FIN that was sent, which the other host may
//!   not have. Here probes are without data, as Linux sends them, and the sockets send none.
//! - Three duplicate ACKs while nothing but a FIN is unacknowledged stop the retransmission timer, and the FIN is never
//!   sent again. Here such ACKs, which say nothing new, are kept from the socket.
//! - With a closed window and a FIN that was sent too early, probes are empty, nobody answers them, and no other timer
//!   runs. Here a timer of last resort makes the socket send its oldest bytes again, by duplicate ACKs.

use std::collections::BTreeMap;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::frames::{self, Segment};

/// Local and remote port.
type Ports = (u16, u16);

/// What has to be remembered of each connection of a host.
#[derive(Default)]
pub struct Mend {
    /// The next sequence number after the highest that was sent.
    next: BTreeMap<Ports, u32>,
    /// The acknowledgement number and the window field that the other host has sent last.
    heard: BTreeMap<Ports, (u32, u16)>,
    /// The last acknowledgement number and the right edge of the window that it offered.
    offered: BTreeMap<Ports, (u32, u32)>,
}

impl Mend {
    /// A frame that leaves the host; `scale` is the shift of its windows.
    pub fn sent(&mut self, frame: &mut [u8], scale: usize) {
        let Some(segment) = frames::segment(frame) else { return };
        let ports = (segment.source, segment.destination);
        let length = segment.payload as u32 + u32::from(segment.syn) + u32::from(segment.fin);
        let end = segment.seq.wrapping_add(length);
        if segment.syn {
            self.next.insert(ports, end);
        }
        let next = self.next.entry(ports).or_insert(end);
        if is_before(*next, end) {
            *next = end;
        } else if length == 0 && !segment.rst && segment.seq != *next {
            let next = *next;
            change(frame, &segment, |tcp| tcp.set_seq_number(TcpSeqNumber(next as i32)));
        }
        if segment.has_ack && !segment.rst {
            let scale = if segment.syn { 0 } else { scale };
            let edge = segment.ack.wrapping_add(u32::from(segment.window) << scale);
            self.offered.insert(ports, (segment.ack, edge));
        }
    }

    /// A frame that comes to the host.
    pub fn received(&mut self, frame: &mut [u8]) {
        let Some(segment) = frames::segment(frame).filter(|segment| segment.checksums_good) else { return };
        let ports = (segment.destination, segment.source);
        if segment.has_ack
            && !self.heard.get(&ports).is_some_and(|heard| !segment.syn && is_before(segment.ack, heard.0))
        {
            self.heard.insert(ports, (segment.ack, segment.window));
        }
        if segment.fin
            && let Some(&(_, edge)) = self.offered.get(&ports)
            && is_before(edge, segment.seq.wrapping_add(segment.payload as u32))
        {
            change(frame, &segment, |tcp| tcp.set_fin(false));
        }
    }

    /// A bare ACK that says nothing new to a socket which waits for the acknowledgement of its FIN alone.
    pub fn is_useless(&self, segment: &Segment, socket: &Socket) -> bool {
        let bare = segment.payload == 0 && !segment.syn && !segment.fin && !segment.rst;
        let waits = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        let next = self.next.get(&(segment.destination, segment.source));
        bare && waits && socket.send_queue() == 0 && next.is_some_and(|&next| is_before(segment.ack, next))
    }

    /// A probe: an ACK with a number that the other host has seen, which it must answer (RFC 9293 §3.8.4). `age`: how many
    /// bytes ago.
    pub fn probe(&self, ends: [IpAddress; 2], ports: Ports, scale: usize, age: u32) -> Option<Vec<u8>> {
        let (next, &(ack, edge)) = (self.next.get(&ports)?, self.offered.get(&ports)?);
        Some(bare_ack(ends, ports, next.wrapping_sub(age), ack, (edge.wrapping_sub(ack) >> scale) as u16))
    }

    /// What the socket between these ports must get from `ends` to fast retransmit: two changes of the window, so that it
    /// counts from zero, and three duplicate ACKs.
    pub fn duplicate_acks(&self, ends: [IpAddress; 2], ports: Ports) -> Vec<Vec<u8>> {
        let (Some(&(ack, window)), Some(&(seq, _))) = (self.heard.get(&ports), self.offered.get(&ports)) else {
            return Vec::new();
        };
        let packet = |changed: u16| bare_ack(ends, (ports.1, ports.0), seq, ack, window ^ changed);
        [1, 0, 0, 0, 0].map(packet).into()
    }
}

fn bare_ack(ends: [IpAddress; 2], ports: Ports, seq: u32, ack: u32, window: u16) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: ports.0,
        dst_port: ports.1,
        control: TcpControl::None,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: Some(TcpSeqNumber(ack as i32)),
        window_len: window,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = IpRepr::new(ends[0], ends[1], IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut packet = vec![0; ip.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut packet, &checksums);
    tcp.emit(&mut TcpPacket::new_unchecked(&mut packet[ip.header_len()..]), &ends[0], &ends[1], &checksums);
    packet
}

fn is_before(left: u32, right: u32) -> bool {
    (left.wrapping_sub(right) as i32) < 0
}

fn change(frame: &mut [u8], segment: &Segment, change: impl FnOnce(&mut TcpPacket<&mut [u8]>)) {
    let ip = frames::header_length(frame).expect("a segment has a header");
    let packet = &mut frame[ip..ip + segment.ip_length];
    let (source, destination, header): (IpAddress, IpAddress, usize) = match packet[0] >> 4 {
        4 => {
            let ip = Ipv4Packet::new_unchecked(&*packet);
            (ip.src_addr().into(), ip.dst_addr().into(), ip.header_len().into())
        }
        _ => {
            let ip = Ipv6Packet::new_unchecked(&*packet);
            (ip.src_addr().into(), ip.dst_addr().into(), ip.header_len())
        }
    };
    let mut tcp = TcpPacket::new_unchecked(&mut packet[header..]);
    change(&mut tcp);
    tcp.fill_checksum(&source, &destination);
}
