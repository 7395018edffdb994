//! Everything that touches the kernel's packet path: the XDP program that steers frames, and the AF_XDP sockets
//! that receive and send them.
//!
//! ```text
//!            port client                                                        port server
//!            ┌──────────┐ selected   ┌──────────────────────────┐  selected ┌──────────┐
//!  wire ────▶│ steer    │───────────▶│ Socket (one per rx queue)│◀──────────│ steer    │◀──── wire
//!            │ _client  │            │ rx → Frame → tx          │           │ _server  │
//!            └────┬─────┘            └──────────────────────────┘           └────┬─────┘
//!                 └──────────── not selected: devmap, or the worker ─────────────┘
//!                               (ICMP errors about TCP: the worker)
//! ```
//!
//! The order of use: [`Port::open`] for both ports, [`Umem::new`], [`Steering::attach`], [`Socket::bind`] for each rx
//! queue of each port, [`Steering::register`] for each socket; then frames go round:
//! pool → [`Socket::fill`] → kernel → [`Socket::receive`] → [`Socket::send`] → kernel → [`Socket::complete`] → pool.
//!
//! # Invariants
//! - A [`Frame`] has exactly one owner: it is neither `Clone` nor `Copy`, and the methods that hand it to the kernel
//!   take it by value. In debug builds each hand-over is checked against a table of owners.
//! - Dropping values in any order is sound: frames and sockets keep the memory alive.
//! - A frame that is dropped is not lost: it is counted, and [`Umem::reclaim`] gives it back.
//! - The XDP program hangs on bpf_links: when the process ends, however it ends, nothing stays attached.
//! - What a tap selects and no socket takes is dropped and counted, never passed on unjudged.
//!
//! All values must be made, and all calls but those on [`Frame`] and [`Socket`] be done, in the network namespace of
//! the ports.
//!
//! This crate uses `unsafe` for the rings and for a few ioctls and socket options; each block says why it is sound.

mod counters;
mod port;
mod prefixes;
mod program;
mod socket;
mod sys;
mod umem;

pub use counters::COUNTERS;
pub use port::{MAX_MTU, Port, PortError};
pub use prefixes::{MAX_PREFIXES, MAX_RULES, Rule};
pub use program::{Attached, Cross, Decision, Fragments, MAX_QUEUES, Steering, SteeringError, XdpMode};
pub use socket::{BindError, Socket, SocketConfig, Statistics};
pub use umem::{Census, FRAME_HEADROOM, Frame, RING_SIZE, Umem, UmemError};

/// One of the two ports of the pair: the one towards the clients, or the one towards the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The port towards the clients.
    Client,
    /// The port towards the servers.
    Server,
}

impl Side {
    /// Both sides, in the order of their indices.
    pub const ALL: [Side; 2] = [Side::Client, Side::Server];

    /// 0 for the client side, 1 for the server side: the numbers of `bpf/steer.bpf.c` and of [`Steering::counters`].
    pub const fn index(self) -> usize {
        match self {
            Side::Client => 0,
            Side::Server => 1,
        }
    }

    /// The other side.
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}
