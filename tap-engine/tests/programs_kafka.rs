//! `programs/kafka.bpf.c` on bytes.

mod programs;

use std::collections::BTreeMap;

use programs::{End, MALFORMED, TOO_LONG, becomes, filter, filter_with, is, splits_do_not_matter, verified};
use tap_engine::Verdict::{Disconnect, Drop, Pass};
use tap_engine::{Filter, Setting, shipped};

fn kafka() -> Filter {
    filter(shipped::KAFKA, "parse_request", Some("no_admin"))
}

fn kafka_with(name: &str, value: Setting) -> Filter {
    let set = BTreeMap::from([(name.to_owned(), value)]);
    filter_with(shipped::KAFKA, "parse_request", Some("no_admin"), set)
}

/// A request of kind `key`, with a client id and a body.
fn request(key: i16, body: &[u8]) -> Vec<u8> {
    let header = [&key.to_be_bytes()[..], &[0, 7], &[0, 0, 0, 1], b"\0\x04test"].concat();
    let length = (header.len() + body.len()) as u32;
    [&length.to_be_bytes()[..], &header, body].concat()
}

#[test]
fn the_kernel_takes_it() {
    verified("kafka.bpf.o", shipped::KAFKA);
}

#[test]
fn producers_and_consumers_pass_and_administrators_do_not() {
    let f = &mut kafka();
    // Produce, Fetch, ListOffsets, Metadata, groups, ApiVersions, CreateTopics, SASL, transactions.
    for key in [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 24, 26, 36, 60, 68, 92] {
        is(f, request(key, b"body"), Pass);
    }
    for key in [4, 5, 6, 7, 20, 21, 30, 31, 33, 34, 42, 44, 45, 47, 51, 57, 64, 93, 1000, i16::MAX, -1, i16::MIN] {
        is(f, request(key, b"body"), Disconnect);
    }
}

#[test]
fn requests_follow_one_another() {
    let stream = [request(18, b""), request(0, &[0; 3000]), request(20, b"topic"), request(3, b"")].concat();
    let (short, long) = (request(18, b"").len(), request(0, &[0; 3000]).len());
    let messages = [(short, Pass), (long, Pass), (short + 5, Disconnect), (short, Pass)];
    becomes(&mut kafka(), stream, &messages, End::Clean);
}

#[test]
fn lengths_that_cannot_be() {
    becomes(&mut kafka(), [0xff; 8], &[], End::Fails(TOO_LONG));
    becomes(&mut kafka(), b"\0\0\0\x07\0\0\0\0\0\0\0", &[], End::Fails(MALFORMED));
    becomes(&mut kafka(), b"\0\0\0", &[], End::Waits);
}

#[test]
fn settings() {
    let only_19 = || kafka_with("forbidden_keys", Setting::List(vec![Setting::Integer(19)]));
    is(&mut only_19(), request(19, b""), Disconnect);
    is(&mut only_19(), request(0, b""), Pass);
    is(&mut only_19(), request(20, b""), Pass);
    is(&mut kafka_with("allow_produce", Setting::Integer(0)), request(0, b""), Disconnect);
    is(&mut kafka_with("highest_key", Setting::Integer(200)), request(150, b""), Pass);
    is(&mut kafka_with("forbidden_verdict", Setting::Integer(0)), request(20, b""), Drop);
}

#[test]
fn splits_do_not_matter_to_it() {
    static PIECES: [&[u8]; 4] = [
        b"\0\0\0\x0a\0\x12\0\0\0\0\0\x01\0\0",
        b"\0\0\0\x08\0\x14\0\0\0\0\0\x02",
        b"\0\0\0\x0c\0\0\0\0\0\0\0\x03abcd",
        b"\0\0\0\x02xx",
    ];
    splits_do_not_matter(kafka(), &PIECES);
}
