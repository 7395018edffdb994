//! What a worker reports of single flows: small values without text, made on the hot path and written out elsewhere.

use tap_engine::{ProgramFault, Verdict};
use tcp::time::Instant;

use crate::counters::MessageError;
use crate::pump::Pumped;
use crate::steer::{FlowKey, Side};

/// Events that a worker keeps until they are drained; more are counted as lost.
pub const EVENTS_LIMIT: usize = 1024;

/// Something happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowEvent {
    /// When.
    pub at: Instant,
    /// Index of the flow's tap.
    pub tap: usize,
    /// The flow's ends.
    pub key: FlowKey,
    /// The side that the bytes came from, if it is about one side.
    pub from: Option<Side>,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EventKind {
    /// A verdict dropped a message of this many bytes.
    Dropped(usize),
    /// A verdict disconnected the flow at a message of this many bytes.
    Disconnected(usize),
    /// A direction could not be cut into messages any more; the tap's policy was applied.
    Error(MessageError),
    /// The shadow said something else about a message than the live verdict.
    Differs(Difference),
    /// The server refused the connection.
    Refused,
    /// A host no longer answered.
    TimedOut,
    /// There was no room for another flow.
    TableFull,
}

/// Two verdicts about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Bytes of the message.
    pub length: usize,
    /// What the live verdict said, and what was done.
    pub live: Verdict,
    /// What the shadow said.
    pub shadow: Result<Verdict, ProgramFault>,
}

impl EventKind {
    /// Its name in the event file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Dropped(_) => "drop",
            Self::Disconnected(_) => "disconnect",
            Self::Error(_) => "error",
            Self::Differs(_) => "shadow",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::TableFull => "table_full",
        }
    }
}

impl From<Pumped> for EventKind {
    fn from(pumped: Pumped) -> Self {
        match pumped {
            Pumped::Dropped(length) => Self::Dropped(length),
            Pumped::Disconnect(length) => Self::Disconnected(length),
            Pumped::Error(error) => Self::Error(error),
            Pumped::Differs(difference) => Self::Differs(difference),
        }
    }
}

/// A bounded list of events.
#[derive(Default)]
pub struct FlowEvents {
    list: Vec<FlowEvent>,
    lost: u64,
}

impl FlowEvents {
    /// Adds an event, or counts it as lost.
    pub fn push(&mut self, event: FlowEvent) {
        if self.list.len() < EVENTS_LIMIT {
            self.list.push(event);
        } else {
            self.lost += 1;
        }
    }

    /// Takes all events out.
    pub fn drain(&mut self) -> impl Iterator<Item = FlowEvent> {
        self.list.drain(..)
    }

    /// Events that found no room since the start.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}
