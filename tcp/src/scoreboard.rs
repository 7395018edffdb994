//! The segments that are on their way: what of them has arrived, what is lost, and how that is found out (RACK, RFC 8985).
//!
//! ```text
//!   SND.UNA                                                   SND.NXT
//!      │ lost │ sacked │ lost, sent again │ sacked │ in flight │
//!      └──────┴────────┴──────────────────┴────────┴───────────┘
//!   pipe = all − sacked − lost + sent again
//! ```
//! Each call costs as much as segments change their state in it, and a logarithm of all of them.

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};

use crate::rtt::MIN_RTT_WINDOW;
use crate::sequence::{is_before, later};
use crate::wire::{MAX_SACK_BLOCKS, SackBlock};

/// Segments known to have arrived out of order before a hole counts as a loss, until reordering was seen (RFC 8985 §6.2,
/// step 4).
const DUP_THRESH: usize = 3;

/// A segment that was sent and is not acknowledged.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u32,
    /// Sequence numbers that it takes: bytes of text, and FIN.
    length: u32,
    /// When it was sent last.
    at: Instant,
    sacked: bool,
    lost: bool,
    /// It was sent again since it was marked lost.
    again: bool,
    /// It was ever sent again.
    ever_again: bool,
}

impl Sent {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length)
    }
}

/// What was found to have arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrived {
    /// Sequence numbers that have newly arrived.
    pub(crate) bytes: usize,
    /// A measurement of the round-trip time.
    pub(crate) rtt: Option<Duration>,
    /// A segment that was sent again is among what is acknowledged.
    pub(crate) ever_again: bool,
    /// So is one, or in a SACK block, that was taken for lost and not sent again.
    pub(crate) mistaken: bool,
}

/// A place in the scoreboard that stays valid while earlier segments leave it.
type Number = u64;

/// All segments on their way, by sequence number.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    segments: VecDeque<Sent>,
    /// Number of the first of `segments`.
    base: Number,
    /// Sequence numbers that are sacked, lost, and sent again.
    sacked: usize,
    lost: usize,
    again: usize,
    sacked_segments: usize,
    /// No segment before this is lost and not sent again.
    first_lost: Number,
    /// Every segment before this that was sent once is sacked or lost.
    scanned: Number,
    /// Segments that were sent again, in the order of time, and when.
    resent: VecDeque<(Number, Instant)>,
    /// Blocks of the last SACK option.
    blocks: [SackBlock; MAX_SACK_BLOCKS],
    /// RACK.xmit_ts and RACK.end_seq: the segment sent last among those that have arrived; and its round-trip time.
    newest: Option<(Instant, u32)>,
    rack_rtt: Duration,
    min_rtt: Option<(Duration, Instant)>,
    /// RACK.fack: the highest number that has arrived.
    highest: u32,
    reordering_seen: bool,
    /// RACK.reo_wnd_mult, and RACK.reo_wnd_persist: for so many repairs it lasts.
    patience: u32,
    patience_lasts: u32,
    /// RACK.dsack_round: it grows once in a round trip.
    patience_grows: Option<u32>,
}

impl Scoreboard {
    /// Nothing was sent yet; `una`: SND.UNA.
    pub(crate) fn new(una: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            base: 0,
            sacked: 0,
            lost: 0,
            again: 0,
            sacked_segments: 0,
            first_lost: 0,
            scanned: 0,
            resent: VecDeque::new(),
            blocks: [(una, una); MAX_SACK_BLOCKS],
            newest: None,
            rack_rtt: Duration::ZERO,
            min_rtt: None,
            highest: una,
            reordering_seen: false,
            patience: 1,
            patience_lasts: 0,
            patience_grows: None,
        }
    }

    /// Something is lost, whether it was sent again or not.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// How many lost segments were sent again and have not arrived, and when the first of them was.
    pub(crate) fn resent(&self) -> (usize, Option<Instant>) {
        let valid = |&&(number, at): &&(Number, Instant)| {
            let sent = number.checked_sub(self.base).map(|index| &self.segments[index as usize]);
            sent.is_some_and(|sent| sent.again && sent.at == at)
        };
        (self.resent.iter().filter(valid).count(), self.resent.iter().find(valid).map(|&(_, at)| at))
    }

    /// Nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Number of segments on their way, arrived or not.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Something beyond SND.UNA has arrived.
    pub(crate) fn has_sacked(&self) -> bool {
        self.sacked_segments > 0
    }

    /// Sequence numbers that are on their way (RFC 6675's pipe).
    pub(crate) fn pipe(&self) -> usize {
        self.flight() - self.sacked - self.lost + self.again
    }

    /// Sequence numbers that are not acknowledged.
    pub(crate) fn flight(&self) -> usize {
        match (self.segments.front(), self.segments.back()) {
            (Some(first), Some(last)) => last.end().wrapping_sub(first.seq) as usize,
            _ => 0,
        }
    }

    /// A segment with new sequence numbers was sent.
    pub(crate) fn push(&mut self, now: Instant, seq: u32, length: u32) {
        debug_assert!(length > 0 && self.segments.back().is_none_or(|last| last.end() == seq));
        let (sacked, lost, again, ever_again) = (false, false, false, false);
        self.segments.push_back(Sent { seq, length, at: now, sacked, lost, again, ever_again });
    }

    /// The first segment that is lost and was not sent again: its number, and its sequence numbers.
    pub(crate) fn next_lost(&mut self) -> Option<(Number, u32, u32)> {
        if self.lost == self.again {
            return None;
        }
        self.first_lost = self.first_lost.max(self.base);
        while let Some(sent) = self.segments.get((self.first_lost - self.base) as usize) {
            if sent.lost && !sent.again {
                return Some((self.first_lost, sent.seq, sent.length));
            }
            self.first_lost += 1;
        }
        None
    }

    /// The last segment on its way: its number, and its sequence numbers.
    pub(crate) fn last(&self) -> Option<(Number, u32, u32)> {
        let last = self.segments.back()?;
        Some((self.base + self.segments.len() as Number - 1, last.seq, last.length))
    }

    /// A segment was sent again.
    pub(crate) fn sent_again(&mut self, now: Instant, number: Number) {
        let sent = &mut self.segments[(number - self.base) as usize];
        sent.at = now;
        sent.ever_again = true;
        if sent.lost && !sent.again {
            sent.again = true;
            self.again += sent.length as usize;
        }
        self.resent.push_back((number, now));
    }

    /// The peer has acknowledged everything before `una`. `answers_earlier`: whether the ACK answers something that was sent
    /// before the given time (so not a segment that was sent again then), if its timestamp tells.
    pub(crate) fn acknowledge(
        &mut self,
        now: Instant,
        una: u32,
        answers_earlier: impl Fn(Instant) -> Option<bool>,
    ) -> Arrived {
        let mut arrived = Arrived::default();
        while let Some(front) = self.segments.front_mut()
            && is_before(front.seq, una)
        {
            let mut sent = *front;
            if is_before(una, sent.end()) {
                // A part of it: the rest stays as it is.
                let part = una.wrapping_sub(front.seq);
                front.seq = una;
                front.length -= part;
                sent.length = part;
            } else {
                self.sacked_segments -= usize::from(sent.sacked);
                self.segments.pop_front();
                self.base += 1;
            }
            arrived.ever_again |= sent.ever_again;
            self.forget(&sent);
            if !sent.sacked {
                arrived.bytes += sent.length as usize;
                self.note_arrival(now, &sent, answers_earlier(sent.at), &mut arrived);
            }
        }
        self.highest = later(self.highest, una);
        while self.resent.front().is_some_and(|&(number, _)| number < self.base) {
            self.resent.pop_front();
        }
        arrived
    }

    /// Takes a segment, or its acknowledged beginning, out of the sums.
    fn forget(&mut self, sent: &Sent) {
        let length = sent.length as usize;
        self.sacked -= if sent.sacked { length } else { 0 };
        self.lost -= if sent.lost { length } else { 0 };
        self.again -= if sent.again { length } else { 0 };
    }

    /// Takes the blocks of a SACK option. `nxt`: SND.NXT.
    pub(crate) fn sack(&mut self, now: Instant, blocks: &[SackBlock], nxt: u32) -> Arrived {
        let mut arrived = Arrived::default();
        let Some(una) = self.segments.front().map(|sent| sent.seq) else { return arrived };
        let (known, mut highest) = (self.blocks, self.highest);
        for &(left, right) in blocks {
            // RFC 2018 §8: a block is a hint, and this one no possible one.
            if !is_before(left, right) || is_before(left, una) || is_before(nxt, right) {
                continue;
            }
            // Of a block that has only grown, only what is new has to be looked at.
            let same = known.iter().find(|old| !is_before(old.0, left) && !is_before(right, old.1) && old.0 != old.1);
            let parts = match same {
                Some(&(old_left, old_right)) => [(left, old_left), (old_right, right)],
                None => [(left, right), (right, right)],
            };
            for part in parts {
                self.sack_part(now, (left, right), part, &mut arrived);
            }
            highest = later(highest, right);
        }
        // Not before: what one ACK reports has no order in it, and is no sign of reordering.
        self.highest = highest;
        if !blocks.is_empty() {
            self.blocks = [(una, una); MAX_SACK_BLOCKS];
            for (known, &block) in self.blocks.iter_mut().zip(blocks) {
                *known = block;
            }
        }
        arrived
    }

    /// The segments of `block` that begin before `part.1` and end behind `part.0` have arrived. One of which only a part has
    /// arrived counts as not arrived: it is sent again as a whole.
    fn sack_part(&mut self, now: Instant, block: SackBlock, part: SackBlock, arrived: &mut Arrived) {
        let before = |sent: &Sent| is_before(sent.seq, block.0) || !is_before(part.0, sent.end());
        for index in self.segments.partition_point(before)..self.segments.len() {
            let sent = self.segments[index];
            if !is_before(sent.seq, part.1) || is_before(block.1, sent.end()) {
                break;
            }
            if sent.sacked {
                continue;
            }
            self.forget(&sent);
            self.sacked += sent.length as usize;
            self.sacked_segments += 1;
            arrived.bytes += sent.length as usize;
            self.segments[index] = Sent { sacked: true, lost: false, again: false, ..sent };
            // Out of order, the peer echoes the timestamp of what it has received last in order (RFC 7323 §4.3): it tells nothing.
            self.note_arrival(now, &sent, None, arrived);
        }
    }

    /// RFC 8985 §6.2, steps 1 to 3. `earlier`: the ACK answers something that was sent before the segment (was sent again), if
    /// that is known.
    fn note_arrival(&mut self, now: Instant, sent: &Sent, earlier: Option<bool>, arrived: &mut Arrived) {
        let rtt = now - sent.at;
        arrived.mistaken |= sent.lost && !sent.ever_again;
        if sent.ever_again {
            // The ACK may be of an earlier transmission.
            if earlier.unwrap_or_else(|| self.min_rtt.is_some_and(|(least, _)| rtt < least)) {
                return;
            }
            // RFC 7323 §4.1: the timestamp tells what Karn's algorithm has to leave open.
            arrived.rtt = earlier.map(|_| rtt).or(arrived.rtt);
        } else {
            arrived.rtt = Some(rtt);
            if self.min_rtt.is_none_or(|(least, at)| rtt <= least || now > at + MIN_RTT_WINDOW) {
                self.min_rtt = Some((rtt, now));
            }
            self.reordering_seen |= is_before(sent.end(), self.highest);
        }
        self.rack_rtt = rtt;
        if self.newest.is_none_or(|newest| is_sent_after((sent.at, sent.end()), newest)) {
            self.newest = Some((sent.at, sent.end()));
        }
    }

    /// Marks what is lost (RFC 8985 §6.2, step 5). Returns the sequence numbers that are newly lost, and when to look again.
    pub(crate) fn detect_losses(&mut self, now: Instant, srtt: Duration, repairing: bool) -> (usize, Option<Instant>) {
        let Some(newest) = self.newest else { return (0, None) };
        let timeout = self.rack_rtt + self.reordering_window(srtt, repairing);
        let lost_before = self.lost - self.again;
        let mut look_again: Option<Instant> = None;
        // Segments that were sent once, in the order of their numbers and so of time.
        self.scanned = self.scanned.max(self.base);
        while let Some(sent) = self.segments.get((self.scanned - self.base) as usize).copied() {
            if !sent.sacked && !sent.ever_again {
                if !is_sent_after(newest, (sent.at, sent.end())) {
                    break;
                }
                if now < sent.at + timeout {
                    look_again = Some(sent.at + timeout);
                    break;
                }
                self.mark_lost(self.scanned);
            }
            self.scanned += 1;
        }
        while let Some(&(number, at)) = self.resent.front() {
            let sent = number.checked_sub(self.base).map(|index| self.segments[index as usize]);
            // An entry is out of date if its segment has arrived or was sent again since.
            if let Some(sent) = sent.filter(|sent| !sent.sacked && sent.at == at && (sent.again || !sent.lost)) {
                if !is_sent_after(newest, (at, sent.end())) {
                    break;
                }
                if now < at + timeout {
                    look_again = Some(look_again.map_or(at + timeout, |other| other.min(at + timeout)));
                    break;
                }
                self.mark_lost(number);
            }
            self.resent.pop_front();
        }
        ((self.lost - self.again).saturating_sub(lost_before), look_again)
    }

    /// RFC 8985 §6.2, step 4.
    fn reordering_window(&self, srtt: Duration, repairing: bool) -> Duration {
        if !self.reordering_seen && (repairing || self.sacked_segments >= DUP_THRESH) {
            return Duration::ZERO;
        }
        let least = self.min_rtt.map_or(srtt, |(least, _)| least);
        (least * self.patience / 4).min(srtt)
    }

    /// Segments were sent again for nothing, by what the peer says: be more patient (RFC 8985 §6.2, step 4). `nxt`: SND.NXT.
    pub(crate) fn be_patient(&mut self, nxt: u32) {
        self.reordering_seen = true;
        self.patience_lasts = 16;
        // `highest` is what has arrived: RFC 8985 counts in rounds of what is acknowledged, which is no more than that.
        if self.patience_grows.is_none_or(|from| !is_before(self.highest, from)) {
            self.patience_grows = Some(nxt);
            self.patience = (self.patience + 1).min(16);
        }
    }

    /// Losses were repaired.
    pub(crate) fn note_repair(&mut self) {
        self.patience_lasts = self.patience_lasts.saturating_sub(1);
        if self.patience_lasts == 0 {
            self.patience = 1;
        }
    }

    fn mark_lost(&mut self, number: Number) {
        let sent = &mut self.segments[(number - self.base) as usize];
        debug_assert!(!sent.sacked);
        if sent.again {
            sent.again = false;
            self.again -= sent.length as usize;
        }
        if !sent.lost {
            sent.lost = true;
            self.lost += sent.length as usize;
        }
        self.first_lost = self.first_lost.min(number);
    }

    /// Nothing was lost after all: what was not sent again needs not be, and is looked at with more patience.
    pub(crate) fn forget_losses(&mut self, nxt: u32) {
        for sent in self.segments.iter_mut().filter(|sent| sent.lost && !sent.again) {
            sent.lost = false;
            self.lost -= sent.length as usize;
        }
        self.scanned = self.base;
        self.be_patient(nxt);
    }

    /// The first segment that has not arrived is lost: what a peer without SACK tells by duplicate ACKs (RFC 6582). Returns
    /// whether it was not known to be.
    pub(crate) fn mark_first_lost(&mut self) -> bool {
        let new = self.segments.front().is_some_and(|first| !first.sacked && (!first.lost || first.again));
        if new {
            self.mark_lost(self.base);
        }
        new
    }

    /// The retransmission timer has fired: all that is not known to have arrived is lost.
    pub(crate) fn mark_all_lost(&mut self) {
        // RFC 2018 §8: the peer may throw away what it has not acknowledged; with the first segment sacked, it has.
        let reneged = self.segments.front().is_some_and(|first| first.sacked);
        for index in 0..self.segments.len() {
            let sent = &mut self.segments[index];
            if sent.sacked && reneged {
                sent.sacked = false;
                self.sacked -= sent.length as usize;
                self.sacked_segments -= 1;
            }
            if !self.segments[index].sacked {
                self.mark_lost(self.base + index as Number);
            }
        }
        if reneged {
            let una = self.segments[0].seq;
            self.blocks = [(una, una); MAX_SACK_BLOCKS];
        }
        self.resent.clear();
        self.scanned = self.base + self.segments.len() as Number;
    }

    /// Segments may have at most `mss` bytes of text from now on: longer ones are lost, and are cut up. `fin`: the number of
    /// the FIN, which takes no room.
    pub(crate) fn split(&mut self, mss: u32, fin: Option<u32>) {
        let text = |seq: u32, end: u32| end.wrapping_sub(seq) - u32::from(fin == Some(end.wrapping_sub(1)));
        let old = std::mem::take(&mut self.segments);
        // All numbers change: nothing may refer to them any more.
        self.resent.clear();
        (self.base, self.first_lost, self.scanned) = (0, 0, 0);
        (self.sacked, self.lost, self.again, self.sacked_segments) = (0, 0, 0, 0);
        for mut sent in old {
            if text(sent.seq, sent.end()) > mss && !sent.sacked {
                (sent.lost, sent.again) = (true, false);
            }
            let (mut seq, end) = (sent.seq, sent.end());
            while seq != end {
                let length = if text(seq, end) <= mss { end.wrapping_sub(seq) } else { mss };
                self.sacked += if sent.sacked { length as usize } else { 0 };
                self.sacked_segments += usize::from(sent.sacked);
                self.lost += if sent.lost { length as usize } else { 0 };
                self.again += if sent.again { length as usize } else { 0 };
                if sent.ever_again {
                    self.resent.push_back((self.segments.len() as Number, sent.at));
                }
                self.segments.push_back(Sent { seq, length, ..sent });
                seq = seq.wrapping_add(length);
            }
        }
        self.resent.make_contiguous().sort_by_key(|&(_, at)| at);
    }
}

/// The first SACK block, if it tells of text that was received twice (RFC 2883 §4).
pub(crate) fn received_twice(blocks: &[SackBlock], una: u32) -> Option<SackBlock> {
    let &first = blocks.first()?;
    let within = |outer: &SackBlock| !is_before(first.0, outer.0) && !is_before(outer.1, first.1);
    (!is_before(una, first.1) || blocks.get(1).is_some_and(within)).then_some(first)
}

/// RFC 8985 §6.1: RACK_sent_after.
fn is_sent_after(a: (Instant, u32), b: (Instant, u32)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && is_before(b.1, a.1))
}
