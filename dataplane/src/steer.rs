//! From a frame's headers to what happens to it: to the tap, across to the other port, or a named drop.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use tcp::wire::{self, Checksum, Headers, IcmpError, Parsed};

use crate::counters::DropReason;

/// One of the two ports, and the side of a flow that faces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Towards the clients.
    Client = 0,
    /// Towards the servers.
    Server = 1,
}

impl Side {
    /// Both sides, in the order of the arrays that are indexed by `side as usize`.
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    /// The side across.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The word for it in the ops file, counters and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Names a flow; the same for both directions, since a port faces either clients or servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Address and port of the end on the client port.
    pub client: SocketAddr,
    /// Address and port of the end on the server port.
    pub server: SocketAddr,
    /// VLAN ids, outermost first; 0 where there is no tag.
    pub vlan: [u16; 2],
}

impl FlowKey {
    /// The key of a segment that came in on port `from`.
    pub fn new(from: Side, headers: &Headers) -> Self {
        let (client, server) = match from {
            Side::Client => (headers.source, headers.destination),
            Side::Server => (headers.destination, headers.source),
        };
        Self { client, server, vlan: headers.vlan }
    }

    /// The key of the flow that an ICMP error is about which came in on port `from`: it travels to the host that had sent the
    /// quoted segment, so that is the end on the other port.
    pub fn of_icmp_error(from: Side, error: &IcmpError) -> Self {
        let (client, server) = match from {
            Side::Client => (error.destination, error.source),
            Side::Server => (error.source, error.destination),
        };
        Self { client, server, vlan: error.vlan }
    }

    /// Distinct keys give distinct bytes: input for a keyed hash.
    pub(crate) fn to_bytes(self) -> [u8; 41] {
        let mut bytes = [0; 41];
        for (chunk, end) in bytes.chunks_exact_mut(18).zip([self.client, self.server]) {
            match end.ip() {
                IpAddr::V4(ip) => chunk[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => chunk[..16].copy_from_slice(&ip.octets()),
            }
            chunk[16..].copy_from_slice(&end.port().to_be_bytes());
        }
        bytes[36..38].copy_from_slice(&self.vlan[0].to_be_bytes());
        bytes[38..40].copy_from_slice(&self.vlan[1].to_be_bytes());
        bytes[40] = u8::from(self.client.is_ipv6());
        bytes
    }
}

/// Which flows a tap takes. An empty list takes all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Prefixes of the server's address.
    pub servers: Vec<IpNet>,
    /// Ports of the server.
    pub server_ports: Vec<RangeInclusive<u16>>,
    /// Prefixes of the client's address.
    pub clients: Vec<IpNet>,
}

impl Selection {
    /// Whether a flow between these two ends is taken.
    pub fn matches(&self, client: SocketAddr, server: SocketAddr) -> bool {
        fn within(prefixes: &[IpNet], address: IpAddr) -> bool {
            prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.contains(&address))
        }
        (self.server_ports.is_empty() || self.server_ports.iter().any(|ports| ports.contains(&server.port())))
            && within(&self.servers, server.ip())
            && within(&self.clients, client.ip())
    }
}

/// What becomes of a frame.
#[derive(Debug)]
pub enum Steered {
    /// A TCP segment with a good checksum whose flow tap number `tap` takes.
    Tap {
        /// Index of the first tap that selects the flow.
        tap: usize,
        /// The flow.
        key: FlowKey,
        /// The parsed headers.
        headers: Headers,
    },
    /// An ICMP error about a segment of a flow that a tap takes. It goes across like [`Steered::Forward`]; the flow is to
    /// hear of it on its way.
    Icmp {
        /// The flow.
        key: FlowKey,
        /// The end whose host had sent the quoted segment, by its addresses: the port that the error goes out of. On the
        /// wire, the segment came out of our connection on the other side.
        sender: Side,
        /// What the error says. Not believed yet: see [`IcmpError`].
        error: IcmpError,
    },
    /// No tap's business: out of the other port, as it is.
    Forward,
}

/// Decides about a frame that came in on port `from`. `accept_partial`: the port's device hands up frames of a sender on
/// the same machine before their checksum was completed; such a checksum is taken as good, and completed in a frame that
/// goes across.
pub fn steer<'a>(
    from: Side,
    frame: &mut [u8],
    accept_partial: bool,
    mut selections: impl Iterator<Item = &'a Selection>,
) -> Result<Steered, DropReason> {
    let forward = |frame: &mut [u8]| {
        if accept_partial {
            wire::complete_partial_checksum(frame);
        }
        Ok(Steered::Forward)
    };
    let headers = match wire::parse(frame) {
        Ok(Parsed::Tcp(headers)) => headers,
        Ok(Parsed::Other) => {
            if let Some(error) = wire::parse_icmp_error(frame) {
                // An error that travels the way of the quoted segment is nobody's answer: read like this, it is of no flow.
                let key = FlowKey::of_icmp_error(from, &error);
                if selections.any(|selection| selection.matches(key.client, key.server)) {
                    return Ok(Steered::Icmp { key, sender: from.other(), error });
                }
            }
            return forward(frame);
        }
        // What cannot be parsed cannot be a flow of ours: the receiver judges it, as it would without us.
        Err(_) => return forward(frame),
    };
    let key = FlowKey::new(from, &headers);
    let Some(tap) = selections.position(|selection| selection.matches(key.client, key.server)) else {
        return forward(frame);
    };
    match wire::verify_tcp_checksum(frame, &headers) {
        Checksum::Valid => {}
        Checksum::Partial if accept_partial => {}
        Checksum::Partial | Checksum::Invalid => return Err(DropReason::BadChecksum),
    }
    Ok(Steered::Tap { tap, key, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_selection_takes_all_and_each_list_narrows() {
        let client: SocketAddr = "10.1.0.5:4000".parse().unwrap();
        let server: SocketAddr = "10.2.0.9:6379".parse().unwrap();
        let all = Selection::default();
        assert!(all.matches(client, server));
        let narrow = Selection {
            servers: vec!["10.2.0.0/24".parse().unwrap()],
            server_ports: vec![6379..=6379, 7000..=7010],
            clients: vec!["10.1.0.0/16".parse().unwrap()],
        };
        assert!(narrow.matches(client, server));
        assert!(!narrow.matches(server, client));
        assert!(!narrow.matches("10.3.0.5:4000".parse().unwrap(), server));
        assert!(!narrow.matches(client, "10.2.0.9:6380".parse().unwrap()));
        assert!(!narrow.matches(client, "[fd00::1]:6379".parse().unwrap()));
    }

    #[test]
    fn keys_of_the_two_families_never_share_bytes() {
        let v4 = FlowKey { client: "0.0.0.0:1".parse().unwrap(), server: "0.0.0.0:2".parse().unwrap(), vlan: [0; 2] };
        let v6 = FlowKey { client: "[::]:1".parse().unwrap(), server: "[::]:2".parse().unwrap(), vlan: [0; 2] };
        assert_ne!(v4.to_bytes(), v6.to_bytes());
        assert_ne!(v4.to_bytes(), FlowKey { vlan: [7, 0], ..v4 }.to_bytes());
        assert_ne!(FlowKey { vlan: [0, 7], ..v4 }.to_bytes(), FlowKey { vlan: [7, 0], ..v4 }.to_bytes());
    }
}
