//! `programs/len4.bpf.c` on bytes.

mod programs;

use programs::{End, TOO_LONG, becomes, filter, is, splits_do_not_matter, verified};
use tap_engine::Verdict::{Disconnect, Drop, Pass};
use tap_engine::{Filter, shipped};

fn len4() -> Filter {
    filter(shipped::LEN4, "parse_len4", Some("by_first_byte"))
}

#[test]
fn the_kernel_takes_it() {
    verified("len4.bpf.o", shipped::LEN4);
}

#[test]
fn the_first_byte_of_the_payload_decides() {
    let f = &mut len4();
    is(f, b"\0\0\0\x05hello", Pass);
    is(f, b"\0\0\0\x04Drop", Drop);
    is(f, b"\0\0\0\x01X", Disconnect);
    is(f, b"\0\0\0\0", Pass);
    is(f, b"\0\0\0\x02-D", Pass);
}

#[test]
fn lengths_follow_one_another() {
    let f = &mut len4();
    becomes(f, b"\0\0\0\x01D\0\0\0\0\0\0\0\x02ab", &[(5, Drop), (4, Pass), (6, Pass)], End::Clean);
    let long = [&300_u32.to_be_bytes()[..], &[b'a'; 300], b"\0\0"].concat();
    becomes(f, long, &[(304, Pass)], End::Waits);
}

/// The first payload byte of an empty message is the next message's length: not its own.
#[test]
fn an_empty_payload_is_not_judged_by_the_next_message() {
    becomes(&mut len4(), b"\0\0\0\0D", &[(4, Pass)], End::Waits);
}

#[test]
fn a_length_that_no_int_holds_is_refused() {
    let f = &mut len4();
    for length in [u32::MAX, 0x8000_0000, 0x7fff_fffc] {
        becomes(f, length.to_be_bytes(), &[], End::Fails(TOO_LONG));
    }
}

#[test]
fn splits_do_not_matter_to_it() {
    splits_do_not_matter(
        len4(),
        &[b"\0\0\0\0", b"\0\0\0\x03Dab", b"\0\0\0\x09Xxxxxxxxx", b"\0\0\0\x02ok", b"\xff\xff"],
    );
}
