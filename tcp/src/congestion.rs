//! How much may be on its way: slow start (RFC 5681, RFC 6928) that ends when round trips take longer (HyStart++, RFC 9406),
//! CUBIC (RFC 9438), and proportional rate reduction while losses are repaired (RFC 6937).

use smoltcp::time::{Duration, Instant};

use crate::sequence::is_before;

/// CUBIC's multiplicative decrease (RFC 9438 §4.6).
const BETA: f64 = 0.7;
/// CUBIC's constant, in segments per second^3 (RFC 9438 §5).
const C: f64 = 0.4;
/// The factor by which CUBIC's window grows like Reno's (RFC 9438 §4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// How much longer a round trip has to take before slow start is slowed down (RFC 9406 §4.3).
const LEAST_RTT_THRESHOLD: Duration = Duration::from_millis(4);
const LARGEST_RTT_THRESHOLD: Duration = Duration::from_millis(16);
/// Measurements that a round has to have before its minimum counts (RFC 9406 §4.3).
const ROUND_SAMPLES: u32 = 8;
/// By how much conservative slow start is slower, and how many rounds it takes (RFC 9406 §4.3).
const CONSERVATIVE_DIVISOR: usize = 4;
const CONSERVATIVE_ROUNDS: u32 = 5;

/// Sizes of windows, all in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Congestion {
    mss: usize,
    cwnd: usize,
    ssthresh: usize,
    /// CUBIC's W_max and cwnd_prior, in segments.
    w_max: f64,
    prior: f64,
    /// The present stage of congestion avoidance.
    epoch: Option<Epoch>,
    episode: Option<Episode>,
    /// What duplicate ACKs have told of: it counts when SND.UNA moves.
    withheld: usize,
    start: SlowStart,
    /// What to go back to if it turns out that nothing was lost in the last episode: window, ssthresh, W_max.
    before: Option<(usize, usize, f64)>,
}

/// Rounds of slow start (RFC 9406 §4.2).
#[derive(Clone, Copy, Debug, Default)]
struct SlowStart {
    /// `windowEnd`: the round ends when this is acknowledged. None: there was no round yet.
    end: Option<u32>,
    /// `lastRoundMinRTT`, `currentRoundMinRTT`, `rttSampleCount`.
    last: Option<Duration>,
    current: Option<Duration>,
    samples: u32,
    /// In conservative slow start: `cssBaselineMinRtt`, and rounds so far.
    conservative: Option<(Duration, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// When it began; later by the time in which the window was not used.
    begin: Instant,
    /// When an ACK has come last.
    last: Instant,
    /// The time in seconds until the plateau.
    k: f64,
    /// The plateau, in segments.
    origin: f64,
    /// W_est: the window that Reno would have, in segments.
    reno: f64,
}

/// Losses are being repaired.
#[derive(Clone, Debug)]
struct Episode {
    kind: Kind,
    /// It ends when everything before this number is acknowledged (RecoveryPoint of RFC 6675).
    point: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    /// After losses that ACKs have told of. RFC 6937: `RecoverFS`, `prr_delivered`, `prr_out`.
    Recovery { flight: usize, delivered: usize, out: usize },
    /// After a retransmission timeout: slow start from one segment on.
    Loss,
}

/// What an ACK has brought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    /// Bytes that are newly known to have arrived: acknowledged or in a SACK block.
    pub(crate) delivered: usize,
    /// SND.UNA has moved.
    pub(crate) advanced: bool,
    /// SND.UNA and SND.NXT.
    pub(crate) una: u32,
    pub(crate) nxt: u32,
    /// A measurement of the round-trip time.
    pub(crate) rtt: Option<Duration>,
    /// Bytes on their way before the ACK.
    pub(crate) pipe_before: usize,
    /// Bytes on their way now.
    pub(crate) pipe: usize,
}

impl Congestion {
    pub(crate) fn new(mss: usize) -> Self {
        Self {
            mss,
            cwnd: initial_window(mss),
            ssthresh: usize::MAX,
            w_max: 0.0,
            prior: 0.0,
            epoch: None,
            episode: None,
            withheld: 0,
            start: SlowStart::default(),
            before: None,
        }
    }

    /// The congestion window.
    pub(crate) fn window(&self) -> usize {
        self.cwnd
    }

    /// The largest segment has got smaller.
    pub(crate) fn set_mss(&mut self, mss: usize) {
        self.mss = mss;
    }

    /// Whether losses are being repaired.
    pub(crate) fn is_repairing(&self) -> bool {
        self.episode.is_some()
    }

    /// Whether losses are being repaired after a retransmission timeout.
    pub(crate) fn is_after_timeout(&self) -> bool {
        matches!(self.episode, Some(Episode { kind: Kind::Loss, .. }))
    }

    /// ACKs have told of a loss. `point`: SND.NXT; `pipe`: bytes on their way, the lost ones not among them.
    pub(crate) fn on_loss(&mut self, point: u32, pipe: usize, flight: usize) {
        if self.episode.is_some() {
            return;
        }
        self.reduce();
        let kind = Kind::Recovery { flight: flight.max(self.mss), delivered: 0, out: 0 };
        self.episode = Some(Episode { kind, point });
        // RFC 6937 §3: the first retransmission leaves at once.
        self.cwnd = pipe + self.mss;
    }

    /// The retransmission timer has fired: all that is not acknowledged counts as lost (RFC 5681 §3.1).
    pub(crate) fn on_timeout(&mut self, point: u32) {
        // ssthresh is reduced once an episode.
        if self.episode.is_none() {
            self.reduce();
        }
        self.episode = Some(Episode { kind: Kind::Loss, point });
        self.cwnd = self.mss;
    }

    /// Remembers the windows and reduces `ssthresh` (RFC 9438 §4.6, §4.7).
    fn reduce(&mut self) {
        self.before = Some((self.cwnd, self.ssthresh, self.w_max));
        let window = self.cwnd as f64 / self.mss as f64;
        self.prior = window;
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.ssthresh = ((self.cwnd as f64 * BETA) as usize).max(2 * self.mss);
        self.withheld = 0;
        self.epoch = None;
    }

    /// A segment of `length` bytes was sent.
    pub(crate) fn on_sent(&mut self, length: usize) {
        if let Some(Episode { kind: Kind::Recovery { out, .. }, .. }) = &mut self.episode {
            *out += length;
        }
    }

    /// An ACK has come, and losses have been looked for.
    pub(crate) fn on_ack(&mut self, now: Instant, acked: Acked, srtt: Option<Duration>) {
        match &mut self.episode {
            Some(Episode { kind: Kind::Recovery { flight, delivered, out }, point, .. }) => {
                if !is_before(acked.una, *point) {
                    self.cwnd = self.ssthresh;
                    self.episode = None;
                    return;
                }
                // RFC 6937 §3.1: as many bytes leave as `ssthresh` has of what was on its way; fewer than `ssthresh` on
                // their way grow again, no faster than slow start.
                *delivered += acked.delivered;
                let owed = delivered.saturating_sub(*out);
                let room = if acked.pipe > self.ssthresh {
                    let share = (*delivered as u64 * self.ssthresh as u64).div_ceil(*flight as u64) as usize;
                    share.saturating_sub(*out)
                } else {
                    let limit = if acked.advanced { owed.max(acked.delivered) + self.mss } else { owed };
                    limit.min(self.ssthresh - acked.pipe)
                };
                // The first retransmission leaves in any case.
                self.cwnd = acked.pipe + if *out == 0 { room.max(self.mss) } else { room };
            }
            Some(Episode { kind: Kind::Loss, point, .. }) => {
                let ends = !is_before(acked.una, *point);
                self.grow(now, acked, srtt);
                if ends {
                    self.episode = None;
                }
            }
            None => self.grow(now, acked, srtt),
        }
    }

    fn grow(&mut self, now: Instant, acked: Acked, srtt: Option<Duration>) {
        // RFC 3042 §2: what duplicate ACKs let leave must not change the window.
        self.withheld += acked.delivered;
        if !acked.advanced || self.withheld == 0 {
            return;
        }
        let acked = Acked { delivered: std::mem::take(&mut self.withheld), ..acked };
        if self.cwnd < self.ssthresh {
            // A window that was not used says nothing about the path (RFC 7661 §3; `tcp_is_cwnd_limited` of Linux).
            if acked.pipe_before * 2 >= self.cwnd {
                let slower = if self.start.conservative.is_some() { CONSERVATIVE_DIVISOR } else { 1 };
                self.cwnd = (self.cwnd + acked.delivered / slower).min(self.ssthresh);
            }
            if self.start.is_over_after(&acked) {
                self.ssthresh = self.cwnd;
            }
        } else if acked.pipe_before + 3 * self.mss >= self.cwnd {
            self.avoid_congestion(now, acked.delivered, srtt.unwrap_or_default());
        } else if let Some(epoch) = &mut self.epoch {
            // RFC 9438 §4.2: the time does not count in which a window does not grow because it is not used.
            epoch.begin += now - epoch.last;
        }
        self.epoch.iter_mut().for_each(|epoch| epoch.last = now);
    }

    /// RFC 9438 §4.2 to §4.5.
    fn avoid_congestion(&mut self, now: Instant, delivered: usize, srtt: Duration) {
        let window = self.cwnd as f64 / self.mss as f64;
        let w_max = self.w_max;
        let epoch = self.epoch.get_or_insert_with(|| {
            let origin = w_max.max(window);
            Epoch { begin: now, last: now, k: ((origin - window) / C).cbrt(), origin, reno: window }
        });
        let acked = delivered as f64 / self.mss as f64;
        let t = (now - epoch.begin + srtt).total_micros() as f64 / 1e6;
        let target = (epoch.origin + C * (t - epoch.k).powi(3)).clamp(window, 1.5 * window);
        // RFC 9438 §4.3: once W_est is back at the old window, it grows like Reno's.
        let alpha = if epoch.reno >= self.prior { 1.0 } else { ALPHA };
        epoch.reno += alpha * acked / window;
        let cubic = window + (target - window) / window * acked;
        self.cwnd = (cubic.max(epoch.reno.min(window + acked)) * self.mss as f64) as usize;
    }

    /// Nothing had been lost after all in the last episode, whether it lasts or not: back to the windows before (RFC 3522 §3.2,
    /// `tcp_undo_cwnd_reduction` of Linux). False: it was undone before.
    pub(crate) fn undo(&mut self) -> bool {
        let Some((cwnd, ssthresh, w_max)) = self.before.take() else { return false };
        self.episode = None;
        self.cwnd = self.cwnd.max(cwnd);
        self.ssthresh = self.ssthresh.max(ssthresh);
        self.w_max = w_max;
        self.epoch = None;
        true
    }

    /// Nothing was sent for longer than the retransmission timeout (RFC 5681 §4.1).
    pub(crate) fn restart_after_idle(&mut self) {
        if self.episode.is_none() {
            self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
            self.cwnd = self.cwnd.min(initial_window(self.mss));
            self.epoch = None;
        }
    }
}

impl SlowStart {
    /// Takes an ACK (RFC 9406 §4.2). True: slow start is over.
    fn is_over_after(&mut self, acked: &Acked) -> bool {
        if self.end.is_none_or(|end| !is_before(acked.una, end)) {
            // A new round.
            self.end = Some(acked.nxt);
            (self.last, self.current, self.samples) = (self.current, None, 0);
            if let Some((_, rounds)) = &mut self.conservative {
                *rounds += 1;
                if *rounds > CONSERVATIVE_ROUNDS {
                    return true;
                }
            }
        }
        let Some(rtt) = acked.rtt else { return false };
        self.samples += 1;
        let current = self.current.map_or(rtt, |current| current.min(rtt));
        self.current = Some(current);
        let Some(last) = self.last.filter(|_| self.samples >= ROUND_SAMPLES) else { return false };
        match self.conservative {
            Some((baseline, _)) if current < baseline => self.conservative = None,
            Some(_) => {}
            None => {
                let threshold = (last / 8).clamp(LEAST_RTT_THRESHOLD, LARGEST_RTT_THRESHOLD);
                if current >= last + threshold {
                    self.conservative = Some((current, 0));
                }
            }
        }
        false
    }
}

/// RFC 6928 §2.
fn initial_window(mss: usize) -> usize {
    (10 * mss).min((2 * mss).max(14_600))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1000;

    fn acked(una: u32, delivered: usize, pipe: usize) -> Acked {
        Acked { delivered, advanced: true, una, nxt: una + 1, rtt: None, pipe_before: pipe + delivered, pipe }
    }

    #[test]
    fn slow_start_doubles_a_window_that_is_used_and_no_other() {
        let mut congestion = Congestion::new(MSS);
        assert_eq!(congestion.window(), 10 * MSS);
        congestion.on_ack(Instant::ZERO, acked(0, 10 * MSS, 0), None);
        assert_eq!(congestion.window(), 20 * MSS);
        congestion.on_ack(Instant::ZERO, acked(0, MSS, 0), None);
        assert_eq!(congestion.window(), 20 * MSS);
    }

    /// RFC 6937: what leaves in recovery is about `BETA` of what arrives, and the window ends at ssthresh.
    #[test]
    fn recovery_reduces_in_proportion() {
        let mut congestion = Congestion { cwnd: 100 * MSS, ..Congestion::new(MSS) };
        congestion.on_loss(1000, 99 * MSS, 100 * MSS);
        let (mut pipe, mut sent) = (99 * MSS, 0);
        for _ in 0..99 {
            pipe -= MSS;
            congestion.on_ack(Instant::ZERO, Acked { advanced: false, ..acked(5, MSS, pipe) }, None);
            while pipe + MSS <= congestion.window() {
                congestion.on_sent(MSS);
                (pipe, sent) = (pipe + MSS, sent + MSS);
            }
        }
        assert!((65 * MSS..75 * MSS).contains(&sent), "{sent}");
        congestion.on_ack(Instant::ZERO, acked(1000, MSS, pipe), None);
        assert_eq!(congestion.window(), 70 * MSS);
        assert!(!congestion.is_repairing());
    }

    #[test]
    fn a_timeout_begins_anew_and_can_be_undone() {
        let mut congestion = Congestion { cwnd: 100 * MSS, ..Congestion::new(MSS) };
        congestion.on_timeout(1000);
        congestion.on_timeout(1000);
        assert_eq!((congestion.window(), congestion.ssthresh), (MSS, 70 * MSS));
        congestion.undo();
        assert_eq!(congestion.window(), 100 * MSS);
        assert!(!congestion.is_repairing());
    }

    /// RFC 9438 figure 1: concave up to the old window, flat there, convex behind it.
    #[test]
    fn cubic_comes_back_to_the_old_window_after_k() {
        let mut congestion = Congestion { cwnd: 1000 * MSS, ssthresh: 1, ..Congestion::new(MSS) };
        congestion.on_loss(1, 0, 1000 * MSS);
        congestion.on_ack(Instant::ZERO, acked(1, MSS, 0), None);
        assert_eq!(congestion.window(), 700 * MSS);
        let k = (300.0_f64 / C).cbrt();
        let rtt = Duration::from_millis(100);
        let mut now = Instant::ZERO;
        let mut at_k = 0;
        while now < Instant::from_micros((2.0 * k * 1e6) as i64) {
            let window = congestion.window();
            congestion.on_ack(now, acked(2, window, 0), None);
            now += rtt;
            if now.total_micros() as f64 / 1e6 <= k {
                at_k = congestion.window();
            }
        }
        assert!((980 * MSS..1010 * MSS).contains(&at_k), "{at_k}");
        assert!(congestion.window() > 1200 * MSS, "{}", congestion.window());
    }

    /// RFC 9406: a queue that builds up slows slow start down, and ends it after five rounds.
    #[test]
    fn slow_start_ends_when_round_trips_take_longer() {
        let mut congestion = Congestion::new(MSS);
        let mut round = |una: u32, millis: u64| {
            for number in 0..10 {
                let rtt = Some(Duration::from_millis(millis));
                let ack = Acked { una: una + number, nxt: una + 10, rtt, ..acked(0, MSS, congestion.cwnd) };
                congestion.on_ack(Instant::ZERO, ack, None);
            }
            (congestion.cwnd, congestion.ssthresh == usize::MAX)
        };
        assert_eq!(round(0, 50), (20 * MSS, true));
        assert_eq!(round(10, 55), (30 * MSS, true), "5 ms are less than an eighth");
        let (window, _) = round(20, 62);
        assert!((36 * MSS..39 * MSS).contains(&window), "{window}: slower from the eighth measurement on");
        for number in 3..8 {
            assert!(round(number * 10, 63).1, "round {number}");
        }
        assert!(!round(80, 63).1);
    }

    /// RFC 9438 §4.2: an application that has paused does not get the window that would have grown meanwhile.
    #[test]
    fn a_window_does_not_grow_by_time_in_which_it_is_not_used() {
        let mut congestion = Congestion { cwnd: 100 * MSS, ssthresh: 1, ..Congestion::new(MSS) };
        let used = |window: usize| Acked { pipe_before: window, ..acked(1, MSS, 0) };
        congestion.on_ack(Instant::ZERO, used(100 * MSS), None);
        for second in 1..1000 {
            congestion.on_ack(Instant::from_secs(second), used(MSS), None);
        }
        congestion.on_ack(Instant::from_secs(999), used(100 * MSS), None);
        let window = congestion.window();
        assert!((100 * MSS..=100 * MSS + 50).contains(&window), "{window}");
    }
}
