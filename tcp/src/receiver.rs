//! The receiving half of a connection: a smoltcp socket that puts the text in order, and what the peer is told of it.
//!
//! smoltcp's handshake, states and sending half are not used: the socket is led into ESTABLISHED by a handshake in memory,
//! takes text that is within the window, and never hears of anything else. So it can be exchanged for one with a larger
//! buffer whenever nothing has been received out of order.
//!
//! ```text
//!     consumed │ unread, in order │ hole │ island │ hole │                     │
//!              └ begin            └ RCV.NXT                └ edge that was shown └ edge of smoltcp (the buffer's end)
//! ```

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};

use crate::sequence::{Trimmed, earlier, is_before, later};
use crate::stack::{Budget, Overheard, Stack};
use crate::wire::{self, Envelope, Flags, IPV4_HEADER, IPV6_HEADER, MAX_SACK_BLOCKS, SackBlock, TCP_HEADER};

/// Size of a receive buffer at first and at least: the window of a SYN, which is passed on as it is, always fits in.
pub(crate) const LEAST_BUFFER: usize = 64 * 1024;
/// Size up to which a receive buffer grows: bandwidth times delay of 1 Gbit/s and 33 ms.
pub(crate) const LARGEST_BUFFER: usize = 4 << 20;
/// Pieces of text that may lie apart behind a hole; what would make more is dropped. smoltcp's assembler holds 32.
const MAX_ISLANDS: usize = 30;
/// How long an ACK may wait for text that it can ride on (RFC 9293 §3.8.6.3 allows 500 ms).
const ACK_DELAY: Duration = Duration::from_millis(10);
/// A peer's segments are believed to be at least so long when they are full (RFC 9293 §3.7.1, the default MSS).
const LEAST_SEGMENT: usize = 536;
/// ACKs that are owed at most at a time: of a batch of segments out of order, the fourth duplicate tells nothing new.
const MAX_OWED: u8 = 4;
/// A shorter round-trip time is not believed when buffers are measured by it.
const LEAST_RTT: Duration = Duration::from_micros(100);
/// The shift that smoltcp is told is the peer's: any, so that it uses one itself.
const PEER_SHIFT: u8 = 0;

/// What is said to the peer.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) number: u32,
    /// Scaled.
    pub(crate) window: u16,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    local: SocketAddr,
    remote: SocketAddr,
    /// Size of smoltcp's buffer.
    capacity: usize,
    /// The acknowledgement number that smoltcp takes: it never sends anything.
    inner_ack: u32,
    /// Behind the last byte that smoltcp takes.
    inner_edge: u32,
    /// Number of the first unread byte.
    begin: u32,
    /// The peer's FIN: its number, if it is known; and whether everything before it is there.
    fin: Option<u32>,
    fin_received: bool,
    /// Shift of the windows that the peer is shown.
    shift: u8,
    /// The right edge of the window that the peer was shown. Never moves back, but for the rounding of [`Self::show`].
    edge: u32,
    /// Received out of order; the one that was changed last stands first (RFC 2018 §4).
    islands: ArrayVec<SackBlock, { MAX_ISLANDS + 1 }>,
    /// Text that came once more, and of which the peer was not told yet (RFC 2883).
    duplicate: Option<SackBlock>,
    /// The last acknowledgement number sent: Last.ACK.sent.
    acked: u32,
    owed: u8,
    ack_at: Option<Instant>,
    /// The longest text of a segment so far: an estimate of the peer's MSS.
    longest: usize,
    /// For measuring what a round trip brings: bytes consumed since then.
    measured: (Instant, usize),
    budget: Budget,
    /// Bytes taken from the budget.
    borrowed: usize,
}

/// What a receiver begins with.
#[derive(Debug)]
pub(crate) struct ReceiverConfig {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The peer's initial sequence number.
    pub(crate) irs: u32,
    /// The window that the SYN of our end has shown.
    pub(crate) window: u16,
    pub(crate) shift: u8,
    /// Size of the buffer.
    pub(crate) buffer: usize,
}

impl Receiver {
    pub(crate) fn new(stack: &mut Stack, now: Instant, config: &ReceiverConfig) -> Self {
        let &ReceiverConfig { local, remote, irs, window, shift, buffer } = config;
        let begin = irs.wrapping_add(1);
        let mut receiver = Self {
            sockets: SocketSet::new(Vec::new()),
            handle: SocketHandle::default(),
            local,
            remote,
            capacity: buffer.max(LEAST_BUFFER),
            inner_ack: 0,
            inner_edge: begin,
            begin,
            fin: None,
            fin_received: false,
            shift,
            edge: begin.wrapping_add(u32::from(window)),
            islands: ArrayVec::new(),
            duplicate: None,
            acked: begin,
            owed: 0,
            ack_at: None,
            longest: 0,
            measured: (now, 0),
            budget: stack.budget.clone(),
            borrowed: 0,
        };
        receiver.establish(stack, now);
        receiver
    }

    /// A fresh socket of the present capacity takes the place of the old one, with nothing received.
    fn establish(&mut self, stack: &mut Stack, now: Instant) {
        let buffer = |size| SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(self.capacity), buffer(0));
        // When it wants to acknowledge, it is to say so at once: when it leaves is decided here.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.listen(self.local).expect("a port that is not 0, and a socket that is not open");
        self.sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        self.handle = self.sockets.add(socket);
        self.enter(stack, now, self.begin.wrapping_sub(1), Flags::SYN, &[]);
        let syn_ack = stack.egress(now, &mut self.sockets).expect("a SYN is answered");
        self.inner_ack = syn_ack.seq.wrapping_add(1);
        self.enter(stack, now, self.begin, Flags::ACK, &[]);
        debug_assert_eq!(self.socket().state(), smoltcp::socket::tcp::State::Established);
        self.inner_edge = self.begin.wrapping_add(self.capacity as u32);
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// RCV.NXT.
    pub(crate) fn nxt(&self) -> u32 {
        self.text_nxt().wrapping_add(u32::from(self.fin_received))
    }

    /// RCV.NXT, the FIN not counted.
    fn text_nxt(&self) -> u32 {
        self.begin.wrapping_add(self.unread() as u32)
    }

    /// The right edge of the window: what is within it is taken.
    pub(crate) fn edge(&self) -> u32 {
        later(earlier(self.edge, self.inner_edge), self.nxt())
    }

    /// The number of the peer's FIN, if it is known.
    pub(crate) fn fin(&self) -> Option<u32> {
        self.fin
    }

    /// The peer's FIN and everything before it was received.
    pub(crate) fn fin_received(&self) -> bool {
        self.fin_received
    }

    /// The last acknowledgement number that was sent.
    pub(crate) fn acked(&self) -> u32 {
        self.acked
    }

    /// Bytes received in order and not consumed.
    pub(crate) fn unread(&self) -> usize {
        self.socket().recv_queue()
    }

    /// An ACK has more to tell than a number.
    pub(crate) fn has_blocks(&self) -> bool {
        self.duplicate.is_some() || !self.islands.is_empty()
    }

    /// The blocks of a SACK option that leaves now: what came twice stands first and is told once (RFC 2883 §4), then what was
    /// received out of order.
    pub(crate) fn take_blocks(&mut self) -> ArrayVec<SackBlock, MAX_SACK_BLOCKS> {
        self.duplicate.take().into_iter().chain(self.islands.iter().copied()).take(MAX_SACK_BLOCKS).collect()
    }

    /// A segment with so many bytes of text from `seq` on has come: if some of them had come before, the peer is to know.
    pub(crate) fn notice_duplicate(&mut self, seq: u32, length: usize) {
        let end = earlier(seq.wrapping_add(length as u32), self.text_nxt());
        if is_before(seq, end) {
            self.duplicate = Some((seq, end));
        }
    }

    /// Copies bytes from the head of what is unread. They stay there.
    pub(crate) fn peek(&mut self, out: &mut [u8]) -> usize {
        self.socket_mut().peek_slice(out).unwrap_or(0)
    }

    /// Hands bytes from the head of what is unread to `take`, which says how many it has taken. Returns that.
    pub(crate) fn consume_with(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = self.socket_mut().recv(|head| {
            let taken = take(head);
            (taken, taken)
        });
        let taken = taken.unwrap_or(0);
        self.begin = self.begin.wrapping_add(taken as u32);
        self.measured.1 += taken;
        taken
    }
}

/// What comes in.
impl Receiver {
    /// Takes the part of a segment that is new and within the window. `payload`: where in `frame` the segment's text begins;
    /// the headers before are written over. False: there is no place for it.
    pub(crate) fn handle_text(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        frame: &mut [u8],
        payload: usize,
        trimmed: &Trimmed,
    ) -> bool {
        let was_in_order = self.islands.is_empty();
        if trimmed.length > 0 {
            self.longest = self.longest.max(trimmed.length);
            let (left, right) = (trimmed.seq, trimmed.seq.wrapping_add(trimmed.length as u32));
            let ahead = is_before(self.text_nxt(), left);
            if ahead && !self.add_island(left, right) {
                return false;
            }
            let text = payload + trimmed.skip;
            self.enter_in_place(stack, now, frame, text, trimmed);
            let nxt = self.text_nxt();
            self.islands.retain(|island| is_before(nxt, island.0));
            debug_assert!(ahead || !is_before(nxt, right));
        }
        // A FIN in front of text that has come before contradicts it.
        if let Some(fin) = trimmed.fin
            && !is_before(fin, self.text_nxt())
            && self.islands.iter().all(|island| !is_before(fin, island.1))
        {
            self.fin = Some(fin);
        }
        let fin_arrives = !self.fin_received && self.fin == Some(self.text_nxt());
        self.fin_received |= fin_arrives;
        // RFC 5681 §4.2: out of order, filling a hole, or with a FIN, in order or not: at once; every second full segment too.
        let unacked = self.nxt().wrapping_sub(self.acked) as usize;
        if !was_in_order || !self.islands.is_empty() || fin_arrives || trimmed.fin.is_some() || trimmed.cut {
            self.owe_ack();
        } else if unacked >= 2 * self.longest.max(LEAST_SEGMENT) {
            self.owed = self.owed.max(1);
        } else if trimmed.length > 0 {
            self.ack_at.get_or_insert(now + ACK_DELAY);
        }
        true
    }

    /// Text behind a hole. False: it would make one piece too many.
    fn add_island(&mut self, mut left: u32, mut right: u32) -> bool {
        let touches =
            |island: &SackBlock, left: u32, right: u32| !is_before(right, island.0) && !is_before(island.1, left);
        if self.islands.len() >= MAX_ISLANDS && !self.islands.iter().any(|island| touches(island, left, right)) {
            return false;
        }
        self.islands.retain(|island| {
            let joins = touches(island, left, right);
            if joins {
                (left, right) = (earlier(left, island.0), later(right, island.1));
            }
            !joins
        });
        self.islands.insert(0, (left, right));
        true
    }

    /// Writes plain headers before the text in the frame itself, and hands both to smoltcp.
    fn enter_in_place(&mut self, stack: &mut Stack, now: Instant, frame: &mut [u8], text: usize, trimmed: &Trimmed) {
        let headers = self.ip_header_length() + TCP_HEADER;
        // The segment's own headers were at least as long, and lay there.
        let packet = &mut frame[text - headers..text + trimmed.length];
        self.write_headers(packet, trimmed.seq, Flags::ACK.with(Flags::PSH));
        let overheard = stack.ingress(now, &mut self.sockets, packet);
        self.note(overheard);
    }

    /// Hands smoltcp a segment that no peer has sent.
    fn enter(&mut self, stack: &mut Stack, now: Instant, seq: u32, flags: Flags, text: &[u8]) {
        // With a window scale option in its SYN, smoltcp uses one too.
        let options: &[u8] = if flags.syn() { &[3, 3, PEER_SHIFT, 0] } else { &[] };
        let headers = self.ip_header_length() + TCP_HEADER;
        let mut packet = vec![0; headers + options.len() + text.len()];
        self.write_headers(&mut packet, seq, flags);
        packet[headers - TCP_HEADER + 12] = (((TCP_HEADER + options.len()) / 4) << 4) as u8;
        packet[headers..headers + options.len()].copy_from_slice(options);
        packet[headers + options.len()..].copy_from_slice(text);
        let overheard = stack.ingress(now, &mut self.sockets, &packet);
        self.note(overheard);
    }

    fn ip_header_length(&self) -> usize {
        if self.local.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
    }

    fn write_headers(&self, packet: &mut [u8], seq: u32, flags: Flags) {
        let ip = self.ip_header_length();
        let length = packet.len() - ip;
        wire::write_ip_header(packet, &Envelope::default(), self.remote.ip(), self.local.ip(), length);
        let tcp = &mut packet[ip..ip + TCP_HEADER];
        tcp[0..2].copy_from_slice(&self.remote.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.local.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&if flags.ack() { self.inner_ack } else { 0 }.to_be_bytes());
        tcp[12] = ((TCP_HEADER / 4) << 4) as u8;
        tcp[13] = flags.bits();
        tcp[14..16].fill(0xff); // A window: smoltcp has nothing to send in it.
        tcp[16..20].fill(0);
    }

    /// What smoltcp has acknowledged, it will go on from.
    fn note(&mut self, overheard: Option<Overheard>) {
        if let Some(Overheard { ack, window, .. }) = overheard {
            self.inner_edge = ack.wrapping_add(u32::from(window) << self.inner_shift());
        }
    }

    /// The shift of smoltcp's windows: the smallest with which 16 bits can express the capacity.
    fn inner_shift(&self) -> u32 {
        (usize::BITS - self.capacity.leading_zeros()).saturating_sub(16)
    }
}

/// What the peer is told.
impl Receiver {
    /// An ACK is owed that would tell the peer nothing new, or something that it waits for.
    pub(crate) fn owe_ack(&mut self) {
        self.owed = (self.owed + 1).min(MAX_OWED);
    }

    /// Whether an ACK is to be sent now, if nothing else is.
    pub(crate) fn wants_ack(&self, now: Instant) -> bool {
        self.owed > 0 || self.ack_at.is_some_and(|at| at <= now) || self.window_has_opened()
    }

    /// When an ACK is to be sent that waits for text to ride on.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        if self.owed > 0 { Some(Instant::ZERO) } else { self.ack_at }
    }

    /// Room for text behind RCV.NXT.
    fn room(&self) -> usize {
        self.capacity - self.unread()
    }

    /// The window is twice what the peer knows of, and worth a segment (RFC 9293 §3.8.6.2.2; `tcp_cleanup_rbuf` of Linux).
    fn window_has_opened(&self) -> bool {
        let shown = i64::from(self.edge.wrapping_sub(self.nxt()) as i32);
        // What `show` makes of it, at least.
        let room = self.room() as i64 - i64::from(self.slack()) - i64::from(self.inner_unit() - 1);
        !self.fin_received && room >= 2 * shown && room - shown >= self.worth_showing()
    }

    /// Bytes of the buffer that the peer is not shown, for the rounding of windows.
    fn slack(&self) -> u32 {
        // smoltcp's own rounding may take back less than a unit of its own.
        ((1 << self.shift) - 1) + (self.inner_unit() - 1)
    }

    /// smoltcp rounds windows down to a multiple of this.
    fn inner_unit(&self) -> u32 {
        1 << self.inner_shift()
    }

    /// By how much the window has to grow before the peer is told (RFC 9293 §3.8.6.2.2).
    fn worth_showing(&self) -> i64 {
        (self.capacity / 2).min(self.longest.max(LEAST_SEGMENT)) as i64
    }

    /// What to tell the peer in a segment that leaves now; counts as told.
    pub(crate) fn acknowledge(&mut self, stack: &mut Stack, now: Instant) -> Ack {
        let opened = self.window_has_opened();
        if self.owed > 0 || self.ack_at.is_some() || opened {
            let overheard = stack.egress(now, &mut self.sockets);
            self.note(overheard);
            if opened && overheard.is_none() {
                // smoltcp has another idea of what is worth telling; an old byte makes it acknowledge in any case.
                self.enter(stack, now, self.text_nxt().wrapping_sub(1), Flags::ACK.with(Flags::PSH), &[0]);
            }
        }
        self.owed = self.owed.saturating_sub(1);
        self.ack_at = None;
        self.acked = self.nxt();
        Ack { number: self.acked, window: self.show() }
    }

    /// What a segment says that the peer will drop: nothing counts as told by it, and no more window is shown.
    pub(crate) fn idle_ack(&self) -> Ack {
        // Rounded down: what the next true ACK rounds up to may not find room then.
        let window = later(self.edge, self.nxt()).wrapping_sub(self.nxt()) >> self.shift;
        Ack { number: self.nxt(), window: u16::try_from(window).unwrap_or(u16::MAX) }
    }

    /// The window field for the peer. The edge that it stands for moves forward by what is worth it, and not back; only if
    /// what the field rounds up to would not find room, it is rounded down (RFC 7323 §2.4).
    fn show(&mut self) -> u16 {
        let target = self.inner_edge.wrapping_sub(self.slack());
        let gain = target.wrapping_sub(self.edge) as i32;
        if !self.fin_received && i64::from(gain) >= self.worth_showing() {
            self.edge = target;
        }
        let field = self.window_field();
        self.edge = later(self.edge, self.nxt().wrapping_add(u32::from(field) << self.shift));
        field
    }

    /// The window that was shown last, as a field of a segment that leaves now.
    pub(crate) fn window_field(&self) -> u16 {
        let nxt = self.nxt();
        let window = if is_before(nxt, self.edge) { self.edge.wrapping_sub(nxt) } else { 0 };
        let rounded_up = window.div_ceil(1 << self.shift);
        let sure = self.inner_edge.wrapping_sub(self.inner_unit() - 1);
        let fits = !is_before(sure, nxt.wrapping_add(rounded_up << self.shift));
        u16::try_from(if fits { rounded_up } else { window >> self.shift }).unwrap_or(u16::MAX)
    }
}

/// Size.
impl Receiver {
    /// Exchanges the buffer for a larger one if a round trip brings half of it, as receive buffers of Linux grow. Only with
    /// nothing received out of order.
    pub(crate) fn grow(&mut self, stack: &mut Stack, now: Instant, rtt: Option<Duration>) {
        let (since, bytes) = self.measured;
        let round_trip = rtt.unwrap_or_default().max(LEAST_RTT);
        let full = bytes >= self.capacity / 2 && now <= since + round_trip * 2;
        if now >= since + round_trip && !full {
            self.measured = (now, 0);
        }
        let most = (usize::from(u16::MAX) << self.shift).min(LARGEST_BUFFER);
        let wanted = if full { (2 * self.capacity).min(most) } else { 0 };
        if wanted <= self.capacity || !self.islands.is_empty() || self.fin_received {
            return;
        }
        self.measured = (now, 0);
        if !self.budget.take(wanted - self.capacity) {
            return;
        }
        self.borrowed += wanted - self.capacity;
        let mut unread = vec![0; self.unread()];
        self.peek(&mut unread);
        self.capacity = wanted;
        self.establish(stack, now);
        for (number, text) in unread.chunks(LEAST_BUFFER / 2).enumerate() {
            let seq = self.begin.wrapping_add((number * (LEAST_BUFFER / 2)) as u32);
            self.enter(stack, now, seq, Flags::ACK.with(Flags::PSH), text);
        }
        debug_assert_eq!(self.unread(), unread.len());
        let overheard = stack.egress(now, &mut self.sockets);
        self.note(overheard);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.budget.give_back(self.borrowed);
    }
}
