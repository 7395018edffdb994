//! `socktap reload` while traffic goes on: not a byte is lost, a file that is wrong changes nothing, maps keep what they hold.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Lab, Random, Redis, SERVER_V4, SERVERS, STEP_LIMIT, Socktap, assert_same_bytes, compile, conversation, message,
    need, pair, read_to_end, wait_until, write_chunks,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const CONTROL: &str = "[control]\npath = \"control.sock\"\n\n";

/// A tap on messages behind their lengths, of which those of the client are judged.
fn tap(receive: &str) -> String {
    format!("{CONTROL}[[tap]]\nname = \"framed\"\nserver_port = [\"4444-5443\"]\nreceive = {receive}\n")
}

const JUDGED: &str = "{ object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }";
const PASSED: &str = "{ object = \"len4.bpf.o\", parser = \"parse_len4\" }";

/// `socktap reload` with this ops file: its exit status, and what it says to standard error.
fn reload(lab: &Lab, ops: &str) -> (Option<i32>, String) {
    let file = lab.write("ops.toml", ops);
    let output = lab.socktap_output(&["reload", &file.to_string_lossy()]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn status(lab: &Lab) -> Value {
    let control = lab.path("control.sock");
    let output = lab.socktap_output(&["status", "ops.toml", "--control", &control.to_string_lossy()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Sends a message that passes behind `sent`, and asserts that it is the next to arrive, or that `sent` comes before it.
fn send(client: &mut TcpStream, served: &mut TcpStream, sent: &[u8], passes: bool) {
    let last = message(b'p', b"assed");
    client.write_all(&[sent, &last].concat()).expect("write");
    let expected = if passes { [sent, &last].concat() } else { last };
    let mut received = vec![0; expected.len()];
    served.read_exact(&mut received).expect("read");
    assert_same_bytes("messages", &received, &expected);
}

#[test]
fn streams_are_the_same_byte_for_byte_while_programs_change() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let both = |more: &str, direction: &str| {
        let judged = tap(&format!("{{ {direction} }}"));
        lab.ops("", &format!("{judged}send = {{ {direction} }}\n{more}"))
    };
    let plain = "object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\"";
    let shadowed =
        format!("{plain}, shadow = {{ object = \"len4.bpf.o\", verdict = \"by_first_byte\", verify = \"off\" }}");
    let versions = [both("", plain), both("message_timeout = \"20s\"\n", &shadowed)];
    let mut socktap = lab.socktap(&versions[0]);
    let random = Random::from_environment(21);
    let pairs: Vec<_> = (0..8).map(|index| pair(&lab, SERVERS[index % 2])).collect();
    let (done, reloads) = (AtomicBool::new(false), 30);
    std::thread::scope(|scope| {
        let (lab, done, versions) = (&lab, &done, &versions);
        for (index, (client, server)) in pairs.iter().enumerate() {
            for (direction, (from, to)) in [(client, server), (server, client)].into_iter().enumerate() {
                let random = random.fork((index * 2 + direction) as u64);
                let (mut chunks, mut random) = (random.fork(1), random.fork(2));
                let (sender, conversations) = std::sync::mpsc::sync_channel::<Vec<u8>>(1);
                // The stream goes on until all reloads have happened.
                scope.spawn(move || {
                    for sent in conversations {
                        write_chunks(from, &sent, &mut chunks);
                    }
                    from.shutdown(std::net::Shutdown::Write).expect("shutdown");
                });
                scope.spawn(move || {
                    let what = format!("connection {index}, direction {direction}");
                    let mut to = to;
                    while !done.load(Ordering::Relaxed) {
                        let (sent, expected) = conversation(&mut random, 20);
                        sender.send(sent).expect("the writer lives");
                        let mut received = vec![0; expected.len()];
                        to.read_exact(&mut received).unwrap_or_else(|error| panic!("{what}: {error}"));
                        assert_same_bytes(&what, &received, &expected);
                    }
                    drop(sender);
                    assert_same_bytes(&what, &read_to_end(to, &what), &[]);
                });
            }
        }
        scopeguard::defer! { done.store(true, Ordering::Relaxed); }
        for number in 0..reloads {
            assert_eq!(reload(lab, &versions[(number + 1) % 2]), (Some(0), String::new()));
        }
    });
    let status = status(&lab);
    assert_eq!(status["generation"], reloads + 1, "{status}");
    socktap.assert_healthy();
}

#[test]
fn a_benchmark_does_not_notice() {
    let Some(lab) = Lab::start() else { return };
    need(&["redis-benchmark"]);
    lab.write_shipped_programs();
    let _redis = Redis::start(&lab);
    let version = |timeout: &str| {
        lab.ops(
            "",
            &format!(
                "{CONTROL}[[tap]]\nname = \"redis\"\nserver_port = [6379]\nmessage_timeout = \"{timeout}\"\n\
                 receive = {{ object = \"redis.bpf.o\", parser = \"parse_command\", verdict = \"no_flush\" }}\n\
                 send = {{ object = \"redis.bpf.o\", parser = \"parse_reply\" }}\n"
            ),
        )
    };
    let versions = [version("30s"), version("31s")];
    let mut socktap = lab.socktap(&versions[0]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lab, done, versions) = (&lab, &done, &versions);
        let benchmark = scope.spawn(move || {
            scopeguard::defer! { done.store(true, Ordering::Relaxed); }
            let server = SERVER_V4.to_string();
            let rest = ["-n", "30000", "-c", "30", "-P", "8", "-t", "set,get", "-d", "600", "-r", "500", "--csv"];
            lab.client.run("redis-benchmark", &[&["-h", &server][..], &rest].concat())
        });
        let mut reloads = 0;
        while !done.load(Ordering::Relaxed) {
            assert_eq!(reload(lab, &versions[reloads % 2]), (Some(0), String::new()));
            reloads += 1;
        }
        let report = benchmark.join().expect("the benchmark ends well");
        assert!(report.contains("\"SET\"") && report.contains("\"GET\""), "{report}");
        assert!(reloads > 1, "{reloads}");
    });
    let metrics = status(&lab);
    assert_eq!(metrics["workers"], 1, "{metrics}");
    socktap.assert_healthy();
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let good = lab.ops("", &tap(JUDGED));
    let mut socktap = lab.socktap(&good);
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    // Reads a byte that may not be there.
    compile(
        &lab.path(""),
        "careless",
        "#include <linux/bpf.h>\n\
         __attribute__((section(\"sk_skb/stream_parser\"), used)) int parse(struct __sk_buff *skb)\n\
         {\n    return *(unsigned char *)(long)skb->data;\n}\n\
         char _license[] __attribute__((section(\"license\"), used)) = \"Dual MIT/GPL\";\n",
    );
    let careless = JUDGED.replace("len4.bpf.o", "careless.bpf.o").replace("parse_len4", "parse");
    for (ops, words) in [
        (good.replace("name =", "nane ="), "ops.toml:10:1: unknown key `nane`"),
        (lab.ops("", &tap(&JUDGED.replace("len4.bpf", "absent"))), "ops.toml:12:22: there is no file"),
        (lab.ops("", &tap(&careless)), "invalid access to packet"),
        (lab.ops("", &tap(&JUDGED.replace(" }", ", set = { no_such_byte = 1 } }"))), "no_such_byte"),
        (good.replace("5443", "5444"), "`server_port` of tap \"framed\" cannot change while socktap runs"),
        (lab.ops("fragments = \"cross\"", &tap(JUDGED)), "[ports] cannot change"),
    ] {
        let (code, said) = reload(&lab, &ops);
        assert_eq!(code, Some(2), "{ops}\n{said}");
        assert!(said.contains(words), "does not say {words:?}:\n{said}");
        assert_eq!(status(&lab)["generation"], 1);
        send(&mut client, &mut served, &message(b'D', b"ropped"), false);
    }
    // The same flow, with other programs.
    assert_eq!(reload(&lab, &lab.ops("", &tap(PASSED))), (Some(0), String::new()));
    send(&mut client, &mut served, &message(b'D', b"ropped no more"), true);
    let with_e = JUDGED.replace(" }", ", set = { drop_byte = 69 } }");
    assert_eq!(reload(&lab, &lab.ops("", &tap(&with_e))), (Some(0), String::new()));
    send(&mut client, &mut served, &message(b'D', b"ropped no more"), true);
    send(&mut client, &mut served, &message(b'E', b"lse"), false);
    assert_eq!(reload(&lab, &lab.ops("", &format!("{}mode = \"observe\"\n", tap(JUDGED)))), (Some(0), String::new()));
    send(&mut client, &mut served, &message(b'D', b"ropped no more"), true);
    assert_eq!(status(&lab)["taps"][0]["mode"], "observe");
    socktap.assert_healthy();
}

#[test]
fn a_hangup_signal_reads_the_file_again() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", &tap(JUDGED)));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    send(&mut client, &mut served, &message(b'D', b"ropped"), false);
    for (ops, told, passes) in [
        (lab.ops("", &tap(PASSED)), "reloaded: generation 2 runs", true),
        ("nonsense".to_owned(), "not reloaded: ", true),
        (lab.ops("", &tap(JUDGED)), "reloaded: generation 3 runs", false),
    ] {
        lab.write("ops.toml", ops);
        socktap.process.signal(Signal::SIGHUP);
        socktap.process.wait_until(told, STEP_LIMIT, |process| process.log().contains(told));
        send(&mut client, &mut served, &message(b'D', b"ropped, or not"), passes);
    }
    socktap.assert_healthy();
    assert_eq!(socktap.terminate().code(), Some(0));
}

/// Counts messages by their first byte, in a map with room for `ROOM` of them, and all of them in a global variable.
const COUNTER: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, ROOM);
    __type(key, __u8);
    __type(value, __u64);
} seen SEC(".maps");
__u64 total;
SEC("sk_skb/stream_parser") int parse(struct __sk_buff *skb)
{
    unsigned char *p = (unsigned char *)(long)skb->data;
    if (p + 4 > (unsigned char *)(long)skb->data_end)
        return 0;
    return 4 + (p[2] << 8 | p[3]);
}
SEC("sk_skb/stream_verdict") int count(struct __sk_buff *skb)
{
    unsigned char *p = (unsigned char *)(long)skb->data;
    __u64 one = 1, *known;
    __u8 first;
    if (p + 5 > (unsigned char *)(long)skb->data_end)
        return SK_PASS;
    first = p[4];
    __sync_fetch_and_add(&total, 1);
    known = bpf_map_lookup_elem(&seen, &first);
    if (known)
        __sync_fetch_and_add(known, 1);
    else
        bpf_map_update_elem(&seen, &first, &one, BPF_ANY);
    return SK_PASS;
}
char _license[] SEC("license") = "Dual MIT/GPL";
"#;

#[test]
fn maps_keep_what_they_hold_if_they_are_defined_as_before() {
    let Some(lab) = Lab::start() else { return };
    compile(&lab.path(""), "counter", &COUNTER.replace("ROOM", "100"));
    let ops = lab.ops("", &tap("{ object = \"counter.bpf.o\", parser = \"parse\", verdict = \"count\" }"));
    let mut socktap: Socktap = lab.socktap(&ops);
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    let get = |map: &str, key: &str| -> Option<u64> {
        let output = lab.socktap_output(&["map", "get", "ops.toml", map, key]);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let element: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        element["value"]["number"].as_u64()
    };
    let seen = || get("framed/seen", "\"a\"");
    assert_eq!(seen(), None);
    for _ in 0..3 {
        send(&mut client, &mut served, &message(b'a', b"bc"), true);
    }
    assert_eq!((seen(), get("framed/.bss", "0")), (Some(3), Some(6)));
    // Global data is the object's own: a new one begins with its initial values.
    assert_eq!(reload(&lab, &ops), (Some(0), String::new()));
    assert_eq!((seen(), get("framed/.bss", "0")), (Some(3), Some(0)));
    send(&mut client, &mut served, &message(b'a', b"bc"), true);
    assert_eq!((seen(), get("framed/.bss", "0")), (Some(4), Some(2)));
    // A reload that fails late has not touched the maps either.
    compile(&lab.path(""), "counter", &COUNTER.replace("ROOM", "200"));
    let (code, _) = reload(&lab, &ops.replace("\"count\"", "\"discount\""));
    assert_eq!(code, Some(2));
    send(&mut client, &mut served, &message(b'a', b"bc"), true);
    assert_eq!(seen(), Some(5));
    // Another definition is another map.
    assert_eq!(reload(&lab, &ops), (Some(0), String::new()));
    assert_eq!(seen(), None);
    send(&mut client, &mut served, &message(b'a', b"bc"), true);
    assert_eq!(seen(), Some(1));
    wait_until("earlier programs to be gone", STEP_LIMIT, || status(&lab)["earlier_programs"] == 0);
    socktap.assert_healthy();
}
