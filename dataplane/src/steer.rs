//! From a frame's headers to what happens to it: to the tap, across to the other port, or a named drop.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

pub use config::Fragments;
use ipnet::IpNet;
use tcp::wire::{self, Checksum, Concealed, Headers, IcmpError, Parsed};

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
    /// The tap passes everything: what may be its and cannot be judged goes across.
    pub observes: bool,
}

impl Selection {
    /// Whether a flow between these two ends is taken.
    pub fn matches(&self, client: SocketAddr, server: SocketAddr) -> bool {
        (self.server_ports.is_empty() || self.server_ports.iter().any(|ports| ports.contains(&server.port())))
            && self.matches_addresses(client.ip(), server.ip())
    }

    /// Whether flows between these two addresses are taken, if they have the right port.
    pub fn matches_addresses(&self, client: IpAddr, server: IpAddr) -> bool {
        let within = |prefixes: &[IpNet], address: IpAddr| {
            prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.contains(&address))
        };
        within(&self.servers, server) && within(&self.clients, client)
    }

    /// Whether what is concealed in a frame that came in on port `from` may be of a flow that is taken.
    fn may_match(&self, from: Side, concealed: &Concealed) -> bool {
        let (source, destination) = (concealed.source, concealed.destination);
        let (client, server) = if from == Side::Client { (source, destination) } else { (destination, source) };
        match concealed.ports {
            None => self.matches_addresses(client, server),
            Some(ports) => {
                let (client_port, server_port) = if from == Side::Client { ports } else { (ports.1, ports.0) };
                self.matches(SocketAddr::new(client, client_port), SocketAddr::new(server, server_port))
            }
        }
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
///
/// What is no segment for us may be one for its receiver, which knows how to put fragments together and may be less strict. If
/// a tap whose verdict is obeyed may select that, it is dropped, since it would go around the verdict; `fragments` has the last word about fragments.
/// The XDP program does the same with what it sees.
pub fn steer<'a>(
    from: Side,
    frame: &mut [u8],
    accept_partial: bool,
    fragments: Fragments,
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
        Ok(Parsed::Other) | Err(_) => {
            if let Some(concealed) = wire::find_concealed(frame) {
                if concealed.is_fragment && fragments == Fragments::Cross {
                    return forward(frame);
                }
                if selections.any(|selection| !selection.observes && selection.may_match(from, &concealed)) {
                    return Err(if concealed.is_fragment { DropReason::Fragment } else { DropReason::Unreadable });
                }
            } else if let Some(error) = wire::parse_icmp_error(frame) {
                // An error that travels the way of the quoted segment is nobody's answer: read like this, it is of no flow.
                let key = FlowKey::of_icmp_error(from, &error);
                if selections.any(|selection| selection.matches(key.client, key.server)) {
                    return Ok(Steered::Icmp { key, sender: from.other(), error });
                }
            }
            return forward(frame);
        }
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
            observes: false,
        };
        assert!(narrow.matches(client, server));
        assert!(!narrow.matches(server, client));
        assert!(!narrow.matches("10.3.0.5:4000".parse().unwrap(), server));
        assert!(!narrow.matches(client, "10.2.0.9:6380".parse().unwrap()));
        assert!(!narrow.matches(client, "[fd00::1]:6379".parse().unwrap()));
    }

    /// A TCP segment with this IP header, between 10.1.0.5:4000 and 10.2.0.9:6379, without good checksums.
    fn ipv4(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9]);
        change(&mut frame);
        frame.extend([15, 160, 0x18, 0xeb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 255, 255, 0, 0, 0, 0]);
        frame
    }

    /// The same between fd00:1::5 and fd00:2::9, with these extension headers (their numbers), each of 8 bytes.
    fn ipv6(headers: &[u8], protocol: u8) -> Vec<u8> {
        let chain = [headers, &[protocol]].concat();
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
        frame.extend([0, 20 + 8 * headers.len() as u8, chain[0], 64]);
        for ip in ["fd00:1::5", "fd00:2::9"] {
            frame.extend(ip.parse::<std::net::Ipv6Addr>().unwrap().octets());
        }
        frame.extend(chain[1..].iter().flat_map(|next| [*next, 0, 0, 0, 0, 0, 0, 0]));
        frame.extend([15, 160, 0x18, 0xeb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 255, 255, 0, 0, 0, 0]);
        frame
    }

    /// What becomes of a frame from the client: None: it crosses.
    fn dropped(frame: &[u8], fragments: Fragments, selections: &[&Selection]) -> Option<DropReason> {
        match steer(Side::Client, &mut frame.to_vec(), false, fragments, selections.iter().copied()) {
            Ok(Steered::Forward) => None,
            Err(reason) => Some(reason),
            Ok(other) => panic!("{other:?}"),
        }
    }

    fn selection(clients: &[&str], servers: &[&str], server_port: u16) -> Selection {
        let nets = |list: &[&str]| list.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let server_ports = [server_port..=server_port].to_vec();
        Selection { servers: nets(servers), server_ports, clients: nets(clients), observes: false }
    }

    #[test]
    fn what_a_tap_may_select_does_not_cross_unjudged() {
        let fragment = ipv4(|frame| frame[20] = 0x20);
        let atomic = ipv6(&[44], 6);
        let short = ipv4(|frame| frame[14] = 0x44);
        let many = ipv6(&[60; 9], 6);
        let mut jumbogram = ipv6(&[0], 6);
        jumbogram[18..20].fill(0);
        let cut = ipv4(|_| {})[..36].to_vec();

        let selected = selection(&["10.1.0.0/16", "fd00:1::/64"], &["10.2.0.0/16", "fd00:2::/64"], 6379);
        // Which port it is cannot be told, so any that is selected counts.
        let other_port = Selection { server_ports: vec![80..=80], ..selected.clone() };
        let other_client = selection(&["10.3.0.0/16", "fd00:3::/64"], &["10.2.0.0/16", "fd00:2::/64"], 6379);
        let other_server = selection(&["10.1.0.0/16", "fd00:1::/64"], &["10.1.0.0/16", "fd00:1::/64"], 6379);
        let cases = [
            (&fragment, DropReason::Fragment),
            (&atomic, DropReason::Fragment),
            (&short, DropReason::Unreadable),
            (&many, DropReason::Unreadable),
            (&jumbogram, DropReason::Unreadable),
            (&cut, DropReason::Unreadable),
        ];
        for (frame, reason) in cases {
            for selections in [&[&selected][..], &[&other_port], &[&other_client, &selected]] {
                assert_eq!(dropped(frame, Fragments::Drop, selections), Some(reason), "{frame:02x?}");
                let if_they_cross = Some(reason).filter(|reason| *reason != DropReason::Fragment);
                assert_eq!(dropped(frame, Fragments::Cross, selections), if_they_cross, "{frame:02x?}");
            }
            let observing = Selection { observes: true, ..selected.clone() };
            assert_eq!(dropped(frame, Fragments::Drop, &[&observing]), None, "{frame:02x?}");
            assert_eq!(dropped(frame, Fragments::Drop, &[&observing, &other_port]), Some(reason), "{frame:02x?}");
            for selections in [&[][..], &[&other_client], &[&other_server], &[&other_client, &other_server]] {
                assert_eq!(dropped(frame, Fragments::Drop, selections), None, "{frame:02x?}");
            }
        }

        // The port is there, whatever else is wrong: a checksum, a length.
        for frame in [ipv4(|_| {}), ipv4(|frame| frame[17] = 30), ipv6(&[43, 60], 6)[..60 + 14].to_vec()] {
            assert_eq!(dropped(&frame, Fragments::Drop, &[&selected]), Some(DropReason::Unreadable), "{frame:02x?}");
            assert_eq!(dropped(&frame, Fragments::Drop, &[&other_port]), None, "{frame:02x?}");
        }
        // The tap's port is the server's.
        let reversed = selection(&["10.2.0.0/16"], &["10.1.0.0/16"], 4000);
        let bad = ipv4(|_| {});
        let steered =
            |from| steer(from, &mut bad.clone(), false, Fragments::Drop, [&reversed].into_iter()).map(|_| "crosses");
        assert_eq!(steered(Side::Server), Err(DropReason::Unreadable));
        assert_eq!(steered(Side::Client), Ok("crosses"));
    }

    #[test]
    fn what_is_not_tcp_crosses_however_it_looks() {
        let all = Selection::default();
        for protocol in [1, 17, 47, 132] {
            let change = |at: usize, value: u8| {
                ipv4(move |frame| {
                    frame[23] = protocol;
                    frame[at] = value;
                })
            };
            for frame in [change(20, 0x20), change(21, 9), change(14, 0x44), change(17, 19), change(16, 9)] {
                assert_eq!(dropped(&frame, Fragments::Drop, &[&all]), None, "{frame:02x?}");
            }
        }
        for protocol in [17, 58, 132] {
            for headers in [&[44][..], &[0, 44], &[60; 8]] {
                let frame = ipv6(headers, protocol);
                assert_eq!(dropped(&frame, Fragments::Drop, &[&all]), None, "{frame:02x?}");
            }
        }
        let arp = [&[255; 12][..], &[8, 6], &[0; 28]].concat();
        for frame in [&arp[..], &[], &arp[..13]] {
            assert_eq!(dropped(frame, Fragments::Drop, &[&all]), None);
        }
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
