//! The kernel's verifier as a gate: what it refuses is not run.

use std::io;

use aya::programs::{ProgramError, SkSkb, SocketFilter};
use aya::{EbpfError, EbpfLoader};
use caps::{CapSet, Capability, has_cap};

use crate::error::LoadError;
use crate::globals::Patch;
use crate::object::chain;

/// Lines of the verifier's log that an error carries.
const LOG_LINES: usize = 20;

/// Characters of such a line: with the states of all registers they can be thousands.
const LINE_LENGTH: usize = 200;

/// Loads `functions` of the object `bytes` into the kernel, one after the other, each as a `sk_skb` program or, if true, a socket filter; dropping
/// them removes them.
pub(crate) fn verify<'a>(
    object: &str,
    bytes: &[u8],
    patches: &[Patch],
    functions: impl Iterator<Item = (&'a str, bool)>,
) -> Result<(), LoadError> {
    // Without the rights aya's probes fail first, and what it reports is their consequence.
    if !may_load() {
        let reason = "the process has neither CAP_SYS_ADMIN nor CAP_BPF with CAP_NET_ADMIN".to_owned();
        return Err(LoadError::NotPermitted { object: object.to_owned(), reason });
    }
    // The kernel's own types are needed for CO-RE only, and take long to read.
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // Constants are known to the verifier, and it leaves out what they rule out: it has to see the same.
    for Patch { name, bytes, .. } in patches {
        loader.override_global(name, bytes.as_slice(), true);
    }
    let mut loaded = loader.load(bytes).map_err(|error| failed(object, &error))?;
    for (function, is_socket_filter) in functions {
        let program = loaded.program_mut(function).ok_or_else(|| LoadError::KernelFailed {
            object: object.to_owned(),
            reason: format!("`{function}` was not found again"),
        })?;
        // The kernel has one type for parsers and verdicts; aya refuses other types here.
        let loaded = if is_socket_filter {
            <&mut SocketFilter>::try_from(program).map(SocketFilter::load)
        } else {
            <&mut SkSkb>::try_from(program).map(SkSkb::load)
        };
        let loaded = loaded.map_err(|error| failed(object, &EbpfError::ProgramError(error)))?;
        loaded.map_err(|error| refused(object, function, error))?;
    }
    Ok(())
}

/// Whether this thread has the rights to load programs of the kind `sk_skb` (capabilities(7)).
fn may_load() -> bool {
    let has = |capability| has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    has(Capability::CAP_SYS_ADMIN) || (has(Capability::CAP_BPF) && has(Capability::CAP_NET_ADMIN))
}

fn refused(object: &str, function: &str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = last_lines(&verifier_log.to_string());
            if log.is_empty() && io_error.kind() == io::ErrorKind::PermissionDenied {
                return LoadError::NotPermitted { object: object.to_owned(), reason: io_error.to_string() };
            }
            let place = source_place(&verifier_log.to_string()).map_or(String::new(), |place| format!(" at {place}"));
            let reason = format!("{io_error}{place}");
            LoadError::Refused { object: object.to_owned(), function: function.to_owned(), reason, log }
        }
        other => failed(object, &EbpfError::ProgramError(other)),
    }
}

/// An error before any program was looked at.
fn failed(object: &str, error: &EbpfError) -> LoadError {
    let reason = chain(error);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if error.downcast_ref::<io::Error>().is_some_and(denied) {
            return LoadError::NotPermitted { object: object.to_owned(), reason };
        }
        cause = error.source();
    }
    LoadError::KernelFailed { object: object.to_owned(), reason }
}

/// Where the verifier was in the program's source when it ended, `FILE:LINE: TEXT`, if the program tells (`clang -g`): its log says
/// "; TEXT @ FILE:LINE" before the instructions of a line.
fn source_place(log: &str) -> Option<String> {
    let last = log.lines().rev().find(|line| line.starts_with("; ") && line.contains(" @ "))?;
    let (text, place) = last[2..].rsplit_once(" @ ")?;
    Some(cut(&format!("{place}: {}", text.trim())))
}

/// The end of the log: the last lines, without empty ones and statistics, each cut at a length that can be read.
fn last_lines(log: &str) -> String {
    let told =
        |line: &&str| !line.is_empty() && !line.starts_with("verification time") && !line.starts_with("stack depth");
    let lines: Vec<&str> = log.lines().map(str::trim_end).filter(told).collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    last.iter().map(|line| cut(line)).collect::<Vec<_>>().join("\n")
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_LENGTH) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_kept() {
        let log: String = (0..50).map(|line| format!("line {line}\n\n")).collect();
        let kept = last_lines(&log);
        assert_eq!(kept.lines().count(), LOG_LINES);
        assert!(kept.starts_with("line 30\n") && kept.ends_with("line 49"), "{kept}");
        assert_eq!(last_lines(""), "");
        assert_eq!(last_lines("why\nverification time 5 usec\nstack depth 8\n"), "why");
        assert_eq!(last_lines(&"\u{e4}".repeat(300)).chars().count(), LINE_LENGTH + 4);
    }
}
