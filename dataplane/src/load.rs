//! From what the ops file names to what is there: object files, their functions, interfaces.
//!
//! Shared by `run` and `check`, so that what the one accepts the other runs.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{Config, Diagnostic, Located, Location, Programs};
use tap_engine::{Kind, LoadError, LoadOptions, Object};
use xdp_redirect::{Cross, Fragments, Port};

/// A tap and its programs. Cheap to clone: the objects are shared.
#[derive(Clone)]
pub struct LoadedTap {
    /// The tap as the ops file says it.
    pub config: config::Tap,
    /// What judges what the application receives.
    pub receive: Option<LoadedDirection>,
    /// What judges what the application sends.
    pub send: Option<LoadedDirection>,
}

/// The programs of one direction: loaded, accepted by the kernel's verifier, and known to be there.
#[derive(Clone)]
pub struct LoadedDirection {
    /// The object file; the same one wherever the same file is named, with its maps.
    pub object: Arc<Object>,
    /// The stream parser's function.
    pub parser: String,
    /// The verdict's function; `None` = all messages pass.
    pub verdict: Option<String>,
}

/// The ops file names things that are not there, or that cannot be used. `Display` is what the user sees: each with its
/// place in the ops file.
#[derive(Debug)]
pub struct LoadFailure {
    /// At least one.
    pub problems: Vec<Diagnostic>,
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n\n" };
            write!(f, "{gap}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadFailure {}

/// Loads the programs of all taps, has the kernel verify each object once, and makes sure that each function is there and
/// can be made ready to run.
///
/// # Errors
/// All that is wrong, each at the place of the ops file that names it.
pub fn load_taps(config: &Config) -> Result<Vec<LoadedTap>, LoadFailure> {
    let mut loader = Loader { config, objects: HashMap::new(), problems: Vec::new() };
    let mut taps = Vec::with_capacity(config.taps.len());
    for tap in &config.taps {
        let mut direction = |programs: &Option<Programs>| programs.as_ref().and_then(|p| loader.direction(p));
        let (receive, send) = (direction(&tap.receive), direction(&tap.send));
        taps.push(LoadedTap { config: tap.clone(), receive, send });
    }
    if loader.problems.is_empty() { Ok(taps) } else { Err(LoadFailure { problems: loader.problems }) }
}

/// Opens one of the two ports of the ops file.
///
/// # Errors
/// What is wrong with the interface, at the place of the ops file that names it.
pub fn open_port(config: &Config, name: &Located<String>) -> Result<Port, LoadFailure> {
    Port::open(&name.value)
        .map_err(|error| LoadFailure { problems: vec![config.diagnostic(name.at, error.to_string(), None)] })
}

/// How frames that no tap selects get to the other port: as the ops file says, or else through a devmap where that is
/// known to arrive.
pub fn cross(config: &Config, ports: &[Port; 2]) -> Cross {
    match config.ports.cross {
        config::Cross::Devmap => Cross::Devmap,
        config::Cross::Worker => Cross::Worker,
        config::Cross::Auto if ports.iter().all(|port| port.passes_redirect() && !port.partial_checksums()) => {
            Cross::Devmap
        }
        config::Cross::Auto => Cross::Worker,
    }
}

/// What becomes of fragments between addresses that a tap selects, in the words of the XDP program.
pub fn fragments(config: &Config) -> Fragments {
    match config.ports.fragments {
        config::Fragments::Drop => Fragments::Drop,
        config::Fragments::Cross => Fragments::Cross,
    }
}

struct Loader<'a> {
    config: &'a Config,
    /// By canonical path; `None` = it failed, and that was reported.
    objects: HashMap<PathBuf, Option<Arc<Object>>>,
    problems: Vec<Diagnostic>,
}

impl Loader<'_> {
    fn direction(&mut self, programs: &Programs) -> Option<LoadedDirection> {
        let object = self.object(&programs.object)?;
        let parser = self.function(&object, &programs.parser, Kind::StreamParser);
        let verdict = programs.verdict.as_ref().map(|verdict| self.function(&object, verdict, Kind::StreamVerdict));
        let verdict = match verdict {
            // Named but not there: that is reported, and the direction cannot be judged.
            Some(None) => return None,
            Some(found) => found,
            None => None,
        };
        Some(LoadedDirection { object, parser: parser?, verdict })
    }

    /// The object of a file, which is loaded and verified when it is first named.
    fn object(&mut self, path: &Located<PathBuf>) -> Option<Arc<Object>> {
        let key = std::fs::canonicalize(&path.value).unwrap_or_else(|_| path.value.clone());
        if let Some(known) = self.objects.get(&key) {
            return known.clone();
        }
        let object = load_object(&path.value).map_err(|error| self.problem(path.at, &error)).ok();
        self.objects.insert(key, object.clone());
        object
    }

    /// The function's name, if an instance of it can be made.
    fn function(&mut self, object: &Arc<Object>, name: &Located<String>, kind: Kind) -> Option<String> {
        match object.program(&name.value, kind) {
            Ok(_) => Some(name.value.clone()),
            Err(error) => {
                self.problem(name.at, &error);
                None
            }
        }
    }

    fn problem(&mut self, at: Location, error: &LoadError) {
        self.problems.push(self.config.diagnostic(at, error.to_string(), None));
    }
}

/// Reads an object file and has the kernel verify it.
fn load_object(path: &Path) -> Result<Arc<Object>, LoadError> {
    let mut object = Object::load(path, &LoadOptions::default())?;
    object.verify()?;
    Ok(Arc::new(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ops file with these taps in a folder that holds `len4.bpf.o`.
    fn load(taps: &str) -> Result<Vec<LoadedTap>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("len4.bpf.o"), tap_engine::shipped::LEN4).unwrap();
        std::fs::write(folder.path().join("text.o"), "not an object\n").unwrap();
        let text = format!("ports = {{ client = \"a\", server = \"no-such-port\" }}\n{taps}");
        let config = Config::parse(&folder.path().join("ops.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
        let failure = |failure: LoadFailure| failure.to_string().replace(&format!("{}/", folder.path().display()), "");
        open_port(&config, &config.ports.server).map_err(failure).expect_err("there is no such interface");
        load_taps(&config).map_err(failure)
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root, to have the kernel verify programs");
        }
        root
    }

    #[test]
    fn one_file_is_one_object() {
        if !is_root() {
            return;
        }
        let taps = load(
            "[[tap]]\nname = \"a\"\nserver_port = [1]\n\
             receive = { object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }\n\
             [[tap]]\nname = \"b\"\nserver_port = [2]\n\
             send = { object = \"./len4.bpf.o\", parser = \"parse_len4\" }\n",
        )
        .unwrap_or_else(|failure| panic!("{failure}"));
        let (receive, send) = (taps[0].receive.as_ref().unwrap(), taps[1].send.as_ref().unwrap());
        assert!(Arc::ptr_eq(&receive.object, &send.object));
        assert_eq!((&*receive.parser, receive.verdict.as_deref()), ("parse_len4", Some("by_first_byte")));
        assert_eq!((&*send.parser, &send.verdict), ("parse_len4", &None));
        assert!(taps[0].send.is_none() && taps[1].receive.is_none());
    }

    #[test]
    fn all_faults_are_told_where_they_are_named() {
        if !is_root() {
            return;
        }
        let failure = load(
            "[[tap]]\nname = \"a\"\nserver_port = [1]\n\
             receive = { object = \"len4.bpf.o\", parser = \"parse_len5\", verdict = \"parse_len4\" }\n\
             send = { object = \"none.o\", parser = \"parse_len4\" }\n\
             [[tap]]\nname = \"b\"\nserver_port = [2]\n\
             receive = { object = \"text.o\", parser = \"parse_len4\" }\n\
             send = { object = \"text.o\", parser = \"parse_len4\" }\n",
        )
        .err()
        .expect("four faults");
        let places: Vec<&str> = failure.lines().filter_map(|line| line.strip_prefix("ops.toml:")).collect();
        let starts = ["5:45: ", "5:69: ", "6:19: ", "10:22: "];
        assert_eq!(places.len(), starts.len(), "{failure}");
        assert!(places.iter().zip(starts).all(|(place, start)| place.starts_with(start)), "{failure}");
        assert!(places[0].contains("parse_len5"), "{failure}");
    }
}
