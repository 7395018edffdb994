//! The memory that holds all frames, and the frame as a value with one owner.

use std::{
    mem::ManuallyDrop,
    num::NonZeroU32,
    ops::{Deref, DerefMut},
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use xsk_rs::{
    FrameDesc,
    config::{QueueSize, UmemConfig},
};

/// Bytes before the packet in each frame, which the kernel reserves for XDP programs (XDP_PACKET_HEADROOM). The packet
/// itself has [`Frame::capacity`] bytes: 3840 in a frame of 4096, 1792 in one of 2048.
pub const FRAME_HEADROOM: u32 = 256;

/// Entries of each fill and each completion ring, unless [`Umem::with_rings`] says otherwise.
pub const RING_SIZE: u32 = 2048;

/// Bytes of an Ethernet header with two VLAN tags.
pub(crate) const VLAN_ETHERNET_HEADER: u32 = 14 + 4 + 4;

/// The memory that all sockets of both ports share. A handle: clones are of the same memory.
///
/// The memory lives until the last handle, [`Frame`] and [`crate::Socket`] is gone, in any order.
/// It must be made in the network namespace of the ports: the kernel's first AF_XDP socket belongs to it.
#[derive(Debug, Clone)]
pub struct Umem {
    pub(crate) region: Arc<Region>,
}

/// One frame of the umem, as a value that its owner holds. It dereferences to the packet's bytes.
///
/// The kernel gets a frame by [`crate::Socket::fill`] or [`crate::Socket::send`], which take it by value; it comes back
/// by [`crate::Socket::receive`] or [`crate::Socket::complete`]. A frame that is dropped elsewhere is not lost:
/// [`Umem::census`] counts it and [`Umem::reclaim`] gives it back.
#[derive(Debug)]
pub struct Frame {
    region: ManuallyDrop<Arc<Region>>,
    descriptor: FrameDesc,
}

/// Where the frames are that nobody can see any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// All frames of the umem.
    pub total: usize,
    /// Frames that were dropped instead of handed on, and wait for [`Umem::reclaim`]. Not 0: a fault in the caller.
    pub dropped: usize,
    /// Frames that were in the rings of sockets when those were closed. They are gone for good.
    pub closed: usize,
}

/// Why no umem could be made.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// A number that the kernel would refuse.
    #[error("{what} is {value}, but must be {must_be}")]
    BadSize {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What it must be.
        must_be: &'static str,
    },
    /// The kernel refused.
    #[error(
        "the kernel does not register {bytes} bytes of frames: {cause} (AF_XDP needs CAP_NET_RAW, and the bytes count as locked memory, `ulimit -l`)"
    )]
    Refused {
        /// The size of all frames.
        bytes: u64,
        /// The kernel's answer.
        cause: String,
    },
}

/// What handles, frames and sockets keep alive together.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) umem: xsk_rs::Umem,
    pub(crate) completion_size: u32,
    pub(crate) frame_count: usize,
    frame_size: usize,
    /// Room for all frames from the start: a push never allocates.
    dropped: Mutex<Vec<FrameDesc>>,
    closed: AtomicUsize,
    owners: Owners,
}

impl Umem {
    /// Makes `frame_count` frames of `frame_size` bytes (2048 or 4096), with fill and completion rings of
    /// [`RING_SIZE`]. All frames are returned: their owner is the caller.
    pub fn new(frame_count: u32, frame_size: u32) -> Result<(Umem, Vec<Frame>), UmemError> {
        Umem::with_rings(frame_count, frame_size, RING_SIZE, RING_SIZE)
    }

    /// Like [`Umem::new`], with sizes (powers of two) for the fill and completion rings that every socket will get.
    pub fn with_rings(
        frame_count: u32,
        frame_size: u32,
        fill_size: u32,
        completion_size: u32,
    ) -> Result<(Umem, Vec<Frame>), UmemError> {
        if frame_size != 2048 && frame_size != 4096 {
            return Err(UmemError::BadSize { what: "the frame size", value: frame_size, must_be: "2048 or 4096" });
        }
        let count = NonZeroU32::new(frame_count).ok_or(UmemError::BadSize {
            what: "the number of frames",
            value: frame_count,
            must_be: "at least 1",
        })?;
        let refused = |cause: &dyn std::error::Error| UmemError::Refused {
            bytes: u64::from(frame_count) * u64::from(frame_size),
            cause: cause.source().map_or_else(|| cause.to_string(), ToString::to_string),
        };
        let config = UmemConfig::builder()
            .frame_size(frame_size.try_into().map_err(|error| refused(&error))?)
            .fill_queue_size(ring_size("the size of the fill rings", fill_size)?)
            .comp_queue_size(ring_size("the size of the completion rings", completion_size)?)
            .build()
            .map_err(|error| refused(&error))?;
        let (umem, descriptors) = xsk_rs::Umem::new(config, count, false).map_err(|error| refused(&error))?;

        let region = Arc::new(Region {
            umem,
            completion_size,
            frame_count: descriptors.len(),
            frame_size: frame_size as usize,
            dropped: Mutex::new(Vec::with_capacity(descriptors.len())),
            closed: AtomicUsize::new(0),
            owners: Owners::new(descriptors.len()),
        });
        let frames = descriptors
            .into_iter()
            .map(|descriptor| Frame { region: ManuallyDrop::new(Arc::clone(&region)), descriptor })
            .collect();
        Ok((Umem { region }, frames))
    }

    /// Counts the frames that are out of reach.
    pub fn census(&self) -> Census {
        Census {
            total: self.region.frame_count,
            dropped: self.region.dropped().len(),
            closed: self.region.closed.load(Ordering::Relaxed),
        }
    }

    /// Gives back the frames that were dropped, as new owner; returns how many.
    pub fn reclaim(&self, into: &mut Vec<Frame>) -> usize {
        let mut dropped = self.region.dropped();
        let count = dropped.len();
        into.extend(dropped.drain(..).map(|descriptor| {
            self.region.hand_over(&descriptor, Owner::Nobody, Owner::User);
            Frame { region: ManuallyDrop::new(Arc::clone(&self.region)), descriptor }
        }));
        count
    }

    /// The bytes that a frame has for the packet: the frame size less [`FRAME_HEADROOM`].
    pub fn capacity(&self) -> usize {
        self.region.frame_size - FRAME_HEADROOM as usize
    }
}

pub(crate) fn ring_size(what: &'static str, value: u32) -> Result<QueueSize, UmemError> {
    // xsk-rs takes 0 for a power of two.
    let size = QueueSize::new(value).ok().filter(|_| value > 0);
    size.ok_or(UmemError::BadSize { what, value, must_be: "a power of two" })
}

impl Frame {
    /// The bytes that the packet can have: [`Umem::capacity`], unless the driver placed the packet elsewhere.
    pub fn capacity(&self) -> usize {
        let size = self.region.frame_size;
        size - self.descriptor.addr() % size
    }

    /// Sets the packet's length. Bytes that come into view have an arbitrary content: they are from earlier packets.
    ///
    /// # Panics
    /// If `length` is more than [`Frame::capacity`].
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a frame has room for {} bytes, not {length}", self.capacity());
        // SAFETY: the descriptor is of a frame of this umem, which `self` alone owns (see `from_kernel`).
        let mut data = unsafe { self.region.umem.data_mut(&mut self.descriptor) };
        data.cursor().set_pos(length);
    }

    /// # Safety
    /// `descriptor` is of a frame of `region`, the kernel gave that frame back, and no other `Frame` is made of it.
    pub(crate) unsafe fn from_kernel(region: Arc<Region>, descriptor: FrameDesc) -> Frame {
        region.hand_over(&descriptor, Owner::Kernel, Owner::User);
        Frame { region: ManuallyDrop::new(region), descriptor }
    }

    /// Ends the ownership: the frame belongs to the kernel as soon as the caller writes the descriptor to a ring, once.
    pub(crate) fn into_kernel(self) -> (Arc<Region>, FrameDesc) {
        self.region.hand_over(&self.descriptor, Owner::User, Owner::Kernel);
        let mut frame = ManuallyDrop::new(self);
        // SAFETY: `frame` is never used or dropped after this, so the Arc is taken once.
        let region = unsafe { ManuallyDrop::take(&mut frame.region) };
        (region, frame.descriptor)
    }

    pub(crate) fn is_of(&self, region: &Arc<Region>) -> bool {
        Arc::ptr_eq(&self.region, region)
    }
}

impl Deref for Frame {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the descriptor is of a frame of this umem, which `self` alone owns: neither the kernel nor another
        // `Frame` writes to it while `self` is borrowed. The length is at most the capacity: `set_len` and the kernel
        // (which writes whole packets into one frame, or none) see to it.
        unsafe { self.region.umem.data(&self.descriptor) }.contents()
    }
}

impl DerefMut for Frame {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let length = self.descriptor.lengths().data();
        // SAFETY: as in `deref`; `&mut self` excludes all other access through this frame.
        let mut data = unsafe { self.region.umem.data_mut(&mut self.descriptor) };
        let start = data.contents_mut().as_mut_ptr();
        // SAFETY: pointer and length are of the slice that `contents_mut` just made. It lies in the umem, which the
        // borrowed `self` keeps alive, and not in the temporary view `data`.
        unsafe { slice::from_raw_parts_mut(start, length) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.region.hand_over(&self.descriptor, Owner::User, Owner::Nobody);
        self.region.dropped().push(self.descriptor);
        // SAFETY: `self` is being dropped, and nothing uses the field after this.
        unsafe { ManuallyDrop::drop(&mut self.region) };
    }
}

impl Region {
    /// Counts frames that were in the rings of a socket that is being closed.
    pub(crate) fn count_closed(&self, frames: usize) {
        self.closed.fetch_add(frames, Ordering::Relaxed);
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<FrameDesc>> {
        // The list is whole at any time: a panic elsewhere does not spoil it.
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, descriptor: &FrameDesc, from: Owner, to: Owner) {
        self.owners.change(descriptor.addr() / self.frame_size, from, to);
    }
}

/// Who may touch a frame's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Owner {
    User,
    Kernel,
    /// In the list of dropped frames.
    Nobody,
}

/// One owner per frame, to catch a frame that is used twice. Empty, and without cost, in release builds.
#[derive(Debug)]
struct Owners {
    #[cfg(debug_assertions)]
    table: Box<[std::sync::atomic::AtomicU8]>,
}

impl Owners {
    #[cfg(debug_assertions)]
    fn new(frames: usize) -> Owners {
        Owners { table: (0..frames).map(|_| (Owner::User as u8).into()).collect() }
    }

    #[cfg(not(debug_assertions))]
    fn new(_frames: usize) -> Owners {
        Owners {}
    }

    #[cfg(debug_assertions)]
    #[track_caller]
    fn change(&self, index: usize, from: Owner, to: Owner) {
        let was = self.table[index].swap(to as u8, Ordering::Relaxed);
        assert!(
            was == from as u8 || std::thread::panicking(),
            "frame {index} goes from {from:?} to {to:?}, but its owner was number {was}"
        );
    }

    #[cfg(not(debug_assertions))]
    #[inline(always)]
    fn change(&self, _index: usize, _from: Owner, _to: Owner) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A umem needs CAP_NET_RAW.
    fn umem(frames: u32) -> Option<(Umem, Vec<Frame>)> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        Some(Umem::new(frames, 2048).expect("a umem"))
    }

    #[test]
    fn bad_sizes_are_errors() {
        for (count, size, fill, completion) in
            [(0, 4096, 64, 64), (8, 4095, 64, 64), (8, 8192, 64, 64), (8, 4096, 0, 64), (8, 4096, 64, 65)]
        {
            let result = Umem::with_rings(count, size, fill, completion);
            assert!(matches!(result, Err(UmemError::BadSize { .. })), "{count} {size} {fill} {completion}");
        }
    }

    #[test]
    fn frames_are_disjoint_and_keep_their_bytes() {
        let Some((umem, mut frames)) = umem(16) else { return };
        for (frame, value) in frames.iter_mut().zip(0u8..) {
            assert_eq!((frame.len(), frame.capacity()), (0, umem.capacity()));
            frame.set_len(1792);
            frame.fill(value);
        }
        drop(umem); // The frames keep the memory.
        for (frame, value) in frames.iter().zip(0u8..) {
            assert!(frame.iter().all(|byte| *byte == value));
        }
    }

    #[test]
    #[should_panic(expected = "room for 1792 bytes, not 1793")]
    fn a_packet_cannot_be_longer_than_its_frame() {
        match umem(1) {
            Some((_umem, mut frames)) => frames[0].set_len(1793),
            None => panic!("room for 1792 bytes, not 1793"),
        }
    }

    #[test]
    fn dropped_frames_are_counted_and_come_back() {
        let Some((umem, mut frames)) = umem(16) else { return };
        frames.truncate(10);
        assert_eq!(umem.census(), Census { total: 16, dropped: 6, closed: 0 });
        assert_eq!(umem.reclaim(&mut frames), 6);
        assert_eq!(umem.census(), Census { total: 16, dropped: 0, closed: 0 });
        let mut addresses: Vec<_> = frames.iter().map(|frame| frame.descriptor.addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 16, "each frame once");
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "goes from Kernel to User")]
    fn a_frame_that_is_used_twice_is_caught() {
        let Some((umem, frames)) = umem(2) else { panic!("goes from Kernel to User") };
        let descriptor = frames[0].descriptor;
        // SAFETY: it is not sound, and the assertion has to stop it before a second `Frame` exists.
        drop(unsafe { Frame::from_kernel(Arc::clone(&umem.region), descriptor) });
    }

    #[test]
    fn values_may_move_between_threads() {
        fn send<T: Send>() {}
        fn sync<T: Sync>() {}
        send::<Frame>();
        send::<crate::Socket>();
        send::<crate::Steering>();
        send::<Umem>();
        sync::<Umem>();
    }
}
