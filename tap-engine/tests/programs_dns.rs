//! `programs/dns.bpf.c` on bytes.

mod programs;

use std::collections::BTreeMap;

use programs::{End, MALFORMED, becomes, filter, filter_with, is, splits_do_not_matter, verified};
use tap_engine::Verdict::{Disconnect, Drop, Pass};
use tap_engine::{Filter, Setting, shipped};

fn dns() -> Filter {
    filter(shipped::DNS, "parse_dns", Some("no_transfer"))
}

fn dns_with(name: &str, value: Setting) -> Filter {
    let set = BTreeMap::from([(name.to_owned(), value)]);
    filter_with(shipped::DNS, "parse_dns", Some("no_transfer"), set)
}

/// The longest label.
const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A message with its length before it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// A query with these flags and questions; `rest` follows.
fn message(flags: u16, questions: u16, rest: &[u8]) -> Vec<u8> {
    let header = [0x1234, flags, questions, 0, 0, 0];
    let header: Vec<u8> = header.iter().flat_map(|word: &u16| word.to_be_bytes()).collect();
    framed(&[&header, rest].concat())
}

fn question(name: &[&str], kind: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes.extend([kind.to_be_bytes(), [0, 1]].concat());
    bytes
}

fn query(kind: u16) -> Vec<u8> {
    message(0x0100, 1, &question(&["www", "example", "com"], kind))
}

#[test]
fn the_kernel_takes_it() {
    verified("dns.bpf.o", shipped::DNS);
}

#[test]
fn questions_pass_but_for_transfers_and_any() {
    let f = &mut dns();
    for kind in [1, 2, 6, 12, 15, 16, 28, 33, 65, 256, 250] {
        is(f, query(kind), Pass);
    }
    for kind in [251, 252, 253, 254, 255] {
        is(f, query(kind), Disconnect);
    }
    is(f, message(0x0100, 1, &question(&[], 2)), Pass);
    is(f, message(0x0100, 1, &question(&[A; 3], 1)), Pass);
    // With EDNS behind.
    is(f, message(0x0100, 1, &[&question(&["a"], 1)[..], b"\0\0\x29\x10\0\0\0\0\0\0\0"].concat()), Pass);
}

#[test]
fn what_servers_could_read_differently_is_forbidden() {
    let f = &mut dns();
    let plain = question(&["a"], 1);
    let cases = [
        ("an answer", message(0x8180, 1, &plain)),
        ("a notification", message(4 << 11, 1, &plain)),
        ("an update", message(5 << 11, 1, &plain)),
        ("another operation", message(2 << 11, 1, &plain)),
        ("no question", message(0x0100, 0, &[])),
        ("two questions", message(0x0100, 2, &[&plain[..], &question(&["a"], 252)].concat())),
        ("256 questions", message(0x0100, 256, &plain)),
        ("a compressed name", message(0x0100, 1, b"\xc0\x0c\0\x01\0\x01")),
        ("a pointer behind a label", message(0x0100, 1, b"\x01a\xc0\x0c\0\xfc\0\x01")),
        ("a name that does not end", message(0x0100, 1, b"\x05ab")),
        ("no type", message(0x0100, 1, b"\x01a\0\0")),
        ("a name of more than 255 bytes", message(0x0100, 1, &question(&[A; 5], 1))),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        is(f, bytes, Disconnect);
    }
}

#[test]
fn a_header_is_the_least() {
    becomes(&mut dns(), b"\0\x0b12345678901", &[], End::Fails(MALFORMED));
    becomes(&mut dns(), b"\0", &[], End::Waits);
    becomes(&mut dns(), &query(1)[..20], &[], End::Waits);
}

#[test]
fn settings() {
    is(&mut dns_with("allow_update", Setting::Integer(1)), message(5 << 11, 1, &question(&["a"], 6)), Pass);
    is(&mut dns_with("allow_notify", Setting::Boolean(true)), message(4 << 11, 1, &question(&["a"], 6)), Pass);
    is(&mut dns_with("forbidden_verdict", Setting::Integer(0)), query(252), Drop);
    let only_txt = || dns_with("forbidden_types", Setting::List(vec![Setting::Integer(16)]));
    is(&mut only_txt(), query(16), Disconnect);
    is(&mut only_txt(), query(252), Pass);
}

#[test]
fn splits_do_not_matter_to_it() {
    static PIECES: [&[u8]; 5] = [
        b"\0\x13\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01",
        b"\0\x13\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\xfc\0\x01",
        b"\0\x11\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\xfc\0",
        b"\0\x0c\x12\x34\x81\0\0\0\0\0\0\0\0\0",
        b"\0\x01",
    ];
    splits_do_not_matter(dns(), &PIECES);
}
