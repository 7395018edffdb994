//! One side of a flow: a terminated TCP connection, from its handshake to its end.

use std::net::{IpAddr, SocketAddr};

use smoltcp::time::{Duration, Instant};

use crate::handshake::Syn;
use crate::receiver::{Receiver, ReceiverConfig};
use crate::remains::{self, Remains};
use crate::sender::{Chunk, Feedback, Sender, SenderConfig};
use crate::sequence::{Admission, CHALLENGE_ACKS_PER_SECOND, Standing, Trimmed, is_before};
use crate::stack::{FrameSink, Stack};
use crate::timestamps::Clock;
use crate::wire::{
    self, Envelope, Flags, Headers, IPV4_HEADER, IPV6_HEADER, OptionWriter, Segment, SegmentOptions, TCP_HEADER,
};

/// How long [`Connection::poll_at`] asks to wait when something is due that cannot be sent, for want of a frame.
const RETRY: Duration = Duration::from_millis(1);
const CHALLENGE_PERIOD: Duration = Duration::from_secs(1);
/// MSS of a peer that names none, by IP version (RFC 9293 §3.7.1).
const DEFAULT_MSS: [u16; 2] = [536, 1220];
/// Least MSS that a peer is believed: as `TCP_MIN_SND_MSS` of Linux, so that each segment carries something.
const LEAST_MSS: u16 = 48;
/// Bytes that the timestamps option takes.
const TIMESTAMPS_LENGTH: usize = 12;
/// A path that carries less than this is not believed, by IP version: `min_pmtu` of Linux; RFC 8200 §5.
const LEAST_PATH_MTU: [usize; 2] = [552, 1280];

/// Sizes of a connection's queues.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes received and not consumed, in order or not, up to 2^30; at least 64 KiB are taken. A message that is peeked at
    /// whole must fit in, with two segments' text to spare: a Linux peer waits for its probe timer before it sends into a
    /// window smaller than a segment. Grows by itself when the peer fills it in one round trip.
    pub receive_buffer: usize,
}

/// A handshake that two hosts have made through us, as one of the two connections sees it that follow from it.
#[derive(Clone, Copy, Debug)]
pub struct Handshake {
    /// Address and port of our end: those of the host across.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The SYN or SYN-ACK that our end has shown to the peer.
    pub ours: Syn,
    /// The peer's.
    pub peers: Syn,
    /// How long the peer took to answer.
    pub rtt: Option<Duration>,
}

/// Why a connection cannot be terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An address is unspecified, multicast or broadcast, a port is 0, or the two ends are of different address families.
    #[error("no TCP connection is possible between these addresses")]
    Unaddressable,
}

/// The states of RFC 9293 §3.3.2 that a connection has behind its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection, or none any more.
    Closed,
    /// Data flows.
    Established,
    /// We have sent FIN.
    FinWait1,
    /// Our FIN is acknowledged.
    FinWait2,
    /// The peer has sent FIN.
    CloseWait,
    /// Both have sent FIN, ours before we saw the peer's, and ours is not acknowledged.
    Closing,
    /// Both have sent FIN, the peer's first; ours is not acknowledged.
    LastAck,
    /// Both have sent FIN, ours before we saw the peer's, and acknowledged the other's.
    TimeWait,
}

/// One terminated TCP connection.
///
/// Order of calls: one of the two opens; then for each segment [`Self::handle_segment`]; after a batch of these, and after any
/// of `consume`, `send`, `splice`, `finish`, `abort`: [`Self::poll_transmit`] until it returns false; then wait for the
/// next segment or for [`Self::poll_at`], and call `poll_transmit` again.
#[derive(Debug)]
pub struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
    receiver: Receiver,
    sender: Sender,
    /// If timestamps were negotiated.
    clock: Option<Clock>,
    ended: Option<Ended>,
    /// Our FIN has left before the peer's arrived.
    closed_first: bool,
    /// The peer has asked whether we are still there.
    probed: bool,
    /// The peer is to be asked.
    probe_is_pending: bool,
    challenges: u32,
    challenges_since: Instant,
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
    /// The connection to the host that has sent the first SYN, and the ACK of the other's.
    pub fn passive_open(
        stack: &mut Stack,
        now: Instant,
        handshake: &Handshake,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let Handshake { local, remote, ours, peers, rtt } = *handshake;
        if !is_possible(local, remote) {
            return Err(OpenError::Unaddressable);
        }
        // RFC 7323 §2.2, §3.2, RFC 2018 §2: only what both have in their SYN counts.
        let (own_shift, peers_shift) = ours.options.window_scale.zip(peers.options.window_scale).unwrap_or_default();
        let clock = ours.options.timestamps.zip(peers.options.timestamps);
        let version = usize::from(local.is_ipv6());
        let peers_mss = usize::from(peers.options.mss.unwrap_or(DEFAULT_MSS[version]).max(LEAST_MSS));
        let mss = peers_mss.min(stack.mtu() - headers_length(local)) - clock.map_or(0, |_| TIMESTAMPS_LENGTH);
        let receiver = ReceiverConfig {
            local,
            remote,
            irs: peers.seq,
            window: ours.window,
            shift: own_shift,
            buffer: options.receive_buffer,
        };
        let sender = SenderConfig {
            iss: ours.seq,
            irs: peers.seq,
            window: peers.window,
            shift: peers_shift,
            mss,
            sack: ours.options.sack_permitted && peers.options.sack_permitted,
            rtt,
            budget: stack.budget.clone(),
        };
        Ok(Self {
            local,
            remote,
            receiver: Receiver::new(stack, now, &receiver),
            sender: Sender::new(now, sender),
            clock: clock.map(|(ours, peers)| Clock::new(now, ours.value, peers.value)),
            ended: None,
            closed_first: false,
            probed: false,
            probe_is_pending: false,
            challenges: 0,
            challenges_since: Instant::ZERO,
            retry_at: Instant::ZERO,
        })
    }

    /// The connection to the host that has answered the first SYN, and waits for the ACK of its own: that leaves with the next
    /// [`Self::poll_transmit`].
    pub fn active_open(
        stack: &mut Stack,
        now: Instant,
        handshake: &Handshake,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let mut connection = Self::passive_open(stack, now, handshake, options)?;
        connection.receiver.owe_ack();
        Ok(connection)
    }
}

/// Segments in.
impl Connection {
    /// Takes a segment of the peer. `h`: its headers, parsed from `frame`; its checksum has been verified. The frame's headers
    /// are written over. Answers leave with the next [`Self::poll_transmit`].
    pub fn handle_segment(&mut self, stack: &mut Stack, now: Instant, frame: &mut [u8], h: &Headers) {
        if self.ended.is_some() || h.source != self.remote || h.destination != self.local {
            return;
        }
        let options = SegmentOptions::parse(h.options(frame));
        let stamp = self.clock.zip(options.timestamps);
        let old_timestamp = stamp.is_some_and(|(clock, stamp)| clock.is_old(now, stamp.value));
        stack.counters.old_timestamps += u64::from(old_timestamp);
        match self.standing().admit(h, old_timestamp) {
            Admission::Discard => {}
            Admission::Acknowledge => {
                stack.counters.unacceptable_segments += 1;
                self.receiver.notice_duplicate(h.seq, h.payload_len());
                self.receiver.owe_ack();
            }
            Admission::Challenge => self.challenge(stack, now),
            Admission::Probe => self.probed = true,
            Admission::Reset => self.ended = Some(Ended::ByPeer),
            Admission::Enter(trimmed) => self.enter(stack, now, frame, h, &options, &trimmed),
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            rcv_nxt: self.receiver.nxt(),
            edge: self.receiver.edge(),
            fin: self.receiver.fin(),
            over: matches!(self.state(), State::TimeWait | State::Closed),
            snd_una: self.sender.una(),
            snd_nxt: self.sender.nxt(),
            largest_window: self.sender.largest_window() as u32,
        }
    }

    /// RFC 5961 §7: at most so many in a second.
    fn challenge(&mut self, stack: &mut Stack, now: Instant) {
        stack.counters.unacceptable_segments += 1;
        if now >= self.challenges_since + CHALLENGE_PERIOD {
            self.challenges_since = now;
            self.challenges = 0;
        }
        if self.challenges < CHALLENGE_ACKS_PER_SECOND {
            self.challenges += 1;
            stack.counters.challenge_acks += 1;
            self.receiver.owe_ack();
        } else {
            stack.counters.challenge_acks_withheld += 1;
        }
    }

    fn enter(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        frame: &mut [u8],
        h: &Headers,
        options: &SegmentOptions,
        trimmed: &Trimmed,
    ) {
        let mut answered = None;
        if let (Some(clock), Some(stamp)) = (&mut self.clock, options.timestamps) {
            // RFC 7323 §4.3: a segment that the last ACK has asked for.
            if !is_before(self.receiver.acked(), h.seq) {
                clock.note(now, stamp.value);
            }
            answered = Some((*clock, stamp.echo));
        }
        let feedback =
            Feedback { seq: h.seq, ack: h.ack, window: h.window, bare: h.segment_len() == 0, sack: &options.sack };
        self.sender.handle_ack(now, &feedback, &mut stack.counters, |sent| {
            answered.map(|(clock, echo)| is_before(echo, clock.value(sent)))
        });
        if trimmed.cut {
            self.receiver.notice_duplicate(h.seq, h.payload_len());
        }
        let taken = if trimmed.length > 0 || trimmed.fin.is_some() {
            self.receiver.handle_text(stack, now, frame, h.payload_offset, trimmed)
        } else {
            !trimmed.cut
        };
        if !taken {
            stack.counters.unacceptable_segments += 1;
            self.receiver.owe_ack();
        }
    }

    /// The path does not carry an IP packet that we have sent, only such of up to `mtu` bytes; `seq`: the sequence number
    /// that the error quotes. True: it quotes what is on its way (RFC 5927 §4), and segments are shorter from now on. What is
    /// below the least path MTU is not believed at all.
    pub fn handle_packet_too_big(&mut self, now: Instant, seq: u32, mtu: usize) -> bool {
        let on_its_way = !is_before(seq, self.sender.una()) && is_before(seq, self.sender.nxt());
        if self.ended.is_some() || !on_its_way || mtu < LEAST_PATH_MTU[usize::from(self.local.is_ipv6())] {
            return false;
        }
        let options = self.clock.map_or(0, |_| TIMESTAMPS_LENGTH);
        self.sender.lower_mss(now, mtu - headers_length(self.local) - options)
    }
}

/// Segments out.
impl Connection {
    /// Sends at most one segment. True: it was sent, and there may be more. False: there is nothing to send now, or no frame.
    pub fn poll_transmit(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        envelope: &Envelope,
        sink: &mut impl FrameSink,
    ) -> bool {
        if self.ended.is_some() {
            return self.transmit_reset(now, envelope, sink);
        }
        self.receiver.grow(stack, now, self.sender.srtt());
        self.sender.handle_timeout(now, &mut stack.counters);
        // What was received out of order, or twice, is told in a segment of its own: text leaves no room for the blocks.
        let tells_blocks = self.receiver.wants_ack(now) && self.receiver.has_blocks() && self.sender.uses_sack();
        if !tells_blocks && let Some(chunk) = self.sender.next(now) {
            return self.transmit_chunk(stack, now, &chunk, envelope, sink);
        }
        if self.receiver.wants_ack(now) {
            return self.transmit_ack(stack, now, envelope, sink);
        }
        if self.probe_is_pending {
            return self.transmit_probe(now, envelope, sink);
        }
        self.sender.watch_window(now);
        false
    }

    /// When [`Self::poll_transmit`] has to be called next if nothing else happens. None: not before something else happens.
    pub fn poll_at(&self, now: Instant) -> Option<Instant> {
        let due = match self.ended {
            Some(Ended::ByUs { reset_is_pending: true }) => Some(now),
            Some(_) => return None,
            None if self.probe_is_pending => Some(now),
            None => [self.receiver.poll_at(), self.sender.poll_at()].into_iter().flatten().min(),
        };
        Some(due?.max(now).max(self.retry_at))
    }

    fn transmit_chunk(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        chunk: &Chunk,
        envelope: &Envelope,
        sink: &mut impl FrameSink,
    ) -> bool {
        let ack = if chunk.is_probe() { self.receiver.idle_ack() } else { self.receiver.acknowledge(stack, now) };
        let mut flags = Flags::ACK;
        if chunk.fin {
            flags = flags.with(Flags::FIN);
        }
        if self.sender.is_pushed(chunk) {
            flags = flags.with(Flags::PSH);
        }
        let options = self.options(now, &[]);
        let segment = Segment {
            source: self.local,
            destination: self.remote,
            seq: chunk.seq,
            ack: ack.number,
            flags,
            window: ack.window,
            options: options.as_bytes(),
            payload: self.sender.text(chunk),
        };
        if !wire::build_segment(sink, envelope, &segment) {
            return if chunk.is_probe() { self.retry(now) } else { self.postpone(now) };
        }
        self.closed_first |= chunk.fin && !self.receiver.fin_received();
        self.sender.sent(now, chunk, &mut stack.counters);
        true
    }

    fn transmit_ack(
        &mut self,
        stack: &mut Stack,
        now: Instant,
        envelope: &Envelope,
        sink: &mut impl FrameSink,
    ) -> bool {
        let ack = self.receiver.acknowledge(stack, now);
        let blocks = self.receiver.take_blocks();
        let options = self.options(now, if self.sender.uses_sack() { &blocks } else { &[] });
        self.build(self.snd_nxt(), ack.number, Flags::ACK, ack.window, &options, envelope, sink) || self.postpone(now)
    }

    /// RFC 9293 §3.8.4: with a number that the peer has acknowledged.
    fn transmit_probe(&mut self, now: Instant, envelope: &Envelope, sink: &mut impl FrameSink) -> bool {
        let (seq, ack, options) = (self.sender.una().wrapping_sub(1), self.receiver.idle_ack(), self.options(now, &[]));
        let sent = self.build(seq, ack.number, Flags::ACK, ack.window, &options, envelope, sink);
        self.probe_is_pending = !sent;
        sent || self.retry(now)
    }

    /// No frame was free: what was to be said is still owed.
    fn postpone(&mut self, now: Instant) -> bool {
        self.receiver.owe_ack();
        self.retry(now)
    }

    fn retry(&mut self, now: Instant) -> bool {
        self.retry_at = now + RETRY;
        false
    }

    fn transmit_reset(&mut self, now: Instant, envelope: &Envelope, sink: &mut impl FrameSink) -> bool {
        if !self.has_reset_to_send() {
            return false;
        }
        let flags = Flags::RST.with(Flags::ACK);
        let sent = self.build(self.snd_nxt(), self.rcv_nxt(), flags, 0, &OptionWriter::default(), envelope, sink);
        if sent {
            self.ended = Some(Ended::ByUs { reset_is_pending: false });
        }
        sent || self.retry(now)
    }

    /// The options of a segment that leaves now.
    fn options(&self, now: Instant, blocks: &[wire::SackBlock]) -> OptionWriter {
        let mut options = OptionWriter::default();
        if let Some(clock) = &self.clock {
            options.timestamps(clock.stamp(now));
        }
        options.sack(blocks.iter().copied());
        options
    }

    /// Sends a segment without text.
    #[expect(clippy::too_many_arguments, reason = "the fields of a header")]
    fn build(
        &self,
        seq: u32,
        ack: u32,
        flags: Flags,
        window: u16,
        options: &OptionWriter,
        envelope: &Envelope,
        sink: &mut impl FrameSink,
    ) -> bool {
        let (source, destination, options) = (self.local, self.remote, options.as_bytes());
        let segment = Segment { source, destination, seq, ack, flags, window, options, payload: [&[]; 2] };
        wire::build_segment(sink, envelope, &segment)
    }
}

/// Received bytes.
impl Connection {
    /// Bytes that were received in order and not consumed.
    pub fn receive_queue(&self) -> usize {
        self.receiver.unread()
    }

    /// Copies bytes from the head of the receive queue, as many as there are and fit in. They stay in the queue.
    pub fn peek(&mut self, out: &mut [u8]) -> usize {
        self.receiver.peek(out)
    }

    /// Removes `n` bytes, or as many as there are, from the head of the receive queue. The window opens with the next
    /// [`Self::poll_transmit`].
    pub fn consume(&mut self, n: usize) {
        let mut left = n;
        while left > 0 {
            let consumed = self.receiver.consume_with(|head| head.len().min(left));
            if consumed == 0 {
                break;
            }
            left -= consumed;
        }
    }

    /// The peer has sent FIN, and all bytes before it are in the receive queue or consumed.
    pub fn fin_received(&self) -> bool {
        self.receiver.fin_received()
    }
}

/// Bytes to send.
impl Connection {
    /// Bytes that the send queue takes now. 0 also when bytes cannot be sent in this state.
    pub fn send_room(&self) -> usize {
        if self.ended.is_some() { 0 } else { self.sender.room() }
    }

    /// Queues bytes; returns how many found room.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if self.ended.is_some() { 0 } else { self.sender.push(bytes) }
    }

    /// Bytes in the send queue: not sent, or sent and not acknowledged.
    pub fn send_queue(&self) -> usize {
        self.sender.queued()
    }

    /// Whether the peer owes us an acknowledgement: of bytes, or of our FIN.
    pub fn awaits_ack(&self) -> bool {
        self.ended.is_none() && self.sender.awaits_ack()
    }

    /// Sends FIN behind the queued bytes. No more can be queued. Bytes can still be received.
    pub fn finish(&mut self) {
        self.sender.finish();
    }

    /// Ends the connection with a RST, which leaves with the next [`Self::poll_transmit`]. Nothing happens if the connection
    /// is over already, or in TIME-WAIT.
    pub fn abort(&mut self) {
        if !matches!(self.state(), State::Closed | State::TimeWait) {
            self.ended = Some(Ended::ByUs { reset_is_pending: true });
        }
    }
}

/// Moves up to `limit` bytes from one connection's receive queue to another's send queue. Returns how many: as many as there
/// are and find room. They are copied once.
pub fn splice(from: &mut Connection, to: &mut Connection, limit: usize) -> usize {
    let mut moved = 0;
    while moved < limit {
        let piece = from.receiver.consume_with(|head| {
            let length = head.len().min(limit - moved);
            to.send(&head[..length])
        });
        if piece == 0 {
            break;
        }
        moved += piece;
    }
    moved
}

/// Whether the peer is still there (RFC 9293 §3.8.4).
impl Connection {
    /// Whether the peer has asked, since the last call, if we are still there. Who has called this owes it an answer,
    /// [`Self::acknowledge`], as soon as that is known to be true.
    pub fn take_probe(&mut self) -> bool {
        std::mem::take(&mut self.probed)
    }

    /// Sends an ACK with the next [`Self::poll_transmit`], whether there is something new to tell or not.
    pub fn acknowledge(&mut self) {
        self.receiver.owe_ack();
    }

    /// Asks the peer whether it is still there, with the next [`Self::poll_transmit`].
    pub fn send_probe(&mut self) {
        self.probe_is_pending = self.ended.is_none();
    }
}

/// State.
impl Connection {
    /// The state of RFC 9293. A connection that was reset, by either end, is closed.
    pub fn state(&self) -> State {
        if self.ended.is_some() {
            return State::Closed;
        }
        match (self.sender.fin_sent(), self.sender.fin_acked(), self.receiver.fin_received()) {
            (false, _, false) => State::Established,
            (false, _, true) => State::CloseWait,
            (true, false, false) => State::FinWait1,
            (true, true, false) => State::FinWait2,
            (true, false, true) if self.closed_first => State::Closing,
            (true, false, true) => State::LastAck,
            (true, true, true) if self.closed_first => State::TimeWait,
            (true, true, true) => State::Closed,
        }
    }

    /// The connection is over, and nothing is left to be sent: no reset either.
    pub fn is_closed(&self) -> bool {
        self.state() == State::Closed && !self.has_reset_to_send()
    }

    /// A reset is to be sent to the peer.
    pub fn has_reset_to_send(&self) -> bool {
        self.ended == Some(Ended::ByUs { reset_is_pending: true })
    }

    /// A valid RST of the peer ended the connection. What was received before it can still be read.
    pub fn was_reset(&self) -> bool {
        self.ended == Some(Ended::ByPeer)
    }

    /// Both FINs are sent and acknowledged, ours first.
    pub fn is_time_wait(&self) -> bool {
        self.state() == State::TimeWait
    }

    /// What is to be kept of a connection that is over, if anything.
    pub fn remains(&self) -> Option<Remains> {
        let (local, remote, clock) = (self.local, self.remote, self.clock);
        match self.ended {
            Some(Ended::ByUs { .. }) => Some(Remains(remains::Kind::Reset)),
            None if self.is_time_wait() => {
                let (seq, ack, window) = (self.snd_nxt(), self.rcv_nxt(), self.receiver.window_field());
                Some(Remains(remains::Kind::TimeWait { local, remote, seq, ack, window, clock }))
            }
            Some(Ended::ByPeer) | None => None,
        }
    }

    /// Our address and port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// SND.NXT: behind the highest sequence number that was ever sent.
    pub fn snd_nxt(&self) -> u32 {
        self.sender.nxt()
    }

    /// RCV.NXT: the sequence number that is expected next.
    pub fn rcv_nxt(&self) -> u32 {
        self.receiver.nxt()
    }
}

/// IP and TCP header without options.
fn headers_length(address: SocketAddr) -> usize {
    TCP_HEADER + if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// Whether TCP can run between two ends (RFC 9293 §3.10, RFC 1122 §4.2.3.10).
pub fn is_possible(local: SocketAddr, remote: SocketAddr) -> bool {
    let is_addressable = |end: SocketAddr| {
        let ip = end.ip();
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        end.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
    };
    local.is_ipv4() == remote.is_ipv4() && is_addressable(local) && is_addressable(remote)
}
