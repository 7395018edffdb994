//! Timestamps of one connection (RFC 7323): a clock that continues the one that the peer knows from the handshake, and
//! protection against wrapped sequence numbers.

use smoltcp::time::{Duration, Instant};

use crate::sequence::is_before;
use crate::wire::Timestamps;

/// After so long without a segment, TS.Recent says nothing any more (RFC 7323 §5.5).
const OUTDATED: Duration = Duration::from_secs(24 * 24 * 3600);

/// The state of the timestamps option, of a connection that has negotiated it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What is added to the milliseconds of `now`, so that the peer sees the clock of the host across go on.
    offset: u32,
    /// TS.Recent: what we echo.
    recent: u32,
    recent_at: Instant,
}

impl Clock {
    /// A clock that shows `value` at `now`; the peer's shows `recent`.
    pub(crate) fn new(now: Instant, value: u32, recent: u32) -> Self {
        Self { offset: value.wrapping_sub(now.total_millis() as u32), recent, recent_at: now }
    }

    /// The option of a segment that leaves now.
    pub(crate) fn stamp(&self, now: Instant) -> Timestamps {
        Timestamps { value: self.value(now), echo: self.recent }
    }

    /// What the clock shows, in milliseconds.
    pub(crate) fn value(&self, now: Instant) -> u32 {
        (now.total_millis() as u32).wrapping_add(self.offset)
    }

    /// A segment with this TSval is older than what was received before (RFC 7323 §5.3 R1).
    pub(crate) fn is_old(&self, now: Instant, value: u32) -> bool {
        is_before(value, self.recent) && now < self.recent_at + OUTDATED
    }

    /// An acceptable segment that begins at or before the last ACK that was sent has this TSval (RFC 7323 §4.3).
    pub(crate) fn note(&mut self, now: Instant, value: u32) {
        if !self.is_old(now, value) {
            self.recent = value;
            self.recent_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on_from_what_the_peer_was_shown() {
        let now = Instant::from_secs(1_000_000);
        let clock = Clock::new(now, 0xffff_fff0, 7);
        assert_eq!(clock.stamp(now), Timestamps { value: 0xffff_fff0, echo: 7 });
        assert_eq!(clock.value(now + Duration::from_millis(0x20)), 0x10, "and wraps");
    }

    #[test]
    fn old_values_are_found_across_the_wrap_and_outdated_after_24_days() {
        let now = Instant::from_secs(5);
        let mut clock = Clock::new(now, 0, 0xffff_ffff);
        assert!(clock.is_old(now, 0xffff_fffe) && !clock.is_old(now, 0xffff_ffff) && !clock.is_old(now, 3));
        clock.note(now, 3);
        assert!(clock.is_old(now, 0xffff_ffff));
        clock.note(now, 2);
        assert_eq!(clock.stamp(now).echo, 3, "it never goes back");
        assert!(!clock.is_old(now + OUTDATED, 1));
    }
}
