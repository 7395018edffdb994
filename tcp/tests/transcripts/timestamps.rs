//! Timestamps (RFC 7323 §3 to §5).

use tcp::time::Duration;

use crate::common::{IRS, ISS, PSH_ACK, Setup, seg};
use crate::play::Transcript;

/// Our end's host has shown 1000 in its SYN, the peer 5000.
fn stamped() -> Transcript {
    Transcript::new(Setup::default().timestamps(1000, 5000))
}

/// RFC 7323 §3.2: each segment has them; the clock of the host across goes on, in milliseconds, and never goes back.
#[test]
fn the_clock_goes_on() {
    stamped().play(
        "send 5
         > P. 1:6 ack 1 ts 1000/5000
         +20 < P. 1:6 ack 6 ts 5020/1000
         +10 > . 6 ack 6 ts 1030/5020
         +70 send 5
         > P. 6:11 ack 6 ts 1100/5020
         +0.9 send 5
         > P. 11:16 ack 6 ts 1100/5020
         +0.1 finish
         > F. 16 ack 6 ts 1101/5020",
    );
}

/// RFC 7323 §3.2: both have to offer them.
#[test]
fn what_one_side_offers_is_not_used() {
    for ours in [false, true] {
        let mut setup = Setup::default().timestamps(1000, 5000);
        if ours {
            setup.peers.options.timestamps = None;
        } else {
            setup.ours.options.timestamps = None;
        }
        let mut script = Transcript::new(setup);
        script.play(
            "send 2000
             > . 1:1461 ack 1
             > P. 1461:2001 ack 1
             < P. 1:6 ack 2001 ts 4000/1000
             read 5",
        );
        script.now += Duration::from_millis(10);
        assert!(script.transmit()[0].options.is_empty());
    }
}

/// RFC 7323 §5.3, R1: "if the segment's timestamp is older than TS.Recent: send an acknowledgement, drop the segment".
#[test]
fn an_old_timestamp_is_refused() {
    let mut script = stamped();
    script.play(
        "< P. 1:6 ack 1 ts 5100/1000
         +10 > . 1 ack 6 ts 1010/5100
         < P. 6:11 ack 1 ts 5099/1000
         > . 1 ack 6 ts 1010/5100
         < F. 6 ack 1 ts 0/1000
         > . 1 ack 6
         < . 6 ack 1 ts 5099/1000
         > . 1 ack 6
         < P. 6:11 ack 1 ts 5100/1000
         read 10
         is Established",
    );
    assert_eq!(script.stack.counters().old_timestamps, 3);
}

/// RFC 7323 §5.2: "RST segments MUST NOT be subjected to PAWS".
#[test]
fn a_reset_counts_with_any_timestamp() {
    let mut script = stamped();
    script.play("< R 1 ts 1/0\n is Closed");
    assert!(script.connection.was_reset());
}

/// RFC 7323 §5.2: timestamps are compared modulo 2^32.
#[test]
fn both_clocks_wrap() {
    Transcript::new(Setup::default().timestamps(u32::MAX - 4, u32::MAX)).play(
        "< P. 1:6 ack 1 ts 4294967295/4294967291
         +10 > . 1 ack 6 ts 5/4294967295
         < P. 6:11 ack 1 ts 3/4294967291
         +10 > . 1 ack 11 ts 15/3
         < P. 11:16 ack 1 ts 4294967295/4294967291
         > . 1 ack 11 ts 15/3
         read 10",
    );
}

/// RFC 7323 §5.5: "if a connection remains idle so long that [...] timestamps wrap": after 24 days, TS.Recent says nothing.
#[test]
fn after_24_idle_days_the_last_timestamp_is_forgotten() {
    let mut script = stamped();
    script.now += Duration::from_secs(24 * 24 * 3600);
    script.play("< P. 1:6 ack 1 ts 4000/1000\n read 5\n +10 > . 1 ack 6 ts 2073601010/4000");
    let mut script = stamped();
    script.now += Duration::from_secs(24 * 24 * 3600 - 1);
    script.play("< P. 1:6 ack 1 ts 4000/1000\n > . 1 ack 1 ts 2073600000/5000\n read 0");
}

/// RFC 7323 §4.3: "(1) [...] if SEG.TSval >= TS.Recent and SEG.SEQ <= Last.ACK.sent: TS.Recent is set". So the echo of a delayed
/// ACK is that of the first segment, and segments out of order leave it.
#[test]
fn what_the_last_ack_has_asked_for_is_echoed() {
    stamped().play(
        "< . 1:1461 ack 1 ts 5010/1000
         +2 < . 1461:2921 ack 1 ts 5012/1000
         > . 1 ack 2921 ts 1002/5010
         < . 4381:5841 ack 1 ts 5020/1000
         > . 1 ack 2921 ts 1002/5010 sack 4381:5841
         < . 2921:4381 ack 1 ts 5030/1000
         > . 1 ack 5841 ts 1002/5030
         read 5840",
    );
}

/// RFC 7323 §3.2 lets such segments be dropped; they are taken, as Linux takes them: middleboxes strip options.
#[test]
fn a_segment_without_the_option_is_taken() {
    stamped().play("< P. 1:6 ack 1\n read 5\n +10 > . 1 ack 6 ts 1010/5000");
}

/// RFC 7323 §3.2: the option where nobody expects it, and options that are none.
#[test]
fn odd_options_do_no_harm() {
    for options in [
        &[8, 10, 0, 0, 0x13, 0x90, 0, 0, 3, 0xe8, 1, 1][..],
        &[1, 8, 10, 0, 0, 0x13, 0x90, 0, 0, 3, 0xe8, 1],
        &[254, 4, 1, 2, 8, 10, 0, 0, 0x13, 0x90, 0, 0, 3, 0xe8, 0, 0],
    ] {
        let mut script = stamped();
        script.receive(&seg(PSH_ACK, IRS + 1, ISS.wrapping_add(1)).with(&crate::play::text(1, 5)).options(options));
        script.play("+10 > . 1 ack 6 ts 1010/5008\n read 5");
    }
    for options in [&[8, 0, 1, 1][..], &[8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[5, 3, 0, 0], &[0xff; 40]] {
        let mut script = stamped();
        script.receive(&seg(PSH_ACK, IRS + 1, ISS.wrapping_add(1)).with(&crate::play::text(1, 5)).options(options));
        script.play("+10 > . 1 ack 6 ts 1010/5000\n read 5");
    }
}
