//! What the tap sends keeps to the window of the server. (The server checks that of each segment that it is sent.)

use tcp::time::Duration;

use crate::host::Habits;
use crate::lab::{Lab, pass, text};

const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// The server has lost a segment, and later ones tell of it. What is sent again at once is no longer than what was lost, or
/// than the window.
#[test]
fn a_fast_retransmission_keeps_to_the_window() {
    for (v6, modern) in KINDS {
        let habits = Habits {
            buffer: 2000,
            read_after: Some(Duration::from_secs(1)),
            losses: [false, false, true].to_vec(), // The ACK of the handshake, 700 bytes, and the 300 behind them.
            modern,
            ..Habits::default()
        };
        let mut lab = Lab::new(v6, modern, habits).open();
        let messages = [700, 300, 100, 100, 600].map(|length| pass(&"-".repeat(length - 5)));
        let mut at = 0;
        for message in &messages {
            lab.client_sends(text(at, message));
            at += message.len();
        }
        assert_eq!(lab.server.received(), 1800, "the loss is repaired by a fast retransmission");
        lab.wait(20_000);
        lab.server_has_read(&messages);
    }
}

/// The server does not read for a while: its window closes in the middle of a message. What is lost at the edge comes again,
/// and the closed window is asked about, with nothing that it has no room for.
#[test]
fn a_closed_window_is_kept_to() {
    for (v6, modern) in KINDS {
        for losses in [vec![], [vec![false; 3], vec![true; 3]].concat()] {
            let habits =
                Habits { buffer: 2000, read_after: Some(Duration::from_secs(5)), losses, modern, ..Habits::default() };
            let mut lab = Lab::new(v6, modern, habits).open();
            let messages = vec![pass(&"-".repeat(895)); 10];
            lab.client_finishes(&messages.concat());
            lab.wait(120_000);
            lab.server_has_read(&messages);
            lab.is_open();
        }
    }
}
