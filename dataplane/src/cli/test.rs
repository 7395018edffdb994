//! `socktap test`: a filter on the bytes of a file, offline.

use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::net::SocketAddr;

use serde::Serialize;
use tap_engine::{Filter, FlowInfo, Kind, LoadError, LoadOptions, MessageBuffer, Object, Step, StreamState, Verdict};

use super::args::{Format, Gate, TestArgs};
use super::{Status, bad, capture};

/// What `bpf_ktime_get_ns` answers: always the same, so that a test can be repeated.
const NOW_NS: u64 = 1_000_000_000;

/// A line of the output.
#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Message {
        offset: u64,
        length: u64,
        verdict: &'static str,
        #[serde(flatten)]
        trace: Option<Trace>,
    },
    Incomplete {
        offset: u64,
        length: u64,
        error: &'static str,
    },
    Error {
        offset: u64,
        error: &'static str,
        detail: String,
    },
}

/// What a message has cost, and what the programs have said meanwhile.
#[derive(Serialize)]
struct Trace {
    parser_instructions: u64,
    verdict_instructions: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    printed: Vec<String>,
}

/// The bytes to judge, and where they are said to come from.
struct Input {
    bytes: Box<dyn Read>,
    flow: FlowInfo,
    /// Why the bytes end too early, if they do.
    broken: Option<String>,
}

/// Runs the test and prints a line for each message.
pub(super) fn test(args: &TestArgs) -> Status {
    let (object, filter) = match load(args) {
        Ok(loaded) => loaded,
        Err(error) => return bad(&error),
    };
    if let Some(unknown) = args.map.iter().find(|name| object.map(name).is_none()) {
        let known: Vec<&str> = object.maps().map(|map| map.name()).collect();
        return bad(&format!("{} has no map `{unknown}`\nhelp: it has {}", object.name(), known.join(", ")));
    }
    let input = match open(args) {
        Ok(input) => input,
        Err(error) => return bad(&format!("the input {} {error}", args.input.display())),
    };
    let mut output = BufWriter::new(io::stdout().lock());
    let judged = judge(args, &object, filter, input, &mut output).and_then(|status| {
        args.map.iter().try_for_each(|name| dump(&object, name, &mut output))?;
        output.flush().map(|()| status)
    });
    match judged {
        Ok(status) => status,
        // The reader of our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Status::Good,
        Err(error) => {
            eprintln!("socktap: {error}");
            Status::Failed
        }
    }
}

fn load(args: &TestArgs) -> Result<(Object, Filter), LoadError> {
    let options = LoadOptions { set: args.set.iter().cloned().collect(), ..LoadOptions::default() };
    let mut object = Object::load(&args.object, &options)?;
    if args.verify == Gate::Kernel {
        match object.verify() {
            Err(error @ LoadError::NotPermitted { .. }) => eprintln!("warning: {error}"),
            result => result?,
        }
    }
    if args.trace {
        object.count_steps();
    }
    let parser = object.program(&args.parser, Kind::StreamParser)?;
    let verdict = match &args.verdict {
        Some(verdict) => Some(object.program(verdict, Kind::StreamVerdict)?),
        None => None,
    };
    Ok((object, Filter::new(parser, verdict, args.max_message)))
}

/// Prints the elements of a map of the object.
fn dump(object: &Object, name: &str, output: &mut impl Write) -> io::Result<()> {
    let map = object.map(name).expect("looked for before");
    for key in map.keys() {
        // One that has gone meanwhile is none.
        let Ok(value) = map.get(&key) else { continue };
        let line = serde_json::json!({ "map": name, "key": hex(&key), "value": hex(&value) });
        serde_json::to_writer(&mut *output, &line)?;
        output.write_all(b"\n")?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Opens the input. The error goes on after the file's name.
fn open(args: &TestArgs) -> Result<Input, String> {
    let failed = |error: io::Error| format!("cannot be read: {error}");
    let mut file = File::open(&args.input).map_err(failed)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut head).map_err(failed)?;
    let is_capture = match args.format {
        Format::Auto => capture::is_capture(&head),
        Format::Raw => false,
        Format::Pcap => true,
    };
    if !is_capture {
        // Addresses for documentation (RFC 5737): no program can take them for real ones.
        let ends = (SocketAddr::from(([192, 0, 2, 1], 1024)), SocketAddr::from(([198, 51, 100, 1], 80)));
        let bytes = Box::new(Cursor::new(head).chain(file));
        return Ok(Input { bytes, flow: flow_info(ends.0, ends.1), broken: None });
    }
    let found = capture::read(&head, file, args.direction).map_err(|error| error.to_string())?;
    Ok(Input {
        bytes: Box::new(Cursor::new(found.stream)),
        flow: flow_info(found.client, found.server),
        broken: found.broken,
    })
}

/// The server is the application, as a tap has it unless it says otherwise.
fn flow_info(client: SocketAddr, server: SocketAddr) -> FlowInfo {
    FlowInfo::new(server, client)
}

/// Delivers the input to the filter, `args.split` bytes at a time.
fn judge(
    args: &TestArgs,
    object: &Object,
    mut filter: Filter,
    mut input: Input,
    output: &mut impl Write,
) -> io::Result<Status> {
    // Room for the head of a message that is not complete yet and for more than one delivery of a usual size.
    let mut buffer = MessageBuffer::new(args.max_message * 2 + 64 * 1024).map_err(io::Error::other)?;
    let mut state = StreamState::default();
    let (mut start, mut end) = (0, 0);
    let mut offset = 0u64;
    loop {
        if end == buffer.capacity() {
            buffer.as_mut_slice().copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        let room = buffer.capacity() - end;
        let delivery = args.split.map_or(room, |split| split.get().min(room));
        let got = read_full(&mut input.bytes, &mut buffer.as_mut_slice()[end..end + delivery])?;
        if got == 0 {
            break;
        }
        end += got;
        while start < end {
            match filter.next(&mut state, &mut input.flow, NOW_NS, &mut buffer, start, end) {
                Step::NeedMore { .. } => break,
                Step::Message { length, verdict } => {
                    let trace = args.trace.then(|| {
                        let [parser_instructions, verdict_instructions] = filter.take_spent();
                        Trace { parser_instructions, verdict_instructions, printed: object.take_printed() }
                    });
                    let line = Line::Message { offset, length: length as u64, verdict: verdict.as_str(), trace };
                    print(output, &line)?;
                    start += length;
                    offset += length as u64;
                    if verdict == Verdict::Disconnect {
                        return Ok(Status::Good);
                    }
                }
                Step::Error(error) => {
                    print(output, &Line::Error { offset, error: error.as_str(), detail: error.to_string() })?;
                    return Ok(Status::Failed);
                }
            }
        }
    }
    let length = (end - start) as u64;
    if let Some(detail) = input.broken {
        print(output, &Line::Error { offset: offset + length, error: "capture", detail })?;
        return Ok(Status::Failed);
    }
    if length > 0 {
        print(output, &Line::Incomplete { offset, length, error: "incomplete" })?;
        return Ok(Status::Failed);
    }
    Ok(Status::Good)
}

/// Reads until `into` is full or the input ends: a pipe's deliveries must not show.
fn read_full(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn print(output: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::super::args::Sender;
    use super::*;

    const MAX_MESSAGE: usize = 1000;

    fn args(split: Option<usize>) -> TestArgs {
        TestArgs {
            object: PathBuf::from("len4.bpf.o"),
            parser: "parse_len4".to_owned(),
            verdict: Some("by_first_byte".to_owned()),
            input: PathBuf::from("input"),
            format: Format::Raw,
            direction: Sender::Client,
            split: split.and_then(std::num::NonZeroUsize::new),
            max_message: MAX_MESSAGE,
            set: Vec::new(),
            verify: Gate::Kernel,
            trace: false,
            map: Vec::new(),
        }
    }

    /// Judges `bytes` with the shipped filter for length-prefixed messages.
    fn run(bytes: &[u8], split: Option<usize>, broken: Option<&str>) -> (Status, String) {
        let object = Object::from_bytes("len4", tap_engine::shipped::LEN4).unwrap();
        let parser = object.program("parse_len4", Kind::StreamParser).unwrap();
        let verdict = object.program("by_first_byte", Kind::StreamVerdict).unwrap();
        let input = Input {
            bytes: Box::new(Cursor::new(bytes.to_vec())),
            flow: flow_info(([192, 0, 2, 1], 1024).into(), ([198, 51, 100, 1], 80).into()),
            broken: broken.map(str::to_owned),
        };
        let mut output = Vec::new();
        let filter = Filter::new(parser, Some(verdict), MAX_MESSAGE);
        let status = judge(&args(split), &object, filter, input, &mut output).unwrap();
        (status, String::from_utf8(output).unwrap())
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
    }

    #[test]
    fn verdicts() {
        let bytes = [message(b"abc"), message(b""), message(b"Drop"), message(b"X"), message(b"never")].concat();
        let lines = "{\"offset\":0,\"length\":7,\"verdict\":\"pass\"}\n\
                     {\"offset\":7,\"length\":4,\"verdict\":\"pass\"}\n\
                     {\"offset\":11,\"length\":8,\"verdict\":\"drop\"}\n\
                     {\"offset\":19,\"length\":5,\"verdict\":\"disconnect\"}\n";
        for split in [None, Some(1), Some(2), Some(7), Some(1_000_000)] {
            assert_eq!(run(&bytes, split, None), (Status::Good, lines.to_owned()), "{split:?}");
        }
        assert_eq!(run(b"", None, None), (Status::Good, String::new()));
    }

    #[test]
    fn ends_that_are_errors() {
        let bytes = [message(b"abc"), b"\0\0\0\x09xy".to_vec()].concat();
        let passed = "{\"offset\":0,\"length\":7,\"verdict\":\"pass\"}\n";
        let incomplete = format!("{passed}{{\"offset\":7,\"length\":6,\"error\":\"incomplete\"}}\n");
        assert_eq!(run(&bytes, Some(3), None), (Status::Failed, incomplete));
        let broken = format!("{passed}{{\"offset\":13,\"error\":\"capture\",\"detail\":\"a gap\"}}\n");
        assert_eq!(run(&bytes, None, Some("a gap")), (Status::Failed, broken));

        let (status, lines) = run(&[message(b"abc"), message(&[0; MAX_MESSAGE])].concat(), Some(5), None);
        assert_eq!(status, Status::Failed);
        let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!((&last["offset"], &last["error"]), (&7.into(), &"message_too_big".into()));
        assert!(last["detail"].as_str().unwrap().contains("1004"), "{last}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn splitting_changes_nothing(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..400),
            tail in prop::collection::vec(any::<u8>(), 0..8),
            split in 1usize..5000,
        ) {
            let mut bytes: Vec<u8> = payloads.iter().flat_map(|payload| message(payload)).collect();
            bytes.extend(tail);
            prop_assert_eq!(run(&bytes, Some(split), None), run(&bytes, None, None));
        }
    }
}
