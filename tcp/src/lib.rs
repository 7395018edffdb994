//! One terminated TCP connection, sans-IO: frames in, frames out, bytes in between.
//!
//! ```text
//!                    ┌─────────────────────── Connection (one side of a flow) ───────────────────────┐
//!  frame, Headers ─▶ │ sequence: RFC 9293 and 5961 checks, trim ─▶ receiver (smoltcp puts in order)  │ ─▶ peek, consume
//!  (wire::parse)     │              │ ACK, SACK                        │ ACK, window, SACK            │
//!  FrameSink      ◀─ │              └──▶ sender ◀─────────────────────────┘                          │ ◀─ send, splice
//!                    │                   scoreboard (RACK), congestion (CUBIC), rtt                  │
//!                    └────────────────────────────────────────────────────────────────────────────────┘
//!                      Stack: what the connections of one worker and port share (a smoltcp interface)
//! ```
//!
//! - The two hosts of a flow make their handshake through us ([`handshake::relay`]); then a [`Connection`] takes the place of
//!   each, and goes on with its numbers, options and clock. So both legs carry the same sequence numbers.
//! - No clock, no randomness, no system call: `now` and seeds are arguments.
//! - A call costs the same however many connections there are, and allocates nothing but when a queue grows.
//! - What enters smoltcp is within its window and within what it can count: no segment of a peer can make it panic. What does
//!   not enter is answered as RFC 9293 and RFC 5961 ask for.

#![forbid(unsafe_code)]

mod congestion;
mod connection;
pub mod handshake;
mod receiver;
mod remains;
mod rtt;
mod scoreboard;
mod sender;
mod sequence;
mod stack;
mod timestamps;
pub mod wire;

pub use connection::{Connection, Handshake, OpenError, Options, State, is_possible, splice};
pub use remains::Remains;
pub use sequence::CHALLENGE_ACKS_PER_SECOND;
pub use stack::{Counters, FrameSink, GROWTH_LIMIT, MIN_MTU, Stack};

/// Points in time and spans, as all of the project counts them: microseconds since an arbitrary moment.
pub mod time {
    pub use smoltcp::time::{Duration, Instant};
}
