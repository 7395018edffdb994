//! Zhongjie Wang, Shitong Zhu, Yue Cao, Zhiyun Qian, Chengyu Song, Srikanth Krishnamurthy, Kevin Chan, Tracy Braun:
//! "SymTCP: Eluding Stateful Deep Packet Inspection with Automated Discrepancy Discovery" (NDSS 2020).
//!
//! Symbolic execution of Linux's TCP found segments that it takes and inspecting machines do not, and the other way round.

use tcp::time::Duration;

use crate::host::Habits;
use crate::lab::{Lab, Sends, Stamp, flags, forbidden, pass, text};
use crate::wire::{ACK, FIN, PSH, RST, SYN, URG};

fn stream() -> Vec<u8> {
    [pass("one"), forbidden("two"), pass("six")].concat()
}

#[track_caller]
fn goes_on(lab: &mut Lab) {
    lab.client_finishes(&stream());
    lab.server_has_read(&[pass("one"), pass("six")]);
    lab.were_dropped(1);
    lab.is_open();
}

/// A SYN with text: Linux ignores it, others take it.
#[test]
fn a_syn_with_text() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN, -1).with(&stream()));
        lab.client.finds_syn_ack();
        lab.client_sends(flags(ACK, 0));
        goes_on(&mut lab);
    }
}

/// A SYN with FIN, with RST, or with both, opens nothing, or the connection that the server has, too.
#[test]
fn a_syn_with_other_flags() {
    for more in [FIN, RST, FIN | RST, FIN | PSH | URG] {
        for mut lab in Lab::closed() {
            lab.client_sends(flags(SYN | more, -1).with(&pass("BAD")));
            lab.wait(100);
            assert_eq!(lab.judged().messages, [0; 3]);
            lab.server_has_read(&[]);
        }
    }
}

/// A reset in the window whose number is not exactly the next one is not believed: the client has to confirm it (RFC 5961
/// §3.2).
#[test]
fn a_reset_in_the_window_is_challenged() {
    for reset in [RST, RST | ACK] {
        for at in [1, 2, 1000, 50_000] {
            for mut lab in Lab::opened() {
                lab.client_sends(flags(reset, at));
                lab.is_challenged();
                goes_on(&mut lab);
            }
        }
    }
}

/// A reset outside of the window is not even answered.
#[test]
fn a_reset_outside_of_the_window_is_ignored() {
    for at in [-1, -2, -50_000, 0x10_0000, 0x7000_0000] {
        for mut lab in Lab::opened() {
            lab.client_sends(flags(RST, at));
            lab.is_not_answered();
            goes_on(&mut lab);
        }
    }
}

/// A reset at the next number, with an ACK of what was never sent, ends the flow on both sides or on none.
#[test]
fn a_reset_with_a_bad_ack() {
    for mut lab in Lab::opened() {
        lab.client_sends(flags(RST | ACK, 0).acking(77_777));
        lab.client_sends(text(0, &stream()));
        lab.wait(20_000);
        if lab.flows() == 0 {
            lab.is_reset();
            lab.server_has_read(&[]);
        } else {
            goes_on(&mut lab);
        }
    }
}

/// A FIN with text whose ACK is older than what Linux takes.
#[test]
fn a_fin_with_text_and_an_old_ack() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("BAD")).fin().acking(-1_000_000));
        goes_on(&mut lab);
    }
}

/// A FIN with text, and with all other flags, whose ACK is old but is taken: it is a FIN.
#[test]
fn a_fin_with_text_and_an_ack_that_is_just_old() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &stream()).fin().also(URG).acking(-100));
        lab.wait(5000);
        lab.server_has_read(&[pass("one"), pass("six")]);
        assert!(lab.server.has_read_the_end());
    }
}

/// FIN without ACK: Linux drops it.
#[test]
fn a_fin_without_an_ack() {
    for mut lab in Lab::opened() {
        lab.client_sends(Sends { flags: FIN, ..text(0, &pass("BAD")) });
        goes_on(&mut lab);
    }
}

/// The urgent pointer: Linux takes the urgent byte out of the stream, unless the application wants it inline; many filters do
/// the other thing. Here it is judged as a part of the stream and arrives as one, without the flag.
#[test]
fn urgent_bytes_are_in_the_stream() {
    for pointer in [0, 1, 4, 5, 8, 0xffff] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &pass("one")).urgent(pointer));
            lab.client_sends(text(8, &forbidden("two")).urgent(pointer));
            goes_on(&mut lab);
        }
    }
}

/// The urgent pointer hides the byte that decides: the filter would judge `Xwo` where the host reads `PXwo`, or the reverse.
#[test]
fn an_urgent_byte_in_front_of_the_verdict() {
    for mut lab in Lab::opened() {
        let message = pass("Dwo");
        lab.client_sends(text(0, &message[..5]).urgent(5));
        lab.client_sends(text(5, &message[5..]).urgent(1));
        lab.server_has_read(&[pass("Dwo")]);
        lab.is_open();
    }
}

/// The urgent pointer is there and the flag is not.
#[test]
fn an_urgent_pointer_without_the_flag() {
    for mut lab in Lab::opened() {
        lab.client_sends(Sends { urgent: 3, ..text(0, &stream()) });
        goes_on(&mut lab);
    }
}

/// An ACK number beyond what was sent: Linux drops the segment with its text and answers (RFC 9293 §3.10.7.4, RFC 5961 §5.2).
#[test]
fn an_ack_of_what_was_never_sent() {
    for beyond in [1, 2, 100_000, 0x7fff_ffff] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &pass("BAD")).acking(beyond));
            lab.is_challenged();
            goes_on(&mut lab);
        }
    }
}

/// An ACK number of what the tap has to send, and was not allowed to send yet.
#[test]
fn an_ack_of_what_waits_to_be_sent() {
    for mut lab in Lab::opened() {
        lab.client_sends(Sends { window: 0, ..flags(ACK, 0) });
        lab.server.write(&pass("answer"));
        lab.settle();
        lab.client.heard(); // At most a probe of the window, with one byte.
        lab.client_sends(Sends { window: 0, ..text(0, &pass("BAD")).acking(5) });
        lab.is_challenged();
        goes_on(&mut lab);
        lab.client_sends(flags(ACK, lab.client.acked as i64));
        assert_eq!(lab.client.read, pass("answer"));
    }
}

/// An ACK number below all that Linux takes (RFC 5961 §5.2).
#[test]
fn an_ack_that_is_too_old() {
    for before in [1_000_000, 0x7000_0000] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &pass("BAD")).acking(-before));
            goes_on(&mut lab);
        }
    }
}

/// The option of RFC 2385 (an MD5 signature) on a connection that has not agreed to it: Linux drops the segment, most filters
/// do not look. Here the segment is taken or not, and in either case on both sides.
#[test]
fn an_md5_signature_that_nobody_asked_for() {
    for mut lab in Lab::opened() {
        let signature = [&[19, 18][..], &[0x5a; 16]].concat();
        lab.client_sends(text(0, &pass("BAD")).option(&signature));
        lab.client_sends(text(0, &forbidden("two")));
        lab.client_sends(text(8, &pass("six")));
        lab.server_has_read_one_of(&[&[pass("BAD"), pass("six")], &[pass("six")]]);
        lab.were_dropped(2 - lab.judged().messages[0]);
    }
}

/// Options that make no sense, in the middle of the connection.
#[test]
fn options_that_contradict_themselves() {
    let nonsense: [&[u8]; 6] = [&[2, 4, 0, 1], &[3, 3, 14, 1], &[8, 0, 1, 1], &[5, 255], &[77, 1], &[0, 0, 0, 77]];
    for options in nonsense {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &stream()).option(options));
            lab.server_has_read(&[pass("one"), pass("six")]);
            lab.were_dropped(1);
            lab.is_open();
        }
    }
}

/// A timestamp from before the connection: Linux drops the segment and answers (RFC 7323 §5.3).
#[test]
fn an_old_timestamp() {
    for mut lab in Lab::opened().filter(|lab| lab.client.has_timestamps()) {
        lab.client_sends(text(0, &pass("BAD")).stamped(Stamp::Old));
        lab.is_challenged();
        goes_on(&mut lab);
    }
}

/// A reset with an old timestamp is a reset all the same (RFC 7323 §5.2), and for both sides.
#[test]
fn a_reset_with_an_old_timestamp() {
    for mut lab in Lab::opened() {
        lab.client_sends(flags(RST, 0).stamped(Stamp::Old));
        lab.client_sends(text(0, &stream()));
        lab.is_reset();
        lab.server_has_read(&[]);
    }
}

/// Text at the edge of the window: the part behind the edge is cut off on both sides, and can come otherwise later.
#[test]
fn text_at_the_edge_of_the_window() {
    for (v6, modern) in [(false, false), (false, true), (true, false), (true, true)] {
        let habits = Habits { buffer: 3000, read_after: None, ..Habits::default() };
        let mut lab = Lab::new(v6, modern, habits).open();
        let stream = [pass(&"p".repeat(700)), forbidden(&"d".repeat(300))].concat().repeat(600);
        let falsified = stream.iter().map(|byte| byte.to_ascii_uppercase()).collect::<Vec<_>>();
        // The server's application does not read, so the tap has to stop, too.
        while lab.client.acked < lab.client.edge {
            let (at, edge) = (lab.client.acked, lab.client.edge);
            lab.client_sends(text(at, &stream[at..edge.min(at + 1000)]));
        }
        // Of a scaled window, one unit less is offered than there is.
        let edge = lab.client.acked + if modern { 1 << lab.client.shift() } else { 0 };
        assert!(edge + 1500 < stream.len(), "the window did not close");
        for at in [edge, edge + 1, edge + 1000] {
            lab.client_sends(text(at, &falsified[at..at + 500]));
        }
        let last = text(lab.client.acked, &stream[lab.client.acked..edge]);
        lab.client_sends(Sends { text: [&last.text[..], &falsified[edge..edge + 700]].concat(), ..last });
        assert!(lab.client.acked <= edge);
        lab.server.habits.read_after = Some(Duration::from_millis(5));
        lab.client_finishes(&stream);
        lab.wait(60_000);
        lab.server_has_read(&vec![pass(&"p".repeat(700)); 600]);
        lab.were_dropped(600);
        lab.is_open();
    }
}

/// Text without any flag, or with a single odd one.
#[test]
fn text_without_an_ack() {
    for odd in [0, PSH, URG, FIN, PSH | URG | FIN] {
        for mut lab in Lab::opened() {
            lab.client_sends(Sends { flags: odd, ..text(0, &pass("BAD")) });
            lab.is_not_answered();
            goes_on(&mut lab);
        }
    }
}
