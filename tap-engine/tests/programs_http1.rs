//! `programs/http1.bpf.c` on bytes: no request inside another, and no way around the prefix.

mod programs;

use programs::{End, TOO_LONG, becomes, filter, is, rebuilt, refused, splits_do_not_matter, verified};
use tap_engine::Verdict::{Disconnect, Drop, Pass};
use tap_engine::{Filter, shipped};

fn http1() -> Filter {
    filter(shipped::HTTP1, "parse_request", Some("no_admin"))
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A request with these field lines, and `body`.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

fn with(prefix: &str, verdict: &str) -> Vec<u8> {
    let (prefix, verdict) = (format!("= \"{prefix}\""), format!("forbidden_verdict = {verdict}"));
    rebuilt("http1", &[("= \"/admin\"", &prefix), ("forbidden_verdict = STAP_DISCONNECT", &verdict)])
}

#[test]
fn the_kernel_takes_it_with_any_prefix() {
    verified("http1.bpf.o", shipped::HTTP1);
    verified("longest prefix", &with("/a-prefix-of-thirty-one-bytes-x", "SK_DROP"));
    verified("empty prefix", &with("", "SK_DROP"));
}

#[test]
fn requests_are_cut_by_head_and_content_length() {
    let f = &mut http1();
    is(f, get("/"), Pass);
    is(f, "GET / HTTP/1.0\r\n\r\n", Pass);
    is(f, "DELETE /a?b=c&d HTTP/1.1\r\nX: \t, \"(\x20)\"\r\nEmpty:\r\nOther:x\r\n\r\n", Pass);
    for body in ["", "a", "hello", "GET /admin HTTP/1.1\r\n\r\n", "123456789012345678901234567890"] {
        is(f, post(&format!("Content-Length: {}\r\n", body.len()), body), Pass);
        is(f, post(&format!("cONTENT-lENGTH:{}\r\nB: c\r\n", body.len()), body), Pass);
    }
    let body = "x".repeat(200_000);
    is(f, post("Content-Length: 200000\r\n", &body), Pass);
    becomes(f, post("Content-Length: 5\r\n", "abc"), &[], End::Waits);
    // Names that begin or go on like the two.
    is(f, post("C: 1\r\nContent: 1\r\nContent-Lengthy: 1\r\nContent-Lengt: x\r\nContent-Type: 2\r\n", ""), Pass);
    is(f, post("T: 1\r\nTransfer: 1\r\nTransfer-Encodings: 1\r\nTE: x\r\nX-Content-Length: 9\r\n", ""), Pass);
    is(f, post("Content-Length-: 9\r\nX-Transfer-Encoding: chunked\r\n", ""), Pass);
    is(f, post("A: Content-Length: 9\r\n", ""), Pass);
}

#[test]
fn a_pipeline_is_cut_into_its_requests() {
    let body = post("Content-Length: 3\r\n", "abc");
    let (first, second, third) = (get("/"), get("/admin"), get("/b"));
    let messages = [(first.len(), Pass), (body.len(), Pass), (second.len(), Disconnect), (third.len(), Pass)];
    becomes(&mut http1(), [first, body, second, third].concat(), &messages, End::Clean);
}

/// RFC 9112 section 6.3, and where readers are known to differ.
#[test]
fn bodies_whose_end_two_readers_could_see_apart_are_refused() {
    let f = &mut http1();
    for fields in [
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:chunked\r\n",
        "TRANSFER-ENCODING: identity\r\n",
        "Transfer-Encoding:\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nX: y\r\ncontent-length: 4\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: -3\r\n",
        "Content-Length: 03\r\n",
        "Content-Length: 00\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: 3 \r\n",
        "Content-Length: 3;\r\n",
        "Content-Length: 1 2\r\n",
        "Content-Length:\t3\r\n",
        "Content-Length:\r\n",
        "Content-Length: \r\n",
        "Content-Length : 3\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length\t: 3\r\n",
        " Content-Length: 3\r\n",
        "X: y\r\n Content-Length: 3\r\n",
        "X: y\r\n\tfolded\r\n",
        "Content-Length\r\n: 3\r\n",
        ": 3\r\n",
        "X y\r\n",
        "X: a\rb\r\n",
        "X: a\r\r\n",
        "X: a\n",
        "X: a\0b\r\n",
        "X: \x0bb\r\n",
        "X\u{e9}: b\r\n",
        "X(: b\r\n",
    ] {
        refused(f, post(fields, "abc"));
    }
    is(f, post("X: \u{e9}\r\n", ""), Pass);
    becomes(f, post("Content-Length: 1234567890\r\n", ""), &[], End::Fails(TOO_LONG));
    becomes(f, post("Content-Length: 18446744073709551619\r\n", ""), &[], End::Fails(TOO_LONG));
}

#[test]
fn request_lines() {
    let f = &mut http1();
    for line in [
        "GET /\r\n",
        "GET / \r\n",
        "GET /  HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.2\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / HTTP/11\r\n",
        "GET / http/1.1\r\n",
        "GET / HTTP/1.10\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET / x HTTP/1.1\r\n",
        "GET /\t HTTP/1.1\r\n",
        "/ HTTP/1.1\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "\nGET / HTTP/1.1\r\n",
        "G(T / HTTP/1.1\r\n",
        "GET /\u{e9} HTTP/1.1\r\n",
        "GET /\0 HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\r\n",
        "PRI * HTTP/2.0\r\n",
        "\x16\x03\x01\x02\r\n",
    ] {
        refused(f, format!("{line}Host: a\r\n\r\n"));
    }
    becomes(f, "GET / HTTP/1.1\r\nHost: a\r\n\r", &[], End::Waits);
    becomes(f, "GET / HTTP/1.1\r\nHost", &[], End::Waits);
}

#[test]
fn long_heads() {
    let f = &mut http1();
    let head = |length: usize| {
        let rest = "GET / HTTP/1.1\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length - rest))
    };
    is(f, head(8192), Pass);
    becomes(f, head(8193), &[], End::Fails(TOO_LONG));
    becomes(f, &head(9000)[..8191], &[], End::Waits);
    becomes(f, &head(9000)[..8192], &[], End::Fails(TOO_LONG));
    // Every place of the head's end within a block of eight.
    for length in 30..60 {
        is(f, head(length), Pass);
        becomes(f, head(length) + "G", &[(length, Pass)], End::Waits);
    }
}

#[test]
fn the_prefix_is_forbidden_however_it_is_written() {
    let f = &mut http1();
    for target in [
        "/admin",
        "/admin/",
        "/admin?x",
        "/administrator",
        "/admin/users?id=1",
        "/ADMIN",
        "/Admin",
        "/%61dmin",
        "/%41DMIN",
        "/ad%6din",
        "/%61%64%6d%69%6e",
        "/%61%64%6D%69%6E/x",
    ] {
        is(f, get(target), Disconnect);
    }
    for method in ["POST", "HEAD", "M-SEARCH", "x", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDE"] {
        is(f, format!("{method} /admin HTTP/1.1\r\n\r\n"), Disconnect);
        is(f, format!("{method} /open HTTP/1.1\r\n\r\n"), Pass);
    }
}

/// Servers merge, resolve, decode twice, or cut off: no client that means well asks for these.
#[test]
fn paths_that_servers_understand_differently_are_forbidden() {
    let f = &mut http1();
    for target in [
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/..",
        "/.",
        "/..",
        "/../admin",
        "/x//y",
        "/%2fadmin",
        "/x/%2e%2e/admin",
        "/x/%2E./admin",
        "/x%2f..%2fadmin",
        "/;a/admin",
        "/..;/admin",
        "/.;x/admin",
        "/x/..;a=b/admin",
        "\\admin",
        "/\\admin",
        "/x\\..\\admin",
        "/%5cadmin",
        "/%2561dmin",
        "/x%00",
        "/x%0d%0aadmin",
        "/%",
        "/%6",
        "/%zz",
        "/%u0061dmin",
        "/x%c0%afadmin",
        "/x#y",
        "http://host/admin",
        "HTTP://host/",
        "host:443",
        "*x",
        "admin",
        "?/admin",
        "/x%7f",
    ] {
        is(f, get(target), Disconnect);
    }
    is(f, "CONNECT host:443 HTTP/1.1\r\n\r\n", Disconnect);
    is(f, "OPTIONS * HTTP/1.1\r\n\r\n", Pass);
    is(f, "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1\r\n\r\n", Disconnect);
}

#[test]
fn other_paths_pass() {
    let f = &mut http1();
    for target in [
        "/",
        "/a",
        "/a/",
        "/adm",
        "/x/admin",
        "/.well-known/acme",
        "/...",
        "/a..b/c.",
        "/a%20b%2Fc",
        "/%c3%a9t%c3%a9",
        "/a;v=1/b",
        "/?q=/admin",
        "/?..//",
        "/a?x=%zz#",
        "/caf%e9",
        "/@:,~!$&'()*+=",
        "/%23",
        "/%3fadmin",
    ] {
        is(f, get(target), Pass);
    }
    // 1024 bytes of path are judged.
    is(f, get(&format!("/{}", "a".repeat(1022))), Pass);
    is(f, get(&format!("/{}", "a".repeat(1024))), Disconnect);
    is(f, get(&format!("/?{}", "a".repeat(4000))), Pass);
}

#[test]
fn another_prefix_and_verdict() {
    let f = &mut filter(&with("/a-prefix-of-thirty-one-bytes-x", "SK_DROP"), "parse_request", Some("no_admin"));
    is(f, get("/A-prefix-of-thirty-one-bytes-x/more"), Drop);
    is(f, get("/a-prefix-of-thirty-one-bytes-"), Pass);
    is(f, get("/admin"), Pass);
    let f = &mut filter(&with("/", "SK_DROP"), "parse_request", Some("no_admin"));
    is(f, get("/"), Drop);
    let f = &mut filter(&with("", "SK_DROP"), "parse_request", Some("no_admin"));
    is(f, get("//admin"), Pass);
}

#[test]
fn splits_do_not_matter_to_it() {
    let pieces: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 12\r\n\r\nhello, world",
        b"GET /admin HTTP/1.0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 0\r\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"A: b\r\n",
        b"\r\n",
    ];
    splits_do_not_matter(http1(), pieces);
}
