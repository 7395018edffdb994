//! A changed ops file, taken up while traffic goes on.
//!
//! ```text
//!   SIGHUP, `socktap reload`                     worker 0 … n, between two batches
//!   ──▶ read and check the file                  ┌──────────────────────────────────────────┐
//!   ──▶ compare: only what can change?           │ new flows, and flows at a boundary: new   │
//!   ──▶ load and verify the programs             │ flows in a message: new after its end     │
//!   ──▶ make instances for all workers ──────────▶ mailbox ──▶ taken                         │
//!                                                └──────────────────────────────────────────┘
//! ```
//! Whatever fails before the last step changes nothing. All of it runs in the thread of whoever asked, one at a time.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use config::Config;
use xdp_redirect::Steering;

use crate::io::{Change, Mailbox};
use crate::load::{LoadFailure, LoadedTap, Runner, TapMaps, load_taps};
use crate::records::Records;
use crate::worker::TapChange;

/// How long a worker may take to come to the end of a batch.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a reload did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file is not an ops file.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// It names what is not there or cannot be used.
    #[error(transparent)]
    Load(#[from] LoadFailure),
    /// It changes what only a new start can change.
    #[error("{0} cannot change while socktap runs\nhelp: restart socktap, or put it back as it was")]
    NeedsRestart(String),
    /// What decides about frames cannot be told.
    #[error(transparent)]
    Steering(#[from] xdp_redirect::SteeringError),
    /// There is no memory for the programs.
    #[error(transparent)]
    Program(#[from] tap_engine::LoadError),
    /// Workers did not take up the programs.
    #[error("{0} of {1} workers did not take up the new programs within {TAKE_TIMEOUT:?}")]
    Stalled(usize, usize),
}

impl ReloadError {
    /// Whether the file is at fault.
    pub fn is_bad_file(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Load(_) | Self::NeedsRestart(_))
    }
}

/// What runs at present.
pub struct Running {
    /// The ops file.
    pub config: Config,
    /// Its taps.
    pub taps: Vec<LoadedTap>,
    /// Their maps.
    pub maps: TapMaps,
    /// 1, and one more with each reload.
    pub generation: u64,
}

/// Takes up changed ops files.
pub struct Reloader {
    running: Mutex<Running>,
    workers: Workers,
}

/// Those to whom a reload matters.
pub struct Workers {
    /// How the workers hear of it.
    pub mailboxes: Arc<[Mailbox]>,
    /// What decides about frames that never reach a worker.
    pub steering: Arc<Mutex<Steering>>,
    /// Who empties the ring buffers.
    pub records: Records,
    /// The secret that random numbers of programs follow from.
    pub seed: u64,
}

impl Reloader {
    /// For workers that run `config` with these taps.
    pub fn new(config: Config, taps: Vec<LoadedTap>, maps: TapMaps, workers: Workers) -> Self {
        workers.records.watch(&taps);
        Self { running: Mutex::new(Running { config, taps, maps, generation: 1 }), workers }
    }

    /// Looks at what runs at present; waits for the end of a reload.
    pub fn running<T>(&self, look: impl FnOnce(&Running) -> T) -> T {
        look(&self.running.lock().expect("no thread panics while it holds this lock"))
    }

    /// Reads `file` and hands its programs and policies to the workers; returns the number of the generation that runs now.
    ///
    /// # Errors
    /// With all but [`ReloadError::Stalled`] nothing has changed.
    pub fn reload(&self, file: &Path) -> Result<u64, ReloadError> {
        let config = Config::from_file(file)?;
        let mut running = self.running.lock().expect("no thread panics while it holds this lock");
        if let Some(what) = difference(&running.config, &config) {
            return Err(ReloadError::NeedsRestart(what));
        }
        let mut maps = running.maps.successor();
        let taps = load_taps(&config, &mut maps)?;
        let generation = running.generation + 1;
        let changes = self.instances(&config, &taps, generation)?;
        let steering = &self.workers.steering;
        let observing = taps.iter().map(LoadedTap::observes);
        steering.lock().expect("no thread panics while it holds this lock").set_observing(observing)?;
        let stalled = self.hand_over(changes);
        self.workers.records.watch(&taps);
        // Workers that have not taken up the programs yet still will.
        *running = Running { config, taps, maps, generation };
        match stalled {
            0 => Ok(generation),
            stalled => Err(ReloadError::Stalled(stalled, self.workers.mailboxes.len())),
        }
    }

    /// Instances for each worker.
    fn instances(
        &self,
        config: &Config,
        taps: &[LoadedTap],
        generation: u64,
    ) -> Result<Vec<Vec<TapChange>>, tap_engine::LoadError> {
        let worker = |worker: usize| {
            let seed = self.workers.seed.wrapping_add(worker as u64) ^ generation.rotate_left(32);
            let runner = Runner { worker, max_message: config.limits.message, seed };
            taps.iter().map(|tap| tap.instances(&runner)).collect()
        };
        (0..self.workers.mailboxes.len()).map(worker).collect()
    }

    /// Posts the changes, and waits until they are taken up; returns how many were not.
    fn hand_over(&self, changes: Vec<Vec<TapChange>>) -> usize {
        let count = changes.len();
        let (taken, all_taken) = sync_channel(count);
        for (mailbox, taps) in self.workers.mailboxes.iter().zip(changes) {
            mailbox.post(Change { taps, taken: taken.clone() });
        }
        drop(taken);
        (0..count).position(|_| all_taken.recv_timeout(TAKE_TIMEOUT).is_err()).map_or(0, |taken| count - taken)
    }
}

/// What differs of all that must stay as it is, in the words of the ops file.
fn difference(old: &Config, new: &Config) -> Option<String> {
    let sections = [
        ("[ports]", old.ports.is_same(&new.ports)),
        ("[workers]", old.workers.is_same(&new.workers)),
        ("[limits]", old.limits == new.limits),
        ("[metrics]", old.metrics == new.metrics),
        ("[events]", old.events == new.events),
        ("[control]", old.control.as_ref().map(|path| &path.value) == new.control.as_ref().map(|path| &path.value)),
    ];
    if let Some((section, _)) = sections.into_iter().find(|(_, same)| !same) {
        return Some(section.to_owned());
    }
    if !old.taps.iter().map(|tap| &tap.name.value).eq(new.taps.iter().map(|tap| &tap.name.value)) {
        return Some("the taps, their names and their order".to_owned());
    }
    old.taps.iter().zip(&new.taps).find_map(|(old, new)| {
        let keys = [
            ("server", old.servers == new.servers),
            ("client", old.clients == new.clients),
            ("server_port", old.server_ports == new.server_ports),
            ("application", old.application == new.application),
            ("midstream", old.midstream == new.midstream),
        ];
        let (key, _) = keys.into_iter().find(|(_, same)| !same)?;
        Some(format!("`{key}` of tap \"{}\"", new.name.value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("ops.toml"), text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_must_stay_is_named() {
        let ports = "[ports]\nclient = \"a\"\nserver = \"b\"\n";
        let tap = "[[tap]]\nname = \"x\"\nserver_port = [80]\n";
        let old = config(&format!("{ports}{tap}"));
        let changed = |text: &str| difference(&old, &config(text));
        // Places and policies may change.
        assert_eq!(changed(&format!("# moved\n{ports}\n{tap}mode = \"observe\"\non_parse_error = \"pass\"\n")), None);
        for (text, what) in [
            (format!("{ports}cross = \"worker\"\n{tap}"), "[ports]"),
            (format!("{ports}[workers]\ncores = [0]\n{tap}"), "[workers]"),
            (format!("{ports}[limits]\nflows = 5\n{tap}"), "[limits]"),
            (format!("{ports}[metrics]\nlisten = \"127.0.0.1:1\"\n{tap}"), "[metrics]"),
            (format!("{ports}[events]\npath = \"-\"\n{tap}"), "[events]"),
            (format!("{ports}[control]\npath = \"c\"\n{tap}"), "[control]"),
            (ports.to_owned(), "the taps, their names and their order"),
            (format!("{ports}{tap}client = [\"10.0.0.1\"]\n"), "`client` of tap \"x\""),
            (format!("{ports}{tap}midstream = \"pass\"\n"), "`midstream` of tap \"x\""),
            (format!("{ports}{tap}application = \"client\"\n"), "`application` of tap \"x\""),
            (format!("{ports}{}", tap.replace("80", "81")), "`server_port` of tap \"x\""),
        ] {
            assert_eq!(changed(&text).as_deref(), Some(what), "{text}");
        }
    }
}
