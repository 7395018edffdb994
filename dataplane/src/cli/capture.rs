//! One direction of the first TCP flow of a pcap or pcapng capture.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use tcp::wire::{self, Headers, Parsed};

use super::args::Sender;

/// Bytes of a stream that are put together at most.
const STREAM_LIMIT: usize = 1 << 30;
/// Bytes that wait for a missing segment at most.
const PENDING_LIMIT: usize = 64 << 20;

/// What was found in a capture.
#[derive(Debug)]
pub(super) struct Capture {
    /// The end that opened the connection.
    pub(super) client: SocketAddr,
    /// The end that was connected to.
    pub(super) server: SocketAddr,
    /// The bytes that one of them sent, up to the first gap.
    pub(super) stream: Vec<u8>,
    /// Why the stream ends before the capture does, if it does.
    pub(super) broken: Option<String>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error("cannot be read as a capture: {0}")]
    Format(#[from] PcapError),
    #[error("has no TCP packet")]
    NoTcp,
}

/// Whether a file that begins like this is a capture.
pub(super) fn is_capture(head: &[u8]) -> bool {
    // pcap: microseconds or nanoseconds, in either byte order.
    const PCAP: [[u8; 4]; 4] =
        [[0xa1, 0xb2, 0xc3, 0xd4], [0xd4, 0xc3, 0xb2, 0xa1], [0xa1, 0xb2, 0x3c, 0x4d], [0x4d, 0x3c, 0xb2, 0xa1]];
    head.first_chunk().is_some_and(|magic| PCAP.contains(magic)) || is_pcapng(head)
}

fn is_pcapng(head: &[u8]) -> bool {
    head.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a])
}

/// Puts together what `sender` sent in the first TCP flow of a capture; `head` is its beginning, `rest` what follows.
///
/// # Errors
/// It is not a capture, or has no TCP in it. A capture that is cut off gives what is there.
pub(super) fn read(head: &[u8], rest: impl Read, sender: Sender) -> Result<Capture, CaptureError> {
    let input = head.chain(rest);
    let mut flow = FirstFlow { sender, found: None };
    if is_pcapng(head) {
        let mut reader = PcapNgReader::new(input)?;
        loop {
            let (interface, frame) = match reader.next_block() {
                None => break,
                Some(Err(error)) => {
                    flow.stop(&error)?;
                    break;
                }
                Some(Ok(Block::EnhancedPacket(packet))) => (packet.interface_id as usize, packet.data.into_owned()),
                Some(Ok(Block::SimplePacket(packet))) => (0, packet.data.into_owned()),
                Some(Ok(_)) => continue,
            };
            if let Some(interface) = reader.interfaces().get(interface) {
                flow.frame(interface.linktype, &frame);
            }
        }
    } else {
        let mut reader = PcapReader::new(input)?;
        let link = reader.header().datalink;
        loop {
            match reader.next_packet() {
                None => break,
                Some(Ok(packet)) => flow.frame(link, &packet.data),
                Some(Err(error)) => {
                    flow.stop(&error)?;
                    break;
                }
            }
        }
    }
    let flow = flow.found.ok_or(CaptureError::NoTcp)?;
    let missing = flow.bytes.missing();
    Ok(Capture { client: flow.client, server: flow.server, broken: flow.broken.or(missing), stream: flow.bytes.stream })
}

/// The frame as Ethernet, whatever link it was captured on; `None` = no link that carries IP.
fn as_ethernet(link: DataLink, frame: &[u8]) -> Option<Vec<u8>> {
    // The numbers are those of https://www.tcpdump.org/linktypes.html.
    let (ether_type, packet) = match u32::from(link) {
        1 => return Some(frame.to_vec()),
        // BSD loopback: a word with the family, whose numbers differ between systems.
        0 | 108 => (ip_ether_type(frame.get(4..)?)?, frame.get(4..)?),
        // IP without a link header.
        12 | 14 | 101 | 228 | 229 => (ip_ether_type(frame)?, frame),
        // Linux "any", versions 1 and 2.
        113 => (*frame.get(14..)?.first_chunk()?, frame.get(16..)?),
        276 => (*frame.first_chunk()?, frame.get(20..)?),
        _ => return None,
    };
    Some([&[0; 12], &ether_type[..], packet].concat())
}

fn ip_ether_type(packet: &[u8]) -> Option<[u8; 2]> {
    match packet.first()? >> 4 {
        4 => Some([0x08, 0x00]),
        6 => Some([0x86, 0xdd]),
        _ => None,
    }
}

/// Picks the first flow out of a capture.
struct FirstFlow {
    sender: Sender,
    found: Option<Flow>,
}

struct Flow {
    client: SocketAddr,
    server: SocketAddr,
    bytes: Reassembly,
    /// Its ports belong to another connection from here on, or it was reset.
    over: bool,
    broken: Option<String>,
}

impl FirstFlow {
    /// Takes a frame of the capture. What is not TCP, or is damaged, is passed over.
    fn frame(&mut self, link: DataLink, frame: &[u8]) {
        let Some(frame) = as_ethernet(link, frame) else { return };
        let Ok(Parsed::Tcp(headers)) = wire::parse(&frame) else { return };
        let flow = self.found.get_or_insert_with(|| {
            let (client, server) = ends(&headers);
            Flow { client, server, bytes: Reassembly::default(), over: false, broken: None }
        });
        let from = match (headers.source, headers.destination) {
            ends if ends == (flow.client, flow.server) => Sender::Client,
            ends if ends == (flow.server, flow.client) => Sender::Server,
            _ => return,
        };
        if flow.over {
            return;
        }
        if headers.flags.rst() {
            flow.over = true;
        } else if from == self.sender {
            flow.over = !flow.bytes.segment(&headers, &frame[headers.payload_offset..headers.end]);
        }
    }

    /// The capture is damaged from here on: fatal only if nothing was found yet.
    fn stop(&mut self, error: &PcapError) -> Result<(), CaptureError> {
        let Some(flow) = &mut self.found else { return Err(CaptureError::NoTcp) };
        flow.broken = Some(format!("the capture is cut off or damaged: {error}"));
        Ok(())
    }
}

/// Client and server of a flow, from its first segment.
fn ends(first: &Headers) -> (SocketAddr, SocketAddr) {
    let (source, destination) = (first.source, first.destination);
    let from_server = match (first.flags.syn(), first.flags.ack()) {
        (true, ack) => ack,
        // No handshake: servers have the lower ports.
        (false, _) => source.port() < destination.port(),
    };
    if from_server { (destination, source) } else { (source, destination) }
}

/// Bytes in the order of their sequence numbers. Where segments overlap, the first to come counts.
#[derive(Default)]
struct Reassembly {
    stream: Vec<u8>,
    /// Sequence number of the byte after `stream`; known from the first segment on.
    next: Option<u32>,
    /// Sequence number of the SYN, if there was one.
    iss: Option<u32>,
    /// Segments beyond a gap, by their offset in the stream.
    pending: BTreeMap<usize, Vec<u8>>,
    pending_bytes: usize,
}

impl Reassembly {
    /// Takes a segment; `false` if it does not belong to this connection any more.
    fn segment(&mut self, headers: &Headers, payload: &[u8]) -> bool {
        let mut seq = headers.seq;
        if headers.flags.syn() {
            if self.iss.is_some_and(|iss| iss != seq) || (self.iss.is_none() && self.next.is_some()) {
                return false;
            }
            self.iss = Some(seq);
            // The SYN takes the first number (RFC 9293, section 3.4).
            seq = seq.wrapping_add(1);
        }
        let next = *self.next.get_or_insert(seq);
        // Sequence numbers compare modulo 2^32 (RFC 9293, section 3.4): the distance is less than half of that.
        let distance = i64::from(seq.wrapping_sub(next) as i32);
        let start = self.stream.len() as i64 + distance;
        match usize::try_from(start) {
            Ok(start) => self.insert(start, payload),
            // It begins before the first byte that we know of.
            Err(_) => {
                let skip = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
                self.insert(0, payload.get(skip..).unwrap_or_default());
            }
        }
        true
    }

    fn insert(&mut self, start: usize, payload: &[u8]) {
        if start > self.stream.len() {
            let longer = self.pending.get(&start).is_none_or(|known| known.len() < payload.len());
            if longer && !payload.is_empty() && self.pending_bytes + payload.len() <= PENDING_LIMIT {
                self.pending_bytes += payload.len();
                let replaced = self.pending.insert(start, payload.to_vec());
                self.pending_bytes -= replaced.map_or(0, |old| old.len());
            }
            return;
        }
        self.append(start, payload);
        while let Some(entry) = self.pending.first_entry()
            && *entry.key() <= self.stream.len()
        {
            let (start, payload) = entry.remove_entry();
            self.pending_bytes -= payload.len();
            self.append(start, &payload);
        }
    }

    /// Adds what is new of bytes that begin within the stream or at its end.
    fn append(&mut self, start: usize, payload: &[u8]) {
        let known = self.stream.len() - start;
        let Some(new) = payload.get(known..) else { return };
        let new = &new[..new.len().min(STREAM_LIMIT - self.stream.len())];
        self.stream.extend_from_slice(new);
        self.next = self.next.map(|next| next.wrapping_add(new.len() as u32));
    }

    fn missing(&self) -> Option<String> {
        if self.stream.len() == STREAM_LIMIT {
            return Some(format!("only the first {STREAM_LIMIT} bytes are taken"));
        }
        let (start, _) = self.pending.first_key_value()?;
        Some(format!("the capture lacks {} bytes of the stream here", start - self.stream.len()))
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use proptest::prelude::*;

    use super::*;

    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// An IPv4 packet from the client (port 4000) or the server (port 80).
    fn packet(from: Sender, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
        let (source, destination) = ([10, 0, 0, 1, 0x0f, 0xa0], [10, 0, 0, 2, 0, 80]);
        let (source, destination) = if from == Sender::Client { (source, destination) } else { (destination, source) };
        ip.extend_from_slice(&source[..4]);
        ip.extend_from_slice(&destination[..4]);
        let total = (40 + payload.len()) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let sum: u32 = ip.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend_from_slice(&source[4..]);
        ip.extend_from_slice(&destination[4..]);
        ip.extend_from_slice(&seq.to_be_bytes());
        ip.extend_from_slice(&[0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        ip.extend_from_slice(payload);
        ip
    }

    fn pcap(link: DataLink, link_header: &[u8], packets: &[Vec<u8>]) -> Vec<u8> {
        let header = PcapHeader { datalink: link, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for packet in packets {
            let frame = [link_header, packet].concat();
            let length = frame.len() as u32;
            writer.write_packet(&PcapPacket::new(std::time::Duration::ZERO, length, &frame)).unwrap();
        }
        writer.into_writer()
    }

    /// The same packets behind an interface that carries something else.
    fn pcapng(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        for linktype in [DataLink::USER0, DataLink::RAW] {
            let interface = InterfaceDescriptionBlock { linktype, snaplen: 0, options: vec![] };
            writer.write_pcapng_block(interface).unwrap();
        }
        for packet in packets {
            for interface_id in 0..2 {
                let packet = EnhancedPacketBlock {
                    interface_id,
                    timestamp: std::time::Duration::ZERO,
                    original_len: packet.len() as u32,
                    data: packet.into(),
                    options: vec![],
                };
                writer.write_pcapng_block(packet).unwrap();
            }
        }
        writer.into_inner()
    }

    fn read_raw_ip(packets: &[Vec<u8>], sender: Sender) -> Capture {
        let file = pcap(DataLink::RAW, &[], packets);
        assert!(is_capture(&file));
        read(&file[..4], &file[4..], sender).unwrap()
    }

    #[test]
    fn handshake_names_the_ends() {
        use Sender::*;
        let packets = [
            packet(Client, 99, SYN, b""),
            packet(Server, 7, SYN | ACK, b""),
            packet(Client, 100, ACK, b"GET "),
            packet(Server, 8, ACK, b"200"),
            packet(Client, 104, ACK, b"/"),
        ];
        let capture = read_raw_ip(&packets, Client);
        assert_eq!(
            (capture.client.to_string(), capture.server.to_string()),
            ("10.0.0.1:4000".into(), "10.0.0.2:80".into())
        );
        assert_eq!((&capture.stream[..], capture.broken), (&b"GET /"[..], None));
        assert_eq!(read_raw_ip(&packets, Server).stream, b"200");
        // The same, from the SYN-ACK on, and from the middle on.
        assert_eq!(read_raw_ip(&packets[1..], Client).stream, b"GET /");
        assert_eq!(read_raw_ip(&packets[3..], Client).stream, b"/");
    }

    #[test]
    fn order_repetition_and_gaps() {
        use Sender::Client;
        // Across the wrap of the sequence numbers.
        let base = u32::MAX - 2;
        let at = |offset: u32, bytes: &[u8]| packet(Client, base.wrapping_add(offset), ACK, bytes);
        let syn = packet(Client, base.wrapping_sub(1), SYN, b"");
        let shuffled =
            [syn.clone(), at(6, b"gh"), at(2, b"cdXX"), at(4, b"ef"), at(0, b"ab"), at(0, b"zz"), syn.clone()];
        assert_eq!(read_raw_ip(&shuffled, Client).stream, b"abcdXXgh");
        let gap = [syn.clone(), at(0, b"ab"), at(5, b"fg")];
        let capture = read_raw_ip(&gap, Client);
        assert_eq!(
            (&capture.stream[..], &*capture.broken.unwrap()),
            (&b"ab"[..], "the capture lacks 3 bytes of the stream here")
        );
        // A new connection of the same ends, and a reset, end the flow.
        let reused = [syn.clone(), at(0, b"ab"), packet(Client, 5000, SYN, b""), packet(Client, 5001, ACK, b"new")];
        assert_eq!(read_raw_ip(&reused, Client).stream, b"ab");
        let reset = [syn, at(0, b"ab"), packet(Sender::Server, 0, RST, b""), at(2, b"cd")];
        assert_eq!(read_raw_ip(&reset, Client).stream, b"ab");
    }

    #[test]
    fn links() {
        let packets = [packet(Sender::Client, 99, SYN, b"early"), packet(Sender::Client, 105, ACK, b"later")];
        let ethernet: Vec<u8> = [&[2u8; 12][..], &[8, 0]].concat();
        let tagged: Vec<u8> = [&[2u8; 12][..], &[0x81, 0, 0, 5, 8, 0]].concat();
        let mut sll = vec![0; 16];
        sll[14] = 8;
        let mut sll2 = vec![0; 20];
        sll2[0] = 8;
        for (link, header) in [
            (DataLink::ETHERNET, &ethernet),
            (DataLink::ETHERNET, &tagged),
            (DataLink::NULL, &vec![2, 0, 0, 0]),
            (DataLink::LINUX_SLL, &sll),
            (DataLink::Unknown(276), &sll2),
        ] {
            let file = pcap(link, header, &packets);
            assert_eq!(read(&file, &[][..], Sender::Client).unwrap().stream, b"earlylater", "{link:?}");
        }
    }

    #[test]
    fn the_newer_format() {
        let file = pcapng(&[packet(Sender::Client, 1, ACK, b"ab"), packet(Sender::Client, 3, ACK, b"c")]);
        assert!(is_capture(&file));
        assert_eq!(read(&file[..4], &file[4..], Sender::Client).unwrap().stream, b"abc");
    }

    #[test]
    fn damaged_captures() {
        let file =
            pcap(DataLink::RAW, &[], &[packet(Sender::Client, 1, ACK, b"abc"), packet(Sender::Client, 4, ACK, b"d")]);
        let cut = read(&file[..file.len() - 1], &[][..], Sender::Client).unwrap();
        assert_eq!(cut.stream, b"abc");
        assert!(cut.broken.unwrap().starts_with("the capture is cut off or damaged: "));
        let error = read(&file[..24], &[][..], Sender::Client).unwrap_err();
        assert!(matches!(error, CaptureError::NoTcp));
        assert!(matches!(read(b"\xa1\xb2\xc3\xd4", &[][..], Sender::Client), Err(CaptureError::Format(_))));
    }

    proptest! {
        #[test]
        fn any_file_is_answered(magic in 0..3usize, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let head: [&[u8]; 3] = [b"\xa1\xb2\xc3\xd4", b"\x0a\x0d\x0d\x0a", b""];
            let file = [head[magic], &bytes].concat();
            let _ = read(&file, &[][..], Sender::Client);
        }

        #[test]
        fn any_damage_is_answered(newer in any::<bool>(), at in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
            let packets = [packet(Sender::Client, 1, SYN, b"ab"), packet(Sender::Client, 4, ACK, b"c")];
            let mut file = if newer { pcapng(&packets) } else { pcap(DataLink::RAW, &[], &packets) };
            let length = file.len();
            file[at % length] = value;
            file.truncate(length - cut.saturating_sub(300) % length);
            let _ = read(&file, &[][..], Sender::Client);
        }

        #[test]
        fn any_order_gives_the_same_stream(cuts in prop::collection::vec(1usize..9, 1..20), iss in any::<u32>(), seed in any::<u64>()) {
            let stream: Vec<u8> = (0..cuts.iter().sum::<usize>()).map(|n| n as u8).collect();
            let mut segments = Vec::new();
            let mut at = 0;
            for cut in cuts {
                segments.push(packet(Sender::Client, iss.wrapping_add(1 + at as u32), ACK, &stream[at..at + cut]));
                at += cut;
            }
            // A permutation from the seed.
            let mut order = seed;
            for index in (1..segments.len()).rev() {
                order = order.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                segments.swap(index, (order >> 33) as usize % (index + 1));
            }
            segments.insert(0, packet(Sender::Client, iss, SYN, b""));
            prop_assert_eq!(read_raw_ip(&segments, Sender::Client).stream, stream);
        }
    }
}
