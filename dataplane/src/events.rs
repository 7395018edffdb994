//! The event file: what happened to single flows, one JSON object a line.
//!
//! Workers put small values into a bounded queue; a thread of its own makes text of them and writes it. A queue that is
//! full loses events, counts them and says so in the file; it never holds up a worker.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::{Application, EventsOutput};
use serde::Serialize;
use tap_engine::Verdict;
use tcp::time::Instant;
use tracing::warn;

use crate::counters::MessageError;
use crate::flow_event::{Difference, EventKind, FlowEvent};
use crate::steer::Side;

/// Events that wait to be written; more are lost and counted.
const QUEUE: usize = 4096;
/// Bytes of a record that the file shows.
const RECORD_BYTES: usize = 4096;
/// How long the end of the process waits for the last events to be written.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The event file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The file cannot be opened for appending.
    #[error("cannot write events to {}: {reason}\nhelp: change `path` in [events], or remove the section", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        reason: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the events thread: {0}")]
    Thread(#[from] io::Error),
}

/// What events say of a tap.
#[derive(Clone, Debug)]
pub struct TapLabel {
    /// Its name.
    pub name: String,
    /// The side of its application, which gives the directions their names.
    pub application: Side,
}

impl From<&config::Tap> for TapLabel {
    fn from(tap: &config::Tap) -> TapLabel {
        let application = match tap.application {
            Application::Server => Side::Server,
            Application::Client => Side::Client,
        };
        TapLabel { name: tap.name.value.clone(), application }
    }
}

/// Something to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Something happened to a flow.
    Flow(FlowEvent),
    /// A program had something to say.
    Record(Record),
}

/// What a program has put into a ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index of its tap.
    tap: usize,
    /// The ring buffer's name.
    map: Arc<str>,
    /// Bytes of the whole.
    length: usize,
    /// At most [`RECORD_BYTES`] of it.
    bytes: Vec<u8>,
}

impl Record {
    /// The record `bytes` of a map of the tap with this index.
    pub fn new(tap: usize, map: &Arc<str>, bytes: &[u8]) -> Record {
        let shown = bytes[..bytes.len().min(RECORD_BYTES)].to_vec();
        Record { tap, map: Arc::clone(map), length: bytes.len(), bytes: shown }
    }
}

impl From<FlowEvent> for Event {
    fn from(event: FlowEvent) -> Event {
        Event::Flow(event)
    }
}

impl From<Record> for Event {
    fn from(record: Record) -> Event {
        Event::Record(record)
    }
}

/// Where workers report events. Clones share one writer; when the last one is dropped, what waits is written first.
#[derive(Clone)]
pub struct EventSink(Arc<Shared>);

struct Shared {
    queue: Option<SyncSender<Event>>,
    finished: Mutex<Receiver<()>>,
    lost: Arc<AtomicU64>,
}

impl EventSink {
    /// Opens the output and starts the writer. `taps` is indexed by [`FlowEvent::tap`].
    ///
    /// # Errors
    /// [`EventsError`] if the file cannot be opened for appending.
    pub fn open(output: &EventsOutput, taps: Vec<TapLabel>) -> Result<EventSink, EventsError> {
        match output {
            EventsOutput::Stdout => EventSink::start(io::stdout(), taps, QUEUE),
            EventsOutput::File(path) => {
                let failed = |reason| EventsError::Open { path: path.clone(), reason };
                EventSink::start(open_file(path).map_err(failed)?, taps, QUEUE)
            }
        }
    }

    /// Queues an event. Never waits: an event that finds no room is counted as lost. False: it is lost.
    pub fn try_send(&self, event: Event) -> bool {
        let sent = self.0.queue.as_ref().is_some_and(|queue| queue.try_send(event).is_ok());
        if !sent {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Events that were lost since the start: no room in the queue, or the output refused them.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    fn start(output: impl Write + Send + 'static, taps: Vec<TapLabel>, room: usize) -> Result<EventSink, EventsError> {
        let (queue, events) = sync_channel(room);
        let (done, finished) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let mut writer =
            Writer { output, taps, batch: Vec::new(), events: 0, lost: Arc::clone(&lost), told: 0, failing: false };
        thread::Builder::new().name("events".to_owned()).spawn(move || {
            writer.run(&events);
            let _ = done.send(());
        })?;
        Ok(EventSink(Arc::new(Shared { queue: Some(queue), finished: Mutex::new(finished), lost })))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without senders the writer empties the queue and ends.
        self.queue = None;
        let finished = self.finished.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if finished.recv_timeout(FINISH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            warn!("events: the output takes nothing; the last events are not written");
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;

/// The writer thread.
struct Writer<W> {
    output: W,
    taps: Vec<TapLabel>,
    batch: Vec<u8>,
    /// Events in `batch`.
    events: u64,
    lost: Arc<AtomicU64>,
    /// Losses that the file already tells of.
    told: u64,
    /// Whether the last write failed: said once, not once a batch.
    failing: bool,
}

impl<W: Write> Writer<W> {
    fn run(&mut self, events: &Receiver<Event>) {
        while let Ok(event) = events.recv() {
            let clock = Clock::read();
            self.add(&clock, event);
            // All that already waits goes out in one write.
            while self.batch.len() < BATCH
                && let Ok(event) = events.try_recv()
            {
                self.add(&clock, event);
            }
            self.tell_losses(&clock);
            self.write();
        }
        self.tell_losses(&Clock::read());
        self.write();
    }

    fn add(&mut self, clock: &Clock, event: Event) {
        let tap = match &event {
            Event::Flow(event) => event.tap,
            Event::Record(record) => record.tap,
        };
        let Some(tap) = self.taps.get(tap) else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        match event {
            Event::Flow(event) => put_line(&mut self.batch, &Line::new(clock.time_of(event.at), tap, &event)),
            Event::Record(record) => put_line(&mut self.batch, &RecordLine::new(rfc3339(clock.wall_us), tap, &record)),
        }
        self.events += 1;
    }

    fn tell_losses(&mut self, clock: &Clock) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let time = rfc3339(clock.wall_us);
            put_line(&mut self.batch, &Lost { time, event: "events_lost", count: lost - self.told });
            self.told = lost;
        }
    }

    fn write(&mut self) {
        let result = self.output.write_all(&self.batch).and_then(|()| self.output.flush());
        if let Err(error) = &result {
            self.lost.fetch_add(self.events, Ordering::Relaxed);
            if !self.failing {
                warn!("events cannot be written and are lost: {error}");
            }
        }
        self.failing = result.is_err();
        self.batch.clear();
        self.events = 0;
    }
}

fn put_line(batch: &mut Vec<u8>, line: &impl Serialize) {
    // Writing these plain structs into memory cannot fail.
    if serde_json::to_writer(&mut *batch, line).is_ok() {
        batch.push(b'\n');
    }
}

/// An event as the file shows it.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    tap: &'a str,
    /// Client and server.
    flow: String,
    /// VLAN ids, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vlan: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    /// Bytes of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// What the live verdict said, and was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'static str>,
    /// What the shadow said.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<&'static str>,
    /// An error in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// A record as the file shows it.
#[derive(Serialize)]
struct RecordLine<'a> {
    time: String,
    event: &'static str,
    tap: &'a str,
    map: &'a str,
    length: usize,
    bytes: String,
    /// The bytes without zeros at their end, if they are a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl<'a> RecordLine<'a> {
    fn new(time: String, tap: &'a TapLabel, record: &'a Record) -> RecordLine<'a> {
        let end = record.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let text = std::str::from_utf8(&record.bytes[..end]).ok();
        RecordLine {
            time,
            event: "record",
            tap: &tap.name,
            map: &record.map,
            length: record.length,
            bytes: hex(&record.bytes),
            text: text.filter(|text| !text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n')),
        }
    }
}

/// `0x` and two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

#[derive(Serialize)]
struct Lost {
    time: String,
    event: &'static str,
    count: u64,
}

impl<'a> Line<'a> {
    fn new(time: String, tap: &'a TapLabel, event: &FlowEvent) -> Line<'a> {
        let line = Line {
            time,
            event: event.kind.as_str(),
            tap: &tap.name,
            flow: format!("{} -> {}", event.key.client, event.key.server),
            vlan: event.key.vlan.into_iter().filter(|id| *id != 0).collect(),
            direction: event.from.map(|from| if from == tap.application { "send" } else { "receive" }),
            length: None,
            reason: None,
            live: None,
            shadow: None,
            detail: None,
        };
        match event.kind {
            EventKind::Dropped(length) | EventKind::Disconnected(length) => {
                Line { length: Some(length), reason: Some("verdict"), ..line }
            }
            EventKind::Error(error) => {
                let detail = match error {
                    MessageError::Stream(error) => Some(error.to_string()),
                    MessageError::Timeout | MessageError::CutShort => None,
                };
                Line { reason: Some(error.as_str()), detail, ..line }
            }
            EventKind::Differs(Difference { length, live, shadow }) => Line {
                length: Some(length),
                live: Some(live.as_str()),
                shadow: Some(shadow.map_or("fault", Verdict::as_str)),
                detail: shadow.err().map(|fault| fault.to_string()),
                ..line
            },
            EventKind::Refused | EventKind::TimedOut | EventKind::TableFull => line,
        }
    }
}

/// Workers stamp events with the monotonic clock; people read the wall clock. Both are read together for each batch, so
/// that a step of the wall clock shows only in what is written after it.
struct Clock {
    wall_us: i64,
    monotonic_us: i64,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this thread is outside of the core")]
    fn read() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock {
            wall_us: i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX),
            monotonic_us: crate::io::now().total_micros(),
        }
    }

    fn time_of(&self, at: Instant) -> String {
        let age_us = self.monotonic_us.saturating_sub(at.total_micros());
        rfc3339(self.wall_us.saturating_sub(age_us))
    }
}

/// Microseconds since 1970 as RFC 3339, in UTC.
fn rfc3339(unix_us: i64) -> String {
    let (days, in_day_us) = (unix_us.div_euclid(86_400_000_000), unix_us.rem_euclid(86_400_000_000));
    // Gregorian eras of 400 years, beginning on a 1 March, so that the leap day is the last day of a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let seconds = in_day_us / 1_000_000;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        in_day_us % 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::steer::FlowKey;

    /// An output that waits for leave before each write, and hands over what it was given.
    struct Gate {
        leave: Receiver<io::Result<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.leave.recv().unwrap_or(Ok(()))?;
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Gate, Sender<io::Result<()>>, Receiver<Vec<u8>>) {
        let (give, leave) = channel();
        let (written, read) = channel();
        (Gate { leave, written }, give, read)
    }

    fn taps() -> Vec<TapLabel> {
        let label = |name: &str, application| TapLabel { name: name.to_owned(), application };
        vec![label("redis", Side::Server), label("mail", Side::Client)]
    }

    fn event(tap: usize, from: Option<Side>, kind: EventKind) -> FlowEvent {
        let key = FlowKey {
            client: "10.0.0.1:1234".parse().unwrap(),
            server: "[fd00::2]:6379".parse().unwrap(),
            vlan: [7, 0],
        };
        FlowEvent { at: crate::io::now(), tap, key, from, kind }
    }

    #[test]
    fn lines_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.json");
        std::fs::write(&path, "{\"before\":1}\n").unwrap();
        let sink = EventSink::open(&EventsOutput::File(path.clone()), taps()).unwrap();
        let other = sink.clone();
        sink.try_send(event(0, Some(Side::Client), EventKind::Disconnected(64)).into());
        other.try_send(event(1, Some(Side::Client), EventKind::Error(MessageError::Timeout)).into());
        other.try_send(event(1, None, EventKind::Refused).into());
        drop(sink);
        drop(other);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0]["before"], 1);
        let time = lines[1]["time"].as_str().unwrap().to_owned();
        assert_eq!((time.len(), &time[10..11], &time[26..]), (27, "T", "Z"));
        assert_eq!(
            text.lines().nth(1).unwrap(),
            format!(
                "{{\"time\":\"{time}\",\"event\":\"disconnect\",\"tap\":\"redis\",\
                 \"flow\":\"10.0.0.1:1234 -> [fd00::2]:6379\",\"vlan\":[7],\
                 \"direction\":\"receive\",\"length\":64,\"reason\":\"verdict\"}}"
            )
        );
        assert_eq!((&lines[2]["direction"], &lines[2]["reason"]), (&"send".into(), &"message_timeout".into()));
        assert!(lines[3].get("direction").is_none() && lines[3].get("reason").is_none());
    }

    #[test]
    fn records_are_bytes_and_perhaps_a_text() {
        let (output, give, read) = gate();
        let sink = EventSink::start(output, taps(), 8).unwrap();
        let map: Arc<str> = Arc::from("log");
        drop(give);
        assert!(sink.try_send(Record::new(0, &map, b"GET /\0\0").into()));
        assert!(sink.try_send(Record::new(1, &map, &[0xff, 0]).into()));
        assert!(sink.try_send(Record::new(1, &map, &[0; 5000]).into()));
        drop(sink);
        let text: Vec<u8> = read.iter().flatten().collect();
        let lines: Vec<serde_json::Value> =
            text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (&lines[0]["event"], &lines[0]["tap"], &lines[0]["map"]),
            (&"record".into(), &"redis".into(), &"log".into())
        );
        assert_eq!((&lines[0]["bytes"], &lines[0]["text"]), (&"0x474554202f0000".into(), &"GET /".into()));
        assert_eq!((&lines[1]["bytes"], lines[1].get("text")), (&"0xff00".into(), None));
        assert_eq!(lines[2]["length"], 5000);
        assert_eq!(lines[2]["bytes"].as_str().unwrap().len(), 2 + 2 * RECORD_BYTES);
    }

    #[test]
    fn a_full_queue_loses_and_says_so() {
        let (output, give, read) = gate();
        let sink = EventSink::start(output, taps(), 2).unwrap();
        // The writer takes at most the queue's two into its batch before it stands at the gate; two more fit behind it.
        for _ in 0..10 {
            sink.try_send(event(0, None, EventKind::TimedOut).into());
        }
        assert!((5..=8).contains(&sink.lost()), "{}", sink.lost());
        let lost = sink.lost();
        drop(give);
        drop(sink);
        let text: Vec<u8> = read.iter().flatten().collect();
        let lines: Vec<serde_json::Value> =
            text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        let told: u64 =
            lines.iter().filter(|l| l["event"] == "events_lost").map(|l| l["count"].as_u64().unwrap()).sum();
        let written = lines.iter().filter(|l| l["event"] == "timed_out").count() as u64;
        assert_eq!((told, written + told), (lost, 10));
    }

    #[test]
    fn a_failing_output_counts() {
        let (output, give, read) = gate();
        let sink = EventSink::start(output, taps(), 8).unwrap();
        give.send(Err(io::Error::from(io::ErrorKind::StorageFull))).unwrap();
        drop(give);
        sink.try_send(event(0, None, EventKind::TimedOut).into());
        let lost = Arc::clone(&sink.0.lost);
        drop(sink);
        assert_eq!(lost.load(Ordering::Relaxed), 1);
        let text = String::from_utf8(read.iter().flatten().collect()).unwrap();
        assert!(text.contains("\"event\":\"events_lost\",\"count\":1}"), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_opened() {
        let error = EventSink::open(&EventsOutput::File("/nonexistent/events".into()), taps()).err().unwrap();
        assert!(error.to_string().starts_with("cannot write events to /nonexistent/events: No such file"), "{error}");
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(rfc3339(1_767_225_599_999_999), "2025-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
        // Any number is answered.
        let _ = (rfc3339(i64::MIN), rfc3339(i64::MAX));
    }
}
