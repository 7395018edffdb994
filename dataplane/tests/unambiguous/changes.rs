//! Programs change between segments, at every byte of a stream: each message is judged once, as a whole, by the programs that
//! were there when its length became known; and no byte is lost.

use dataplane::flow_event::EventKind;
use dataplane::programs::Programs;
use tap_engine::{Filter, Kind, Object, Verdict};

use crate::lab::{LEN4, LONGEST, Lab, Shown, forbidden, pass, text};

/// Bytes after which the length of a message is known.
const HEADER: usize = 4;

/// Messages behind a length, judged by their first byte.
fn by_first_byte() -> Programs {
    let verdict = LEN4.program("by_first_byte", Kind::StreamVerdict).unwrap();
    Filter::new(LEN4.program("parse_len4", Kind::StreamParser).unwrap(), Some(verdict), LONGEST).into()
}

/// The same messages; all pass.
fn all_pass() -> Programs {
    Filter::new(LEN4.program("parse_len4", Kind::StreamParser).unwrap(), None, LONGEST).into()
}

/// Lines, of which those with the word "secret" are dropped.
fn lines() -> Programs {
    let object = Object::from_bytes("lines", tap_engine::shipped::LINES).unwrap();
    let program = |name, kind| object.program(name, kind).unwrap();
    let verdict = program("no_word", Kind::StreamVerdict);
    Filter::new(program("parse_line", Kind::StreamParser), Some(verdict), LONGEST).into()
}

fn messages() -> [Vec<u8>; 5] {
    [pass("one"), forbidden("two"), forbidden(""), pass(&"three ".repeat(8)), forbidden("four")]
}

/// What is left of the messages, if those that `is_judged` says lose what is forbidden.
fn left(is_judged: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut start = 0;
    let mut left = Vec::new();
    for message in messages() {
        if !(message[HEADER] == b'D' && is_judged(start)) {
            left.extend_from_slice(&message);
        }
        start += message.len();
    }
    left
}

#[test]
fn a_change_at_every_byte() {
    let stream = messages().concat();
    for at in 0..=stream.len() {
        let mut lab = Lab::opened().next().unwrap();
        lab.client_sends(text(0, &stream[..at]));
        lab.change_programs([Some(all_pass()), None]);
        lab.client_sends(text(at, &stream[at..]));
        let expected = left(|start| start + HEADER <= at);
        assert_eq!(Shown(&lab.server.read), Shown(&expected), "changed at byte {at}");
        lab.change_programs([Some(by_first_byte()), None]);
        lab.client_sends(text(stream.len(), &forbidden("behind all changes")));
        assert_eq!(Shown(&lab.server.read), Shown(&expected), "changed at byte {at}");
        assert_eq!(lab.earlier_programs(), 0);
    }
}

/// Byte after byte, with a change before each `period`th of them.
#[test]
fn changes_without_end() {
    let stream = messages().concat();
    for period in 1..20 {
        let mut lab = Lab::opened().next().unwrap();
        // By the number of bytes that are there: whether they are judged.
        let mut judged = Vec::new();
        for (at, byte) in stream.iter().enumerate() {
            let changes = at / period;
            if at % period == 0 {
                lab.change_programs([Some(if changes % 2 == 0 { all_pass() } else { by_first_byte() }), None]);
                assert!(lab.earlier_programs() <= 1);
            }
            lab.client_sends(text(at, &[*byte]));
            judged.push(changes % 2 == 1);
        }
        // The programs that see the last byte of the header say the length.
        let expected = left(|start| judged[start + HEADER - 1]);
        assert_eq!(Shown(&lab.server.read), Shown(&expected), "a change every {period} bytes");
        assert_eq!(lab.judged().messages.iter().sum::<u64>(), messages().len() as u64);
    }
}

#[test]
fn another_parser_begins_at_the_head_of_the_message() {
    // Two bytes of a length, and then it is a line.
    for (line, passes) in [(&b"plain\n"[..], true), (b"a secret\n", false)] {
        let mut lab = Lab::opened().next().unwrap();
        lab.client_sends(text(0, &pass("one")));
        let read = lab.server.read.clone();
        lab.client_sends(text(8, &[0, 0]));
        lab.change_programs([Some(lines()), None]);
        lab.client_sends(text(10, line));
        let expected = if passes { [&read, &[0, 0][..], line].concat() } else { read };
        assert_eq!(Shown(&lab.server.read), Shown(&expected));
    }
    // What the new parser makes of the bytes that are there does not wait for more of them.
    let mut lab = Lab::opened().next().unwrap();
    lab.client_sends(text(0, b"\0\0\n"));
    assert_eq!(Shown(&lab.server.read), Shown(b""));
    lab.change_programs([Some(lines()), None]);
    assert_eq!(Shown(&lab.server.read), Shown(b"\0\0\n"));
}

/// Without programs the bytes pass unparsed, and nobody knows any more where a message begins. But a message whose length is
/// known is judged as a whole; and if there are programs again when it ends, nothing has changed for the flow.
#[test]
fn a_direction_that_lost_its_programs_stays_unjudged() {
    let [first, second] = ["judged", "not judged"].map(forbidden);
    let stream = [&first[..], &second, &forbidden("nor this")].concat();
    let (first, second) = (first.len(), second.len());
    // Bytes of the second message after which programs go and come back, and where what passes begins.
    for (gone, back, passes) in [(0, 11, 0), (2, 11, 0), (6, 11, stream.len() - first), (6, second + 5, second)] {
        let mut lab = Lab::opened().next().unwrap();
        lab.client_sends(text(0, &stream[..first + gone]));
        lab.change_programs([None, None]);
        lab.client_sends(text(first + gone, &stream[first + gone..first + back]));
        lab.change_programs([Some(by_first_byte()), None]);
        lab.client_sends(text(first + back, &stream[first + back..]));
        assert_eq!(Shown(&lab.server.read), Shown(&stream[first + passes..]), "gone at {gone}, back at {back}");
    }
}

#[test]
fn a_shadow_is_asked_about_the_same_messages_and_decides_nothing() {
    let mut lab = Lab::opened().next().unwrap();
    let mut programs = all_pass();
    programs.shadow = Some(LEN4.program("by_first_byte", Kind::StreamVerdict).unwrap());
    lab.change_programs([Some(programs), None]);
    let stream = [pass("one"), forbidden("two"), pass("three")].concat();
    lab.client_sends_without_pause(text(0, &stream));
    let differences: Vec<_> = lab
        .settle_and_tell()
        .into_iter()
        .filter_map(|kind| match kind {
            EventKind::Differs(difference) => Some((difference.length, difference.live, difference.shadow)),
            _ => None,
        })
        .collect();
    assert_eq!(Shown(&lab.server.read), Shown(&stream));
    assert_eq!(lab.judged().shadow, [[2, 1, 0, 0], [0; 4], [0; 4]]);
    assert_eq!(differences, [(8, Verdict::Pass, Ok(Verdict::Drop))]);
}
