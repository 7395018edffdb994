//! What goes over the wire, as transcripts with a scripted peer: by the state of the connection (RFC 9293 §3.10.7.4), and by what
//! it is about.

#[path = "../common/mod.rs"]
mod common;
mod play;

mod established;
