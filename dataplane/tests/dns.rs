//! dnsmasq and dig behind the `dns` filter: questions are answered, a zone transfer never reaches the server.

mod common;

use common::{CLIENT_V4, Lab, SERVER_V4, need};

const FILTERED: &str = "[[tap]]\nname = \"dns\"\nserver_port = [53]\n\
    receive = { object = \"dns.bpf.o\", parser = \"parse_dns\", verdict = \"no_transfer\" }\n\
    send = { object = \"dns.bpf.o\", parser = \"parse_dns\" }\n";

#[test]
fn questions_are_answered_and_zones_are_not_transferred() {
    let Some(lab) = Lab::start() else { return };
    need(&["dnsmasq", "dig"]);
    lab.write("dns.bpf.o", tap_engine::shipped::DNS);
    let hosts = lab.write("hosts", "192.0.2.7 www.example.test\n");
    let arguments = [
        "--no-daemon".to_owned(),
        "--user=root".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--log-queries".to_owned(),
        format!("--addn-hosts={}", hosts.display()),
        format!("--listen-address=127.0.0.1,{SERVER_V4}"),
        "--bind-interfaces".to_owned(),
        "--auth-server=ns.example.test,eth0".to_owned(),
        "--auth-zone=example.test,192.0.2.0/24".to_owned(),
        format!("--auth-peer={CLIENT_V4},{SERVER_V4}"),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut server = lab.server.spawn("dnsmasq", "dnsmasq", &arguments);
    common::wait_for_port(&lab.server, &mut server, 53);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));

    let at = format!("@{SERVER_V4}");
    let ask =
        |kind: &str| lab.client.output("dig", &[&at, "+tcp", "+tries=1", "+time=5", "-t", kind, "www.example.test"]);
    let text = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text(ask("A")).contains("192.0.2.7"));
    // The server would transfer the zone: it does to a host on its own side of the filter.
    let transfer = ["+tcp", "+tries=1", "+time=5", "-t", "AXFR", "example.test"];
    let own = text(lab.server.output("dig", &[&[at.as_str()], &transfer[..]].concat()));
    assert!(own.contains("SOA") && own.contains("www.example.test"), "{own}");
    let transfers = || server.log().matches("AXFR").count();
    let before = transfers();
    assert!(before > 0, "{}", server.log());
    for kind in ["AXFR", "ANY"] {
        let refused = text(ask(kind));
        assert!(!refused.contains("192.0.2.7"), "{refused}");
        assert!(
            ["reset", "end of file", "communications error"].iter().any(|word| refused.contains(word)),
            "{refused}"
        );
    }
    assert!(text(ask("A")).contains("192.0.2.7"));
    assert_eq!(transfers(), before);
    socktap.assert_healthy();
}
