//! One AF_XDP socket: the rx, tx, fill and completion ring of one rx queue of one port.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
};

use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue,
    config::{BindFlags, Interface, LibxdpFlags},
};

use crate::{
    port::Port,
    sys,
    umem::{Frame, Region, Umem, UmemError, VLAN_ETHERNET_HEADER, ring_size},
};

/// Descriptors that are moved to or from a ring at a time.
const BATCH: usize = 64;

/// Bytes of an Ethernet header: the kernel takes nothing shorter.
const ETHERNET_HEADER: usize = 14;

/// Bytes of packets that may be on their way to the driver, per entry of the tx ring.
const SEND_BUFFER_PER_ENTRY: i32 = 4096;

/// The sizes and the mode of one socket. The sizes of the fill and completion rings are the umem's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketConfig {
    /// Entries of the rx ring, a power of two.
    pub rx_size: u32,
    /// Entries of the tx ring, a power of two. At most this many frames are on their way at any time.
    pub tx_size: u32,
    /// Copy mode, even if the driver knows zero-copy. Needed when one of the two ports is attached in skb mode, or only
    /// one of them knows zero-copy: all sockets of a umem work like the first one that is bound.
    pub force_copy: bool,
}

impl Default for SocketConfig {
    fn default() -> SocketConfig {
        SocketConfig { rx_size: 2048, tx_size: 2048, force_copy: false }
    }
}

/// Why a socket could not be bound to a queue.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A ring size is not a power of two.
    #[error(transparent)]
    Size(#[from] UmemError),
    /// The port has no such queue.
    #[error("port `{port}` has {queues} rx queues (0 to {}); there is no queue {queue}", queues - 1)]
    NoSuchQueue {
        /// The port's name.
        port: String,
        /// The queue that was asked for.
        queue: u32,
        /// How many it has.
        queues: u32,
    },
    /// A packet of the port, with two VLAN tags, does not fit into a frame of the umem.
    #[error("frames have room for {capacity} bytes, port `{port}` with its MTU of {mtu} needs {}", mtu + VLAN_ETHERNET_HEADER)]
    FrameTooSmall {
        /// The port's name.
        port: String,
        /// The port's MTU.
        mtu: u32,
        /// [`Umem::capacity`].
        capacity: usize,
    },
    /// This umem already has a socket on this queue.
    #[error("queue {queue} of port `{port}` has a socket of this umem already")]
    QueueTaken {
        /// The port's name.
        port: String,
        /// The queue.
        queue: u32,
    },
    /// The kernel refused.
    #[error("cannot bind an AF_XDP socket to queue {queue} of port `{port}`: {source}{}", hint(source))]
    Refused {
        /// The port's name.
        port: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// XDP_STATISTICS of one socket, counted by the kernel since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Dropped because the frame was longer than [`Umem::capacity`], or for another reason.
    pub rx_dropped: u64,
    /// Dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was found empty: each is a dropped frame in copy mode.
    pub rx_fill_ring_empty: u64,
    /// Descriptors in the fill ring that the kernel refused. Not 0: a fault in this crate.
    pub rx_invalid_descriptors: u64,
    /// Descriptors in the tx ring that the kernel refused. Not 0: a fault in this crate.
    pub tx_invalid_descriptors: u64,
    /// Times the tx ring was found empty: no fault.
    pub tx_ring_empty: u64,
}

/// One AF_XDP socket, bound to one rx queue of one port. It can move to the worker's thread.
///
/// None of its methods allocates, except into a caller's `Vec` without spare capacity. Only [`Socket::wakeup`] and
/// [`Socket::statistics`] make system calls.
///
/// Once per batch: [`Socket::complete`], [`Socket::receive`], work and [`Socket::send`], [`Socket::fill`],
/// [`Socket::wakeup`]; when there is nothing to do, sleep in `poll(2)` for POLLIN on the descriptor. `poll` also sends
/// what is left in the tx ring.
///
/// When it is dropped, the frames in its rings are gone, see [`crate::Census::closed`]. The device's queue is released
/// when all sockets, handles and frames of the umem are gone.
#[derive(Debug)]
pub struct Socket {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    region: Arc<Region>,
    /// For each frame that the kernel has, the reference to the memory that the frame held: so neither giving nor taking
    /// counts references, which all workers would contend for.
    lent: Vec<Arc<Region>>,
    scratch: Box<[FrameDesc; BATCH]>,
    tx_size: usize,
    /// Frames that were sent and did not come back from the completion ring.
    in_flight: usize,
    /// Something was sent since the kernel last reached the end of the tx ring.
    unsent: bool,
    /// One `sendto` may send the whole ring.
    budget_raised: bool,
}

impl Socket {
    /// Binds a socket to rx queue `queue` of `port`. It receives nothing before [`crate::Steering::register`] and
    /// before it was given frames by [`Socket::fill`].
    pub fn bind(umem: &Umem, port: &Port, queue: u32, config: &SocketConfig) -> Result<Socket, BindError> {
        let name = || port.name.clone();
        if queue >= port.rx_queues {
            return Err(BindError::NoSuchQueue { port: name(), queue, queues: port.rx_queues });
        }
        if umem.capacity() < (port.mtu + VLAN_ETHERNET_HEADER) as usize {
            return Err(BindError::FrameTooSmall { port: name(), mtu: port.mtu, capacity: umem.capacity() });
        }
        let refused = |source| BindError::Refused { port: name(), queue, source };
        let interface: Interface =
            port.name.parse().map_err(|_| refused(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
        if config.force_copy {
            flags |= BindFlags::XDP_COPY;
        }
        let settings = xsk_rs::config::SocketConfig::builder()
            .rx_queue_size(ring_size("the size of the rx ring", config.rx_size)?)
            .tx_queue_size(ring_size("the size of the tx ring", config.tx_size)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();

        let region = Arc::clone(&umem.region);
        // SAFETY: the only condition is INHIBIT_PROG_LOAD, which is set.
        let (tx, rx, rings) = unsafe { xsk_rs::Socket::new(settings, &region.umem, &interface, queue) }
            .map_err(|error| refused(os_error(&error)))?;
        let (fill, completion) = rings.ok_or_else(|| BindError::QueueTaken { port: name(), queue })?;

        let tx_size = config.tx_size.min(region.completion_size);
        let mut socket = Socket {
            rx,
            tx,
            fill,
            completion,
            lent: Vec::with_capacity(region.frame_count),
            region,
            scratch: Box::new([FrameDesc::default(); BATCH]),
            tx_size: tx_size as usize,
            in_flight: 0,
            unsent: false,
            budget_raised: false,
        };
        socket.raise_limits(config.tx_size);
        Ok(socket)
    }

    /// Takes at most `max` received frames; they are pushed to `into`, oldest first. Returns how many.
    pub fn receive(&mut self, into: &mut Vec<Frame>, max: usize) -> usize {
        let mut taken = 0;
        while taken < max {
            let wanted = BATCH.min(max - taken);
            // SAFETY: the descriptors are overwritten by those of this socket's umem.
            let count = unsafe { self.rx.consume(&mut self.scratch[..wanted]) };
            self.take_back(count, into);
            taken += count;
            if count < wanted {
                break;
            }
        }
        taken
    }

    /// Gives frames from the end of `from` to the kernel to receive into, as many as there are and fit. Returns how
    /// many. To keep frames for sending, pass a part of the pool.
    ///
    /// # Panics
    /// If a frame is of another umem.
    pub fn fill(&mut self, from: &mut Vec<Frame>) -> usize {
        let total = self.fill_room().min(from.len());
        let mut given = 0;
        while given < total {
            let count = BATCH.min(total - given);
            let start = from.len() - count;
            // Checked before anything moves: the memory of another umem would be misread by the kernel.
            assert!(from[start..].iter().all(|frame| frame.is_of(&self.region)), "a frame of another umem");
            for (slot, frame) in self.scratch.iter_mut().zip(from.drain(start..)) {
                let (region, descriptor) = frame.into_kernel();
                self.lent.push(region);
                *slot = descriptor;
            }
            // SAFETY: each descriptor comes from a `Frame` of this umem that `into_kernel` has just ended, so nothing
            // in user space can reach its bytes until the kernel gives it back.
            let produced = unsafe { self.fill.produce(&self.scratch[..count]) };
            // Only we produce, so the room that was found cannot have become less.
            debug_assert_eq!(produced, count);
            given += count;
        }
        given
    }

    /// How many frames [`Socket::fill`] can give now.
    pub fn fill_room(&mut self) -> usize {
        self.fill.nb_free_exact() as usize
    }

    /// Queues a frame for sending; it leaves with the next [`Socket::wakeup`], at the latest. `Err` gives it back:
    /// there is no room ([`Socket::tx_room`]) until [`Socket::complete`] has taken frames back.
    ///
    /// A frame shorter than an Ethernet header, which the kernel would swallow, is dropped ([`crate::Census::dropped`]).
    ///
    /// # Panics
    /// If the frame is of another umem.
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        assert!(frame.is_of(&self.region), "a frame of another umem");
        if self.tx_room() == 0 {
            return Err(frame);
        }
        if frame.len() < ETHERNET_HEADER {
            return Ok(());
        }
        let (region, descriptor) = frame.into_kernel();
        // SAFETY: the descriptor comes from a `Frame` of this umem that `into_kernel` has just ended, so nothing in user
        // space can reach its bytes until it comes back from the completion ring.
        let produced = unsafe { self.tx.produce_one(&descriptor) };
        // The entries in the tx ring are at most those in flight, so there was room.
        debug_assert_eq!(produced, 1);
        self.lent.push(region);
        self.in_flight += 1;
        self.unsent = true;
        Ok(())
    }

    /// How many frames [`Socket::send`] takes now.
    pub fn tx_room(&self) -> usize {
        self.tx_size - self.in_flight
    }

    /// Takes back all frames that the kernel has sent; they are pushed to `into`. Their length is 0. Returns how many.
    pub fn complete(&mut self, into: &mut Vec<Frame>) -> usize {
        let mut taken = 0;
        while self.in_flight > 0 {
            // SAFETY: the descriptors are overwritten by those of this socket's umem.
            let count = unsafe { self.completion.consume(&mut self.scratch[..]) };
            self.take_back(count, into);
            self.in_flight = self.in_flight.saturating_sub(count);
            taken += count;
            if count < BATCH {
                break;
            }
        }
        taken
    }

    /// How many frames were sent and not taken back by [`Socket::complete`] yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many frames the kernel has from this socket: in its rings, received ones that were not taken yet included.
    pub fn lent(&self) -> usize {
        self.lent.len()
    }

    /// Whether the kernel waits for [`Socket::wakeup`].
    pub fn needs_wakeup(&self) -> bool {
        (self.unsent && self.tx.needs_wakeup()) || self.fill.needs_wakeup()
    }

    /// Tells the kernel of what was sent and filled, if it waits for that; else makes no system call. To be called once
    /// per batch. If [`Socket::needs_wakeup`] stays true, the device is busy: call again after other work, or `poll`.
    ///
    /// # Errors
    /// What is not a passing state, such as ENETDOWN: the port is down.
    pub fn wakeup(&mut self) -> io::Result<()> {
        if self.fill.needs_wakeup() {
            sys::kick_rx(self.as_fd())?;
        }
        if !self.unsent {
            return Ok(());
        }
        if !self.tx.needs_wakeup() {
            // The driver works on the ring by itself. It says so when it stops.
            return Ok(());
        }
        let mut free = self.tx.nb_free_exact();
        loop {
            if sys::kick_tx(self.as_fd())? {
                self.unsent = false;
                return Ok(());
            }
            // Without the larger budget the kernel stops after 32 frames: go on as long as it gets ahead.
            let now_free = self.tx.nb_free_exact();
            if self.budget_raised || now_free == free {
                return Ok(());
            }
            free = now_free;
        }
    }

    /// What the kernel counted for this socket.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let raw = self.rx.fd().xdp_statistics()?;
        Ok(Statistics {
            rx_dropped: raw.rx_dropped(),
            rx_ring_full: raw.rx_ring_full(),
            rx_fill_ring_empty: raw.rx_fill_ring_empty_descs(),
            rx_invalid_descriptors: raw.rx_invalid_descs(),
            tx_invalid_descriptors: raw.tx_invalid_descs(),
            tx_ring_empty: raw.tx_ring_empty_descs(),
        })
    }

    /// Makes frames of the first `count` descriptors of `scratch`, which a ring has just given back.
    fn take_back(&mut self, count: usize, into: &mut Vec<Frame>) {
        for descriptor in &self.scratch[..count] {
            // One reference per frame was put there; a clone costs no more than time.
            let region = self.lent.pop().unwrap_or_else(|| Arc::clone(&self.region));
            // SAFETY: this socket is the only one on its queue, so its rx and completion ring give back what went into
            // its fill and tx ring: frames of this umem, each once, whose `Frame` ended in `into_kernel`.
            into.push(unsafe { Frame::from_kernel(region, *descriptor) });
        }
    }

    /// Neither is needed for right work, only for few system calls and full queues.
    fn raise_limits(&mut self, tx_size: u32) {
        self.budget_raised = sys::set_tx_budget(self.as_fd(), tx_size).is_ok();
        let bytes = i32::try_from(tx_size).unwrap_or(i32::MAX).saturating_mul(SEND_BUFFER_PER_ENTRY);
        if let Err(error) = sys::set_send_buffer(self.as_fd(), bytes) {
            tracing::debug!(%error, bytes, "the send buffer of an AF_XDP socket stays at its default");
        }
        if !self.budget_raised {
            tracing::debug!("no XDP_MAX_TX_SKB_BUDGET in this kernel: one sendto per 32 frames");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.region.count_closed(self.lent.len());
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `rx`, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

fn os_error(error: &xsk_rs::socket::SocketCreateError) -> io::Error {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (another program has a socket on it)",
        Some(libc::EPERM) => " (CAP_NET_RAW and CAP_BPF are needed)",
        Some(libc::EOPNOTSUPP | libc::EINVAL) => {
            " (if the ports differ in zero-copy or are attached in skb mode, all sockets need copy mode)"
        }
        Some(libc::ENETDOWN) => " (the port is down)",
        Some(libc::ENODEV) => " (the port is gone, or the umem was made in another network namespace)",
        _ => "",
    }
}
