//! Memory that programs can touch. All `unsafe` of this crate is here.
//!
//! ```text
//!  Region        a mapping of its own:    ┌──────────────── length ───────────────┬─ guard ─┐
//!                                         └───────────────────────────────────────┴─────────┘
//!  MessageBuffer a region below 4 GiB, for the bytes of messages
//!  Reach         what one running program may touch: its maps, its context, the message, its stack
//! ```
//! A program and its helpers read and write a region with raw accesses only, from several threads at once where it is a map
//! that workers share, as in the kernel. So there is never a Rust reference to a map's memory.
//!
//! The interpreter checks the first byte only of an access to a map: the guard is what such an access may touch beyond.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes behind every region that are ours too: a BPF access is at most 8 bytes long.
pub(crate) const GUARD: usize = 8;

/// Bytes of stack that a BPF program has, over all its call frames (kernel: `MAX_BPF_STACK`).
pub(crate) const STACK_SIZE: usize = 512;

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
// (`copy_in`, `copy_out`, `Reach`), never through Rust references.
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
        // the region, a `Reach` holds it by an Arc or for the time of a borrow.
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
        // `Reach::run`, which borrows the buffer mutably.
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

/// What one program instance may touch while it runs. Outside of [`run`](Self::run) that is its maps alone.
#[derive(Debug)]
pub(crate) struct Reach {
    maps: Arc<[Region]>,
    context: Region,
    message: Cell<Window>,
    stack: Cell<Window>,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    start: u64,
    end: u64,
}

impl Window {
    fn holds(self, address: u64, length: usize) -> bool {
        self.start <= address && address.checked_add(length as u64).is_some_and(|end| end <= self.end)
    }
}

impl From<Range<u64>> for Window {
    fn from(range: Range<u64>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// An address that the running program may not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfReach;

impl Reach {
    /// A context of `context_size` bytes, and these maps.
    pub(crate) fn new(maps: Arc<[Region]>, context_size: usize) -> Result<Self, MemoryError> {
        Ok(Self { maps, context: Region::new(context_size)?, message: Cell::default(), stack: Cell::default() })
    }

    /// Lets `execute` run a program on `context` and on the bytes `range` of `buffer`; it gets the message and the context as
    /// the interpreter wants them.
    pub(crate) fn run<R>(
        &self,
        context: &[u8],
        buffer: &mut MessageBuffer,
        range: Range<usize>,
        execute: impl FnOnce(&[u8], &[u8]) -> R,
    ) -> R {
        /// Takes the windows away again, however `execute` ends.
        struct Close<'a>(&'a Reach);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.message.set(Window::default());
                self.0.stack.set(Window::default());
            }
        }
        assert!(range.start <= range.end && range.end <= buffer.capacity(), "a message beyond its buffer");
        self.context.copy_in(0, context);
        let start = buffer.region.address() + range.start as u64;
        self.message.set(Window { start, end: start + range.len() as u64 });
        let _close = Close(self);
        // SAFETY: both ranges are inside their mappings (the message is checked above), initialised, and stay mapped
        // during the call: `self` and `buffer` are borrowed. The interpreter and the helpers write to them through the
        // exposed addresses while these slices exist; `execute` hands the slices to rbpf only, which takes their bounds from
        // them and never reads through them.
        let (message, context) = unsafe {
            let first = buffer.region.start.as_ptr().add(range.start);
            (
                std::slice::from_raw_parts(first, range.len()),
                std::slice::from_raw_parts(self.context.start.as_ptr(), self.context.length),
            )
        };
        execute(message, context)
    }

    /// The running program says where the upper end of its stack is: register 10 of its first frame. Only the helper that the
    /// prologue of every lowered program calls may call this, within [`run`](Self::run): `bytecode::lower` writes that call,
    /// and refuses programs that call a helper of its number themselves. `read`, `write` and `copy` rely on it.
    pub(crate) fn open_stack(&self, register_10: u64) {
        self.stack.set(Window { start: register_10.saturating_sub(STACK_SIZE as u64), end: register_10 });
    }

    /// Address and length of the bytes that the program runs on.
    pub(crate) fn message(&self) -> (u64, u64) {
        let Window { start, end } = self.message.get();
        (start, end - start)
    }

    /// Copies program memory from `address` on into `out`.
    pub(crate) fn read(&self, address: u64, out: &mut [u8]) -> Result<(), OutOfReach> {
        self.check(address, out.len())?;
        let source = std::ptr::with_exposed_provenance::<u8>(address as usize);
        // SAFETY: `check` found the whole source in memory that the program owns now: mappings that `self` or the caller of
        // `run` keeps alive, or the interpreter's stack (see `open_stack`), which lives until `run` ends and closes it. All of
        // it is initialised (zeroed at first). `out` is a Rust slice, none of which lies in such memory.
        unsafe { out.as_mut_ptr().copy_from(source, out.len()) };
        Ok(())
    }

    /// Copies `bytes` to program memory at `address`.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfReach> {
        self.check(address, bytes.len())?;
        let destination = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: as in `read`, the other way round.
        unsafe { destination.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `length` bytes from one place of program memory to another; the two may overlap.
    pub(crate) fn copy(&self, from: u64, to: u64, length: usize) -> Result<(), OutOfReach> {
        self.check(from, length)?;
        self.check(to, length)?;
        let source = std::ptr::with_exposed_provenance::<u8>(from as usize);
        let destination = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
        // SAFETY: both ranges were checked; `copy_to` allows them to overlap.
        unsafe { source.copy_to(destination, length) };
        Ok(())
    }

    fn check(&self, address: u64, length: usize) -> Result<(), OutOfReach> {
        let holds = self.stack.get().holds(address, length)
            || self.message.get().holds(address, length)
            || Window::from(self.context.addresses()).holds(address, length)
            || self.maps.iter().any(|map| Window::from(map.addresses()).holds(address, length));
        if holds { Ok(()) } else { Err(OutOfReach) }
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

    #[test]
    fn reach_ends_with_the_run() {
        let maps: Arc<[Region]> = Arc::new([Region::new(16).unwrap()]);
        let reach = Reach::new(Arc::clone(&maps), 8).unwrap();
        let mut buffer = MessageBuffer::new(64).unwrap();
        buffer.as_mut_slice()[10..13].copy_from_slice(b"abc");
        let first = u64::from(buffer.address(10));
        let mut bytes = [0; 3];
        reach.run(&[1; 8], &mut buffer, 10..13, |message, context| {
            assert_eq!((message, context), (&b"abc"[..], &[1; 8][..]));
            assert_eq!(reach.read(first, &mut bytes), Ok(()));
            assert_eq!(reach.read(first + 1, &mut bytes), Err(OutOfReach));
            assert_eq!(reach.read(first - 1, &mut bytes), Err(OutOfReach));
            assert_eq!(reach.read(u64::MAX - 1, &mut bytes), Err(OutOfReach));
        });
        assert_eq!(&bytes, b"abc");
        assert_eq!(reach.read(first, &mut bytes), Err(OutOfReach));
        assert_eq!(reach.write(maps[0].address() + 13, &bytes), Ok(()));
        assert_eq!(reach.write(maps[0].address() + 14, &bytes), Err(OutOfReach));
        assert_eq!(reach.copy(maps[0].address() + 13, maps[0].address(), 3), Ok(()));
        let mut all = [0; 16];
        maps[0].copy_out(0, &mut all);
        assert_eq!(&all, b"abc\0\0\0\0\0\0\0\0\0\0abc");
    }
}
