//! The dataplane: joins steering, TCP termination and verdicts.
//!
//! A frame walks through the modules in this order, and data never goes back:
//!
//! ```text
//!  io ──▶ steer ──▶ flow_table ──▶ flow (tcp, near side) ──▶ pump (parser → verdict)
//!                                                                 │
//!  io ◀── worker.poll_transmit ◀── flow (tcp, far side) ◀─────────┘
//!                     │
//!                   timers
//! ```
//!
//! Everything but [`io`], [`run`], [`reload`], [`control`], [`records`], [`metrics`], [`events`] and [`cli`] is sans-IO: no clock, no randomness, no system
//! call. `now` and seeds are arguments, so a whole run can be repeated to the bit in the simulator (`sim/`).
//!
//! Invariants of the core:
//! - What a receiver reads is exactly the concatenation of the passed messages (`pump`), also while programs change (`programs`).
//! - A flow is in the table exactly as long as one of its sides, its TIME-WAIT or a reset that is owed needs it.
//! - Work per frame and per timer does not depend on the number of flows.
//! - One flow's failure ends that flow only.
#![forbid(unsafe_code)]

pub mod cli;
pub mod control;
pub mod counters;
pub mod events;
pub mod flow;
pub mod flow_event;
pub mod flow_table;
pub mod io;
pub mod load;
pub mod metrics;
pub mod opening;
pub mod programs;
pub mod pump;
pub mod records;
pub mod reload;
pub mod run;
pub mod samples;
pub mod steer;
pub mod timers;
pub mod worker;

pub use steer::Side;
pub use worker::{Fate, Output, Worker, WorkerConfig};
