//! The `socktap` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dataplane::cli::main()
}
