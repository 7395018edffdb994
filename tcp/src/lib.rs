//! One terminated TCP connection over smoltcp, sans-IO: frames in, frames out, bytes in between.
//!
//! ```text
//!                    ┌──────────────────────── Connection (one side of a flow) ────────────────────────┐
//!  frame, Headers ─▶ │ sequence: RFC 5961 checks, trim, translate ─▶ smoltcp socket ─▶ receive queue   │ ─▶ peek, consume
//!  (wire::parse)     │                                                     │                           │
//!  FrameSink      ◀─ │ checksums ◀─ sequence: translate, SND.NXT, window ◀─┴──────── send queue        │ ◀─ send, splice
//!                    └──────────────────────────────────────────────────────────────────────────────────┘
//!                      Stack: what the connections of one worker and port share (a smoltcp interface)
//! ```
//!
//! - No clock, no randomness, no system call: `now`, seeds and initial sequence numbers are arguments.
//! - A call costs the same however many connections there are, and allocates nothing but when a connection opens.
//! - What enters smoltcp is acceptable to RFC 9293 and within what smoltcp can count: no segment of a peer can make it panic.
//!   What does not enter is answered as RFC 9293 and RFC 5961 ask for.
//! - Numbers of the public API are those on the wire. smoltcp's own differ by an offset that is fixed when the SYN leaves.

#![forbid(unsafe_code)]

mod connection;
mod sequence;
mod stack;
pub mod wire;

pub use connection::{Connection, OpenError, Options, State, splice};
pub use sequence::CHALLENGE_ACKS_PER_SECOND;
pub use stack::{Counters, FrameSink, MIN_MTU, Stack};

/// Points in time and spans, as all of the project counts them: microseconds since an arbitrary moment.
pub mod time {
    pub use smoltcp::time::{Duration, Instant};
}
