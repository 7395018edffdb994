//! Whether a host could tell the middle from the other host: what it is told must be what that one has said.
//!
//! For every tapped connection, of every segment that leaves the middle:
//! - a SYN has the options of the other host's own SYN, byte for byte;
//! - as long as nothing of a direction was dropped, the bytes at a sequence number are those that the other host has sent
//!   with this number, and so is the FIN;
//! - the right edge of the window never moves left, but for the rounding of RFC 7323 §2.4, and but for ACKs of the host itself,
//!   which pass while a handshake is not complete;
//! - timestamps never go back.

use std::collections::{BTreeMap, BTreeSet};

use crate::frames::{self, Segment};
use crate::scenario::{ConnectionPlan, FIRST_CLIENT_PORT, TAPPED_PORT};

/// What was said and told on all connections.
#[derive(Default)]
pub struct Mirror {
    /// By the client's port and the side of the host.
    hosts: BTreeMap<(u16, usize), Host>,
}

/// What one host has said, and what the other one was told in its name.
#[derive(Default)]
struct Host {
    /// What it has said since each of its SYNs, which may be of several connections.
    streams: Vec<Stream>,
    /// Its bare ACKs: sequence number, acknowledgement number, window.
    acks: BTreeSet<(u32, u32, u16)>,
    /// The number of the SYN that was told last, and the last window edge and timestamp since.
    told: Option<u32>,
    edge: Option<u32>,
    timestamp: Option<u32>,
}

/// What was said behind one SYN.
struct Stream {
    syn: u32,
    options: Vec<u8>,
    text: Vec<Option<u8>>,
    fin: Option<u32>,
}

impl Mirror {
    /// The host on side `side` has sent a frame.
    pub fn said(&mut self, side: usize, frame: &[u8]) {
        let Some((segment, port)) = tapped(side, frame) else { return };
        let Some((options, payload)) = frames::options_and_payload(frame) else { return };
        let Host { streams, acks, .. } = self.hosts.entry((port, side)).or_default();
        if payload.is_empty() {
            acks.insert((segment.seq, segment.ack, segment.window));
        }
        if segment.syn && streams.last().is_none_or(|last| last.syn != segment.seq) {
            streams.push(Stream { syn: segment.seq, options: options.to_vec(), text: Vec::new(), fin: None });
        }
        let Some(stream) = streams.last_mut() else { return };
        let Some(begin) = stream.offset(segment.seq) else { return };
        if !payload.is_empty() && stream.text.len() < begin + payload.len() {
            stream.text.resize(begin + payload.len(), None);
        }
        for (known, &byte) in stream.text.iter_mut().skip(begin).zip(payload) {
            known.get_or_insert(byte);
        }
        if segment.fin {
            stream.fin = Some(segment.seq.wrapping_add(segment.payload as u32));
        }
    }

    /// The host on side `to` is told something.
    pub fn told(&mut self, to: usize, frame: &[u8], connections: &[ConnectionPlan]) -> Result<(), String> {
        let from = 1 - to;
        let Some((segment, port)) = tapped(from, frame) else { return Ok(()) };
        let Some((options, payload)) = frames::options_and_payload(frame) else { return Ok(()) };
        let Some(plan) = connections.get(usize::from(port.wrapping_sub(FIRST_CLIENT_PORT))) else { return Ok(()) };
        let shift = self.shift(port, from, segment.syn);
        let host = self.hosts.entry((port, from)).or_default();
        let wrong = |what: &str| Err(format!("to side {to}: {what}: {segment}"));
        if segment.syn {
            (host.told, host.edge, host.timestamp) = (Some(segment.seq), None, None);
            let same = host.stream().is_some_and(|stream| same_options(&stream.options, options));
            return if same { Ok(()) } else { wrong("a SYN with options that the other host has not sent") };
        }
        let writer = &plan.applications[from];
        let all_passed = writer.passed.len() == writer.writes.len();
        if (all_passed || writer.writes.starts_with(&writer.passed))
            && let Some(stream) = host.stream()
            && let Some(begin) = stream.offset(segment.seq)
        {
            let said = stream.text.iter().copied().skip(begin).take(payload.len());
            if !said.eq(payload.iter().map(|&byte| Some(byte))) {
                return wrong("other bytes than the other host has sent with these numbers");
            }
            let fin = segment.seq.wrapping_add(payload.len() as u32);
            if segment.fin && all_passed && stream.fin != Some(fin) {
                return wrong("a FIN that the other host has not sent with this number");
            }
        }
        let relayed = payload.is_empty() && host.acks.contains(&(segment.seq, segment.ack, segment.window));
        if segment.has_ack && !segment.rst && !relayed {
            let edge = segment.ack.wrapping_add(u32::from(segment.window) << shift);
            let least = host.edge.map(|edge| edge.wrapping_sub((1 << shift) - 1));
            if least.is_some_and(|least| is_before(edge, least)) {
                return wrong("a window that has shrunk");
            }
            host.edge = Some(edge);
        }
        if let Some(timestamp) = frames::timestamp(frame).filter(|_| !relayed) {
            if host.timestamp.is_some_and(|last| is_before(timestamp, last)) {
                return wrong("a timestamp that has gone back");
            }
            host.timestamp = Some(timestamp);
        }
        Ok(())
    }

    /// The shift of windows that are told in the name of the host on side `from`: what both SYNs have made it.
    fn shift(&self, port: u16, from: usize, syn: bool) -> u32 {
        let shift = |side: usize| frames::window_scale(&self.hosts.get(&(port, side))?.stream()?.options);
        match (shift(from), shift(1 - from)) {
            (Some(shift), Some(_)) if !syn => u32::from(shift),
            _ => 0,
        }
    }
}

impl Host {
    /// What it has said behind the SYN that was told last.
    fn stream(&self) -> Option<&Stream> {
        self.streams.iter().rfind(|stream| Some(stream.syn) == self.told)
    }
}

impl Stream {
    /// Where in the text a number is; none: before it.
    fn offset(&self, seq: u32) -> Option<usize> {
        let begin = self.syn.wrapping_add(1);
        (!is_before(seq, begin)).then(|| seq.wrapping_sub(begin) as usize)
    }
}

/// A segment of the host on side `side`, or in its name, of a tapped connection; and the client's port.
fn tapped(side: usize, frame: &[u8]) -> Option<(Segment, u16)> {
    let segment = frames::segment(frame)?;
    let (client, server) = match side {
        0 => (segment.source, segment.destination),
        _ => (segment.destination, segment.source),
    };
    (server == TAPPED_PORT).then_some((segment, client))
}

/// The same options, but for an MSS that has been lowered.
fn same_options(said: &[u8], told: &[u8]) -> bool {
    let without_mss = |options: &[u8]| {
        let mut options = options.to_vec();
        if let Some(at) = options.windows(2).position(|pair| pair == [2, 4]) {
            options[at + 2..at + 4].fill(0);
        }
        options
    };
    without_mss(said) == without_mss(told)
}

fn is_before(left: u32, right: u32) -> bool {
    (left.wrapping_sub(right) as i32) < 0
}
