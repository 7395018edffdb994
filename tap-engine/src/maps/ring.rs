//! Ring buffers (`kernel/bpf/ringbuf.c`): records from programs on all workers, in the order in which they were reserved.
//!
//! What is reserved and what is submitted is kept apart from the bytes, where no program can write. The memory is there twice, one copy behind the
//! other, so that each record is contiguous.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::machine::{MemoryError, Region};

/// Bytes that each record takes beside its own (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// A ring buffer.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: Region,
    size: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes taken since the beginning, by programs and by the consumer.
    produced: u64,
    consumed: u64,
    /// Oldest first.
    records: VecDeque<Record>,
    lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Where its data begins, in bytes since the beginning.
    at: u64,
    length: u64,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Reserved,
    Submitted,
    Discarded,
}

impl Ring {
    pub(super) fn new(size: u32) -> Result<Self, MemoryError> {
        // As many records as one is likely to hold: beyond, it allocates.
        let records = VecDeque::with_capacity(1024.min(size as usize / 16));
        let state = Mutex::new(State { records, ..State::default() });
        Ok(Self { memory: Region::twice(size as usize)?, size: size.into(), state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn addresses(&self) -> Range<u64> {
        self.memory.addresses()
    }

    /// Room for a record of `length` bytes: its address. None: there is no room, and that is counted.
    pub(crate) fn reserve(&self, length: u64) -> Option<u64> {
        let mut state = self.lock();
        let taken = length.checked_next_multiple_of(8).and_then(|length| length.checked_add(HEADER));
        let Some(taken) = taken.filter(|taken| state.produced - state.consumed + taken <= self.size) else {
            state.lost += 1;
            return None;
        };
        let at = state.produced + HEADER;
        state.produced += taken;
        state.records.push_back(Record { at, length, status: Status::Reserved });
        Some(self.memory.address() + at % self.size)
    }

    /// What a program does with the address of a record.
    #[cfg(test)]
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.copy_in((address - self.memory.address()) as usize, bytes);
    }

    /// Ends the record that was reserved at `address`; false: there is none.
    pub(crate) fn end(&self, address: u64, submit: bool) -> bool {
        let mut state = self.lock();
        let place = address.wrapping_sub(self.memory.address());
        if place >= self.size {
            return false;
        }
        // The only position of the current round where its header can lie. Data can begin where the round ends, if there is none.
        let header = place.wrapping_sub(HEADER).wrapping_sub(state.consumed) & (self.size - 1);
        let at = state.consumed + header + HEADER;
        let Ok(index) = state.records.binary_search_by_key(&at, |record| record.at) else { return false };
        let record = &mut state.records[index];
        if record.status != Status::Reserved {
            return false;
        }
        record.status = if submit { Status::Submitted } else { Status::Discarded };
        true
    }

    /// `bpf_ringbuf_query`: bytes that wait, size, position of the consumer, of the producers.
    pub(crate) fn query(&self, what: u64) -> u64 {
        let state = self.lock();
        match what {
            0 => state.produced - state.consumed,
            1 => self.size,
            2 => state.consumed,
            3 => state.produced,
            _ => 0,
        }
    }

    /// Records that found no room.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Takes what was submitted, up to the first record that is still being written.
    pub(super) fn drain(&self, each: &mut dyn FnMut(&[u8])) {
        let mut bytes = Vec::new();
        // What comes meanwhile waits for the next time: this has an end.
        let end = self.lock().produced;
        loop {
            let submitted = {
                let mut state = self.lock();
                let ended = |record: &&Record| record.status != Status::Reserved && record.at <= end;
                let Some(record) = state.records.front().filter(ended).copied() else { return };
                bytes.resize(record.length as usize, 0);
                self.memory.copy_out((record.at % self.size) as usize, &mut bytes);
                state.records.pop_front();
                state.consumed = record.at + record.length.next_multiple_of(8);
                record.status == Status::Submitted
            };
            if submitted {
                each(&bytes);
            }
        }
    }
}
