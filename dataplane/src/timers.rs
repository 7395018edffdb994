//! Deadlines of flows: a hierarchical timing wheel (Varghese and Lauck, 1987) over flow numbers.
//!
//! One entry a flow, set and cancelled in constant time. Six levels of 64 slots with a tick of 1,024 µs reach over two
//! years; a level's bit mask of occupied slots finds the next deadline without walking empty ones.

use tcp::time::Instant;

/// log2 of the length of a tick in microseconds.
const TICK_SHIFT: u32 = 10;
const LEVELS: usize = 6;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
/// The furthest distance that the wheel holds, in ticks; a later deadline fires early and is simply set again.
const MAX_DISTANCE: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    /// Deadline in ticks; meaningful while `slot` is set.
    deadline: u64,
    previous: u32,
    next: u32,
    /// `level * SLOTS + slot`, or `u16::MAX` when no timer is set.
    slot: u16,
}

const UNSET: Entry = Entry { deadline: 0, previous: NONE, next: NONE, slot: u16::MAX };

/// The timing wheel of one worker. Call order: any number of [`set`](Self::set) and [`cancel`](Self::cancel), then
/// [`expire`](Self::expire) at or after [`next_deadline`](Self::next_deadline).
pub struct Timers {
    /// The tick up to which everything has fired.
    elapsed: u64,
    heads: [u32; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
    len: usize,
}

impl Timers {
    /// An empty wheel whose time begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            elapsed: ticks_floor(now),
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            entries: Vec::new(),
            len: 0,
        }
    }

    /// Number of timers that are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets (or moves) the timer of flow `id`. A deadline that has passed fires at the next tick.
    pub fn set(&mut self, id: u32, deadline: Instant) {
        if self.entries.len() <= id as usize {
            self.entries.resize(id as usize + 1, UNSET);
        }
        let deadline = ticks_ceil(deadline).clamp(self.elapsed + 1, self.elapsed + MAX_DISTANCE);
        let entry = &self.entries[id as usize];
        if entry.slot != UNSET.slot && entry.deadline == deadline {
            return;
        }
        self.cancel(id);
        self.entries[id as usize].deadline = deadline;
        self.link(id);
        self.len += 1;
    }

    /// Removes the timer of flow `id`, if one is set.
    pub fn cancel(&mut self, id: u32) {
        if self.entries.get(id as usize).is_some_and(|entry| entry.slot != UNSET.slot) {
            self.unlink(id);
            self.len -= 1;
        }
    }

    /// When `expire` should be called next; never later than the earliest deadline (rounded up to a tick), perhaps
    /// earlier, when entries of a higher level have to be sorted into a lower one.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_slot().map(|(_, tick)| Instant::from_micros((tick << TICK_SHIFT) as i64))
    }

    /// Appends every flow whose deadline is at or before `now` to `expired`; their timers are unset.
    pub fn expire(&mut self, now: Instant, expired: &mut Vec<u32>) {
        let now = ticks_floor(now);
        while let Some((slot, tick)) = self.next_slot() {
            if tick > now {
                break;
            }
            self.elapsed = tick;
            let mut id = std::mem::replace(&mut self.heads[slot], NONE);
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
            while id != NONE {
                let next = self.entries[id as usize].next;
                self.entries[id as usize].slot = UNSET.slot;
                if self.entries[id as usize].deadline <= tick {
                    self.len -= 1;
                    expired.push(id);
                } else {
                    self.link(id);
                }
                id = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// The occupied slot that comes first, and the tick at which it has to be looked at.
    fn next_slot(&self) -> Option<(usize, u64)> {
        // Whatever stands on a lower level comes before everything on a higher one.
        let level = self.occupied.iter().position(|&mask| mask != 0)?;
        let shift = SLOT_BITS * level as u32;
        let current = (self.elapsed >> shift) % SLOTS as u64;
        let ahead = self.occupied[level].rotate_right(current as u32).trailing_zeros() as u64;
        let slot = (current + ahead) % SLOTS as u64;
        let rotation = self.elapsed >> (shift + SLOT_BITS) << (shift + SLOT_BITS);
        let mut tick = rotation + (slot << shift);
        if tick <= self.elapsed {
            // Only the top level wraps around: elsewhere a deadline in the next rotation stands one level higher.
            debug_assert_eq!(level, LEVELS - 1);
            tick += 1 << (shift + SLOT_BITS);
        }
        Some((level * SLOTS + slot as usize, tick))
    }

    fn link(&mut self, id: u32) {
        let deadline = self.entries[id as usize].deadline;
        // The highest bit in which the deadline differs from now names the level.
        let differing = (self.elapsed ^ deadline) | (SLOTS as u64 - 1);
        let level = (((63 - differing.leading_zeros()) / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot_in_level = ((deadline >> (SLOT_BITS * level as u32)) % SLOTS as u64) as usize;
        let slot = level * SLOTS + slot_in_level;
        let head = std::mem::replace(&mut self.heads[slot], id);
        if head != NONE {
            self.entries[head as usize].previous = id;
        }
        self.occupied[level] |= 1 << slot_in_level;
        let entry = &mut self.entries[id as usize];
        (entry.previous, entry.next, entry.slot) = (NONE, head, slot as u16);
    }

    fn unlink(&mut self, id: u32) {
        let Entry { previous, next, slot, .. } = std::mem::replace(&mut self.entries[id as usize], UNSET);
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[slot as usize] = next;
            if next == NONE {
                self.occupied[slot as usize / SLOTS] &= !(1 << (slot as usize % SLOTS));
            }
        }
    }
}

fn ticks_floor(instant: Instant) -> u64 {
    (instant.total_micros().max(0) as u64) >> TICK_SHIFT
}

fn ticks_ceil(instant: Instant) -> u64 {
    (instant.total_micros().max(0) as u64).saturating_add((1 << TICK_SHIFT) - 1) >> TICK_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let mut timers = Timers::new(Instant::ZERO);
        timers.set(3, Instant::from_millis(10));
        assert!(timers.next_deadline().unwrap() <= Instant::from_millis(11));
        let mut fired = Vec::new();
        timers.expire(Instant::from_millis(9), &mut fired);
        assert!(fired.is_empty());
        timers.expire(Instant::from_millis(12), &mut fired);
        assert_eq!(fired, [3]);
        assert_eq!((timers.next_deadline(), timers.len()), (None, 0));
    }

    proptest! {
        /// Against a sorted map: the same flows fire, never before their deadline and at most two ticks late when the
        /// wheel is driven by its own `next_deadline`.
        #[test]
        fn agrees_with_a_sorted_map(operations in prop::collection::vec((0u32..40, prop::option::of(0u64..10_000_000_000u64), 0u64..100_000_000), 1..200)) {
            let mut now = Instant::from_micros(123_456_789);
            let mut timers = Timers::new(now);
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            for (id, delay, advance) in operations {
                match delay {
                    Some(delay) => {
                        let deadline = now + tcp::time::Duration::from_micros(delay);
                        timers.set(id, deadline);
                        model.insert(id, deadline);
                    }
                    None => {
                        timers.cancel(id);
                        model.remove(&id);
                    }
                }
                let end = now + tcp::time::Duration::from_micros(advance);
                while let Some(next) = timers.next_deadline().filter(|&next| next <= end) {
                    now = now.max(next);
                    let mut fired = Vec::new();
                    timers.expire(now, &mut fired);
                    prop_assert!(timers.next_deadline().is_none_or(|next| next > now));
                    for id in fired {
                        let deadline = model.remove(&id).expect("fired twice or never set");
                        prop_assert!(deadline <= now && now.total_micros() <= deadline.total_micros() + 2048);
                    }
                }
                now = end;
                prop_assert!(model.values().all(|deadline| deadline.total_micros() + 2048 > now.total_micros()));
                prop_assert_eq!(timers.len(), model.len());
            }
        }
    }
}
