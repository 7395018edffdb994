//! LAST-ACK: the peer has closed first, then we; our FIN is not acknowledged.

use crate::common::Setup;
use crate::play::Transcript;

const LAST_ACK: &str = "
    < F. 1 ack 1
    > . 1 ack 2
    finish
    > F. 1 ack 2
    is LastAck
";

/// RFC 9293 §3.10.7.4, fifth, LAST-ACK: "if our FIN is now acknowledged, [...] enter the CLOSED state".
#[test]
fn the_ack_of_our_fin_ends_it() {
    let mut script = Transcript::new(Setup::default());
    script.play(LAST_ACK);
    script.play("< . 2 ack 2\n is Closed\n +100000");
    assert!(script.connection.is_closed() && script.connection.remains().is_none());
}

/// RFC 6298 §5.
#[test]
fn our_fin_is_repeated() {
    let mut script = Transcript::new(Setup::default());
    script.play(LAST_ACK);
    script.play("+300 > F. 1 ack 2\n +300 > F. 1 ack 2\n +600 > F. 1 ack 2\n < . 2 ack 2\n is Closed");
}

/// RFC 9293 §3.10.7.4, eighth, LAST-ACK: "remain in the LAST-ACK state".
#[test]
fn the_peers_fin_comes_again() {
    let mut script = Transcript::new(Setup::default());
    script.play(LAST_ACK);
    script.play("< F. 1 ack 1\n > . 2 ack 2\n is LastAck");
}

/// RFC 9293 §3.10.7.1, CLOSED: "an incoming segment containing a RST is discarded": a connection that has closed in order was
/// not reset.
#[test]
fn a_reset_behind_the_end_is_none() {
    let mut script = Transcript::new(Setup::default());
    script.play(LAST_ACK);
    script.play("< . 2 ack 2\n is Closed\n < R 2");
    assert!(script.connection.is_closed() && !script.connection.was_reset());
}
