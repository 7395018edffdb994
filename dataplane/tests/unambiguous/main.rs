//! socktap is unambiguous: whatever segments a client sends, the server reads exactly the messages that the verdict has
//! passed, in order, nothing else, nothing twice.
//!
//! A filter that watches a connection and the host that terminates it can be made to see different bytes: this is how
//! intrusion detection is evaded since Ptacek and Newsham described it in 1998. socktap terminates both sides itself, so
//! there is nothing to disagree about. Here this is tested with segments byte by byte, in virtual time:
//!
//! - [`generated`]: sequences that proptest invents, judged by an oracle of its own ([`explain`]);
//! - [`ptacek_newsham`], [`geneva`], [`intang`], [`symtcp`]: the attacks that are known from the literature;
//! - [`changes`]: programs that change while a stream is under way;
//! - [`crossing`]: what is no segment of a tapped flow, and crosses;
//! - [`midstream`]: connections that were open before, where they pass;
//! - [`window`]: what the tap sends keeps to the window.
//!
//! A test that is ignored shows a known fault, which its attribute names.
#![forbid(unsafe_code)]

mod changes;
mod crossing;
mod explain;
mod generated;
mod geneva;
mod host;
mod intang;
mod lab;
mod midstream;
mod ptacek_newsham;
mod receiver;
mod symtcp;
mod window;
mod wire;
