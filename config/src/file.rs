//! The document's sections.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use crate::document::{Reader, Table, Value, printable};
use crate::error::ConfigError;
use crate::source::{Located, Source};
use crate::{
    Config, Cross, EventsOutput, Fragments, Limits, Poll, Ports, Workers, XdpMode, limits, overlap, tap, units,
};

/// Checks a whole file; see [`Config::parse`].
pub(crate) fn parse(source: Source) -> Result<Config, ConfigError> {
    let text = source.clone();
    let (document, faults) = DeTable::parse_recoverable(text.text());
    if !faults.is_empty() {
        return Err(syntax(&source, &faults));
    }
    let root = document.get_ref();
    let mut reader = Reader { source, problems: Vec::new() };
    let whole = Table { name: "the file", entries: root, at: reader.at(0..0) };
    reader.check_keys(whole, &["ports", "workers", "limits", "metrics", "events", "control", "tap"]);

    let ports = read_ports(&mut reader, whole);
    let workers = read_workers(&mut reader, root);
    let limits = read_limits(&mut reader, root);
    let metrics = read_metrics(&mut reader, root);
    let events = read_events(&mut reader, root);
    let control = read_control(&mut reader, root);
    let taps = read_taps(&mut reader, root);
    if reader.problems.is_empty() {
        // A wrong list of prefixes stands for all addresses until here; comparing those would mislead.
        overlap::check(&mut reader, &taps);
    }

    match ports {
        Some(ports) if reader.problems.is_empty() => {
            Ok(Config { source: reader.source, ports, workers, limits, metrics, events, control, taps })
        }
        _ => Err(ConfigError::invalid(reader.problems)),
    }
}

/// What the TOML parser complains of: of each line the first fault, since the rest follows from it.
fn syntax(source: &Source, faults: &[toml::de::Error]) -> ConfigError {
    let mut problems = Vec::new();
    let mut last_line = 0;
    for fault in faults {
        let at = source.location(fault.span().unwrap_or(0..0));
        if at.line == last_line {
            continue;
        }
        last_line = at.line;
        problems.push(source.diagnostic(at, format!("not TOML: {}", fault.message()), None));
    }
    ConfigError::invalid(problems)
}

fn read_ports(reader: &mut Reader, whole: Table<'_>) -> Option<Ports> {
    let Some(table) = reader.section(whole.entries, "ports", "[ports]") else {
        if !whole.entries.contains_key("ports") {
            reader.problem(
                whole.at,
                "the file has no [ports]",
                "add the section, with the names of the two interfaces: client = \"eth1\" and server = \"eth2\"",
            );
        }
        return None;
    };
    reader.check_keys(table, &["client", "server", "xdp_mode", "cross", "fragments"]);
    let client = interface(reader, table, "client", "\"eth1\"");
    let server = interface(reader, table, "server", "\"eth2\"");
    let mut xdp_mode = Some(XdpMode::default());
    if let Some(value) = table.entries.get("xdp_mode") {
        let words = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("skb", XdpMode::Skb)];
        xdp_mode = reader.choice("xdp_mode", value, &words);
    }
    let mut cross = Some(Cross::default());
    if let Some(value) = table.entries.get("cross") {
        let words = [("auto", Cross::Auto), ("devmap", Cross::Devmap), ("worker", Cross::Worker)];
        cross = reader.choice("cross", value, &words);
    }
    let mut fragments = Some(Fragments::default());
    if let Some(value) = table.entries.get("fragments") {
        fragments = reader.choice("fragments", value, &[("drop", Fragments::Drop), ("cross", Fragments::Cross)]);
    }
    let (client, server) = (client?, server?);
    if client.value == server.value {
        let message = format!("`client` and `server` are the same interface, \"{}\"", server.value);
        reader.problem(server.at, message, "socktap stands between two interfaces: name the one towards the servers");
        return None;
    }
    Some(Ports { client, server, xdp_mode: xdp_mode?, cross: cross?, fragments: fragments? })
}

fn interface(reader: &mut Reader, table: Table<'_>, key: &str, example: &str) -> Option<Located<String>> {
    let value = reader.required(table, key, example)?;
    let name = reader.string(key, value)?;
    // net/core/dev.c, dev_valid_name(); IFNAMSIZ is 16 with the closing zero.
    let fits = !name.value.is_empty()
        && name.value.len() < 16
        && ![".", ".."].contains(&name.value)
        && !name.value.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if !fits {
        let message = format!("\"{}\" cannot be the name of an interface", printable(name.value));
        reader.problem(name.at, message, "`ip link` lists the interfaces; a name has 1 to 15 bytes");
        return None;
    }
    Some(Located { value: name.value.to_owned(), at: name.at })
}

fn read_workers(reader: &mut Reader, root: &DeTable<'_>) -> Workers {
    let mut workers = Workers::default();
    let Some(table) = reader.section(root, "workers", "[workers]") else {
        return workers;
    };
    reader.check_keys(table, &["cores", "poll"]);
    if let Some(value) = table.entries.get("cores") {
        workers.cores = cores(reader, value);
    }
    if let Some(value) = table.entries.get("poll") {
        let words = [("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];
        workers.poll = reader.choice("poll", value, &words).unwrap_or_default();
    }
    workers
}

fn cores(reader: &mut Reader, value: &Value<'_>) -> Option<Vec<Located<usize>>> {
    let entries = reader.list("cores", value, "name at least one core, or remove the key")?;
    let mut cores: Vec<Located<usize>> = Vec::new();
    for entry in entries {
        let Some(core) = reader.integer("cores", entry, 0, limits::CORE as u64) else {
            continue;
        };
        let core = Located { value: core.value as usize, at: core.at };
        if cores.iter().any(|other| other.value == core.value) {
            let message = format!("core {} is named twice", core.value);
            reader.problem(core.at, message, "each worker has a core of its own: remove one");
        }
        cores.push(core);
    }
    Some(cores)
}

fn read_limits(reader: &mut Reader, root: &DeTable<'_>) -> Limits {
    let mut found = Limits::default();
    let Some(table) = reader.section(root, "limits", "[limits]") else {
        return found;
    };
    reader.check_keys(table, &["flows", "message"]);
    if let Some(value) = table.entries.get("flows")
        && let Some(flows) = reader.integer("flows", value, 1, limits::FLOWS_MAX as u64)
    {
        found.flows = flows.value as usize;
    }
    if let Some(value) = table.entries.get("message")
        && let Some(message) = size(reader, "message", value, limits::MESSAGE_MAX)
    {
        found.message = message;
    }
    found
}

/// A number of bytes from 1 to `high`: an integer or a string with a unit.
fn size(reader: &mut Reader, key: &str, value: &Value<'_>, high: usize) -> Option<usize> {
    let at = reader.at(value.span());
    let bounds = format!("a size from 1 to {high} bytes, such as 65536, \"64KiB\" or \"1MiB\"");
    match value.get_ref() {
        DeValue::Integer(_) => reader.integer(key, value, 1, high as u64).map(|n| n.value as usize),
        DeValue::String(text) => match units::size(text) {
            Ok(bytes) if (1..=high as u64).contains(&bytes) => Some(bytes as usize),
            Ok(_) => {
                reader.problem(at, format!("`{key}` is out of bounds"), bounds);
                None
            }
            Err(fault) => {
                let message = format!("`{key}` is not a size: {fault}");
                reader.problem(at, message, bounds);
                None
            }
        },
        other => {
            let message = format!("`{key}` must be a size, found {}", crate::document::kind(other));
            reader.problem(at, message, bounds);
            None
        }
    }
}

fn read_metrics(reader: &mut Reader, root: &DeTable<'_>) -> Option<SocketAddr> {
    let table = reader.section(root, "metrics", "[metrics]")?;
    reader.check_keys(table, &["listen"]);
    let value = reader.required(table, "listen", "\"127.0.0.1:9464\"")?;
    let text = reader.string("listen", value)?;
    match text.value.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let message = format!("`listen` is not an address with a port: \"{}\"", printable(text.value));
            reader.problem(text.at, message, "write it as \"127.0.0.1:9464\" or \"[::1]:9464\"");
            None
        }
    }
}

fn read_events(reader: &mut Reader, root: &DeTable<'_>) -> Option<EventsOutput> {
    let table = reader.section(root, "events", "[events]")?;
    reader.check_keys(table, &["path"]);
    let value = reader.required(table, "path", "\"-\"")?;
    let path = reader.string("path", value)?;
    match path.value {
        "" => {
            reader.problem(path.at, "`path` is empty", "name a file, or \"-\" for standard output");
            None
        }
        "-" => Some(EventsOutput::Stdout),
        file => Some(EventsOutput::File(reader.source.resolve(file))),
    }
}

fn read_control(reader: &mut Reader, root: &DeTable<'_>) -> Option<Located<PathBuf>> {
    let table = reader.section(root, "control", "[control]")?;
    reader.check_keys(table, &["path"]);
    let value = reader.required(table, "path", "\"/run/socktap.sock\"")?;
    let path = reader.string("path", value)?;
    if path.value.is_empty() || path.value.contains('\0') {
        reader.problem(path.at, "`path` is not the name of a file", "name the socket, such as \"/run/socktap.sock\"");
        return None;
    }
    let socket = reader.source.resolve(path.value);
    let length = socket.as_os_str().len();
    if length > limits::SOCKET_PATH_BYTES {
        let message = format!("`path` is too long for a socket: {length} bytes, its folder included");
        reader.problem(path.at, message, format_args!("at most {} bytes are taken", limits::SOCKET_PATH_BYTES));
        return None;
    }
    Some(Located { value: socket, at: path.at })
}

fn read_taps(reader: &mut Reader, root: &DeTable<'_>) -> Vec<tap::Tap> {
    let Some((key, value)) = root.get_key_value("tap") else {
        return Vec::new();
    };
    let at = reader.at(key.span());
    let DeValue::Array(entries) = value.get_ref() else {
        reader.problem(at, "`tap` must be a list of tables", "write each tap as a section of its own: [[tap]]");
        return Vec::new();
    };
    let mut taps: Vec<tap::Tap> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = reader.at(entry.span());
        if index == limits::TAPS {
            let message = format!("there are {} taps", entries.len());
            reader.problem(
                at,
                message,
                format_args!("at most {} are taken: join some by listing more prefixes", limits::TAPS),
            );
            break;
        }
        let DeValue::Table(entries) = entry.get_ref() else {
            reader.problem(at, "a tap must be a table", "write each tap as a section of its own: [[tap]]");
            continue;
        };
        let Some(tap) = tap::read(reader, Table { name: "[[tap]]", entries, at }) else {
            continue;
        };
        if let Some(other) = taps.iter().find(|other| other.name.value == tap.name.value) {
            let message = format!("there are two taps with the name \"{}\"", tap.name.value);
            let help = format!(
                "the other one is in line {}: counters and events tell taps by their names",
                other.name.at.line
            );
            reader.problem(tap.name.at, message, help);
        }
        taps.push(tap);
    }
    taps
}
