//! Memory that programs can touch.
//!
//! ```text
//!  Region        a mapping of its own:    ┌──────────────── length ───────────────┬─ guard ─┐
//!                                         └───────────────────────────────────────┴─────────┘
//!  MessageBuffer a region below 4 GiB, for the bytes of messages
//! ```
//! A program and its helpers read and write a region with raw accesses only, from several threads at once where it is a map
//! that workers share, as in the kernel. So there is never a Rust reference to a map's memory.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// Bytes behind every region that are ours too: a BPF access is at most 8 bytes long.
pub(crate) const GUARD: usize = 8;

const PAGE: usize = 4096;

/// Memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused the mapping.
    #[error("no memory for {length} bytes: {source}")]
    Refused {
        /// Bytes that were wanted.
        length: usize,
        /// The kernel's word.
        source: io::Error,
    },
    /// There is no room below 4 GiB, where message memory has to lie.
    #[error("no room for {length} bytes below 4 GiB, where programs can point with 32 bits")]
    NoLowMemory {
        /// Bytes that were wanted.
        length: usize,
    },
    /// More than [`MessageBuffer::MAX_CAPACITY`], or not representable.
    #[error("{length} bytes of memory are too much")]
    TooBig {
        /// Bytes that were wanted.
        length: usize,
    },
}

/// An anonymous private mapping, zeroed, with a guard behind it; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    length: usize,
    mapped: usize,
}

// SAFETY: a region is plain memory that belongs to no thread. Through a shared reference it is touched by raw copies only
// (`copy_in`, `copy_out`, programs), never through Rust references.
unsafe impl Send for Region {}
// SAFETY: as above. Two threads that write the same bytes at once leave one or the other there, or a mixture, as in a
// kernel array map; no code here depends on what it reads being whole.
unsafe impl Sync for Region {}

impl Region {
    /// `length` zeroed bytes anywhere in the address space.
    pub(crate) fn new(length: usize) -> Result<Self, MemoryError> {
        Self::map(length, None, 0)
    }

    /// `length` zeroed bytes whose addresses, and those of the guard, fit into 32 bits.
    pub(crate) fn low(length: usize) -> Result<Self, MemoryError> {
        #[cfg(target_arch = "x86_64")]
        if let Ok(region) = Self::map(length, None, libc::MAP_32BIT) {
            return Ok(region);
        }
        Self::low_by_search(length)
    }

    /// Tries one address after another: for processors without `MAP_32BIT`, or when the lowest 2 GiB are full.
    fn low_by_search(length: usize) -> Result<Self, MemoryError> {
        const STEP: usize = 16 << 20;
        for hint in (1 << 28..u32::MAX as usize).step_by(STEP) {
            let Ok(region) = Self::map(length, Some(hint), libc::MAP_FIXED_NOREPLACE) else { continue };
            // A kernel older than MAP_FIXED_NOREPLACE takes the address as a hint only.
            if region.address() + region.mapped as u64 <= u64::from(u32::MAX) {
                return Ok(region);
            }
        }
        Err(MemoryError::NoLowMemory { length })
    }

    fn map(length: usize, hint: Option<usize>, flags: i32) -> Result<Self, MemoryError> {
        let mapped = length
            .checked_add(GUARD)
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or(MemoryError::TooBig { length })?;
        let address = hint.map_or(std::ptr::null_mut(), std::ptr::without_provenance_mut);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
        // SAFETY: an anonymous mapping of a nonzero number of bytes; none of the flags that are passed in replaces a mapping
        // that exists (MAP_FIXED is not among them).
        let start = unsafe { libc::mmap(address, mapped, protection, flags, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length, mapped }),
            _ => Err(MemoryError::Refused { length, source: io::Error::last_os_error() }),
        }
    }

    /// The address of the first byte, as a program sees it.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// Bytes, without the guard.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The addresses of its bytes, without the guard.
    pub(crate) fn addresses(&self) -> Range<u64> {
        self.address()..self.address() + self.length as u64
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If they do not fit.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "a copy beyond a region");
        // SAFETY: the destination is inside the mapping (checked above), and no Rust reference to it exists while `self` is
        // borrowed shared: `MessageBuffer`, which hands out references, does not hand out its region.
        unsafe { self.start.as_ptr().add(offset).copy_from(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies the bytes from `offset` on into `out`.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn copy_out(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.length), "a copy beyond a region");
        // SAFETY: the source is inside the mapping (checked above) and initialised (anonymous mappings are zeroed).
        unsafe { out.as_mut_ptr().copy_from(self.start.as_ptr().add(offset), out.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this start and length, and nobody refers to it any more: slices borrow
        // the region, and a `Machine` holds it by an Arc or for the time of a borrow.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// Message memory: bytes that programs can read through the 32-bit fields `data` and `data_end`. One per worker.
///
/// Bytes written by a program stay in the buffer (see the crate's documentation): a caller that passes messages on from
/// somewhere else passes what the sender sent.
#[derive(Debug)]
pub struct MessageBuffer {
    region: Region,
}

impl MessageBuffer {
    /// The most that a buffer can hold, in bytes.
    pub const MAX_CAPACITY: usize = 1 << 30;

    /// A buffer of `capacity` zeroed bytes in the low 4 GiB of the address space.
    ///
    /// # Errors
    /// No room there, or more than [`MAX_CAPACITY`](Self::MAX_CAPACITY).
    pub fn new(capacity: usize) -> Result<Self, MemoryError> {
        if capacity > Self::MAX_CAPACITY {
            return Err(MemoryError::TooBig { length: capacity });
        }
        let region = Region::low(capacity)?;
        debug_assert!(region.address() + region.mapped as u64 <= 1 << 32);
        Ok(Self { region })
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.region.length
    }

    /// All its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `length` bytes of the mapping, initialised, and borrowed with `self`: programs touch them only inside
        // `Machine::run`, which borrows the buffer mutably.
        unsafe { std::slice::from_raw_parts(self.region.start.as_ptr(), self.region.length) }
    }

    /// All its bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.as_ptr(), self.region.length) }
    }

    /// The address of byte `offset`; fits into 32 bits for every offset up to the capacity.
    pub(crate) fn address(&self, offset: usize) -> u32 {
        debug_assert!(offset <= self.region.length);
        (self.region.address() + offset as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_memory_is_low_and_filled_with_zeros() {
        let mut buffer = MessageBuffer::new(100_000).unwrap();
        assert_eq!(buffer.capacity(), 100_000);
        assert!(buffer.region.address() + buffer.region.mapped as u64 <= 1 << 32);
        assert!(buffer.as_slice().iter().all(|&byte| byte == 0));
        buffer.as_mut_slice()[99_999] = 7;
        assert_eq!(buffer.as_slice()[99_999], 7);
        assert_eq!(u64::from(buffer.address(100_000)), buffer.region.address() + 100_000);
    }

    #[test]
    fn low_memory_is_found_by_searching_too() {
        let (one, other) = (Region::low_by_search(70_000).unwrap(), Region::low_by_search(70_000).unwrap());
        assert_ne!(one.address(), other.address());
        assert!(other.address() + other.mapped as u64 <= u64::from(u32::MAX));
    }

    #[test]
    fn too_much_memory_is_an_error() {
        assert!(matches!(MessageBuffer::new(usize::MAX), Err(MemoryError::TooBig { .. })));
        assert!(matches!(Region::new(usize::MAX), Err(MemoryError::TooBig { .. })));
        assert!(matches!(Region::new(1 << 60), Err(MemoryError::Refused { .. })));
    }

    #[test]
    fn an_empty_buffer_is_possible() {
        assert!(MessageBuffer::new(0).unwrap().as_slice().is_empty());
    }

    #[test]
    fn a_region_owns_the_bytes_behind_its_last() {
        for length in [0, 1, PAGE - GUARD, PAGE - GUARD + 1, PAGE - 1, PAGE] {
            let region = Region::new(length).unwrap();
            assert!(region.mapped >= length + GUARD, "{length}");
        }
    }
}
