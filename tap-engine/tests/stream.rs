//! Streams are cut and judged as strparser does, however their bytes arrive.

mod common;

use std::sync::{Arc, LazyLock};

use common::{filter, flow, object, unverified};
use proptest::prelude::*;
use tap_engine::{Filter, MessageBuffer, Object, ProgramFault, Step, StreamError, StreamState, Verdict};

/// The parser takes the first byte for the length of what follows, once two bytes are there; it gives up on 0 and 0xff. It
/// counts its calls. The verdict drops `D`, disconnects on `X`, passes all else.
static BYTES: LazyLock<Arc<Object>> = LazyLock::new(|| object(FRAMED));

const FRAMED: &str = r#"
    int calls;
    PARSER int parse(struct __sk_buff *skb) {
        unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
        calls++;
        if (data + 2 > end) return 0;
        if (data[0] == 0xff || data[0] == 0) return -22;
        return data[0] + 1;
    }
    VERDICT int judge(struct __sk_buff *skb) {
        unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
        if (data + 2 > end || end - data != data[0] + 1) return 77;
        return data[1] == 'D' ? SK_DROP : data[1] == 'X' ? 2 : SK_PASS;
    }"#;

/// Offset, length and verdict of each message, and the error at the end if there is one.
type Cut = (Vec<(usize, usize, Verdict)>, Option<StreamError>);

/// Delivers `bytes` in parts of the sizes `parts`, then the rest.
fn cut(filter: &mut Filter, bytes: &[u8], parts: &[usize]) -> Cut {
    let mut buffer = MessageBuffer::new(bytes.len() + 3).unwrap();
    let (mut state, mut start, mut end) = (StreamState::default(), 3, 3);
    let mut messages = Vec::new();
    for part in parts.iter().copied().chain([bytes.len()]) {
        let part = part.min(bytes.len() + 3 - end);
        buffer.as_mut_slice()[end..end + part].copy_from_slice(&bytes[end - 3..end - 3 + part]);
        end += part;
        loop {
            match filter.next(&mut state, &mut flow(), 0, &mut buffer, start, end) {
                Step::Message { length, verdict } => {
                    messages.push((start - 3, length, verdict));
                    start += length;
                }
                Step::NeedMore { .. } => break,
                Step::Error(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

#[test]
fn messages_are_cut_and_judged() {
    let mut filter = filter(&BYTES, "parse", Some("judge"), 64);
    let (messages, error) = cut(&mut filter, b"\x02ab\x01D\x03Xyz\x01", &[]);
    assert_eq!(messages, [(0, 3, Verdict::Pass), (3, 2, Verdict::Drop), (5, 4, Verdict::Disconnect)]);
    assert_eq!(error, None);
}

#[test]
fn without_a_verdict_all_messages_pass() {
    let (messages, _) = cut(&mut filter(&BYTES, "parse", None, 64), b"\x02Dx\x01X", &[1]);
    assert_eq!(messages, [(0, 3, Verdict::Pass), (3, 2, Verdict::Pass)]);
}

#[test]
fn the_parser_is_called_no_more_than_needed() {
    let object = object(FRAMED);
    let mut filter = filter(&object, "parse", Some("judge"), 64);
    let calls = || i32::from_ne_bytes(common::value(&object, ".bss", 0)[..4].try_into().unwrap());
    let mut buffer = MessageBuffer::new(64).unwrap();
    buffer.as_mut_slice()[..6].copy_from_slice(b"\x05abcde");
    let mut state = StreamState::default();
    let mut next = |end| filter.next(&mut state, &mut flow(), 0, &mut buffer, 0, end);
    assert_eq!((next(0), calls()), (Step::NeedMore { known_length: None }, 0));
    assert_eq!((next(1), calls()), (Step::NeedMore { known_length: None }, 1));
    assert_eq!((next(1), calls()), (Step::NeedMore { known_length: None }, 1), "nothing new");
    for end in 2..6 {
        assert_eq!((next(end), calls()), (Step::NeedMore { known_length: Some(6) }, 2), "known");
    }
    assert_eq!((next(6), calls()), (Step::Message { length: 6, verdict: Verdict::Pass }, 2));
    assert_eq!(state, StreamState::default());
}

#[test]
fn a_parser_that_gives_up_is_an_error() {
    for parts in [&[][..], &[1], &[2, 1]] {
        let (messages, error) = cut(&mut filter(&BYTES, "parse", None, 64), b"\x01a\xffb", parts);
        assert_eq!((messages.len(), error), (1, Some(StreamError::Unrecoverable(-22))), "{parts:?}");
    }
}

#[test]
fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
    let ten = b"\x09abcdefghi";
    assert_eq!(cut(&mut filter(&BYTES, "parse", None, 10), ten, &[]).1, None);
    for parts in [&[][..], &[1], &[2]] {
        let error = cut(&mut filter(&BYTES, "parse", None, 9), ten, parts).1;
        assert_eq!(error, Some(StreamError::MessageTooBig { length: Some(10), max: 9 }), "{parts:?}");
    }
    // As soon as the length is known.
    let error = cut(&mut filter(&BYTES, "parse", None, 9), b"\x63a", &[]).1;
    assert_eq!(error, Some(StreamError::MessageTooBig { length: Some(100), max: 9 }));
}

#[test]
fn a_parser_that_wants_more_than_a_message_may_have_is_an_error() {
    let object = object("PARSER int never(struct __sk_buff *skb) { return 0; }");
    for parts in [&[][..], &[1, 1, 1], &[9]] {
        let error = cut(&mut filter(&object, "never", None, 8), b"0123456789", parts).1;
        assert_eq!(error, Some(StreamError::MessageTooBig { length: None, max: 8 }), "{parts:?}");
    }
    assert_eq!(cut(&mut filter(&object, "never", None, 11), b"0123456789", &[]).1, None);
}

#[test]
fn a_length_within_bytes_that_did_not_suffice_is_an_error() {
    let object = object("PARSER int late(struct __sk_buff *skb) { return skb->len < 4 ? 0 : 3; }");
    let mut filter = filter(&object, "late", None, 64);
    assert_eq!(cut(&mut filter, b"01234", &[3]).1, Some(StreamError::BadLength { length: 3, seen: 3 }));
    let (messages, error) = cut(&mut filter, b"01234", &[2, 2]);
    assert_eq!((messages, error), (vec![(0, 3, Verdict::Pass)], None), "two bytes seen, three the length");
}

#[test]
fn lengths_are_taken_for_an_int() {
    let object = unverified(
        "PARSER long long huge(struct __sk_buff *skb) { return 0x100000002LL; } PARSER int most(struct __sk_buff *skb) { return 0x7fffffff; }",
    );
    let (messages, _) = cut(&mut filter(&object, "huge", None, 64), b"abc", &[]);
    assert_eq!(messages, [(0, 2, Verdict::Pass)]);
    let error = cut(&mut filter(&object, "most", None, 64), b"abc", &[]).1;
    assert_eq!(error, Some(StreamError::MessageTooBig { length: Some(0x7fff_ffff), max: 64 }));
}

#[test]
fn a_fault_of_either_program_is_an_error() {
    let object = unverified(
        r#"
        PARSER int bad_parse(struct __sk_buff *skb) { return *(volatile int *)0; }
        PARSER int parse(struct __sk_buff *skb) { return 1; }
        VERDICT int bad_judge(struct __sk_buff *skb) { unsigned char *data = (void *)(long)skb->data; return data[1]; }"#,
    );
    let fault = |error| matches!(error, Some(StreamError::Fault(ProgramFault::OutOfBounds { write: false, .. })));
    assert!(fault(cut(&mut filter(&object, "bad_parse", None, 8), b"ab", &[]).1));
    // The byte behind the message is there, but it is not the verdict's to see.
    assert!(fault(cut(&mut filter(&object, "parse", Some("bad_judge"), 8), b"ab", &[]).1));
}

#[test]
fn errors_have_names() {
    let table = [
        (StreamError::Unrecoverable(-1), "unrecoverable", "the parser gave up with -1"),
        (
            StreamError::BadLength { length: 2, seen: 3 },
            "bad_length",
            "the parser returned a length of 2, but had asked for more than 3 bytes",
        ),
        (
            StreamError::MessageTooBig { length: Some(9), max: 8 },
            "message_too_big",
            "a message of 9 bytes is more than the limit of 8",
        ),
        (
            StreamError::MessageTooBig { length: None, max: 8 },
            "message_too_big",
            "the parser does not know the message's length after 8 bytes, which is the limit",
        ),
        (
            StreamError::Fault(ProgramFault::StepLimit),
            "program_fault",
            "program fault: no end after 16777216 instructions",
        ),
    ];
    for (error, name, text) in table {
        assert_eq!((error.as_str(), error.to_string().as_str()), (name, text));
    }
}

#[test]
fn a_filter_serves_many_streams() {
    let mut filter = filter(&BYTES, "parse", Some("judge"), 64);
    let mut buffer = MessageBuffer::new(8).unwrap();
    buffer.as_mut_slice().copy_from_slice(b"\x03abc\x01D\x01X");
    let (mut one, mut other) = (StreamState::default(), StreamState::default());
    assert_eq!(filter.next(&mut one, &mut flow(), 0, &mut buffer, 0, 2), Step::NeedMore { known_length: Some(4) });
    assert_eq!(
        filter.next(&mut other, &mut flow(), 0, &mut buffer, 4, 8),
        Step::Message { length: 2, verdict: Verdict::Drop }
    );
    assert_eq!(one.known_length(), Some(4));
    assert_eq!(
        filter.next(&mut one, &mut flow(), 0, &mut buffer, 0, 8),
        Step::Message { length: 4, verdict: Verdict::Pass }
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_splits_equal_one_delivery(
        messages in prop::collection::vec((prop::collection::vec(prop::sample::select(b"DXabc\xff\0".to_vec()), 1..40), 0..30_u8), 0..12),
        tail in prop::collection::vec(any::<u8>(), 0..4),
        parts in prop::collection::vec(0..9_usize, 0..200),
        max in 1..60_usize,
    ) {
        let mut bytes = Vec::new();
        for (content, oddity) in messages {
            // Now and then a length that is none, or too long.
            bytes.push(if oddity == 0 { 0xff } else { content.len() as u8 });
            bytes.extend(content);
        }
        bytes.extend(tail);
        let mut filter = filter(&BYTES, "parse", Some("judge"), max);
        let whole = cut(&mut filter, &bytes, &[]);
        prop_assert_eq!(cut(&mut filter, &bytes, &parts), whole.clone());
        prop_assert_eq!(cut(&mut filter, &bytes, &vec![1; bytes.len()]), whole);
    }

    #[test]
    fn whatever_bytes_arrive_the_messages_cover_them_from_the_start(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let (messages, _) = cut(&mut filter(&BYTES, "parse", Some("judge"), 255), &bytes, &[]);
        let mut head = 0;
        for (offset, length, _) in messages {
            prop_assert_eq!(offset, head);
            head += length;
        }
        prop_assert!(head <= bytes.len());
    }
}
