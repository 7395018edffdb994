//! What the XDP program decides, for frames of all shapes, on both ports.

mod common;

use common::{
    Network, Place, Setup, counted,
    packet::{C_TAG, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, Packet, ROUTING, S_TAG, TCP, UDP},
    skipped,
};
use xdp_redirect::{Cross, Decision, Fragments, Rule, Side, Steering, XdpMode};

/// The taps of the table: bit 0 to 3.
fn rules() -> Vec<Rule> {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().expect("a prefix")).collect();
    vec![
        Rule {
            servers: nets(&["10.0.0.0/24", "fd00::/64"]),
            server_ports: vec![6379..=6379, 7000..=7010],
            clients: Vec::new(),
        },
        // Inside a wider prefix with other ports.
        Rule { servers: nets(&["10.0.0.128/25"]), server_ports: vec![80..=80], clients: nets(&["192.0.2.0/24"]) },
        Rule { servers: nets(&["10.0.0.200/32"]), server_ports: vec![443..=443], clients: Vec::new() },
        Rule { servers: nets(&["203.0.113.0/24"]), server_ports: Vec::new(), clients: nets(&["2001:db8::/32"]) },
    ]
}

fn v4() -> Packet {
    Packet::tcp("192.0.2.7:40000", "10.0.0.5:6379")
}

fn v6() -> Packet {
    Packet::tcp("[2001:db8::7]:40000", "[fd00::5]:6379")
}

fn to(source: &str, destination: &str) -> Packet {
    Packet::tcp(source, destination)
}

/// (name, frame as the client sends it, why)
fn table() -> Vec<(&'static str, Packet, &'static str)> {
    let yes = "selected";
    let no = "not_selected";
    let options = |count: usize| Packet { options: vec![1; count], ..v4() };
    let fragment = |fragment: u16| Packet { fragment, ..v4() };
    let eight_of = |packet: Packet| (0..8).fold(packet, |packet, _| packet.extension(DESTINATION, 8));
    let eight = eight_of(v6());
    let hidden = "unreadable_of_tap";
    let piece = "fragment_of_tap";
    // Addresses that no tap selects.
    let (other4, other6) = (to("192.0.2.7:1", "10.0.1.5:6379"), to("[2001:db8::7]:1", "[fd00:0:0:1::5]:6379"));
    vec![
        ("IPv4", v4(), yes),
        ("IPv6", v6(), yes),
        ("last port of a range", to("192.0.2.7:1", "10.0.0.5:7010"), yes),
        ("port after a range", to("192.0.2.7:1", "10.0.0.5:7011"), no),
        ("server's port on the client's side only", to("192.0.2.7:6379", "10.0.0.5:6380"), no),
        ("server outside its prefix", to("192.0.2.7:1", "10.0.1.5:6379"), no),
        ("IPv6 server outside its prefix", to("[2001:db8::7]:1", "[fd00:0:0:1::5]:6379"), no),
        ("rule of a wider prefix", to("192.0.2.7:1", "10.0.0.129:6379"), yes),
        ("rule of the narrower prefix", to("192.0.2.7:1", "10.0.0.129:80"), yes),
        ("narrower prefix, wrong client", to("192.0.3.7:1", "10.0.0.129:80"), no),
        ("narrower rule, wider address", to("192.0.2.7:1", "10.0.0.5:80"), no),
        ("host prefix", to("192.0.3.7:1", "10.0.0.200:443"), yes),
        ("all three prefixes", to("192.0.2.7:1", "10.0.0.200:80"), yes),
        ("client and server of different families", to("192.0.2.7:1", "203.0.113.5:80"), no),
        ("one VLAN tag", v4().vlan(C_TAG, 5), yes),
        ("QinQ", v4().vlan(S_TAG, 5).vlan(C_TAG, 6), yes),
        ("IPv6 in QinQ", v6().vlan(S_TAG, 5).vlan(C_TAG, 6), yes),
        ("three VLAN tags", v4().vlan(S_TAG, 5).vlan(C_TAG, 6).vlan(C_TAG, 7), "not_ip"),
        ("IPv4 options", options(4), yes),
        ("all IPv4 options", options(40), yes),
        ("IPv4 options of an untapped flow", Packet { options: vec![1; 12], ..to("192.0.2.7:1", "10.0.0.5:1") }, no),
        ("hop-by-hop header", v6().extension(HOP_BY_HOP, 8), yes),
        ("long destination header", v6().extension(DESTINATION, 264), yes),
        ("three headers", v6().extension(HOP_BY_HOP, 16).extension(ROUTING, 24).extension(DESTINATION, 8), yes),
        ("as many headers as we walk", eight.clone(), yes),
        ("more headers than we walk", eight.clone().extension(DESTINATION, 8), hidden),
        ("the same to another port", eight_of(to("[2001:db8::7]:1", "[fd00::5]:1")).extension(DESTINATION, 8), hidden),
        ("the same between other addresses", eight_of(other6.clone()).extension(DESTINATION, 8), "malformed"),
        ("perhaps UDP behind more than we walk", Packet { protocol: UDP, ..eight.extension(DESTINATION, 8) }, hidden),
        ("no length", Packet { no_length: true, ..v6() }, hidden),
        ("no length, a header", Packet { no_length: true, ..v6().extension(HOP_BY_HOP, 8) }, hidden),
        ("no length, other addresses", Packet { no_length: true, ..other6.clone() }, "malformed"),
        ("no length, UDP", Packet { no_length: true, protocol: UDP, ..v6().extension(HOP_BY_HOP, 8) }, "not_tcp"),
        ("port 0", to("192.0.2.7:0", "10.0.0.5:6379"), yes),
        ("to port 0", to("[2001:db8::7]:7000", "[fd00::5]:0"), no),
        ("first fragment", fragment(0x2000), piece),
        ("last fragment", fragment(0x00b9), piece),
        ("fragment in a VLAN", fragment(0x2000).vlan(C_TAG, 5), piece),
        (
            "fragment of another port, which only the first one has",
            Packet { fragment: 0x2000, ..to("192.0.2.7:1", "10.0.0.5:1") },
            piece,
        ),
        ("fragment between other addresses", Packet { fragment: 0x2000, ..other4 }, "fragment"),
        ("may be fragmented, is not", fragment(0), yes),
        ("fragment of UDP", Packet { protocol: UDP, ..fragment(0x2000) }, "fragment"),
        ("fragment of ICMP", Packet { protocol: ICMP, ..fragment(0x00b9) }, "fragment"),
        ("IPv6 fragment", v6().extension(FRAGMENT, 8), piece),
        ("IPv6 fragment behind a header", v6().extension(HOP_BY_HOP, 8).extension(FRAGMENT, 8), piece),
        ("IPv6 fragment behind as many headers as we walk", eight_of(v6()).extension(FRAGMENT, 8), piece),
        ("headers behind an IPv6 fragment header", v6().extension(FRAGMENT, 8).extension(DESTINATION, 8), piece),
        ("an IPv6 fragment of a fragment", v6().extension(FRAGMENT, 8).extension(FRAGMENT, 8), piece),
        ("IPv6 fragment between other addresses", other6.extension(FRAGMENT, 8), "fragment"),
        ("IPv6 fragment of UDP", Packet { protocol: UDP, ..v6().extension(FRAGMENT, 8) }, "fragment"),
        ("IPv6 fragment of ICMPv6", Packet { protocol: ICMPV6, ..v6().extension(FRAGMENT, 8) }, "fragment"),
        ("UDP", Packet { protocol: UDP, ..v4() }, "not_tcp"),
        ("UDP over IPv6", Packet { protocol: UDP, ..v6().extension(HOP_BY_HOP, 8) }, "not_tcp"),
        ("ICMP", Packet { protocol: 1, ..v4() }, "not_tcp"),
        ("IPv6 without a payload", Packet { protocol: 59, ..v6() }, "not_tcp"),
    ]
}

/// An ICMP message from a router to the client of the flow that it quotes.
fn icmp4(kind: u8, quote: &[u8]) -> Packet {
    Packet::icmp("198.51.100.1:0", "192.0.2.7:0", kind, quote)
}

fn icmp6(kind: u8, quote: &[u8]) -> Packet {
    Packet::icmp("[fd00::1]:0", "[2001:db8::7]:0", kind, quote)
}

#[test]
fn taps_that_observe_hold_nothing_back() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (mut steering, _) = Network::attach(&rules(), XdpMode::Auto, Cross::Devmap);
        let fragment = Packet { fragment: 0x2000, ..v4() };
        let hidden = (0..9).fold(v6(), |packet, _| packet.extension(DESTINATION, 8));
        // Of the addresses of taps 1 and 2 too, whose ports it may have.
        let shared = Packet { fragment: 0x2000, ..to("192.0.2.7:40000", "10.0.0.200:6379") };
        let enforced = ["fragment_of_tap", "unreadable_of_tap", "fragment_of_tap"];
        let crosses = ["fragment", "malformed", "fragment"];
        for (observing, whys) in [
            (&[][..], enforced),
            (&[true], [crosses[0], crosses[1], enforced[2]]),
            (&[false, true, true, true], enforced),
            (&[true; 4], crosses),
            (&[false; 4], enforced),
        ] {
            steering.set_observing(observing.iter().copied()).expect("a map");
            for (packet, why) in [&fragment, &hidden, &shared].into_iter().zip(whys) {
                check(&steering, Side::Client, why, &packet.bytes(), why);
                check(&steering, Side::Server, why, &packet.clone().mirrored().bytes(), why);
            }
            // What can be judged is tapped.
            check(&steering, Side::Client, "a segment", &v4().bytes(), "selected");
        }
    });
}

#[test]
fn icmp_errors_about_tcp_are_known_by_type_and_quote() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        // What is tapped does not matter.
        let (steering, _) = Network::attach(&[], XdpMode::Auto, Cross::Devmap);
        let both = |name: &str, packet: Packet, why| {
            check(&steering, Side::Client, name, &packet.bytes(), why);
            check(&steering, Side::Server, name, &packet.mirrored().bytes(), why);
        };
        let (tcp4, tcp6) = (v4().bytes()[14..42].to_vec(), v6().bytes()[14..62].to_vec());
        for kind in 0..=20 {
            let why = if [3, 4, 11, 12].contains(&kind) { "icmp_error" } else { "not_tcp" };
            both(&format!("ICMP {kind}"), icmp4(kind, &tcp4), why);
        }
        for kind in [0, 1, 2, 3, 4, 5, 100, 127, 128, 129, 135, 255] {
            let why = if (1..=4).contains(&kind) { "icmp_error" } else { "not_tcp" };
            both(&format!("ICMPv6 {kind}"), icmp6(kind, &tcp6), why);
        }

        let yes = "icmp_error";
        let no = "not_tcp";
        let quote = |packet: Packet| packet.bytes()[14..].to_vec();
        both("IPv4 options", Packet { options: vec![1; 40], ..icmp4(3, &tcp4) }, yes);
        both("QinQ", icmp4(3, &tcp4).vlan(S_TAG, 5).vlan(C_TAG, 6), yes);
        both("headers before ICMPv6", icmp6(2, &tcp6).extension(HOP_BY_HOP, 16).extension(DESTINATION, 8), yes);
        let eight = (0..8).fold(icmp6(2, &tcp6), |packet, _| packet.extension(DESTINATION, 8));
        both("as many as we walk", eight.clone(), yes);
        both("more than we walk", eight.extension(DESTINATION, 8), "malformed");
        both("a fragment", Packet { fragment: 0x2000, ..icmp4(3, &tcp4) }, "fragment");
        both("about UDP", icmp4(3, &quote(Packet { protocol: UDP, ..v4() })), no);
        both("about UDP over IPv6", icmp6(1, &quote(Packet { protocol: UDP, ..v6() })), no);
        both("about a packet with headers", icmp6(2, &quote(v6().extension(HOP_BY_HOP, 8))), yes);
        both("about an IPv6 fragment", icmp6(2, &quote(v6().extension(FRAGMENT, 8))), no);
        for length in 0..40 {
            both("short quote", icmp4(3, &tcp4[..length.min(28)]), if length < 20 { no } else { yes });
            both("short quote over IPv6", icmp6(2, &tcp6[..length]), no);
        }
        both("enough", icmp6(2, &tcp6[..40]), yes);
        let whole = icmp4(3, &tcp4).bytes();
        for length in 34..62 {
            check(&steering, Side::Client, "cut", &whole[..length], no);
        }
        // The IPv6 protocol number in an IPv4 packet and the other way round.
        both("ICMPv6 over IPv4", Packet { protocol: 58, ..icmp4(3, &tcp4) }, no);
        both("ICMP over IPv6", Packet { protocol: 1, ..icmp6(3, &tcp6) }, no);
    });
}

fn check(steering: &Steering, side: Side, name: &str, frame: &[u8], why: &'static str) {
    let before = counted(steering, side);
    let decision = steering.decide(side, frame).expect("a test run");
    let after = counted(steering, side);
    let changed: Vec<_> = after.iter().filter(|counter| !before.contains(counter)).map(|(name, _)| *name).collect();
    let (what, expected) = match why {
        "selected" => ("no_socket", Decision::Drop),
        "fragment_of_tap" | "unreadable_of_tap" => ("unjudgeable", Decision::Drop),
        _ => ("crossed", Decision::Redirect),
    };
    assert_eq!((changed, decision), (vec![why, what], expected), "{name}, on port {side:?}");
}

#[test]
fn frames_of_all_shapes() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (steering, _) = Network::attach(&rules(), XdpMode::Auto, Cross::Devmap);
        for (name, packet, why) in table() {
            check(&steering, Side::Client, name, &packet.bytes(), why);
            check(&steering, Side::Server, name, &packet.clone().mirrored().bytes(), why);
            // The same frame on the wrong port is not of a tapped flow: here the server is the other address.
            let wrong = match why {
                "selected" => "not_selected",
                "fragment_of_tap" => "fragment",
                "unreadable_of_tap" => "malformed",
                other => other,
            };
            check(&steering, Side::Server, name, &packet.bytes(), wrong);
        }
    });
}

#[test]
fn fragments_cross_where_the_ops_file_says_so() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (steering, _) = Network::attach_with(&rules(), XdpMode::Auto, Cross::Devmap, Fragments::Cross);
        for (name, packet, why) in table() {
            let why = if why == "fragment_of_tap" { "fragment" } else { why };
            check(&steering, Side::Client, name, &packet.bytes(), why);
            check(&steering, Side::Server, name, &packet.mirrored().bytes(), why);
        }
    });
}

#[test]
fn frames_cut_short_cannot_be_judged() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (steering, _) = Network::attach(&rules(), XdpMode::Auto, Cross::Devmap);
        let v6 = v6().vlan(C_TAG, 5).extension(HOP_BY_HOP, 16);
        // As far as the TCP ports, and not a byte less. (A test run takes no frame below 14 bytes.)
        for (whole, addresses, ports) in [(v4().bytes(), 14 + 20, 4), (v6.bytes(), 18 + 40, 16 + 4)] {
            let ports = addresses + ports;
            for length in 15..ports {
                let name = format!("{length} of {ports}");
                let why = if length < addresses { "malformed" } else { "unreadable_of_tap" };
                check(&steering, Side::Client, &name, &whole[..length], why);
                // Here the addresses are the wrong way round.
                check(&steering, Side::Server, &name, &whole[..length], "malformed");
            }
            check(&steering, Side::Client, "enough", &whole[..ports], "selected");
        }
        let fragment = v6.extension(FRAGMENT, 8).bytes();
        check(&steering, Side::Client, "cut fragment header", &fragment[..18 + 40 + 16 + 1], "unreadable_of_tap");
        check(&steering, Side::Client, "fragment header", &fragment[..18 + 40 + 16 + 2], "fragment_of_tap");

        let mut bad = v4().bytes();
        bad[14] = 0x44; // a header length of 16
        check(&steering, Side::Client, "short IPv4 header", &bad, "unreadable_of_tap");
        bad[23] = UDP;
        check(&steering, Side::Client, "short IPv4 header of UDP", &bad, "malformed");
        bad[23] = TCP;
        bad[14] = 0x65;
        check(&steering, Side::Client, "IPv6 in an IPv4 frame", &bad, "malformed");
        bad[14] = 0x4f; // options that are not there
        check(&steering, Side::Client, "long IPv4 header", &bad[..60], "unreadable_of_tap");
        let mut arp = v4().bytes();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        check(&steering, Side::Client, "ARP", &arp, "not_ip");
    });
}

#[test]
fn no_rule_selects_nothing_and_an_empty_rule_all() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        for (rules, why) in [(vec![], "not_selected"), (vec![Rule::default()], "selected")] {
            let (steering, _) = Network::attach(&rules, XdpMode::Auto, Cross::Devmap);
            let none = rules.is_empty();
            for side in Side::ALL {
                check(&steering, side, "IPv4", &v4().bytes(), why);
                check(&steering, side, "IPv6", &v6().bytes(), why);
                let piece = if none { "fragment" } else { "fragment_of_tap" };
                check(&steering, side, "fragment", &v6().extension(FRAGMENT, 8).bytes(), piece);
                let hidden = if none { "malformed" } else { "unreadable_of_tap" };
                check(&steering, side, "no length", &Packet { no_length: true, ..v6() }.bytes(), hidden);
            }
        }
    });
}

#[test]
fn rule_64_works_and_rule_65_is_refused() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let mut rules: Vec<Rule> =
            (0..64).map(|port| Rule { server_ports: vec![port..=port], ..Rule::default() }).collect();
        let (steering, ports) = Network::attach(&rules, XdpMode::Auto, Cross::Devmap);
        check(&steering, Side::Client, "last", &to("192.0.2.7:1", "10.0.0.5:63").bytes(), "selected");
        check(&steering, Side::Client, "none", &to("192.0.2.7:1", "10.0.0.5:64").bytes(), "not_selected");
        drop(steering);
        rules.push(Rule::default());
        let error =
            Steering::attach(&ports[0], &ports[1], &rules, XdpMode::Auto, Cross::Devmap, Fragments::Drop).unwrap_err();
        assert!(error.to_string().contains("65 taps"), "{error}");
    });
}
