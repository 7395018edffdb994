//! A server's host that only receives, one connection, and never limits it: what Linux does, where smoltcp's sockets fall short.
//!
//! It keeps everything that arrives within its window, however many holes there are (smoltcp: 32), and tells of all of it: an
//! ACK at once for each segment out of order (RFC 5681 §4.2), up to three SACK blocks (RFC 2018), and what was received twice
//! (RFC 2883). It echoes timestamps as RFC 7323 §4.3 asks for.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr};
use tcp::time::{Duration, Instant};

use crate::frames::{self, Segment};
use crate::host::Addresses;
use crate::scenario::TAPPED_PORT;

/// Initial sequence number.
const ISS: u32 = 0xffff_0000;
const WINDOW_SCALE: u8 = 8;
const MSS: u16 = 1460;
/// How long an ACK of one segment waits for another one.
const ACK_DELAY: Duration = Duration::from_millis(40);
/// How long SYN-ACK and FIN wait for their ACK.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The host.
pub struct Sink {
    addresses: Addresses,
    header: Vec<u8>,
    peer: Option<Peer>,
}

/// The connection.
struct Peer {
    port: u16,
    irs: u32,
    established: bool,
    /// What was received in order, and room for what was not; and how much of it is in order.
    text: Vec<u8>,
    in_order: usize,
    /// Received out of order, from and to: the one that has changed last stands first.
    islands: Vec<(usize, usize)>,
    /// Received twice.
    twice: Option<(usize, usize)>,
    /// Where the text ends.
    end: Option<usize>,
    fin_acked: bool,
    /// TS.Recent, and Last.ACK.sent as a place in the text.
    recent: u32,
    acked: usize,
    last_read: Instant,
    ack_at: Option<Instant>,
    /// When SYN-ACK or FIN leave again.
    repeat_at: Option<Instant>,
}

impl Sink {
    /// A host on the server's side that nobody has called yet.
    pub fn new(addresses: Addresses) -> Self {
        let ipv6 = addresses.ip[0].is_ipv6();
        Self { addresses, header: frames::ethernet(addresses.mac[0], addresses.mac[1], &[], ipv6), peer: None }
    }

    /// The connection was there, and is closed.
    pub fn is_done(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.fin_acked)
    }

    /// What was received, and when the last of it.
    pub fn received(&self) -> (&[u8], Instant) {
        self.peer.as_ref().map_or((&[], Instant::ZERO), |peer| (&peer.text[..peer.in_order], peer.last_read))
    }

    /// Takes in a frame, if there is one. Returns when it wants to be called again at the latest.
    pub fn step(&mut self, now: Instant, frame: Option<Vec<u8>>, mut send: impl FnMut(Vec<u8>)) -> Option<Instant> {
        if let Some(frame) = frame
            && let Some(segment) = frames::segment(&frame).filter(|segment| segment.checksums_good)
            && segment.destination == TAPPED_PORT
        {
            self.receive(now, &segment, &frame);
        }
        let peer = self.peer.as_mut()?;
        if peer.ack_at.is_some_and(|at| at <= now) {
            peer.ack_at = None;
            send(frame_of(&self.addresses, &self.header, &peer.ack(now)));
        }
        if peer.repeat_at.is_some_and(|at| at <= now) {
            peer.repeat_at = Some(now + TIMEOUT);
            send(frame_of(&self.addresses, &self.header, &peer.first_or_last(now)));
        }
        [peer.ack_at, peer.repeat_at].into_iter().flatten().min()
    }

    fn receive(&mut self, now: Instant, segment: &Segment, frame: &[u8]) {
        let Some((_, payload)) = frames::options_and_payload(frame) else { return };
        if segment.syn {
            self.peer.get_or_insert_with(|| Peer::new(now, segment, frames::timestamp(frame).unwrap_or_default()));
            return;
        }
        if let Some(peer) = &mut self.peer {
            peer.receive(now, segment, payload, frames::timestamp(frame));
        }
    }
}

impl Peer {
    fn new(now: Instant, syn: &Segment, recent: u32) -> Self {
        Self {
            port: syn.source,
            irs: syn.seq,
            established: false,
            text: Vec::new(),
            in_order: 0,
            islands: Vec::new(),
            twice: None,
            end: None,
            fin_acked: false,
            recent,
            acked: 0,
            last_read: now,
            ack_at: None,
            repeat_at: Some(now),
        }
    }

    fn receive(&mut self, now: Instant, segment: &Segment, payload: &[u8], timestamp: Option<u32>) {
        if !self.established {
            (self.established, self.repeat_at) = (true, None);
        }
        if segment.ack == ISS.wrapping_add(2) {
            (self.fin_acked, self.repeat_at) = (true, None);
        }
        let begin = segment.seq.wrapping_sub(self.irs.wrapping_add(1)) as usize;
        let end = begin + payload.len();
        if begin <= self.acked
            && let Some(timestamp) = timestamp.filter(|&new| new.wrapping_sub(self.recent) as i32 >= 0)
        {
            self.recent = timestamp;
        }
        if segment.fin {
            self.end = Some(end);
        }
        let in_order = self.in_order;
        if !payload.is_empty() {
            self.take(begin, payload);
        }
        if self.in_order > in_order {
            self.last_read = now;
        }
        let closes = self.end == Some(self.in_order);
        if closes && !self.fin_acked && self.repeat_at.is_none() {
            self.repeat_at = Some(now);
        }
        let at_once = begin != in_order || !self.islands.is_empty() || self.twice.is_some() || segment.fin;
        if payload.is_empty() && !segment.fin {
            return;
        }
        if at_once || self.in_order - self.acked >= 2 * 1400 {
            self.ack_at = Some(now);
        } else {
            self.ack_at.get_or_insert(now + ACK_DELAY);
        }
    }

    fn take(&mut self, begin: usize, payload: &[u8]) {
        let (mut left, mut right) = (begin, begin + payload.len());
        let known = |&&(from, to): &&(usize, usize)| from <= left && right <= to;
        if right <= self.in_order || self.islands.iter().find(known).is_some() {
            self.twice = Some((left, right));
            return;
        }
        if self.text.len() < right {
            self.text.resize(right, 0);
        }
        self.text[left..right].copy_from_slice(payload);
        self.islands.retain(|&(from, to)| {
            let joins = from <= right && left <= to;
            if joins {
                (left, right) = (left.min(from), right.max(to));
            }
            !joins
        });
        if left <= self.in_order {
            self.in_order = right;
        } else {
            self.islands.insert(0, (left, right));
        }
    }

    fn number(&self, place: usize) -> u32 {
        self.irs.wrapping_add(1).wrapping_add(place as u32)
    }

    fn ack(&mut self, now: Instant) -> TcpRepr<'static> {
        self.acked = self.in_order;
        let fin = usize::from(self.end == Some(self.in_order));
        let mut blocks = self.twice.take().into_iter().chain(self.islands.iter().copied());
        let sack_ranges = [(); 3].map(|()| blocks.next());
        let sack_ranges = sack_ranges.map(|block| block.map(|(from, to)| (self.number(from), self.number(to))));
        TcpRepr {
            src_port: TAPPED_PORT,
            dst_port: self.port,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(ISS.wrapping_add(1 + u32::from(self.fin_acked)) as i32),
            ack_number: Some(TcpSeqNumber(self.number(self.in_order + fin) as i32)),
            window_len: u16::MAX,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges,
            timestamp: Some(TcpTimestampRepr { tsval: now.total_millis() as u32, tsecr: self.recent }),
            payload: &[],
        }
    }

    /// SYN-ACK or FIN.
    fn first_or_last(&mut self, now: Instant) -> TcpRepr<'static> {
        let ack = self.ack(now);
        if self.established {
            return TcpRepr { control: TcpControl::Fin, ..ack };
        }
        TcpRepr {
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(ISS as i32),
            window_scale: Some(WINDOW_SCALE),
            max_seg_size: Some(MSS),
            sack_permitted: true,
            ..ack
        }
    }
}

fn frame_of(addresses: &Addresses, header: &[u8], tcp: &TcpRepr<'_>) -> Vec<u8> {
    let [client, server] = addresses.ip.map(IpAddress::from);
    let ip = IpRepr::new(server, client, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let begin = header.len() + ip.header_len();
    let mut frame = header.to_vec();
    frame.resize(begin + tcp.buffer_len(), 0);
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut frame[header.len()..], &checksums);
    tcp.emit(&mut TcpPacket::new_unchecked(&mut frame[begin..]), &server, &client, &checksums);
    frame
}
