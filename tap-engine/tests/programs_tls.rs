//! `programs/tls.bpf.c` on bytes.

mod programs;

use std::collections::BTreeMap;

use programs::{End, MALFORMED, TOO_LONG, becomes, filter, filter_with, is, splits_do_not_matter, verified};
use tap_engine::Verdict::{Disconnect, Drop, Pass};
use tap_engine::{Filter, Setting, shipped};

fn tls() -> Filter {
    filter(shipped::TLS, "parse_record", Some("by_name"))
}

fn tls_with(settings: &[(&str, Setting)]) -> Filter {
    let set: BTreeMap<String, Setting> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    filter_with(shipped::TLS, "parse_record", Some("by_name"), set)
}

fn names(names: &[&str]) -> (&'static str, Setting) {
    ("names", Setting::List(names.iter().map(|name| Setting::Text((*name).to_owned())).collect()))
}

/// `bytes` behind their length, of two bytes.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &counted(data)].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(0, &counted(&[&[0], &counted(name.as_bytes())[..]].concat()))
}

fn alpn(protocols: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
    extension(16, &counted(&list))
}

fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], &counted(fragment)[..]].concat()
}

fn hello_message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &[32], &[9; 32]].concat();
    body.extend(counted(&[0x13, 0x01, 0x13, 0x02]));
    body.extend([1, 0]);
    if !extensions.is_empty() {
        body.extend(counted(&extensions.concat()));
    }
    [&[1, 0], &counted(&body)[..]].concat()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(22, &hello_message(extensions))
}

#[test]
fn the_kernel_takes_it() {
    verified("tls.bpf.o", shipped::TLS);
}

#[test]
fn the_name_decides() {
    let f = &mut tls();
    for name in ["www.example.com", "internal", "x.internal.example", "xinternal", "a"] {
        is(f, hello(&[sni(name)]), Pass);
    }
    for name in ["db.internal", "a.b.internal", "DB.INTERNAL", "x.Internal"] {
        is(f, hello(&[extension(43, &[2, 3, 4]), sni(name), extension(51, &[0; 40])]), Disconnect);
    }
}

#[test]
fn behind_a_greeting_all_records_pass() {
    let greeting = hello(&[sni("www.example.com")]);
    let (data, again) = (record(23, &[0xff; 300]), hello(&[sni("db.internal")]));
    let stream = [&greeting[..], &data, &record(22, &[1, 2, 3]), &again].concat();
    let messages = [(greeting.len(), Pass), (data.len(), Pass), (8, Pass), (again.len(), Pass)];
    becomes(&mut tls(), stream, &messages, End::Clean);
    // But without one none does.
    let f = &mut tls();
    for first in [record(23, b"data"), record(22, &[2; 40]), record(21, &[1, 0]), record(22, &[])] {
        is(f, first, Disconnect);
    }
}

#[test]
fn names_that_are_missing_hidden_or_strange() {
    let f = &mut tls();
    let good = sni("www.example.com");
    let whole = hello_message(std::slice::from_ref(&good));
    let cases = [
        ("no extensions", hello(&[])),
        ("no name", hello(&[extension(43, &[2, 3, 4])])),
        ("an encrypted name", hello(&[good.clone(), extension(0xfe0d, &[0; 50])])),
        ("two names", hello(&[good.clone(), good.clone()])),
        ("a list of two names", hello(&[extension(0, &counted(&[&[0, 0, 1, b'a'][..], &[0, 0, 1, b'b']].concat()))])),
        ("another type of name", hello(&[extension(0, &counted(&[1, 0, 1, b'a']))])),
        ("an empty name", hello(&[sni("")])),
        ("an extension beyond the end", hello(&[[&[0, 0, 0xff, 0xff][..], b"abc"].concat()])),
        ("a greeting in two records", record(22, &whole[..40])),
        ("a greeting of a byte", record(22, &[1])),
        ("a second message in the record", record(22, &[&whole[..], &[1, 0, 0, 0]].concat())),
        ("more extensions than anybody has", hello(&vec![extension(21, &[]); 70])),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        is(f, bytes, Disconnect);
    }
    is(&mut tls_with(&[("allow_no_name", Setting::Integer(1))]), hello(&[]), Pass);
    let hidden = hello(&[good, extension(0xfe0d, &[0; 50])]);
    is(&mut tls_with(&[("allow_encrypted_name", Setting::Integer(1))]), hidden, Pass);
}

#[test]
fn a_list_of_what_is_allowed() {
    let f = &mut tls_with(&[names(&["example.com", ".example.org"]), ("names_are_allowed", Setting::Integer(1))]);
    for (name, verdict) in [
        ("example.com", Pass),
        ("EXAMPLE.com", Pass),
        ("www.example.com", Disconnect),
        ("example.org", Disconnect),
        ("www.example.org", Pass),
        ("a.b.example.org", Pass),
        ("wwwexample.org", Disconnect),
        ("db.internal", Disconnect),
    ] {
        is(f, hello(&[sni(name)]), verdict);
    }
    let dropped = [names(&["a"]), ("forbidden_verdict", Setting::Integer(0))];
    is(&mut tls_with(&dropped), hello(&[sni("a")]), Drop);
}

#[test]
fn protocols() {
    let f = &mut tls_with(&[("forbidden_protocol", Setting::Text("h2".into()))]);
    let with = |protocols: &[&str]| hello(&[sni("a"), alpn(protocols)]);
    is(f, with(&["http/1.1"]), Pass);
    is(f, with(&["h3", "h", "h2c"]), Pass);
    is(f, with(&["http/1.1", "h2"]), Disconnect);
    is(f, with(&["h2"]), Disconnect);
    is(f, hello(&[sni("a"), extension(16, &[0, 5, 9, b'h', b'2'])]), Disconnect);
    is(f, with(&["x"; 20]), Disconnect);
}

#[test]
fn what_is_no_record_ends() {
    let f = &mut tls();
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x02\x01\0\0", b"\x80\x2e\x01\x03\x01", b"\x19\x03\x03\0\0"] {
        becomes(f, bytes, &[], End::Fails(MALFORMED));
    }
    becomes(f, b"\x17\x03\x03\xff\xff", &[], End::Fails(TOO_LONG));
}

#[test]
fn splits_do_not_matter_to_it() {
    let pieces: Vec<&'static [u8]> = [
        hello(&[sni("a")]),
        hello(&[sni("b.internal")]),
        hello(&[]),
        record(23, b"some data"),
        record(20, &[1]),
        b"\x16\x03".to_vec(),
    ]
    .into_iter()
    .map(|piece| &*piece.leak())
    .collect();
    splits_do_not_matter(tls(), pieces.leak());
}
