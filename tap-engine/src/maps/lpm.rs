//! Longest prefix match (`kernel/bpf/lpm_trie.c`): keys are a prefix length in bits and an address.
//!
//! A hash table of masked prefixes, and how many there are of each length: a lookup asks for each length that there is, longest first.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::MAX_KEY;
use super::hash::Hash;
use crate::machine::MemoryError;

/// Bytes of the prefix length.
const LENGTH: usize = 4;

/// A table of prefixes.
#[derive(Debug)]
pub(super) struct Lpm {
    table: Hash,
    entries: u32,
    /// Prefixes of each length, in bits.
    lengths: Box<[AtomicU32]>,
    /// Held by changes, which are two steps.
    changing: Mutex<()>,
}

impl Lpm {
    pub(super) fn new(key_size: u32, value_size: u32, entries: u32) -> Result<Self, MemoryError> {
        let bits = (key_size as usize - LENGTH) * 8;
        let lengths = (0..=bits).map(|_| AtomicU32::new(0)).collect();
        let table = Hash::new(key_size, value_size, entries, 1, false, false)?;
        Ok(Self { table, entries, lengths, changing: Mutex::new(()) })
    }

    pub(super) fn values(&self) -> Range<u64> {
        self.table.values()
    }

    /// The prefix length of `key`, if it can be one.
    fn length(&self, key: &[u8]) -> Option<usize> {
        let length = u32::from_ne_bytes(key[..LENGTH].try_into().expect("a key is longer")) as usize;
        (length < self.lengths.len()).then_some(length)
    }

    /// The value of the longest prefix of the address in `key`, of those that are at most as long as its length says.
    pub(super) fn lookup(&self, key: &[u8]) -> Option<u64> {
        let longest = self.length(key)?;
        let mut prefix = [0; MAX_KEY];
        (0..=longest)
            .rev()
            .filter(|length| self.lengths[*length].load(Ordering::Relaxed) > 0)
            .find_map(|length| self.table.lookup(masked(key, length, &mut prefix), 0))
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let longest = self.length(key)?;
        let mut prefix = [0; MAX_KEY];
        (0..=longest).rev().find_map(|length| self.table.get(masked(key, length, &mut prefix)))
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), i32> {
        let length = self.length(key).ok_or(libc::EINVAL)?;
        let mut prefix = [0; MAX_KEY];
        let key = masked(key, length, &mut prefix);
        let _changing = self.changing.lock();
        let before = self.table.used();
        let updated = self.table.update(key, value, flags, 0);
        if self.table.used() > before {
            self.lengths[length].fetch_add(1, Ordering::Relaxed);
        }
        debug_assert!(self.table.used() <= self.entries);
        updated.map_err(|errno| if errno == libc::E2BIG { libc::ENOSPC } else { errno })
    }

    pub(super) fn delete(&self, key: &[u8]) -> Result<(), i32> {
        let length = self.length(key).ok_or(libc::EINVAL)?;
        let mut prefix = [0; MAX_KEY];
        let _changing = self.changing.lock();
        self.table.delete(masked(key, length, &mut prefix))?;
        self.lengths[length].fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.table.keys()
    }
}

/// `key` with the length `length`, and zeros behind so many bits of its address.
fn masked<'a>(key: &[u8], length: usize, out: &'a mut [u8; MAX_KEY]) -> &'a [u8] {
    out[..LENGTH].copy_from_slice(&(length as u32).to_ne_bytes());
    out[LENGTH..key.len()].fill(0);
    let (whole, bits) = (length / 8, length % 8);
    out[LENGTH..LENGTH + whole].copy_from_slice(&key[LENGTH..LENGTH + whole]);
    if bits > 0 {
        out[LENGTH + whole] = key[LENGTH + whole] & !(0xff >> bits);
    }
    &out[..key.len()]
}
