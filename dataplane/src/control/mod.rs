//! The control socket: a unix socket on which a running socktap hears commands, one a connection.
//!
//! ```text
//!   socktap reload, status, map …                     thread `control`: accepts
//!   {"command":"map_list"}\n            ──────────▶    a thread a connection: answers
//!   {"map":"redis/counts",…}\n          ◀──────────
//!   {"end":{"status":0}}\n              ◀──────────
//! ```
//! A request is one JSON object on a line ([`Request`]). The answer is any number of lines that are printed as they are, and then
//! one that says how it ended ([`End`]). Workers take no part: whatever they show, they publish.

mod maps;
mod service;
mod values;

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

pub use service::Service;

/// Bytes of the longest request.
const REQUEST_BYTES: u64 = 1 << 20;
/// Connections at a time; one more is told so and closed.
const CONNECTIONS: usize = 8;
/// How long a client may take to say or to read something.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take up this ops file.
    Reload {
        /// Its absolute path.
        file: PathBuf,
    },
    /// Say what runs.
    Status,
    /// List the maps of all taps.
    MapList,
    /// Show all elements of a map.
    MapDump {
        /// `TAP/MAP`.
        map: String,
    },
    /// Show one element.
    MapGet {
        /// `TAP/MAP`.
        map: String,
        /// As on the command line.
        key: String,
    },
    /// Write one element.
    MapSet {
        /// `TAP/MAP`.
        map: String,
        /// As on the command line.
        key: String,
        /// As on the command line.
        value: String,
    },
    /// Remove one element.
    MapDelete {
        /// `TAP/MAP`.
        map: String,
        /// As on the command line.
        key: String,
    },
}

/// The last line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How it ended.
    pub end: Outcome,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command's exit status.
    pub status: u8,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The command's exit status.
    status: u8,
    error: String,
}

impl Failure {
    /// What was asked for is wrong.
    pub(crate) fn bad(error: impl ToString) -> Self {
        Self { status: 2, error: error.to_string() }
    }

    /// It could not be done.
    pub(crate) fn failed(error: impl ToString) -> Self {
        Self { status: 1, error: error.to_string() }
    }
}

/// The client does not listen any more.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process answers there.
    #[error("another socktap listens at {}\nhelp: end it, or change `path` in [control]", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} is there and is no socket\nhelp: change `path` in [control]", .0.display())]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot listen at {} for commands: {reason}\nhelp: change `path` in [control], or remove the section", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The operating system refused something else.
    #[error("cannot start the control thread: {0}")]
    System(#[from] io::Error),
}

/// A socket that is listened at, by nobody but its owner's processes. Its file goes when it is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of its file.
    file: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path`. A socket that is left there and that nobody answers at is replaced. To be called before there are other
    /// threads that make files.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |reason| ControlError::Listen { path: path.to_owned(), reason };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NoSocket(path.to_owned())),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(ControlError::InUse(path.to_owned())),
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // The mask makes the file nobody else's from its beginning on.
        let mask = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(mask);
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true)?;
        let file = std::fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let still_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if still_ours && let Err(error) = std::fs::remove_file(&self.path) {
            warn!("{} is left: {error}", self.path.display());
        }
    }
}

/// A running server; dropping it ends its thread and removes the socket.
pub struct ControlServer {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Answers commands at `socket`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(socket: ControlSocket, service: Service) -> Result<Self, ControlError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags).map_err(io::Error::from)?);
        let (service, stopped) = (Arc::new(service), Arc::clone(&stop));
        let thread =
            thread::Builder::new().name("control".to_owned()).spawn(move || accept_all(&socket, &service, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A counter that is full is no less readable.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn accept_all(socket: &ControlSocket, service: &Arc<Service>, stop: &EventFd) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds =
            [PollFd::new(socket.listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return warn!("no commands are heard any more: {errno}"),
        }
        if fds[1].any() == Some(true) {
            return;
        }
        // An error is a client that has gone again, or too many open files: the next one may have more luck.
        let Ok((stream, _)) = socket.listener.accept() else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            let busy = Failure::failed(format!("{CONNECTIONS} commands are being answered already: try again"));
            let _ = prepare(&stream).and_then(|()| put(&mut &stream, &end(Err(busy))));
            continue;
        }
        let (service, open) = (Arc::clone(service), Arc::clone(&open));
        let thread = thread::Builder::new().name("command".to_owned()).spawn(move || {
            scopeguard::defer! { open.fetch_sub(1, Ordering::Relaxed); }
            if let Err(error) = converse(&stream, &service) {
                debug!("a client of the control socket: {error}");
            }
        });
        if let Err(error) = thread {
            warn!("a command is not answered: {error}");
        }
    }
}

fn prepare(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))
}

/// Reads a request and answers it.
fn converse(stream: &UnixStream, service: &Service) -> io::Result<()> {
    prepare(stream)?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES)).read_line(&mut line)?;
    let mut out = BufWriter::new(stream);
    let result = match serde_json::from_str::<Request>(&line) {
        _ if !line.ends_with('\n') => {
            Err(Failure::bad(format!("a request is one line of at most {REQUEST_BYTES} bytes")))
        }
        Err(error) => Err(Failure::bad(format!("this is no request: {error}"))),
        Ok(request) => service.answer(&request, &mut |line| writeln!(out, "{line}")),
    };
    put(&mut out, &end(result))?;
    out.flush()
}

fn end(result: Result<(), Failure>) -> End {
    let (status, error) = result.map_or_else(|failure| (failure.status, Some(failure.error)), |()| (0, None));
    End { end: Outcome { status, error } }
}

fn put(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Sends `request` to the socktap that listens at `path`; `each` gets the lines of the answer. The outcome is the last one.
///
/// # Errors
/// Nobody answers, or not to the end; or `each` failed.
pub fn ask(path: &Path, request: &Request, mut each: impl FnMut(&str) -> io::Result<()>) -> io::Result<Outcome> {
    let stream = UnixStream::connect(path)?;
    put(&mut &stream, request)?;
    for line in BufReader::new(&stream).lines() {
        let line = line?;
        if let Ok(End { end }) = serde_json::from_str(&line) {
            return Ok(end);
        }
        each(&line)?;
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer has no end"))
}
