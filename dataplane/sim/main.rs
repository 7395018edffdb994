//! A simulated network in virtual time, with socktap in its middle and an oracle at its ends.
//!
//! ```text
//!   client host ──link──▶ ┌──────────────┐ ──link──▶ server host
//!   (smoltcp,             │ Workers      │           (smoltcp,
//!    applications)        │ (or a Wire)  │            applications)
//!               ◀──link── └──────────────┘ ◀──link──
//! ```
//! A seed is drawn out into a [`scenario`]; [`network`] runs it, event by event; [`oracle`] judges what the applications
//! have read and how their connections ended. All chance comes from the seed, all time from the queue of events, so a
//! seed repeats to the bit. [`swarm`] holds the tests. The wire in place of socktap is the control: it proves that hosts,
//! links and oracle are right by themselves. [`grid`] measures how much of a link a transfer gets.
#![forbid(unsafe_code)]

mod chain;
mod frames;
mod grid;
mod host;
mod link;
mod mend;
mod middle;
mod mirror;
mod network;
mod oracle;
mod random;
mod scenario;
mod sink;
mod swarm;
mod workers;
