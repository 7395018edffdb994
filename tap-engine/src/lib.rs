//! Bytes in, messages with verdicts out: a stream is cut into messages by one BPF program and judged by another.
//!
//! ```text
//!   object file (clang -target bpf)                       bytes of a stream, in a MessageBuffer
//!        │ Object::load: ELF, maps, relocation                        │
//!        │ Object::verify: the kernel's verifier                      ▼
//!        ▼                                                 ┌─ Filter::next ─────────────────────┐
//!      Object ──── Object::program: native code ────────▶  │ stream parser ──▶ length           │
//!        │ maps, globals: shared by all                    │ verdict ──▶ pass, drop, disconnect │
//!        ▼                                                 └────────────────────────────────────┘
//!   map, take_printed                                                 │ Step
//! ```
//!
//! Programs are ordinary kernel objects: sections `sk_skb/stream_parser` and `sk_skb/stream_verdict`, context
//! `struct __sk_buff`, maps, global variables, and the kernel's helpers; the crate's README lists them. The same file loads
//! into a kernel sockmap. `STAP_DISCONNECT` (2) is one more verdict, which the kernel takes for a drop.
//!
//! What holds:
//! - A program can neither crash nor hang its caller, verified or not: what it must not do is a [`ProgramFault`], and a file
//!   that cannot be run is a [`LoadError`].
//! - It reads and writes only its own stack, its context, the bytes that it was called on, and its object's maps: the kernel's
//!   verifier has proved that, or each access is checked. The module `machine` has the argument.
//! - It sees the bytes from `data` to `data_end` and no more: a parser all that are available from the head of the message on (as far as
//!   a message may reach), a verdict exactly the message.
//! - How a stream is spread over calls changes neither messages nor verdicts.
//! - No clock and no source of randomness is asked: time and seeds are arguments.
//!
//! A program may write to the bytes that it was called on, since the kernel's verifier lets it (`sk_skb` programs have
//! direct packet access). What it writes stays in the [`MessageBuffer`]: a verdict sees what the parser wrote. Whether it is
//! passed on is for the owner of the buffer to decide; the dataplane fills the buffer with a copy, and passes on what the
//! sender sent.
//!
//! Nothing but the module `machine` knows how programs are executed.

#![deny(unsafe_code)]

mod callees;
mod context;
mod error;
mod functions;
mod globals;
mod helpers;
mod instruction;
mod machine;
mod maps;
mod names;
mod object;
mod print;
mod program;
mod sections;
mod stream_parser;
mod verdict;
mod verify;

#[cfg(test)]
mod kernel_oracle;
#[cfg(test)]
mod reference;

pub use context::FlowInfo;
pub use error::LoadError;
pub use machine::{MemoryError, MessageBuffer};
pub use maps::{Map, MapDefinition, MapError, MapStore};
pub use object::{Kind, LoadOptions, Object, Setting};
pub use program::{Program, ProgramFault};
pub use stream_parser::{Filter, Step, StreamError, StreamState};
pub use verdict::Verdict;

/// The filters that ship with socktap, as object files; their sources are in `programs/`.
pub mod shipped {
    /// `socktap.h`, which filters may include.
    pub const HEADER: &str = include_str!("../programs/socktap.h");
    /// RESP: `parse_command`, `parse_reply`, and the verdict `no_flush`.
    pub const REDIS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/redis.bpf.o"));
    /// HTTP/1 requests: `parse_request`, and the verdict `no_admin`.
    pub const HTTP1: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/http1.bpf.o"));
    /// Newline-terminated text: `parse_line`, and a verdict.
    pub const LINES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lines.bpf.o"));
    /// DNS over TCP: `parse_dns`, and the verdict `no_transfer`.
    pub const DNS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dns.bpf.o"));
    /// Requests to Kafka: `parse_request`, and the verdict `no_admin`.
    pub const KAFKA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kafka.bpf.o"));
    /// TLS records: `parse_record`, and the verdict `by_name`.
    pub const TLS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tls.bpf.o"));
    /// A 4-byte big-endian length before each message: `parse_len4`, and the verdict `by_first_byte`.
    pub const LEN4: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/len4.bpf.o"));
}
