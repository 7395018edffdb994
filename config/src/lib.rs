//! The ops file: TOML to checked types, once.
//!
//! ```text
//! text ──▶ toml ──▶ document.rs (tables, spans) ──▶ file.rs, tap.rs (types) ──▶ overlap.rs ──▶ Config
//!                                   │                        │                       │
//!                                   └──────── diagnostics with line and column ──────┘──▶ ConfigError
//! ```
//!
//! Invariants of a [`Config`]: every value is within the bounds that [`limits`] names; tap names are
//! unique; no tap is hidden by an earlier one; two taps that share flows are ordered from the more
//! specific to the less specific one. Nothing is opened here but the file itself: interfaces, cores and
//! object files are somebody else's to find, so each of them keeps its [`Location`], and
//! [`Config::diagnostic`] turns that into the same kind of message as an error of the file itself.
#![forbid(unsafe_code)]

mod document;
mod error;
mod file;
mod overlap;
mod programs;
mod selection;
mod source;
mod tap;
mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ConfigError;
pub use ipnet::IpNet;
pub use programs::{Programs, Set, Setting, Shadow, Verify};
pub use source::{Diagnostic, Located, Location, Source};
pub use tap::{Application, Midstream, Mode, OnParseError, Tap};

/// The bounds of what an ops file may say, and what holds when it says nothing.
pub mod limits {
    use std::time::Duration;

    /// Bytes of the largest ops file that is read.
    pub const FILE_BYTES: u64 = 1 << 20;
    /// Taps in one file; the steering program holds no more rules.
    pub const TAPS: usize = 64;
    /// Entries of one list of prefixes or ports.
    pub const LIST: usize = 1024;
    /// Bytes of a tap's name.
    pub const NAME_BYTES: usize = 64;
    /// How deep lists of `set` may be in each other; C programs have no use for more dimensions.
    pub const SETTING_DEPTH: usize = 4;
    /// Bytes of the longest path of a unix socket: `sun_path` without its closing zero.
    pub const SOCKET_PATH_BYTES: usize = 107;
    /// Largest number of a core.
    pub const CORE: usize = 4095;
    /// Largest `limits.flows`.
    pub const FLOWS_MAX: usize = 4_000_000;
    /// `limits.flows` when absent.
    pub const FLOWS_DEFAULT: usize = 100_000;
    /// Largest `limits.message`, in bytes.
    pub const MESSAGE_MAX: usize = 1 << 20;
    /// `limits.message` when absent, in bytes.
    pub const MESSAGE_DEFAULT: usize = 64 << 10;
    /// Shortest `message_timeout`.
    pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);
    /// Longest `message_timeout`.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
    /// `message_timeout` when absent.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
}

/// A checked ops file.
#[derive(Clone, Debug)]
pub struct Config {
    /// The text that this was read from; the locations point into it.
    pub source: Source,
    /// `[ports]`
    pub ports: Ports,
    /// `[workers]`
    pub workers: Workers,
    /// `[limits]`
    pub limits: Limits,
    /// `[metrics] listen`: where Prometheus finds us; `None` = off.
    pub metrics: Option<SocketAddr>,
    /// `[events] path`: where events go; `None` = off.
    pub events: Option<EventsOutput>,
    /// `[control] path`: the unix socket on which commands are heard; `None` = off.
    pub control: Option<Located<PathBuf>>,
    /// `[[tap]]`, at most [`limits::TAPS`], in the order of the file: the first that matches wins.
    pub taps: Vec<Tap>,
}

/// The pair of network ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Interface name of the port towards the clients (1 to 15 bytes).
    pub client: Located<String>,
    /// Interface name of the port towards the servers; another one than `client`.
    pub server: Located<String>,
    /// How the steering program is attached.
    pub xdp_mode: XdpMode,
    /// How frames that no tap selects get to the other port.
    pub cross: Cross,
    /// What becomes of fragments of TCP between addresses that a tap selects.
    pub fragments: Fragments,
}

impl Ports {
    /// Whether both say the same, wherever it stands in their files.
    pub fn is_same(&self, other: &Ports) -> bool {
        let values = |ports: &Ports| (ports.xdp_mode, ports.cross, ports.fragments);
        let names = |ports: &Ports| [&ports.client, &ports.server].map(|name| name.value.clone());
        values(self) == values(other) && names(self) == names(other)
    }
}

/// `ports.xdp_mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native if the driver can, else skb.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the kernel's generic path.
    Skb,
}

/// `ports.cross`: how frames that no tap selects get to the other port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cross {
    /// As the drivers of the two ports allow.
    #[default]
    Auto,
    /// XDP redirects them through a devmap.
    Devmap,
    /// The worker forwards them.
    Worker,
}

/// `ports.fragments`: what becomes of IP fragments of TCP between two addresses that a tap selects, whatever its ports. They
/// are never judged. All other fragments cross.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// They are dropped.
    #[default]
    Drop,
    /// They cross, and with them whatever a receiver makes of them.
    Cross,
}

/// The worker threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Cores to pin workers to, each at most once; `None` = the first cores, one for each rx queue.
    /// Whether a core exists is not checked here.
    pub cores: Option<Vec<Located<usize>>>,
    /// What a worker does while there is nothing to do.
    pub poll: Poll,
}

impl Workers {
    /// Whether both say the same, wherever it stands in their files.
    pub fn is_same(&self, other: &Workers) -> bool {
        let cores = |workers: &Workers| -> Option<Vec<usize>> {
            workers.cores.as_ref().map(|cores| cores.iter().map(|core| core.value).collect())
        };
        self.poll == other.poll && cores(self) == cores(other)
    }
}

/// `workers.poll`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Sleep when idle.
    #[default]
    Adaptive,
    /// Never sleep.
    Busy,
}

/// Hard limits of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows that may exist at one time, all workers together: 1 to [`limits::FLOWS_MAX`].
    pub flows: usize,
    /// Bytes of the largest message: 1 to [`limits::MESSAGE_MAX`].
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { flows: limits::FLOWS_DEFAULT, message: limits::MESSAGE_DEFAULT }
    }
}

/// `events.path`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventsOutput {
    /// `"-"`
    Stdout,
    /// A file, resolved against the folder of the ops file.
    File(PathBuf),
}

impl Config {
    /// Reads and checks the ops file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it cannot be read; [`ConfigError::Invalid`] with all faults found.
    pub fn from_file(path: &Path) -> Result<Config, ConfigError> {
        let text = source::read(path)?;
        Config::parse(path, &text)
    }

    /// Checks `text` as the ops file whose name is `path`. Opens nothing. Never panics.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all faults found, in the order of the file.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        file::parse(Source::new(path, text))
    }

    /// A message about something that this file named and that turned out wrong later, such as an object
    /// file that does not exist.
    pub fn diagnostic(&self, at: Location, message: impl Into<String>, help: Option<&str>) -> Diagnostic {
        self.source.diagnostic(at, message.into(), help.map(str::to_owned))
    }
}

/// Reads a duration as the ops file writes it: `"500ms"`, `"30s"`, `"2m"`, `"1h"`.
///
/// # Errors
/// What is wrong with it, as half a sentence. Never panics.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    units::duration(text)
}

/// Writes a duration as [`parse_duration`] reads it, in whole milliseconds or larger units.
pub fn show_duration(duration: Duration) -> String {
    units::show_duration(duration)
}

/// Reads a number of bytes as the ops file writes it: `"512"`, `"512B"`, `"64KiB"`, `"1MiB"`.
///
/// # Errors
/// What is wrong with it, as half a sentence. Never panics.
pub fn parse_size(text: &str) -> Result<u64, String> {
    units::size(text)
}
