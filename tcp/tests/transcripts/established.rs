//! ESTABLISHED: text in and out.

use crate::common::{NETWORKS, Setup};
use crate::play::{Transcript, lines};

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

/// RFC 9293 §3.10.7.3: the SYN-ACK of the peer is acknowledged by the end that has opened; the other end waits.
#[test]
fn the_end_that_has_opened_owes_an_ack() {
    let mut script = Transcript::new(Setup { active: true, ..Setup::default() });
    script.play("> . 1 ack 1");
    Transcript::new(Setup::default()).play("+1000");
}

/// RFC 9293 §3.8.1: the sequence numbers that follow from the handshake, whatever they are.
#[test]
fn numbers_wrap_wherever_they_begin() {
    let numbers = [0, 1, i32::MAX as u32, 1 << 31, u32::MAX - 1460, u32::MAX - 1, u32::MAX];
    for (ours, peers) in numbers.iter().flat_map(|&ours| numbers.map(|peers| (ours, peers))) {
        let mut setup = Setup::default();
        (setup.ours.seq, setup.peers.seq) = (ours, peers);
        Transcript::new(setup).play(
            "send 2920
             > . 1:1461 ack 1
             > P. 1461:2921 ack 1
             < . 1461:2921 ack 1461
             > . 2921 ack 1 sack 1461:2921
             < . 1:1461 ack 2921
             > . 2921 ack 2921
             read 2920
             finish
             > F. 2921 ack 2921
             < F. 2921 ack 2922
             > . 2922 ack 2922
             is TimeWait",
        );
    }
}

/// RFC 9293 §3.10.7.4, first: "segments with higher beginning sequence numbers SHOULD be held for later processing".
#[test]
fn text_out_of_order_is_put_in_order() {
    Transcript::new(Setup::default()).play(
        "< . 1001:2001 ack 1
         > . 1 ack 1 sack 1001:2001
         < . 3001:4001 ack 1
         > . 1 ack 1 sack 3001:4001 1001:2001
         < . 1:1001 ack 1
         > . 1 ack 2001 sack 3001:4001
         read 2000
         < . 2001:3001 ack 1
         > . 1 ack 4001
         read 2000",
    );
}

/// RFC 9293 §3.10.7.4, first: "trimming off any portions that lie outside the window": at the left edge.
#[test]
fn what_is_old_of_a_segment_is_cut_off() {
    Transcript::new(Setup::default()).play(
        "< . 1:101 ack 1
         < . 51:151 ack 1
         > . 1 ack 151 sack 51:101
         read 150
         < . 1:151 ack 1
         > . 1 ack 151 sack 1:151
         read 0
         < . 100:152 ack 1
         > . 1 ack 152 sack 100:151
         read 1",
    );
}

/// The same at the right edge; what was cut off comes again when there is room.
#[test]
fn what_lies_behind_the_window_is_cut_off() {
    let mut script = Transcript::new(Setup::default());
    script.play(&(lines("< .", 1..64_001, 1000, "ack 1") + "> . 1 ack 64001 win 1535"));
    script.play(
        "< . 64001:66001 ack 1
         > . 1 ack 65536 win 0
         read 65535
         > . 1 ack 65536 win 65535
         < . 65536:66001 ack 1
         read 465
         +10 > . 1 ack 66001",
    );
}

/// Pieces that overlap in every way.
#[test]
fn overlapping_pieces_are_joined() {
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1
         > . 1 ack 1 sack 11:21
         < . 16:31 ack 1
         > . 1 ack 1 sack 11:31
         < . 6:13 ack 1
         > . 1 ack 1 sack 6:31
         < . 41:51 ack 1
         > . 1 ack 1 sack 41:51 6:31
         < . 8:45 ack 1
         > . 1 ack 1 sack 6:51
         < . 1:100 ack 1
         > . 1 ack 100
         read 99",
    );
}

/// RFC 9293 §3.10.7.4, fifth: "if the ACK bit is off, drop the segment and return".
#[test]
fn a_segment_without_ack_is_dropped() {
    Transcript::new(Setup::default()).play(
        "< - 1:6
         < F 1
         < P 1:6
         +1000 is Established
         read 0",
    );
}

/// RFC 9293 §3.10.7.4, fifth: an old ACK "can be ignored"; the text of the segment (seventh) is taken all the same.
#[test]
fn text_with_an_older_ack_is_taken() {
    let mut script = Transcript::new(Setup::default());
    script.play(
        "send 8
         > P. 1:9 ack 1
         < . 1 ack 9
         < P. 1:10 ack 5 win 17
         read 9
         send 1000
         > P. 9:1009 ack 10",
    );
    assert_eq!(script.connection.send_queue(), 1000, "neither the ACK nor its window counts");
}

/// RFC 9293 §3.9.1.2: "the last buffer" of what is queued is pushed, and nothing before it.
#[test]
fn the_end_of_what_is_queued_is_pushed() {
    Transcript::new(Setup::default()).play(
        "send 1000
         send 2000
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         > P. 2921:3001 ack 1
         send 1
         > P. 3001:3002 ack 1",
    );
}

/// RFC 9293 §3.8.5: urgent text is text; the pointer of a peer means nothing to us, as to most (RFC 6093).
#[test]
fn urgent_text_is_text() {
    Transcript::new(Setup::default()).play(
        "< PU. 1:6 ack 1
         read 5
         +10 > . 1 ack 6",
    );
}

/// RFC 3168 is not taken part in: marks of the peer change nothing.
#[test]
fn congestion_flags_of_the_peer_change_nothing() {
    Transcript::new(Setup::default()).play(
        "< PEW. 1:6 ack 1
         read 5
         send 5
         > P. 1:6 ack 6",
    );
}
