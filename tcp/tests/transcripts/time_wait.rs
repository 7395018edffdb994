//! TIME-WAIT: both have closed, we first; and what is kept of it when the connection is gone.

use crate::common::Setup;
use crate::play::Transcript;

const TIME_WAIT: &str = "
    finish
    > F. 1 ack 1
    +100 < . 1 ack 2
    < F. 1:4 ack 2
    > . 2 ack 5
    is TimeWait
";

fn in_time_wait(setup: Setup) -> Transcript {
    let mut script = Transcript::new(setup);
    script.play(TIME_WAIT);
    script
}

/// RFC 9293 §3.10.7.4, eighth, TIME-WAIT: "the only thing that can arrive in this state is a retransmission of the remote FIN.
/// Acknowledge it".
#[test]
fn the_fin_is_acknowledged_again() {
    in_time_wait(Setup::default()).play(
        "< F. 1:4 ack 2
         > . 2 ack 5 sack 1:4
         < F. 4 ack 2
         > . 2 ack 5
         < . 5 ack 2
         +100000 is TimeWait
         read 3",
    );
}

/// RFC 1337 §3(a): resets are ignored.
#[test]
fn a_reset_does_not_assassinate() {
    let mut script = in_time_wait(Setup::default());
    script.play("< R 5\n < R. 5 ack 2\n < R 6\n is TimeWait");
    assert!(!script.connection.was_reset());
}

/// An abort has nothing to end.
#[test]
fn an_abort_changes_nothing() {
    in_time_wait(Setup::default()).play("abort\n is TimeWait\n +1000");
}

/// The same when only the remains are left.
#[test]
fn remains_answer_like_the_connection() {
    let mut script = in_time_wait(Setup::default());
    script.play(
        "bury
         < F. 4 ack 2
         > . 2 ack 5 win 65531
         < F. 1:4 ack 2
         > . 2 ack 5
         < . 5 ack 2
         < R 5
         < R. 5 ack 2
         < S 7000
         > . 2 ack 5
         +60000 < F. 4 ack 2
         > . 2 ack 5
         frames 0
         < F. 4 ack 2",
    );
}

/// RFC 7323 §3.2: the timestamps go on.
#[test]
fn remains_go_on_with_the_clock() {
    let mut script = Transcript::new(Setup::default().timestamps(1000, 5000));
    script.play(
        "finish
         > F. 1 ack 1 ts 1000/5000
         +100 < F. 1 ack 2 ts 5100/1000
         > . 2 ack 2 ts 1100/5100
         bury
         +900 < F. 1 ack 2 ts 5200/1000
         > . 2 ack 2 ts 2000/5100",
    );
}
