//! The retransmission timer (RFC 6298), and probes for the loss of a tail (RFC 8985 §7).

use crate::common::Setup;
use crate::play::{Transcript, lines};

/// 20 segments' text, of which the first ten leave.
fn first_flight(setup: Setup, text: u32) -> Transcript {
    let mut script = Transcript::new(setup);
    script.play(&(format!("send {text}\n") + &lines("> .", 1..13_141, 1460, "ack 1") + &last_of_the_flight(text)));
    script
}

fn last_of_the_flight(text: u32) -> String {
    format!("> {} 13141:14601 ack 1", if text == 14_600 { "P." } else { "." })
}

/// RFC 6298 §2.2, §5.4, §5.5: SRTT + max(4 * RTTVAR, 200 ms), doubled each time, up to 2 minutes; §3 and §5: it stays so until
/// something is measured again, which by Karn's algorithm takes a segment that was sent once.
#[test]
fn the_timer_backs_off() {
    let mut script = Transcript::new(Setup::default().without_sack());
    script.play("send 100\n > P. 1:101 ack 1");
    for millis in [300, 600, 1200, 2400, 4800, 9600, 19_200, 38_400, 76_800, 120_000, 120_000] {
        script.play(&format!("+{millis} > P. 1:101 ack 1"));
    }
    script.play("< . 1 ack 101\n send 100\n > P. 101:201 ack 1\n +120000 > P. 101:201 ack 1");
    assert_eq!(script.stack.counters().retransmission_timeouts, 12);
    assert_eq!(script.stack.counters().retransmissions, 12);
    script.play("< . 1 ack 201\n send 100\n > P. 201:301 ack 1\n +100 < . 1 ack 301\n send 100\n > P. 301:401 ack 1");
    script.play("+300 > P. 301:401 ack 1");
}

/// RFC 6298 §2.1: "until a round-trip time (RTT) measurement has been made [...], the sender SHOULD set RTO <- 1 second"; then
/// what is measured counts.
#[test]
fn without_a_measurement_it_is_a_second() {
    Transcript::new(Setup { rtt: None, ..Setup::default().without_sack() }).play(
        "send 100
         > P. 1:101 ack 1
         +1000 > P. 1:101 ack 1
         +50 < . 1 ack 101
         send 100
         > P. 101:201 ack 1
         +2000 > P. 101:201 ack 1
         < . 1 ack 201
         send 100
         > P. 201:301 ack 1
         +20 < . 1 ack 301
         send 100
         > P. 301:401 ack 1
         +220 > P. 301:401 ack 1",
    );
}

/// RFC 6298 §5.3: "when an ACK is received that acknowledges new data, restart the retransmission timer".
#[test]
fn an_ack_restarts_the_timer() {
    Transcript::new(Setup::default().without_sack()).play(
        "send 2920
         > . 1:1461 ack 1
         > P. 1461:2921 ack 1
         +100 < . 1 ack 1461
         +300 > P. 1461:2921 ack 1",
    );
}

/// RFC 6298 §5.1: "if the timer is not running, start it": a running one goes on.
#[test]
fn new_text_does_not_restart_the_timer() {
    Transcript::new(Setup::default().without_sack()).play(
        "send 10
         > P. 1:11 ack 1
         +200 send 10
         > P. 11:21 ack 1
         +100 > . 1:11 ack 1
         > P. 11:21 ack 1",
    );
}

/// RFC 5681 §3.1: after a timeout, "the loss window, which equals 1 full-sized segment"; then slow start. What is sent again
/// acknowledges what has come since.
#[test]
fn a_timeout_begins_with_one_segment() {
    let mut script = first_flight(Setup::default().without_sack(), 14_600);
    script.play(
        "+295 < P. 1:6 ack 1
         +5 > . 1:1461 ack 6
         +100 < . 6 ack 1461
         > . 1461:2921 ack 6
         > . 2921:4381 ack 6
         +100 < . 6 ack 4381
         > . 4381:5841 ack 6
         > . 5841:7301 ack 6
         > . 7301:8761 ack 6
         > . 8761:10221 ack 6
         +100 < . 6 ack 14601",
    );
    assert_eq!(script.poll_at(), None);
}

/// RFC 8985 §7.2, §7.3: after two round-trip times without an ACK, the last segment is sent again; once. The timer runs from there
/// on.
#[test]
fn the_tail_is_probed() {
    let mut script = first_flight(Setup::default(), 14_600);
    script.play("+202 > P. 13141:14601 ack 1\n +300 > . 1:1461 ack 1\n +600 > . 1:1461 ack 1");
    assert_eq!((script.stack.counters().tail_loss_probes, script.stack.counters().retransmission_timeouts), (1, 2));
}

/// RFC 8985 §7.3: new text, if there is some, even beyond the congestion window.
#[test]
fn the_probe_is_new_text_if_there_is_some() {
    let mut script = first_flight(Setup::default(), 29_200);
    script.play("+202 > . 14601:16061 ack 1\n +100 < . 1 ack 1 sack 14601:16061\n > . 1:1461 ack 1");
}

/// RFC 8985 §7.2: alone, a segment may be the one whose ACK is delayed: 200 ms more; but not later than the timeout.
#[test]
fn a_lone_segment_is_probed_instead_of_the_first_timeout() {
    let mut script = Transcript::new(Setup::default());
    script.play("send 100\n > P. 1:101 ack 1\n +300 > P. 1:101 ack 1");
    assert_eq!((script.stack.counters().tail_loss_probes, script.stack.counters().retransmission_timeouts), (1, 0));
    script.play("+300 > P. 1:101 ack 1\n +600 > P. 1:101 ack 1\n < . 1 ack 101\n +100000");
}

/// RFC 8985 §7.2: each new segment restarts the probe, but the first one is not forgotten over that.
#[test]
fn a_trickle_does_not_put_off_the_probe() {
    Transcript::new(Setup::default()).play(
        "send 10
         > P. 1:11 ack 1
         +150 send 10
         > P. 11:21 ack 1
         +100 send 10
         > P. 21:31 ack 1
         +50 > P. 21:31 ack 1
         +300 > . 1:11 ack 1
         > . 11:21 ack 1
         > P. 21:31 ack 1",
    );
}

/// RFC 8985 §7.4.2: an ACK beyond the probe's end, and nothing told of a second copy: the probe has repaired a loss, and the
/// window is reduced (by CUBIC's 0.7).
#[test]
fn a_loss_that_the_probe_has_repaired_counts() {
    let mut script = Transcript::new(Setup::default());
    script.play("send 1600\n > . 1:1461 ack 1\n > P. 1461:1601 ack 1\n +202 > P. 1461:1601 ack 1\n +50 < . 1 ack 1601");
    script.play(&("send 30000\n".to_owned() + &lines("> .", 1601..16_201, 1460, "ack 1")));
    script.play(&("+50 < . 1 ack 16201\n".to_owned() + &lines("> .", 16_201..26_421, 1460, "ack 1")));
}

/// RFC 8985 §7.4.2: "both the original and the TLP probe arrived": it was received twice (RFC 2883), and nothing was lost.
#[test]
fn a_probe_that_came_twice_costs_nothing() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 1600
         > . 1:1461 ack 1
         > P. 1461:1601 ack 1
         +202 > P. 1461:1601 ack 1
         +50 < . 1 ack 1601 sack 1461:1601",
    );
    script.play(&("send 30000\n".to_owned() + &lines("> .", 1601..16_201, 1460, "ack 1")));
}

/// RFC 9293 §3.10.7.4, fifth: "any segments on the retransmission queue that are thereby entirely acknowledged are removed": of
/// one that is acknowledged in part, the rest is sent again.
#[test]
fn the_rest_of_a_segment_is_sent_again() {
    Transcript::new(Setup::default().without_sack()).play(
        "send 1460
         > P. 1:1461 ack 1
         +100 < . 1 ack 1001
         +300 > P. 1001:1461 ack 1",
    );
}

/// RFC 2018 §8: "the data receiver is permitted to discard data in its queue that has not been acknowledged": after a timeout with
/// the first segment among those that the peer had reported, all are sent again.
#[test]
fn a_peer_that_reneges_gets_all_again() {
    Transcript::new(Setup::default()).play(
        "send 4380
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         > P. 2921:4381 ack 1
         +100 < . 1 ack 1 sack 1461:4381
         +25 > . 1:1461 ack 1
         +100 < . 1 ack 1461
         +300 > . 1461:2921 ack 1
         +100 < . 1 ack 2921
         > P. 2921:4381 ack 1
         +100 < . 1 ack 4381",
    );
}
