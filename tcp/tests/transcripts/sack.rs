//! Selective acknowledgements of ours (RFC 2018 §4), and the peer's report of what it has received twice (RFC 2883): of that
//! more in `loss`.

use crate::common::{ACK, Setup, seg};
use crate::play::{Transcript, text};

/// RFC 2018 §4: "the first SACK block MUST specify the contiguous block of data containing the segment which triggered this
/// ACK"; "as many distinct SACK blocks as possible", the most recent ones first.
#[test]
fn the_most_recent_block_stands_first() {
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1
         > . 1 ack 1 sack 11:21
         < . 31:41 ack 1
         > . 1 ack 1 sack 31:41 11:21
         < . 51:61 ack 1
         > . 1 ack 1 sack 51:61 31:41 11:21
         < . 71:81 ack 1
         > . 1 ack 1 sack 71:81 51:61 31:41 11:21
         < . 91:101 ack 1
         > . 1 ack 1 sack 91:101 71:81 51:61 31:41
         < . 11:31 ack 1
         > . 1 ack 1 sack 11:41 91:101 71:81 51:61
         < . 1:11 ack 1
         > . 1 ack 41 sack 91:101 71:81 51:61",
    );
}

/// RFC 2883 §4.1: what was received twice stands first, below the acknowledgement number, and is told once; so a peer whose timer
/// was too short does not take what it has repeated for a loss.
#[test]
fn what_comes_twice_is_told() {
    Transcript::new(Setup::default()).play(
        "< . 1:101 ack 1
         < . 1:101 ack 1
         > . 1 ack 101 sack 1:101
         < . 101 ack 1
         < . 51:151 ack 1
         > . 1 ack 151 sack 51:101
         < . 201:301 ack 1
         > . 1 ack 151 sack 201:301
         < . 1:51 ack 1
         > . 1 ack 151 sack 1:51 201:301
         < . 151:201 ack 1
         > . 1 ack 301",
    );
}

/// RFC 2018 §3: three blocks beside timestamps.
#[test]
fn timestamps_leave_room_for_three_blocks() {
    Transcript::new(Setup::default().timestamps(0, 0)).play(
        "< . 11:21 ack 1 ts 0/0
         > . 1 ack 1 ts 0/0 sack 11:21
         < . 31:41 ack 1 ts 0/0
         > . 1 ack 1 ts 0/0 sack 31:41 11:21
         < . 51:61 ack 1 ts 0/0
         > . 1 ack 1 ts 0/0 sack 51:61 31:41 11:21
         < . 71:81 ack 1 ts 0/0
         > . 1 ack 1 ts 0/0 sack 71:81 51:61 31:41",
    );
}

/// RFC 2018 §2: to a peer that has not said that it understands them, none are sent. All is put in order the same.
#[test]
fn a_peer_without_sack_gets_no_blocks() {
    let mut setup = Setup::default();
    setup.ours.options.sack_permitted = false;
    for setup in [Setup::default().without_sack(), setup] {
        Transcript::new(setup).play(
            "< . 11:21 ack 1
             > . 1 ack 1
             < . 1:11 ack 1
             > . 1 ack 21
             read 20",
        );
    }
}

/// Text with an ACK has no room for blocks: those leave first, in an ACK of their own.
#[test]
fn blocks_leave_before_text() {
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1
         send 10
         > . 1 ack 1 sack 11:21
         > P. 1:11 ack 1",
    );
}

/// Pieces beyond the thirtieth are not held, and said to be missing: the peer sends them again.
#[test]
fn so_many_pieces_are_held() {
    let mut script = Transcript::new(Setup::default());
    pieces(&mut script, (1..=30).map(|at| at * 20));
    script.play(
        "< . 700:710 ack 1
         > . 1 ack 1 sack 600:610 580:590 560:570 540:550
         < . 300:310 ack 1
         > . 1 ack 1 sack 300:310 600:610 580:590 560:570
         < . 310:320 ack 1
         > . 1 ack 1 sack 300:330 600:610 580:590 560:570
         < . 700:710 ack 1
         > . 1 ack 1 sack 700:710 300:330 600:610 580:590
         < . 1:711 ack 1
         > . 1 ack 711
         read 710",
    );
}

/// The same 30 pieces, from behind, joined one by one.
#[test]
fn pieces_from_behind_are_joined() {
    let mut script = Transcript::new(Setup::default());
    pieces(&mut script, (1..=29).rev().map(|at| at * 20));
    // At first, each segment touches the next piece; so all of them are joined before the first one comes.
    script.play("< . 21:581 ack 1\n > . 1 ack 1 sack 20:590\n < . 1:21 ack 1\n > . 1 ack 590\n read 589");
}

/// Pieces of 10 bytes come; what is answered is not looked at.
fn pieces(script: &mut Transcript, begins: impl Iterator<Item = u32>) {
    for begin in begins {
        let segment = seg(ACK, script.setup.peers.seq.wrapping_add(begin), script.connection.snd_nxt());
        script.receive(&segment.with(&text(begin, 10)));
        assert_eq!(script.transmit().len(), 1);
    }
}
