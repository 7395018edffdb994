//! `programs/redis.bpf.c` on bytes: what Redis would do, or stricter, never looser.

mod programs;

use programs::{End, MALFORMED, TOO_LONG, becomes, cut, filter, is, rebuilt, refused, splits_do_not_matter, verified};
use tap_engine::Verdict::{self, Disconnect, Drop, Pass};
use tap_engine::{Filter, shipped};

fn redis() -> Filter {
    filter(shipped::REDIS, "parse_command", Some("no_flush"))
}

/// A command as clients send it.
fn array<T: AsRef<[u8]>>(words: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.as_ref().len()).into_bytes());
        bytes.extend(word.as_ref());
        bytes.extend(b"\r\n");
    }
    bytes
}

fn words(line: &str) -> Vec<u8> {
    array(&line.split(' ').collect::<Vec<_>>())
}

/// As an array and as a line.
#[track_caller]
fn both(f: &mut Filter, line: &str, verdict: Verdict) {
    is(f, words(line), verdict);
    is(f, format!("{line}\r\n"), verdict);
    is(f, format!("{line}\n"), verdict);
}

#[test]
fn the_kernel_takes_it() {
    verified("redis.bpf.o", shipped::REDIS);
}

#[test]
fn commands_pass_and_forbidden_ones_do_not() {
    let f = &mut redis();
    for line in ["PING", "GET key", "SET key value EX 10", "get key", "FLUSHALLX", "FLUSHAL", "XFLUSHALL", "CONFIGS"] {
        both(f, line, Pass);
    }
    for line in ["FLUSHALL", "FLUSHALL ASYNC", "flushall", "fLuShDb SYNC", "FLUSHDB"] {
        both(f, line, Drop);
    }
    for line in ["SHUTDOWN", "shutdown NOSAVE", "CONFIG GET *", "config set dir /"] {
        both(f, line, Disconnect);
    }
}

#[test]
fn names_in_arguments_are_data() {
    let f = &mut redis();
    for line in ["SET FLUSHALL FLUSHALL", "ECHO SHUTDOWN", "GET CONFIG"] {
        both(f, line, Pass);
    }
    is(f, array(&["SET", "key", "x\r\n*1\r\n$8\r\nFLUSHALL\r\n"]), Pass);
}

#[test]
fn a_pipeline_is_cut_into_its_commands() {
    let stream =
        [words("SET a 1"), words("FLUSHALL"), b"PING\r\n".to_vec(), words("SHUTDOWN"), words("GET a")].concat();
    let messages = [(27, Pass), (18, Drop), (6, Pass), (18, Disconnect), (20, Pass)];
    becomes(&mut redis(), stream, &messages, End::Clean);
}

#[test]
fn a_transaction_does_not_hide_a_command() {
    let stream = [words("MULTI"), words("FLUSHALL"), words("EXEC")].concat();
    becomes(&mut redis(), stream, &[(15, Pass), (18, Drop), (14, Pass)], End::Clean);
}

/// Redis ignores empty lines.
#[test]
fn empty_lines_hide_nothing() {
    let f = &mut redis();
    becomes(f, b"\r\nFLUSHALL\r\n", &[(2, Pass), (10, Drop)], End::Clean);
    becomes(f, b"\n\n\r\n*1\r\n$8\r\nFLUSHALL\r\n", &[(1, Pass), (1, Pass), (2, Pass), (18, Drop)], End::Clean);
}

/// sdssplitargs() skips blanks and understands quotes and escapes.
#[test]
fn lines_that_redis_reads_in_its_own_way_are_refused() {
    let f = &mut redis();
    for line in [
        "\"FLUSHALL\"",
        "'FLUSHALL'",
        "FLUSH\"ALL\"",
        "\"\\x46LUSHALL\"",
        "'flush'all",
        " FLUSHALL",
        "\tFLUSHALL",
        "FLUSHALL\tASYNC",
        "FLUSHALL\x0b",
        "FLUSHALL\rGET",
        "\rFLUSHALL",
        "\x0bFLUSHALL",
        "FLUSHALL\0",
        "\0FLUSHALL",
        "GET a\0",
        "$8",
        "+PING",
        "-1",
        "\u{e9}",
        "A/B",
    ] {
        refused(f, format!("{line}\r\n"));
    }
    // Quotes and blanks behind the first word concern Redis alone.
    is(f, b"SET key \"a b\"\r\n", Pass);
    is(f, b"SET  key  v \r\n", Pass);
    is(f, b"SET key \xff\xc3\r\n", Pass);
    is(f, b"FLUSHALL  \"x\r\n", Drop);
}

/// string2ll() takes none of these either, but `*0`, `*-1` and a CR with another byte than LF.
#[test]
fn lengths_are_bare_digits() {
    let f = &mut redis();
    for length in ["", "0", "-1", "+1", "01", " 1", "1 ", "1x", "0x1", "99999999", "1\u{660}"] {
        refused(f, format!("*{length}\r\n$8\r\nFLUSHALL\r\n"));
    }
    for length in ["", "-1", "+8", "08", " 8", "8 ", "8x", "00", "18446744073709551624", "4294967304", "99999999"] {
        refused(f, format!("*1\r\n${length}\r\nFLUSHALL\r\n"));
        refused(f, format!("*2\r\n$3\r\nGET\r\n${length}\r\nFLUSHALL\r\n"));
    }
    for text in
        ["*1\n$8\r\nFLUSHALL\r\n", "*1\rX$8\r\nFLUSHALL\r\n", "*1\r\n$8\nFLUSHALL\r\n", "*1\r\n$8\r\rFLUSHALL\r\n"]
    {
        refused(f, text);
    }
    for text in ["*1\r\n:8\r\n", "*1\r\n*1\r\n$8\r\nFLUSHALL\r\n", "*1\r\n\r\n$8\r\n", "*2\r\n$3\r\nGETxx$1\r\na\r\n"] {
        refused(f, text);
    }
    is(f, b"*1\r\n$0\r\n\r\n", Pass);
    is(f, b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", Pass);
}

/// Redis skips the last payload's CRLF unseen, and so executes this.
#[test]
fn a_last_payload_without_its_crlf() {
    is(&mut redis(), b"*1\r\n$8\r\nFLUSHALLxx", Disconnect);
    is(&mut redis(), b"*1\r\n$4\r\nPINGxx", Disconnect);
}

#[test]
fn a_length_is_known_before_its_payload_is_there() {
    let f = &mut redis();
    becomes(f, b"*2\r\n$3\r\nGET\r\n$5\r\nab", &[], End::Waits);
    becomes(f, b"*2\r\n$3\r\nGET\r\n", &[], End::Waits);
    let value = vec![b'v'; 300_000];
    is(f, array(&[b"SET".as_slice(), b"key", &value]), Pass);
    // What lies behind 64 KiB cannot be read.
    becomes(f, array(&[b"SET".as_slice(), b"key", &value, b"KEEPTTL"]), &[], End::Fails(TOO_LONG));
    is(f, array(&[b"SET".as_slice(), b"key", &value[..65000], b"KEEPTTL"]), Pass);
}

#[test]
fn many_elements() {
    let f = &mut redis();
    let many = |n: usize| array(&vec!["k"; n]);
    for n in [1, 2, 3, 9, 10, 11, 99, 100, 1023, 1024] {
        is(f, many(n), Pass);
    }
    becomes(f, many(1025), &[], End::Fails(TOO_LONG));
    // Every length of a number, at every distance from the end of what is there.
    for digits in 1..=5 {
        let word = vec![b'w'; 10_usize.pow(digits - 1)];
        let stream = [array(&[b"MSET".as_slice(), &word, b"", &word]), words("FLUSHDB"), words("PING")].concat();
        let (messages, end) = cut(f, &stream, []);
        assert_eq!(messages[1..], [(17, Drop), (14, Pass)]);
        becomes(f, stream, &messages, end);
    }
}

#[test]
fn long_lines() {
    let f = &mut redis();
    let line = |length: usize| [b"ECHO ", &vec![b'x'; length - 7][..], b"\r\n"].concat();
    is(f, line(8192), Pass);
    becomes(f, vec![b'x'; 8192], &[], End::Fails(TOO_LONG));
    is(f, [&[b'n'; 31][..], b"\n"].concat(), Pass);
    refused(f, [&[b'n'; 32][..], b"\n"].concat());
}

#[test]
fn scripts_and_the_other_ways_to_empty_it() {
    let f = &mut redis();
    let scripts = [
        "EVAL return 0",
        "eval_ro x 0",
        "EVALSHA abc 0",
        "EVALSHA_RO abc 0",
        "FCALL f 0",
        "FCALL_RO f 0",
        "FUNCTION LOAD x",
        "SCRIPT LOAD x",
    ];
    let admin = [
        "DEBUG RELOAD",
        "MODULE LOAD x",
        "REPLICAOF host 1",
        "SLAVEOF host 1",
        "SYNC",
        "PSYNC ? -1",
        "SFLUSH 0 1",
        "CLUSTER RESET HARD",
        "cluster flushslots",
        "CLUSTER FLUSHSLOT 1",
    ];
    for line in scripts.iter().chain(&admin) {
        both(f, line, Drop);
    }
    for line in ["CLUSTER SLOTS", "CLUSTER RESETX", "CLUSTER"] {
        is(f, words(line), Pass);
    }
    // The second word of a line may be quoted.
    is(f, b"CLUSTER SLOTS\r\n", Drop);
    for line in ["EVALS x", "EVALSHA_R x", "EVALSHA_ROX x", "REPLICAO x", "REPLICAOFF x", "SYNCX"] {
        both(f, line, Pass);
    }

    let open =
        rebuilt("redis", &[("forbid_scripts = 1", "forbid_scripts = 0"), ("forbid_admin = 1", "forbid_admin = 0")]);
    let f = &mut filter(&open, "parse_command", Some("no_flush"));
    for line in scripts.iter().chain(&admin) {
        both(f, line, Pass);
    }
    both(f, "FLUSHALL", Drop);
}

#[test]
fn a_forbidden_command_may_disconnect() {
    let hard = rebuilt("redis", &[("forbidden_verdict = SK_DROP", "forbidden_verdict = STAP_DISCONNECT")]);
    verified("redis.bpf.o, disconnecting", &hard);
    let f = &mut filter(&hard, "parse_command", Some("no_flush"));
    both(f, "FLUSHALL", Disconnect);
    both(f, "PING", Pass);
}

/// Each value is a message; an aggregate's header is one of its own.
#[test]
fn replies() {
    let f = &mut filter(shipped::REDIS, "parse_reply", None);
    for reply in [
        "+OK\r\n",
        "+\r\n",
        "-ERR unknown command\r\n",
        ":-12\r\n",
        "$5\r\nhello\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "_\r\n",
        "#t\r\n",
        ",3.14\r\n",
        "(123456789012345678901234567890\r\n",
        "!5\r\nERR x\r\n",
        "=7\r\ntxt:abc\r\n",
        "$8\r\n\r\n\r\n\r\n\r\n\r\n",
    ] {
        is(f, reply, Pass);
    }
    becomes(
        f,
        "*2\r\n*1\r\n$1\r\na\r\n%1\r\n+k\r\n:1\r\n>0\r\n~1\r\n_\r\n|1\r\n",
        &[4, 4, 7, 4, 4, 4, 4, 4, 3, 4].map(|length| (length, Pass)),
        End::Clean,
    );
    is(f, [b"$300000\r\n", &vec![b'v'; 300_000][..], b"\r\n"].concat(), Pass);
    becomes(f, b"$5\r\nhel", &[], End::Waits);
    for reply in ["OK\r\n", "\r\n", "+OK\n", "+O\rK\r\n", "$x\r\n", "$+1\r\na\r\n", "$?\r\n", ";1\r\n", "*1\n"] {
        refused(f, reply);
    }
    is(f, [b"-", &[b'e'; 8189][..], b"\r\n"].concat(), Pass);
    becomes(f, [b'+'; 8193], &[], End::Fails(TOO_LONG));
}

const PIECES: &[&[u8]] = &[
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$10\r\n0123456789\r\n",
    b"*1\r\n$8\r\nflushall\r\n",
    b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nRESET\r\n",
    b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$1\r\n*\r\n",
    b"*1\r\n$8\r\nSHUTDOWN\r\n",
    b"PING\r\n",
    b"FLUSHALL \"now\"\n",
    b"\r\n",
    b"ECHO 0123456789012345678901234567890123456789\r\n",
];

#[test]
fn splits_do_not_matter_to_commands() {
    splits_do_not_matter(redis(), PIECES);
}

#[test]
fn splits_do_not_matter_to_replies() {
    let pieces: &[&[u8]] =
        &[b"+OK\r\n", b"$-1\r\n", b"$3\r\nabc\r\n", b"*2\r\n", b":1\r\n", b"-ERR a long line of an error\r\n"];
    splits_do_not_matter(filter(shipped::REDIS, "parse_reply", None), pieces);
}

/// An endless header is refused, not waited for.
#[test]
fn endless_headers() {
    let f = &mut redis();
    becomes(f, b"*1\r\n$12345678", &[], End::Fails(MALFORMED));
    becomes(f, b"*12345678", &[], End::Fails(MALFORMED));
    becomes(f, b"*1\r\n$1234567", &[], End::Waits);
}
