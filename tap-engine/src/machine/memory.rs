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
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

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
    /// It cannot be written any more.
    protected: AtomicBool,
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
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self { start, length, mapped, protected: AtomicBool::new(false) })
            }
            _ => Err(MemoryError::Refused { length, source: io::Error::last_os_error() }),
        }
    }

    /// `size` zeroed bytes, a multiple of pages, and behind them the same bytes again: the region has twice as many.
    pub(crate) fn twice(size: usize) -> Result<Self, MemoryError> {
        let refused = || MemoryError::Refused { length: size, source: io::Error::last_os_error() };
        if size == 0 || !size.is_multiple_of(PAGE) || size > Self::MOST_TWICE {
            return Err(MemoryError::TooBig { length: size });
        }
        // SAFETY: the name is a C string; the result is checked.
        let file = unsafe { libc::memfd_create(c"socktap-ring".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(refused());
        }
        // SAFETY: the call returned a new descriptor, which nobody else owns.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: a descriptor of ours and a number.
        if unsafe { libc::ftruncate(file.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(refused());
        }
        let region = Self::map(2 * size, None, 0)?;
        for half in [0, size] {
            // SAFETY: the addresses are within the mapping that was just made, which nobody knows yet, and are replaced by the file's pages.
            let mapped = unsafe {
                libc::mmap(
                    region.start.as_ptr().add(half).cast(),
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    0,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(refused());
            }
        }
        Ok(region)
    }

    /// The most bytes that are mapped twice.
    const MOST_TWICE: usize = 1 << 30;

    /// From now on nobody can write to it.
    pub(crate) fn protect(&self) -> Result<(), MemoryError> {
        // SAFETY: the mapping is ours. Rust references to it do not exist (see `Sync`), and writes through `self` are refused from now on.
        let result = unsafe { libc::mprotect(self.start.as_ptr().cast(), self.mapped, libc::PROT_READ) };
        self.protected.store(true, Ordering::Relaxed);
        if result == 0 {
            Ok(())
        } else {
            Err(MemoryError::Refused { length: self.length, source: io::Error::last_os_error() })
        }
    }

    /// Whether it cannot be written.
    pub(crate) fn is_protected(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// Word `index` of 32 bits.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn atomic_u32(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.length / 4 && !self.is_protected(), "a word beyond a region");
        // SAFETY: inside the mapping, which starts at a page, so aligned; it lives as long as `self`. Others touch the word atomically or as
        // programs do, with raw accesses.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast::<u32>().add(index)) }
    }

    /// Word `index` of 64 bits.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn atomic_u64(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.length / 8 && !self.is_protected(), "a word beyond a region");
        // SAFETY: as in `atomic_u32`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast::<u64>().add(index)) }
    }

    /// Copies `bytes` to `offset`, a multiple of 8, word by word: who reads meanwhile sees whole words.
    ///
    /// # Panics
    /// If they do not fit.
    pub(crate) fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.is_multiple_of(8) && !self.is_protected(), "a store to where none can be");
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "a store beyond a region");
        let (words, rest) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            self.atomic_u64(offset / 8 + index).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        for (byte, at) in rest.iter().zip(offset + 8 * words.len()..) {
            // SAFETY: inside the region (checked above); else as in `atomic_u32`.
            unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(at)) }.store(*byte, Ordering::Relaxed);
        }
    }

    /// Clears `length` bytes from `offset`, both multiples of 8.
    pub(crate) fn zero(&self, offset: usize, length: usize) {
        (offset / 8..(offset + length) / 8).for_each(|word| self.atomic_u64(word).store(0, Ordering::Relaxed));
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
        assert!(!self.is_protected(), "a copy into constants");
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
