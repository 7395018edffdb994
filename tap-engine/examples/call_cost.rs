//! What a call of a program costs: `cargo run --release -p tap-engine --example call_cost`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tap_engine::{FlowInfo, Kind, LoadError, MessageBuffer, Object, Program, shipped};

const MESSAGE: &[u8] = b"\0\0\0\x3cPxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const LINE: &[u8] = b"a line of text with sixty-four bytes, its end included, for sure\n";
const COMMAND: &[u8] = b"*3\r\n$3\r\nSET\r\n$10\r\nkey:000012\r\n$3\r\nxxx\r\n";

fn main() -> Result<(), LoadError> {
    let load = |name, bytes| -> Result<Object, LoadError> {
        let mut object = Object::from_bytes(name, bytes)?;
        if std::env::args().all(|argument| argument != "checked") {
            object.verify()?;
        }
        Ok(object)
    };
    let (len4, lines, redis) =
        (load("len4", shipped::LEN4)?, load("lines", shipped::LINES)?, load("redis", shipped::REDIS)?);
    let cases = [
        ("len4   parse_len4", len4.program("parse_len4", Kind::StreamParser)?, MESSAGE),
        ("len4   by_first_byte", len4.program("by_first_byte", Kind::StreamVerdict)?, MESSAGE),
        ("lines  parse_line", lines.program("parse_line", Kind::StreamParser)?, LINE),
        ("redis  parse_command", redis.program("parse_command", Kind::StreamParser)?, COMMAND),
        ("redis  no_flush", redis.program("no_flush", Kind::StreamVerdict)?, COMMAND),
    ];
    for (name, mut program, bytes) in cases {
        println!("{name:22} {:6} ns", cost(&mut program, bytes).as_nanos());
    }
    Ok(())
}

/// The least of several means: what disturbs makes it slower, never faster.
#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn cost(program: &mut Program, bytes: &[u8]) -> Duration {
    const ROUNDS: u32 = 20_000;
    let mut flow = FlowInfo::new(([10, 0, 0, 1], 6379).into(), ([10, 0, 0, 2], 40_000).into());
    let mut buffer = MessageBuffer::new(bytes.len()).expect("memory for one message");
    buffer.as_mut_slice().copy_from_slice(bytes);
    let means = (0..10).map(|_| {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let _ = black_box(program.run(&mut flow, 0, black_box(&mut buffer), 0..bytes.len()));
        }
        start.elapsed() / ROUNDS
    });
    means.min().unwrap_or_default()
}
