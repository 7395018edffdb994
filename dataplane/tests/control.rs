//! The control socket, the maps behind it, and what programs tell of themselves: records and shadows.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{Lab, LabOptions, SERVER_V4, STEP_LIMIT, assert_same_bytes, compile, message, need, pair, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SECTIONS: &str = "[control]\npath = \"control.sock\"\n[metrics]\nlisten = \"127.0.0.1:9464\"\n\
    [events]\npath = \"events.json\"\n\n";

/// A tap on messages behind their lengths, of which those of the client are judged.
fn ops(lab: &Lab, receive: &str) -> String {
    let tap = format!("[[tap]]\nname = \"framed\"\nserver_port = [\"4444-5443\"]\nreceive = {{ {receive} }}\n");
    lab.ops("", &format!("{SECTIONS}{tap}"))
}

const LEN4: &str = "object = \"len4.bpf.o\", parser = \"parse_len4\"";

/// Counts messages, drops those that begin with a forbidden byte, and tells of each one.
const TALKER: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 2); __type(key, __u8); __type(value, __u32); } forbidden SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u16); } calls SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } notes SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 5); __type(key, __u32); __type(value, __u32); } fields SEC(".maps");
const volatile __u32 level = 5;
static void tell(__u32 index, __u32 value)
{
    bpf_map_update_elem(&fields, &index, &value, BPF_ANY);
}
SEC("sk_skb/stream_verdict") int judge(struct __sk_buff *skb)
{
    unsigned char *p = (unsigned char *)(long)skb->data;
    __u32 zero = 0;
    __u16 *called = bpf_map_lookup_elem(&calls, &zero);
    if (called)
        ++*called;
    tell(0, skb->ifindex);
    tell(1, skb->hash);
    tell(2, skb->vlan_present);
    tell(3, skb->local_port);
    tell(4, level);
    if (p + 12 > (unsigned char *)(long)skb->data_end)
        return SK_PASS;
    __u8 first = p[4];
    char start[8];
    __builtin_memcpy(start, p + 4, 8);
    bpf_ringbuf_output(&notes, start, 8, 0);
    return bpf_map_lookup_elem(&forbidden, &first) ? SK_DROP : SK_PASS;
}
SEC("sk_skb/stream_parser") int parse(struct __sk_buff *skb)
{
    unsigned char *p = (unsigned char *)(long)skb->data;
    if (p + 4 > (unsigned char *)(long)skb->data_end)
        return 0;
    return 4 + (p[2] << 8 | p[3]);
}
char _license[] SEC("license") = "Dual MIT/GPL";
"#;

/// Reads far beyond the message: the verifier refuses it, and run-time checks end it.
const STRAY: &str = r#"
SEC("sk_skb/stream_verdict") int stray(struct __sk_buff *skb)
{
    return *(unsigned char *)(long)(skb->data + 100000);
}
"#;

fn compile_talker(lab: &Lab) {
    compile(&lab.path(""), "talker", TALKER);
    compile(&lab.path(""), "stray", &format!("{TALKER}{STRAY}"));
}

/// `socktap` with these arguments behind the first one, or two: exit status, lines of standard output, standard error.
fn command(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let output = lab.socktap_output(arguments);
    let lines = String::from_utf8(output.stdout).expect("text");
    let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (output.status.code(), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn map(lab: &Lab, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    command(lab, &[&["map", arguments[0], "ops.toml"], &arguments[1..]].concat())
}

/// Sends a message that passes behind `sent`, and asserts that it is the next to arrive, or that `sent` comes before it.
fn send(client: &mut TcpStream, served: &mut TcpStream, sent: &[u8], passes: bool) {
    let last = message(b'p', b"");
    client.write_all(&[sent, &last].concat()).expect("write");
    let expected = if passes { [sent, &last].concat() } else { last };
    let mut received = vec![0; expected.len()];
    served.read_exact(&mut received).expect("read");
    assert_same_bytes("messages", &received, &expected);
}

/// The sum of all counters whose line begins with `start`.
fn counter(lab: &Lab, start: &str) -> u64 {
    let metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
    let values = metrics.lines().filter_map(|line| line.strip_prefix(start));
    values.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")).sum()
}

/// The events of one kind.
fn events(lab: &Lab, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(lab.path("events.json")).unwrap_or_default();
    // The last line may not be whole yet.
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["event"] == kind).collect()
}

#[test]
fn maps_are_seen_and_changed_while_programs_run() {
    let queues = Some(2);
    let Some(lab) = Lab::start_with(LabOptions { wire_queues: queues, host_queues: queues, ..LabOptions::default() })
    else {
        return;
    };
    lab.write_shipped_programs();
    compile_talker(&lab);
    // The parser and the verdict of one direction are of one object: the filter comes in as a shadow, too.
    let shadow = format!("{LEN4}, shadow = {{ object = \"talker.bpf.o\", verdict = \"judge\" }}");
    let mut socktap = lab.socktap(&ops(&lab, &shadow));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    send(&mut client, &mut served, &message(b'D', b"isallowed"), true);

    let (code, lines, _) = map(&lab, &["list"]);
    let names: Vec<&str> = lines.iter().map(|line| line["map"].as_str().expect("a name")).collect();
    assert_eq!(code, Some(0));
    // Both objects have constants.
    let expected = [
        "framed/receive/.rodata",
        "framed/receive.shadow/.rodata",
        "framed/calls",
        "framed/fields",
        "framed/forbidden",
        "framed/notes",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        lines[4],
        json!({"map": "framed/forbidden", "type": "BPF_MAP_TYPE_HASH", "key_size": 1, "value_size": 4, "max_entries": 2, "flags": 0})
    );

    let good = (Some(0), Vec::new(), String::new());
    assert_eq!(map(&lab, &["set", "framed/forbidden", "\"D\"", "-2"]), good);
    assert_eq!(map(&lab, &["set", "framed/forbidden", "0x45", "00 01 02 03"]), good);
    let (code, mut lines, _) = map(&lab, &["dump", "framed/forbidden"]);
    lines.sort_by_key(|line| line["key"]["number"].as_u64());
    let element = |key: u64, bytes: &str, number: u32| json!({"key": {"bytes": format!("0x{key:x}"), "number": key}, "value": {"bytes": bytes, "number": number}});
    let expected = [element(0x44, "0xfeffffff", u32::MAX - 1), element(0x45, "0x00010203", 0x0302_0100)];
    assert_eq!((code, &lines[..]), (Some(0), &expected[..]));
    assert_eq!(map(&lab, &["get", "framed/forbidden", "69"]), (Some(0), vec![expected[1].clone()], String::new()));
    assert_eq!(map(&lab, &["delete", "framed/forbidden", "69"]), good);

    // The shadow sees what was set.
    send(&mut client, &mut served, &message(b'D', b"isallowed"), true);
    wait_until("the shadow to have another opinion", STEP_LIMIT, || {
        counter(&lab, "socktap_shadow_total{tap=\"framed\",direction=\"receive\",live=\"pass\",shadow=\"drop\"}") == 1
    });

    // One value for each of two workers; of the flow's worker it was counted up.
    let (_, lines, _) = map(&lab, &["get", "framed/calls", "0"]);
    let values = lines[0]["values"].as_array().expect("values");
    let calls: Vec<u64> = values.iter().map(|value| value["number"].as_u64().expect("a number")).collect();
    assert_eq!((calls.len(), calls.iter().sum::<u64>(), calls.contains(&0)), (2, 4, true), "{calls:?}");
    assert_eq!(map(&lab, &["set", "framed/calls", "0", "7"]), good);
    let (_, lines, _) = map(&lab, &["get", "framed/calls", "0"]);
    let seven = json!({"bytes": "0x0700", "number": 7});
    assert_eq!(lines[0]["values"], json!([seven, seven]));

    // What the program has seen of the flow.
    let (_, lines, _) = map(&lab, &["dump", "framed/fields"]);
    let fields: Vec<u64> = lines.iter().map(|line| line["value"]["number"].as_u64().expect("a number")).collect();
    let ifindex = lab.wire.run("cat", &["/sys/class/net/port1/ifindex"]).trim().parse().expect("a number");
    let port = served.local_addr().expect("an address").port();
    assert_eq!(fields, [ifindex, fields[1], 0, port.into(), 5]);
    assert_ne!(fields[1], 0, "the hash");

    for (arguments, code, words) in [
        (&["get", "framed/forbidden", "1"][..], 1, "framed/forbidden: there is no such key"),
        (&["get", "framed/forbidden", "0x0102"], 2, "key of framed/forbidden: `0x0102` has 2 bytes, not 1"),
        (&["set", "framed/forbidden", "1", "5000000000"], 2, "value of framed/forbidden: 5000000000 does not fit"),
        (&["get", "framed/absent", "1"], 2, "help: there are framed/receive/.rodata, "),
        (&["set", "framed/receive.shadow/.rodata", "0", "6"], 1, "its values are constants"),
        (&["get", "framed/notes", "\"\""], 1, "a map of this type does not do that"),
    ] {
        let (found, lines, said) = map(&lab, arguments);
        assert_eq!((found, lines.len()), (Some(code), 0), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?} does not say {words:?}: {said}");
    }
    socktap.assert_healthy();
}

#[test]
fn records_of_ring_buffers_become_events() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    lab.write_shipped_programs();
    compile_talker(&lab);
    let shadow =
        format!("{LEN4}, shadow = {{ object = \"talker.bpf.o\", verdict = \"judge\", set = {{ level = 6 }} }}");
    let mut socktap = lab.socktap(&ops(&lab, &shadow));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    for number in 0..20 {
        send(&mut client, &mut served, &message(b'm', format!("no {number:03}x").as_bytes()), true);
    }
    wait_until("all records to be written", STEP_LIMIT, || events(&lab, "record").len() == 20);
    let records = events(&lab, "record");
    for (number, record) in records.iter().enumerate() {
        let text = format!("mno {number:03}x");
        assert_eq!(record["text"], text, "{record}");
        assert_eq!((&record["tap"], &record["map"], &record["length"]), (&json!("framed"), &json!("notes"), &json!(8)));
    }
    assert_eq!(records[0]["bytes"], "0x6d6e6f2030303078");
    assert_eq!(counter(&lab, "socktap_records_total{tap=\"framed\",map=\"notes\"}"), 20);
    assert_eq!(counter(&lab, "socktap_records_lost_total{tap=\"framed\",map=\"notes\"}"), 0);

    // Far more at once than the ring buffer of a page holds: what finds no room is counted, and the messages go on.
    let many = message(b'm', b"any of them").repeat(2000);
    send(&mut client, &mut served, &many, true);
    wait_until("all records to be counted", STEP_LIMIT, || {
        counter(&lab, "socktap_records_total{") + counter(&lab, "socktap_records_lost_total{") == 2020
    });
    assert!(counter(&lab, "socktap_records_lost_total{") > 0);
    socktap.assert_healthy();
}

#[test]
fn a_shadow_that_faults_is_counted_and_touches_nothing() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    lab.write_shipped_programs();
    compile_talker(&lab);
    let shadow = "shadow = { object = \"stray.bpf.o\", verdict = \"stray\", verify = \"off\" }";
    let mut socktap = lab.socktap(&ops(&lab, &format!("{LEN4}, verdict = \"by_first_byte\", {shadow}")));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    send(&mut client, &mut served, &message(b'a', b"bc"), true);
    send(&mut client, &mut served, &message(b'D', b"ropped"), false);
    let shadow = |live: &str, shadow: &str| {
        counter(
            &lab,
            &format!(
                "socktap_shadow_total{{tap=\"framed\",direction=\"receive\",live=\"{live}\",shadow=\"{shadow}\"}}"
            ),
        )
    };
    wait_until("the faults to be counted", STEP_LIMIT, || shadow("pass", "fault") == 3 && shadow("drop", "fault") == 1);
    wait_until("the faults to be told", STEP_LIMIT, || events(&lab, "shadow").len() == 4);
    let event = &events(&lab, "shadow")[2];
    assert_eq!((&event["live"], &event["shadow"], &event["length"]), (&json!("drop"), &json!("fault"), &json!(11)));
    assert!(event["detail"].as_str().expect("words").contains("outside of the program's memory"), "{event}");
    assert_eq!(counter(&lab, "socktap_parse_errors_total{"), 0);

    // As the live verdict it comes to the tap's policy.
    let stray = "object = \"stray.bpf.o\", parser = \"parse\", verdict = \"stray\", verify = \"off\"";
    lab.write("ops.toml", ops(&lab, stray));
    assert_eq!(command(&lab, &["reload", "ops.toml"]).0, Some(0));
    client.write_all(&message(b'a', b"bc")).expect("write");
    let error = served.read(&mut [0; 8]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let faults = "socktap_parse_errors_total{tap=\"framed\",direction=\"receive\",error=\"program_fault\"}";
    wait_until("the fault to be counted", STEP_LIMIT, || counter(&lab, faults) == 1);
    wait_until("the fault to be told", STEP_LIMIT, || events(&lab, "error").len() == 1);
    let event = &events(&lab, "error")[0];
    assert_eq!(event["reason"], "program_fault", "{event}");
    assert!(event["detail"].as_str().expect("words").contains("outside of the program's memory"), "{event}");
    socktap.assert_healthy();
}

#[test]
fn the_socket_is_its_owners_alone() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let text = ops(&lab, LEN4);
    let mut socktap = lab.socktap(&text);
    let socket = lab.path("control.sock");
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // A second one may not take it away.
    let second = lab.socktap_output(&["run", "ops.toml"]);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another socktap listens at"), "{said}");
    assert_eq!(command(&lab, &["status", "ops.toml"]).0, Some(0));

    // What is left of one that was killed is in nobody's way.
    socktap.process.signal(Signal::SIGKILL);
    socktap.process.wait(STEP_LIMIT);
    assert!(socket.exists());
    let (code, _, said) = command(&lab, &["status", "ops.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("socktap does not answer at") && said.contains("help: "), "{said}");
    wait_until("the XDP programs to be gone", STEP_LIMIT, || !lab.xdp_attached());
    let mut socktap = lab.socktap(&text);
    assert_eq!(command(&lab, &["status", "ops.toml"]).0, Some(0));
    assert_eq!(socktap.terminate().code(), Some(0));
    assert!(!socket.exists());

    // A file that is no socket is not touched.
    std::fs::write(&socket, "precious").expect("a file");
    let refused = lab.socktap_output(&["run", "ops.toml"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is no socket"), "{refused:?}");
    assert_eq!(std::fs::read(&socket).expect("the file"), b"precious");
}

/// Sends bytes to the socket; what comes back, as JSON.
fn converse(socket: &Path, bytes: &[u8]) -> Value {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
    // It may have had enough before the end.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn hostile_requests_are_answered() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&ops(&lab, LEN4));
    let socket = lab.path("control.sock");
    for (bytes, words) in [
        (&b""[..], "a request is one line"),
        (b"{\"command\":\"status\"}", "a request is one line"),
        (b"nonsense\n", "this is no request"),
        (b"{\"command\":\"explode\"}\n", "unknown variant `explode`"),
        (b"{\"command\":\"map_get\",\"map\":\"m\"}\n", "missing field `key`"),
        (b"{\"command\":\"map_dump\",\"map\":\"\"}\n", "there is no map"),
        (b"{\"command\":\"reload\",\"file\":\"/nonexistent\"}\n", "No such file"),
        (&[b'['; 200_000][..], "a request is one line"),
        (&[&[b'['; 200_000][..], b"\n"].concat(), "this is no request"),
    ] {
        let answer = converse(&socket, bytes);
        let (status, error) = (&answer["end"]["status"], answer["end"]["error"].as_str().unwrap_or_default());
        assert_eq!(status, 2, "{answer}");
        assert!(error.contains(words), "{words:?}: {answer}");
    }
    let longest = [&vec![b' '; 2 << 20][..], b"\n"].concat();
    let mut stream = UnixStream::connect(&socket).expect("connect");
    // It stops reading: whether the answer still arrives is up to the kernel.
    let _ = stream.write_all(&longest);

    // Those who say nothing keep nobody out for long: beyond a number, each one is told.
    let silent: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&socket).expect("connect")).collect();
    let mut told = 0;
    wait_until("those that are too many to be told", STEP_LIMIT, || {
        let new = silent.iter().filter(|stream| {
            stream.set_nonblocking(true).expect("a mode");
            let mut reader: &UnixStream = stream;
            let mut bytes = [0; 256];
            reader.read(&mut bytes).is_ok_and(|count| String::from_utf8_lossy(&bytes[..count]).contains("try again"))
        });
        told += new.count();
        told >= 12
    });
    drop(silent);
    wait_until("commands to be answered again", STEP_LIMIT, || command(&lab, &["status", "ops.toml"]).0 == Some(0));
    socktap.assert_healthy();
}
