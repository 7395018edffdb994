//! The sequence spaces of one connection: translation between the wire and smoltcp, and the checks of RFC 9293 and RFC 5961
//! that a segment passes before smoltcp sees it.
//!
//! Numbers are those on the wire. The peer's are also smoltcp's; ours are smoltcp's plus an offset that is fixed when the
//! SYN leaves. (Timestamps, window scale and further options of a verbatim handshake are to be translated here, too.)
//!
//! What is mended of smoltcp 0.14 on the way in ([`Sequence::admit`]):
//! - It drops a data segment with an old ACK: the ACK is raised to SND.UNA.
//! - It takes ACKs of bytes that it has not sent yet: judged against SND.NXT.
//! - It takes a FIN whose text it cut off at the window, and text after a FIN: both are trimmed before.
//! - It believes the unscaled window of its SYN to be scaled, and can then write beyond its buffer, which panics: segments are
//!   trimmed to what the buffer holds.
//! - It refuses a segment of which only the FIN is new, one that begins before and ends behind the window, and a bare ACK at
//!   the window's right edge: all are changed into what it takes.
//! - It takes the window of any segment, also of one that was overtaken: replaced by the last one.
//! - It goes on probing a closed window when nothing is left to send, after our FIN without a pause: it sees an open one then.
//! - Any RST in the window kills, and any SYN there is lost: RFC 5961.
//!
//! And on the way out ([`Sequence::sent`]):
//! - After a retransmission timeout its bare ACKs carry SND.UNA, which the peer must discard: they get SND.NXT.
//! - A scaled window rounds down from a right edge that moves on, so the edge moves back by less than one unit, and bytes
//!   that the peer was allowed to send are cut off: one unit less is offered.

use smoltcp::time::{Duration, Instant};

use crate::connection::State;
use crate::wire::{self, Flags, Headers};

/// Challenge ACKs that one connection sends in a second (RFC 5961 §7).
pub const CHALLENGE_ACKS_PER_SECOND: u32 = 5;
const CHALLENGE_PERIOD: Duration = Duration::from_secs(1);
/// Largest shift of a window (RFC 7323 §2.3).
const MAX_WINDOW_SHIFT: u8 = 14;

/// What is known of both sequence spaces.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Our initial sequence number.
    pub(crate) iss: u32,
    /// Wire minus smoltcp, for our numbers. None: the SYN has not left.
    offset: Option<u32>,
    /// SND.UNA, as of the last [`Sequence::update`].
    pub(crate) snd_una: u32,
    /// Behind the last byte of the send queue, as of the last [`Sequence::update`].
    queue_end: u32,
    /// SND.NXT: behind the highest number ever sent.
    pub(crate) snd_nxt: u32,
    /// The peer's initial sequence number. None: it is not known yet.
    pub(crate) irs: Option<u32>,
    /// RCV.NXT, as of the last [`Sequence::update`].
    pub(crate) rcv_nxt: u32,
    /// How many bytes the receive queue has room for, as of the last [`Sequence::update`].
    receive_room: u32,
    /// Right edge of the receive window, as smoltcp believes to have offered it.
    receive_edge: u32,
    /// The unscaled window of our SYN.
    syn_window: u16,
    /// Shift of the windows that we offer.
    receive_shift: u8,
    /// Shift that our SYN offered.
    offered_shift: u8,
    /// The peer's FIN and all before it has arrived.
    pub(crate) fin_received: bool,
    /// Last window field of the peer that counts.
    send_window: u16,
    /// Shift of the peer's windows.
    send_shift: u8,
    /// MAX.SND.WND (RFC 5961 §5.2), in bytes.
    largest_send_window: u32,
    /// SND.WL1: sequence number of the segment that brought `send_window`.
    snd_wl1: u32,
    challenges: u32,
    challenges_since: Instant,
}

/// How far a connection has come. Numbers of bytes since it was established are modulo 2^32.
pub(crate) struct Queues {
    pub(crate) syn_acked: bool,
    pub(crate) fin_acked: bool,
    /// Bytes that the peer has acknowledged.
    pub(crate) acked: u32,
    /// Bytes in the send queue.
    pub(crate) unacked: usize,
    /// Bytes received in order.
    pub(crate) received: u32,
    /// Bytes that the receive queue has room for.
    pub(crate) receive_room: usize,
}

/// What becomes of a received segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It changes nothing and gets no answer.
    Discard,
    /// It is not acceptable; an ACK tells the peer where we are.
    Acknowledge,
    /// It may be forged; an ACK makes the true peer confirm it.
    Challenge,
    /// It is answered with a reset.
    Refuse,
    /// It is the peer's valid reset.
    Reset,
    /// It enters smoltcp, changed like this.
    Enter(Entry),
}

/// How a segment enters smoltcp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u32,
    /// In smoltcp's numbers.
    pub(crate) ack: u32,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    /// Bytes of text that stay, from the first on.
    pub(crate) payload: usize,
    /// Text was cut off: an ACK tells the peer, whatever smoltcp does.
    pub(crate) acknowledge: bool,
}

impl Sequence {
    /// `receive_capacity`: size of the receive queue in bytes.
    pub(crate) fn new(iss: u32, receive_capacity: usize) -> Self {
        // As smoltcp chooses it: the smallest shift that lets 16 bits express the capacity.
        let bits = (usize::BITS - receive_capacity.leading_zeros()) as u8;
        Self {
            iss,
            offset: None,
            snd_una: iss,
            queue_end: iss,
            snd_nxt: iss,
            irs: None,
            rcv_nxt: 0,
            receive_room: 0,
            receive_edge: 0,
            syn_window: 0,
            receive_shift: 0,
            offered_shift: bits.saturating_sub(16),
            fin_received: false,
            send_window: 0,
            send_shift: 0,
            largest_send_window: 0,
            snd_wl1: 0,
            challenges: 0,
            challenges_since: Instant::ZERO,
        }
    }

    /// The peer's SYN was taken.
    pub(crate) fn synchronized(&mut self, syn: &Headers, window_scale: Option<u8>) {
        self.irs = Some(syn.seq);
        self.rcv_nxt = syn.seq.wrapping_add(1);
        if let Some(shift) = window_scale {
            self.send_shift = shift.min(MAX_WINDOW_SHIFT);
            self.receive_shift = self.offered_shift;
        }
        self.send_window = syn.window >> self.send_shift;
        self.largest_send_window = u32::from(syn.window);
        self.snd_wl1 = syn.seq;
        // smoltcp counts the window of its SYN from IRS, not from the number behind it.
        self.receive_edge = syn.seq.wrapping_add(u32::from(self.syn_window));
    }

    /// Where the queues are now.
    pub(crate) fn update(&mut self, queues: &Queues) {
        let control = u32::from(queues.syn_acked) + u32::from(queues.fin_acked);
        self.snd_una = self.iss.wrapping_add(control).wrapping_add(queues.acked);
        self.queue_end = self.snd_una.wrapping_add(queues.unacked as u32);
        if let Some(irs) = self.irs {
            self.rcv_nxt = irs.wrapping_add(1).wrapping_add(queues.received).wrapping_add(u32::from(self.fin_received));
        }
        self.receive_room = queues.receive_room as u32;
    }

    /// The peer's window in bytes, from SND.UNA on.
    pub(crate) fn send_window(&self) -> usize {
        usize::from(self.send_window) << self.send_shift
    }

    /// The peer's window field, not scaled.
    pub(crate) fn send_window_field(&self) -> u16 {
        self.send_window
    }

    /// Whether our SYN has left.
    pub(crate) fn has_sent_syn(&self) -> bool {
        self.offset.is_some()
    }

    /// One of our numbers, as smoltcp counts.
    pub(crate) fn to_smoltcp(&self, number: u32) -> u32 {
        number.wrapping_sub(self.offset.unwrap_or(0))
    }

    /// The window field of an ACK that we build ourselves: nothing that smoltcp does not know of.
    pub(crate) fn offered_window(&self) -> u16 {
        let room = self.right_edge().wrapping_sub(self.rcv_nxt) >> self.receive_shift;
        shown_window(u16::try_from(room).unwrap_or(u16::MAX), self.receive_shift)
    }

    /// Whether one more challenge ACK may be sent now.
    pub(crate) fn may_challenge(&mut self, now: Instant) -> bool {
        if now >= self.challenges_since + CHALLENGE_PERIOD {
            self.challenges_since = now;
            self.challenges = 0;
        }
        self.challenges = self.challenges.saturating_add(1);
        self.challenges <= CHALLENGE_ACKS_PER_SECOND
    }

    /// Judges a segment of the peer (RFC 9293 §3.10.7). To be called after [`Sequence::update`].
    pub(crate) fn admit(&mut self, state: State, h: &Headers) -> Admission {
        match state {
            State::Closed | State::Listen => Admission::Discard,
            State::SynSent => self.admit_in_syn_sent(h),
            _ => self.admit_synchronized(state, h),
        }
    }

    /// RFC 9293 §3.10.7.3.
    fn admit_in_syn_sent(&self, h: &Headers) -> Admission {
        if self.offset.is_none() {
            return Admission::Discard;
        }
        let acceptable_ack = h.flags.ack() && h.ack == self.iss.wrapping_add(1);
        if h.flags.rst() {
            return if acceptable_ack { Admission::Reset } else { Admission::Discard };
        }
        if h.flags.ack() && !acceptable_ack {
            return Admission::Refuse;
        }
        if !h.flags.syn() {
            // The peer takes our SYN for one that it has answered before, in a connection that we have forgotten. (Our number
            // is not our own choice, and may come again.) RFC 9293 §3.10.7.3 drops such a segment, and would for ever.
            return if acceptable_ack { Admission::Refuse } else { Admission::Discard };
        }
        Admission::Enter(Entry {
            seq: h.seq,
            ack: self.to_smoltcp(h.ack),
            flags: h.flags.without(Flags::FIN),
            window: h.window,
            payload: 0,
            acknowledge: false,
        })
    }

    /// RFC 9293 §3.10.7.4.
    fn admit_synchronized(&mut self, state: State, h: &Headers) -> Admission {
        if h.flags.rst() {
            return self.admit_reset(state, h);
        }
        if self.offset.is_none() {
            // Our SYN-ACK has not left: the peer cannot know any number of ours.
            return Admission::Discard;
        }
        if h.flags.syn() {
            // RFC 5961 §4.2. The SYN that we have just answered comes again if the answer was lost; our timer sends it again.
            let repeated = state == State::SynReceived && Some(h.seq) == self.irs;
            return if repeated { Admission::Discard } else { Admission::Challenge };
        }
        if !h.flags.ack() {
            return Admission::Discard;
        }
        let Some(trimmed) = self.trim(h) else {
            // Text or FIN that comes again, or too early, is paced by the peer's timers; a bare ACK is not.
            return if h.segment_len() > 0 { Admission::Acknowledge } else { Admission::Challenge };
        };
        self.admit_ack(state, h, trimmed)
    }

    /// RFC 5961 §3.2.
    fn admit_reset(&self, state: State, h: &Headers) -> Admission {
        let edge = self.right_edge();
        if state == State::TimeWait {
            Admission::Discard // RFC 1337 §3(a).
        } else if h.seq == self.rcv_nxt {
            Admission::Reset
        } else if self.offset.is_some() && !is_before(h.seq, self.rcv_nxt) && !is_before(edge, h.seq) {
            Admission::Challenge
        } else {
            Admission::Discard
        }
    }

    /// Cuts a segment to the window. None: nothing of it is acceptable.
    fn trim(&self, h: &Headers) -> Option<Trimmed> {
        let (nxt, edge) = (self.rcv_nxt, self.right_edge());
        let payload = h.payload_len() as u32;
        let end = h.seq.wrapping_add(payload);
        let whole = Trimmed { seq: h.seq, payload: payload as usize, fin: h.flags.fin(), cut: false };
        if is_before(edge, h.seq) {
            return None;
        }
        if h.segment_len() == 0 {
            return (!is_before(h.seq, nxt)).then_some(Trimmed { seq: nxt, ..whole });
        }
        if !is_before(nxt, h.seq.wrapping_add(h.segment_len())) {
            return None;
        }
        // A FIN at the right edge needs no room; behind cut-off text it has not come yet.
        let new_end = if is_before(edge, end) { edge } else { end };
        let fin = whole.fin && new_end == end && !self.fin_received;
        let cut = new_end != end || fin != whole.fin;
        if !is_before(nxt, new_end) {
            // No new text: what is left is a FIN, or nothing but the ACK.
            return Some(Trimmed { seq: nxt, payload: 0, fin: fin && end == nxt, cut: cut || end != nxt });
        }
        let payload = new_end.wrapping_sub(h.seq) as usize;
        if payload == 0 {
            // A FIN ahead of a hole.
            return Some(Trimmed { seq: nxt, payload: 0, fin: false, cut: true });
        }
        Some(Trimmed { seq: h.seq, payload, fin, cut })
    }

    /// RFC 9293 §3.10.7.4, fifth, with RFC 5961 §5.2.
    fn admit_ack(&mut self, state: State, h: &Headers, trimmed: Trimmed) -> Admission {
        let mut ack = h.ack;
        if state == State::SynReceived {
            if ack != self.iss.wrapping_add(1) {
                return Admission::Refuse;
            }
        } else if is_before(self.snd_nxt, ack) || is_before(ack, self.snd_una.wrapping_sub(self.largest_send_window)) {
            return Admission::Challenge;
        }
        let bare = trimmed.payload == 0 && !trimmed.fin;
        let old = state != State::SynReceived && is_before(ack, self.snd_una);
        let moved = !old && self.take_window(h);
        // The third duplicate ACK while only a FIN is in flight stops smoltcp's timer, and the FIN is never sent again.
        let only_fin = matches!(state, State::FinWait1 | State::Closing | State::LastAck)
            && self.snd_nxt.wrapping_sub(self.snd_una) == 1;
        if bare && (old || ((trimmed.cut || only_fin) && !moved && ack == self.snd_una)) {
            // It tells nothing new, and smoltcp would count it as a duplicate ACK.
            return if trimmed.cut { Admission::Acknowledge } else { Admission::Discard };
        }
        if old {
            ack = self.snd_una;
        }
        let mut flags = h.flags.without(Flags::FIN);
        if trimmed.fin {
            flags = flags.with(Flags::FIN);
        }
        Admission::Enter(Entry {
            seq: trimmed.seq,
            ack: self.to_smoltcp(ack),
            flags,
            window: self.window_for_smoltcp(state, ack),
            payload: trimmed.payload,
            acknowledge: trimmed.cut,
        })
    }

    /// Takes the window of a segment unless the segment was overtaken (as `tcp_may_update_window` of the kernel decides).
    /// True: the window changed.
    fn take_window(&mut self, h: &Headers) -> bool {
        let newer = is_before(self.snd_una, h.ack) || is_before(self.snd_wl1, h.seq);
        let same = h.seq == self.snd_wl1 && (h.window > self.send_window || h.window == 0);
        if !newer && !same {
            return false;
        }
        let changed = self.send_window != h.window;
        self.snd_wl1 = h.seq;
        self.send_window = h.window;
        self.largest_send_window = self.largest_send_window.max(self.send_window() as u32);
        changed
    }

    /// smoltcp stops its window probes only when the window opens: in FIN-WAIT-2 it would then send ACKs without end, and until
    /// our FIN is acknowledged it would not send that again. Without bytes to send the window does not matter.
    fn window_for_smoltcp(&self, state: State, ack: u32) -> u16 {
        let finished = matches!(state, State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck);
        if finished && !is_before(ack, self.queue_end) { self.send_window.max(1) } else { self.send_window }
    }

    /// Behind the last byte that is acceptable now.
    fn right_edge(&self) -> u32 {
        let full = self.rcv_nxt.wrapping_add(self.receive_room);
        if self.fin_received || is_before(self.receive_edge, self.rcv_nxt) {
            self.rcv_nxt
        } else if is_before(full, self.receive_edge) {
            full
        } else {
            self.receive_edge
        }
    }

    /// Translates the packet that smoltcp has written (an IP header without options, then TCP), notes what it says, and
    /// fills in the checksums.
    pub(crate) fn sent(&mut self, packet: &mut [u8]) {
        let (ip, source, destination) = wire::split_own_packet(packet);
        let tcp = &mut packet[ip..];
        let flags = Flags::from_bits(tcp[13]);
        let seq = wire::read_u32(tcp, 4);
        let window = wire::read_u16(tcp, 14);
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let length = payload as u32 + u32::from(flags.syn()) + u32::from(flags.fin());
        let iss = self.iss;
        let offset = *self.offset.get_or_insert_with(|| iss.wrapping_sub(seq));
        let mut seq = seq.wrapping_add(offset);
        let end = seq.wrapping_add(length);
        if length == 0 && !flags.rst() {
            seq = self.snd_nxt;
        } else if is_before(self.snd_nxt, end) {
            self.snd_nxt = end;
        }
        if flags.syn() {
            self.syn_window = window;
        }
        // smoltcp does not remember the window that it offers in a window probe.
        let probe = payload == 1 && is_before(self.snd_una.wrapping_add(self.send_window() as u32), end);
        if flags.ack() && !probe {
            let shift = if flags.syn() { 0 } else { self.receive_shift };
            self.receive_edge = wire::read_u32(tcp, 8).wrapping_add(u32::from(window) << shift);
        }
        let window = if flags.syn() { window } else { shown_window(window, self.receive_shift) };
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[14..16].copy_from_slice(&window.to_be_bytes());
        wire::fill_tcp_checksum(tcp, source, destination);
        if source.is_ipv4() {
            wire::fill_ipv4_checksum(&mut packet[..ip]);
        }
    }
}

/// A segment cut to the window.
#[derive(Clone, Copy, Debug)]
struct Trimmed {
    seq: u32,
    payload: usize,
    fin: bool,
    /// Something that was in the segment is not there any more.
    cut: bool,
}

/// The window field that the peer gets to see: with a shift, one unit less than what is accepted.
fn shown_window(window: u16, shift: u8) -> u16 {
    if shift == 0 { window } else { window.saturating_sub(1) }
}

/// `a` is before `b` in sequence space (RFC 9293 §3.4).
pub(crate) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Walks the options of a TCP header. What smoltcp cannot read would make it drop the whole segment: from there on, the
/// options are ended. Returns the shift of a window scale option.
pub(crate) fn mend_options(options: &mut [u8]) -> Option<u8> {
    let mut window_scale = None;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            0 => break,
            1 => at += 1,
            _ => {
                let length = options.get(at + 1).copied().map_or(0, usize::from);
                let good = match kind {
                    2 => length == 4,
                    3 => length == 3,
                    4 => length == 2,
                    5 => length >= 10 && (length - 2).is_multiple_of(8),
                    _ => length >= 2,
                };
                if !good || at + length > options.len() {
                    options[at..].fill(0);
                    break;
                }
                if kind == 3 {
                    window_scale = Some(options[at + 2]);
                }
                at += length;
            }
        }
    }
    window_scale
}
