//! What the tap sends keeps to the window of the server.

use tcp::time::Duration;

use crate::host::Habits;
use crate::lab::{Lab, pass, text};

/// The server has lost a segment, and three later ones tell of it. What is sent again is no longer than what was lost, or than
/// the window.
#[test]
#[ignore = "a fast retransmission of smoltcp is a full segment, and may end behind the window"]
fn a_fast_retransmission_keeps_to_the_window() {
    let habits = Habits {
        buffer: 2000,
        read_after: Some(Duration::from_secs(1)),
        losses: [false, false, true].to_vec(), // The third frame: `lost`.
        ..Habits::default()
    };
    let mut lab = Lab::new(false, false, habits).open();
    let messages = [700, 300, 100, 100, 990].map(|length| pass(&"-".repeat(length)));
    let mut at = 0;
    for message in &messages {
        lab.client_sends(text(at, message));
        at += message.len();
    }
    assert_eq!(lab.server.overshoot(), 0);
    lab.wait(20_000);
    lab.server_has_read(&messages);
}
