//! Whole ops files: the example of the documentation, and a table of wrong ones with their messages.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{
    Application, Config, ConfigError, Cross, EventsOutput, Fragments, Limits, Midstream, Mode, OnParseError, Poll,
    Programs, Setting, Verify, XdpMode,
};
use proptest::prelude::*;

const EXAMPLE: &str = r#"
[ports]
client = "eth1"                 # interface names
server = "eth2"
xdp_mode = "auto"               # auto | native | skb

[workers]
cores = [2, 3]                  # default: one worker per rx queue, on the first cores
poll = "adaptive"               # adaptive | busy

[limits]
flows = 100_000
message = "64KiB"

[metrics]
listen = "127.0.0.1:9464"       # Prometheus; absent = off
[events]
path = "/var/log/socktap/events.json"   # one JSON object a line; "-" = stdout; absent = off

[[tap]]
name = "redis"
server = ["10.0.0.0/24", "fd00::/64"]   # prefixes of the server's address; default: all
server_port = [6379, "7000-7010"]
client = ["0.0.0.0/0"]                  # prefixes of the client's address; default: all
mode = "enforce"                # enforce | observe (judge, count, report, but pass)
receive = { object = "programs/redis.bpf.o", parser = "parse_command", verdict = "no_flush" }
send    = { object = "programs/redis.bpf.o", parser = "parse_reply" }    # no verdict = pass; no `send` = not parsed
on_parse_error = "disconnect"
message_timeout = "30s"
"#;

const PORTS: &str = "[ports]\nclient = \"a\"\nserver = \"b\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("etc/ops.toml"), text)
}

/// The error of a file that begins with good `[ports]`, without the name of the file.
fn error_after_ports(rest: &str) -> String {
    let error = parse(&format!("{PORTS}{rest}")).expect_err(rest).to_string();
    error.replace("etc/ops.toml:", "")
}

#[test]
fn the_example_parses() {
    let config = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&*config.ports.client.value, &*config.ports.server.value), ("eth1", "eth2"));
    assert_eq!((config.ports.xdp_mode, config.ports.cross), (XdpMode::Auto, Cross::Auto));
    let cores = config.workers.cores.as_ref().unwrap();
    assert_eq!(cores.iter().map(|core| core.value).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(config.workers.poll, Poll::Adaptive);
    assert_eq!(config.limits, Limits { flows: 100_000, message: 65_536 });
    assert_eq!(config.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.events, Some(EventsOutput::File(PathBuf::from("/var/log/socktap/events.json"))));

    let [tap] = &config.taps[..] else { panic!("one tap") };
    assert_eq!(tap.name.value, "redis");
    assert_eq!(tap.servers, ["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]);
    assert_eq!(tap.clients, ["0.0.0.0/0".parse().unwrap()]);
    assert_eq!(tap.server_ports, [6379..=6379, 7000..=7010]);
    assert_eq!((tap.mode, tap.application), (Mode::Enforce, Application::Server));
    assert_eq!(tap.on_parse_error, OnParseError::Disconnect);
    assert_eq!(tap.message_timeout, Duration::from_secs(30));
    let receive = tap.receive.as_ref().unwrap();
    assert_eq!(receive.object.value, Path::new("etc/programs/redis.bpf.o"));
    assert_eq!(receive.parser.value, "parse_command");
    assert_eq!(receive.verdict.as_ref().unwrap().value, "no_flush");
    let send = tap.send.as_ref().unwrap();
    assert_eq!((&*send.parser.value, &send.verdict), ("parse_reply", &None));

    // What the engine finds out later is reported at the place that named it.
    let error = config.diagnostic(receive.parser.at, "no function `parse_command`", Some("there are: f, g"));
    assert_eq!(
        error.to_string(),
        "etc/ops.toml:26:55: no function `parse_command`\n   |\n\
         26 | receive = { object = \"programs/redis.bpf.o\", parser = \"parse_command\", verdict = \"no_flush\" }\n   \
         |                                                       ^^^^^^^^^^^^^^^\n\
         help: there are: f, g"
    );
}

#[test]
fn everything_but_ports_has_a_default() {
    let config = parse(PORTS).unwrap();
    assert!(config.taps.is_empty() && config.workers.cores.is_none());
    assert_eq!((config.metrics, config.events), (None, None));
    assert_eq!(config.ports.fragments, Fragments::Drop);
    assert_eq!(config.limits, Limits { flows: 100_000, message: 65_536 });

    let config = parse(&format!("{PORTS}[[tap]]\nname = \"all\"\n")).unwrap();
    let tap = &config.taps[0];
    assert!(tap.is_pass_all() && tap.servers.is_empty() && tap.clients.is_empty() && tap.server_ports.is_empty());
    assert_eq!((tap.mode, tap.message_timeout), (Mode::Enforce, Duration::from_secs(30)));
    assert_eq!(tap.midstream, Midstream::Reset);
}

#[test]
fn other_values() {
    let text = r#"
        ports = { client = "a", server = "b", xdp_mode = "skb", cross = "worker", fragments = "cross" }
        workers.poll = "busy"
        limits = { message = 1_048_576, flows = 4_000_000 }
        events.path = "-"
        [[tap]]
        name = "one"
        application = "client"
        mode = "observe"
        server = ["10.0.0.1", "fd00::1", "10.0.0.1"]
        server_port = ["10-20", 15, 21, "8080"]
        on_parse_error = "pass"
        message_timeout = "500ms"
        midstream = "pass"
    "#;
    let config = parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.ports.xdp_mode, config.ports.cross), (XdpMode::Skb, Cross::Worker));
    assert_eq!(config.ports.fragments, Fragments::Cross);
    assert_eq!(config.workers.poll, Poll::Busy);
    assert_eq!(config.limits, Limits { flows: 4_000_000, message: 1 << 20 });
    assert_eq!(config.events, Some(EventsOutput::Stdout));
    let tap = &config.taps[0];
    assert_eq!((tap.application, tap.mode), (Application::Client, Mode::Observe));
    assert_eq!(tap.servers.len(), 2);
    assert_eq!(tap.server_ports, [10..=21, 8080..=8080]);
    assert_eq!((tap.on_parse_error, tap.message_timeout), (OnParseError::Pass, Duration::from_millis(500)));
    assert_eq!(tap.midstream, Midstream::Pass);
    for (word, midstream) in [("reset", Midstream::Reset), ("pass", Midstream::Pass), ("drop", Midstream::Drop)] {
        let config = parse(&format!("{PORTS}[[tap]]\nname = \"x\"\nmidstream = \"{word}\"\n")).unwrap();
        assert_eq!(config.taps[0].midstream, midstream);
    }
}

/// The tap's `receive`, which is written as `table`.
fn receive(table: &str) -> Programs {
    let text = format!("{PORTS}[[tap]]\nname = \"x\"\nreceive = {table}\n");
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    config.taps[0].receive.clone().expect("a table")
}

#[test]
fn programs_have_settings_and_shadows() {
    let plain = receive("{ object = \"a.o\", parser = \"p\" }");
    assert!(plain.set.is_empty() && plain.shadow.is_none() && plain.verify == Verify::Kernel);

    let full = receive(
        "{ object = \"a.o\", parser = \"p\", verify = \"off\", set = { low = -5, high = 0x7fff_ffff_ffff_ffff, on = true, \
         word = \"GET\", table = [[1, 2], [\"x\"], []] }, shadow = { object = \"b.o\", verdict = \"v\", set = { n = 1 } } }",
    );
    let value = |name: &str| full.set[name].value.clone();
    assert_eq!((value("low"), value("high")), (Setting::Integer(-5), Setting::Integer(i64::MAX)));
    assert_eq!((value("on"), value("word")), (Setting::Boolean(true), Setting::Text("GET".into())));
    let list = |entries: &[Setting]| Setting::List(entries.to_vec());
    let [one, two] = [1, 2].map(Setting::Integer);
    assert_eq!(value("table"), list(&[list(&[one, two]), list(&[Setting::Text("x".into())]), list(&[])]));
    assert_eq!(full.set["low"].at.column, 73);
    assert_eq!(full.verify, Verify::Off);
    let shadow = full.shadow.expect("a shadow");
    assert_eq!((&*shadow.object.value, &*shadow.verdict.value), (Path::new("etc/b.o"), "v"));
    assert_eq!((shadow.set["n"].value.clone(), shadow.verify), (Setting::Integer(1), Verify::Kernel));
}

#[test]
fn the_control_socket_lies_beside_the_file() {
    let control = |path: &str| parse(&format!("{PORTS}[control]\npath = \"{path}\"\n"));
    let path = |path: &str| control(path).unwrap().control.unwrap().value;
    assert_eq!(path("/run/socktap.sock"), Path::new("/run/socktap.sock"));
    assert_eq!(path("c.sock"), Path::new("etc/c.sock"));
    assert!(parse(PORTS).unwrap().control.is_none());
    // `etc/` and 103 bytes are the most that an address takes.
    assert!(control(&"x".repeat(103)).is_ok());
    let error = control(&"x".repeat(104)).unwrap_err().to_string();
    assert!(error.starts_with("etc/ops.toml:5:8: `path` is too long for a socket: 108 bytes"), "{error}");
}

#[test]
fn wrong_files_and_their_messages() {
    // (what follows good [ports], the message from line:column on)
    let cases: &[(&str, &str)] = &[
        (
            "xdpmode = \"auto\"\n",
            "4:1: unknown key `xdpmode` in [ports]\n  |\n4 | xdpmode = \"auto\"\n  | ^^^^^^^\nhelp: did you mean `xdp_mode`?",
        ),
        (
            "xdp_mode = \"generic\"\n",
            "4:12: `xdp_mode` cannot be \"generic\"\n  |\n4 | xdp_mode = \"generic\"\n  |            ^^^^^^^^^\n\
             help: the values here are `auto`, `native`, `skb`",
        ),
        (
            "[limit]\nflows = 1\n",
            "4:2: unknown key `limit` in the file\n  |\n4 | [limit]\n  |  ^^^^^\nhelp: did you mean `limits`?",
        ),
        (
            "[workers]\ncores = [1, 2, 1]\n",
            "5:16: core 1 is named twice\n  |\n5 | cores = [1, 2, 1]\n  |                ^\n\
             help: each worker has a core of its own: remove one",
        ),
        (
            "[workers]\ncores = 2\n",
            "5:9: `cores` must be a list, found a whole number\n  |\n5 | cores = 2\n  |         ^\n\
             help: put it in square brackets: cores = [...]",
        ),
        (
            "[workers]\ncores = []\n",
            "5:9: `cores` is an empty list\n  |\n5 | cores = []\n  |         ^^\nhelp: name at least one core, or remove the key",
        ),
        (
            "[workers]\ncores = [-1]\n",
            "5:10: `cores` is out of bounds\n  |\n5 | cores = [-1]\n  |          ^^\nhelp: a number from 0 to 4095",
        ),
        (
            "[limits]\nflows = 0\n",
            "5:9: `flows` is out of bounds\n  |\n5 | flows = 0\n  |         ^\nhelp: a number from 1 to 4000000",
        ),
        (
            "[limits]\nmessage = \"2MiB\"\n",
            "5:11: `message` is out of bounds\n  |\n5 | message = \"2MiB\"\n  |           ^^^^^^\n\
             help: a size from 1 to 1048576 bytes, such as 65536, \"64KiB\" or \"1MiB\"",
        ),
        (
            "[limits]\nmessage = \"64KB\"\n",
            "5:11: `message` is not a size: unknown unit `KB`: use B, KiB, MiB or GiB\n  |\n5 | message = \"64KB\"\n  |           ^^^^^^\n\
             help: a size from 1 to 1048576 bytes, such as 65536, \"64KiB\" or \"1MiB\"",
        ),
        (
            "[metrics]\nlisten = \"localhost\"\n",
            "5:10: `listen` is not an address with a port: \"localhost\"\n  |\n5 | listen = \"localhost\"\n  |          ^^^^^^^^^^^\n\
             help: write it as \"127.0.0.1:9464\" or \"[::1]:9464\"",
        ),
        (
            "[metrics]\n",
            "4:2: [metrics] has no `listen`\n  |\n4 | [metrics]\n  |  ^^^^^^^\nhelp: add a line such as: listen = \"127.0.0.1:9464\"",
        ),
        (
            "[events]\npath = \"\"\n",
            "5:8: `path` is empty\n  |\n5 | path = \"\"\n  |        ^^\nhelp: name a file, or \"-\" for standard output",
        ),
        (
            "[[tap]]\nserver_port = [80]\n",
            "4:1: [[tap]] has no `name`\n  |\n4 | [[tap]]\n  | ^^^^^^^\nhelp: add a line such as: name = \"redis\"",
        ),
        (
            "[tap]\nname = \"x\"\n",
            "4:2: `tap` must be a list of tables\n  |\n4 | [tap]\n  |  ^^^\nhelp: write each tap as a section of its own: [[tap]]",
        ),
        (
            "[[tap]]\nname = \"x\"\nsever_port = [80]\n",
            "6:1: unknown key `sever_port` in [[tap]]\n  |\n6 | sever_port = [80]\n  | ^^^^^^^^^^\nhelp: did you mean `server_port`?",
        ),
        (
            "[[tap]]\nname = \"x\"\nbypass = true\n",
            "6:1: `bypass` in [[tap]] is not supported yet\n  |\n6 | bypass = true\n  | ^^^^^^\n\
             help: remove the key: this version cannot do what it says",
        ),
        (
            "[[tap]]\nname = \"x\"\nserver = [\"10.0.0.7/24\"]\n",
            "6:11: \"10.0.0.7/24\" has bits set behind its prefix length\n  |\n6 | server = [\"10.0.0.7/24\"]\n  |           ^^^^^^^^^^^^^\n\
             help: write \"10.0.0.0/24\" for the network, or \"10.0.0.7/32\" for the one address",
        ),
        (
            "[[tap]]\nname = \"x\"\nclient = [\"10.0.0\"]\n",
            "6:11: \"10.0.0\" is not an address prefix\n  |\n6 | client = [\"10.0.0\"]\n  |           ^^^^^^^^\n\
             help: write it as \"10.0.0.0/24\", \"fd00::/64\" or a single address",
        ),
        (
            "[[tap]]\nname = \"x\"\nserver_port = [\"90-80\"]\n",
            "6:16: the range \"90-80\" runs backwards\n  |\n6 | server_port = [\"90-80\"]\n  |                ^^^^^^^\n\
             help: write ports as 6379, ranges as \"7000-7010\"; from 1 to 65535",
        ),
        (
            "[[tap]]\nname = \"x\"\nserver_port = [70000]\n",
            "6:16: `server_port` is out of bounds\n  |\n6 | server_port = [70000]\n  |                ^^^^^\nhelp: a number from 1 to 65535",
        ),
        (
            "[[tap]]\nname = \"x\"\nreceive = { object = \"a.o\", verdict = \"v\" }\n",
            "6:11: `receive` has a `verdict` but no `parser`\n  |\n6 | receive = { object = \"a.o\", verdict = \"v\" }\n  \
             |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n\
             help: a verdict judges whole messages: name the `parser` that finds them",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { parser = \"p\" }\n",
            "6:8: `send` has no `object`\n  |\n6 | send = { parser = \"p\" }\n  |        ^^^^^^^^^^^^^^^^\n\
             help: add a line such as: object = \"FILE.bpf.o\"",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p()\" }\n",
            "6:35: \"p()\" cannot be the name of a function\n  |\n6 | send = { object = \"a.o\", parser = \"p()\" }\n  \
             |                                   ^^^^^\n\
             help: give the C function's name as it stands in the program's source",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p\", verify = \"no\" }\n",
            "6:49: `verify` cannot be \"no\"\n  |\n6 | send = { object = \"a.o\", parser = \"p\", verify = \"no\" }\n  \
             |                                                 ^^^^\nhelp: the values here are `kernel`, `off`",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p\", set = 1 }\n",
            "6:46: `set` must be a table, found a whole number\n  |\n6 | send = { object = \"a.o\", parser = \"p\", set = 1 }\n  \
             |                                              ^\nhelp: write it as: set = { VARIABLE = VALUE }",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p\", set = { a = [1, 2.5] } }\n",
            "6:56: `a` cannot be a decimal number\n  |\n6 | send = { object = \"a.o\", parser = \"p\", set = { a = [1, 2.5] } }\n  \
             |                                                        ^^^\n\
             help: values are whole numbers of 64 bits, true or false, strings, and lists of these",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p\", set = { a-b = 1 } }\n",
            "6:48: \"a-b\" cannot be the name of a variable\n  |\n6 | send = { object = \"a.o\", parser = \"p\", set = { a-b = 1 } }\n  \
             |                                                ^^^\n\
             help: give the variable's name as it stands in the program's source",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", shadow = { object = \"b.o\", verdict = \"v\" } }\n",
            "6:8: `send` has a `shadow` but no `parser`\n  |\n\
             6 | send = { object = \"a.o\", shadow = { object = \"b.o\", verdict = \"v\" } }\n  \
             |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n\
             help: a verdict judges whole messages: name the `parser` that finds them",
        ),
        (
            "[[tap]]\nname = \"x\"\nsend = { object = \"a.o\", parser = \"p\", shadow = { object = \"b.o\" } }\n",
            "6:49: `shadow` has no `verdict`\n  |\n6 | send = { object = \"a.o\", parser = \"p\", shadow = { object = \"b.o\" } }\n  \
             |                                                 ^^^^^^^^^^^^^^^^^^\nhelp: add a line such as: verdict = \"FUNCTION\"",
        ),
        (
            "[control]\npath = \"\"\n",
            "5:8: `path` is not the name of a file\n  |\n5 | path = \"\"\n  |        ^^\n\
             help: name the socket, such as \"/run/socktap.sock\"",
        ),
        (
            "[[tap]]\nname = \"x\"\nmode = \"enforced\"\n",
            "6:8: `mode` cannot be \"enforced\"\n  |\n6 | mode = \"enforced\"\n  |        ^^^^^^^^^^\nhelp: did you mean `enforce`?",
        ),
        (
            "[[tap]]\nname = \"x\"\nmidstream = \"ignore\"\n",
            "6:13: `midstream` cannot be \"ignore\"\n  |\n6 | midstream = \"ignore\"\n  |             ^^^^^^^^\n\
             help: the values here are `reset`, `pass`, `drop`",
        ),
        (
            "[[tap]]\nname = \"x\"\nmessage_timeout = \"30\"\n",
            "6:19: `message_timeout` is not a duration: a unit is missing: ms, s, m or h\n  |\n6 | message_timeout = \"30\"\n  \
             |                   ^^^^\nhelp: a duration from 1ms to 24h, such as \"500ms\", \"30s\" or \"2m\"",
        ),
        (
            "[[tap]]\nname = \"x\"\nmessage_timeout = \"0s\"\n",
            "6:19: `message_timeout` is out of bounds\n  |\n6 | message_timeout = \"0s\"\n  \
             |                   ^^^^\nhelp: a duration from 1ms to 24h, such as \"500ms\", \"30s\" or \"2m\"",
        ),
        (
            "[[tap]]\nname = \"a\"\nserver_port = [80]\n[[tap]]\nname = \"a\"\nserver_port = [81]\n",
            "8:8: there are two taps with the name \"a\"\n  |\n8 | name = \"a\"\n  |        ^^^\n\
             help: the other one is in line 5: counters and events tell taps by their names",
        ),
        (
            "[[tap]]\nname = \"x\"\nserver = [\"10.0.0.0/8\"]\nclient = [\"fd00::/8\"]\n",
            "5:8: tap \"x\" selects nothing\n  |\n5 | name = \"x\"\n  |        ^^^\n\
             help: `server` and `client` have no address family in common: no flow joins IPv4 and IPv6",
        ),
    ];
    for (rest, expected) in cases {
        assert_eq!(error_after_ports(rest), *expected, "\n--- of\n{rest}");
    }
}

#[test]
fn ports_are_needed() {
    assert_eq!(
        parse("").unwrap_err().to_string(),
        "etc/ops.toml:1:1: the file has no [ports]\n  |\n1 | \n  | ^\n\
         help: add the section, with the names of the two interfaces: client = \"eth1\" and server = \"eth2\""
    );
    assert_eq!(
        parse("[ports]\nclient = \"a\"\nserver = \"a\"\n").unwrap_err().to_string(),
        "etc/ops.toml:3:10: `client` and `server` are the same interface, \"a\"\n  |\n3 | server = \"a\"\n  |          ^^^\n\
         help: socktap stands between two interfaces: name the one towards the servers"
    );
    let error = parse("[ports]\nclient = \"an interface\"\nserver = \"b\"\n").unwrap_err().to_string();
    assert!(error.starts_with("etc/ops.toml:2:10: \"an interface\" cannot be the name of an interface\n"), "{error}");
}

#[test]
fn overlapping_taps() {
    let taps =
        |first: &str, second: &str| format!("[[tap]]\nname = \"one\"\n{first}\n[[tap]]\nname = \"two\"\n{second}\n");
    // The same flows, and flows that a wider tap took first.
    let message = error_after_ports(&taps("server_port = [80]", "server_port = [80]"));
    assert!(
        message.starts_with("8:8: tap \"two\" is never reached: tap \"one\" in line 5 selects all of its flows\n"),
        "{message}"
    );
    assert!(
        message.ends_with("help: the first tap that matches wins: give \"two\" other flows, or remove one of the two"),
        "{message}"
    );
    let message = error_after_ports(&taps("", "server = [\"10.0.0.0/8\"]"));
    assert!(message.contains("never reached"), "{message}");
    assert!(
        message.ends_with("help: the first tap that matches wins: put \"two\" before \"one\", or narrow \"one\""),
        "{message}"
    );
    // Two halves that are the whole.
    let message = error_after_ports(&taps(
        "server = [\"10.0.0.0/9\", \"10.128.0.0/9\"]\nclient = [\"0.0.0.0/0\"]",
        "server = [\"10.0.0.0/8\"]\nserver_port = [1]",
    ));
    assert!(message.contains("never reached"), "{message}");
    // Neither lies within the other.
    let message = error_after_ports(&taps(
        "server = [\"10.0.0.0/24\", \"fd00::/64\"]\nserver_port = [\"1-100\"]",
        "server = [\"10.0.0.0/8\"]\nserver_port = [\"80-90\"]",
    ));
    assert_eq!(
        message.lines().next().unwrap(),
        "9:8: tap \"two\" overlaps tap \"one\" in line 5: both select flows from 0.0.0.0 to 10.0.0.0:80"
    );
    let message = error_after_ports(&taps("server = [\"fd00::/64\"]", "client = [\"fd00:1::/64\", \"10.0.0.0/8\"]"));
    assert!(message.contains("both select flows from fd00:1:: to [fd00::]:0"), "{message}");

    // Good: apart by server, by client, by port, by family; an exception before the rule.
    for (first, second) in [
        ("server = [\"10.0.0.0/24\"]", "server = [\"10.0.1.0/24\"]"),
        ("client = [\"10.0.0.0/24\"]", "client = [\"10.0.1.0/24\"]"),
        ("server_port = [80, \"90-99\"]", "server_port = [\"81-89\", 100]"),
        ("server = [\"0.0.0.0/0\"]", "server = [\"::/0\"]"),
        ("server = [\"10.0.0.1\"]\nserver_port = [80]", "server = [\"10.0.0.0/8\"]"),
        ("server = [\"10.0.0.0/8\"]", ""),
    ] {
        parse(&format!("{PORTS}{}", taps(first, second))).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn all_problems_are_told_in_the_order_of_the_file() {
    let message = parse("[[tap]]\nname = 3\nmode = \"x\"\n[ports]\nserver = \"b\"\n").unwrap_err().to_string();
    let starts: Vec<&str> = message.lines().filter(|line| line.starts_with("etc/")).collect();
    assert_eq!(
        starts,
        [
            "etc/ops.toml:2:8: `name` must be a string, found a whole number",
            "etc/ops.toml:3:8: `mode` cannot be \"x\"",
            "etc/ops.toml:4:2: [ports] has no `client`",
        ]
    );
    let ConfigError::Invalid { problems } = parse("[ports]\nclient = 1\nserver = 2\n").unwrap_err() else { panic!() };
    assert_eq!(problems.len(), 2);
    assert_eq!((problems[0].at.line, problems[0].at.column), (2, 10));
}

#[test]
fn what_is_not_toml() {
    let message = parse("[ports]\nclient = eth1\nserver = \"b\n").unwrap_err().to_string();
    assert!(message.starts_with("etc/ops.toml:2:10: not TOML: "), "{message}");
    assert!(message.contains("\netc/ops.toml:3:12: not TOML: "), "{message}");
    let message = parse("[ports]\nclient = \"a\"\nclient = \"b\"\n").unwrap_err().to_string();
    assert!(message.starts_with("etc/ops.toml:3:1: not TOML: duplicate key"), "{message}");
}

#[test]
fn too_many_taps() {
    let tap = |n: usize| format!("[[tap]]\nname = \"t{n}\"\nserver_port = [{n}]\n");
    let taps: String = (1..=64).map(tap).collect();
    assert_eq!(parse(&format!("{PORTS}{taps}")).unwrap().taps.len(), 64);
    let message = error_after_ports(&(taps + &tap(65)));
    assert!(message.starts_with("196:1: there are 65 taps\n"), "{message}");
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let missing = Config::from_file(&folder.path().join("none.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read the ops file /") && missing.contains("No such file"), "{missing}");
    let binary = Config::from_file(&file("binary", b"[ports]\nclient = \"\xff\xfe\"\n")).unwrap_err().to_string();
    assert!(binary.contains("binary:2:11: this is not UTF-8 text"), "{binary}");
    let long = Config::from_file(&file("long", &vec![b'#'; (1 << 20) + 1])).unwrap_err().to_string();
    assert!(long.contains("longer than 1048576 bytes"), "{long}");
    assert!(Config::from_file(&file("good", PORTS.as_bytes())).is_ok());
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC*") {
        let _ = parse(&text);
    }

    /// The example with a part replaced by something else: deeper than arbitrary text gets.
    #[test]
    fn any_damage_is_answered(at in 0..EXAMPLE.len(), length in 0usize..40, insert in "[\\PC\n\t\"=\\[\\]{}0-9-]{0,8}") {
        let start = (0..=at).rev().find(|&at| EXAMPLE.is_char_boundary(at)).unwrap();
        let end = (start + length).min(EXAMPLE.len());
        let text = format!("{}{insert}{}", &EXAMPLE[..start], EXAMPLE.get(end..).unwrap_or(""));
        if let Err(error) = parse(&text) {
            prop_assert!(error.to_string().starts_with("etc/ops.toml:"), "{}", error);
        }
    }
}
