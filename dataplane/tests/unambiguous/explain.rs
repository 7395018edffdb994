//! The oracle. It knows which bytes the client has sent at each offset of its stream in segments that a TCP may accept
//! ([`Candidates`]), and what the server has read. It asks: is there a stream of such bytes of which the server has read
//! exactly the messages that pass?
//!
//! It knows nothing of how the tap chooses between contradictory segments; any choice is good, if there was one choice only.

use std::collections::HashSet;
use std::ops::RangeInclusive;

/// Length of a message's header.
const HEADER: usize = 4;

/// By offset: the values that a byte may have.
#[derive(Clone, Debug, Default)]
pub struct Candidates(Vec<Vec<u8>>);

impl Candidates {
    /// These bytes may be taken at this offset.
    pub fn add(&mut self, at: usize, text: &[u8]) {
        if self.0.len() < at + text.len() {
            self.0.resize(at + text.len(), Vec::new());
        }
        for (values, &byte) in self.0[at..].iter_mut().zip(text) {
            if !values.contains(&byte) {
                values.push(byte);
            }
        }
    }
}

/// What the server has read and what was counted.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// What its application has read.
    pub read: &'a [u8],
    /// How many messages were dropped.
    pub dropped: RangeInclusive<u64>,
    /// How many bytes the messages had that were passed or dropped, if that is known.
    pub judged: Option<u64>,
    /// How many bytes the message had that disconnected the flow, if one did.
    pub fatal: Option<u64>,
    /// How many bytes were acknowledged: none behind them was taken.
    pub acked: usize,
}

/// A stream that explains the outcome: the messages that were judged, without what is behind the last of them. If there is
/// none: how far an explanation goes, in the stream and in what was read.
pub fn explain(candidates: &Candidates, outcome: &Outcome<'_>) -> Result<Vec<u8>, (usize, usize)> {
    let taken = candidates.0.len().min(outcome.acked);
    let taken = candidates.0[..taken].iter().take_while(|values| !values.is_empty()).count();
    let mut search = Search {
        candidates: &candidates.0[..taken],
        outcome,
        stream: Vec::new(),
        dead_ends: HashSet::new(),
        furthest: (0, 0),
    };
    if search.from(0, 0) { Ok(search.stream) } else { Err(search.furthest) }
}

struct Search<'a> {
    candidates: &'a [Vec<u8>],
    outcome: &'a Outcome<'a>,
    /// The judged messages so far.
    stream: Vec<u8>,
    /// Offset in the stream, in what was read, and number of dropped messages.
    dead_ends: HashSet<(usize, usize, u64)>,
    furthest: (usize, usize),
}

impl Search<'_> {
    /// Whether all behind this point can be explained.
    fn from(&mut self, read: usize, dropped: u64) -> bool {
        let at = self.stream.len();
        if self.dead_ends.contains(&(at, read, dropped)) {
            return false;
        }
        self.furthest = self.furthest.max((at, read));
        if read == self.outcome.read.len() && self.outcome.dropped.contains(&dropped) && self.ends_here() {
            return true;
        }
        if let Some(message) = self.passed(read) {
            self.stream.extend(&message);
            if self.from(read + message.len(), dropped) {
                return true;
            }
            self.stream.truncate(at);
        }
        if dropped < *self.outcome.dropped.end() {
            for message in self.messages(b'D') {
                self.stream.extend(message);
                if self.from(read, dropped + 1) {
                    return true;
                }
                self.stream.truncate(at);
            }
        }
        self.dead_ends.insert((at, read, dropped));
        false
    }

    /// Whether there was a reason to judge no more: a fatal message if the flow was disconnected by one.
    fn ends_here(&mut self) -> bool {
        if self.outcome.judged.is_some_and(|judged| judged != self.stream.len() as u64) {
            return false;
        }
        let Some(length) = self.outcome.fatal else { return true };
        let message = self.messages(b'X').into_iter().find(|message| message.len() as u64 == length);
        self.stream.extend(message.iter().flatten());
        message.is_some()
    }

    /// The message that was read at this point, if it passes and the client has sent it here.
    fn passed(&self, read: usize) -> Option<Vec<u8>> {
        let rest = &self.outcome.read[read..];
        let length = HEADER + u32::from_be_bytes(rest.get(..HEADER)?.try_into().ok()?) as usize;
        let message = rest.get(..length)?;
        let forbidden = matches!(message.get(HEADER), Some(b'D' | b'X'));
        let here = self.candidates.get(self.stream.len()..self.stream.len() + length)?;
        let sent = here.iter().zip(message).all(|(values, byte)| values.contains(byte));
        (sent && !forbidden).then(|| message.to_vec())
    }

    /// Messages with this verdict that may be in the stream here. Of those that differ in their text only, one.
    fn messages(&self, verdict: u8) -> Vec<Vec<u8>> {
        let here = &self.candidates[self.stream.len()..];
        if !here.get(HEADER).is_some_and(|values| values.contains(&verdict)) {
            return Vec::new();
        }
        let mut headers = vec![Vec::new()];
        for values in &here[..HEADER] {
            let longer = |header: &Vec<u8>| values.iter().map(|&value| [&header[..], &[value]].concat()).collect();
            headers = headers.iter().flat_map::<Vec<_>, _>(longer).collect();
        }
        let whole = |header: Vec<u8>| {
            let length = u32::from_be_bytes(header[..].try_into().expect("four bytes")) as usize;
            let text = here.get(HEADER + 1..HEADER + length).filter(|_| length > 0)?;
            Some([&header[..], &[verdict], &text.iter().map(|values| values[0]).collect::<Vec<_>>()].concat())
        };
        headers.into_iter().filter_map(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{fatal, forbidden, pass};

    fn explained(sent: &[(usize, Vec<u8>)], read: &[u8], dropped: u64, is_fatal: bool) -> Option<Vec<u8>> {
        let mut candidates = Candidates::default();
        sent.iter().for_each(|(at, text)| candidates.add(*at, text));
        let fatal = is_fatal.then_some(fatal("end").len() as u64);
        explain(&candidates, &Outcome { read, dropped: dropped..=dropped, judged: None, fatal, acked: usize::MAX }).ok()
    }

    #[test]
    fn what_was_read_must_have_been_sent_there_and_may_pass() {
        let sent = [(0, pass("one")), (8, forbidden("two")), (16, pass("six"))];
        let both = [pass("one"), pass("six")].concat();
        let stream = [pass("one"), forbidden("two"), pass("six")].concat();
        assert_eq!(explained(&sent, &both, 1, false), Some(stream));
        assert_eq!(explained(&sent, &both, 0, false), None, "nothing was dropped between");
        assert_eq!(explained(&sent, &both[..12], 1, false), None, "half a message");
        assert_eq!(explained(&sent, &[pass("six"), pass("one")].concat(), 1, false), None, "another order");
        assert_eq!(explained(&sent, &[pass("one"), pass("one")].concat(), 1, false), None, "twice");
        assert_eq!(explained(&sent, &[pass("one"), forbidden("two")].concat(), 0, false), None, "it was forbidden");
    }

    #[test]
    fn contradictory_bytes_leave_a_choice_but_one_only() {
        let sent = [(0, pass("one")), (0, forbidden("two")), (8, fatal("end"))];
        assert!(explained(&sent, &pass("one"), 0, false).is_some());
        assert!(explained(&sent, &pass("owe"), 0, false).is_some());
        assert!(explained(&sent, &pass("new"), 0, false).is_none());
        assert!(explained(&sent, &pass("one"), 1, false).is_none(), "passed and dropped");
        assert_eq!(explained(&sent, &pass("twe"), 0, true), Some([pass("twe"), fatal("end")].concat()));
        assert_eq!(explained(&sent[..2], &pass("one"), 0, true), None, "nothing fatal was sent");
    }
}
