//! The sending half of a connection: queue, window, retransmission, timers.
//!
//! smoltcp's own sending half goes back to the oldest byte after a loss, knows no SACK, and waits a second for it; so it gets
//! no bytes to send. This one follows RFC 9293 §3.8 with RFC 6298 (timer), RFC 2018 (SACK), RFC 8985 (RACK-TLP), and the
//! windows of [`crate::congestion`].
//!
//! ```text
//!               SND.UNA            SND.NXT          end of the queue, FIN
//!   acknowledged │ on its way        │ to be sent     │
//!                └───────────────────┴────────────────┘
//!                 scoreboard           queue
//! ```

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};

use crate::congestion::{Acked, Congestion};
use crate::rtt::Rtt;
use crate::scoreboard::{Arrived, Scoreboard, received_twice};
use crate::sequence::is_before;
use crate::stack::{Budget, Counters};
use crate::wire::SackBlock;

/// Bytes that a send queue has room for at least.
pub(crate) const LEAST_QUEUE: usize = 64 * 1024;
/// Bytes that a send queue has room for at most: twice the bandwidth times delay of 1 Gbit/s and 33 ms.
pub(crate) const LARGEST_QUEUE: usize = 8 << 20;
/// Duplicate ACKs after which a segment counts as lost, of a peer without SACK (RFC 5681 §3.2).
const DUP_ACKS: u32 = 3;

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) seq: u32,
    /// Bytes of text.
    pub(crate) length: usize,
    pub(crate) fin: bool,
    what: What,
}

impl Chunk {
    /// The peer will answer it, and drop it with all that it says.
    pub(crate) fn is_probe(&self) -> bool {
        self.what == What::WindowProbe
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    New,
    /// A segment of this number in the scoreboard, once more.
    Again(u64),
    /// An ACK for what the peer has acknowledged already, which it must answer.
    WindowProbe,
}

/// What the sender's one timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// RTO (RFC 6298).
    Retransmission,
    /// PTO (RFC 8985 §7).
    TailProbe,
    /// RACK's reordering timer (RFC 8985 §6.3).
    Reordering,
    /// Zero-window probes, and the override of silly-window avoidance (RFC 9293 §3.8.6).
    Persist,
}

/// A probe for the loss of a tail, whose answer is awaited (RFC 8985 §7.4).
#[derive(Clone, Copy, Debug)]
struct TailProbe {
    /// TLP.end_seq.
    end: u32,
    /// TLP.is_retrans.
    again: bool,
}

/// How to find out that a repair was for nothing. Stays when the repair is over: by then what was sent again has just arrived.
#[derive(Clone, Copy, Debug)]
struct Undo {
    /// SND.UNA when it began: what was sent again then lies behind.
    from: u32,
    /// When the first segment was sent again.
    first_again: Option<Instant>,
    /// Segments sent again and not yet reported as received twice (RFC 2883).
    unconfirmed: usize,
}

/// What a received segment says to the sender.
#[derive(Debug)]
pub(crate) struct Feedback<'a> {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// The window field, not scaled.
    pub(crate) window: u16,
    /// It has neither text nor FIN.
    pub(crate) bare: bool,
    pub(crate) sack: &'a [SackBlock],
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Sender {
    queue: VecDeque<u8>,
    /// SND.UNA, SND.NXT.
    una: u32,
    nxt: u32,
    finishing: bool,
    fin_acked: bool,
    /// SND.WND in bytes, from SND.UNA on, the shift of the peer's fields, and MAX.SND.WND.
    window: usize,
    shift: u8,
    largest_window: usize,
    /// SND.WL1.
    wl1: u32,
    /// Effective MSS: text of a full segment.
    mss: usize,
    sack: bool,
    scoreboard: Scoreboard,
    congestion: Congestion,
    rtt: Rtt,
    alarm: Option<(Alarm, Instant)>,
    /// Since when the peer owes us an ACK: the retransmission timer would run from here (RFC 6298 §5.1, §5.3).
    owed_since: Instant,
    /// Timeouts in a row.
    backoff: u32,
    /// The alarm has fired: one segment may leave that would not otherwise.
    due: Option<Alarm>,
    tail_probe: Option<TailProbe>,
    undo: Undo,
    dup_acks: u32,
    last_sent: Instant,
    budget: Budget,
    /// Bytes taken from the budget.
    borrowed: usize,
}

/// What a sender begins with.
#[derive(Debug)]
pub(crate) struct SenderConfig {
    /// Our initial sequence number; the SYN is acknowledged.
    pub(crate) iss: u32,
    /// The peer's initial sequence number.
    pub(crate) irs: u32,
    /// The window of the peer's SYN.
    pub(crate) window: u16,
    pub(crate) shift: u8,
    pub(crate) mss: usize,
    /// The peer understands and sends SACK.
    pub(crate) sack: bool,
    /// The round-trip time of the handshake.
    pub(crate) rtt: Option<Duration>,
    pub(crate) budget: Budget,
}

impl Sender {
    pub(crate) fn new(now: Instant, config: SenderConfig) -> Self {
        let una = config.iss.wrapping_add(1);
        let mut rtt = Rtt::default();
        config.rtt.into_iter().for_each(|sample| rtt.sample(sample));
        Self {
            queue: VecDeque::new(),
            una,
            nxt: una,
            finishing: false,
            fin_acked: false,
            window: usize::from(config.window),
            shift: config.shift,
            largest_window: usize::from(config.window),
            wl1: config.irs,
            mss: config.mss,
            sack: config.sack,
            scoreboard: Scoreboard::new(una),
            congestion: Congestion::new(config.mss),
            rtt,
            alarm: None,
            owed_since: now,
            backoff: 0,
            due: None,
            tail_probe: None,
            undo: Undo { from: una, first_again: None, unconfirmed: 0 },
            dup_acks: 0,
            last_sent: now,
            budget: config.budget,
            borrowed: 0,
        }
    }

    pub(crate) fn una(&self) -> u32 {
        self.una
    }

    pub(crate) fn nxt(&self) -> u32 {
        self.nxt
    }

    pub(crate) fn largest_window(&self) -> usize {
        self.largest_window
    }

    /// The peer understands SACK.
    pub(crate) fn uses_sack(&self) -> bool {
        self.sack
    }

    pub(crate) fn srtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// Bytes that are queued: not sent, or not acknowledged.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Our FIN was sent.
    pub(crate) fn fin_sent(&self) -> bool {
        self.fin_acked || (self.finishing && self.nxt == self.end())
    }

    /// Our FIN is acknowledged.
    pub(crate) fn fin_acked(&self) -> bool {
        self.fin_acked
    }

    /// The peer owes us an acknowledgement, or a window.
    pub(crate) fn awaits_ack(&self) -> bool {
        !self.queue.is_empty() || (self.finishing && !self.fin_acked)
    }

    /// The number behind all that is queued, and behind the FIN.
    fn end(&self) -> u32 {
        self.text_end().wrapping_add(u32::from(self.finishing && !self.fin_acked))
    }

    fn text_end(&self) -> u32 {
        self.una.wrapping_add(self.queue.len() as u32)
    }

    /// Bytes that the queue takes now.
    pub(crate) fn room(&self) -> usize {
        if self.finishing {
            return 0;
        }
        // Enough for what may be on its way, and for as much behind it until the next ACK.
        let most = (LEAST_QUEUE + 2 * self.congestion.window()).min(LARGEST_QUEUE);
        most.saturating_sub(self.queue.len())
    }

    /// Queues bytes, as many as find room; returns how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.len().min(self.room());
        let need = (self.queue.len() + length).saturating_sub(self.queue.capacity());
        let length = if need > 0 { length.min(self.grow(length)) } else { length };
        self.queue.extend(&bytes[..length]);
        length
    }

    /// Makes room for `length` more bytes in the queue; returns for how many.
    fn grow(&mut self, length: usize) -> usize {
        let old = self.queue.capacity();
        let wanted = (self.queue.len() + length).next_power_of_two().max(2048);
        let beyond = wanted.saturating_sub(LEAST_QUEUE + self.borrowed);
        let granted = if beyond == 0 || self.budget.take(beyond) {
            self.borrowed += beyond;
            wanted
        } else {
            old.max(LEAST_QUEUE)
        };
        self.queue.reserve_exact(granted.saturating_sub(self.queue.len()));
        length.min(granted.saturating_sub(self.queue.len()))
    }

    /// Gives memory back that an empty queue does not need.
    fn shrink(&mut self) {
        if self.queue.is_empty() && self.borrowed > 0 {
            self.queue = VecDeque::new();
            self.budget.give_back(std::mem::take(&mut self.borrowed));
        }
    }

    /// Sends FIN behind what is queued.
    pub(crate) fn finish(&mut self) {
        self.finishing = true;
    }

    /// The text of a chunk.
    pub(crate) fn text(&self, chunk: &Chunk) -> [&[u8]; 2] {
        let begin = chunk.seq.wrapping_sub(self.una) as usize;
        if chunk.length == 0 {
            return [&[]; 2];
        }
        let (first, second) = self.queue.as_slices();
        let end = begin + chunk.length;
        let part = |slice: &'_ [u8], offset: usize| {
            (begin.saturating_sub(offset).min(slice.len()), end.saturating_sub(offset).min(slice.len()))
        };
        let (a, b) = (part(first, 0), part(second, first.len()));
        [&first[a.0..a.1], &second[b.0..b.1]]
    }

    /// The text of a chunk reaches the end of the queue: nothing is to be waited for behind it (RFC 9293 §3.9.1.2, PSH).
    pub(crate) fn is_pushed(&self, chunk: &Chunk) -> bool {
        chunk.length > 0 && chunk.seq.wrapping_add(chunk.length as u32) == self.text_end()
    }
}

/// What comes in.
impl Sender {
    /// Takes an acceptable ACK. `answers_earlier`: whether it answers something that was sent before the given time, if its
    /// timestamp tells.
    pub(crate) fn handle_ack(
        &mut self,
        now: Instant,
        feedback: &Feedback<'_>,
        counters: &mut Counters,
        answers_earlier: impl Fn(Instant) -> Option<bool>,
    ) {
        if is_before(feedback.ack, self.una) {
            return; // RFC 9293 §3.10.7.4, fifth: "a duplicate, it can be ignored".
        }
        let window_changed = self.take_window(feedback);
        let pipe_before = self.scoreboard.pipe();
        let advanced = is_before(self.una, feedback.ack);
        let mut arrived = self.scoreboard.acknowledge(now, feedback.ack, &answers_earlier);
        if advanced {
            self.advance(feedback.ack);
        }
        let twice = if self.sack { received_twice(feedback.sack, self.una) } else { None };
        if self.sack {
            let sacked = self.scoreboard.sack(now, feedback.sack, self.nxt);
            arrived.bytes += sacked.bytes;
            arrived.rtt = arrived.rtt.or(sacked.rtt);
            arrived.mistaken |= sacked.mistaken;
        }
        arrived.rtt.into_iter().for_each(|rtt| self.rtt.sample(rtt));
        // RFC 6298 §3, §5: until there is a measurement, the timer stays backed off; what it was too short for is known by then.
        let window_opens = window_changed && self.alarm.is_some_and(|(alarm, _)| alarm == Alarm::Persist);
        if arrived.rtt.is_some() || window_opens {
            self.backoff = 0;
        }
        if advanced || arrived.bytes > 0 || window_opens {
            self.due = None;
        }
        self.notice_undo(twice, advanced, &arrived, counters, answers_earlier);
        self.notice_tail_probe(feedback, twice.is_some(), advanced);
        let lost = self.notice_losses(now, feedback, advanced, window_changed);
        let acked = Acked {
            delivered: arrived.bytes,
            advanced,
            una: self.una,
            nxt: self.nxt,
            rtt: arrived.rtt,
            pipe_before,
            pipe: self.estimated_pipe(),
        };
        let repairing = self.congestion.is_repairing();
        self.congestion.on_ack(now, acked, self.rtt.smoothed());
        if repairing && !self.congestion.is_repairing() {
            self.scoreboard.note_repair();
            if self.scoreboard.has_lost() {
                // Lost of what was sent since the window was reduced: the path asks for less again.
                self.begin_repair();
            }
        }
        if advanced || arrived.bytes > 0 || lost || window_changed {
            self.owed_since = now;
            self.set_alarm(now);
        }
    }

    /// Takes the window of a segment unless the segment was overtaken (as `tcp_may_update_window` of Linux decides). True: it
    /// has changed.
    fn take_window(&mut self, feedback: &Feedback<'_>) -> bool {
        let window = usize::from(feedback.window) << self.shift;
        let newer = is_before(self.una, feedback.ack) || is_before(self.wl1, feedback.seq);
        let same = feedback.seq == self.wl1 && (window > self.window || window == 0);
        if !newer && !same {
            return false;
        }
        self.wl1 = feedback.seq;
        let changed = self.window != window;
        self.window = window;
        self.largest_window = self.largest_window.max(window);
        changed
    }

    /// SND.UNA moves.
    fn advance(&mut self, ack: u32) {
        let acked = ack.wrapping_sub(self.una) as usize;
        let text = acked.min(self.queue.len());
        self.fin_acked |= acked > text;
        self.queue.drain(..text);
        self.una = ack;
        self.dup_acks = 0;
        self.shrink();
    }

    /// `twice`: what was received twice.
    fn notice_undo(
        &mut self,
        twice: Option<SackBlock>,
        advanced: bool,
        arrived: &Arrived,
        counters: &mut Counters,
        answers_earlier: impl Fn(Instant) -> Option<bool>,
    ) {
        if let Some((left, right)) = twice {
            // A tail probe was a guess.
            if !self.tail_probe.is_some_and(|probe| probe.again && probe.end == right) {
                self.scoreboard.be_patient(self.nxt);
            }
            if !is_before(left, self.undo.from) {
                self.undo.unconfirmed = self.undo.unconfirmed.saturating_sub(1);
            }
        }
        let repairing = self.congestion.is_repairing();
        let for_nothing = match self.undo.first_again {
            // Nothing was sent again, and yet what was taken for lost has arrived.
            None => repairing && arrived.mistaken,
            // RFC 3522: the ACK was sent for the original, before what was sent again could arrive. RFC 3708: all of it was
            // received twice.
            Some(first_again) => {
                let original = advanced && arrived.ever_again && answers_earlier(first_again) == Some(true);
                (repairing && original) || (twice.is_some() && self.undo.unconfirmed == 0)
            }
        };
        if for_nothing && self.congestion.undo() {
            self.scoreboard.forget_losses(self.nxt);
            counters.undone_recoveries += 1;
        }
    }

    /// RFC 8985 §7.4.2.
    fn notice_tail_probe(&mut self, feedback: &Feedback<'_>, twice: bool, advanced: bool) {
        let Some(probe) = self.tail_probe else { return };
        if is_before(feedback.ack, probe.end) {
            return;
        }
        if !probe.again || twice {
            self.tail_probe = None; // Text that was new, or both the original and the probe have arrived.
        } else if feedback.ack != probe.end {
            // The probe has repaired a loss, which nothing else has told of: if the original had arrived too, that would have
            // been told by now.
            self.tail_probe = None;
            if !self.congestion.is_repairing() {
                self.congestion.on_loss(self.una, self.scoreboard.pipe(), self.scoreboard.flight());
            }
        } else if feedback.bare && !advanced && feedback.sack.is_empty() {
            self.tail_probe = None; // A peer that tells of the second one without D-SACK.
        }
    }

    /// Finds out what is lost, and begins to repair it. True: something new is lost.
    fn notice_losses(&mut self, now: Instant, feedback: &Feedback<'_>, advanced: bool, window_changed: bool) -> bool {
        let mut lost = self.detect_losses(now);
        if !self.sack && !self.scoreboard.is_empty() {
            if advanced {
                // RFC 6582 §3.2, step 3: a partial ACK tells of the next loss.
                let partial = self.congestion.is_repairing() && !self.congestion.is_after_timeout();
                lost |= partial && self.scoreboard.mark_first_lost();
            } else if feedback.bare && !window_changed && feedback.ack == self.una {
                self.dup_acks += 1;
                lost |= self.dup_acks == DUP_ACKS && self.scoreboard.mark_first_lost();
            }
        }
        if lost {
            self.begin_repair();
        }
        lost
    }

    fn begin_repair(&mut self) {
        if !self.congestion.is_repairing() {
            let (unconfirmed, first_again) = self.scoreboard.resent();
            self.undo = Undo { from: self.una, first_again, unconfirmed };
        }
        self.tail_probe = None;
        self.congestion.on_loss(self.nxt, self.scoreboard.pipe(), self.scoreboard.flight());
    }

    /// RACK; sets the reordering timer. True: something new is lost.
    fn detect_losses(&mut self, now: Instant) -> bool {
        if !self.sack {
            return false;
        }
        let srtt = self.rtt.smoothed().unwrap_or_default();
        let (lost, look_again) = self.scoreboard.detect_losses(now, srtt, self.congestion.is_repairing());
        match look_again {
            Some(at) => self.alarm = Some((Alarm::Reordering, at)),
            None if self.alarm.is_some_and(|(alarm, _)| alarm == Alarm::Reordering) => self.alarm = None,
            None => {}
        }
        lost > 0
    }

    /// Bytes on their way; without SACK, each duplicate ACK tells of a segment that has arrived.
    fn estimated_pipe(&self) -> usize {
        self.scoreboard.pipe().saturating_sub(if self.sack { 0 } else { self.dup_acks as usize * self.mss })
    }

    /// Segments have at most `mss` bytes of text from now on: the path does not carry longer ones. False: they had not more.
    pub(crate) fn lower_mss(&mut self, now: Instant, mss: usize) -> bool {
        if mss >= self.mss {
            return false;
        }
        self.mss = mss;
        self.congestion.set_mss(mss);
        let fin = self.finishing.then(|| self.text_end());
        self.scoreboard.split(mss as u32, fin);
        self.set_alarm(now);
        true
    }
}

/// Time.
impl Sender {
    /// When [`Self::handle_timeout`] is due; at once if what the timer asked for has not left yet.
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        if self.due.is_some() { Some(Instant::ZERO) } else { self.alarm.map(|(_, at)| at) }
    }

    /// Sets the timer for what is on its way, or waits for the window.
    fn set_alarm(&mut self, now: Instant) {
        if self.scoreboard.is_empty() {
            let waits = self.awaits_ack();
            if !waits {
                self.alarm = None;
            } else if self.alarm.is_none_or(|(alarm, _)| alarm != Alarm::Persist) {
                self.alarm = Some((Alarm::Persist, now + self.rtt.timeout(self.backoff)));
            }
            return;
        }
        if self.alarm.is_some_and(|(alarm, _)| alarm == Alarm::Reordering) {
            return;
        }
        let timeout = self.rtt.timeout(self.backoff);
        // RFC 8985 §7.2: a probe only while nothing is known to be lost, and one at a time.
        let may_probe = self.sack
            && self.backoff == 0
            && self.tail_probe.is_none()
            && !self.congestion.is_repairing()
            && !self.scoreboard.has_sacked();
        self.alarm = Some(if may_probe {
            // Each new segment puts it off, but not behind the timeout, whose place it takes.
            let probe = now + self.rtt.probe_timeout(self.scoreboard.len() == 1);
            (Alarm::TailProbe, probe.min(self.owed_since + timeout))
        } else {
            (Alarm::Retransmission, now + timeout)
        });
    }

    /// Does what the timer asks for, if its time has come.
    pub(crate) fn handle_timeout(&mut self, now: Instant, counters: &mut Counters) {
        let Some((alarm, _)) = self.alarm.filter(|&(_, at)| at <= now) else { return };
        self.alarm = None;
        match alarm {
            Alarm::Reordering => {
                if self.detect_losses(now) {
                    self.begin_repair();
                }
                if self.alarm.is_none() {
                    self.set_alarm(now);
                }
            }
            Alarm::TailProbe => {
                counters.tail_loss_probes += 1;
                self.due = Some(Alarm::TailProbe);
                self.alarm = Some((Alarm::Retransmission, now + self.rtt.timeout(0)));
            }
            Alarm::Retransmission => {
                counters.retransmission_timeouts += 1;
                if !self.congestion.is_after_timeout() {
                    self.undo = Undo { from: self.una, first_again: None, unconfirmed: 0 };
                }
                self.congestion.on_timeout(self.nxt);
                self.scoreboard.mark_all_lost();
                (self.tail_probe, self.due, self.dup_acks) = (None, None, 0);
                self.backoff = (self.backoff + 1).min(16);
                self.alarm = Some((Alarm::Retransmission, now + self.rtt.timeout(self.backoff)));
            }
            Alarm::Persist => {
                self.due = Some(Alarm::Persist);
                self.backoff = (self.backoff + 1).min(16);
                self.alarm = Some((Alarm::Persist, now + self.rtt.timeout(self.backoff)));
            }
        }
    }
}

/// What goes out.
impl Sender {
    /// What may be sent now, if anything.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Chunk> {
        if !self.awaits_ack() {
            return None;
        }
        if let Some((number, seq, length)) = self.scoreboard.next_lost()
            && self.may_send_again(seq, length as usize)
        {
            return Some(self.again(number, seq, length));
        }
        match self.due {
            Some(Alarm::TailProbe) => {
                // RFC 8985 §7.3: new text if there is some and the window lets it, or else the last segment once more.
                self.new_chunk(usize::MAX).or_else(|| {
                    let (number, seq, length) = self.scoreboard.last()?;
                    Some(self.again(number, seq, length))
                })
            }
            _ => {
                if self.scoreboard.is_empty() && now > self.last_sent + self.rtt.timeout(0) && self.nxt != self.end() {
                    self.congestion.restart_after_idle();
                }
                let room = self.congestion.window().saturating_sub(self.estimated_pipe());
                self.new_chunk(room).or_else(|| self.window_probe())
            }
        }
    }

    fn again(&self, number: u64, seq: u32, length: u32) -> Chunk {
        let text = length.min(self.text_end().wrapping_sub(seq));
        Chunk { seq, length: text as usize, fin: text < length, what: What::Again(number) }
    }

    /// The congestion window lets a lost segment be sent again, and so does the peer's (a first segment always may).
    fn may_send_again(&self, seq: u32, length: usize) -> bool {
        let pipe = self.estimated_pipe();
        let beyond = !is_before(seq, self.una.wrapping_add(self.window as u32));
        (pipe == 0 || pipe + length.min(self.mss) <= self.congestion.window()) && (!beyond || seq == self.una)
    }

    /// New text, or FIN, as far as the windows let it. `room`: what is left of the congestion window.
    fn new_chunk(&self, room: usize) -> Option<Chunk> {
        let left = self.text_end().wrapping_sub(self.nxt);
        if (left as i32) < 0 {
            return None; // The FIN was sent.
        }
        let left = left as usize;
        let edge = self.una.wrapping_add(self.window as u32);
        let window = if is_before(self.nxt, edge) { edge.wrapping_sub(self.nxt) as usize } else { 0 };
        let length = left.min(self.mss).min(window);
        let fin = self.finishing && length == left && length < window;
        if length == 0 && !fin {
            return None;
        }
        // A segment leaves whole, or waits: what is cut to fit the congestion window would only cost headers.
        if length > room && !self.scoreboard.is_empty() {
            return None;
        }
        // Silly-window avoidance, RFC 9293 §3.8.6.2.1: a full segment, or all that there is, or half of the largest window.
        let worth_it = length == self.mss || length == left || 2 * length >= self.largest_window;
        if !worth_it && self.due != Some(Alarm::Persist) {
            return None;
        }
        Some(Chunk { seq: self.nxt, length, fin, what: What::New })
    }

    /// RFC 9293 §3.8.6.1; as Linux does it (`tcp_xmit_probe_skb`), without text, so that nothing can be cut off.
    fn window_probe(&self) -> Option<Chunk> {
        let due = self.due == Some(Alarm::Persist) && self.scoreboard.is_empty();
        due.then(|| Chunk { seq: self.una.wrapping_sub(1), length: 0, fin: false, what: What::WindowProbe })
    }

    /// A chunk has left.
    pub(crate) fn sent(&mut self, now: Instant, chunk: &Chunk, counters: &mut Counters) {
        let numbers = chunk.length as u32 + u32::from(chunk.fin);
        self.last_sent = now;
        match chunk.what {
            What::WindowProbe => {
                self.due = None;
                return;
            }
            What::New => {
                if self.scoreboard.is_empty() {
                    self.owed_since = now;
                }
                self.scoreboard.push(now, chunk.seq, numbers);
                self.nxt = self.nxt.wrapping_add(numbers);
            }
            What::Again(number) => {
                counters.retransmissions += 1;
                self.scoreboard.sent_again(now, number);
                self.undo.first_again.get_or_insert(now);
                self.undo.unconfirmed += 1;
            }
        }
        self.congestion.on_sent(numbers as usize);
        match self.due.take() {
            Some(Alarm::TailProbe) => {
                let again = matches!(chunk.what, What::Again(_));
                self.tail_probe = Some(TailProbe { end: self.nxt, again });
            }
            _ => {
                // RFC 6298 §5.1: a running timer goes on; RFC 8985 §7.2: a probe follows the last segment.
                if self.alarm.is_none_or(|(alarm, _)| alarm != Alarm::Retransmission) {
                    self.set_alarm(now);
                }
            }
        }
    }

    /// The peer's window lets nothing leave, and nothing is on its way: the timer must see to it that we hear when it opens.
    pub(crate) fn watch_window(&mut self, now: Instant) {
        if self.alarm.is_none() && self.awaits_ack() {
            self.set_alarm(now);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.budget.give_back(self.borrowed);
    }
}

#[cfg(test)]
mod tests;
