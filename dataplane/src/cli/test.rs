//! `socktap test`: a filter on the bytes of a file, offline.

use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tap_engine::{Filter, FlowInfo, Kind, LoadError, MessageBuffer, Object, Step, StreamState, Verdict};

use super::args::{Format, TestArgs};
use super::{Status, bad, capture};

/// What `bpf_ktime_get_ns` answers: always the same, so that a test can be repeated.
const NOW_NS: u64 = 1_000_000_000;

/// A line of the output.
#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Message { offset: u64, length: u64, verdict: &'static str },
    Incomplete { offset: u64, length: u64, error: &'static str },
    Error { offset: u64, error: &'static str, detail: String },
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
    let filter = match load(args) {
        Ok(filter) => filter,
        Err(error) => return bad(&error),
    };
    let input = match open(args) {
        Ok(input) => input,
        Err(error) => return bad(&format!("the input {} {error}", args.input.display())),
    };
    let mut output = BufWriter::new(io::stdout().lock());
    match judge(args, filter, input, &mut output).and_then(|status| output.flush().map(|()| status)) {
        Ok(status) => status,
        // The reader of our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Status::Good,
        Err(error) => {
            eprintln!("socktap: {error}");
            Status::Failed
        }
    }
}

fn load(args: &TestArgs) -> Result<Filter, LoadError> {
    let object = Arc::new(Object::load(&args.object)?);
    match object.verify() {
        Err(error @ LoadError::NotPermitted { .. }) => eprintln!("warning: {error}"),
        result => result?,
    }
    let parser = object.program(&args.parser, Kind::StreamParser)?;
    let verdict = match &args.verdict {
        Some(verdict) => Some(object.program(verdict, Kind::StreamVerdict)?),
        None => None,
    };
    Ok(Filter::new(parser, verdict, args.max_message))
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
fn judge(args: &TestArgs, mut filter: Filter, mut input: Input, output: &mut impl Write) -> io::Result<Status> {
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
            match filter.next(&mut state, &input.flow, NOW_NS, &mut buffer, start, end) {
                Step::NeedMore { .. } => break,
                Step::Message { length, verdict } => {
                    let line = Line::Message { offset, length: length as u64, verdict: word(verdict) };
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

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Disconnect => "disconnect",
    }
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
