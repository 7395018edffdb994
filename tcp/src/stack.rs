//! What the connections of one worker and port share, and the device that hands smoltcp one packet.

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

use crate::sequence::Sequence;
use crate::wire::{ETHERNET_HEADER, L2Header, MAX_VLAN_TAGS, VLAN_TAG};

/// The smallest MTU that a [`Stack`] works with, in bytes: what every IPv4 host must take (RFC 1122 §3.3.2).
pub const MIN_MTU: usize = 576;

/// Takes frames that are to be sent.
pub trait FrameSink {
    /// A new outgoing frame of exactly `length` bytes, with whatever was in it before. It is sent when the borrow ends.
    /// None: no frame is free.
    fn frame(&mut self, length: usize) -> Option<&mut [u8]>;

    /// How many frames are free, if the sink knows. With 0, [`crate::Connection::poll_transmit`] leaves a segment for later;
    /// without that, a segment that finds no frame counts as lost on the wire and waits for its retransmission.
    fn room(&self) -> usize {
        usize::MAX
    }
}

/// Counters of a [`Stack`], over all its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Segments that found no free frame and are lost as if on the wire.
    pub lost_frames: u64,
    /// Segments outside of the window, or with an unacceptable ACK: answered, if at all, and not looked at further.
    pub unacceptable_segments: u64,
    /// ACKs sent to confirm a doubtful RST, SYN or ACK (RFC 5961 §3.2, §4.2, §5.2).
    pub challenge_acks: u64,
    /// Challenge ACKs not sent because of their rate limit (RFC 5961 §7).
    pub challenge_acks_withheld: u64,
}

/// One smoltcp interface for all connections of one worker on one port. It has no addresses of its own.
pub struct Stack {
    pub(crate) interface: Interface,
    /// Takes what smoltcp insists on sending when no frame is free.
    pub(crate) scratch: Vec<u8>,
    pub(crate) counters: Counters,
    mtu: usize,
}

impl Stack {
    /// A stack for packets of up to `mtu` bytes (IP header included; below [`MIN_MTU`], that is taken). `seed` is for
    /// smoltcp's own initial sequence numbers, which never reach the wire.
    pub fn new(seed: u64, mtu: usize) -> Self {
        let mtu = mtu.clamp(MIN_MTU, usize::from(u16::MAX));
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut NoPackets { mtu }, Instant::ZERO);
        // With this, foreign addresses are good on both ends, and neither own addresses nor routes are needed.
        interface.set_any_ip(true);
        let longest_l2 = ETHERNET_HEADER + MAX_VLAN_TAGS * VLAN_TAG;
        Self { interface, scratch: vec![0; longest_l2 + mtu], counters: Counters::default(), mtu }
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Largest IP packet that is sent, in bytes.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Hands `packet` (from the IP header on) to the one socket of `sockets`.
    pub(crate) fn ingress<S: FrameSink>(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        packet: &[u8],
        sequence: &mut Sequence,
        l2: &L2Header,
        sink: &mut S,
    ) {
        let (interface, mut device) = self.device(Some(packet), sequence, l2, sink);
        interface.poll_ingress_single(now, &mut device, sockets);
    }

    /// Lets the one socket of `sockets` send at most one segment. True: it did, and there was a frame for it.
    pub(crate) fn egress<S: FrameSink>(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        sequence: &mut Sequence,
        l2: &L2Header,
        sink: &mut S,
    ) -> bool {
        let (interface, mut device) = self.device(None, sequence, l2, sink);
        interface.poll_egress(now, &mut device, sockets);
        device.transmitter.sent
    }

    fn device<'a, S: FrameSink>(
        &'a mut self,
        packet: Option<&'a [u8]>,
        sequence: &'a mut Sequence,
        l2: &'a L2Header,
        sink: &'a mut S,
    ) -> (&'a mut Interface, OnePacket<'a, S>) {
        let Self { interface, scratch, counters, mtu } = self;
        let transmitter = Transmitter { sink, l2, sequence, scratch, counters, sent: false };
        (interface, OnePacket { packet, transmitter, mtu: *mtu })
    }
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    // Checked before a segment comes here, and filled in when the numbers have been translated.
    capabilities.checksum.ipv4 = Checksum::None;
    capabilities.checksum.tcp = Checksum::None;
    capabilities
}

/// Lends smoltcp one received packet, or none, for one call.
struct OnePacket<'a, S> {
    packet: Option<&'a [u8]>,
    transmitter: Transmitter<'a, S>,
    mtu: usize,
}

/// Where smoltcp's segments become frames. The frame is taken when the segment is there, not before.
struct Transmitter<'a, S> {
    sink: &'a mut S,
    l2: &'a L2Header,
    sequence: &'a mut Sequence,
    scratch: &'a mut [u8],
    counters: &'a mut Counters,
    sent: bool,
}

struct Packet<'a>(&'a [u8]);

struct Token<'b, 'a, S>(&'b mut Transmitter<'a, S>);

impl<'a, S: FrameSink> Device for OnePacket<'a, S> {
    type RxToken<'b>
        = Packet<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Token<'b, 'a, S>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        Some((Packet(self.packet.take()?), Token(&mut self.transmitter)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Self::TxToken<'_>> {
        (self.transmitter.sink.room() > 0).then_some(Token(&mut self.transmitter))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

impl RxToken for Packet<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<S: FrameSink> TxToken for Token<'_, '_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Transmitter { sink, l2, sequence, scratch, counters, sent } = self.0;
        let total = l2.len() + length;
        let frame = match sink.frame(total) {
            Some(frame) => {
                *sent = true;
                frame
            }
            None => {
                counters.lost_frames += 1;
                &mut scratch[..total]
            }
        };
        let (header, packet) = frame.split_at_mut(l2.len());
        header.copy_from_slice(l2.as_bytes());
        let result = f(packet);
        sequence.sent(packet);
        result
    }
}

/// Gives smoltcp its capabilities while an interface is made.
struct NoPackets {
    mtu: usize,
}

/// There are no packets: these tokens never exist.
enum Never {}

impl Device for NoPackets {
    type RxToken<'b> = Never;
    type TxToken<'b> = Never;

    fn receive(&mut self, _now: Instant) -> Option<(Never, Never)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Never> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

impl RxToken for Never {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _f: F) -> R {
        match self {}
    }
}

impl TxToken for Never {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _length: usize, _f: F) -> R {
        match self {}
    }
}
