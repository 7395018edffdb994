//! The flows that a tap selects, as sets that can be compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::tap::Tap;

/// The flows of one tap: for each address family a product of three sets.
pub(crate) struct Selection {
    families: [Product; 2],
}

/// Servers × clients × server ports of one family.
struct Product {
    servers: Ranges,
    clients: Ranges,
    ports: Ranges,
}

/// A set of numbers: inclusive ranges, sorted, merged.
struct Ranges(Vec<(u128, u128)>);

impl Selection {
    pub(crate) fn of(tap: &Tap) -> Selection {
        let ports = || match tap.server_ports.is_empty() {
            true => Ranges::new(vec![(0, u128::from(u16::MAX))]),
            false => {
                Ranges::new(tap.server_ports.iter().map(|r| (u128::from(*r.start()), u128::from(*r.end()))).collect())
            }
        };
        let product = |v4: bool| Product {
            servers: addresses(&tap.servers, v4),
            clients: addresses(&tap.clients, v4),
            ports: ports(),
        };
        Selection { families: [product(true), product(false)] }
    }

    /// Whether no flow at all is selected.
    pub(crate) fn is_empty(&self) -> bool {
        self.families.iter().all(Product::is_empty)
    }

    /// Whether each flow of `other` is one of ours.
    pub(crate) fn covers(&self, other: &Selection) -> bool {
        self.families.iter().zip(&other.families).all(|(ours, theirs)| {
            theirs.is_empty()
                || ours.servers.covers(&theirs.servers)
                    && ours.clients.covers(&theirs.clients)
                    && ours.ports.covers(&theirs.ports)
        })
    }

    /// Client address and server of a flow that both select.
    pub(crate) fn common(&self, other: &Selection) -> Option<(IpAddr, SocketAddr)> {
        self.families.iter().zip(&other.families).enumerate().find_map(|(family, (ours, theirs))| {
            let address = |bits: u128| match family {
                0 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
                _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
            };
            let server = ours.servers.common(&theirs.servers)?;
            let client = ours.clients.common(&theirs.clients)?;
            let port = ours.ports.common(&theirs.ports)?;
            Some((address(client), SocketAddr::new(address(server), port as u16)))
        })
    }
}

impl Product {
    fn is_empty(&self) -> bool {
        self.servers.0.is_empty() || self.clients.0.is_empty() || self.ports.0.is_empty()
    }
}

impl Ranges {
    fn new(mut ranges: Vec<(u128, u128)>) -> Ranges {
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged)
    }

    fn covers(&self, other: &Ranges) -> bool {
        other.0.iter().all(|(first, last)| {
            let next = self.0.partition_point(|(_, end)| end < first);
            self.0.get(next).is_some_and(|(start, end)| start <= first && last <= end)
        })
    }

    /// The lowest number that is in both.
    fn common(&self, other: &Ranges) -> Option<u128> {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some((a, b)), Some((c, d))) = (left.peek(), right.peek()) {
            if a.max(c) <= b.min(d) {
                return Some(*a.max(c));
            }
            if b < d {
                left.next()
            } else {
                right.next()
            };
        }
        None
    }
}

/// The addresses of one family that a list of prefixes means.
fn addresses(prefixes: &[IpNet], v4: bool) -> Ranges {
    if prefixes.is_empty() {
        return Ranges::new(vec![(0, if v4 { u128::from(u32::MAX) } else { u128::MAX })]);
    }
    let range = |net: &IpNet| match net {
        IpNet::V4(net) if v4 => Some((net.network().to_bits().into(), net.broadcast().to_bits().into())),
        IpNet::V6(net) if !v4 => Some((net.network().to_bits(), net.broadcast().to_bits())),
        _ => None,
    };
    Ranges::new(prefixes.iter().filter_map(range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> impl Strategy<Value = Vec<(u128, u128)>> {
        prop::collection::vec((0u128..40, 0u128..8).prop_map(|(a, n)| (a, a + n)), 0..6)
    }

    proptest! {
        #[test]
        fn ranges_are_sets(a in small(), b in small()) {
            let set = |r: &[(u128, u128)]| -> std::collections::BTreeSet<u128> { r.iter().flat_map(|(f, l)| *f..=*l).collect() };
            let (sa, sb) = (set(&a), set(&b));
            let (ra, rb) = (Ranges::new(a), Ranges::new(b));
            prop_assert_eq!(ra.covers(&rb), sb.is_subset(&sa));
            prop_assert_eq!(ra.common(&rb), sa.intersection(&sb).next().copied());
        }
    }

    #[test]
    fn whole_spaces_merge() {
        let halves: Vec<IpNet> = ["::/1", "8000::/1"].map(|net| net.parse().unwrap()).to_vec();
        assert!(addresses(&halves, false).covers(&addresses(&[], false)));
        assert!(addresses(&halves, true).0.is_empty());
    }
}
