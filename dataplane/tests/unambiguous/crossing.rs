//! What is no segment of a tapped flow crosses as it is. It must be nothing that the server takes for a segment of one: that
//! would be a way around the verdict. So what may be one, and cannot be judged, does not cross.
//!
//! Each form of a packet with a forbidden message was sent to a Linux host, which read the text in it.

use std::net::SocketAddr;

use dataplane::Fate;
use dataplane::counters::DropReason;

use crate::lab::{Lab, Shown, forbidden, pass, text};
use crate::wire::{self, ACK, Damage, PSH, SYN, Segment, Shape};

/// The server has read nothing but what was judged.
#[track_caller]
fn nothing_has_gone_around_the_verdict(lab: &Lab) {
    assert_eq!(Shown(&lab.server.read), Shown(b""));
    assert_eq!(lab.judged().messages[0], 0);
}

/// Frames that no host should take do not cross: one may.
#[test]
fn malformed_packets_do_not_cross() {
    for damage in [Damage::IpChecksum, Damage::ShortHeader, Damage::LongHeader, Damage::LongPacket] {
        for mut lab in Lab::opened() {
            if damage == Damage::IpChecksum && lab.is_v6() {
                continue;
            }
            let fate = lab.client_sends(text(0, &pass("BAD")).damaged(damage));
            assert_eq!(fate, Fate::Dropped(DropReason::Unreadable));
            nothing_has_gone_around_the_verdict(&lab);
            lab.is_open();
        }
    }
}

/// A piece of a packet does not cross and is not tapped, even if it begins with a whole TCP header.
#[test]
fn a_fragment_does_not_cross() {
    for mut lab in Lab::opened() {
        for (offset, more) in [(0, true), (3, true), (3, false)] {
            let fate = lab.client_sends(text(0, &pass("BAD")).fragment(offset, more));
            assert_eq!(fate, Fate::Dropped(DropReason::Fragment));
        }
        nothing_has_gone_around_the_verdict(&lab);
        lab.is_open();
    }
}

/// Extension headers up to the number that is looked behind hide nothing.
#[test]
fn a_few_extension_headers() {
    for extra in 0..=5 {
        for mut lab in Lab::opened() {
            lab.client_sends(text(0, &forbidden("two")).extra(extra));
            lab.client_sends(text(8, &pass("six")).extra(extra));
            lab.server_has_read(&[pass("six")]);
            lab.were_dropped(1);
        }
    }
}

/// A forbidden message in an IP packet that comes in fragments, which the server puts together (Ptacek and Newsham's first
/// subject).
#[test]
fn a_forbidden_message_in_fragments() {
    for mut lab in Lab::opened() {
        let fates = lab.client_sends_fragments(&text(0, &forbidden("two")), 24);
        assert_eq!(fates, [Fate::Dropped(DropReason::Fragment); 2]);
        nothing_has_gone_around_the_verdict(&lab);
    }
}

/// A forbidden message in an IPv6 packet with a fragment header that is whole all the same (RFC 6946).
#[test]
fn a_forbidden_message_in_an_atomic_fragment() {
    for mut lab in Lab::opened().filter(Lab::is_v6) {
        lab.client_sends(text(0, &forbidden("two")).fragment(0, false));
        nothing_has_gone_around_the_verdict(&lab);
    }
}

/// A forbidden message behind more IPv6 extension headers than are looked behind.
#[test]
fn a_forbidden_message_behind_many_extension_headers() {
    for mut lab in Lab::opened().filter(Lab::is_v6) {
        lab.client_sends(text(0, &forbidden("two")).extra(9));
        nothing_has_gone_around_the_verdict(&lab);
    }
}

/// A forbidden message in an IPv6 packet whose length is given as 0, as that of a jumbogram (RFC 2675), with a hop-by-hop
/// header that has no length either: Linux takes all that is in the frame.
#[test]
fn a_forbidden_message_in_a_packet_without_a_length() {
    for mut lab in Lab::opened().filter(Lab::is_v6) {
        lab.client_sends(text(0, &forbidden("two")).without_length());
        nothing_has_gone_around_the_verdict(&lab);
    }
}

/// A connection from port 0, which Linux accepts.
#[test]
fn a_connection_from_port_0() {
    for mut lab in Lab::closed() {
        let [client, server] = crate::host::ends(lab.is_v6());
        let client = SocketAddr::new(client.ip(), 0);
        let syn = Segment { seq: 1, flags: SYN, ..Segment::default() };
        let fate = lab.client_sends_frame(wire::frame(client, server, &syn, &Shape::default()));
        assert_ne!(fate, Fate::Forward);
        let message = Segment { seq: 2, ack: 1, flags: ACK | PSH, text: forbidden("two"), ..Segment::default() };
        let fate = lab.client_sends_frame(wire::frame(client, server, &message, &Shape::default()));
        assert_ne!(fate, Fate::Forward);
    }
}
