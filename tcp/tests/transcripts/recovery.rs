//! Losses that ACKs tell of: RACK (RFC 8985 §6), NewReno (RFC 6582) for a peer without SACK, and what turns out not to have been
//! lost (RFC 2883, RFC 3522, RFC 3708).

use tcp::time::Duration;

use crate::common::Setup;
use crate::play::{Transcript, lines};

/// The first ten segments of some text are on their way, and 100 ms old.
fn in_flight(setup: Setup, text: u32) -> Transcript {
    let mut script = Transcript::new(setup);
    let last = if text == 14_600 { "> P. 13141:14601 ack 1\n +100" } else { "> . 13141:14601 ack 1\n +100" };
    script.play(&(format!("send {text}\n") + &lines("> .", 1..13_141, 1460, "ack 1") + last));
    script
}

/// RFC 8985 §6.2, step 4: with three segments reported behind a hole, and no reordering seen, it is a loss at once.
#[test]
fn three_reported_segments_make_a_loss() {
    let mut script = in_flight(Setup::default(), 14_600);
    script.play(
        "< . 1 ack 1 sack 1461:2921
         < . 1 ack 1 sack 1461:4381
         < . 1 ack 1 sack 1461:5841
         > . 1:1461 ack 1
         +100 < . 1 ack 14601
         +100000",
    );
    assert_eq!(script.stack.counters().retransmissions, 1);
    assert_eq!(script.stack.counters().retransmission_timeouts, 0);
}

/// RFC 8985 §6.2, step 4 and 5: with fewer, after a quarter of the round-trip time, which reordering is given.
#[test]
fn a_reported_segment_makes_a_loss_after_the_reordering_window() {
    in_flight(Setup::default(), 14_600).play(
        "< . 1 ack 1 sack 1461:2921
         +25 > . 1:1461 ack 1
         +75 < . 1 ack 14601",
    );
}

/// RFC 8985 §3.2: what arrives within the reordering window was not lost; and when reordering was seen, three segments are no sign.
#[test]
fn reordering_is_tolerated() {
    let mut script = in_flight(Setup::default(), 14_600);
    script.play(
        "< . 1 ack 1 sack 1461:2921
         +20 < . 1 ack 2921
         < . 1 ack 2921 sack 4381:5841
         < . 1 ack 2921 sack 4381:7301
         < . 1 ack 2921 sack 4381:8761
         < . 1 ack 2921 sack 4381:10221
         +10 < . 1 ack 10221
         < . 1 ack 14601",
    );
    assert_eq!(script.stack.counters().retransmissions, 0);
}

/// RFC 3042: a segment that has arrived lets a new one leave, before anything is known to be lost.
#[test]
fn what_has_arrived_makes_room() {
    in_flight(Setup::default(), 20_440).play(
        "< . 1 ack 1 sack 1461:2921
         > . 14601:16061 ack 1
         < . 1 ack 1 sack 1461:4381
         > . 16061:17521 ack 1",
    );
}

/// RFC 8985 §6.2: what was sent again and was lost again is found out too, by what was sent after it; no timer is waited for.
#[test]
fn a_repair_that_is_lost_is_repaired() {
    let mut script = in_flight(Setup::default(), 20_440);
    script.play(
        "< . 1 ack 1 sack 1461:2921
         > . 14601:16061 ack 1
         < . 1 ack 1 sack 1461:4381
         > . 16061:17521 ack 1
         < . 1 ack 1 sack 1461:5841
         > . 1:1461 ack 1
         < . 1 ack 1 sack 1461:14601
         > . 17521:18981 ack 1
         > P. 18981:20441 ack 1
         +100 < . 1 ack 1 sack 1461:16061
         > . 1:1461 ack 1
         +100 < . 1 ack 20441
         +100000",
    );
    assert_eq!(script.stack.counters().retransmission_timeouts, 0);
}

/// The same with timestamps, and with nothing new behind it: what has arrived behind a hole is not what the ACK echoes.
#[test]
fn a_lost_repair_is_found_by_other_repairs() {
    let mut script = Transcript::new(Setup::default().timestamps(1000, 5000));
    script
        .play(&("send 14480\n".to_owned() + &lines("> .", 1..13_033, 1448, "ack 1") + "> P. 13033:14481 ack 1\n +100"));
    script.play(
        "< . 1 ack 1 ts 5100/1000 sack 1449:5793
         > . 1:1449 ack 1 ts 1100/5100
         +5 < . 1 ack 1 ts 5105/1000 sack 7241:14481 1449:5793
         > . 5793:7241 ack 1 ts 1105/5105
         +100 < . 1 ack 1 ts 5205/1000 sack 1449:14481
         > . 1:1449 ack 1 ts 1205/5205
         +100 < . 1 ack 14481 ts 5305/1205",
    );
    assert_eq!(script.stack.counters().retransmission_timeouts, 0);
}

/// Several holes are repaired in one round trip.
#[test]
fn holes_are_repaired_together() {
    in_flight(Setup::default(), 14_600).play(
        "< . 1 ack 1 sack 2921:4381
         < . 1 ack 1 sack 5841:7301 2921:4381
         < . 1 ack 1 sack 5841:14601 2921:4381
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         > . 4381:5841 ack 1
         +100 < . 1 ack 14601",
    );
}

/// RFC 2018 §8, RFC 6675 §3: a block that cannot be one is nothing.
#[test]
fn impossible_blocks_are_ignored() {
    let mut script = in_flight(Setup::default(), 14_600);
    script.play(
        "< . 1 ack 1 sack 1461:14602
         < . 1 ack 1 sack 5841:1461
         < . 1 ack 1 sack 5841:5841
         < . 1 ack 1 sack -1460:2921
         < . 1 ack 1 sack 1000000:2000000
         < . 1 ack 1 sack 1500:2900
         +50 < . 1 ack 14601",
    );
    assert_eq!(script.stack.counters().retransmissions, 0);
}

/// A peer that has not offered SACK is not believed to send it.
#[test]
fn blocks_of_a_peer_without_sack_are_ignored() {
    in_flight(Setup::default().without_sack(), 14_600).play(
        "< . 1 ack 1 sack 1461:14601
         < . 1 ack 1 sack 1461:14601
         +100 < . 1 ack 14601",
    );
}

/// RFC 5681 §3.2: "the arrival of 3 duplicate ACKs" makes a loss; RFC 6582 §3.2: each partial ACK tells of the next one.
#[test]
fn without_sack_three_duplicates_make_a_loss() {
    let mut script = in_flight(Setup::default().without_sack(), 14_600);
    script.play(
        "< . 1 ack 1
         < . 1 ack 1
         < . 1 ack 1
         > . 1:1461 ack 1
         < . 1 ack 1
         < . 1 ack 1
         +100 < . 1 ack 4381
         > . 4381:5841 ack 1
         +100 < . 1 ack 7301
         > . 7301:8761 ack 1
         +100 < . 1 ack 14601
         +100000",
    );
    assert_eq!(script.stack.counters().retransmissions, 3);
    assert_eq!(script.stack.counters().retransmission_timeouts, 0);
}

/// RFC 5681 §2: a duplicate ACK has no data, and the window of the last one.
#[test]
fn what_is_no_duplicate_ack() {
    in_flight(Setup::default().without_sack(), 14_600).play(
        "< . 1 ack 1 win 65534
         < . 1 ack 1 win 65535
         < . 1:11 ack 1
         < . 11:21 ack 1
         < . 21:31 ack 1
         < . 31 ack 1
         < . 31 ack 1
         +10 > . 14601 ack 31
         < . 31 ack 14601",
    );
}

/// RFC 3522: an ACK whose echo is older than what was sent again answers the original: the timeout was too early. All is as before,
/// and nothing else is sent again.
#[test]
fn timestamps_undo_a_timeout() {
    let mut script = Transcript::new(Setup::default().without_sack().timestamps(1000, 5000));
    let flight = |from: u32| lines("> .", from..from + 13_032, 1448, "ack 1");
    script.play(
        &("send 14480\n".to_owned() + &flight(1) + "> P. 13033:14481 ack 1\n +300 > . 1:1449 ack 1 ts 1300/5000"),
    );
    script.play("+50 < . 1 ack 1449 ts 5350/1000\n < . 1 ack 14481 ts 5351/1000");
    assert_eq!(script.stack.counters().undone_recoveries, 1);
    script.play(&("send 14480\n".to_owned() + &flight(14_481) + "> P. 27513:28961 ack 1"));
}

/// The same ACK with the echo of what was sent again: it was needed.
#[test]
fn timestamps_confirm_a_timeout() {
    let mut script = Transcript::new(Setup::default().without_sack().timestamps(1000, 5000));
    script.play(
        "send 2896
         > . 1:1449 ack 1
         > P. 1449:2897 ack 1
         +300 > . 1:1449 ack 1
         +50 < . 1 ack 1449 ts 5350/1300
         > P. 1449:2897 ack 1
         +100 < . 1 ack 2897 ts 5450/1350",
    );
    assert_eq!(script.stack.counters().undone_recoveries, 0);
}

/// RFC 3708: all that was sent again was received twice (RFC 2883 §4): nothing had been lost.
#[test]
fn reports_of_duplicates_undo_a_recovery() {
    let mut script = in_flight(Setup::default(), 14_600);
    script.play(
        "< . 1 ack 1 sack 1461:5841
         > . 1:1461 ack 1
         +50 < . 1 ack 5841
         +50 < . 1 ack 5841 sack 1:1461",
    );
    assert_eq!(script.stack.counters().undone_recoveries, 1);
    // The peer is known to reorder: what would have been a loss at once is given more time.
    script.play("< . 1 ack 5841 sack 7301:14601\n +40 < . 1 ack 14601");
    assert_eq!(script.stack.counters().retransmissions, 1);
}

/// RFC 2883 §4.2: the same within a hole: a block within the second one.
#[test]
fn a_duplicate_behind_a_hole_is_understood() {
    let mut script = in_flight(Setup::default(), 14_600);
    script.play(
        "< . 1 ack 1 sack 2921:4381
         < . 1 ack 1 sack 2921:8761
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         +20 < . 1 ack 1461 sack 1461:2921 1461:14601
         < . 1 ack 14601",
    );
    assert_eq!(script.stack.counters().undone_recoveries, 0, "one of two was reported");
}

/// RFC 6937: as the peer reports what has arrived, text leaves in proportion (0.7 of it); then goes on with that window.
#[test]
fn a_recovery_reduces_in_proportion() {
    let mut script = in_flight(Setup::default(), 90_000);
    let mut sent = 0;
    for at in 1..10 {
        let edge = 1461 + at * 1460;
        sent += sent_after(&mut script, &format!(". 1 ack 1 sack 1461:{edge}"));
    }
    assert!((7..=9).contains(&sent), "{sent}");
    script.now += Duration::from_millis(100);
    let after = sent_after(&mut script, ". 1 ack 14601");
    assert!(sent - 3 + after <= 8, "{sent} + {after}");
}

/// Segments that leave when the peer has sent one.
fn sent_after(script: &mut Transcript, event: &str) -> usize {
    script.peer(event);
    script.transmit().len()
}

/// RFC 5681 §3.1, RFC 3042 §2: what was reordered counts for slow start too, when it is acknowledged.
#[test]
fn what_was_reordered_opens_the_window_when_it_is_acknowledged() {
    let mut script = in_flight(Setup::default(), 60_000);
    script.play(
        "< . 1 ack 1 sack 1461:2921
         > . 14601:16061 ack 1
         < . 1 ack 2921
         > . 16061:17521 ack 1
         > . 17521:18981 ack 1
         > . 18981:20441 ack 1",
    );
}
