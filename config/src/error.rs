//! What can be wrong with an ops file.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::limits;
use crate::source::Diagnostic;

/// The ops file cannot be used. `Display` is what the user sees: several lines.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the ops file {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        reason: std::io::Error,
    },
    /// The file is longer than [`limits::FILE_BYTES`].
    #[error(
        "{}: longer than {} bytes, this is hardly an ops file\nhelp: give the path of the TOML file",
        path.display(),
        limits::FILE_BYTES
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file's content is wrong.
    #[error("{}", joined(problems))]
    Invalid {
        /// What is wrong, at least one thing, in the order of the file.
        problems: Vec<Diagnostic>,
    },
}

impl ConfigError {
    /// The problems in the order of the file.
    pub(crate) fn invalid(mut problems: Vec<Diagnostic>) -> ConfigError {
        debug_assert!(!problems.is_empty());
        problems.sort_by_key(|problem| problem.at);
        ConfigError::Invalid { problems }
    }
}

/// Problems that are shown; the rest is counted.
const SHOWN: usize = 20;

fn joined(problems: &[Diagnostic]) -> String {
    let mut out = String::new();
    for (index, problem) in problems.iter().take(SHOWN).enumerate() {
        let gap = if index == 0 { "" } else { "\n\n" };
        let _ = write!(out, "{gap}{problem}");
    }
    if problems.len() > SHOWN {
        let _ = write!(out, "\n\nand {} more", problems.len() - SHOWN);
    }
    out
}
