//! With `midstream = "pass"`, what belongs to no flow crosses unjudged. So a client must not bring the tap to forget its flow
//! while the server knows the connection.

use dataplane::Fate;

use crate::host::{Habits, State};
use crate::lab::{Lab, Shown, flags, forbidden, pass, text};
use crate::wire::{ACK, RST, SYN};

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

/// What a connection that was open before sends does cross here: otherwise these tests would show nothing.
#[test]
fn text_of_an_unknown_connection_crosses() {
    for lab in Lab::closed() {
        assert_eq!(lab.passing_midstream().client_sends(text(0, &pass("one"))), Fate::Forward);
    }
}

/// A reset during the handshake, before or after the SYN-ACK, which does not reach the server.
#[test]
fn a_reset_that_expires_during_the_handshake() {
    let before = [flags(SYN | RST, -1), flags(RST, 0), flags(RST, -1)].map(|reset| (reset, false));
    let after = [flags(RST, 0), flags(RST | ACK, 0)].map(|reset| (reset, true));
    for (reset, comes_after) in before.into_iter().chain(after) {
        for pause in [0, 3000] {
            for with_ack in [false, true] {
                for lab in Lab::closed() {
                    let mut lab = lab.passing_midstream();
                    if comes_after {
                        lab.client_sends(flags(SYN, -1));
                        lab.client.finds_syn_ack();
                        lab.client_sends(reset.clone().hop_limit(1));
                    } else {
                        lab.client_sends_without_pause(flags(SYN, -1));
                        lab.client_sends_without_pause(reset.clone().hop_limit(1));
                        lab.settle();
                    }
                    lab.wait(pause);
                    assert_eq!(lab.server.state, State::SynReceived);
                    if with_ack {
                        lab.client_sends(flags(ACK, 0));
                    }
                    assert_ne!(lab.client_sends(text(0, &stream())), Fate::Forward);
                    goes_on(&mut lab);
                }
            }
        }
    }
}

/// A reset of the open connection, and a message before it, which do not reach the server: the tap's own reset does, also when
/// the server tells that it has not got all that was before. What crosses then is refused.
#[test]
fn a_reset_that_expires_in_an_open_connection() {
    for lab in Lab::closed() {
        let mut lab = lab.passing_midstream().open();
        lab.client_sends(text(0, &pass("one")).hop_limit(1));
        lab.client_sends(flags(RST, 8).hop_limit(1));
        assert_ne!(lab.client_sends(text(8, &pass("BAD")).hop_limit(1)), Fate::Forward);
        lab.is_reset();
        for at in [0, 8] {
            assert_eq!(lab.client_sends(text(at, &pass("BAD"))), Fate::Forward);
        }
        assert_eq!(Shown(&lab.server.read), Shown(b""));
    }
}

/// A server that answers with cookies knows a connection for two minutes without a sign of it (`MAX_SYNCOOKIE_AGE` of Linux).
#[test]
fn an_ack_of_a_cookie_comes_late() {
    for (v6, modern) in [(false, false), (false, true), (true, false), (true, true)] {
        for seconds in [1, 59, 61, 119] {
            let habits = Habits { cookies: true, modern, ..Habits::default() };
            let mut lab = Lab::new(v6, modern, habits).passing_midstream();
            lab.client_sends(flags(SYN, -1));
            lab.client.finds_syn_ack();
            lab.wait(seconds * 1000);
            assert_ne!(lab.client_sends(text(0, &stream())), Fate::Forward);
            goes_on(&mut lab);
        }
    }
}
