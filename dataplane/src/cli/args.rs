//! Arguments of the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const STATUS: &str = "Exit status: 0 good, 1 failed while running, 2 bad usage, configuration or program.\n\
                      SOCKTAP_LOG=debug (or warn, error, off) sets what is logged to standard error.";

/// An inline filter for TCP applications.
///
/// socktap stands between two network interfaces, cuts the selected TCP streams into the messages that the application
/// exchanges, and asks a BPF program about each one: pass it, drop it, or drop it and disconnect.
#[derive(Debug, Parser)]
#[command(name = "socktap", version, after_help = STATUS)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Filter in the foreground until SIGINT or SIGTERM
    ///
    /// Needs root. Either signal ends it cleanly: the XDP programs are detached and the tapped flows are reset.
    Run {
        /// The ops file (TOML)
        file: PathBuf,
    },
    /// Load everything that a run would load, and attach nothing
    ///
    /// Reads the ops file, finds the interfaces, loads the programs and has the kernel verify them (needs root). Prints
    /// what each tap selects; or what is wrong, with file, line and column.
    Check {
        /// The ops file (TOML)
        file: PathBuf,
    },
    /// Have the running socktap take up a changed ops file, without losing a byte
    ///
    /// Programs, settings, shadows, `mode`, `on_parse_error` and `message_timeout` can change; everything else needs a
    /// restart. A file that is wrong in any way changes nothing.
    Reload(ControlArgs),
    /// Say what the running socktap runs
    ///
    /// Prints one JSON object: workers, flows, taps and their programs, and how often the ops file was taken up.
    Status(ControlArgs),
    /// Look at the maps of the running programs, and change them
    ///
    /// A map is TAP/MAP, as `list` shows it; what is printed is one JSON object a line.
    ///
    /// Keys and values are written as:
    ///   0x0a000001       bytes, in the order in which they lie in memory; "0a 00 00 01" is the same
    ///   1000, -5         a number, for 1, 2, 4 or 8 bytes, in the byte order of this machine
    ///   '"GET"'          a text in double quotes, with zeros behind it
    #[command(verbatim_doc_comment)]
    Map {
        /// What to do
        #[command(subcommand)]
        command: MapCommand,
    },
    /// Begin a filter: write a folder with a parser, a verdict, an ops file and a test
    New {
        /// The folder, whose last name is the filter's
        folder: PathBuf,
    },
    /// Cut the bytes of a file into messages and judge them, offline
    ///
    /// Prints one JSON object a line:
    ///   {"offset":0,"length":64,"verdict":"pass"}        a message; or "drop", or "disconnect", which ends it
    ///   {"offset":64,"length":3,"error":"incomplete"}    the input ends within a message
    ///   {"offset":64,"error":"bad_length","detail":..}   the stream cannot be cut any further
    /// An "error" gives exit status 1.
    ///
    /// Without the right to ask the kernel's verifier a warning says so and the test goes on:
    /// programs are checked while they run in any case.
    #[command(verbatim_doc_comment)]
    Test(TestArgs),
}

/// How a command finds the running socktap.
#[derive(Args, Debug)]
pub struct ControlArgs {
    /// The ops file (TOML), whose [control] says where socktap listens
    pub file: PathBuf,
    /// Where socktap listens, instead of what the ops file says
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// What to do with maps.
#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// List the maps of all taps, with their types and sizes
    List(ControlArgs),
    /// Print all elements of a map
    Dump {
        /// How to find socktap
        #[command(flatten)]
        at: ControlArgs,
        /// The map: TAP/MAP
        map: String,
    },
    /// Print one element of a map
    Get {
        /// How to find socktap
        #[command(flatten)]
        at: ControlArgs,
        /// The map: TAP/MAP
        map: String,
        /// The element's key
        #[arg(allow_hyphen_values = true)]
        key: String,
    },
    /// Write an element of a map; where each worker has a value of its own, all of them
    Set {
        /// How to find socktap
        #[command(flatten)]
        at: ControlArgs,
        /// The map: TAP/MAP
        map: String,
        /// The element's key
        #[arg(allow_hyphen_values = true)]
        key: String,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Remove an element of a map
    Delete {
        /// How to find socktap
        #[command(flatten)]
        at: ControlArgs,
        /// The map: TAP/MAP
        map: String,
        /// The element's key
        #[arg(allow_hyphen_values = true)]
        key: String,
    },
}

/// Arguments of `socktap test`.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// The compiled BPF object (clang -O2 -g -target bpf)
    pub object: PathBuf,
    /// The stream parser's function (section sk_skb/stream_parser)
    #[arg(long, value_name = "FUNCTION")]
    pub parser: String,
    /// The verdict's function (section sk_skb/stream_verdict); without it all messages pass
    #[arg(long, value_name = "FUNCTION")]
    pub verdict: Option<String>,
    /// The bytes: a raw stream, or a pcap or pcapng capture whose first TCP flow is taken
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// What the input is; `auto` knows a capture by its first four bytes
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Whose bytes of a capture are judged: those that the client sends, or the server
    ///
    /// Without a handshake in the capture, the end with the lower port counts as the server.
    #[arg(long, value_enum, default_value_t = Sender::Client)]
    pub direction: Sender,
    /// Bytes per delivery: the parser is asked after every N bytes; the result must not depend on it
    #[arg(long, value_name = "N")]
    pub split: Option<NonZeroUsize>,
    /// A value for a constant of the object, as `set` in the ops file: NAME=VALUE, where VALUE is a number, true, false, a text,
    /// or a list such as ["a","b"]
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, tap_engine::Setting)>,
    /// Whether the kernel's verifier is asked; what it has not seen runs with run-time checks
    #[arg(long, value_enum, default_value_t = Gate::Kernel)]
    pub verify: Gate,
    /// Show for each message the instructions that parser and verdict have spent, and what they printed
    #[arg(long)]
    pub trace: bool,
    /// Print the elements of this map at the end
    #[arg(long, value_name = "NAME")]
    pub map: Vec<String>,
    /// Largest message, as `message` in [limits]
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = message_size)]
    pub max_message: usize,
}

/// Who judges the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gate {
    /// The kernel's verifier.
    Kernel,
    /// Nobody.
    Off,
}

/// What an input file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A capture if it begins like one, else a raw stream.
    Auto,
    /// The bytes of one direction of a stream.
    Raw,
    /// A pcap or pcapng file.
    Pcap,
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sender {
    /// The end that opened the connection.
    Client,
    /// The end that was connected to.
    Server,
}

fn setting(text: &str) -> Result<(String, tap_engine::Setting), String> {
    use tap_engine::Setting;
    fn value(json: serde_json::Value) -> Result<Setting, String> {
        use serde_json::Value;
        match json {
            Value::Bool(value) => Ok(Setting::Boolean(value)),
            Value::Number(number) => number.as_i64().map(Setting::Integer).ok_or(format!("{number} is no integer")),
            Value::String(text) => Ok(Setting::Text(text)),
            Value::Array(values) => values.into_iter().map(value).collect::<Result<_, _>>().map(Setting::List),
            other => Err(format!("{other} is no value for a variable")),
        }
    }
    let (name, text) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    let parsed = serde_json::from_str(text).map_or_else(|_| Ok(Setting::Text(text.to_owned())), value)?;
    Ok((name.to_owned(), parsed))
}

fn message_size(text: &str) -> Result<usize, String> {
    let high = config::limits::MESSAGE_MAX;
    match config::parse_size(text)?.try_into() {
        Ok(size) if (1..=high).contains(&size) => Ok(size),
        _ => Err(format!("it must be 1 to {high} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn map_arguments() {
        let parse = |words: &[&str]| {
            let words = ["socktap", "map"].iter().chain(words);
            Cli::try_parse_from(words).map(|cli| match cli.command {
                Command::Map { command } => command,
                other => panic!("{other:?}"),
            })
        };
        let set = parse(&["set", "ops.toml", "redis/counts", "-1", "-5"]).unwrap();
        let MapCommand::Set { at, map, key, value } = set else { panic!("{set:?}") };
        assert_eq!((&*map, &*key, &*value), ("redis/counts", "-1", "-5"));
        assert_eq!((at.file, at.control), (PathBuf::from("ops.toml"), None));
        assert!(matches!(parse(&["list", "f", "--control", "c"]), Ok(MapCommand::List(at)) if at.control.is_some()));
        for bad in [&["list"][..], &["dump", "f"], &["get", "f", "m"], &["set", "f", "m", "1"], &["drop", "f"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn test_arguments() {
        let parse = |extra: &[&str]| {
            let base = ["socktap", "test", "a.o", "--parser", "p", "--input", "f"];
            Cli::try_parse_from(base.iter().chain(extra)).map(|cli| match cli.command {
                Command::Test(args) => args,
                other => panic!("{other:?}"),
            })
        };
        let args = parse(&[]).unwrap();
        assert_eq!((args.split, args.max_message, args.direction), (None, 65_536, Sender::Client));
        let args =
            parse(&["--split", "1", "--max-message", "1MiB", "--direction", "server", "--verdict", "v"]).unwrap();
        assert_eq!((args.split.unwrap().get(), args.max_message, args.direction), (1, 1 << 20, Sender::Server));
        for bad in [["--split", "0"], ["--max-message", "0"], ["--max-message", "2MiB"], ["--direction", "both"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
