//! Kevin Bock, George Hughey, Xiao Qiang, Dave Levin: "Geneva: Evolving Censorship Evasion Strategies" (CCS 2019).
//!
//! A genetic algorithm found these strategies against national firewalls. They drop, duplicate, tamper and fragment the
//! client's segments.

use crate::host::State;
use crate::lab::{Lab, Sends, flags, forbidden, pass, text};
use crate::wire::{ACK, Damage, FIN, PSH, RST, SYN, URG};

/// The stream of all these tests: the second message is what must not arrive.
fn stream() -> Vec<u8> {
    [pass("one"), forbidden("two"), pass("six")].concat()
}

/// The client sends its stream after the attack, and the server reads what is allowed.
#[track_caller]
fn goes_on(lab: &mut Lab) {
    lab.client_finishes(&stream());
    lab.server_has_read(&[pass("one"), pass("six")]);
    lab.were_dropped(1);
    lab.is_open();
}

/// TCB teardown: before the forbidden message, a duplicate of the segment is sent as a reset (or FIN, or with all flags) with
/// a wrong checksum.
#[test]
fn teardown_with_a_bad_checksum() {
    for teardown in [RST, RST | ACK, FIN, FIN | ACK, RST | FIN | ACK, FIN | RST | PSH | ACK | URG] {
        for mut lab in Lab::opened() {
            lab.client_sends(flags(teardown, 0).bad_checksum());
            lab.client_sends(flags(teardown, 0).with(&stream()).damaged(Damage::IpChecksum));
            goes_on(&mut lab);
        }
    }
}

/// TCB teardown: the same with a hop limit that ends before the server. socktap cannot know that, takes the reset, and takes
/// it for both sides: the forbidden message finds no connection.
#[test]
fn teardown_with_a_low_hop_limit() {
    for teardown in [RST, RST | ACK] {
        for mut lab in Lab::opened() {
            lab.client_sends(flags(teardown, 0).hop_limit(1));
            lab.client_sends(text(0, &stream()));
            lab.is_reset();
            lab.server_has_read(&[]);
        }
    }
}

/// TCB teardown: a FIN with a low hop limit ends the stream on both sides, too.
#[test]
fn fin_with_a_low_hop_limit() {
    for mut lab in Lab::opened() {
        lab.client_sends(flags(FIN | ACK, 0).hop_limit(1));
        lab.client_sends(text(0, &stream()));
        lab.client_sends(text(1, &stream()));
        lab.wait(5000);
        lab.server_has_read(&[]);
        assert!(lab.server.has_read_the_end());
    }
}

/// TCB desync: a SYN with text in the open connection.
#[test]
fn desync_with_a_syn_that_carries_text() {
    for syn in [SYN, SYN | ACK] {
        for at in [-1, 0, 7, 70_000] {
            for mut lab in Lab::opened() {
                lab.client_sends(flags(syn, at).with(&pass("BAD")));
                lab.client_sends(flags(syn, at).with(&pass("BAD")).bad_checksum());
                goes_on(&mut lab);
            }
        }
    }
}

/// TCB desync: a SYN with text opens the connection, and the text is sent again otherwise.
#[test]
fn desync_with_text_on_the_first_syn() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN, -1).with(&[pass("one"), pass("BAD")].concat()));
        lab.client.finds_syn_ack();
        lab.client_sends(flags(ACK, 0));
        goes_on(&mut lab);
    }
}

/// TCB desync: text with an ACK number that is corrupted, with a wrong checksum, or without any flag, in the place of the
/// next segment.
#[test]
fn desync_with_text_that_the_server_rejects() {
    let tampered: [fn(Sends) -> Sends; 6] = [
        |bad| bad.bad_checksum(),
        |bad| bad.acking(0x1234_5678),
        |bad| bad.acking(-0x1234_5678),
        |bad| Sends { flags: 0, ..bad },
        |bad| Sends { flags: PSH | URG, ..bad },
        |bad| bad.damaged(Damage::ShortHeader),
    ];
    for tamper in tampered {
        for mut lab in Lab::opened() {
            lab.client_sends(tamper(text(0, &pass("BAD"))));
            goes_on(&mut lab);
        }
    }
}

/// Segmentation: split at every byte, both parts in either order.
#[test]
fn segmentation_at_every_byte() {
    let stream = stream();
    for split in 1..stream.len() {
        for backwards in [false, true] {
            for mut lab in Lab::opened() {
                let mut parts = [text(0, &stream[..split]), text(split, &stream[split..])];
                if backwards {
                    parts.reverse();
                }
                parts.into_iter().for_each(|part| assert_ne!(lab.client_sends(part), dataplane::Fate::Forward));
                goes_on(&mut lab);
            }
        }
    }
}

/// Segmentation: three segments, of which the second overlaps the first by a byte and the last comes first.
#[test]
fn segmentation_with_overlap_and_reordering() {
    let stream = stream();
    for mut lab in Lab::opened() {
        lab.client_sends(text(16, &stream[16..]));
        lab.client_sends(text(0, &stream[..10]));
        lab.client_sends(text(9, &stream[9..16]));
        goes_on(&mut lab);
    }
}

/// Simultaneous open: the client answers the SYN-ACK with a SYN-ACK, or with its SYN again.
#[test]
fn a_syn_ack_of_the_client() {
    for answer in [flags(SYN | ACK, -1), flags(SYN, -1), flags(SYN | ACK, -1).with(&pass("BAD"))] {
        for mut lab in Lab::closed() {
            lab.client_sends(flags(SYN, -1));
            lab.client.finds_syn_ack();
            lab.client_sends(answer.clone());
            lab.client_sends(flags(ACK, 0));
            assert_eq!(lab.server.state, State::Established);
            goes_on(&mut lab);
        }
    }
}

/// A window of zero, or a small one, changes nothing of what the server gets.
#[test]
fn a_window_that_is_tampered_with() {
    for window in [0, 1, 10] {
        for mut lab in Lab::opened() {
            lab.client_sends(Sends { window, ..text(0, &stream()[..11]) });
            goes_on(&mut lab);
        }
    }
}
