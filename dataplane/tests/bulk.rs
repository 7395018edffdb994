//! Much data and many connections. Only that it works is asserted, not how fast.

mod common;

use common::{Iperf, Lab, Nginx, SERVER_V4, SERVERS, need};

const PASS_ALL: &str = "[[tap]]\nname = \"all\"\n";

#[test]
fn one_iperf3_stream_each_way() {
    let Some(lab) = Lab::start() else { return };
    let _iperf = Iperf::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in SERVERS {
        for direction in [&[][..], &["--reverse"]] {
            let server = server.to_string();
            let mut arguments = vec!["-c", &server, "-p", "5201", "-n", "100M", "--json"];
            arguments.extend(direction);
            let report: serde_json::Value =
                serde_json::from_str(&lab.client.run("iperf3", &arguments)).expect("iperf3 writes JSON");
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
            let sent = report["end"]["sum_sent"]["bytes"].as_u64().unwrap_or(0);
            assert!(sent >= 100 << 20, "{server} {direction:?}: sent {sent} bytes\n{report}");
            // iperf3's receiver stops counting when the control connection says that the test is over.
            assert!(received > 90 << 20, "{server} {direction:?}: received {received} bytes\n{report}");
        }
    }
    socktap.assert_healthy();
}

#[test]
fn eight_iperf3_streams_in_both_directions_at_once() {
    let Some(lab) = Lab::start() else { return };
    let _iperf = Iperf::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let server = SERVER_V4.to_string();
    lab.client.run("iperf3", &["-c", &server, "-p", "5201", "-n", "80M", "-P", "4", "--bidir"]);
    socktap.assert_healthy();
}

#[test]
fn four_thousand_short_connections() {
    let Some(lab) = Lab::start() else { return };
    need(&["ab"]);
    let nginx = Nginx::start(&lab);
    nginx.add("small", &[b'x'; 64]);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for url in [format!("http://{}/small", SERVERS[0]), format!("http://[{}]/small", SERVERS[1])] {
        let report = lab.client.run("ab", &["-q", "-n", "4000", "-c", "64", &url]);
        let line = |name: &str| {
            let line = report.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split(':').nth(1).unwrap_or_default().trim().to_owned()
        };
        assert_eq!(line("Complete requests"), "4000", "{report}");
        assert_eq!(line("Failed requests"), "0", "{report}");
        assert!(!report.contains("Non-2xx"), "{report}");
    }
    socktap.assert_healthy();
}
