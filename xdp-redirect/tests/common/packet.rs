//! Frames for the tests, from parts.

use std::net::{IpAddr, SocketAddr};

/// What stands between the Ethernet header and the payload. `port` fields are kept apart, so that a frame can be
/// mirrored.
#[derive(Clone)]
pub struct Packet {
    /// (protocol of the tag, VLAN id), outermost first.
    pub vlan: Vec<(u16, u16)>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// IPv4: protocol; IPv6: the last next-header.
    pub protocol: u8,
    /// IPv4 options: a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv4: flags and offset.
    pub fragment: u16,
    /// IPv6: (type of header, its bytes without the next-header field).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv6: the length is given as 0.
    pub no_length: bool,
    pub payload: Vec<u8>,
}

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const DESTINATION: u8 = 60;
pub const C_TAG: u16 = 0x8100;
pub const S_TAG: u16 = 0x88a8;

impl Packet {
    pub fn tcp(source: &str, destination: &str) -> Packet {
        Packet {
            vlan: Vec::new(),
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol: TCP,
            options: Vec::new(),
            fragment: 0x4000,
            extensions: Vec::new(),
            no_length: false,
            payload: vec![0x55; 10],
        }
    }

    /// An ICMP message of this type that quotes a packet; ICMPv6 between IPv6 addresses. Its checksum is wrong.
    pub fn icmp(source: &str, destination: &str, kind: u8, quote: &[u8]) -> Packet {
        let mut packet = Packet::tcp(source, destination);
        // Type and code stand where ports would; in both, so that a mirrored message has the same type.
        packet.source.set_port(u16::from(kind) << 8);
        packet.destination.set_port(u16::from(kind) << 8);
        let protocol = if packet.source.is_ipv4() { ICMP } else { ICMPV6 };
        Packet { protocol, payload: quote.to_vec(), ..packet }
    }

    pub fn vlan(mut self, protocol: u16, id: u16) -> Packet {
        self.vlan.push((protocol, id));
        self
    }

    /// `length`: bytes of the whole header, a multiple of 8.
    pub fn extension(mut self, kind: u8, length: usize) -> Packet {
        let mut bytes = vec![0; length - 1];
        bytes[0] = u8::try_from(length / 8 - 1).expect("a short header");
        self.extensions.push((kind, bytes));
        self
    }

    /// The answer's addresses.
    pub fn mirrored(mut self) -> Packet {
        std::mem::swap(&mut self.source, &mut self.destination);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for (protocol, id) in &self.vlan {
            frame.extend(protocol.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        let transport = self.transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45 + u8::try_from(self.options.len() / 4).expect("short"), 0]);
                let length = 20 + self.options.len() + transport.len();
                frame.extend(u16::try_from(length).expect("short").to_be_bytes());
                frame.extend([0, 7]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(&self.options);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
                kinds.push(self.protocol);
                let extensions: Vec<u8> = (self.extensions.iter().zip(&kinds[1..]))
                    .flat_map(|((_, bytes), next)| std::iter::once(*next).chain(bytes.iter().copied()))
                    .collect();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let length = if self.no_length { 0 } else { extensions.len() + transport.len() };
                frame.extend(u16::try_from(length).expect("short").to_be_bytes());
                frame.extend([kinds[0], 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(extensions);
            }
            _ => panic!("two families"),
        }
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        if self.protocol == TCP {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            bytes.extend([0, 8, 0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }
}
