//! The sender by itself: what leaves, and when.

use super::*;
use crate::stack::Stack;

const MSS: usize = 1000;
const RTT: Duration = Duration::from_millis(100);

/// A sender, and what it has said; sequence numbers count from the first byte of text.
struct Script {
    sender: Sender,
    now: Instant,
    counters: Counters,
}

impl Script {
    /// With so many segments in the queue.
    fn new(segments: usize) -> Self {
        let config = SenderConfig {
            iss: u32::MAX,
            irs: 0,
            window: u16::MAX,
            shift: 7,
            mss: MSS,
            sack: true,
            rtt: Some(RTT),
            budget: Stack::new(0, 1500).budget.clone(),
        };
        let now = Instant::from_secs(1);
        let mut script = Self { sender: Sender::new(now, config), now, counters: Counters::default() };
        script.push(segments);
        script
    }

    fn push(&mut self, segments: usize) {
        assert_eq!(self.sender.push(&vec![7; segments * MSS]), segments * MSS);
    }

    /// What leaves now: numbers of segments.
    fn sends(&mut self) -> Vec<u32> {
        self.sender.handle_timeout(self.now, &mut self.counters);
        let mut sent = Vec::new();
        while let Some(chunk) = self.sender.next(self.now) {
            self.sender.sent(self.now, &chunk, &mut self.counters);
            sent.push(chunk.seq / MSS as u32);
        }
        sent
    }

    /// What leaves when the timer fires, and after how many milliseconds that is.
    fn waits(&mut self) -> (u64, Vec<u32>) {
        let at = self.sender.poll_at().expect("a timer runs");
        let waited = (at - self.now).total_millis();
        self.now = at;
        (waited, self.sends())
    }

    /// An ACK of all segments before `ack`, with SACK blocks; and what leaves then.
    fn acks(&mut self, ack: u32, sack: &[SackBlock]) -> Vec<u32> {
        self.acks_earlier(ack, sack, |_| None)
    }

    /// The same of a peer with timestamps; the ACK answers what was sent at the given time.
    fn echoes(&mut self, ack: u32, sack: &[SackBlock], answered: Instant) -> Vec<u32> {
        self.acks_earlier(ack, sack, |sent| Some(answered < sent))
    }

    fn acks_earlier(
        &mut self,
        ack: u32,
        sack: &[SackBlock],
        answers_earlier: impl Fn(Instant) -> Option<bool>,
    ) -> Vec<u32> {
        let bytes = |number: u32| number * MSS as u32;
        let sack: Vec<SackBlock> = sack.iter().map(|&(left, right)| (bytes(left), bytes(right))).collect();
        let feedback = Feedback { seq: 1, ack: bytes(ack), window: u16::MAX, bare: true, sack: &sack };
        self.sender.handle_ack(self.now, &feedback, &mut self.counters, answers_earlier);
        self.sends()
    }

    fn window(&self) -> usize {
        self.sender.congestion.window() / MSS
    }
}

/// RFC 8985 §7.4.2: that a probe was not needed is told right behind the first ACK, by D-SACK or a duplicate.
#[test]
fn a_tail_probe_that_was_not_needed_costs_nothing() {
    for dsack in [&[(9, 10)][..], &[]] {
        let mut script = Script::new(10);
        assert_eq!(script.sends().len(), 10);
        assert_eq!(script.waits(), (202, vec![9]));
        script.acks(10, &[]);
        script.now += Duration::from_millis(1);
        script.acks(10, dsack);
        script.push(10);
        assert_eq!(script.sends().len(), 10);
        script.now += RTT;
        script.acks(20, &[]);
        assert!(script.window() >= 10, "{}", script.window());
    }
}

#[test]
fn a_tail_probe_that_was_needed_counts_as_a_loss() {
    let mut script = Script::new(10);
    script.sends();
    script.now += RTT;
    script.acks(9, &[]);
    let (waited, sent) = script.waits();
    // RFC 8985 §7.2: 2 x SRTT and the worst delay of an ACK, but not longer than the RTO.
    assert_eq!((waited, sent), (300, vec![9]));
    script.now += RTT;
    script.acks(10, &[]);
    let before = script.window();
    script.push(1);
    script.sends();
    script.now += RTT;
    script.acks(11, &[]);
    assert_eq!(script.window(), before * 7 / 10);
    assert_eq!(script.counters.retransmission_timeouts, 0);
}

/// Karn's algorithm, RFC 6298 §3: a path that has become slower than the timer is found out about by the timer's backing
/// off, which an ACK that may answer an earlier transmission does not end.
#[test]
fn the_timer_stays_backed_off_until_there_is_a_measurement() {
    let mut script = Script::new(1);
    script.sends();
    assert_eq!(script.waits().0, 300, "the probe");
    assert_eq!(script.waits(), (300, vec![0]));
    script.now += Duration::from_millis(50);
    script.push(1);
    script.acks(1, &[]);
    assert_eq!(script.waits(), (600, vec![1]), "not a probe at 300 ms");
    script.now += Duration::from_millis(700);
    script.push(1);
    assert_eq!(script.acks(2, &[]), [2]);
    script.now += RTT;
    script.push(1);
    assert_eq!(script.acks(3, &[]), [3], "sent once: a measurement");
    assert_eq!(script.waits(), (300, vec![3]));
}

#[test]
fn a_timestamp_makes_a_measurement_of_what_was_sent_again() {
    let mut script = Script::new(1);
    script.sends();
    script.waits();
    script.waits();
    let again = script.now;
    script.now += RTT;
    script.push(1);
    script.echoes(1, &[], again);
    assert_eq!(script.waits(), (300, vec![1]));
}

/// A retransmission that is reported within a SACK block has arrived, whatever the ACK's timestamp is.
#[test]
fn a_lost_retransmission_is_found_by_a_later_one() {
    let mut script = Script::new(10);
    let first = script.now;
    assert_eq!(script.sends().len(), 10);
    script.now += RTT;
    assert_eq!(script.echoes(0, &[(1, 2), (3, 10)], first), [0, 2]);
    script.now += Duration::from_millis(101);
    assert_eq!(script.echoes(0, &[(1, 10)], first), [0], "2 was sent after 0, and has arrived");
}

/// RFC 5681 §3.2, RFC 6675 §5: losses of two round trips reduce the window twice.
#[test]
fn a_loss_of_what_was_sent_in_recovery_counts_again() {
    let mut script = Script::new(30);
    script.sends();
    script.now += RTT;
    assert_eq!(script.acks(0, &[(1, 4)]), [0]);
    let sent = script.acks(0, &[(1, 10)]);
    assert_eq!(sent, [10, 11, 12, 13, 14, 15], "9 of 10 have arrived: 7 may leave, and 1 has");
    script.now += RTT;
    assert_eq!(script.acks(10, &[(11, 16)])[0], 10);
    script.now += RTT;
    script.acks(script.sender.nxt() / MSS as u32, &[]);
    assert_eq!(script.window(), 4, "10 x 0.7 x 0.7");
}

/// RFC 3708. The D-SACK comes behind the ACK that ends the repair: what was sent again was sent after all else.
#[test]
fn what_was_sent_again_for_nothing_is_undone_when_that_is_told() {
    let mut script = Script::new(10);
    script.sends();
    script.now += RTT;
    assert_eq!(script.acks(0, &[(1, 4)]), [0]);
    script.acks(10, &[]);
    assert_eq!(script.window(), 7);
    script.now += RTT;
    script.acks(10, &[(0, 1)]);
    assert_eq!((script.window(), script.counters.undone_recoveries), (10, 1));
    script.acks(10, &[(0, 1)]);
    assert_eq!(script.counters.undone_recoveries, 1);
}

#[test]
fn an_old_duplicate_undoes_nothing() {
    let mut script = Script::new(10);
    script.sends();
    script.now += RTT;
    script.acks(2, &[]);
    assert_eq!(script.acks(2, &[(3, 6)]), [2]);
    script.acks(2, &[(0, 1), (3, 10)]);
    assert!(script.sender.congestion.is_repairing());
}
