//! Sequence numbers, and what becomes of a received segment before anything of it is used: the checks of RFC 9293 §3.10.7.4
//! and RFC 5961.

use crate::wire::Headers;

/// Challenge ACKs that one connection sends in a second (RFC 5961 §7).
pub const CHALLENGE_ACKS_PER_SECOND: u32 = 5;

/// `a` is before `b` in sequence space (RFC 9293 §3.4).
pub(crate) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The later of two sequence numbers.
pub(crate) fn later(a: u32, b: u32) -> u32 {
    if is_before(a, b) { b } else { a }
}

/// The earlier of two sequence numbers.
pub(crate) fn earlier(a: u32, b: u32) -> u32 {
    if is_before(a, b) { a } else { b }
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
    /// It asks whether we are still there (RFC 9293 §3.8.4), or whether our window has opened (§3.8.6.1).
    Probe,
    /// It is the peer's valid reset.
    Reset,
    /// Its ACK counts, and this much of its text: perhaps nothing.
    Enter(Trimmed),
}

/// What of a segment is new and within the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// Bytes of text that are cut off at the front.
    pub(crate) skip: usize,
    /// Sequence number of the first byte that stays.
    pub(crate) seq: u32,
    /// Bytes of text that stay.
    pub(crate) length: usize,
    /// The sequence number of the FIN, if it stays.
    pub(crate) fin: Option<u32>,
    /// Something of the segment is not new, or not within the window: an ACK tells the peer.
    pub(crate) cut: bool,
}

/// Where a connection stands, as far as received segments are judged by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// RCV.NXT.
    pub(crate) rcv_nxt: u32,
    /// RCV.NXT + RCV.WND: the right edge of the window that the peer has been shown.
    pub(crate) edge: u32,
    /// The number of the peer's FIN, if one is known.
    pub(crate) fin: Option<u32>,
    /// Our FIN and the peer's are acknowledged: there is nothing left to reset.
    pub(crate) over: bool,
    /// SND.UNA.
    pub(crate) snd_una: u32,
    /// SND.NXT.
    pub(crate) snd_nxt: u32,
    /// MAX.SND.WND (RFC 5961 §5.2), in bytes.
    pub(crate) largest_window: u32,
}

impl Standing {
    /// Judges a segment of the peer (RFC 9293 §3.10.7.4). `old_timestamp`: its timestamp is from the past (RFC 7323 §5).
    pub(crate) fn admit(&self, h: &Headers, old_timestamp: bool) -> Admission {
        if h.flags.rst() {
            return self.admit_reset(h);
        }
        if h.flags.syn() {
            return Admission::Challenge; // RFC 5961 §4.2: "irrespective of the sequence number".
        }
        if !h.flags.ack() {
            return Admission::Discard; // RFC 9293 §3.10.7.4, fifth: "if the ACK bit is off, drop the segment".
        }
        if h.segment_len() <= 1 && !h.flags.fin() && h.seq.wrapping_add(1) == self.rcv_nxt {
            return Admission::Probe;
        }
        let trimmed = if old_timestamp { None } else { self.trim(h) };
        let Some(trimmed) = trimmed else {
            // Text or FIN that comes again, or too early, is paced by the peer's timers; a bare ACK is not.
            return if h.segment_len() > 0 { Admission::Acknowledge } else { Admission::Challenge };
        };
        // RFC 5961 §5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT.
        if is_before(self.snd_nxt, h.ack) || is_before(h.ack, self.snd_una.wrapping_sub(self.largest_window)) {
            return Admission::Challenge;
        }
        Admission::Enter(trimmed)
    }

    /// RFC 5961 §3.2.
    fn admit_reset(&self, h: &Headers) -> Admission {
        if self.over {
            Admission::Discard // RFC 9293 §3.10.7.1, CLOSED; RFC 1337 §3(a), TIME-WAIT.
        } else if h.seq == self.rcv_nxt {
            Admission::Reset
        } else if is_before(self.rcv_nxt, h.seq) && !is_before(self.edge, h.seq) {
            Admission::Challenge
        } else {
            Admission::Discard
        }
    }

    /// Cuts a segment to the window (RFC 9293 §3.10.7.4, first). None: nothing of it is acceptable.
    fn trim(&self, h: &Headers) -> Option<Trimmed> {
        let (nxt, length) = (self.rcv_nxt, h.payload_len() as u32);
        let end = h.seq.wrapping_add(length);
        if h.segment_len() == 0 {
            // It has the peer's SND.NXT: also when that is behind a FIN which has come too early.
            let last = self.fin.map_or(self.edge, |fin| later(self.edge, fin.wrapping_add(1)));
            let acceptable = !is_before(h.seq, nxt) && !is_before(last, h.seq);
            return acceptable.then_some(Trimmed { skip: 0, seq: nxt, length: 0, fin: None, cut: false });
        }
        // Nothing comes behind a FIN. (With the FIN received, RCV.NXT is behind it.)
        let edge = self.fin.map_or(self.edge, |fin| earlier(self.edge, later(fin, nxt)));
        if is_before(edge, h.seq) {
            return None;
        }
        if !is_before(nxt, h.seq.wrapping_add(h.segment_len())) {
            return None;
        }
        let (first, last) = (later(h.seq, nxt), earlier(end, edge));
        // A FIN needs no room in the window, but behind cut-off text it has not come yet.
        let fin = (h.flags.fin() && last == end && self.fin.is_none_or(|fin| fin == end)).then_some(end);
        let length = if is_before(first, last) { last.wrapping_sub(first) as usize } else { 0 };
        if length == 0 && fin.is_none() {
            // "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be made to accept valid
            // ACKs": probes of the window carry them.
            return (h.seq == nxt).then_some(Trimmed { skip: 0, seq: nxt, length: 0, fin: None, cut: true });
        }
        let cut = first != h.seq || last != end || fin.is_some() != h.flags.fin();
        Some(Trimmed { skip: first.wrapping_sub(h.seq) as usize, seq: first, length, fin, cut })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, L2Header};
    use proptest::prelude::*;

    fn standing(rcv_nxt: u32, window: u32) -> Standing {
        Standing {
            rcv_nxt,
            edge: rcv_nxt.wrapping_add(window),
            fin: None,
            over: false,
            snd_una: 500,
            snd_nxt: 700,
            largest_window: 1000,
        }
    }

    fn headers(flags: Flags, seq: u32, ack: u32, length: usize) -> Headers {
        Headers {
            l2: L2Header::default(),
            ip_offset: 14,
            tcp_offset: 34,
            payload_offset: 54,
            end: 54 + length,
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "10.0.0.2:2".parse().unwrap(),
            vlan: [0; 2],
            seq,
            ack,
            flags,
            window: 100,
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        }
    }

    /// RFC 9293 table 6: the four cases of acceptability.
    #[test]
    fn segments_are_acceptable_as_the_table_of_rfc_9293_says() {
        let admit = |window, seq, length| standing(1000, window).admit(&headers(Flags::ACK, seq, 600, length), false);
        let whole = |seq, length| Admission::Enter(Trimmed { skip: 0, seq, length, fin: None, cut: false });
        assert_eq!(admit(0, 1000, 0), whole(1000, 0), "length 0, window 0: SEG.SEQ = RCV.NXT");
        assert_eq!(admit(0, 1001, 0), Admission::Challenge);
        assert_eq!(admit(100, 1099, 0), whole(1000, 0), "length 0, window > 0: within the window");
        assert_eq!(admit(100, 1101, 0), Admission::Challenge);
        assert_eq!(admit(100, 900, 0), Admission::Challenge);
        let ack_only = Admission::Enter(Trimmed { skip: 0, seq: 1000, length: 0, fin: None, cut: true });
        assert_eq!(admit(0, 1000, 5), ack_only, "length > 0, window 0: nothing but its ACK");
        assert_eq!(admit(0, 1001, 5), Admission::Acknowledge);
        assert_eq!(admit(100, 1000, 5), whole(1000, 5), "length > 0, window > 0: its begin or end within the window");
        assert_eq!(admit(100, 1100, 5), Admission::Acknowledge);
        assert_eq!(admit(100, 990, 10), Admission::Acknowledge);
        assert_eq!(
            admit(100, 990, 15),
            Admission::Enter(Trimmed { skip: 10, seq: 1000, length: 5, fin: None, cut: true })
        );
        assert_eq!(
            admit(100, 1095, 10),
            Admission::Enter(Trimmed { skip: 0, seq: 1095, length: 5, fin: None, cut: true })
        );
    }

    #[test]
    fn a_fin_counts_when_all_its_text_is_there() {
        let fin = Flags::FIN.with(Flags::ACK);
        let admit = |seq, length| standing(1000, 100).admit(&headers(fin, seq, 600, length), false);
        let entered = |skip, seq, length, fin, cut| Admission::Enter(Trimmed { skip, seq, length, fin, cut });
        assert_eq!(admit(1000, 0), entered(0, 1000, 0, Some(1000), false));
        assert_eq!(admit(990, 10), entered(10, 1000, 0, Some(1000), true));
        assert_eq!(admit(1000, 100), entered(0, 1000, 100, Some(1100), false), "at the edge it needs no room");
        assert_eq!(admit(1000, 101), entered(0, 1000, 100, None, true), "behind cut-off text it has not come");
        let known = Standing { fin: Some(1010), ..standing(1000, 100) };
        assert_eq!(known.admit(&headers(fin, 1000, 600, 5), false), entered(0, 1000, 5, None, true), "another FIN");
        assert_eq!(
            known.admit(&headers(Flags::ACK, 1005, 600, 50), false),
            entered(0, 1005, 5, None, true),
            "nothing behind a FIN"
        );
    }

    proptest! {
        #[test]
        fn what_stays_is_within_the_window(
            nxt in any::<u32>(), window in 0u32..70_000, offset in -70_000i64..70_000, length in 0usize..1500,
            fin in any::<bool>(), known_fin in prop::option::of(0u32..2000),
        ) {
            let standing = Standing { fin: known_fin.map(|fin| nxt.wrapping_add(fin)), ..standing(nxt, window) };
            let seq = nxt.wrapping_add(offset as u32);
            let flags = if fin { Flags::FIN.with(Flags::ACK) } else { Flags::ACK };
            if let Admission::Enter(trimmed) = standing.admit(&headers(flags, seq, 600, length), false) {
                let end = trimmed.seq.wrapping_add(trimmed.length as u32);
                prop_assert!(!is_before(trimmed.seq, nxt) && !is_before(standing.edge, end));
                prop_assert!(trimmed.skip + trimmed.length <= length);
                if let Some(known) = standing.fin {
                    prop_assert!(!is_before(known, end) && trimmed.fin.is_none_or(|fin| fin == known));
                }
            }
        }
    }
}
