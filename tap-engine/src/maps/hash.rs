//! Hash tables (`kernel/bpf/hashtab.c`), also with eviction of what was not used lately, and with a value for each CPU.
//!
//! Elements are places in regions: key, values, link. A bucket is a chain of elements. Whoever changes anything holds the map's lock. Who
//! looks something up does not: it reads the bucket's version before and after its walk, and walks again if a change came between.
//!
//! ```text
//!   heads:    bucket → first element + 1          keys, values: element → bytes
//!   versions: bucket → odd while it is changed    links: element → next element + 1     marks: element → in use, used lately
//! ```

use std::hash::Hasher;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use siphasher::sip::SipHasher13;

use super::array::value_of;
use super::{ElementKey, MAX_KEY, update};
use crate::machine::{MemoryError, Region};

/// Elements that are looked at for one to evict.
const SCAN: u32 = 64;

/// Elements that are looked at before a lookup asks whether its chain is still the one that it began with.
const STRIDE: u32 = 16;

/// Elements whose keys are copied while changes wait.
const PORTION: u32 = 1024;

/// Bits of `marks`.
const IN_USE: u32 = 1;
const USED_LATELY: u32 = 2;

/// The words of a key; the last one is padded with zeros.
fn words(key: &[u8]) -> impl Iterator<Item = u64> {
    key.chunks(8).map(|part| match part.try_into() {
        Ok(whole) => u64::from_ne_bytes(whole),
        Err(_) => {
            let mut padded = [0; 8];
            padded[..part.len()].copy_from_slice(part);
            u64::from_ne_bytes(padded)
        }
    })
}

/// A hash table.
#[derive(Debug)]
pub(super) struct Hash {
    key_size: usize,
    key_stride: usize,
    value_size: usize,
    /// Of one CPU.
    value_stride: usize,
    entries: u32,
    cpus: u32,
    /// Control sees all values of a key, each rounded up.
    per_cpu: bool,
    evicts: bool,
    seed: u64,
    buckets: u32,
    heads: Region,
    versions: Region,
    links: Region,
    marks: Region,
    keys: Region,
    values: Region,
    writer: Mutex<Writer>,
}

/// What changes need to know.
#[derive(Debug, Default)]
struct Writer {
    /// The first element that was given back, and one; the others follow by their links.
    free: u32,
    /// Elements that were ever taken.
    taken: u32,
    /// Elements in use.
    used: u32,
    /// Where the search for one to evict goes on.
    hand: u32,
}

impl Hash {
    pub(super) fn new(
        key_size: u32,
        value_size: u32,
        entries: u32,
        cpus: u32,
        per_cpu: bool,
        evicts: bool,
    ) -> Result<Self, MemoryError> {
        let (key_size, value_size) = (key_size as usize, value_size as usize);
        let (key_stride, value_stride) = (key_size.next_multiple_of(8), value_size.next_multiple_of(8));
        let buckets = entries.checked_next_power_of_two().unwrap_or(1 << 31);
        let numbers = |count: u32| Region::new(4 * count as usize);
        let values = Region::new(value_stride * cpus as usize * entries as usize)?;
        Ok(Self {
            key_size,
            key_stride,
            value_size,
            value_stride,
            entries,
            cpus,
            per_cpu,
            evicts,
            // Where the kernel maps memory is as secret as a seed needs to be, for who sends messages.
            seed: values.address().rotate_left(20) ^ std::process::id() as u64,
            buckets,
            heads: numbers(buckets)?,
            versions: numbers(buckets)?,
            links: numbers(entries)?,
            marks: numbers(entries)?,
            keys: Region::new(key_stride * entries as usize)?,
            values,
            writer: Mutex::default(),
        })
    }

    #[cfg(test)]
    pub(super) fn region(&self) -> &Region {
        &self.values
    }

    pub(super) fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Addresses of the values.
    pub(super) fn values(&self) -> Range<u64> {
        self.values.addresses()
    }

    /// Addresses of the keys, which callbacks get.
    pub(super) fn key_addresses(&self) -> Range<u64> {
        self.keys.addresses()
    }

    fn bucket(&self, key: &[u8]) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.seed, !self.seed);
        for word in words(key) {
            hasher.write_u64(word);
        }
        hasher.finish() as u32 & (self.buckets - 1)
    }

    fn head(&self, bucket: u32) -> &AtomicU32 {
        self.heads.atomic_u32(bucket as usize)
    }

    fn version(&self, bucket: u32) -> &AtomicU32 {
        self.versions.atomic_u32(bucket as usize)
    }

    fn link(&self, element: u32) -> &AtomicU32 {
        self.links.atomic_u32(element as usize)
    }

    fn mark(&self, element: u32) -> &AtomicU32 {
        self.marks.atomic_u32(element as usize)
    }

    fn is_used(&self, element: u32) -> bool {
        self.mark(element).load(Ordering::Relaxed) & IN_USE != 0
    }

    /// A copy of the key of an element; the map is locked.
    fn key(&self, element: u32) -> Vec<u8> {
        let mut key = vec![0; self.key_size];
        self.keys.copy_out(element as usize * self.key_stride, &mut key);
        key
    }

    fn value_offset(&self, element: u32, cpu: u32) -> usize {
        (element as usize * self.cpus as usize + (cpu % self.cpus) as usize) * self.value_stride
    }

    fn value_address(&self, element: u32, cpu: u32) -> u64 {
        self.values.address() + self.value_offset(element, cpu) as u64
    }

    fn has_key(&self, element: u32, key: &[u8]) -> bool {
        let first = element as usize * (self.key_stride / 8);
        words(key).zip(first..).all(|(word, index)| self.keys.atomic_u64(index).load(Ordering::Relaxed) == word)
    }

    /// The element of `key` in `bucket`, as far as can be seen while others may change it; none once `is_current` denies.
    fn walk(&self, bucket: u32, key: &[u8], is_current: impl Fn() -> bool) -> Option<u32> {
        let mut next = self.head(bucket).load(Ordering::Acquire);
        for step in 1..=self.entries {
            let element = next.checked_sub(1)?;
            if self.has_key(element, key) {
                return Some(element);
            }
            next = self.link(element).load(Ordering::Acquire);
            // An element that was deleted meanwhile leads to all those that are free, or in a circle.
            if step.is_multiple_of(STRIDE) && !is_current() {
                return None;
            }
        }
        None
    }

    /// As [`walk`](Self::walk), for who holds the lock.
    fn walk_locked(&self, bucket: u32, key: &[u8]) -> Option<u32> {
        self.walk(bucket, key, || true)
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let bucket = self.bucket(key);
        for turn in 1_u32.. {
            let version = self.version(bucket).load(Ordering::Acquire);
            if version & 1 == 0 {
                let found = self.walk(bucket, key, || self.version(bucket).load(Ordering::Relaxed) == version);
                fence(Ordering::Acquire);
                if self.version(bucket).load(Ordering::Relaxed) == version {
                    return found;
                }
            }
            // Whoever changes the bucket may need this core to end.
            if turn.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        unreachable!("the loop has no end")
    }

    pub(super) fn lookup(&self, key: &[u8], cpu: u32) -> Option<u64> {
        let element = self.find(key)?;
        if self.evicts && self.mark(element).load(Ordering::Relaxed) & USED_LATELY == 0 {
            self.mark(element).fetch_or(USED_LATELY, Ordering::Relaxed);
        }
        Some(self.value_address(element, cpu))
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the chain of `bucket`; the map is locked.
    fn change(&self, bucket: u32, change: impl FnOnce()) {
        let version = self.version(bucket);
        let before = version.load(Ordering::Relaxed);
        version.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        version.store(before.wrapping_add(2), Ordering::Release);
    }

    /// As `htab_map_update_elem`: of CPU `cpu`; a new element has zeros for the others.
    pub(super) fn update(&self, key: &[u8], value: &[u8], flags: u64, cpu: u32) -> Result<(), i32> {
        self.put(key, flags, |element, is_new| {
            if is_new && self.cpus > 1 {
                for other in 0..self.cpus {
                    self.values.zero(self.value_offset(element, other), self.value_stride);
                }
            }
            self.values.store(self.value_offset(element, cpu), &value[..self.value_size]);
        })
    }

    /// From control: the values of all CPUs.
    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> Result<(), i32> {
        self.put(key, 0, |element, _| {
            for cpu in 0..self.cpus {
                self.values.store(self.value_offset(element, cpu), value_of(value, cpu, self.value_size));
            }
        })
    }

    /// Finds the element of `key`, or takes one, and has its value written before it can be found.
    fn put(&self, key: &[u8], flags: u64, write: impl FnOnce(u32, bool)) -> Result<(), i32> {
        let bucket = self.bucket(key);
        let mut writer = self.lock();
        if let Some(element) = self.walk_locked(bucket, key) {
            if flags == update::NOEXIST {
                return Err(libc::EEXIST);
            }
            write(element, false);
            return Ok(());
        }
        if flags == update::EXIST {
            return Err(libc::ENOENT);
        }
        let element = self.take(&mut writer).ok_or(libc::E2BIG)?;
        for (word, index) in words(key).zip(element as usize * (self.key_stride / 8)..) {
            self.keys.atomic_u64(index).store(word, Ordering::Relaxed);
        }
        write(element, true);
        self.mark(element).store(IN_USE, Ordering::Relaxed);
        self.change(bucket, || {
            let first = self.head(bucket).load(Ordering::Relaxed);
            self.link(element).store(first, Ordering::Release);
            self.head(bucket).store(element + 1, Ordering::Release);
        });
        writer.used += 1;
        Ok(())
    }

    /// An element that is in no chain.
    fn take(&self, writer: &mut Writer) -> Option<u32> {
        if let Some(element) = writer.free.checked_sub(1) {
            writer.free = self.link(element).load(Ordering::Relaxed);
            return Some(element);
        }
        if writer.taken < self.entries {
            writer.taken += 1;
            return Some(writer.taken - 1);
        }
        if !self.evicts {
            return None;
        }
        // All are in use. The hand goes around, forgives those that were used lately once, and takes the first other one; or,
        // if there is none near, the one that it stands at.
        for _ in 0..SCAN {
            let element = writer.hand;
            writer.hand = (element + 1) % self.entries;
            if self.mark(element).fetch_and(!USED_LATELY, Ordering::Relaxed) & USED_LATELY == 0 {
                self.unlink(element, writer);
                return Some(element);
            }
        }
        let element = writer.hand;
        self.unlink(element, writer);
        Some(element)
    }

    /// Takes an element in use out of its chain.
    fn unlink(&self, element: u32, writer: &mut Writer) {
        let mut room = [0; MAX_KEY];
        let key = &mut room[..self.key_size];
        self.keys.copy_out(element as usize * self.key_stride, key);
        let bucket = self.bucket(key);
        self.unlink_from(bucket, element, writer);
    }

    fn unlink_from(&self, bucket: u32, element: u32, writer: &mut Writer) {
        self.change(bucket, || {
            let mut place = self.head(bucket);
            while let Some(other) = place.load(Ordering::Relaxed).checked_sub(1) {
                if other == element {
                    place.store(self.link(element).load(Ordering::Relaxed), Ordering::Release);
                    break;
                }
                place = self.link(other);
            }
        });
        self.mark(element).store(0, Ordering::Relaxed);
        writer.used -= 1;
    }

    pub(super) fn delete(&self, key: &[u8]) -> Result<(), i32> {
        let bucket = self.bucket(key);
        let mut writer = self.lock();
        let element = self.walk_locked(bucket, key).ok_or(libc::ENOENT)?;
        self.unlink_from(bucket, element, &mut writer);
        self.link(element).store(writer.free, Ordering::Relaxed);
        writer.free = element + 1;
        Ok(())
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        // Locked: else the element could become another key's before its value is copied.
        let _writer = self.lock();
        let element = self.walk_locked(self.bucket(key), key)?;
        let size = if self.per_cpu { self.value_stride } else { self.value_size };
        let mut all = vec![0; size * self.cpus as usize];
        for (cpu, value) in (0..).zip(all.chunks_exact_mut(size)) {
            self.values.copy_out(self.value_offset(element, cpu), value);
        }
        Some(all)
    }

    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for first in (0..self.entries).step_by(PORTION as usize) {
            let writer = self.lock();
            if first >= writer.taken {
                break;
            }
            let portion = first..writer.taken.min(first + PORTION);
            keys.extend(portion.filter(|element| self.is_used(*element)).map(|element| self.key(element)));
        }
        keys
    }

    /// Entries in use.
    pub(super) fn used(&self) -> u32 {
        self.lock().used
    }

    pub(super) fn for_each<E>(
        &self,
        cpu: u32,
        each: &mut dyn FnMut(ElementKey, u64) -> Result<ControlFlow<()>, E>,
    ) -> Result<u32, E> {
        let taken = self.lock().taken;
        let mut count = 0;
        for element in (0..taken).filter(|element| self.is_used(*element)) {
            count += 1;
            let key = self.keys.address() + (element as usize * self.key_stride) as u64;
            if each(ElementKey::Address(key), self.value_address(element, cpu))?.is_break() {
                break;
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_lookup_that_was_led_astray_soon_begins_anew() {
        let hash = Hash::new(4, 4, 10_000, 1, false, false).unwrap();
        for number in 0..10_000_u32 {
            hash.set(&number.to_ne_bytes(), &[0; 4]).unwrap();
        }
        for number in 0..10_000_u32 {
            hash.delete(&number.to_ne_bytes()).unwrap();
        }
        // As who stands at an element that is deleted: all that are free follow.
        let key = [0xff; 4];
        let bucket = hash.bucket(&key);
        hash.head(bucket).store(hash.lock().free, Ordering::Relaxed);
        let asked = Cell::new(0);
        let found = hash.walk(bucket, &key, || {
            asked.set(asked.get() + 1);
            false
        });
        assert_eq!((found, asked.get()), (None, 1));
        assert_eq!(
            hash.walk(bucket, &key, || {
                asked.set(asked.get() + 1);
                true
            }),
            None
        );
        assert_eq!(asked.get(), 1 + 10_000 / STRIDE);
    }
}
