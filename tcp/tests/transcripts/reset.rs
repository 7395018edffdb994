//! RST and SYN in every state, and resets of ours (RFC 9293 §3.10.7.4, second and fourth; RFC 5961 §3 and §4).

use tcp::{CHALLENGE_ACKS_PER_SECOND, State};

use crate::common::{NETWORKS, Setup};
use crate::play::{Transcript, in_every_state};

/// RFC 5961 §3.2: "if the RST bit is set and the sequence number exactly matches the next expected sequence number (RCV.NXT),
/// then TCP MUST reset the connection".
#[test]
fn a_reset_with_the_next_number_ends_the_connection() {
    for (state, mut script, _, theirs) in in_every_state(&Setup::default()) {
        if state != State::TimeWait {
            script.play(&format!("< R {theirs}\n is Closed\n +100000"));
            assert!(script.connection.was_reset() && script.connection.is_closed(), "{state:?}");
            assert!(script.connection.remains().is_none() && script.poll_at().is_none());
        }
    }
}

/// RFC 5961 §3.2: "if the sequence number does not exactly match the next expected sequence value, yet is within the current
/// receive window [...], TCP MUST send an acknowledgment (challenge ACK)".
#[test]
fn a_reset_elsewhere_in_the_window_is_challenged() {
    for (state, mut script, ours, theirs) in in_every_state(&Setup::default()) {
        if state != State::TimeWait {
            script.play(&format!(
                "< R {}
                 > . {ours} ack {theirs}
                 < R. {} ack {ours}
                 > . {ours} ack {theirs}
                 is {state:?}",
                theirs + 1,
                theirs + 65_000,
            ));
        }
    }
}

/// RFC 5961 §3.2: "if the RST bit is set and the sequence number is outside the current receive window, silently drop the
/// segment".
#[test]
fn a_reset_outside_of_the_window_is_nothing() {
    for (state, mut script, ours, theirs) in in_every_state(&Setup::default()) {
        let outside = [i64::from(theirs) - 1, i64::from(theirs) - 100, 70_000, 1 << 31];
        outside.iter().for_each(|seq| script.play(&format!("< R {seq}\n < R. {seq} ack {ours}\n is {state:?}")));
    }
}

/// RFC 9293 §3.10.7.4, second: what was received before a reset can still be read; nothing can be sent.
#[test]
fn what_was_received_outlives_a_reset() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 5
         > P. 1:6 ack 1
         < P. 1:11 ack 1
         < R 11
         < P. 11:21 ack 1
         is Closed
         read 10
         abort
         finish
         probe
         acknowledge
         +100000",
    );
    assert_eq!((script.connection.send(b"x"), script.connection.send_room()), (0, 0));
    assert!(!script.connection.awaits_ack());
}

/// A reset is not held up by what is missing before it, and does not count instead of it.
#[test]
fn a_reset_behind_a_hole_is_challenged() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "< . 11:21 ack 1
         > . 1 ack 1 sack 11:21
         < R 21
         > . 1 ack 1 sack 11:21
         < . 1:11 ack 1
         > . 1 ack 21
         < R 21
         is Closed",
    );
}

/// RFC 5961 §4.2: "if the SYN bit is set, irrespective of the sequence number, TCP MUST send an ACK (challenge ACK)".
#[test]
fn a_syn_is_challenged_in_every_state() {
    for (state, mut script, ours, theirs) in in_every_state(&Setup::default()) {
        for syn in ["S 0", "S. 0 ack 1", "S 50000", "S 2000000000", "SF 1"] {
            script.play(&format!("< {syn}\n > . {ours} ack {theirs}\n is {state:?}"));
        }
        assert_eq!(script.stack.counters().challenge_acks, 5);
    }
}

/// RFC 5961 §7: "an implementation [...] SHOULD limit the rate of challenge ACKs".
#[test]
fn challenges_are_limited() {
    let mut script = Transcript::new(Setup::default());
    for _ in 0..20 {
        for _ in 0..CHALLENGE_ACKS_PER_SECOND {
            script.play("< R 100\n > . 1 ack 1");
        }
        script.play("< R 100\n < S 5\n < . 1 ack 500\n < . -100 ack 1\n +1000");
    }
    let counters = script.stack.counters();
    assert_eq!(counters.challenge_acks, 20 * u64::from(CHALLENGE_ACKS_PER_SECOND));
    assert_eq!(counters.challenge_acks_withheld, 80);
}

/// RFC 9293 §3.10.5, ABORT: "send a reset segment: <SEQ=SND.NXT><CTL=RST>".
#[test]
fn an_abort_resets_in_every_state() {
    for network in NETWORKS {
        for (state, mut script, ours, theirs) in in_every_state(&Setup::on(network)) {
            if state != State::TimeWait {
                script.play(&format!("abort\n > R. {ours} ack {theirs} win 0\n is Closed\n +100000"));
                assert!(script.connection.is_closed() && !script.connection.was_reset());
            }
        }
    }
}

/// RFC 5961 §3: only SND.NXT is sure to be what the peer expects, if it has received all; not what is sent again.
#[test]
fn an_abort_has_the_highest_number_after_a_timeout_too() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 2000
         > . 1:1461 ack 1
         > P. 1461:2001 ack 1
         +202 > P. 1461:2001 ack 1
         +300 > . 1:1461 ack 1
         abort
         > R. 2001 ack 1",
    );
    assert!(script.connection.is_closed());
}

/// Until the reset has left, the connection is not over.
#[test]
fn a_reset_waits_for_a_frame() {
    let mut script = Transcript::new(Setup::default());
    script.play("frames 0\n abort\n +100");
    assert!(!script.connection.is_closed());
    script.play("frames 1\n > R. 1 ack 1");
    assert!(script.connection.is_closed());
}

/// RFC 9293 §3.10.7.1: what comes for a connection that we have reset is reset again, but for resets. So is a challenge ACK
/// (RFC 5961 §3.2) of a peer that has not received all before our reset.
#[test]
fn remains_of_a_reset_answer_with_a_reset() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 10
         > P. 1:11 ack 1
         abort
         > R. 11 ack 1
         bury
         < . 1 ack 1
         > R 1
         < P. 1:6 ack 11
         > R 11
         < R 1
         < R. 1 ack 11
         < S 3000
         > R. 3 ack 3001
         frames 0
         < . 1 ack 1",
    );
}
