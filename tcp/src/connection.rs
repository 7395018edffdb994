//! One side of a flow: a terminated TCP connection.

use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};

use crate::sequence::{Admission, Entry, Queues, Sequence, mend_options};
use crate::stack::{FrameSink, Stack};
use crate::wire::{self, Flags, Headers, IPV4_HEADER, IPV6_HEADER, L2Header, Segment, TCP_HEADER};

/// Largest queue in bytes (RFC 7323 §2.3: what a window can express).
const MAX_BUFFER: usize = 1 << 30;
/// Longest TCP header, in bytes.
const MAX_TCP_HEADER: usize = 60;
/// How long [`Connection::poll_at`] asks to wait when something is due that cannot be sent, for want of a frame.
const RETRY: Duration = Duration::from_millis(1);
/// How long smoltcp is asked for segments in TIME-WAIT. Later it would forget the connection, unread bytes included; how long
/// TIME-WAIT lasts is the caller's choice.
const TIME_WAIT_POLL: Duration = Duration::from_secs(5);
/// Duplicate ACKs after which smoltcp retransmits, and one more: it needs a first to compare with.
const DUPLICATE_ACKS: usize = 4;

/// Sizes of a connection's queues, each 1 to 2^30 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes received and not consumed, in order or not. A message that is peeked at whole must fit in, with two segments'
    /// text to spare: a Linux peer waits for its probe timer before it sends into a window smaller than a segment.
    pub receive_buffer: usize,
    /// Bytes to send and not acknowledged.
    pub send_buffer: usize,
}

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An address is unspecified, multicast or broadcast, a port is 0, or the two ends are of different address families.
    #[error("no TCP connection is possible between these addresses")]
    Unaddressable,
    /// A connection is to be opened by a segment that is not a SYN.
    #[error("the segment is not a SYN")]
    NotASyn,
}

/// The states of RFC 9293 §3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection.
    Closed,
    /// Waiting for a SYN.
    Listen,
    /// A SYN was sent.
    SynSent,
    /// A SYN was received and is being answered.
    SynReceived,
    /// Data flows.
    Established,
    /// We have sent FIN.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// The peer has sent FIN.
    CloseWait,
    /// Both have sent FIN, ours is not acknowledged.
    Closing,
    /// Both have sent FIN, the peer's first; ours is not acknowledged.
    LastAck,
    /// Both have sent FIN and acknowledged the other's.
    TimeWait,
}

/// One terminated TCP connection.
///
/// Order of calls: one of the two opens; then for each segment [`Self::handle_segment`]; after a batch of these, and after any
/// of `consume`, `send`, `splice`, `finish`, `abort`: [`Self::poll_transmit`] until it returns false; then wait for the
/// next segment or for [`Self::poll_at`], and call `poll_transmit` again.
#[derive(Debug)]
pub struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    sequence: Sequence,
    local: SocketAddr,
    remote: SocketAddr,
    /// Bytes ever consumed and ever queued for sending, modulo 2^32.
    consumed: u32,
    queued: u32,
    /// No more bytes will be queued.
    finishing: bool,
    ended: Option<Ended>,
    time_wait_since: Option<Instant>,
    /// Something was due and could not be sent: not before this.
    retry_at: Instant,
}

/// How a connection ended without closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The peer reset it.
    ByPeer,
    /// We reset it.
    ByUs { reset_is_pending: bool },
}

/// Opening.
impl Connection {
    /// Opens a connection from `local` to `remote`. The SYN leaves with the next [`Self::poll_transmit`], with sequence
    /// number `iss`.
    pub fn active_open(
        stack: &mut Stack,
        _now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        iss: u32,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let mut connection = Self::closed(local, remote, iss, options)?;
        connection
            .socket_mut()
            .connect(stack.interface.context(), remote, local)
            .map_err(|_| OpenError::Unaddressable)?;
        Ok(connection)
    }

    /// Opens the connection that `syn` asks for. `h`: its headers, parsed from it. The SYN-ACK leaves with the next
    /// [`Self::poll_transmit`], with sequence number `iss`.
    pub fn passive_open(
        stack: &mut Stack,
        now: Instant,
        syn: &[u8],
        h: &Headers,
        iss: u32,
        options: &Options,
    ) -> Result<Self, OpenError> {
        if !h.flags.syn() || h.flags.ack() || h.flags.rst() || h.flags.fin() {
            return Err(OpenError::NotASyn);
        }
        let mut connection = Self::closed(h.destination, h.source, iss, options)?;
        connection.socket_mut().listen(h.destination).map_err(|_| OpenError::Unaddressable)?;
        // Only the headers: text on a SYN comes again after the handshake.
        let mut headers = [0; IPV6_HEADER + MAX_TCP_HEADER];
        let (tcp_offset, header_length) = (IPV6_HEADER, h.payload_offset - h.tcp_offset);
        headers[tcp_offset..][..header_length].copy_from_slice(&syn[h.tcp_offset..h.payload_offset]);
        let entry = Entry { seq: h.seq, ack: 0, flags: h.flags, window: h.window, payload: 0, acknowledge: false };
        let held =
            Headers { tcp_offset, payload_offset: tcp_offset + header_length, end: tcp_offset + header_length, ..*h };
        connection.enter(stack, now, &mut headers, &held, &entry, &h.l2, &mut NoFrames);
        if connection.state() == State::SynReceived { Ok(connection) } else { Err(OpenError::Unaddressable) }
    }

    fn closed(local: SocketAddr, remote: SocketAddr, iss: u32, options: &Options) -> Result<Self, OpenError> {
        if local.is_ipv4() != remote.is_ipv4() || !is_addressable(local) || !is_addressable(remote) {
            return Err(OpenError::Unaddressable);
        }
        let receive_buffer = options.receive_buffer.clamp(1, MAX_BUFFER);
        let send_buffer = options.send_buffer.clamp(1, MAX_BUFFER);
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; receive_buffer]), SocketBuffer::new(vec![0; send_buffer]));
        // Messages are handed on when they are complete; to wait for more would only add delay.
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Cubic);
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Ok(Self {
            sockets,
            handle,
            sequence: Sequence::new(iss, receive_buffer),
            local,
            remote,
            consumed: 0,
            queued: 0,
            finishing: false,
            ended: None,
            time_wait_since: None,
            retry_at: Instant::ZERO,
        })
    }
}

/// Segments.
impl Connection {
    /// Takes a segment of the peer. `h`: its headers, parsed from `frame`; its checksum has been verified. The frame's headers
    /// are written over. An immediate answer goes to `sink` behind the link-layer header `l2`.
    pub fn handle_segment(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        frame: &mut [u8],
        h: &Headers,
        l2: &L2Header,
        sink: &mut impl FrameSink,
    ) {
        if self.ended.is_some() || h.source != self.remote || h.destination != self.local {
            return;
        }
        self.update();
        match self.sequence.admit(self.state(), h) {
            Admission::Discard => {}
            Admission::Acknowledge => {
                stack.counters.unacceptable_segments += 1;
                self.acknowledge(l2, sink);
            }
            Admission::Challenge => {
                stack.counters.unacceptable_segments += 1;
                if self.sequence.may_challenge(now) {
                    stack.counters.challenge_acks += 1;
                    self.acknowledge(l2, sink);
                } else {
                    stack.counters.challenge_acks_withheld += 1;
                }
            }
            Admission::Refuse => {
                stack.counters.unacceptable_segments += 1;
                wire::build_rst(sink, &Headers { l2: l2.reversed(), ..*h });
            }
            Admission::Reset => self.ended = Some(Ended::ByPeer),
            Admission::Enter(entry) => {
                self.enter(stack, now, frame, h, &entry, l2, sink);
                if entry.acknowledge {
                    self.acknowledge(l2, sink);
                }
            }
        }
    }

    /// Sends at most one segment. True: it was sent, and there may be more. False: there is nothing to send now, or no frame.
    pub fn poll_transmit(&mut self, stack: &mut Stack, now: Instant, l2: &L2Header, sink: &mut impl FrameSink) -> bool {
        if self.ended.is_some() {
            return self.transmit_reset(now, l2, sink);
        }
        if !self.smoltcp_may_be_polled(now) {
            return false;
        }
        self.finish_if_window_allows();
        self.update();
        if stack.egress(now, &mut self.sockets, &mut self.sequence, l2, sink) {
            return true;
        }
        let mut due = stack.interface.poll_at(now, &self.sockets);
        if due.is_none() && self.awaits_ack() && self.is_established_or_later() && self.state() != State::LastAck {
            self.revive(stack, now);
            if stack.egress(now, &mut self.sockets, &mut self.sequence, l2, sink)
                || self.revive_fin(stack, now, l2, sink)
            {
                return true;
            }
            due = stack.interface.poll_at(now, &self.sockets);
        }
        if due.is_some_and(|due| due <= now) {
            self.retry_at = now + RETRY;
        }
        false
    }

    /// When [`Self::poll_transmit`] has to be called next if nothing else happens. None: not before something else happens.
    pub fn poll_at(&mut self, stack: &mut Stack, now: Instant) -> Option<Instant> {
        let due = match self.ended {
            Some(Ended::ByUs { reset_is_pending: true }) => now,
            Some(_) => return None,
            None if !self.smoltcp_may_be_polled(now) => return None,
            None => stack.interface.poll_at(now, &self.sockets)?.max(now),
        };
        if self.time_wait_since.is_some_and(|since| due >= since + TIME_WAIT_POLL) {
            return None;
        }
        Some(due.max(self.retry_at))
    }
}

/// Received bytes.
impl Connection {
    /// Bytes that were received in order and not consumed.
    pub fn receive_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Copies bytes from the head of the receive queue, as many as there are and fit in. They stay in the queue.
    pub fn peek(&mut self, out: &mut [u8]) -> usize {
        self.socket_mut().peek_slice(out).unwrap_or(0)
    }

    /// The longest piece of the receive queue's head that lies in one piece.
    pub fn peek_contiguous(&mut self) -> &[u8] {
        self.socket_mut().peek(usize::MAX).unwrap_or(&[])
    }

    /// Removes `n` bytes, or as many as there are, from the head of the receive queue. The window opens with the next
    /// [`Self::poll_transmit`].
    pub fn consume(&mut self, n: usize) {
        let mut left = n.min(self.receive_queue());
        while left > 0 {
            let removed = self.socket_mut().recv(|head| {
                let removed = head.len().min(left);
                (removed, removed)
            });
            let Ok(removed @ 1..) = removed else { break };
            self.consumed = self.consumed.wrapping_add(removed as u32);
            left -= removed;
        }
    }

    /// The peer has sent FIN, and all bytes before it are in the receive queue or consumed.
    pub fn fin_received(&self) -> bool {
        self.sequence.fin_received
    }
}

/// Bytes to send.
impl Connection {
    /// Bytes that the send queue takes now. 0 also when bytes cannot be sent in this state.
    pub fn send_room(&self) -> usize {
        let socket = self.socket();
        if self.ended.is_some() || self.finishing || !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    /// Queues bytes; returns how many found room.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if self.send_room() == 0 {
            return 0;
        }
        let sent = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.queued = self.queued.wrapping_add(sent as u32);
        sent
    }

    /// Bytes in the send queue: not sent, or sent and not acknowledged.
    pub fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    /// Whether the peer owes us an acknowledgement: of bytes, of our SYN or of our FIN.
    pub fn awaits_ack(&self) -> bool {
        use State::{Closing, FinWait1, LastAck, SynReceived, SynSent};
        let control = matches!(self.state(), SynSent | SynReceived | FinWait1 | Closing | LastAck);
        self.ended.is_none() && (control || self.send_queue() > 0)
    }

    /// Sends FIN behind the queued bytes. No more can be queued. Bytes can still be received.
    pub fn finish(&mut self) {
        self.finishing = true;
        self.finish_if_window_allows();
    }

    /// Ends the connection with a RST, which leaves with the next [`Self::poll_transmit`]. Nothing happens if the connection
    /// is over already, or in TIME-WAIT.
    pub fn abort(&mut self) {
        if !matches!(self.state(), State::Closed | State::TimeWait) {
            self.update();
            self.ended = Some(Ended::ByUs { reset_is_pending: true });
        }
    }
}

/// Moves up to `limit` bytes from one connection's receive queue to another's send queue. Returns how many: as many as there
/// are and find room. They are copied once.
pub fn splice(from: &mut Connection, to: &mut Connection, limit: usize) -> usize {
    let limit = limit.min(to.send_room());
    let mut moved = 0;
    while moved < limit {
        let (source, target) = (from.socket_mut(), to.socket_mut());
        let piece = source.recv(|head| {
            let copied = target
                .send(|room| {
                    let length = head.len().min(room.len()).min(limit - moved);
                    room[..length].copy_from_slice(&head[..length]);
                    (length, length)
                })
                .unwrap_or(0);
            (copied, copied)
        });
        let Ok(piece @ 1..) = piece else { break };
        moved += piece;
    }
    from.consumed = from.consumed.wrapping_add(moved as u32);
    to.queued = to.queued.wrapping_add(moved as u32);
    moved
}

/// State.
impl Connection {
    /// The state of RFC 9293. A connection that was reset, by either end, is closed.
    pub fn state(&self) -> State {
        use smoltcp::socket::tcp::State as Inner;
        if self.ended.is_some() {
            return State::Closed;
        }
        match self.socket().state() {
            Inner::Closed => State::Closed,
            Inner::Listen => State::Listen,
            Inner::SynSent => State::SynSent,
            Inner::SynReceived => State::SynReceived,
            Inner::Established => State::Established,
            Inner::FinWait1 => State::FinWait1,
            Inner::FinWait2 => State::FinWait2,
            Inner::CloseWait => State::CloseWait,
            Inner::Closing => State::Closing,
            Inner::LastAck => State::LastAck,
            Inner::TimeWait => State::TimeWait,
        }
    }

    /// The handshake is complete, and the connection is not closed (TIME-WAIT counts).
    pub fn is_established_or_later(&self) -> bool {
        !matches!(self.state(), State::Closed | State::Listen | State::SynSent | State::SynReceived)
    }

    /// The connection is over, and nothing is left to be sent: no reset either.
    pub fn is_closed(&self) -> bool {
        self.state() == State::Closed && self.ended != Some(Ended::ByUs { reset_is_pending: true })
    }

    /// A valid RST of the peer ended the connection. What was received before it can still be read.
    pub fn was_reset(&self) -> bool {
        self.ended == Some(Ended::ByPeer)
    }

    /// Both FINs are sent and acknowledged, ours first.
    pub fn is_time_wait(&self) -> bool {
        self.state() == State::TimeWait
    }

    /// Our address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Our initial sequence number.
    pub fn iss(&self) -> u32 {
        self.sequence.iss
    }

    /// The peer's initial sequence number, IRS. None: its SYN has not arrived.
    pub fn peer_iss(&self) -> Option<u32> {
        self.sequence.irs
    }

    /// SND.NXT: behind the highest sequence number that was ever sent.
    pub fn snd_nxt(&self) -> u32 {
        self.sequence.snd_nxt
    }

    /// RCV.NXT: the sequence number that is expected next. 0 before the peer's SYN.
    pub fn rcv_nxt(&self) -> u32 {
        self.sequence.rcv_nxt
    }
}

impl Connection {
    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Tells `sequence` where the queues are.
    fn update(&mut self) {
        use smoltcp::socket::tcp::State as Inner;
        let socket: &Socket<'static> = self.sockets.get(self.handle);
        let state = socket.state();
        if matches!(state, Inner::CloseWait | Inner::Closing | Inner::LastAck | Inner::TimeWait) {
            self.sequence.fin_received = true;
        }
        self.sequence.update(&Queues {
            syn_acked: !matches!(state, Inner::Listen | Inner::SynSent | Inner::SynReceived),
            fin_acked: matches!(state, Inner::FinWait2 | Inner::TimeWait),
            acked: self.queued.wrapping_sub(socket.send_queue() as u32),
            unacked: socket.send_queue(),
            received: self.consumed.wrapping_add(socket.recv_queue() as u32),
            receive_room: socket.recv_capacity() - socket.recv_queue(),
        });
    }

    /// Writes `entry` into the segment's headers and hands it to smoltcp.
    #[expect(clippy::too_many_arguments, reason = "what handle_segment was called with, and the entry")]
    fn enter(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        frame: &mut [u8],
        h: &Headers,
        entry: &Entry,
        l2: &L2Header,
        sink: &mut impl FrameSink,
    ) {
        let header_length = h.payload_offset - h.tcp_offset;
        let tcp = &mut frame[h.tcp_offset..h.payload_offset];
        tcp[4..8].copy_from_slice(&entry.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&entry.ack.to_be_bytes());
        tcp[13] = entry.flags.bits();
        tcp[14..16].copy_from_slice(&entry.window.to_be_bytes());
        let window_scale = mend_options(&mut tcp[TCP_HEADER..]);
        // A plain IP header right before the TCP header takes the place of options and extension headers, which smoltcp
        // does not know all of. They are at least as long.
        let ip_length = if h.source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let packet = &mut frame[h.tcp_offset - ip_length..h.payload_offset + entry.payload];
        wire::write_ip_header(packet, h.source.ip(), h.destination.ip(), header_length + entry.payload);
        stack.ingress(now, &mut self.sockets, packet, &mut self.sequence, l2, sink);
        if self.sequence.irs.is_none() && matches!(self.state(), State::SynReceived | State::Established) {
            self.sequence.synchronized(h, window_scale);
        }
        self.update();
        if self.time_wait_since.is_none() && self.is_time_wait() {
            self.time_wait_since = Some(now);
        }
    }

    /// Sends an ACK without text.
    fn acknowledge(&self, l2: &L2Header, sink: &mut impl FrameSink) {
        if self.sequence.irs.is_some() && self.sequence.has_sent_syn() {
            self.build(Flags::ACK, self.sequence.offered_window(), l2, sink);
        }
    }

    fn transmit_reset(&mut self, now: Instant, l2: &L2Header, sink: &mut impl FrameSink) -> bool {
        if self.ended != Some(Ended::ByUs { reset_is_pending: true }) {
            return false;
        }
        // A peer that knows nothing of us, as we nothing of it, needs no reset.
        let needless = self.sequence.irs.is_none() && !self.sequence.has_sent_syn();
        let flags = if self.sequence.irs.is_some() { Flags::RST.with(Flags::ACK) } else { Flags::RST };
        let sent = !needless && self.build(flags, 0, l2, sink);
        if sent || needless {
            self.ended = Some(Ended::ByUs { reset_is_pending: false });
        } else {
            self.retry_at = now + RETRY;
        }
        sent
    }

    fn build(&self, flags: Flags, window: u16, l2: &L2Header, sink: &mut impl FrameSink) -> bool {
        let ack = if flags.ack() { self.sequence.rcv_nxt } else { 0 };
        let (source, destination) = (self.local, self.remote);
        wire::build_segment(sink, l2, &Segment { source, destination, seq: self.sequence.snd_nxt, ack, flags, window })
    }

    /// FIN goes into smoltcp's queue when the window has room for all bytes before it: in LAST-ACK smoltcp does not look at
    /// the window of an ACK that acknowledges nothing; and a fast retransmission, which ignores the window, would send the FIN
    /// too early, after which smoltcp's window probes are empty and nobody answers them.
    fn finish_if_window_allows(&mut self) {
        if !self.finishing || self.ended.is_some() {
            return;
        }
        match self.state() {
            // smoltcp would forget that its SYN is not acknowledged, and be one number off from then on.
            State::SynSent | State::SynReceived => {}
            _ if self.send_queue() > self.sequence.send_window() => {}
            _ => self.socket_mut().close(),
        }
    }

    fn smoltcp_may_be_polled(&self, now: Instant) -> bool {
        self.time_wait_since.is_none_or(|since| now < since + TIME_WAIT_POLL)
    }

    /// Something is not acknowledged, but no timer of smoltcp runs: after a retransmission timeout with a closed window it
    /// has none that would find out that the window has opened, and after window probes none for what was sent before them.
    /// An ACK as the peer would send it if nothing had changed starts the probe timer if the window is closed; the fourth
    /// starts a retransmission.
    fn revive(&mut self, stack: &mut Stack, now: Instant) {
        let ip_length = if self.local.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let mut packet = [0; IPV6_HEADER + TCP_HEADER];
        let packet = &mut packet[..ip_length + TCP_HEADER];
        for _ in 0..DUPLICATE_ACKS {
            wire::write_ip_header(packet, self.remote.ip(), self.local.ip(), TCP_HEADER);
            let tcp = &mut packet[ip_length..];
            tcp[0..2].copy_from_slice(&self.remote.port().to_be_bytes());
            tcp[2..4].copy_from_slice(&self.local.port().to_be_bytes());
            tcp[4..8].copy_from_slice(&self.sequence.rcv_nxt.to_be_bytes());
            tcp[8..12].copy_from_slice(&self.sequence.to_smoltcp(self.sequence.snd_una).to_be_bytes());
            tcp[12] = ((TCP_HEADER / 4) << 4) as u8;
            tcp[13] = Flags::ACK.bits();
            tcp[14..16].copy_from_slice(&self.sequence.send_window_field().to_be_bytes());
            let Self { sockets, sequence, .. } = self;
            stack.ingress(now, sockets, packet, sequence, &L2Header::default(), &mut NoFrames);
            if stack.interface.poll_at(now, sockets).is_some() {
                break;
            }
        }
    }

    /// The last of [`Self::revive`]'s retransmissions does not begin by itself if only a FIN is left: a keep-alive that is
    /// due makes it begin. True: the FIN was sent.
    fn revive_fin(&mut self, stack: &mut Stack, now: Instant, l2: &L2Header, sink: &mut impl FrameSink) -> bool {
        if self.send_queue() > 0 || stack.interface.poll_at(now, &self.sockets).is_some() {
            return false;
        }
        self.socket_mut().set_keep_alive(Some(RETRY));
        let sent = stack.egress(now, &mut self.sockets, &mut self.sequence, l2, sink);
        self.socket_mut().set_keep_alive(None);
        sent
    }
}

/// Takes nothing.
struct NoFrames;

impl FrameSink for NoFrames {
    fn frame(&mut self, _length: usize) -> Option<&mut [u8]> {
        None
    }
}

fn is_addressable(end: SocketAddr) -> bool {
    let ip = end.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    end.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}
