//! ESTABLISHED: text in and out.

use crate::common::{NETWORKS, Setup};
use crate::play::Transcript;

/// RFC 9293 §3.10.7.4, seventh: "deliver segment text to user RECEIVE buffers"; §3.10.2, SEND.
#[test]
fn text_both_ways() {
    for network in NETWORKS {
        let mut script = Transcript::new(Setup::on(network));
        script.play(
            "is Established
             < P. 1:6 ack 1
             read 5
             send 7
             > P. 1:8 ack 6
             +100 < . 6 ack 8
             is Established",
        );
        assert_eq!((script.connection.send_queue(), script.connection.receive_queue()), (0, 0));
        assert!(!script.connection.awaits_ack());
        assert_eq!(script.poll_at(), None);
    }
}
