//! From what the ops file names to what is there: object files, their functions, interfaces.
//!
//! Shared by `run` and `check`, so that what the one accepts the other runs.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{Config, Diagnostic, Located, Location, Programs, Set, Verify};
use tap_engine::{Filter, Kind, LoadError, LoadOptions, Map, MapStore, Object, Setting};
use tcp::time::Duration;
use xdp_redirect::{Cross, Fragments, Port};

use crate::programs;
use crate::worker::TapChange;

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

/// The programs of one direction: loaded, accepted by the kernel's verifier unless the ops file says otherwise, and known to
/// be there.
#[derive(Clone)]
pub struct LoadedDirection {
    /// The object file; within a tap the same one wherever the same file is named with the same settings, with its maps.
    pub object: Arc<Object>,
    /// The stream parser's function.
    pub parser: String,
    /// The verdict's function; `None` = all messages pass.
    pub verdict: Option<String>,
    /// The object and the function of a verdict that is only asked.
    pub shadow: Option<(Arc<Object>, String)>,
}

/// Maps of the taps, by the tap's name: programs of one tap that name a map alike share it, and a reload finds it again.
pub struct TapMaps {
    workers: u32,
    stores: HashMap<String, Arc<MapStore>>,
}

impl TapMaps {
    /// No maps yet; `workers` is how many values per-CPU maps have.
    pub fn new(workers: usize) -> Self {
        Self { workers: u32::try_from(workers).unwrap_or(u32::MAX), stores: HashMap::new() }
    }

    /// The maps for the taps of a changed ops file: those that are defined as before are the same. These stay as they are.
    pub fn successor(&self) -> Self {
        let stores = self.stores.iter().map(|(tap, store)| (tap.clone(), Arc::new(store.successor()))).collect();
        Self { workers: self.workers, stores }
    }

    fn of(&mut self, tap: &str) -> Arc<MapStore> {
        let new = || Arc::new(MapStore::new(self.workers));
        Arc::clone(self.stores.entry(tap.to_owned()).or_insert_with(new))
    }
}

/// Who runs the instances of programs, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Runner {
    /// The worker's number, which is its CPU for the programs.
    pub worker: usize,
    /// The longest message.
    pub max_message: usize,
    /// What random numbers follow from.
    pub seed: u64,
}

impl LoadedTap {
    /// Whether the tap passes everything.
    pub fn observes(&self) -> bool {
        self.config.mode == config::Mode::Observe
    }

    /// The tap's directions with programs, by their names in the ops file.
    pub fn directions(&self) -> impl Iterator<Item = (&'static str, &LoadedDirection)> {
        [("receive", &self.receive), ("send", &self.send)].into_iter().filter_map(|(name, d)| Some((name, d.as_ref()?)))
    }

    /// The maps and global data of all its objects; those that objects share come more than once.
    pub fn maps(&self) -> impl Iterator<Item = &Arc<Map>> {
        self.directions().flat_map(|(_, direction)| {
            let shadow = direction.shadow.iter().flat_map(|(object, _)| object.maps());
            direction.object.maps().chain(shadow)
        })
    }

    /// Instances of its programs for one worker, and its policies.
    ///
    /// # Errors
    /// There is no memory for the instances.
    pub fn instances(&self, runner: &Runner) -> Result<TapChange, LoadError> {
        let programs =
            |direction: &Option<LoadedDirection>| direction.as_ref().map(|d| d.instances(runner)).transpose();
        let timeout = self.config.message_timeout.as_micros();
        Ok(TapChange {
            programs: [programs(&self.receive)?, programs(&self.send)?],
            observe: self.observes(),
            on_parse_error: self.config.on_parse_error,
            message_timeout: Some(Duration::from_micros(timeout.try_into().unwrap_or(u64::MAX))),
        })
    }
}

impl LoadedDirection {
    fn instances(&self, runner: &Runner) -> Result<programs::Programs, LoadError> {
        let cpu = u32::try_from(runner.worker).unwrap_or(u32::MAX);
        let verdict = self.verdict.as_ref().map(|name| self.object.program(name, Kind::StreamVerdict)).transpose()?;
        let parser = self.object.program(&self.parser, Kind::StreamParser)?;
        let mut filter = Filter::new(parser, verdict, runner.max_message);
        filter.seed_random(runner.seed);
        filter.on_cpu(cpu);
        let shadow =
            self.shadow.as_ref().map(|(object, name)| object.program(name, Kind::StreamVerdict)).transpose()?;
        let shadow = shadow.map(|mut program| {
            program.seed_random(runner.seed);
            program.on_cpu(cpu);
            program
        });
        Ok(programs::Programs { filter, shadow })
    }
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
/// can be made ready to run. Maps that `maps` has of the same name and definition are used again.
///
/// # Errors
/// All that is wrong, each at the place of the ops file that names it.
pub fn load_taps(config: &Config, maps: &mut TapMaps) -> Result<Vec<LoadedTap>, LoadFailure> {
    let mut problems = Vec::new();
    let mut taps = Vec::with_capacity(config.taps.len());
    for tap in &config.taps {
        let maps = maps.of(&tap.name.value);
        let mut loader = Loader { config, maps, objects: Vec::new(), problems: &mut problems };
        let mut direction = |programs: &Option<Programs>| programs.as_ref().and_then(|p| loader.direction(p));
        let (receive, send) = (direction(&tap.receive), direction(&tap.send));
        taps.push(LoadedTap { config: tap.clone(), receive, send });
    }
    if problems.is_empty() { Ok(taps) } else { Err(LoadFailure { problems }) }
}

/// Both ports and all taps, with their maps.
pub struct Prepared {
    /// The client's port, and the server's.
    pub ports: [Port; 2],
    /// The taps, in the order of the ops file.
    pub taps: Vec<LoadedTap>,
    /// Their maps.
    pub maps: TapMaps,
}

/// Finds all that the ops file names.
///
/// # Errors
/// All that is wrong: objects are verified even if an interface is missing.
pub fn prepare(config: &Config) -> Result<Prepared, LoadFailure> {
    let mut problems = Vec::new();
    let mut port = |name| open_port(config, name).map_err(|failure| problems.extend(failure.problems)).ok();
    let ports = [port(&config.ports.client), port(&config.ports.server)];
    let workers = match &ports {
        [Some(client), Some(server)] => worker_count(config, [client, server]),
        _ => 1,
    };
    let mut maps = TapMaps::new(workers);
    let taps = load_taps(config, &mut maps).map_err(|failure| problems.extend(failure.problems)).ok();
    match (ports, taps) {
        ([Some(client), Some(server)], Some(taps)) => Ok(Prepared { ports: [client, server], taps, maps }),
        _ => {
            problems.sort_by_key(|problem| problem.at);
            Err(LoadFailure { problems })
        }
    }
}

/// One worker for each rx queue; fewer if one port has fewer queues, or as many as the ops file names cores.
pub fn worker_count(config: &Config, ports: [&Port; 2]) -> usize {
    let queues = ports.map(|port| port.rx_queues as usize);
    config.workers.cores.as_ref().map_or(queues[0].min(queues[1]), Vec::len)
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

/// Loads the objects of one tap.
struct Loader<'a> {
    config: &'a Config,
    maps: Arc<MapStore>,
    /// Those that were asked for.
    objects: Vec<Asked>,
    problems: &'a mut Vec<Diagnostic>,
}

/// An object that was asked for. `None`: it failed, and that was reported.
struct Asked {
    /// By its canonical path.
    path: PathBuf,
    set: Set,
    verify: Verify,
    object: Option<Arc<Object>>,
}

impl Loader<'_> {
    fn direction(&mut self, programs: &Programs) -> Option<LoadedDirection> {
        let object = self.object(&programs.object, &programs.set, programs.verify);
        let shadow = programs.shadow.as_ref().map(|shadow| {
            let object = self.object(&shadow.object, &shadow.set, shadow.verify)?;
            let verdict = self.function(&object, &shadow.verdict, Kind::StreamVerdict)?;
            Some((object, verdict))
        });
        let object = object?;
        let parser = self.function(&object, &programs.parser, Kind::StreamParser);
        let verdict = programs.verdict.as_ref().map(|verdict| self.function(&object, verdict, Kind::StreamVerdict));
        // What is named but not there was reported, and the direction cannot be judged.
        let (verdict, shadow) = (named(verdict)?, named(shadow)?);
        Some(LoadedDirection { object, parser: parser?, verdict, shadow })
    }

    /// The object of a file, which is loaded and verified when it is first asked for with these settings.
    fn object(&mut self, path: &Located<PathBuf>, set: &Set, verify: Verify) -> Option<Arc<Object>> {
        let key = std::fs::canonicalize(&path.value).unwrap_or_else(|_| path.value.clone());
        let known =
            self.objects.iter().find(|asked| asked.path == key && asked.verify == verify && same(&asked.set, set));
        if let Some(known) = known {
            return known.object.clone();
        }
        let options = LoadOptions {
            set: set.iter().map(|(name, value)| (name.clone(), setting(&value.value))).collect(),
            maps: Arc::clone(&self.maps),
        };
        let object = load_object(&path.value, &options, verify).map_err(|error| {
            let at = match &error {
                LoadError::BadSetting { name, .. } => set.get(name).map_or(path.at, |value| value.at),
                _ => path.at,
            };
            self.problem(at, &error);
        });
        let object = object.ok();
        self.objects.push(Asked { path: key, set: set.clone(), verify, object: object.clone() });
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

/// What is absent may be; what is named must be there.
fn named<T>(found: Option<Option<T>>) -> Option<Option<T>> {
    found.map_or(Some(None), |found| found.map(Some))
}

/// Whether two tables set the same, wherever they stand.
fn same(one: &Set, other: &Set) -> bool {
    let values =
        |set: &Set| -> Vec<_> { set.iter().map(|(name, value)| (name.clone(), value.value.clone())).collect() };
    values(one) == values(other)
}

fn setting(value: &config::Setting) -> Setting {
    match value {
        config::Setting::Integer(integer) => Setting::Integer(*integer),
        config::Setting::Boolean(boolean) => Setting::Boolean(*boolean),
        config::Setting::Text(text) => Setting::Text(text.clone()),
        config::Setting::List(entries) => Setting::List(entries.iter().map(setting).collect()),
    }
}

/// Reads an object file and has the kernel verify it, if it should.
fn load_object(path: &Path, options: &LoadOptions, verify: Verify) -> Result<Arc<Object>, LoadError> {
    let mut object = Object::load(path, options)?;
    if verify == Verify::Kernel {
        object.verify()?;
    }
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
        load_taps(&config, &mut TapMaps::new(1)).map_err(failure)
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root, to have the kernel verify programs");
        }
        root
    }

    #[test]
    fn within_a_tap_one_file_with_the_same_settings_is_one_object() {
        if !is_root() {
            return;
        }
        let text = |set: &str| {
            format!(
                "[[tap]]\nname = \"a\"\nserver_port = [1]\n\
                 receive = {{ object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\", \
                 shadow = {{ object = \"len4.bpf.o\", verdict = \"by_first_byte\", verify = \"off\" }} }}\n\
                 send = {{ object = \"./len4.bpf.o\", parser = \"parse_len4\", set = {{ {set} }} }}\n\
                 [[tap]]\nname = \"b\"\nserver_port = [2]\n\
                 send = {{ object = \"./len4.bpf.o\", parser = \"parse_len4\" }}\n"
            )
        };
        let taps = load(&text("")).unwrap_or_else(|failure| panic!("{failure}"));
        let (receive, send) = (taps[0].receive.as_ref().unwrap(), taps[0].send.as_ref().unwrap());
        assert!(Arc::ptr_eq(&receive.object, &send.object));
        assert_eq!((&*receive.parser, receive.verdict.as_deref()), ("parse_len4", Some("by_first_byte")));
        assert_eq!((&*send.parser, &send.verdict), ("parse_len4", &None));
        let (shadow, function) = receive.shadow.as_ref().unwrap();
        assert_eq!(function, "by_first_byte");
        assert!(!Arc::ptr_eq(&receive.object, shadow), "another `verify`");
        assert!(send.shadow.is_none() && taps[1].receive.is_none());
        assert!(!Arc::ptr_eq(&send.object, &taps[1].send.as_ref().unwrap().object), "another tap");

        let taps = load(&text("drop_byte = 69")).unwrap_or_else(|failure| panic!("{failure}"));
        let (receive, send) = (taps[0].receive.as_ref().unwrap(), taps[0].send.as_ref().unwrap());
        assert!(!Arc::ptr_eq(&receive.object, &send.object), "other settings");
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
