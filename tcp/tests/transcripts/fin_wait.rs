//! FIN-WAIT-1 and FIN-WAIT-2: we have closed, the peer has not.

use crate::common::{NETWORKS, Setup};
use crate::play::Transcript;

/// RFC 9293 §3.6, case 1: "the local user initiates the close".
#[test]
fn we_close_first() {
    for network in NETWORKS {
        let mut script = Transcript::new(Setup::on(network));
        script.play(
            "send 5
             finish
             is Established
             > FP. 1:6 ack 1
             is FinWait1
             +100 < . 1 ack 7
             is FinWait2
             < P. 1:11 ack 7
             +10 > . 7 ack 11
             < F. 11 ack 7
             is TimeWait
             > . 7 ack 12
             read 10",
        );
        assert!(script.connection.fin_received() && script.connection.is_time_wait());
        assert_eq!(script.poll_at(), None);
    }
}

/// RFC 9293 §3.10.4, CLOSE: "no more SENDs"; what was queued before leaves before the FIN.
#[test]
fn what_was_queued_leaves_before_the_fin() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 2000
         finish
         > . 1:1461 ack 1
         > FP. 1461:2001 ack 1
         is FinWait1
         < . 1 ack 1461
         is FinWait1
         < . 1 ack 2001
         is FinWait1
         < . 1 ack 2002
         is FinWait2",
    );
    assert_eq!((script.connection.send(b"too late"), script.connection.send_room()), (0, 0));
}

/// RFC 9293 §3.10.7.4, fifth, FIN-WAIT-1: an ACK that does not cover the FIN leaves the state; text of the peer is taken
/// (seventh).
#[test]
fn text_is_taken_in_fin_wait_1() {
    Transcript::new(Setup::default()).play(
        "finish
         > F. 1 ack 1
         < P. 1:101 ack 1
         is FinWait1
         read 100
         +10 > . 2 ack 101
         < . 101 ack 2
         is FinWait2",
    );
}

/// RFC 9293 §3.10.7.4, eighth, FIN-WAIT-1: a FIN that acknowledges ours leads to TIME-WAIT directly.
#[test]
fn a_fin_that_acknowledges_ours_ends_the_connection() {
    Transcript::new(Setup::default()).play(
        "finish
         > F. 1 ack 1
         < F. 1 ack 2
         is TimeWait
         > . 2 ack 2",
    );
}

/// RFC 6298 §5: a FIN is repeated like text.
#[test]
fn a_fin_that_was_lost_is_sent_again() {
    Transcript::new(Setup::default()).play(
        "finish
         > F. 1 ack 1
         +300 > F. 1 ack 1
         +300 > F. 1 ack 1
         +600 > F. 1 ack 1
         +1200 > F. 1 ack 1
         < . 1 ack 2
         is FinWait2
         +100000",
    );
}

/// RFC 9293 §3.10.7.4, fifth: a FIN behind a window that has no room for it waits, and does not get lost.
#[test]
fn a_fin_waits_for_the_window() {
    Transcript::new(Setup::default()).play(
        "< . 1 ack 1 win 5
         send 5
         finish
         > P. 1:6 ack 1
         is Established
         +100 < . 1 ack 6 win 0
         +300 > . 5 ack 1
         < . 1 ack 6 win 1
         > F. 6 ack 1
         is FinWait1
         +100 < . 1 ack 7 win 0
         is FinWait2
         +100000",
    );
}

/// The FIN that has found a closed window is acknowledged in part, and comes again.
#[test]
fn a_fin_that_was_not_taken_with_its_text_is_sent_again() {
    Transcript::new(Setup::default()).play(
        "send 3
         finish
         > FP. 1:4 ack 1
         +100 < . 1 ack 4 win 0
         is FinWait1
         +300 > F. 4 ack 1
         < . 1 ack 5 win 0
         is FinWait2",
    );
}

/// Nothing is left to be sent: a closed window is nothing to ask about.
#[test]
fn a_closed_window_behind_our_fin_is_not_probed() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 3
         finish
         > FP. 1:4 ack 1
         < . 1 ack 5 win 0
         +100000 is FinWait2",
    );
    assert_eq!(script.poll_at(), None);
}
