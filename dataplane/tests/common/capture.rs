//! What goes over a host's interface, as tcpdump sees it: TCP segments with all that a middle could change.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::{Host, Lab, Process, STEP_LIMIT, wait_until};

/// How long something may take to show in a capture. More than a host's retransmissions of a second or two.
pub const CAPTURE_LIMIT: Duration = Duration::from_secs(15);

/// A running tcpdump on `eth0` of a host.
pub struct Capture {
    name: String,
    file: PathBuf,
    _process: Process,
}

impl Capture {
    /// Captures what matches `filter` (pcap-filter(7)); what goes over the wire once this has returned is in it.
    pub fn start(host: &Host, filter: &str) -> Capture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("capture-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = host.folder.join(format!("{name}.pcap"));
        let path = file.to_string_lossy();
        let arguments = ["-i", "eth0", "-U", "--immediate-mode", "-B", "32768", "-Z", "root", "-w", &path, filter];
        let mut process = host.spawn(&name, "tcpdump", &arguments);
        process.wait_until("tcpdump to listen", STEP_LIMIT, |dump| dump.log().contains("listening on"));
        Capture { name: format!("the capture in {}", host.namespace), file, _process: process }
    }

    /// The TCP segments that have been captured so far, in their order.
    pub fn segments(&self) -> Vec<Segment> {
        let Ok(file) = std::fs::File::open(&self.file) else { return Vec::new() };
        let Ok(mut reader) = PcapReader::new(std::io::BufReader::new(file)) else { return Vec::new() };
        // An error is the end: the last packet is just being written.
        std::iter::from_fn(|| {
            let packet = reader.next_packet()?.ok()?;
            Some(Segment::parse(&packet.data))
        })
        .flatten()
        .collect()
    }

    /// Waits until what has been captured satisfies `condition`, and gives it. Fails after [`CAPTURE_LIMIT`], and shows it.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&[Segment]) -> bool) -> Vec<Segment> {
        let shown = ShownOnPanic(self);
        let mut segments = Vec::new();
        wait_until(&format!("{what}, in {}", self.name), CAPTURE_LIMIT, || {
            segments = self.segments();
            condition(&segments)
        });
        std::mem::forget(shown);
        segments
    }
}

/// Prints the first segments of a capture if a panic drops it.
struct ShownOnPanic<'a>(&'a Capture);

impl Drop for ShownOnPanic<'_> {
    fn drop(&mut self) {
        let segments = self.0.segments();
        eprintln!("---- {}: {} segments, the first of them:", self.0.name, segments.len());
        for segment in segments.iter().take(40) {
            eprintln!("{segment}");
        }
    }
}

/// Captures at both ends.
pub struct Captures {
    /// At the client host's end of the wire.
    pub client: Capture,
    /// At the server host's end of the wire.
    pub server: Capture,
}

impl Captures {
    /// Captures what matches `filter` on both hosts.
    pub fn start(lab: &Lab, filter: &str) -> Captures {
        Captures { client: Capture::start(&lab.client, filter), server: Capture::start(&lab.server, filter) }
    }
}

/// Bits of [`Segment::flags`].
pub mod flag {
    /// The sender has sent all.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// ECN echo; in a SYN: asks for ECN.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced; in a SYN: asks for ECN.
    pub const CWR: u8 = 0x80;
}

/// Kinds of TCP options.
pub mod option {
    /// Padding.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Window scale.
    pub const WINDOW_SCALE: u8 = 3;
    /// Timestamps.
    pub const TIMESTAMPS: u8 = 8;
    /// TCP Fast Open.
    pub const FAST_OPEN: u8 = 34;
}

/// One TCP segment with the fields of its IP header.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Differentiated services.
    pub dscp: u8,
    /// ECN bits of the IP header.
    pub ecn: u8,
    /// The flow label; 0 in IPv4.
    pub flow_label: u32,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// See [`flag`].
    pub flags: u8,
    /// As it is on the wire: not scaled.
    pub window: u16,
    /// All bytes of the options.
    pub options: Vec<u8>,
    /// The bytes it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Reads an Ethernet frame; `None` if there is no whole TCP segment in it.
    fn parse(frame: &[u8]) -> Option<Segment> {
        let packet = frame.get(14..)?;
        match frame.get(12..14)? {
            [0x08, 0x00] => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                let ends = (IpAddr::V4(ip.src_addr()), IpAddr::V4(ip.dst_addr()));
                let mut segment = Segment::parse_tcp(ends, ip.next_header(), ip.payload())?;
                (segment.ttl, segment.dscp, segment.ecn) = (ip.hop_limit(), ip.dscp(), ip.ecn());
                Some(segment)
            }
            [0x86, 0xdd] => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                let ends = (IpAddr::V6(ip.src_addr()), IpAddr::V6(ip.dst_addr()));
                let mut segment = Segment::parse_tcp(ends, ip.next_header(), ip.payload())?;
                (segment.ttl, segment.flow_label) = (ip.hop_limit(), ip.flow_label());
                (segment.dscp, segment.ecn) = (ip.traffic_class() >> 2, ip.traffic_class() & 3);
                Some(segment)
            }
            _ => None,
        }
    }

    fn parse_tcp((from, to): (IpAddr, IpAddr), protocol: IpProtocol, bytes: &[u8]) -> Option<Segment> {
        if protocol != IpProtocol::Tcp {
            return None;
        }
        let tcp = TcpPacket::new_checked(bytes).ok()?;
        Some(Segment {
            from: SocketAddr::new(from, tcp.src_port()),
            to: SocketAddr::new(to, tcp.dst_port()),
            ttl: 0,
            dscp: 0,
            ecn: 0,
            flow_label: 0,
            seq: u32::from_be_bytes(*bytes.get(4..8)?.first_chunk()?),
            ack: u32::from_be_bytes(*bytes.get(8..12)?.first_chunk()?),
            flags: *bytes.get(13)?,
            window: tcp.window_len(),
            options: tcp.options().to_vec(),
            payload: tcp.payload().to_vec(),
        })
    }

    /// Whether any of these bits is set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// A client's first segment.
    pub fn is_syn(&self) -> bool {
        self.has(flag::SYN) && !self.has(flag::ACK)
    }

    /// A server's first segment.
    pub fn is_syn_ack(&self) -> bool {
        self.has(flag::SYN) && self.has(flag::ACK)
    }

    /// Its options: kind and contents, padding included.
    pub fn option_list(&self) -> Vec<(u8, &[u8])> {
        let mut list = Vec::new();
        let mut rest = &self.options[..];
        while let Some(&kind) = rest.first() {
            let length = if kind <= option::NOP { 1 } else { rest.get(1).copied().unwrap_or(0).max(2).into() };
            let (this, later) = rest.split_at(length.min(rest.len()));
            list.push((kind, this.get(2..).unwrap_or_default()));
            rest = later;
        }
        list
    }

    /// Contents of its option of this kind.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        self.option_list().into_iter().find(|(this, _)| *this == kind).map(|(_, contents)| contents)
    }

    /// Timestamp value and echo reply.
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let (value, echo) = self.option(option::TIMESTAMPS)?.split_first_chunk::<4>()?;
        Some((u32::from_be_bytes(*value), u32::from_be_bytes(*echo.first_chunk()?)))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: String =
            "FSRPAUEC".chars().enumerate().filter(|(bit, _)| self.flags >> bit & 1 != 0).map(|(_, l)| l).collect();
        write!(
            formatter,
            "{} > {} {letters} seq {} ack {} window {} length {} ttl {} dscp {} ecn {} label {:#x} options {:?}",
            self.from,
            self.to,
            self.seq,
            self.ack,
            self.window,
            self.payload.len(),
            self.ttl,
            self.dscp,
            self.ecn,
            self.flow_label,
            self.option_list()
        )
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
