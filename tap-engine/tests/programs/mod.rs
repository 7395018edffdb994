//! The shipped filters on bytes: what becomes of a stream, however its bytes arrive.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use tap_engine::{
    Filter, FlowInfo, Kind, LoadError, LoadOptions, MessageBuffer, Object, Setting, Step, StreamError, StreamState,
    Verdict,
};

/// The parsers' negative results (`programs/socktap.h`).
pub const MALFORMED: i64 = -1;
pub const TOO_LONG: i64 = -2;

/// What is left when all bytes of a stream were delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing.
    Clean,
    /// The beginning of a message.
    Waits,
    /// The parser gave up with this number.
    Fails(i64),
    /// A message of more than a MiB was announced.
    TooBig,
}

/// Lengths and verdicts of the messages, and the end.
pub type Cut = (Vec<(usize, Verdict)>, End);

/// A filter of a shipped object.
pub fn filter(object: &[u8], parser: &str, verdict: Option<&str>) -> Filter {
    let object = Arc::new(Object::from_bytes("shipped", object).unwrap_or_else(|error| panic!("{error}")));
    let verdict = verdict.map(|name| object.program(name, Kind::StreamVerdict).unwrap());
    Filter::new(object.program(parser, Kind::StreamParser).unwrap(), verdict, 1 << 20)
}

/// A filter of a shipped object with other constants.
pub fn filter_with(object: &[u8], parser: &str, verdict: Option<&str>, set: BTreeMap<String, Setting>) -> Filter {
    let options = LoadOptions { set, ..LoadOptions::default() };
    let object = Object::from_bytes_with("shipped", object, &options).unwrap_or_else(|error| panic!("{error}"));
    let verdict = verdict.map(|name| object.program(name, Kind::StreamVerdict).unwrap());
    Filter::new(object.program(parser, Kind::StreamParser).unwrap(), verdict, 1 << 20)
}

/// The object of `programs/NAME.bpf.c` after textual replacements, each of which must be found: a filter with other constants.
pub fn rebuilt(name: &str, replacements: &[(&str, &str)]) -> Vec<u8> {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let mut source = std::fs::read_to_string(programs.join(format!("{name}.bpf.c"))).unwrap();
    for (from, to) in replacements {
        assert!(source.contains(from), "{name}.bpf.c has no `{from}`");
        source = source.replace(from, to);
    }
    let folder = tempfile::tempdir().unwrap();
    let (c, o) = (folder.path().join("filter.bpf.c"), folder.path().join("filter.bpf.o"));
    std::fs::write(&c, source).unwrap();
    let clang = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v2", "-Wall", "-Werror", "-c"])
        .arg(format!("-I{}", programs.display()))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .args([c.as_path(), Path::new("-o"), o.as_path()])
        .output()
        .expect("clang is needed");
    assert!(clang.status.success(), "{}", String::from_utf8_lossy(&clang.stderr));
    std::fs::read(o).unwrap()
}

/// The kernel's verifier takes all functions of `object`. Says so if we may not ask it.
pub fn verified(name: &str, object: &[u8]) {
    match Object::from_bytes(name, object).unwrap_or_else(|error| panic!("{error}")).verify() {
        Ok(()) => {}
        Err(LoadError::NotPermitted { .. }) if !is_root() => eprintln!("skipped: needs root"),
        Err(error) => panic!("{error}"),
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Delivers `bytes` in parts of the sizes `parts`, then the rest.
pub fn cut(filter: &mut Filter, bytes: &[u8], parts: impl IntoIterator<Item = usize>) -> Cut {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    // Each time another flow between the same ends.
    static FLOWS: AtomicU64 = AtomicU64::new(0);
    let birth = FLOWS.fetch_add(1, Ordering::Relaxed);
    let mut flow = FlowInfo::new(address("10.0.0.1:6379"), address("10.0.0.2:40000")).with_birth(birth);
    let mut buffer = MessageBuffer::new(bytes.len().max(1)).unwrap();
    let (mut state, mut start, mut end) = (StreamState::default(), 0, 0);
    let mut messages = Vec::new();
    for part in parts.into_iter().chain([bytes.len()]) {
        let next = bytes.len().min(end + part);
        buffer.as_mut_slice()[end..next].copy_from_slice(&bytes[end..next]);
        end = next;
        while start < end {
            match filter.next(&mut state, &mut flow, 0, &mut buffer, start, end) {
                Step::Message { length, verdict } => {
                    messages.push((length, verdict));
                    start += length;
                }
                Step::NeedMore { .. } => break,
                Step::Error(StreamError::Unrecoverable(code)) => return (messages, End::Fails(code)),
                Step::Error(StreamError::MessageTooBig { .. }) => return (messages, End::TooBig),
                Step::Error(error) => panic!("{error} after {messages:?}"),
            }
        }
    }
    (messages, if start == end { End::Clean } else { End::Waits })
}

/// `bytes` become `messages` and `end` in one delivery, byte by byte, and in random parts.
#[track_caller]
pub fn becomes(filter: &mut Filter, bytes: impl AsRef<[u8]>, messages: &[(usize, Verdict)], end: End) {
    let bytes = bytes.as_ref();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let expected = (messages.to_vec(), end);
    assert_eq!(cut(filter, bytes, []), expected, "{shown:?} at once");
    // A parser starts afresh with each delivery: byte by byte, long streams take their time squared.
    let step = if bytes.len() <= 256 { 1 } else { bytes.len() / 64 };
    assert_eq!(cut(filter, bytes, std::iter::repeat_n(step, bytes.len())), expected, "{shown:?} by {step} bytes");
    let mut runner = TestRunner::deterministic();
    let parts = vec(1..bytes.len().max(2), 0..6);
    for _ in 0..4 {
        let parts = parts.new_tree(&mut runner).unwrap().current();
        assert_eq!(cut(filter, bytes, parts.clone()), expected, "{shown:?} in {parts:?}");
    }
}

/// One message with a verdict, all of `bytes`.
#[track_caller]
pub fn is(filter: &mut Filter, bytes: impl AsRef<[u8]>, verdict: Verdict) {
    let bytes = bytes.as_ref();
    becomes(filter, bytes, &[(bytes.len(), verdict)], End::Clean);
}

/// No message: the parser gives up.
#[track_caller]
pub fn refused(filter: &mut Filter, bytes: impl AsRef<[u8]>) {
    becomes(filter, bytes, &[], End::Fails(MALFORMED));
}

/// Streams of the given `pieces` and of random bytes, mixed: whatever they become, other deliveries make the same of them.
/// The pieces are whole messages or fragments.
pub fn splits_do_not_matter(filter: Filter, pieces: &'static [&'static [u8]]) {
    let filter = RefCell::new(filter);
    let piece = prop_oneof![
        8 => prop::sample::select(pieces).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..12),
        1 => prop::sample::select(pieces).prop_flat_map(|piece| (0..=piece.len()).prop_map(|n| piece[..n].to_vec())),
    ];
    let stream = vec(piece, 0..10).prop_map(|pieces| pieces.concat());
    let case = (stream, vec(1..40usize, 0..20));
    TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() })
        .run(&case, |(bytes, parts)| {
            let mut filter = filter.borrow_mut();
            let whole = cut(&mut filter, &bytes, []);
            prop_assert_eq!(&cut(&mut filter, &bytes, parts), &whole);
            prop_assert_eq!(&cut(&mut filter, &bytes, std::iter::repeat_n(1, bytes.len())), &whole);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
