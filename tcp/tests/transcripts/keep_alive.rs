//! Whether the other end is still there (RFC 9293 §3.8.4): only the caller knows, who asks the host across.

use crate::common::{NETWORKS, Setup};
use crate::play::{Transcript, in_every_state};

/// "An implementation SHOULD send a keep-alive segment with no data" and SEG.SEQ = SND.NXT-1; "however, [...] with one garbage
/// octet" is possible.
#[test]
fn a_probe_of_the_peer_is_answered_when_the_caller_says_so() {
    let mut script = Transcript::new(Setup::default());
    for probe in ["< . 0 ack 1", "< . 0:1 ack 1"] {
        assert!(!script.connection.take_probe());
        script.play(probe);
        script.play("+1000");
        assert!(script.connection.take_probe());
        assert!(!script.connection.take_probe());
        script.play("acknowledge\n > . 1 ack 1\n +1000");
    }
}

/// In no state does it count as anything else; and what is not exactly that is none.
#[test]
fn what_a_probe_is() {
    for (state, mut script, _, theirs) in in_every_state(&Setup::default()) {
        script.play(&format!("< . {} ack 1\n is {state:?}", theirs - 1));
        assert!(script.connection.take_probe(), "{state:?}");
        script.play(&format!("< . {theirs} ack 1\n < R {}\n < - {}\n is {state:?}", theirs - 1, theirs - 1));
        assert!(!script.connection.take_probe(), "{state:?}");
    }
}

/// A probe of ours has a number that the peer has acknowledged, so that it has to answer.
#[test]
fn a_probe_of_ours() {
    for network in NETWORKS {
        Transcript::new(Setup::on(network)).play(
            "probe
             > . 0 ack 1
             +1000 < . 1 ack 1
             send 10
             > P. 1:11 ack 1
             +100 < . 1 ack 11
             probe
             > . 10 ack 1
             +10000",
        );
    }
}

/// The peer drops such a segment, ACK and all: what is owed to it is told in another one.
#[test]
fn a_probe_of_ours_does_not_acknowledge() {
    Transcript::new(Setup::default()).play(
        "< P. 1:6 ack 1
         probe
         > . 0 ack 6
         +10 > . 1 ack 6
         < . 6 ack 1 win 0
         send 10
         +290 < P. 6:11 ack 1 win 0
         +10 > . 0 ack 11
         > . 1 ack 11",
    );
}

/// It is not forgotten for want of a frame.
#[test]
fn a_probe_of_ours_waits_for_a_frame() {
    Transcript::new(Setup::default()).play(
        "frames 0
         probe
         +100 frames 1
         > . 0 ack 1
         frames 9
         +1000",
    );
}
