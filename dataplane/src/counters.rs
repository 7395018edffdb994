//! What a worker counts. Plain numbers that only their worker writes; [`crate::io`] publishes copies.

use tap_engine::{ProgramFault, StreamError, Verdict};

/// Why a frame (or what it asked for) was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// An IP fragment of TCP between two addresses that a tap selects.
    Fragment,
    /// What is or may be TCP between two addresses that a tap selects, and cannot be read: wrong lengths, more IPv6 extension
    /// headers than we look behind, a wrong IPv4 checksum. (With readable ports, the tap selects these too.)
    Unreadable,
    /// The TCP checksum is wrong.
    BadChecksum,
    /// A SYN found the flow table at `limits.flows`.
    TableFull,
    /// A segment of a selected connection that we did not see open; its sender was reset if `midstream` says so.
    Midstream,
    /// Text, or a FIN, of a flow whose handshake is not complete.
    NotYetOpen,
    /// A segment of a flow that has ended but is kept for TIME-WAIT.
    TimeWait,
    /// A SYN whose addresses or ports cannot be connected to.
    Unaddressable,
    /// The frame belongs to another worker, and the queue to that one was full.
    HandOverFull,
    /// A frame was to go across and the other port's transmit queue was full.
    TransmitFull,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Fragment,
        Self::Unreadable,
        Self::BadChecksum,
        Self::TableFull,
        Self::Midstream,
        Self::NotYetOpen,
        Self::TimeWait,
        Self::Unaddressable,
        Self::HandOverFull,
        Self::TransmitFull,
    ];

    /// Its name as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fragment => "fragment",
            Self::Unreadable => "unreadable",
            Self::BadChecksum => "bad_checksum",
            Self::TableFull => "table_full",
            Self::Midstream => "midstream",
            Self::NotYetOpen => "not_yet_open",
            Self::TimeWait => "time_wait",
            Self::Unaddressable => "unaddressable",
            Self::HandOverFull => "hand_over_full",
            Self::TransmitFull => "transmit_full",
        }
    }
}

/// Why the bytes of a direction could not be cut into messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MessageError {
    /// The stream parser or the verdict failed, or the length is not acceptable.
    Stream(StreamError),
    /// The message was not complete after `message_timeout`.
    Timeout,
    /// The sender ended its stream within a message.
    CutShort,
}

impl MessageError {
    /// All names that [`as_str`](Self::as_str) gives, in the order of [`index`](Self::index).
    pub const NAMES: [&'static str; 6] =
        ["unrecoverable", "bad_length", "message_too_big", "program_fault", "message_timeout", "message_cut_short"];

    /// Its number in counters.
    pub fn index(&self) -> usize {
        match self {
            Self::Stream(StreamError::Unrecoverable(_)) => 0,
            Self::Stream(StreamError::BadLength { .. }) => 1,
            Self::Stream(StreamError::MessageTooBig { .. }) => 2,
            Self::Stream(StreamError::Fault(_)) => 3,
            Self::Timeout => 4,
            Self::CutShort => 5,
        }
    }

    /// Its name as a label.
    pub fn as_str(&self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// Counts of one direction of one tap.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectionCounters {
    /// Messages by verdict: passed, dropped, disconnected. In `observe` mode: what would have been.
    pub messages: [u64; 3],
    /// Bytes of these messages.
    pub bytes: [u64; 3],
    /// Bytes that went on without being judged (no programs, or `on_parse_error = "pass"`).
    pub unjudged_bytes: u64,
    /// Bytes discarded after a parse error with `on_parse_error = "drop"`.
    pub discarded_bytes: u64,
    /// Errors, numbered as in [`MessageError::NAMES`].
    pub errors: [u64; MessageError::NAMES.len()],
    /// Messages that a shadow judged too, by the live verdict, and by what the shadow said: numbered as in
    /// [`SHADOW_NAMES`](Self::SHADOW_NAMES).
    pub shadow: [[u64; Self::SHADOW_NAMES.len()]; 3],
}

impl DirectionCounters {
    /// What a shadow can say.
    pub const SHADOW_NAMES: [&'static str; 4] = ["pass", "drop", "disconnect", "fault"];

    /// Counts what a shadow said about a message.
    pub(crate) fn count_shadow(&mut self, live: Verdict, shadow: Result<Verdict, ProgramFault>) {
        let said = shadow.map_or(3, |verdict| verdict as usize);
        self.shadow[live as usize][said] += 1;
    }
}

/// Counts of one tap.
#[derive(Clone, Copy, Debug, Default)]
pub struct TapCounters {
    /// By direction: receive, send.
    pub directions: [DirectionCounters; 2],
    /// SYNs taken.
    pub flows_opened: u64,
    /// Flows whose server answered.
    pub flows_established: u64,
    /// Flows whose server refused.
    pub flows_refused: u64,
    /// Flows that one of the two hosts reset.
    pub flows_reset: u64,
    /// Flows that a verdict or an error policy disconnected.
    pub flows_disconnected: u64,
    /// Flows whose host no longer answered.
    pub flows_timed_out: u64,
    /// Flows that both hosts closed.
    pub flows_closed: u64,
    /// Segments of connections that we did not see open and that went across (`midstream = "pass"`).
    pub midstream_passed: u64,
}

/// What had to be changed in handshakes: see [`tcp::handshake::Changes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HandshakeCounters {
    /// Options that were overwritten with NOPs.
    pub options_removed: u64,
    /// SYNs and SYN-ACKs that asked for ECN.
    pub ecn_removed: u64,
    /// SYNs and SYN-ACKs with an MSS that the path does not carry.
    pub mss_lowered: u64,
    /// Bytes of text in SYNs and SYN-ACKs.
    pub text_removed: u64,
}

impl HandshakeCounters {
    /// Counts what was changed in one segment.
    pub fn add(&mut self, changes: &tcp::handshake::Changes) {
        self.options_removed += u64::from(changes.options_removed);
        self.ecn_removed += u64::from(changes.ecn_removed);
        self.mss_lowered += u64::from(changes.mss_lowered);
        self.text_removed += changes.text_removed as u64;
    }
}

/// Counts of one worker.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Frames received, by port.
    pub frames_received: [u64; 2],
    /// Frames sent by a flow's side, by port.
    pub frames_sent: [u64; 2],
    /// Frames that went across untouched, by the port that they came in on.
    pub frames_forwarded: [u64; 2],
    /// Frames that changed hands to another worker.
    pub frames_handed_over: u64,
    /// What had to be changed in handshakes.
    pub handshakes: HandshakeCounters,
    /// ICMP errors about segments of flows that a tap takes. They went across too.
    pub icmp_errors_seen: u64,
    /// Of these, those that have made a flow's segments shorter.
    pub segments_shortened: u64,
    /// Frames dropped, by reason.
    pub dropped: [u64; DropReason::ALL.len()],
    /// By tap.
    pub taps: Vec<TapCounters>,
}

impl Counters {
    /// All zero, for `taps` taps.
    pub fn new(taps: usize) -> Self {
        Self { taps: vec![TapCounters::default(); taps], ..Self::default() }
    }

    /// Counts a drop and hands the reason on.
    pub fn drop(&mut self, reason: DropReason) -> DropReason {
        self.dropped[reason as usize] += 1;
        reason
    }
}
