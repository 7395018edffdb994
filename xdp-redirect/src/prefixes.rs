//! Rules, and the values of the prefix maps that they turn into.

use std::{collections::BTreeMap, ops::RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The most rules that the XDP program can tell apart: the bits of a mask.
pub const MAX_RULES: usize = 64;

/// The most different prefixes in one prefix map (server or client, IPv4 or IPv6).
pub const MAX_PREFIXES: usize = 4096;

/// What one tap selects: TCP between one of these servers on one of these ports and one of these clients.
/// An empty list means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Prefixes of the server's address.
    pub servers: Vec<IpNet>,
    /// The server's TCP ports.
    pub server_ports: Vec<RangeInclusive<u16>>,
    /// Prefixes of the client's address.
    pub clients: Vec<IpNet>,
}

/// The contents of a pair of prefix maps: each prefix with the set of rules (bit n = rule n) that cover it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    pub(crate) v4: Vec<(Ipv4Net, u64)>,
    pub(crate) v6: Vec<(Ipv6Net, u64)>,
}

impl Prefixes {
    /// Of the list that `select` takes from each rule.
    ///
    /// A trie returns the longest match only. So the value of a prefix holds the rules of all shorter prefixes that
    /// cover it as well.
    pub(crate) fn of(rules: &[Rule], select: impl Fn(&Rule) -> &[IpNet]) -> Prefixes {
        let all = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let mut own: BTreeMap<IpNet, u64> = BTreeMap::new();
        for (rule, bit) in rules.iter().zip(0..) {
            let list = select(rule);
            for prefix in if list.is_empty() { &all } else { list } {
                *own.entry(prefix.trunc()).or_default() |= 1u64 << bit;
            }
        }

        let mut result = Prefixes::default();
        for prefix in own.keys() {
            let covering = own.iter().filter(|(shorter, _)| shorter.contains(prefix));
            let mask = covering.fold(0, |mask, (_, bits)| mask | bits);
            match *prefix {
                IpNet::V4(prefix) => result.v4.push((prefix, mask)),
                IpNet::V6(prefix) => result.v6.push((prefix, mask)),
            }
        }
        result
    }
}

/// The set of rules for each of the 65,536 server ports.
pub(crate) fn port_masks(rules: &[Rule]) -> Vec<u64> {
    let mut masks = vec![0; usize::from(u16::MAX) + 1];
    for (rule, bit) in rules.iter().zip(0..) {
        let all = [0..=u16::MAX];
        let ranges = if rule.server_ports.is_empty() { &all } else { rule.server_ports.as_slice() };
        for port in ranges.iter().cloned().flatten() {
            masks[usize::from(port)] |= 1u64 << bit;
        }
    }
    masks
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn rule(servers: &[&str]) -> Rule {
        let servers = servers.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Rule { servers, ..Rule::default() }
    }

    #[test]
    fn a_prefix_has_the_rules_of_those_that_cover_it() {
        let rules = [rule(&["10.0.0.0/8"]), rule(&["10.1.0.0/16", "fd00::/8"]), rule(&[])];
        let prefixes = Prefixes::of(&rules, |rule| &rule.servers);
        let v4: Vec<(String, u64)> = prefixes.v4.iter().map(|(net, mask)| (net.to_string(), *mask)).collect();
        assert_eq!(v4, [("0.0.0.0/0".into(), 0b100), ("10.0.0.0/8".into(), 0b101), ("10.1.0.0/16".into(), 0b111)]);
        let v6: Vec<(String, u64)> = prefixes.v6.iter().map(|(net, mask)| (net.to_string(), *mask)).collect();
        assert_eq!(v6, [("::/0".into(), 0b100), ("fd00::/8".into(), 0b110)]);
    }

    #[test]
    fn host_bits_do_not_make_another_prefix() {
        let prefixes = Prefixes::of(&[rule(&["10.1.2.3/8"]), rule(&["10.0.0.0/8"])], |rule| &rule.servers);
        assert_eq!(prefixes.v4, [("10.0.0.0/8".parse().unwrap(), 0b11)]);
    }

    #[test]
    fn ports_are_ranges_or_all() {
        let some = Rule { server_ports: vec![80..=80, 7000..=7001, 65535..=65535], ..Rule::default() };
        let masks = port_masks(&[some, Rule::default()]);
        assert_eq!(masks.len(), 65536);
        for port in [80, 7000, 7001, 65535] {
            assert_eq!(masks[port], 0b11, "port {port}");
        }
        for port in [0, 79, 81, 6999, 7002] {
            assert_eq!(masks[port], 0b10, "port {port}");
        }
    }

    proptest! {
        // The longest match's mask equals the union over all rules that contain the address.
        #[test]
        fn longest_match_equals_union(
            nets in prop::collection::vec((any::<[u8; 2]>(), 0u8..=32), 0..24),
            address in any::<[u8; 2]>(),
        ) {
            let address = IpAddr::from([address[0] & 3, address[1] & 3, 0, 0]);
            let rules: Vec<Rule> = nets
                .iter()
                .map(|(bytes, length)| Rule {
                    servers: vec![Ipv4Net::new_assert([bytes[0] & 3, bytes[1] & 3, 0, 0].into(), *length).into()],
                    ..Rule::default()
                })
                .collect();
            let expected = rules.iter().zip(0..).fold(0u64, |mask, (rule, bit)| {
                mask | (u64::from(rule.servers[0].contains(&address)) << bit)
            });
            let prefixes = Prefixes::of(&rules, |rule| &rule.servers);
            let longest = prefixes
                .v4
                .iter()
                .filter(|(net, _)| IpNet::V4(*net).contains(&address))
                .max_by_key(|(net, _)| net.prefix_len());
            prop_assert_eq!(longest.map_or(0, |(_, mask)| *mask), expected);
        }
    }
}
