//! What goes over the wire, as transcripts with a scripted peer: by the state of the connection (RFC 9293 §3.10.7.4), and by what
//! it is about.

#[path = "../common/mod.rs"]
mod common;
mod play;

mod ack;
mod buffers;
mod close_wait;
mod closing;
mod established;
mod fin_wait;
mod frames;
mod keep_alive;
mod last_ack;
mod path;
mod recovery;
mod reset;
mod sack;
mod sending;
mod time_wait;
mod timeout;
mod timestamps;
mod window;
