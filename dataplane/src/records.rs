//! Records that programs write into ring buffers become events: a thread of its own takes them out, a few times a second.
//!
//! A ring buffer that is full loses records, which the map counts; an event file that takes no more loses them too. Both are
//! counted, by tap and map.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tap_engine::Map;

use crate::events::{EventSink, Record};
use crate::load::LoadedTap;

/// How long a record may wait.
const INTERVAL: Duration = Duration::from_millis(100);
/// `BPF_MAP_TYPE_RINGBUF`
const RING_BUFFER: u32 = 27;

/// The ring buffers of all taps, and the thread that empties them, which ends with the last clone.
#[derive(Clone)]
pub struct Records(Arc<Running>);

struct Running {
    shared: Arc<Mutex<Shared>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    rings: Vec<Ring>,
    counts: BTreeMap<(usize, Arc<str>), Counts>,
}

struct Ring {
    /// The tap's number.
    tap: usize,
    name: Arc<str>,
    map: Arc<Map>,
    /// The programs of the present generation write to it. Others may be written to by flows in the middle of a message.
    current: bool,
}

/// What became of the records of one map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken out.
    pub taken: u64,
    /// They found no room in the ring buffer, or none in the event file.
    pub lost: u64,
}

impl Records {
    /// Starts the thread. Without `events` records are counted and go nowhere.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(events: Option<EventSink>) -> io::Result<Self> {
        let shared = Arc::<Mutex<Shared>>::default();
        let (stop, stopped) = channel();
        let thread_shared = Arc::clone(&shared);
        let run = move || run(&thread_shared, events.as_ref(), &stopped);
        let thread = thread::Builder::new().name("records".to_owned()).spawn(run)?;
        Ok(Self(Arc::new(Running { shared, stop: Some(stop), thread: Some(thread) })))
    }

    /// From now on the ring buffers of these taps are emptied, and those of before as long as programs have them.
    pub fn watch(&self, taps: &[LoadedTap]) {
        let mut shared = lock(&self.0.shared);
        shared.rings.iter_mut().for_each(|ring| ring.current = false);
        for (tap, loaded) in taps.iter().enumerate() {
            for map in loaded.maps().filter(|map| map.definition().map_type == RING_BUFFER) {
                match shared.rings.iter_mut().find(|ring| Arc::ptr_eq(&ring.map, map)) {
                    Some(known) => known.current = true,
                    None => {
                        let name = Arc::from(map.name());
                        shared.rings.push(Ring { tap, name, map: Arc::clone(map), current: true });
                    }
                }
            }
        }
    }

    /// What became of the records so far, by tap and map.
    pub fn counts(&self) -> Vec<(usize, Arc<str>, Counts)> {
        let shared = lock(&self.0.shared);
        let mut counts = shared.counts.clone();
        for ring in &shared.rings {
            counts.entry((ring.tap, Arc::clone(&ring.name))).or_default().lost += ring.map.lost();
        }
        counts.into_iter().map(|((tap, name), counts)| (tap, name, counts)).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Without the sender the thread empties the ring buffers once more and ends.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no thread panics while it holds this lock")
}

fn run(shared: &Mutex<Shared>, events: Option<&EventSink>, stopped: &Receiver<()>) {
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        lock(shared).drain(events);
    }
    lock(shared).drain(events);
}

impl Shared {
    fn drain(&mut self, events: Option<&EventSink>) {
        let Self { rings, counts } = self;
        rings.retain(|ring| {
            // Looked at before: what the last program has written until then is still taken out.
            let in_use = ring.current || Arc::strong_count(&ring.map) > 1;
            let counts = counts.entry((ring.tap, Arc::clone(&ring.name))).or_default();
            ring.map.drain(&mut |bytes| {
                counts.taken += 1;
                let record = || Record::new(ring.tap, &ring.name, bytes);
                counts.lost += u64::from(events.is_some_and(|events| !events.try_send(record().into())));
            });
            counts.lost += if in_use { 0 } else { ring.map.lost() };
            in_use
        });
    }
}
