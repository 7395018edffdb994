//! Zhongjie Wang, Yue Cao, Zhiyun Qian, Chengyu Song, Srikanth Krishnamurthy: "Your State is Not Mine: A Closer Look at
//! Evading Stateful Internet Censorship" (IMC 2017), whose tool is INTANG.
//!
//! The strategies give the filter's connection (its TCB) another state than the server's.

use crate::lab::{Lab, Sends, Stamp, flags, forbidden, pass, text};
use crate::wire::{ACK, Damage, FIN, RST, SYN};

const CLIENTS_OTHER_ISS: u32 = 0x1000_0000;

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

/// TCB creation with SYN: a SYN with a wrong number that does not reach the server (a low hop limit) comes first. The filter
/// creates a connection that does not exist. Here the server's answer tells which one exists.
#[test]
fn creation_by_a_false_syn() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN, 0x100_0000).hop_limit(1));
        assert!(lab.server.syns.is_empty());
        goes_on(&mut lab.open());
    }
}

/// The same, but the false SYN arrives, and its connection is reset, as the client's host does with a SYN-ACK that it did not
/// ask for; the true one opens then.
#[test]
fn creation_by_a_false_syn_that_is_reset() {
    for mut lab in Lab::closed() {
        lab.client_begins_anew(CLIENTS_OTHER_ISS);
        lab.client_sends(flags(SYN, -1));
        lab.client.finds_syn_ack();
        lab.client_sends(flags(RST, 0));
        lab.wait(10_000);
        lab.client_begins_anew(0x2000_0000);
        let mut lab = lab.open();
        goes_on(&mut lab);
    }
}

/// Data reassembly, out of order: false and true text behind a hole, one before the other; then the hole is filled.
#[test]
fn reassembly_of_overlapping_segments_behind_a_hole() {
    let stream = stream();
    let falsified = [pass("ONE"), pass("BAD"), pass("SIX")].concat();
    for (first, second) in [(&stream, &falsified), (&falsified, &stream)] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(4, &first[4..]));
            lab.client_sends(text(4, &second[4..]));
            lab.client_sends(text(0, &first[..4]));
            // One of the two streams, or one of them up to the first segment's end.
            let choices = [&[pass("one"), pass("six")][..], &[pass("ONE"), pass("BAD"), pass("SIX")]];
            lab.server_has_read_one_of(&choices);
            lab.were_dropped(3 - lab.judged().messages[0]);
            lab.is_open();
        }
    }
}

/// Data reassembly, in order: false text that the server rejects fills the filter's buffer before the true text.
#[test]
fn reassembly_of_false_text_before_the_true_text() {
    let falsify: [fn(Sends) -> Sends; 5] = [
        |bad| bad.bad_checksum(),
        |bad| bad.damaged(Damage::IpChecksum),
        |bad| bad.without_ack(),
        |bad| bad.acking(1_000_000),
        |bad| bad.acking(-1_000_000),
    ];
    for falsify in falsify {
        for mut lab in Lab::opened() {
            lab.client_sends(falsify(text(0, &[pass("ONE"), pass("BAD"), pass("SIX")].concat())));
            goes_on(&mut lab);
        }
    }
}

/// Data reassembly, in order: the false text has an old timestamp (RFC 7323, PAWS).
#[test]
fn reassembly_of_false_text_with_an_old_timestamp() {
    for mut lab in Lab::opened().filter(|lab| lab.client.has_timestamps()) {
        lab.client_sends(text(0, &[pass("ONE"), pass("BAD"), pass("SIX")].concat()).stamped(Stamp::Old));
        goes_on(&mut lab);
    }
}

/// Data reassembly, in order: false text with a low hop limit, which is taken here, and sent on until it arrives; the true
/// text comes too late.
#[test]
fn reassembly_of_false_text_with_a_low_hop_limit() {
    for mut lab in Lab::opened() {
        lab.client_sends(text(0, &[pass("ONE"), pass("BAD"), pass("SIX")].concat()).hop_limit(1));
        lab.client_finishes(&stream());
        assert_eq!(lab.server.received(), 0, "a segment arrived that was to expire");
        lab.client_sends(flags(ACK, 24));
        lab.wait(5000);
        lab.server_has_read(&[pass("ONE"), pass("BAD"), pass("SIX")]);
        lab.is_open();
    }
}

/// TCB teardown with RST, RST-ACK and FIN that the server rejects.
#[test]
fn teardown_that_the_server_rejects() {
    for teardown in [RST, RST | ACK, FIN, FIN | ACK] {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &stream()[..3]));
            lab.client_sends(flags(teardown, 3).bad_checksum());
            lab.client_sends(flags(teardown, 3 - 0x1_0000));
            lab.client_sends(flags(teardown & !ACK, 3 + 0x10_0000));
            goes_on(&mut lab);
        }
    }
}

/// Resync and desync: after a SYN (or a SYN-ACK) in the open connection, the filter takes its numbers from the next text,
/// which is far beyond the window; then the true text comes.
#[test]
fn resynchronisation_and_desynchronisation() {
    for syn in [SYN, SYN | ACK] {
        for mut lab in Lab::opened() {
            lab.client_sends(flags(syn, 0x20_0000));
            lab.client_sends(text(0x30_0000, b"desynchronised"));
            goes_on(&mut lab);
        }
    }
}

/// TCB reversal: a SYN-ACK of the client before the handshake, so that the filter believes the client to be the server.
#[test]
fn reversal() {
    for mut lab in Lab::closed() {
        lab.client_sends(flags(SYN | ACK, -1).hop_limit(1));
        assert!(lab.server.syns.is_empty());
        let mut lab = lab.open();
        goes_on(&mut lab);
    }
}
