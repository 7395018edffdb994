//! The round-trip time to the peer, and how long to wait for it (RFC 6298).

use smoltcp::time::Duration;

/// RTO before there is a measurement (RFC 6298 §2.1).
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Least safety margin of the RTO over SRTT. RFC 6298 §2.4 asks for an RTO of at least 1 s; this is what Linux does
/// (`TCP_RTO_MIN`), and what both hosts would do without us.
const LEAST_MARGIN: Duration = Duration::from_millis(200);
/// RFC 6298 §2.5; as `TCP_RTO_MAX` of Linux.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a minimum counts.
pub(crate) const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

/// Estimates.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt {
    /// SRTT and RTTVAR in microseconds.
    smoothed: Option<(u64, u64)>,
}

impl Rtt {
    /// Takes a measurement of a segment that was sent once (Karn's algorithm, RFC 6298 §3).
    pub(crate) fn sample(&mut self, rtt: Duration) {
        let rtt = rtt.total_micros().max(1);
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((srtt, rttvar)) => ((7 * srtt + rtt) / 8, (3 * rttvar + srtt.abs_diff(rtt)) / 4),
        });
    }

    /// SRTT.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|(srtt, _)| Duration::from_micros(srtt))
    }

    /// RTO, after `backoff` timeouts in a row.
    pub(crate) fn timeout(&self, backoff: u32) -> Duration {
        let first = match self.smoothed {
            None => INITIAL_TIMEOUT,
            Some((srtt, rttvar)) => Duration::from_micros(srtt + (4 * rttvar).max(LEAST_MARGIN.total_micros())),
        };
        // RFC 6298 §5.5.
        (first * (1 << backoff.min(10))).min(LONGEST_TIMEOUT)
    }

    /// PTO: how long to wait for an ACK before the tail is probed (RFC 8985 §7.2). `lone`: only one segment is on its way, and
    /// the peer may delay its ACK.
    pub(crate) fn probe_timeout(&self, lone: bool) -> Duration {
        const WORST_ACK_DELAY: Duration = Duration::from_millis(200);
        const TIMER_SLACK: Duration = Duration::from_millis(2);
        match self.smoothed {
            None => INITIAL_TIMEOUT,
            Some((srtt, _)) => Duration::from_micros(2 * srtt) + if lone { WORST_ACK_DELAY } else { TIMER_SLACK },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_rfc_6298() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(0), Duration::from_secs(1));
        rtt.sample(Duration::from_millis(100));
        assert_eq!(rtt.timeout(0), Duration::from_millis(300), "SRTT + max(4 x 50 ms, the least margin)");
        assert_eq!(rtt.timeout(1), Duration::from_millis(600));
        assert_eq!(rtt.timeout(20), LONGEST_TIMEOUT);
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(100));
        }
        assert_eq!(rtt.timeout(0).total_millis(), 300);
        rtt.sample(Duration::from_millis(900));
        assert_eq!(rtt.smoothed().unwrap().total_millis(), 200);
        assert!(rtt.timeout(0) >= Duration::from_millis(1000), "SRTT + 4 x 200 ms");
    }
}
