//! Commands that a running socktap answers.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use config::Config;

use super::args::{ControlArgs, MapCommand};
use super::{Status, bad};
use crate::control::{Outcome, Request, ask};

/// `socktap reload`
pub(super) fn reload(at: &ControlArgs) -> Status {
    // The running process has a working folder of its own.
    match std::path::absolute(&at.file) {
        Ok(file) => send(at, &Request::Reload { file }),
        Err(error) => bad(&format!("{}: {error}", at.file.display())),
    }
}

/// `socktap status`
pub(super) fn status(at: &ControlArgs) -> Status {
    send(at, &Request::Status)
}

/// `socktap map`
pub(super) fn map(command: MapCommand) -> Status {
    match command {
        MapCommand::List(at) => send(&at, &Request::MapList),
        MapCommand::Dump { at, map } => send(&at, &Request::MapDump { map }),
        MapCommand::Get { at, map, key } => send(&at, &Request::MapGet { map, key }),
        MapCommand::Set { at, map, key, value } => send(&at, &Request::MapSet { map, key, value }),
        MapCommand::Delete { at, map, key } => send(&at, &Request::MapDelete { map, key }),
    }
}

/// Sends a request and prints the answer.
fn send(at: &ControlArgs, request: &Request) -> Status {
    let socket = match socket(at) {
        Ok(socket) => socket,
        Err(problem) => return bad(&problem),
    };
    let mut output = BufWriter::new(io::stdout().lock());
    let mut reader_gone = false;
    let outcome = ask(&socket, request, |line| {
        let written = writeln!(output, "{line}");
        reader_gone |= written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        written
    });
    let outcome = outcome.and_then(|outcome| output.flush().map(|()| outcome));
    match outcome {
        Ok(Outcome { status: 0, .. }) => Status::Good,
        Ok(Outcome { status, error }) => {
            eprintln!("{}", error.unwrap_or_default());
            if status == 2 { Status::Bad } else { Status::Failed }
        }
        // The reader of our output has seen enough.
        Err(_) if reader_gone => Status::Good,
        Err(error) => {
            let hint = "is socktap running, with this path in [control]?";
            eprintln!("socktap does not answer at {}: {error}\nhelp: {hint}", socket.display());
            Status::Failed
        }
    }
}

/// Where the running socktap listens.
fn socket(at: &ControlArgs) -> Result<PathBuf, String> {
    if let Some(path) = &at.control {
        return Ok(path.clone());
    }
    let config = Config::from_file(&at.file).map_err(|error| error.to_string())?;
    config.control.map(|path| path.value).ok_or_else(|| {
        let file = at.file.display();
        format!("{file} has no [control]: nobody listens\nhelp: add the section with a `path` and restart socktap, or use --control")
    })
}
