//! `programs/lines.bpf.c` on bytes.

mod programs;

use programs::{End, TOO_LONG, becomes, filter, is, rebuilt, splits_do_not_matter, verified};
use tap_engine::Verdict::{Drop, Pass};
use tap_engine::{Filter, shipped};

/// LINE_MAX
const LONGEST: usize = 16384;

fn lines() -> Filter {
    filter(shipped::LINES, "parse_line", Some("no_word"))
}

fn with_word(word: &str, ignore_case: &str) -> Vec<u8> {
    let word = format!("= \"{word}\"");
    let case = format!("ignore_case = {ignore_case}");
    rebuilt("lines", &[("= \"secret\"", &word), ("ignore_case = 1", &case)])
}

#[test]
fn the_kernel_takes_it_with_any_word() {
    verified("lines.bpf.o", shipped::LINES);
    verified("longest word", &with_word("a-word-of-16-let", "1"));
    verified("empty word", &with_word("", "1"));
}

#[test]
fn lines_are_cut_at_newlines() {
    let f = &mut lines();
    becomes(f, b"one\ntwo\r\n\n\nfi", &[(4, Pass), (5, Pass), (1, Pass), (1, Pass)], End::Waits);
    is(f, b"\0\xff binary\n", Pass);
}

#[test]
fn the_word_is_found_wherever_it_stands() {
    let f = &mut lines();
    for before in 0..80 {
        for after in [0, 1, 7, 8, 31, 32, 33, 64] {
            let line = [&vec![b'.'; before][..], b"secret", &vec![b's'; after], b"\n"].concat();
            is(f, &line, Drop);
            let near = [&vec![b's'; before][..], b"secre", &vec![b'.'; after], b"\n"].concat();
            is(f, &near, Pass);
        }
    }
    is(f, b"sesecret\n", Drop);
    is(f, b"SeCrEt\n", Drop);
    is(f, b"secre\n", Pass);
    // Case folding is for letters: '3' | 0x20 is '3', but '\x13' | 0x20 would be too.
    is(f, b"secr%t secr\x05t s\x05cret\n", Pass);
    // No word across lines.
    becomes(f, b"sec\nret\n", &[(4, Pass), (4, Pass)], End::Clean);
}

#[test]
fn long_lines() {
    let f = &mut lines();
    let line = |length: usize| [&vec![b'x'; length - 1][..], b"\n"].concat();
    is(f, line(LONGEST), Pass);
    becomes(f, line(LONGEST + 1), &[], End::Fails(TOO_LONG));
    becomes(f, vec![b'x'; LONGEST - 1], &[], End::Waits);
    becomes(f, vec![b'x'; LONGEST], &[], End::Fails(TOO_LONG));
    is(f, [&vec![b'x'; LONGEST - 7][..], b"secret\n"].concat(), Drop);
}

#[test]
fn another_word() {
    let f = &mut filter(&with_word("a-word-of-16-let", "1"), "parse_line", Some("no_word"));
    is(f, b"with A-WORD-of-16-let in it\n", Drop);
    is(f, b"with a-word-of-16-le in it\n", Pass);
    // '-' is no letter: '\r' | 0x20 is '-'.
    is(f, b"with a\rword\rof\r16\rlet in it\n", Pass);
    let f = &mut filter(&with_word("x", "0"), "parse_line", Some("no_word"));
    is(f, b"x\n", Drop);
    is(f, b"X\n", Pass);
    let f = &mut filter(&with_word("", "1"), "parse_line", Some("no_word"));
    is(f, b"secret\n", Pass);
}

#[test]
fn splits_do_not_matter_to_it() {
    splits_do_not_matter(
        lines(),
        &[b"\n", b"GET\r\n", b"a secret\n", b"no newline yet, and for a while there is none"],
    );
}
