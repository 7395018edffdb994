//! Acknowledgements: which of the peer count, and when ours leave (RFC 9293 §3.10.7.4, fifth; §3.8.6.3; RFC 5681 §4.2; RFC 5961
//! §5).

use crate::common::Setup;
use crate::play::{Transcript, in_every_state, lines};

/// RFC 9293 §3.8.6.3: "an ACK SHOULD be generated for at least every second full-sized segment"; here within 10 ms.
#[test]
fn every_second_full_segment_is_acknowledged() {
    Transcript::new(Setup::default()).play(
        "< . 1:1461 ack 1
         +10 > . 1 ack 1461
         < . 1461:2921 ack 1
         < . 2921:4381 ack 1
         > . 1 ack 4381
         < . 4381:5841 ack 1
         +5 < . 5841:7301 ack 1
         > . 1 ack 7301
         +100 < . 7301:8761 ack 1
         +10 > . 1 ack 8761",
    );
}

/// Short segments are acknowledged after 10 ms, together.
#[test]
fn short_segments_are_acknowledged_together() {
    let mut script = Transcript::new(Setup::default());
    script.play(&lines("+1 < P.", 1..101, 10, "ack 1"));
    script.play("+1 > . 1 ack 101\n +1000");
}

/// RFC 9293 §3.8.6.3: an ACK rides on text that leaves in time.
#[test]
fn an_ack_rides_on_text() {
    Transcript::new(Setup::default()).play(
        "< P. 1:101 ack 1
         +5 send 50
         > P. 1:51 ack 101
         +100 < . 101 ack 51
         +1000",
    );
}

/// RFC 5681 §4.2: "a TCP receiver SHOULD send an immediate duplicate ACK when an out-of-order segment arrives", one for each;
/// and an immediate ACK "when the incoming segment fills in all or part of a gap".
#[test]
fn what_is_out_of_order_is_answered_at_once() {
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1
         > . 1 ack 1 sack 11:21
         < . 21:31 ack 1
         < . 31:41 ack 1
         > . 1 ack 1 sack 11:41
         > . 1 ack 1 sack 11:41
         < . 1:6 ack 1
         > . 1 ack 6 sack 11:41
         < . 6:11 ack 1
         > . 1 ack 41
         < . 41:51 ack 1
         +10 > . 1 ack 51",
    );
}

/// Of a batch, the fourth duplicate tells nothing new: three make the peer send again (RFC 5681 §3.2).
#[test]
fn duplicates_of_one_batch_are_limited() {
    let mut script = Transcript::new(Setup::default());
    script.play(&(lines("< .", 11..1011, 10, "ack 1") + &"> . 1 ack 1 sack 11:1011\n".repeat(4)));
}

/// RFC 9293 §3.10.7.4, fifth: "if the ACK acks something not yet sent (SEG.ACK > SND.NXT), then send an ACK, drop the segment".
#[test]
fn an_ack_of_what_was_never_sent_is_challenged_in_every_state() {
    for (state, mut script, ours, theirs) in in_every_state(&Setup::default()) {
        let (beyond, seen) = (ours + 1, script.connection.rcv_nxt());
        script.play(&format!(
            "< . {theirs} ack {beyond}
             > . {ours} ack {theirs}
             < P. {theirs}:{} ack {beyond}
             > . {ours} ack {theirs}
             is {state:?}",
            theirs + 5,
        ));
        assert_eq!(script.connection.rcv_nxt(), seen, "nothing of it was taken");
    }
}

/// What waits for the congestion window was not sent either.
#[test]
fn an_ack_of_what_waits_to_be_sent_is_challenged() {
    let mut script = Transcript::new(Setup::default());
    script.play(&format!("send 20000\n {}", lines("> .", 1..14_601, 1460, "ack 1")));
    script.play("< . 1 ack 14602\n > . 14601 ack 1\n < . 1 ack 20001\n > . 14601 ack 1");
    assert_eq!(script.connection.send_queue(), 20_000);
}

/// RFC 5961 §5.2: "((SND.UNA - MAX.SND.WND) <= SEG.ACK <= SND.NXT). All incoming segments whose ACK value doesn't satisfy the
/// above condition MUST be discarded and an ACK sent back".
#[test]
fn an_ack_older_than_the_largest_window_is_challenged() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "< P. 1:11 ack -65534
         +10 > . 1 ack 11
         read 10
         < P. 11:16 ack -65535
         > . 1 ack 11
         < P. 11:16 ack -2000000000
         > . 1 ack 11
         read 0",
    );
}

/// RFC 9293 §3.10.7.4, first: an old segment is answered, an ACK that is outside of the window too; not without limit.
#[test]
fn what_is_not_acceptable_is_answered() {
    for (_, mut script, ours, theirs) in in_every_state(&Setup::default().without_sack()) {
        for outside in ["-100", "-100:-90", "-10:0", "-5:1", "100000", "100000:100010"] {
            script.play(&format!("< . {outside} ack 1\n > . {ours} ack {theirs}"));
        }
    }
}
