//! What the control socket does when it is asked.

use std::io;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use tracing::info;

use super::{Failure, Request, maps};
use crate::io::Published;
use crate::load::{LoadedDirection, LoadedTap};
use crate::reload::{Reloader, Running};

/// What commands work on.
pub struct Service {
    /// Takes up changed ops files, and knows what runs.
    pub reloader: Arc<Reloader>,
    /// What each worker shows.
    pub published: Vec<Arc<Mutex<Published>>>,
}

/// What runs, as `status` shows it.
#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    file: String,
    generation: u64,
    /// Earlier programs that flows are in the middle of a message with, in all workers.
    earlier_programs: usize,
    workers: usize,
    flows: usize,
    taps: Vec<TapStatus<'a>>,
}

#[derive(Serialize)]
struct TapStatus<'a> {
    name: &'a str,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive: Option<DirectionStatus<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<DirectionStatus<'a>>,
}

#[derive(Serialize)]
struct DirectionStatus<'a> {
    object: &'a str,
    parser: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<ShadowStatus<'a>>,
}

#[derive(Serialize)]
struct ShadowStatus<'a> {
    object: &'a str,
    verdict: &'a str,
}

impl Service {
    /// Answers one request; `each` gets the lines before the last one.
    pub(super) fn answer(
        &self,
        request: &Request,
        each: &mut dyn FnMut(String) -> io::Result<()>,
    ) -> Result<(), Failure> {
        match request {
            Request::Reload { file } => {
                let generation = self.reloader.reload(file).map_err(|error| match error.is_bad_file() {
                    true => Failure::bad(error),
                    false => Failure::failed(error),
                })?;
                info!("reloaded {}: generation {generation} runs", file.display());
                Ok(each(format!("{{\"generation\":{generation}}}"))?)
            }
            Request::Status => Ok(each(self.reloader.running(|running| self.status(running))?)?),
            Request::MapList => {
                for named in self.reloader.running(|running| maps::all(&running.taps)) {
                    each(serde_json::to_string(&named.listed()).map_err(Failure::failed)?)?;
                }
                Ok(())
            }
            Request::MapDump { map } => self.map(map)?.dump(each),
            Request::MapGet { map, key } => Ok(each(self.map(map)?.get(key)?)?),
            Request::MapSet { map, key, value } => self.map(map)?.set(key, value),
            Request::MapDelete { map, key } => self.map(map)?.delete(key),
        }
    }

    fn map(&self, address: &str) -> Result<maps::Named, Failure> {
        self.reloader.running(|running| maps::find(&running.taps, address))
    }

    fn status(&self, running: &Running) -> Result<String, Failure> {
        let (mut flows, mut earlier_programs) = (0, 0);
        for published in &self.published {
            let published = published.lock().expect("no thread panics while it holds this lock");
            flows += published.flows;
            earlier_programs += published.earlier_programs;
        }
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            file: running.config.source.path().display().to_string(),
            generation: running.generation,
            earlier_programs,
            workers: self.published.len(),
            flows,
            taps: running.taps.iter().map(TapStatus::new).collect(),
        };
        serde_json::to_string(&status).map_err(Failure::failed)
    }
}

impl<'a> TapStatus<'a> {
    fn new(tap: &'a LoadedTap) -> Self {
        Self {
            name: &tap.config.name.value,
            mode: match tap.config.mode {
                config::Mode::Enforce => "enforce",
                config::Mode::Observe => "observe",
            },
            receive: tap.receive.as_ref().map(DirectionStatus::new),
            send: tap.send.as_ref().map(DirectionStatus::new),
        }
    }
}

impl<'a> DirectionStatus<'a> {
    fn new(direction: &'a LoadedDirection) -> Self {
        let shadow = direction.shadow.as_ref();
        Self {
            object: direction.object.name(),
            parser: &direction.parser,
            verdict: direction.verdict.as_deref(),
            shadow: shadow.map(|(object, verdict)| ShadowStatus { object: object.name(), verdict }),
        }
    }
}
