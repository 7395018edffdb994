//! Joins a worker's core to the clock and to its AF_XDP sockets: the only place that does both.
//!
//! One thread runs [`IoLoop::run`]: receive a batch from each socket, let the core handle it, hand the core's frames to
//! the transmit rings, wake the kernel once a socket, and sleep in `poll` when there was nothing to do.
//!
//! Frames change hands like this; none is allocated or copied on the way. All are of one umem, so a frame that is handed
//! over and then goes across is replaced by another one on its way back:
//!
//! ```text
//!  fill ring ──▶ (kernel) ──▶ rx ring ──▶ core ──▶ pool ──▶ tx ring ──▶ (kernel) ──▶ completion ring ──▶ pool
//!      ▲                                   │ another worker's flow                                        │
//!      │                                   └──▶ its inbox ──▶ its core ──▶ our returns ──▶ pool           │
//!      └──────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};

use crossbeam::queue::ArrayQueue;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use tcp::time::{Duration, Instant};
use xdp_redirect::{Frame, Socket};

use crate::counters::{Counters, DropReason};
use crate::events::EventSink;
use crate::steer::Side;
use crate::worker::{Fate, Output, TapChange, Worker};

/// Frames taken from one socket at a time.
const BATCH: usize = 64;
/// Frames that may be on their way from one worker to another.
const HAND_OVER: usize = 1024;
/// How old published counters may be.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
/// How long flows get to send their resets at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The time: microseconds of CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
pub fn now() -> Instant {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    Instant::from_micros(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000)
}

/// What a worker shows to other threads: copies, made every [`PUBLISH_INTERVAL`].
#[derive(Default)]
pub struct Published {
    /// The worker's counters.
    pub counters: Counters,
    /// What the TCP of each port has counted.
    pub tcp: [tcp::Counters; 2],
    /// Its flows, those in TIME-WAIT included.
    pub flows: usize,
    /// Events that were not written because too many happened at once.
    pub events_lost: u64,
    /// Earlier generations of programs that flows still need.
    pub earlier_programs: usize,
}

/// New programs and policies for the taps of one worker.
pub struct Change {
    /// For each tap, in their order.
    pub taps: Vec<TapChange>,
    /// Told when the worker has taken them up.
    pub taken: SyncSender<()>,
}

/// How one worker is woken and given frames by the others.
pub struct Mailbox {
    /// Frames for this worker's flows, and ICMP errors about them, by the worker that they come from.
    inboxes: Vec<ArrayQueue<(Side, Frame)>>,
    /// This worker's own frames on their way back, by the worker that used them.
    returns: Vec<ArrayQueue<Frame>>,
    change: Mutex<Option<Change>>,
    has_change: AtomicBool,
    sleeping: AtomicBool,
    wake: EventFd,
}

impl Mailbox {
    /// The mailboxes of `workers` workers.
    pub fn for_workers(workers: usize) -> nix::Result<Arc<[Self]>> {
        let others = if workers > 1 { workers } else { 0 };
        (0..workers)
            .map(|_| {
                Ok(Self {
                    inboxes: (0..others).map(|_| ArrayQueue::new(HAND_OVER)).collect(),
                    // Room for all that can be on its way: a frame that comes back always finds a place.
                    returns: (0..others).map(|_| ArrayQueue::new(2 * HAND_OVER)).collect(),
                    change: Mutex::default(),
                    has_change: AtomicBool::new(false),
                    sleeping: AtomicBool::new(false),
                    wake: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
                })
            })
            .collect()
    }

    /// Wakes the worker even if it is not known to sleep: it is to see that it should stop.
    pub fn interrupt(&self) {
        // The counter can only overflow after 2^64 - 1 wakes; then it is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Leaves a change for the worker, which takes it up between two batches. One that it has not taken up yet is replaced.
    pub fn post(&self, change: Change) {
        *self.change.lock().expect("no thread panics while it holds this lock") = Some(change);
        self.has_change.store(true, Ordering::Release);
        self.interrupt();
    }

    fn take_change(&self) -> Option<Change> {
        if !self.has_change.load(Ordering::Relaxed) || !self.has_change.swap(false, Ordering::Acquire) {
            return None;
        }
        self.change.lock().expect("no thread panics while it holds this lock").take()
    }

    fn wake_if_sleeping(&self) {
        // Pairs with the fence in `sleep`: either the sleeper sees the frame, or we see that it sleeps.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            self.interrupt();
        }
    }
}

/// The transmit side of a worker: the pool of free frames and what waits for the transmit rings.
struct Ports {
    /// By side; at least one socket each.
    sockets: [Vec<Socket>; 2],
    /// Frames to send, by side.
    pending: [Vec<Frame>; 2],
    /// Free places in the transmit ring that `pending` does not claim yet, by side.
    room: [usize; 2],
    pool: Vec<Frame>,
}

impl Output for Ports {
    fn room(&self, to: Side) -> usize {
        self.room[to as usize].min(self.pool.len())
    }

    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]> {
        if self.room[to as usize] == 0 {
            return None;
        }
        let mut frame = self.pool.pop()?;
        assert!(length <= frame.capacity(), "the core keeps to the MTU");
        frame.set_len(length);
        self.room[to as usize] -= 1;
        let pending = &mut self.pending[to as usize];
        pending.push(frame);
        pending.last_mut().map(|frame| &mut frame[..])
    }
}

impl Ports {
    /// Queues a received frame for the other port.
    fn forward(&mut self, to: Side, frame: Frame) -> Result<(), DropReason> {
        if self.room[to as usize] == 0 {
            self.pool.push(frame);
            return Err(DropReason::TransmitFull);
        }
        self.room[to as usize] -= 1;
        self.pending[to as usize].push(frame);
        Ok(())
    }

    /// Queues a frame that another worker has handed over for the other port. What comes back belongs to that worker: a
    /// frame of the pool in its place, or the frame itself if it could not be queued.
    fn forward_handed_over(&mut self, to: Side, frame: Frame) -> Result<Frame, (Frame, DropReason)> {
        if self.room[to as usize] == 0 {
            return Err((frame, DropReason::TransmitFull));
        }
        let Some(replacement) = self.pool.pop() else { return Err((frame, DropReason::TransmitFull)) };
        self.room[to as usize] -= 1;
        self.pending[to as usize].push(frame);
        Ok(replacement)
    }

    /// Takes back what the kernel has sent, and refills the fill rings.
    fn recycle(&mut self) {
        for side in Side::BOTH {
            for socket in &mut self.sockets[side as usize] {
                socket.complete(&mut self.pool);
                socket.fill(&mut self.pool);
            }
            let free = self.sockets[side as usize][0].tx_room();
            self.room[side as usize] = free.saturating_sub(self.pending[side as usize].len());
        }
    }

    /// Hands the pending frames to the transmit rings, and wakes the kernel once a socket.
    fn flush(&mut self) -> Result<(), std::io::Error> {
        for side in Side::BOTH {
            let socket = &mut self.sockets[side as usize][0];
            for frame in self.pending[side as usize].drain(..) {
                if let Err(frame) = socket.send(frame) {
                    // `room` was taken from the ring, and nobody else sends on it.
                    debug_assert!(false, "a place in the transmit ring was reserved");
                    self.pool.push(frame);
                }
            }
            socket.wakeup()?;
        }
        Ok(())
    }
}

/// What one worker thread runs.
pub struct IoLoop {
    index: usize,
    worker: Worker,
    ports: Ports,
    mailboxes: Arc<[Mailbox]>,
    published: Arc<Mutex<Published>>,
    last_published: Instant,
    /// Something may have been counted since.
    unpublished: bool,
    events: Option<EventSink>,
    /// Never sleep.
    busy: bool,
    batch: Vec<Frame>,
}

/// What an [`IoLoop`] is made from.
pub struct IoConfig {
    /// The worker's number.
    pub index: usize,
    /// The worker's sockets, by side: the first one of each also transmits.
    pub sockets: [Vec<Socket>; 2],
    /// The worker's frames.
    pub frames: Vec<Frame>,
    /// All workers' mailboxes.
    pub mailboxes: Arc<[Mailbox]>,
    /// Where to publish counters.
    pub published: Arc<Mutex<Published>>,
    /// Where to report events.
    pub events: Option<EventSink>,
    /// Never sleep.
    pub busy: bool,
}

impl IoLoop {
    /// A loop for this core and these sockets.
    pub fn new(worker: Worker, config: IoConfig) -> Self {
        assert!(config.sockets.iter().all(|sockets| !sockets.is_empty()));
        let pending = || Vec::with_capacity(config.frames.len());
        Self {
            index: config.index,
            worker,
            ports: Ports {
                pending: [pending(), pending()],
                sockets: config.sockets,
                room: [0; 2],
                pool: config.frames,
            },
            mailboxes: config.mailboxes,
            published: config.published,
            last_published: Instant::ZERO,
            unpublished: true,
            events: config.events,
            busy: config.busy,
            batch: Vec::with_capacity(BATCH),
        }
    }

    /// Runs until `stop`; then resets what flows are left, so that their hosts need not find out by timeouts.
    pub fn run(mut self, stop: &AtomicBool) -> Result<(), std::io::Error> {
        while !stop.load(Ordering::Relaxed) {
            if let Some(change) = self.mailboxes[self.index].take_change() {
                self.worker.change_taps(change.taps);
                // Whoever asked may have given up waiting.
                let _ = change.taken.try_send(());
                self.unpublished = true;
            }
            let now = now();
            self.ports.recycle();
            let mut active = self.receive(now)?;
            active |= self.receive_handed_over(now);
            active |= self.turn(now)?;
            self.unpublished |= active;
            if !active && !self.busy {
                self.sleep(now, stop)?;
            }
        }
        self.shut_down()
    }

    /// Takes a batch from each socket. True: there was something.
    fn receive(&mut self, now: Instant) -> Result<bool, std::io::Error> {
        let mut active = false;
        for side in Side::BOTH {
            for position in 0..self.ports.sockets[side as usize].len() {
                let mut batch = std::mem::take(&mut self.batch);
                active |= self.ports.sockets[side as usize][position].receive(&mut batch, BATCH) > 0;
                for frame in batch.drain(..) {
                    self.handle(now, side, frame);
                }
                self.batch = batch;
            }
        }
        Ok(active)
    }

    fn handle(&mut self, now: Instant, from: Side, mut frame: Frame) {
        match self.worker.handle_frame(now, from, &mut frame, &mut self.ports) {
            Fate::Consumed | Fate::Dropped(_) => self.ports.pool.push(frame),
            Fate::Forward => {
                if let Err(reason) = self.ports.forward(from.other(), frame) {
                    self.worker.count_drop(reason);
                }
            }
            Fate::HandOver(owner) => match self.mailboxes[owner].inboxes[self.index].push((from, frame)) {
                Ok(()) => self.mailboxes[owner].wake_if_sleeping(),
                Err((_, frame)) => {
                    self.worker.count_drop(DropReason::HandOverFull);
                    self.ports.pool.push(frame);
                }
            },
        }
    }

    /// Handles the frames that other workers have for our flows; the frames go back to them, since their fill rings need
    /// them. True: there was something.
    fn receive_handed_over(&mut self, now: Instant) -> bool {
        let mailboxes = Arc::clone(&self.mailboxes);
        let mine = &mailboxes[self.index];
        let mut active = false;
        for (other, inbox) in mine.inboxes.iter().enumerate() {
            while let Some(frame) = mine.returns[other].pop() {
                self.ports.pool.push(frame);
            }
            for _ in 0..BATCH {
                let Some((from, mut frame)) = inbox.pop() else { break };
                active = true;
                let frame = match self.worker.handle_frame(now, from, &mut frame, &mut self.ports) {
                    // The owner of a flow is the same for every worker.
                    Fate::HandOver(_) => unreachable!("a frame of a flow of this worker"),
                    Fate::Consumed | Fate::Dropped(_) => frame,
                    Fate::Forward => {
                        self.ports.forward_handed_over(from.other(), frame).unwrap_or_else(|(frame, reason)| {
                            self.worker.count_drop(reason);
                            frame
                        })
                    }
                };
                if let Err(frame) = mailboxes[other].returns[self.index].push(frame) {
                    self.ports.pool.push(frame);
                }
            }
        }
        active
    }

    /// The second half of a batch: timers, verdicts, transmission, reports. True: there is more to do at once.
    fn turn(&mut self, now: Instant) -> Result<bool, std::io::Error> {
        if self.worker.poll_at().is_some_and(|at| at <= now) {
            self.worker.handle_timeouts(now);
            self.unpublished = true;
        }
        self.worker.pump(now);
        self.worker.poll_transmit(now, &mut self.ports);
        self.ports.flush()?;
        if let Some(sink) = &self.events {
            self.worker.drain_events().for_each(|event| _ = sink.try_send(event.into()));
        } else {
            self.worker.drain_events().for_each(drop);
        }
        if self.unpublished && now >= self.last_published + PUBLISH_INTERVAL {
            self.publish(now);
        }
        Ok(self.worker.has_work())
    }

    fn publish(&mut self, now: Instant) {
        self.last_published = now;
        self.unpublished = false;
        let mut published = self.published.lock().expect("no thread panics while it holds this lock");
        published.counters.clone_from(self.worker.counters());
        published.tcp = self.worker.tcp_counters();
        published.flows = self.worker.flow_count();
        published.events_lost = self.worker.events_lost();
        published.earlier_programs = self.worker.earlier_programs();
    }

    /// Sleeps until a frame comes, another worker wakes us, or a deadline.
    fn sleep(&mut self, now: Instant, stop: &AtomicBool) -> Result<(), std::io::Error> {
        let mine = &self.mailboxes[self.index];
        mine.sleeping.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        if mine.inboxes.iter().all(ArrayQueue::is_empty) && !stop.load(Ordering::Relaxed) {
            // Counters that were not published yet are an appointment too.
            let publication = self.unpublished.then_some(self.last_published + PUBLISH_INTERVAL);
            let until = self.worker.poll_at().into_iter().chain(publication).min();
            let timeout = until.map_or(PollTimeout::NONE, |at| {
                let micros = (at.total_micros() - now.total_micros()).max(0) as u64;
                PollTimeout::try_from(micros.div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            });
            let sockets = self.ports.sockets.iter().flatten();
            let mut fds: arrayvec::ArrayVec<PollFd<'_>, 64> = sockets
                .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .chain([PollFd::new(mine.wake.as_fd(), PollFlags::POLLIN)])
                .collect();
            match nix::poll::poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Nothing to read is the usual case: frames woke us.
            let _ = mine.wake.read();
        }
        mine.sleeping.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Resets all flows and waits until the resets have left.
    fn shut_down(mut self) -> Result<(), std::io::Error> {
        let deadline = now() + SHUTDOWN_TIMEOUT;
        self.worker.abort_all();
        loop {
            let now = now();
            self.ports.recycle();
            if !self.turn(now)? || now >= deadline {
                break;
            }
        }
        self.publish(now());
        Ok(())
    }
}
