//! The `socktap` command.
//!
//! Standard output carries what was asked for; messages go to standard error. Exit status: 0 good, 1 failed while
//! running, 2 bad usage, configuration or program.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use config::Config;
use tracing_subscriber::EnvFilter;

use crate::run::RunError;
use args::{Cli, Command};

mod args;
mod capture;
mod check;
mod control;
mod new;
mod test;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Good = 0,
    /// It failed while running.
    Failed = 1,
    /// The usage, the configuration or a program is bad.
    Bad = 2,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status as u8)
    }
}

/// Runs the command that the process's arguments ask for; the result is the process's exit status.
pub fn main() -> ExitCode {
    dispatch(std::env::args_os()).into()
}

fn dispatch(args: impl IntoIterator<Item = OsString>) -> Status {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for: they go to standard output and are no error.
            let _ = error.print();
            return if error.use_stderr() { Status::Bad } else { Status::Good };
        }
    };
    log_to_stderr(match cli.command {
        Command::Run { .. } => "info",
        Command::Check { .. }
        | Command::Reload(_)
        | Command::Status(_)
        | Command::Map { .. }
        | Command::New { .. }
        | Command::Test(_) => "warn",
    });
    match cli.command {
        Command::Run { file } => match Config::from_file(&file) {
            Ok(config) => run(&config),
            Err(error) => bad(&error),
        },
        Command::Check { file } => check::check(&file),
        Command::Reload(at) => control::reload(&at),
        Command::Status(at) => control::status(&at),
        Command::Map { command } => control::map(command),
        Command::New { folder } => new::new(&folder),
        Command::Test(args) => test::test(&args),
    }
}

fn run(config: &Config) -> Status {
    match crate::run::run(config) {
        Ok(()) => Status::Good,
        // What the ops file names is not there or not acceptable: the fault is in the file.
        Err(error @ (RunError::Load(_) | RunError::Queues(_))) => bad(&error),
        Err(error) => {
            eprintln!("socktap: {error}");
            Status::Failed
        }
    }
}

/// Says what is bad about the usage, the configuration or a program.
fn bad(error: &dyn std::fmt::Display) -> Status {
    eprintln!("{error}");
    Status::Bad
}

/// `SOCKTAP_LOG` chooses what is logged, in the notation of tracing's `EnvFilter`.
fn log_to_stderr(default: &str) {
    // The compiler of programs tells of each function at length.
    let default = || EnvFilter::new(format!("{default},cranelift=warn"));
    let filter = EnvFilter::try_from_env("SOCKTAP_LOG").unwrap_or_else(|_| default());
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // It fails only if somebody who uses us as a library has set one up already: theirs stays.
    let _ = log.with_target(false).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(args: &[&str]) -> Status {
        dispatch(std::iter::once("socktap").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn exit_statuses() {
        assert_eq!(status(&["--version"]), Status::Good);
        assert_eq!(status(&["test", "-h"]), Status::Good);
        assert_eq!(status(&[]), Status::Bad);
        assert_eq!(status(&["frobnicate"]), Status::Bad);
        assert_eq!(status(&["run"]), Status::Bad);
        assert_eq!(status(&["run", "/nonexistent.toml"]), Status::Bad);
        assert_eq!(status(&["check", "/nonexistent.toml"]), Status::Bad);
        assert_eq!(status(&["reload", "/nonexistent.toml"]), Status::Bad);
        assert_eq!(status(&["status", "x", "--control", "/nonexistent.sock"]), Status::Failed);
        assert_eq!(status(&["test", "x.o", "--parser", "p", "--input", "f", "--split", "0"]), Status::Bad);
        assert_eq!(status(&["test", "/nonexistent.o", "--parser", "p", "--input", "/dev/null"]), Status::Bad);
    }
}
