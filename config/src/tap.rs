//! `[[tap]]`: which flows, which programs, which policies.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use crate::document::{Reader, Table, Value, kind, printable};
use crate::programs::{self, Programs};
use crate::source::{Located, Location};
use crate::{limits, units};

/// A rule: which flows it selects, and what becomes of their messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Unique; letters, digits, `.`, `_` and `-`.
    pub name: Located<String>,
    /// The section's header.
    pub at: Location,
    /// Prefixes of the server's address, without host bits; empty = all addresses.
    pub servers: Vec<IpNet>,
    /// Prefixes of the client's address, without host bits; empty = all addresses.
    pub clients: Vec<IpNet>,
    /// Ports of the server: sorted, apart from each other, none of them 0; empty = all ports.
    pub server_ports: Vec<RangeInclusive<u16>>,
    /// Whether verdicts are obeyed.
    pub mode: Mode,
    /// Whose `receive` and `send` are meant.
    pub application: Application,
    /// What judges the bytes that the application receives; `None` = not parsed, all pass.
    pub receive: Option<Programs>,
    /// What judges the bytes that the application sends; `None` = not parsed, all pass.
    pub send: Option<Programs>,
    /// What happens to a stream that cannot be parsed.
    pub on_parse_error: OnParseError,
    /// How long a message may stay incomplete.
    pub message_timeout: Duration,
    /// What happens to connections that were open before socktap was there.
    pub midstream: Midstream,
}

impl Tap {
    /// Whether the tap judges nothing: its flows are terminated and forwarded.
    pub fn is_pass_all(&self) -> bool {
        self.receive.is_none() && self.send.is_none()
    }
}

/// `mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Verdicts are obeyed.
    #[default]
    Enforce,
    /// Judge, count and report, but pass everything.
    Observe,
}

/// `application`: the end of the flow whose `receive` and `send` a tap means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Application {
    /// The server.
    #[default]
    Server,
    /// The client.
    Client,
}

/// `on_parse_error`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnParseError {
    /// Reset both sides.
    #[default]
    Disconnect,
    /// Drop the rest of that direction's bytes.
    Drop,
    /// Pass the rest of the flow unjudged.
    Pass,
}

/// `midstream`: what happens to the segments of a connection that the tap selects but that was opened before socktap
/// started, so that its SYN was never seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Midstream {
    /// Reset the sender (RFC 9293 §3.10.7.1), so that it opens a new connection, which is judged.
    #[default]
    Reset,
    /// Send them across as they are, unjudged; with them all that belongs to no flow and cannot open one. Not for hosts that
    /// want to evade the filter: who makes us forget a flow that the other host still knows goes on unjudged.
    Pass,
    /// Drop them without an answer.
    Drop,
}

/// Reads one tap. What is wrong is noted; a tap comes back as long as it has a name.
pub(crate) fn read(reader: &mut Reader, table: Table<'_>) -> Option<Tap> {
    const KEYS: &[&str] = &[
        "name",
        "server",
        "server_port",
        "client",
        "mode",
        "application",
        "receive",
        "send",
        "on_parse_error",
        "message_timeout",
        "midstream",
    ];
    reader.check_keys(table, KEYS);
    let name = read_name(reader, table);
    let get = |key: &str| table.entries.get(key);
    let servers = get("server").map(|value| prefixes(reader, "server", value)).unwrap_or_default();
    let clients = get("client").map(|value| prefixes(reader, "client", value)).unwrap_or_default();
    let server_ports = get("server_port").map(|value| ports(reader, value)).unwrap_or_default();
    let mode = get("mode")
        .and_then(|value| reader.choice("mode", value, &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]));
    let application = get("application").and_then(|value| {
        let words = [("server", Application::Server), ("client", Application::Client)];
        reader.choice("application", value, &words)
    });
    let receive = get("receive").and_then(|value| programs::read(reader, "receive", value));
    let send = get("send").and_then(|value| programs::read(reader, "send", value));
    let on_parse_error = get("on_parse_error").and_then(|value| {
        let words =
            [("disconnect", OnParseError::Disconnect), ("drop", OnParseError::Drop), ("pass", OnParseError::Pass)];
        reader.choice("on_parse_error", value, &words)
    });
    let message_timeout = get("message_timeout").and_then(|value| timeout(reader, value));
    let midstream = get("midstream").and_then(|value| {
        let words = [("reset", Midstream::Reset), ("pass", Midstream::Pass), ("drop", Midstream::Drop)];
        reader.choice("midstream", value, &words)
    });
    // The defaults below stand in for wrong values too: then there is a problem noted, and no `Config`.
    Some(Tap {
        name: name?,
        at: table.at,
        servers,
        clients,
        server_ports,
        mode: mode.unwrap_or_default(),
        application: application.unwrap_or_default(),
        receive,
        send,
        on_parse_error: on_parse_error.unwrap_or_default(),
        message_timeout: message_timeout.unwrap_or(limits::TIMEOUT_DEFAULT),
        midstream: midstream.unwrap_or_default(),
    })
}

fn read_name(reader: &mut Reader, table: Table<'_>) -> Option<Located<String>> {
    let value = reader.required(table, "name", "\"redis\"")?;
    let name = reader.string("name", value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.value.is_empty() || name.value.len() > limits::NAME_BYTES || !name.value.chars().all(plain) {
        let message = format!("\"{}\" cannot be the name of a tap", printable(name.value));
        let help = format!("use 1 to {} letters, digits, `.`, `_` and `-`", limits::NAME_BYTES);
        reader.problem(name.at, message, help);
        return None;
    }
    Some(Located { value: name.value.to_owned(), at: name.at })
}

fn prefixes(reader: &mut Reader, key: &str, value: &Value<'_>) -> Vec<IpNet> {
    let absence = "name at least one prefix, or remove the key: then all addresses are meant";
    let mut found = Vec::new();
    for entry in reader.list(key, value, absence).unwrap_or_default() {
        let Some(text) = reader.string(key, entry) else {
            continue;
        };
        match prefix(text.value) {
            Ok(prefix) if found.contains(&prefix) => {}
            Ok(prefix) => found.push(prefix),
            Err((message, help)) => reader.problem(text.at, message, help),
        }
    }
    found
}

/// A prefix, or a bare address; or message and help.
fn prefix(text: &str) -> Result<IpNet, (String, String)> {
    let form = || "write it as \"10.0.0.0/24\", \"fd00::/64\" or a single address".to_owned();
    let net = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => net,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            return Err((format!("\"{}\" is not an address prefix", printable(text)), form()));
        }
    };
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        let message = format!("\"{text}\" is an IPv4 address in IPv6 clothing; no packet carries it");
        return Err((message, "write the IPv4 prefix itself, such as \"10.0.0.0/24\"".to_owned()));
    }
    if net.addr() != net.network() {
        let message = format!("\"{text}\" has bits set behind its prefix length");
        let (network, address) = (net.trunc(), IpNet::from(net.addr()));
        return Err((message, format!("write \"{network}\" for the network, or \"{address}\" for the one address")));
    }
    Ok(net)
}

/// Ports and ranges of ports, sorted and merged.
fn ports(reader: &mut Reader, value: &Value<'_>) -> Vec<RangeInclusive<u16>> {
    let absence = "name at least one port, or remove the key: then all ports are meant";
    let mut found: Vec<RangeInclusive<u16>> = Vec::new();
    for entry in reader.list("server_port", value, absence).unwrap_or_default() {
        let at = reader.at(entry.span());
        let problem = match entry.get_ref() {
            DeValue::Integer(_) => {
                if let Some(port) = reader.integer("server_port", entry, 1, u64::from(u16::MAX)) {
                    let port = port.value as u16;
                    found.push(port..=port);
                }
                continue;
            }
            DeValue::String(text) => match port_range(text) {
                Ok(range) => {
                    found.push(range);
                    continue;
                }
                Err(problem) => problem,
            },
            other => format!("a port cannot be {}", kind(other)),
        };
        reader.problem(at, problem, "write ports as 6379, ranges as \"7000-7010\"; from 1 to 65535");
    }
    merge(found)
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bad = || format!("\"{}\" is not a range of ports", printable(text));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let text = text.trim();
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or_else(bad)
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!("the range \"{text}\" runs backwards"));
    }
    Ok(first..=last)
}

fn merge(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn timeout(reader: &mut Reader, value: &Value<'_>) -> Option<Duration> {
    let (low, high) = (limits::TIMEOUT_MIN, limits::TIMEOUT_MAX);
    let bounds = format!(
        "a duration from {} to {}, such as \"500ms\", \"30s\" or \"2m\"",
        units::show_duration(low),
        units::show_duration(high)
    );
    let at = reader.at(value.span());
    let DeValue::String(text) = value.get_ref() else {
        let message = format!("`message_timeout` must be a duration, found {}", kind(value.get_ref()));
        reader.problem(at, message, bounds);
        return None;
    };
    let problem = match units::duration(text) {
        Ok(duration) if (low..=high).contains(&duration) => return Some(duration),
        Ok(_) => "`message_timeout` is out of bounds".to_owned(),
        Err(fault) => format!("`message_timeout` is not a duration: {fault}"),
    };
    reader.problem(at, problem, bounds);
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_ports() {
        assert_eq!(port_range("7000-7010"), Ok(7000..=7010));
        assert_eq!(port_range("80"), Ok(80..=80));
        assert_eq!(port_range(" 1 - 65535 "), Ok(1..=65535));
        for bad in ["", "-", "0-1", "1-", "-1", "1-2-3", "65536", "+1-2", "a-b"] {
            assert_eq!(port_range(bad), Err(format!("\"{bad}\" is not a range of ports")));
        }
        assert_eq!(port_range("9-8"), Err("the range \"9-8\" runs backwards".to_owned()));
    }

    #[test]
    fn prefixes_are_exact() {
        assert_eq!(prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(prefix("fd00::1").unwrap().to_string(), "fd00::1/128");
        assert!(prefix("10.0.0.0/33").is_err());
        assert!(prefix("::ffff:10.0.0.1").is_err());
        let (_, help) = prefix("10.0.0.7/24").unwrap_err();
        assert_eq!(help, "write \"10.0.0.0/24\" for the network, or \"10.0.0.7/32\" for the one address");
    }

    proptest! {
        #[test]
        fn merged_ranges_hold_the_same_ports(ranges in prop::collection::vec((1u16.., 0u16..50), 0..20), port in 1u16..) {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, n)| first..=first.saturating_add(n)).collect();
            let merged = merge(ranges.clone());
            prop_assert_eq!(ranges.iter().any(|r| r.contains(&port)), merged.iter().any(|r| r.contains(&port)));
            prop_assert!(merged.windows(2).all(|w| u32::from(*w[0].end()) + 1 < u32::from(*w[1].start())));
        }
    }
}
