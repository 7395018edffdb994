//! The receiving half of a minimal TCP. It believes nothing: whatever the sender puts on the wire must fit to all that it
//! has put there before.

use crate::wire::{FIN, Segment};

/// The bytes of one direction of one connection, by their offset in the stream.
pub struct Receiver {
    /// Sequence number of the first byte.
    first: u32,
    /// What was on the wire at each offset, whether it has arrived or was lost.
    seen: Vec<u8>,
    /// Which of these have arrived.
    arrived: Vec<bool>,
    /// All before this have arrived.
    in_order: usize,
    /// Where the segment began that was taken last.
    latest: usize,
    /// All before this were read by the application.
    read: usize,
    /// Where the stream ends, and whether that has arrived.
    fin: Option<usize>,
    fin_arrived: bool,
    /// Behind the last byte that was ever allowed to be sent.
    edge: usize,
    capacity: usize,
}

impl Receiver {
    pub fn new(irs: u32, capacity: usize) -> Self {
        Self {
            first: irs.wrapping_add(1),
            seen: Vec::new(),
            arrived: Vec::new(),
            in_order: 0,
            latest: 0,
            read: 0,
            fin: None,
            fin_arrived: false,
            edge: 0,
            capacity,
        }
    }

    /// Checks a segment that is on its way, whether it will arrive or not.
    #[track_caller]
    pub fn check(&mut self, segment: &Segment) {
        let at = self.offset(segment.seq);
        // RFC 9293 §3.8.4: whether we are still there is asked with the number before the next one.
        if at == -1 && segment.length() == 0 {
            return;
        }
        let fin = usize::from(self.fin.is_some());
        assert!(
            (0..=(self.seen.len() + fin) as i64).contains(&at),
            "a number that was not reached yet, or long ago: {at}"
        );
        let at = at as usize;
        let end = at + segment.text.len();
        if end > at {
            assert!(end <= self.edge, "text {at}..{end} beyond the window, which ends at {}", self.edge);
            assert!(self.fin.is_none_or(|fin| end <= fin), "text {at}..{end} behind the FIN at {:?}", self.fin);
        }
        for (offset, &byte) in (at..end).zip(&segment.text) {
            match self.seen.get(offset) {
                Some(&before) => assert_eq!(before, byte, "byte {offset} was another one when it was sent before"),
                None => {
                    self.seen.push(byte);
                    self.arrived.push(false);
                }
            }
        }
        if segment.has(FIN) {
            assert_eq!(end, self.seen.len(), "a FIN before the end of what was sent");
            assert!(self.fin.is_none_or(|fin| fin == end), "two FINs: {:?} and {end}", self.fin);
            self.fin = Some(end);
        }
    }

    /// Takes in what is new and in the window. True: something was (new or not), so an ACK is owed.
    pub fn take(&mut self, segment: &Segment) -> bool {
        let at = self.offset(segment.seq);
        for (offset, &byte) in (at..).zip(&segment.text) {
            let Ok(offset) = usize::try_from(offset) else { continue };
            if offset >= self.edge || self.fin_arrived {
                break;
            }
            if offset >= self.seen.len() {
                // Only of a segment that was not checked: one that did not come from the tap.
                self.seen.resize(offset + 1, 0);
                self.arrived.resize(offset + 1, false);
            }
            if !self.arrived[offset] {
                self.arrived[offset] = true;
                self.seen[offset] = byte;
            }
        }
        self.latest = usize::try_from(at).unwrap_or(0);
        self.in_order += self.arrived[self.in_order..].iter().take_while(|&&arrived| arrived).count();
        self.fin_arrived |= segment.has(FIN) && at + segment.text.len() as i64 == self.in_order as i64;
        segment.length() > 0
    }

    /// The application reads all that there is.
    pub fn read(&mut self) -> Vec<u8> {
        let bytes = self.seen[self.read..self.in_order].to_vec();
        self.read = self.in_order;
        bytes
    }

    /// What has arrived behind a hole, as RFC 2018 §4 has it told: first where the last segment is, and not more than find
    /// room beside timestamps.
    pub fn islands(&self) -> Vec<(u32, u32)> {
        let mut islands: Vec<(usize, usize)> = Vec::new();
        for offset in (self.in_order..self.arrived.len()).filter(|&offset| self.arrived[offset]) {
            match islands.last_mut() {
                Some((_, end)) if *end == offset => *end += 1,
                _ => islands.push((offset, offset + 1)),
            }
        }
        islands.sort_by_key(|&(begin, end)| !(begin..end).contains(&self.latest));
        islands.truncate(3);
        let number = |offset: usize| self.first.wrapping_add(offset as u32);
        islands.into_iter().map(|(begin, end)| (number(begin), number(end))).collect()
    }

    /// Whether something waits to be read.
    pub fn is_readable(&self) -> bool {
        self.read < self.in_order
    }

    /// The other end has closed, and all before that has arrived.
    pub fn is_finished(&self) -> bool {
        self.fin_arrived
    }

    /// RCV.NXT.
    pub fn next(&self) -> u32 {
        self.first.wrapping_add(self.in_order as u32).wrapping_add(u32::from(self.fin_arrived))
    }

    /// The window from RCV.NXT on, in units of `1 << shift` bytes. What it allows stays allowed.
    pub fn offer(&mut self, shift: u8) -> u16 {
        let free = self.capacity - (self.in_order - self.read);
        let window = (self.edge.max(self.in_order + free) - self.in_order) >> shift;
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        self.edge = self.edge.max(self.in_order + (usize::from(window) << shift));
        window
    }

    /// How many bytes the sender may send now, as far as it knows.
    pub fn offered(&self) -> usize {
        self.edge - self.in_order
    }

    /// Where a sequence number is in the stream.
    pub fn offset(&self, seq: u32) -> i64 {
        i64::from(seq.wrapping_sub(self.first) as i32)
    }

    /// Where RCV.NXT is in the stream, the FIN not counted.
    pub fn in_order(&self) -> usize {
        self.in_order
    }
}
