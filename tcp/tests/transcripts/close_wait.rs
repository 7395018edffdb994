//! CLOSE-WAIT: the peer has closed, we have not.

use crate::common::{NETWORKS, Setup};
use crate::play::Transcript;

/// RFC 9293 §3.6, case 2: "TCP receives a FIN from the network"; half closed, we can still send.
#[test]
fn the_peer_closes_first() {
    for network in NETWORKS {
        let mut script = Transcript::new(Setup::on(network));
        script.play(
            "< FP. 1:4 ack 1
             is CloseWait
             > . 1 ack 5
             read 3
             send 1000
             > P. 1:1001 ack 5
             +100 < . 5 ack 1001
             send 10
             finish
             > FP. 1001:1011 ack 5
             is LastAck
             +100 < . 5 ack 1012
             is Closed",
        );
        assert!(script.connection.is_closed() && !script.connection.was_reset());
        assert_eq!(script.poll_at(), None);
    }
}

/// RFC 9293 §3.10.7.4, eighth: "advance RCV.NXT over the FIN, and send an acknowledgment for the FIN", at once.
#[test]
fn a_fin_alone_is_acknowledged_at_once() {
    Transcript::new(Setup::default()).play("< F. 1 ack 1\n > . 1 ack 2\n is CloseWait");
}

/// RFC 9293 §3.10.7.4, seventh, CLOSE-WAIT: text behind the FIN "should not occur; ignore it".
#[test]
fn text_behind_a_fin_is_refused() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "< F. 1:4 ack 1
         > . 1 ack 5
         < P. 5:9 ack 1
         > . 1 ack 5
         < P. 4:9 ack 1
         > . 1 ack 5
         read 3
         read 0
         is CloseWait",
    );
    assert_eq!(script.connection.rcv_nxt(), script.setup.peers.seq.wrapping_add(5));
}

/// RFC 9293 §3.10.7.4, eighth, CLOSE-WAIT: a FIN that comes again: "remain in the CLOSE-WAIT state".
#[test]
fn a_fin_that_comes_again_is_acknowledged_again() {
    Transcript::new(Setup::default()).play(
        "< F. 1:4 ack 1
         > . 1 ack 5
         < F. 1:4 ack 1
         > . 1 ack 5 sack 1:4
         < F. 4 ack 1
         > . 1 ack 5
         is CloseWait
         read 3",
    );
}

/// A FIN on text that was received before.
#[test]
fn a_fin_on_text_that_is_there_already_is_taken() {
    Transcript::new(Setup::default()).play(
        "< P. 1:5 ack 1
         < F. 1:5 ack 1
         is CloseWait
         > . 1 ack 6 sack 1:5
         read 4",
    );
}

/// RFC 9293 §3.10.7.4, first: a FIN before its text is held, or comes again; RFC 5681 §4.2: it is answered at once.
#[test]
fn a_fin_before_its_text_waits() {
    Transcript::new(Setup::default()).play(
        "< F. 5 ack 1
         > . 1 ack 1
         is Established
         < P. 1:5 ack 1
         is CloseWait
         > . 1 ack 6
         read 4",
    );
    Transcript::new(Setup::default()).play(
        "< F. 5:9 ack 1
         > . 1 ack 1 sack 5:9
         is Established
         < P. 1:5 ack 1
         > . 1 ack 10
         is CloseWait
         read 8",
    );
}

/// Once the number of the FIN is known, there is nothing behind it, and no other FIN.
#[test]
fn there_is_one_fin_and_nothing_behind_it() {
    Transcript::new(Setup::default()).play(
        "< F. 11 ack 1
         > . 1 ack 1
         < P. 5:15 ack 1
         > . 1 ack 1 sack 5:11
         < F. 20 ack 1
         > . 1 ack 1 sack 5:11
         < F. 1:5 ack 1
         > . 1 ack 12
         is CloseWait
         read 10",
    );
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1
         > . 1 ack 1 sack 11:21
         < F. 15 ack 1
         > . 1 ack 1 sack 11:21
         < . 1:11 ack 1
         > . 1 ack 21
         is Established",
    );
}

/// RFC 9293 §3.10.7.4, first and fifth: behind a FIN that has come too early, the peer goes on to acknowledge; with SND.NXT, which
/// is behind the FIN. (Two ends that do not hear each other then would repeat their text for ever.)
#[test]
fn acks_from_behind_an_early_fin_count() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 10
         > P. 1:11 ack 1
         < F. 6:11 ack 1
         > . 11 ack 1 sack 6:11
         < . 12 ack 11",
    );
    assert!(!script.connection.awaits_ack());
    script.play("< . 1:6 ack 11\n > . 11 ack 12\n is CloseWait");
}

/// A FIN needs no room in the window: it occupies a number, and no memory.
#[test]
fn a_fin_is_taken_at_the_edge_of_the_window_and_not_with_text_behind_it() {
    let mut script = Transcript::new(Setup::default());
    script.play(&(crate::play::lines("< .", 1..65_001, 1000, "ack 1") + "> . 1 ack 65001 win 535"));
    script.play(
        "< F. 65001:65537 ack 1
         > . 1 ack 65536 win 0
         is Established
         < F. 65536 ack 1
         > . 1 ack 65537 win 0
         is CloseWait
         read 65535",
    );
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 10
         > P. 1:11 ack 1
         < F. 65436:65536 ack 1
         > . 11 ack 1 sack 65436:65536
         < . 65537 ack 11",
    );
    assert!(!script.connection.awaits_ack());
}
