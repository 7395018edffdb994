//! Thomas Ptacek, Timothy Newsham: "Insertion, Evasion, and Denial of Service: Eluding Network Intrusion Detection" (1998).
//!
//! *Insertion*: the filter takes a segment that the host rejects. *Evasion*: the host takes one that the filter rejects.
//! Either way the two see different streams. In the transcripts, `one`, `two` and `six` are the client's true messages; `BAD`
//! is what the attacker wants one of the two to believe.

use dataplane::Fate;
use dataplane::counters::DropReason;

use crate::host::State;
use crate::lab::{Lab, Sends, flags, forbidden, pass, text};
use crate::wire::{ACK, Damage, FIN, RST, SYN};

/// The client has sent `one`, inserts a segment in the place of `two`, and sends `two` (forbidden) and `six`.
fn insertion(insert: impl Fn(&Lab, Sends) -> Option<Sends>) {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")));
        let Some(inserted) = insert(&lab, text(8, &pass("BAD"))) else { continue };
        lab.client_sends(inserted);
        lab.client_sends(text(8, &forbidden("two")));
        lab.client_sends(text(16, &pass("six")));
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        lab.is_open();
    }
}

/// Insertion by a segment with a wrong checksum.
#[test]
fn a_bad_tcp_checksum() {
    insertion(|_, bad| Some(bad.bad_checksum()));
}

/// Insertion by a packet with a wrong header checksum.
#[test]
fn a_bad_ip_checksum() {
    insertion(|lab, bad| (!lab.is_v6()).then(|| bad.damaged(Damage::IpChecksum)));
}

/// Insertion by malformed headers: a data offset within the header, or behind the packet, a packet that is longer than its
/// frame.
#[test]
fn lengths_that_contradict_each_other() {
    for damage in [Damage::ShortHeader, Damage::LongHeader, Damage::LongPacket] {
        insertion(|_, bad| Some(bad.damaged(damage)));
    }
}

/// Insertion by a segment without the ACK flag, which hosts drop.
#[test]
fn no_ack_flag() {
    insertion(|_, bad| Some(bad.without_ack()));
}

/// Insertion by a segment with old or wrapped sequence numbers.
#[test]
fn old_and_wrapped_sequence_numbers() {
    for distance in [-8, -9, -255, -0x1_0000, -0x7fff_0000, 0x7000_0000, 0x7fff_ffff] {
        insertion(|_, bad| Some(Sends { at: 8 + distance, ..bad }));
    }
}

/// Insertion by a segment whose hop limit ends before the host: the filter cannot know the distance. Here the host is told
/// what was judged, as soon as what is sent gets so far, so that nothing is gained.
#[test]
fn a_low_hop_limit() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")));
        lab.client_sends(text(8, &pass("two")).hop_limit(1));
        lab.wait(5000);
        lab.client_sends(text(8, &forbidden("BAD")));
        assert_eq!(lab.server.received(), 8, "a segment arrived that was to expire");
        lab.client_sends(text(16, &pass("six")));
        lab.wait(5000);
        lab.server_has_read(&[pass("one"), pass("two"), pass("six")]);
        lab.were_dropped(0);
        lab.is_open();
    }
}

/// Insertion by IP options (or IPv6 destination options), which a host may reject.
#[test]
fn options_in_the_ip_header() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")).extra(3));
        lab.client_sends(text(8, &forbidden("BAD")).extra(1));
        lab.client_sends(text(16, &pass("six")).extra(5));
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        lab.is_open();
    }
}

/// Evasion by reassembly: every order of three segments within one forbidden message.
#[test]
fn a_forbidden_message_out_of_order() {
    let message = forbidden("evil");
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &pass("one")));
            for piece in order {
                lab.client_sends(text(8 + 3 * piece, &message[3 * piece..3 * piece + 3]));
            }
            lab.client_sends(text(17, &pass("six")));
            lab.server_has_read(&[pass("one"), pass("six")]);
            lab.were_dropped(1);
        }
    }
}

/// Evasion by reassembly: segments of one byte each, the last one first.
#[test]
fn bytes_one_by_one_backwards() {
    for mut lab in Lab::opened() {
        let stream = [pass("one"), forbidden("two"), pass("six")].concat();
        for (at, byte) in stream.iter().enumerate().rev() {
            lab.client_sends(text(at, &[*byte]));
        }
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        lab.is_open();
    }
}

/// Overlap: new data in front of data that came before and waits behind a hole ("forward overlap"). The host favours old or
/// new; here one of the two is judged and sent.
#[test]
fn an_overlap_of_what_waits_behind_a_hole() {
    for (first, second) in [(pass("BAD"), forbidden("two")), (forbidden("two"), pass("BAD"))] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(8, &first));
            lab.client_sends(text(8, &second));
            lab.client_sends(text(0, &pass("one")));
            lab.client_sends(text(16, &pass("six")));
            let [passed, dropped] = [&[pass("one"), pass("BAD"), pass("six")][..], &[pass("one"), pass("six")]];
            lab.server_has_read_one_of(&[passed, dropped]);
            lab.were_dropped(3 - lab.judged().messages[0]);
            lab.is_open();
        }
    }
}

/// Overlap: a segment that begins within old data and goes on behind it ("backward overlap"). What was taken stays.
#[test]
fn an_overlap_with_what_was_taken() {
    for mut lab in Lab::opened() {
        let taken = [pass("one"), forbidden("two")].concat();
        lab.client_sends(text(0, &taken[..14]));
        let contradicts = [pass("ONE"), pass("BAD"), pass("six")].concat();
        lab.client_sends(text(0, &contradicts));
        // The forbidden message was taken but for its last two bytes.
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        lab.is_open();
    }
}

/// Overlap: only the byte that decides is sent twice.
#[test]
fn an_overlap_of_one_byte() {
    for (first, second) in [(b"P", b"D"), (b"D", b"P")] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(4, first));
            lab.client_sends(text(5, b"two"));
            lab.client_sends(text(4, second));
            lab.client_sends(text(0, &pass("two")[..4]));
            lab.client_sends(text(8, &pass("six")));
            lab.server_has_read_one_of(&[&[pass("two"), pass("six")], &[pass("six")]]);
            lab.were_dropped(2 - lab.judged().messages[0]);
        }
    }
}

/// What was sent on is never sent otherwise: the server has lost it, and the client sends other bytes with the same numbers.
#[test]
fn a_retransmission_with_other_bytes() {
    for mut lab in Lab::opened() {
        lab.server.habits.losses = [false, true].to_vec(); // The ACK of the handshake, then the message.
        lab.client_sends(text(0, &pass("one")));
        lab.client_sends(text(0, &pass("BAD")));
        lab.client_sends(text(0, &forbidden("two")));
        lab.wait(5000);
        lab.server_has_read(&[pass("one")]);
        lab.is_open();
    }
}

/// A SYN with data: hosts keep the data until the handshake is complete, or drop it.
#[test]
fn text_on_the_syn() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN, -1).with(&pass("BAD")));
        lab.client.finds_syn_ack();
        lab.client_sends(flags(ACK, 0));
        lab.server_has_read(&[]);
        let acked = lab.client.acked;
        assert_eq!(acked, 0, "text of the SYN was acknowledged");
        lab.client_sends(text(0, &forbidden("two")));
        lab.client_sends(text(8, &pass("six")));
        lab.server_has_read(&[pass("six")]);
        lab.were_dropped(1);
    }
}

/// Data before the handshake is complete, in all its stages.
#[test]
fn text_before_the_handshake_is_complete() {
    for mut lab in Lab::closed() {
        let fate = lab.client_sends(text(0, &pass("BAD")));
        assert_ne!(fate, Fate::Forward);
        assert!(lab.server.syns.is_empty());
        lab.client_sends_without_pause(flags(SYN, -1));
        lab.client_sends_without_pause(text(0, &pass("BAD")));
        lab.settle();
        lab.client.finds_syn_ack();
        // An ACK of another SYN-ACK.
        lab.client_sends(text(0, &pass("BAD")).acking(7));
        lab.client_sends(text(0, &pass("BAD")).without_ack());
        lab.wait(1);
        lab.server_has_read(&[]);
        assert_eq!(lab.judged().messages, [0; 3]);
    }
}

/// Data on the ACK that completes the handshake is data like any other.
#[test]
fn text_on_the_last_ack_of_the_handshake() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN, -1));
        lab.client.finds_syn_ack();
        lab.client_sends(text(0, &forbidden("two")));
        lab.client_sends(text(8, &pass("six")));
        lab.wait(5000);
        lab.server_has_read(&[pass("six")]);
        lab.were_dropped(1);
        lab.is_open();
    }
}

/// A reset with a wrong number, or a wrong checksum, ends nothing.
#[test]
fn a_reset_that_the_host_rejects() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")));
        for at in [-1, 7, 0x10_0000, 0x7fff_ffff, -0x7000_0000] {
            lab.client_sends(flags(RST, at));
            lab.client_sends(flags(RST | ACK, at));
        }
        lab.client_sends(flags(RST, 8).bad_checksum());
        lab.client_sends(flags(RST | ACK, 8).damaged(Damage::ShortHeader));
        lab.wait(1000);
        lab.is_open();
        lab.client_sends(text(8, &forbidden("two")));
        lab.client_sends(text(16, &pass("six")));
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
    }
}

/// A reset that the host takes ends both sides. What follows with the old numbers belongs to no connection.
#[test]
fn a_reset_that_the_host_takes() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")));
        lab.client_sends(flags(RST, 8));
        lab.client_sends(text(8, &pass("BAD")));
        lab.is_reset();
        lab.server_has_read(&[pass("one")]);
    }
}

/// Desynchronisation after the connection: a SYN with other numbers makes the filter follow these.
#[test]
fn a_syn_in_an_open_connection() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")));
        lab.client.heard();
        lab.client_sends(flags(SYN, 50_000));
        lab.is_challenged();
        lab.client_sends(text(50_001, &pass("BAD")));
        lab.client_sends(flags(SYN, 7));
        lab.client_sends(text(8, &forbidden("two")));
        lab.client_sends(text(16, &pass("six")));
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        assert_eq!(lab.server.syns.len(), 1);
        lab.is_open();
    }
}

/// Desynchronisation before the connection: a SYN with other numbers, then the true one, whichever of them the host takes.
#[test]
fn a_syn_before_the_true_one() {
    for mut lab in Lab::closed() {
        lab.client_sends_without_pause(flags(SYN, 70_000));
        lab.client_sends_without_pause(flags(SYN, -1));
        lab.settle();
        lab.client_sends(flags(ACK, 0));
        lab.client_sends(text(0, &forbidden("two")));
        lab.client_sends(text(8, &pass("six")));
        lab.client_sends(flags(ACK, 70_001));
        lab.client_sends(text(70_001, &forbidden("two")));
        lab.wait(5000);
        let passed = lab.judged().bytes[0] as usize;
        assert_eq!(lab.server.read, pass("six")[..passed]);
    }
}

/// Teardown: a FIN that the host does not take yet, because bytes before it are missing. When they have come, it is the end,
/// and what contradicts it comes too late, whether it came while bytes were missing or afterwards.
#[test]
fn a_fin_behind_a_hole() {
    for fill_first in [true, false] {
        for mut lab in Lab::opened() {
            lab.client_sends(flags(FIN | ACK, 8));
            lab.wait(5000);
            assert!(!lab.server.has_read_the_end());
            let mut rest = [text(0, &pass("one")), text(8, &[forbidden("two"), pass("six")].concat())];
            if !fill_first {
                rest.reverse();
            }
            rest.into_iter().for_each(|part| assert_ne!(lab.client_sends(part), Fate::Forward));
            lab.client_sends(text(9, &pass("BAD")));
            lab.wait(5000);
            lab.server_has_read(&[pass("one")]);
            lab.were_dropped(0);
            assert!(lab.server.has_read_the_end());
            assert_eq!(lab.server.state, State::Established);
        }
    }
}

/// Teardown: behind a FIN nothing comes any more.
#[test]
fn text_behind_a_fin() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &pass("one")).fin());
        lab.client_sends(text(8, &pass("BAD")));
        lab.client_sends(text(9, &pass("BAD")));
        lab.wait(5000);
        lab.server_has_read(&[pass("one")]);
        assert!(lab.server.has_read_the_end());
        assert_eq!(lab.server.state, State::Established);
    }
}

/// Teardown: a FIN in front of text that came before it. The FIN contradicts the text, and comes too late.
#[test]
fn a_fin_in_front_of_what_waits_behind_a_hole() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(8, &[forbidden("two"), pass("six")].concat()));
        lab.client_sends(text(0, &pass("one")).fin());
        assert!(!lab.server.has_read_the_end());
        lab.server_has_read(&[pass("one"), pass("six")]);
        lab.were_dropped(1);
        lab.client_sends(text(24, &pass("end")).fin());
        lab.wait(5000);
        assert!(lab.server.has_read_the_end());
        lab.server_has_read(&[pass("one"), pass("six"), pass("end")]);
    }
}

/// Denial of service: more holes than are remembered. What is forgotten comes again, and nothing is mixed up.
#[test]
fn more_holes_than_anybody_remembers() {
    for mut lab in Lab::opened() {
        let stream = [pass("one"), forbidden("two")].concat().repeat(40);
        for at in (1..stream.len()).step_by(2).rev() {
            lab.client_sends(text(at, &stream[at..=at]));
        }
        lab.client_finishes(&stream);
        lab.server_has_read(&vec![pass("one"); 40]);
        lab.were_dropped(40);
        lab.is_open();
    }
}

/// A checksum that is wrong is told from one that the sender's device was to complete.
#[test]
fn a_bad_checksum_is_counted() {
    for mut lab in Lab::opened() {
        let fate = lab.client_sends(text(0, &pass("BAD")).bad_checksum());
        assert_eq!(fate, Fate::Dropped(DropReason::BadChecksum));
        lab.is_not_answered();
    }
}
