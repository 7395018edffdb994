//! `socktap check`: loads what a run would load and says what it would do.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;

use config::{
    Application, Config, EventsOutput, Fragments, IpNet, Midstream, Mode, OnParseError, Programs, Set, Tap, Verify,
};
use xdp_redirect::{Cross, Port};

use super::{Status, bad};
use crate::load;

/// Checks the ops file and all that it names; prints what a run would do, or everything that is wrong.
pub(super) fn check(file: &Path) -> Status {
    let config = match Config::from_file(file) {
        Ok(config) => config,
        Err(error) => return bad(&error),
    };
    let ports = match load::prepare(&config) {
        Ok(prepared) => prepared.ports,
        Err(failure) => return bad(&failure),
    };
    let text = describe(&config, &ports.each_ref().map(describe_port), load::cross(&config, &ports));
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Status::Good,
        Err(error) => {
            eprintln!("socktap: cannot write to standard output: {error}");
            Status::Failed
        }
    }
}

fn describe_port(port: &Port) -> String {
    format!("{} (driver {}, MTU {}, {} rx queues)", port.name, port.driver, port.mtu, port.rx_queues)
}

/// What a run would do, in a readable form.
fn describe(config: &Config, ports: &[String; 2], cross: Cross) -> String {
    let mut out = format!("{}: good, {} tap(s)\n", config.source.path().display(), config.taps.len());
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<13} {value}").expect("a String takes everything");
    line("client port", &ports[0]);
    line("server port", &ports[1]);
    line(
        "not selected",
        match cross {
            Cross::Devmap => "to the other port, by XDP",
            Cross::Worker => "to the other port, by the worker",
        },
    );
    line(
        "fragments",
        match config.ports.fragments {
            Fragments::Drop => "dropped, those of TCP between addresses that a tap selects",
            Fragments::Cross => "to the other port, unjudged",
        },
    );
    let limits = config.limits;
    line("limits", &format!("{} flows, messages of up to {} bytes", limits.flows, limits.message));
    if let Some(listen) = config.metrics {
        line("metrics", &format!("http://{listen}/metrics"));
    }
    match &config.events {
        Some(EventsOutput::Stdout) => line("events", "standard output"),
        Some(EventsOutput::File(path)) => line("events", &path.display().to_string()),
        None => {}
    }
    if let Some(control) = &config.control {
        line("control", &control.value.display().to_string());
    }
    for (index, tap) in config.taps.iter().enumerate() {
        out += "\n";
        out += &describe_tap(index, tap);
    }
    if config.taps.is_empty() {
        out += "\nno taps: all frames go to the other port\n";
    }
    out
}

fn describe_tap(index: usize, tap: &Tap) -> String {
    let mode = match tap.mode {
        Mode::Enforce => "verdicts are obeyed",
        Mode::Observe => "observe: judged and counted, but all messages pass",
    };
    let mut out = format!("tap {} \"{}\": {mode}\n", index + 1, tap.name.value);
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<13} {value}").expect("a String takes everything");
    line("to", &format!("{}, {}", addresses(&tap.servers), port_list(&tap.server_ports)));
    line("from", &addresses(&tap.clients));
    line(
        "midstream",
        match tap.midstream {
            Midstream::Reset => "reset connections that were open before",
            Midstream::Pass => "pass connections that were open before, unjudged",
            Midstream::Drop => "drop segments of connections that were open before",
        },
    );
    if tap.is_pass_all() {
        line("programs", "none: TCP is terminated and all bytes pass");
        return out;
    }
    line(
        "application",
        match tap.application {
            Application::Server => "the server",
            Application::Client => "the client",
        },
    );
    line("receive", &programs(tap.receive.as_ref()));
    line("send", &programs(tap.send.as_ref()));
    line(
        "parse error",
        match tap.on_parse_error {
            OnParseError::Disconnect => "reset both sides",
            OnParseError::Drop => "drop the rest of the direction",
            OnParseError::Pass => "pass the rest of the flow unjudged",
        },
    );
    line("timeout", &format!("{} for a message to become complete", config::show_duration(tap.message_timeout)));
    out
}

fn programs(programs: Option<&Programs>) -> String {
    let Some(programs) = programs else { return "not parsed, all bytes pass".to_owned() };
    let verdict = match &programs.verdict {
        Some(verdict) => format!("verdict {}", verdict.value),
        None => "all messages pass".to_owned(),
    };
    let source = source(&programs.object.value, &programs.set, programs.verify);
    let shadow = programs.shadow.as_ref().map(|shadow| {
        let source = self::source(&shadow.object.value, &shadow.set, shadow.verify);
        format!("; shadow {source}: verdict {}", shadow.verdict.value)
    });
    format!("{source}: parser {}, {verdict}{}", programs.parser.value, shadow.unwrap_or_default())
}

/// An object file, and how it is loaded.
fn source(object: &Path, set: &Set, verify: Verify) -> String {
    let mut notes = Vec::new();
    if !set.is_empty() {
        notes.push(format!("sets {}", join(set.keys().cloned())));
    }
    if verify == Verify::Off {
        notes.push("not verified".to_owned());
    }
    let object = object.display();
    if notes.is_empty() { object.to_string() } else { format!("{object} ({})", notes.join("; ")) }
}

fn addresses(prefixes: &[IpNet]) -> String {
    if prefixes.is_empty() { "all addresses".to_owned() } else { join(prefixes.iter().map(IpNet::to_string)) }
}

fn port_list(ports: &[RangeInclusive<u16>]) -> String {
    if ports.is_empty() {
        return "all ports".to_owned();
    }
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    format!("port {}", join(ports.iter().map(range)))
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description() {
        let text = r#"
            ports = { client = "a", server = "b" }
            metrics.listen = "127.0.0.1:9464"
            control.path = "/run/socktap.sock"
            [[tap]]
            name = "redis"
            server = ["10.0.0.0/24", "fd00::/64"]
            server_port = [6379, "7000-7010"]
            receive = { object = "redis.bpf.o", parser = "parse_command", verdict = "no_flush" }
            send = { object = "a.o", parser = "p", set = { x = 1, y = 2 }, shadow = { object = "b.o", verdict = "v", verify = "off" } }
            [[tap]]
            name = "rest"
            mode = "observe"
            midstream = "pass"
        "#;
        let config = Config::parse(Path::new("etc/ops.toml"), text).unwrap_or_else(|error| panic!("{error}"));
        let ports = ["a (driver veth)", "b (driver veth)"].map(str::to_owned);
        assert_eq!(
            describe(&config, &ports, Cross::Worker),
            r#"etc/ops.toml: good, 2 tap(s)
  client port   a (driver veth)
  server port   b (driver veth)
  not selected  to the other port, by the worker
  fragments     dropped, those of TCP between addresses that a tap selects
  limits        100000 flows, messages of up to 65536 bytes
  metrics       http://127.0.0.1:9464/metrics
  control       /run/socktap.sock

tap 1 "redis": verdicts are obeyed
  to            10.0.0.0/24, fd00::/64, port 6379, 7000-7010
  from          all addresses
  midstream     reset connections that were open before
  application   the server
  receive       etc/redis.bpf.o: parser parse_command, verdict no_flush
  send          etc/a.o (sets x, y): parser p, all messages pass; shadow etc/b.o (not verified): verdict v
  parse error   reset both sides
  timeout       30s for a message to become complete

tap 2 "rest": observe: judged and counted, but all messages pass
  to            all addresses, all ports
  from          all addresses
  midstream     pass connections that were open before, unjudged
  programs      none: TCP is terminated and all bytes pass
"#
        );
    }
}
