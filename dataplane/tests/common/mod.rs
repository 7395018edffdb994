//! A small laboratory for real traffic: two hosts, a wire between them, and socktap on the wire.
//!
//! ```text
//!   namespace …-c            namespace …-w                  namespace …-s
//!  ┌──────────────┐   veth  ┌──────────────────────┐  veth  ┌──────────────┐
//!  │ eth0         │─────────│ port1  socktap  port2│────────│ eth0         │
//!  │ 10.77.0.1/24 │         │                      │        │ 10.77.0.2/24 │
//!  │ fd77::1/64   │         │                      │        │ fd77::2/64   │
//!  └──────────────┘         └──────────────────────┘        └──────────────┘
//! ```
//! Nothing connects the two veth pairs but socktap: what arrives on the other side has crossed it, ARP and neighbour
//! discovery included. Nothing is made in the namespace of the caller. Everything is removed when a [`Lab`] is dropped,
//! also when a test panics; what a killed test run left behind is removed by the next one.
//!
//! Without the right to make namespaces a test says `skipped: needs root` and returns; with it, it runs, and a missing
//! program is a failure that names the package.

// Each test binary compiles this module for itself and uses its own part of it.
#![allow(dead_code, unused_imports)]

mod capture;
mod chatter;
mod host;
mod lab;
mod messages;
mod process;
mod programs;
mod random;
mod servers;

pub use capture::{CAPTURE_LIMIT, Capture, Captures, Segment, flag, option};
pub use chatter::{Report, chatter};
pub use host::{Host, connect_from, listen_in};
pub use lab::{
    CLIENT_V4, CLIENT_V6, Lab, LabOptions, ROUTED_SERVERS, SERVER_V4, SERVER_V6, SERVERS, WIRE_CLIENT, WIRE_SERVER,
};
pub use messages::{MESSAGE_PORT, conversation, message, pair, read_to_end, write_chunks, write_in_chunks};
pub use process::{Process, Socktap, now, wait_until};
pub use programs::compile;
pub use random::Random;
pub use servers::{Certificate, Iperf, Nginx, Postgres, Redis, Sshd, wait_for_port};

use std::time::Duration;

/// How long a step of a test may take before it counts as hung. Generous: a loaded machine must not fail a test.
pub const STEP_LIMIT: Duration = Duration::from_secs(60);

/// Tells that the test is left out, with the reason, or that it runs (false).
pub fn lacks_rights() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!(
            "skipped: needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF, to make network namespaces and attach XDP programs)"
        );
    }
    !root
}

/// Fails with the `apt-get` line if one of these programs is missing.
pub fn need(programs: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    for program in programs {
        // A name with a slash stays what it is when it is joined to a folder.
        let found = path.split(':').any(|folder| std::path::Path::new(folder).join(program).is_file());
        let package = match *program {
            "ip" => "iproute2",
            "redis-server" | "redis-cli" | "redis-benchmark" => "redis-server redis-tools",
            "ab" => "apache2-utils",
            "ping" => "iputils-ping",
            "arping" => "iputils-arping",
            "setpriv" => "util-linux",
            "timeout" => "coreutils",
            "/usr/sbin/sshd" => "openssh-server",
            "scp" | "ssh-keygen" => "openssh-client",
            "h2load" => "nghttp2-client",
            "psql" => "postgresql-client",
            other => other,
        };
        assert!(found, "{program} is missing; install it with: apt-get install -y {package}  (or run `make setup`)");
    }
}

/// Asserts that two byte strings are equal, without printing megabytes when they are not.
pub fn assert_same_bytes(what: &str, received: &[u8], expected: &[u8]) {
    if received == expected {
        return;
    }
    let at = received.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(received.len().min(expected.len()));
    let around = |bytes: &[u8]| bytes[at.min(bytes.len())..(at + 16).min(bytes.len())].to_vec();
    panic!(
        "{what}: {} bytes received, {} expected; the first difference is at byte {at}: received {:02x?}…, expected {:02x?}…",
        received.len(),
        expected.len(),
        around(received),
        around(expected)
    );
}
