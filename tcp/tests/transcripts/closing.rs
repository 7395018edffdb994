//! CLOSING: both have closed at once; our FIN is not acknowledged.

use crate::common::Setup;
use crate::play::Transcript;

/// RFC 9293 §3.6, case 3: "both users close simultaneously" (figure 13).
#[test]
fn both_close_at_once() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "finish
         > F. 1 ack 1
         < F. 1 ack 1
         is Closing
         > . 2 ack 2
         < . 2 ack 2
         is TimeWait",
    );
    assert_eq!(script.poll_at(), None);
}

/// RFC 6298 §5: our FIN is repeated, now with the ACK of the peer's.
#[test]
fn our_fin_is_repeated() {
    Transcript::new(Setup::default()).play(
        "finish
         > F. 1 ack 1
         < F. 1 ack 1
         > . 2 ack 2
         +300 > F. 1 ack 2
         is Closing",
    );
}

/// RFC 9293 §3.10.7.4, fifth, CLOSING: "if the ACK acknowledges our FIN, then enter the TIME-WAIT state; otherwise, ignore".
#[test]
fn an_ack_of_text_before_our_fin_is_not_enough() {
    Transcript::new(Setup::default()).play(
        "send 5
         finish
         > FP. 1:6 ack 1
         < F. 1 ack 1
         > . 7 ack 2
         < . 2 ack 6
         is Closing
         < . 2 ack 7
         is TimeWait",
    );
}

/// RFC 9293 §3.10.7.4, eighth, CLOSING: "remain in the CLOSING state" when the peer's FIN comes again.
#[test]
fn the_peers_fin_comes_again() {
    Transcript::new(Setup::default()).play(
        "finish
         > F. 1 ack 1
         < F. 1 ack 1
         > . 2 ack 2
         < F. 1 ack 1
         > . 2 ack 2
         is Closing",
    );
}
