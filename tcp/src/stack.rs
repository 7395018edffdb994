//! What the connections of one worker and port share, and the device that hands smoltcp one packet and overhears its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, TcpPacket};

use crate::wire::{IPV4_HEADER, IPV6_HEADER};

/// The smallest MTU that a [`Stack`] works with, in bytes: what every IPv4 host must take (RFC 1122 §3.3.2).
pub const MIN_MTU: usize = 576;
/// Bytes that queues may grow beyond the size that they begin with, over all connections of a stack.
pub const GROWTH_LIMIT: usize = 512 << 20;
/// smoltcp sends no text: its longest packet is an IPv6 header and the longest TCP header.
const LONGEST_ANSWER: usize = IPV6_HEADER + 60;

/// Takes frames that are to be sent.
pub trait FrameSink {
    /// A new outgoing frame of exactly `length` bytes, with whatever was in it before. It is sent when the borrow ends.
    /// None: no frame is free.
    fn frame(&mut self, length: usize) -> Option<&mut [u8]>;
}

/// Counters of a [`Stack`], over all its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Segments outside of the window, or with an unacceptable ACK: answered, if at all, and not looked at further.
    pub unacceptable_segments: u64,
    /// Segments with a timestamp from the past (RFC 7323 §5).
    pub old_timestamps: u64,
    /// ACKs sent to confirm a doubtful RST, SYN or ACK (RFC 5961 §3.2, §4.2, §5.2).
    pub challenge_acks: u64,
    /// Challenge ACKs not sent because of their rate limit (RFC 5961 §7).
    pub challenge_acks_withheld: u64,
    /// Segments sent once more.
    pub retransmissions: u64,
    /// Retransmission timeouts (RFC 6298 §5).
    pub retransmission_timeouts: u64,
    /// Probes for the loss of a tail (RFC 8985 §7).
    pub tail_loss_probes: u64,
    /// Reductions of a congestion window that were taken back, because nothing had been lost.
    pub undone_recoveries: u64,
}

/// One smoltcp interface for all connections of one worker on one port. It has no addresses of its own.
pub struct Stack {
    interface: Interface,
    pub(crate) counters: Counters,
    pub(crate) budget: Budget,
    mtu: usize,
}

impl Stack {
    /// A stack for packets of up to `mtu` bytes (IP header included; below [`MIN_MTU`], that is taken). `seed` is for
    /// smoltcp's own initial sequence numbers, which never reach the wire.
    pub fn new(seed: u64, mtu: usize) -> Self {
        let mtu = mtu.clamp(MIN_MTU, usize::from(u16::MAX));
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut OnePacket::default(), Instant::ZERO);
        // With this, foreign addresses are good on both ends, and neither own addresses nor routes are needed.
        interface.set_any_ip(true);
        Self { interface, counters: Counters::default(), budget: Budget::new(GROWTH_LIMIT), mtu }
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Largest IP packet that is sent, in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Hands `packet` (from the IP header on) to the one socket of `sockets`; what that answered at once.
    pub(crate) fn ingress(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        packet: &[u8],
    ) -> Option<Overheard> {
        let mut device = OnePacket { packet: Some(packet), overheard: None };
        self.interface.poll_ingress_single(now, &mut device, sockets);
        device.overheard
    }

    /// What the one socket of `sockets` has to say now, if anything.
    pub(crate) fn egress(&mut self, now: Instant, sockets: &mut SocketSet<'static>) -> Option<Overheard> {
        let mut device = OnePacket::default();
        self.interface.poll_egress(now, &mut device, sockets);
        device.overheard
    }
}

/// What smoltcp has written into a segment that it believes to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overheard {
    /// Its sequence number: in a number space of smoltcp's own.
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Not scaled.
    pub(crate) window: u16,
}

/// Bytes that queues may still grow by. Shared by a stack and its connections, so that one that ends gives back its part.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes `bytes`, or nothing if there are not as many left.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Lends smoltcp one received packet, or none, for one call, and overhears what it sends.
#[derive(Default)]
struct OnePacket<'a> {
    packet: Option<&'a [u8]>,
    overheard: Option<Overheard>,
}

struct Packet<'a>(&'a [u8]);

struct Listener<'b>(&'b mut Option<Overheard>);

impl<'a> Device for OnePacket<'a> {
    type RxToken<'b>
        = Packet<'a>
    where
        Self: 'b;
    type TxToken<'b>
        = Listener<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Packet<'a>, Listener<'_>)> {
        Some((Packet(self.packet.take()?), Listener(&mut self.overheard)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Listener<'_>> {
        Some(Listener(&mut self.overheard))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Only smoltcp's own segments would be bound by this, and it has none with text.
        capabilities.max_transmission_unit = MIN_MTU;
        // Checked before a segment comes here, and never on the wire after it.
        capabilities.checksum.ipv4 = Checksum::None;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Listener<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = [0; LONGEST_ANSWER];
        let packet = &mut packet[..length];
        let result = f(packet);
        let ip = if packet[0] >> 4 == 4 { IPV4_HEADER } else { IPV6_HEADER };
        let tcp = TcpPacket::new_unchecked(&packet[ip..]);
        let (seq, ack) = (tcp.seq_number().0 as u32, tcp.ack_number().0 as u32);
        *self.0 = Some(Overheard { seq, ack, window: tcp.window_len() });
        result
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::handshake::Syn;
    use crate::time::Duration;
    use crate::wire::{Envelope, Headers, SynOptions};
    use crate::{Connection, Handshake, Options, wire};

    /// Frames, the last one of which is kept.
    #[derive(Default)]
    struct Last(Vec<u8>);

    impl FrameSink for Last {
        fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
            self.0 = vec![0; length];
            Some(&mut self.0)
        }
    }

    fn stack(budget: usize) -> Stack {
        Stack { budget: Budget::new(budget), ..Stack::new(0, 1500) }
    }

    fn left(stack: &Stack) -> usize {
        stack.budget.0.load(Ordering::Relaxed)
    }

    fn open(stack: &mut Stack) -> Connection {
        let ends: [SocketAddr; 2] = ["10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap()];
        let options = SynOptions { window_scale: Some(7), ..SynOptions::default() };
        let syn = Syn { seq: 0, window: u16::MAX, options };
        let rtt = Some(Duration::from_millis(100));
        let handshake = Handshake { local: ends[0], remote: ends[1], ours: syn, peers: syn, rtt };
        Connection::passive_open(stack, Instant::ZERO, &handshake, &Options { receive_buffer: 0 }).unwrap()
    }

    /// Reads all of a window that is filled within a round trip.
    fn fill_and_read(stack: &mut Stack, connection: &mut Connection) {
        let mut frame = Last::default();
        let segment = wire::Segment {
            source: connection.remote(),
            destination: connection.local(),
            seq: 1,
            ack: 1,
            flags: wire::Flags::ACK,
            window: u16::MAX,
            options: &[],
            payload: [&[7; 40_000], &[]],
        };
        assert!(wire::build_segment(&mut frame, &Envelope { l2: ethernet(), ..Envelope::default() }, &segment));
        let headers = parsed(&frame.0);
        connection.handle_segment(stack, Instant::ZERO, &mut frame.0, &headers);
        connection.consume(40_000);
        while connection.poll_transmit(stack, Instant::ZERO, &Envelope::default(), &mut Last::default()) {}
    }

    fn ethernet() -> wire::L2Header {
        wire::L2Header::from_bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]).unwrap()
    }

    fn parsed(frame: &[u8]) -> Headers {
        match wire::parse(frame) {
            Ok(wire::Parsed::Tcp(headers)) => headers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn growth_is_counted_and_given_back() {
        let mut stack = stack(1 << 20);
        let mut connection = open(&mut stack);
        assert_eq!(left(&stack), 1 << 20);
        fill_and_read(&mut stack, &mut connection);
        assert_eq!(left(&stack), (1 << 20) - 64 * 1024, "the receive buffer has doubled");
        assert_eq!(connection.send(&[0; 1 << 20]), connection.send_queue());
        assert!(left(&stack) < (1 << 20) - 64 * 1024, "the send queue has grown");
        drop(connection);
        assert_eq!(left(&stack), 1 << 20);
    }

    /// Without a budget, connections work with what they begin with.
    #[test]
    fn nothing_grows_beyond_the_budget() {
        let mut stack = stack(1000);
        let mut connection = open(&mut stack);
        fill_and_read(&mut stack, &mut connection);
        assert_eq!(connection.send(&[0; 1 << 20]), 64 * 1024);
        assert_eq!(connection.send(&[0; 1 << 20]), 0);
        assert_eq!(left(&stack), 1000);
        drop(connection);
        assert_eq!(left(&stack), 1000);
    }
}
