//! How connections and socktap itself begin and end.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use common::{Lab, LabOptions, Nginx, SERVER_V4, SERVERS, STEP_LIMIT, connect_from, listen_in, need, wait_until};
use nix::sys::signal::Signal;

const PASS_ALL: &str = "[[tap]]\nname = \"all\"\n";

/// A second or so after which a SYN would be sent again: an answer that needs no second SYN comes sooner.
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn a_refused_port_refuses_at_once() {
    let Some(lab) = Lab::start() else { return };
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in SERVERS {
        let address = SocketAddr::new(server, 4445);
        // The neighbours may have to be learnt first; that is no part of the answer.
        let _ = connect_from(&lab.client, address, STEP_LIMIT);
        for _ in 0..20 {
            let error = connect_from(&lab.client, address, AT_ONCE).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{server}: {error}");
        }
    }
    socktap.assert_healthy();
}

#[test]
fn a_dead_server_stays_silent() {
    let Some(lab) = Lab::start() else { return };
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for dead in ["10.77.0.99", "fd77::99"] {
        // An address whose machine is gone.
        lab.client.run("ip", &["neigh", "add", dead, "lladdr", "02:00:00:00:00:63", "dev", "eth0", "nud", "permanent"]);
        let address = SocketAddr::new(dead.parse().expect("an address"), 80);
        let error = connect_from(&lab.client, address, Duration::from_millis(2500)).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{dead}: {error}");
    }
    socktap.assert_healthy();
}

#[test]
fn a_reset_reaches_the_other_end() {
    let Some(lab) = Lab::start() else { return };
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in SERVERS {
        for client_resets in [true, false] {
            let address = SocketAddr::new(server, 4446);
            let listener = listen_in(&lab.server, address);
            let mut client = connect_from(&lab.client, address, STEP_LIMIT).expect("connect");
            let (mut served, _) = listener.accept().expect("accept");
            served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
            // Closing with unread bytes resets (RFC 2525, section 2.17).
            for end in [&mut client, &mut served] {
                end.write_all(b"unread").expect("write");
            }
            for end in [&client, &served] {
                wait_until("the bytes to arrive", STEP_LIMIT, || end.peek(&mut [0; 6]).is_ok_and(|count| count == 6));
            }
            let (gone, mut left) = if client_resets { (client, served) } else { (served, client) };
            drop(gone);
            let mut bytes = Vec::new();
            let error = left.read_to_end(&mut bytes).expect_err("reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{server}, client resets: {client_resets}: {error}");
        }
    }
    socktap.assert_healthy();
}

/// Starts socktap with one open connection, ends it with `signal`, and looks at what is left.
fn a_signal_ends_it_cleanly(signal: Signal) {
    let Some(lab) = Lab::start() else { return };
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    assert!(lab.xdp_attached(), "no XDP program while it runs:\n{}", lab.wire.links());
    let address = SocketAddr::new(SERVER_V4, 4447);
    let listener = listen_in(&lab.server, address);
    let mut client = connect_from(&lab.client, address, STEP_LIMIT).expect("connect");
    let (mut served, _) = listener.accept().expect("accept");
    served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");

    socktap.process.signal(signal);
    let status = socktap.process.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "after {signal}; the log:\n{}", socktap.process.log());
    assert!(!lab.xdp_attached(), "an XDP program is left:\n{}", lab.wire.links());
    // Flows that end with socktap are reset, not left hanging.
    for (end, stream) in [("client", &mut client), ("server", &mut served)] {
        let error = stream.read(&mut [0; 8]).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{end} after {signal}: {error}");
    }
}

#[test]
fn sigterm_ends_it_cleanly() {
    a_signal_ends_it_cleanly(Signal::SIGTERM);
}

#[test]
fn sigint_ends_it_cleanly() {
    a_signal_ends_it_cleanly(Signal::SIGINT);
}

#[test]
fn sigkill_leaves_no_program_behind_and_it_can_start_again() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    nginx.add("hello", b"hello\n");
    let url = format!("http://{SERVER_V4}/hello");
    for _ in 0..3 {
        let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
        assert_eq!(lab.client.run("curl", &["-sS", "--fail", &url]), "hello\n");
        socktap.process.signal(Signal::SIGKILL);
        socktap.process.wait(STEP_LIMIT);
        // The kernel takes the links down with the last descriptor of the process.
        wait_until("the XDP programs to be gone", Duration::from_secs(5), || !lab.xdp_attached());
    }
}

#[test]
fn native_and_skb_mode_both_work() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    nginx.add("hello", b"hello\n");
    for (mode, shown) in [("native", " xdp "), ("skb", " xdpgeneric ")] {
        let mut socktap = lab.socktap(&lab.ops(&format!("xdp_mode = \"{mode}\""), PASS_ALL));
        let links = lab.wire.links();
        assert_eq!(links.matches(shown).count(), 2, "xdp_mode {mode}:\n{links}");
        for server in SERVERS {
            let url = format!("http://{}/hello", SocketAddr::new(server, 80));
            assert_eq!(lab.client.run("curl", &["-sS", "--fail", &url]), "hello\n", "xdp_mode {mode}");
        }
        socktap.assert_healthy();
        assert_eq!(socktap.terminate().code(), Some(0));
    }
}

/// Ports whose driver refuses native XDP: veth does when the peer has more tx queues than the port has rx queues.
fn without_native_xdp() -> Option<Lab> {
    Lab::start_with(LabOptions { wire_queues: Some(1), host_queues: Some(2), ..LabOptions::default() })
}

#[test]
fn auto_falls_back_to_skb_mode_and_says_so() {
    let Some(lab) = without_native_xdp() else { return };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    nginx.add("hello", b"hello\n");
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let links = lab.wire.links();
    assert!(links.contains(" xdpgeneric "), "{links}");
    let log = socktap.process.log();
    assert!(log.contains("WARN") && log.contains("skb"), "the log says nothing of the fall-back:\n{log}");
    for server in SERVERS {
        let url = format!("http://{}/hello", SocketAddr::new(server, 80));
        assert_eq!(lab.client.run("curl", &["-sS", "--fail", &url]), "hello\n");
    }
    socktap.assert_healthy();
}

#[test]
fn native_mode_that_the_driver_refuses_is_an_error() {
    let Some(lab) = without_native_xdp() else { return };
    let file = lab.write("ops.toml", lab.ops("xdp_mode = \"native\"", PASS_ALL));
    let mut process = lab.wire.spawn_command("socktap", lab.socktap_command(&["run", &file.to_string_lossy()]));
    let status = process.wait(STEP_LIMIT);
    let log = process.log();
    assert!(matches!(status.code(), Some(1 | 2)), "{status}: {log}");
    assert!(log.contains("native") && log.contains("port1"), "the message names neither mode nor port:\n{log}");
    assert!(!lab.xdp_attached(), "{}", lab.wire.links());
}

/// What `midstream` makes of connections that are older than socktap, over more than one worker.
#[test]
fn older_connections_pass_or_are_reset() {
    let queues = Some(2);
    let Some(lab) = Lab::start_with(LabOptions { wire_queues: queues, host_queues: queues, ..LabOptions::default() })
    else {
        return;
    };
    need(&["curl"]);
    let address = SocketAddr::new(SERVER_V4, 4448);
    let listener = listen_in(&lab.server, address);
    // Without a tap everything crosses: this socktap only stands in for a wire.
    let mut socktap = lab.socktap(&lab.ops("", ""));
    let mut connections: Vec<_> = (0..8)
        .map(|_| {
            let client = connect_from(&lab.client, address, STEP_LIMIT).expect("connect");
            let (served, _) = listener.accept().expect("accept");
            served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
            (client, served)
        })
        .collect();
    assert_eq!(socktap.terminate().code(), Some(0));

    let metrics = "[metrics]\nlisten = \"127.0.0.1:9464\"\n\n";
    let mut socktap = lab.socktap(&lab.ops("", &format!("{metrics}{PASS_ALL}midstream = \"pass\"\n")));
    // More frames than the workers have, so that one that got lost would be missed.
    let contents = vec![b'x'; 4_000_000];
    for (client, served) in &connections {
        for (mut from, mut to) in [(client, served), (served, client)] {
            std::thread::scope(|scope| {
                scope.spawn(|| from.write_all(&contents).expect("write"));
                let mut received = vec![0; contents.len()];
                to.read_exact(&mut received).expect("read");
                assert!(received == contents);
            });
        }
    }
    let value = |metrics: &str, name: &str| -> u64 {
        let line =
            metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {metrics}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    };
    wait_until("the counters to tell of it", STEP_LIMIT, || {
        let metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
        value(&metrics, "socktap_midstream_passed_total{tap=\"all\"}") > 10_000
            && value(&metrics, "socktap_frames_handed_over_total") > 1000
            && value(&metrics, "socktap_flow_events_total{tap=\"all\",event=\"opened\"}") == 0
    });
    socktap.assert_healthy();
    assert_eq!(socktap.terminate().code(), Some(0));

    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for (client, _) in &mut connections {
        client.write_all(b"still there?").expect("write");
        let error = client.read(&mut [0; 8]).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    socktap.assert_healthy();
}

#[test]
fn the_metrics_tell_what_happened() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    nginx.add("hello", b"hello\n");
    let ops = lab.ops("", &format!("[metrics]\nlisten = \"127.0.0.1:9464\"\n\n{PASS_ALL}"));
    let mut socktap = lab.socktap(&ops);
    assert_eq!(lab.client.run("curl", &["-sS", "--fail", &format!("http://{SERVER_V4}/hello")]), "hello\n");
    // A worker publishes its counters now and then.
    let mut metrics = String::new();
    wait_until("the counters to tell of one flow that was opened, established and closed", STEP_LIMIT, || {
        metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
        ["opened", "established", "closed"].iter().all(|event| {
            metrics.lines().any(|line| {
                line.starts_with("socktap_flow_events_total{")
                    && line.contains(&format!("event=\"{event}\""))
                    && line.ends_with("} 1")
            })
        })
    });
    assert!(metrics.contains("socktap_xdp_frames_total{"), "{metrics}");
    socktap.assert_healthy();
}
