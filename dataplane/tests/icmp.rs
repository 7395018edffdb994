//! ICMP errors about tapped flows: seen by the worker that owns the flow, and on to the host that they are for.
#![forbid(unsafe_code)]

mod common;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use common::{Lab, LabOptions, STEP_LIMIT, connect_from, need, wait_until};
use dataplane::steer::{FlowKey, Selection, Steered, steer};
use dataplane::worker::{Tap, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use tcp::FrameSink;
use tcp::time::Instant;
use tcp::wire::{self, Envelope, Flags, L2Header, Segment};

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:80";

/// One frame, and nothing that a worker sends of its own accord.
#[derive(Default)]
struct One(Vec<u8>);

impl FrameSink for One {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.0 = vec![0; length];
        Some(&mut self.0)
    }
}

impl Output for One {
    fn room(&self, _: Side) -> usize {
        0
    }

    fn frame(&mut self, _: Side, _: usize) -> Option<&mut [u8]> {
        None
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

/// The frame of a segment.
fn segment(source: SocketAddr, destination: SocketAddr, flags: Flags) -> Vec<u8> {
    let l2 = L2Header::from_bytes(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]).unwrap();
    let envelope = Envelope { l2, hop_limit: 64, ..Envelope::default() };
    let segment =
        Segment { source, destination, seq: 1000, ack: 2000, flags, window: 100, options: &[], payload: [&[]; 2] };
    let mut frame = One::default();
    assert!(wire::build_segment(&mut frame, &envelope, &segment));
    frame.0
}

/// "Fragmentation needed", with an MTU of 1400, about a segment between two ends; of a router, to its sender.
fn too_big(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let quoted = segment(source, destination, Flags::ACK);
    let IpAddr::V4(to) = source.ip() else { panic!("IPv4") };

    let mut message = [&[3, 4, 0, 0, 0, 0, 5, 120], &quoted[14..42]].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let mut header = vec![0x45, 0, 0, 20 + message.len() as u8, 0, 7, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1];
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&quoted[..14], &header, &message].concat()
}

#[test]
fn an_error_belongs_to_the_flow_that_it_travels_back_along() {
    let (client, server) = (address(CLIENT), address(SERVER));
    let web = Selection { server_ports: vec![80..=80], ..Selection::default() };
    let other = Selection { server_ports: vec![81..=81], ..Selection::default() };
    let key = FlowKey { client, server, vlan: [0; 2] };
    // About a segment of the client, so from the server's side; and the other way round.
    for (from, source, destination) in [(Side::Server, client, server), (Side::Client, server, client)] {
        let frame = too_big(source, destination);
        let steered = |from: Side, selections: &[&Selection]| {
            let mut copy = frame.clone();
            let steered = steer(from, &mut copy, true, config::Fragments::Drop, selections.iter().copied()).unwrap();
            assert_eq!(copy, frame, "it goes across as it is");
            steered
        };
        match steered(from, &[&other, &web]) {
            Steered::Icmp { key: found, sender, error } => {
                assert_eq!((found, sender), (key, from.other()));
                assert_eq!((error.source, error.destination), (source, destination));
                assert_eq!((error.seq, error.next_mtu), (1000, Some(1400)));
            }
            steered => panic!("{steered:?}"),
        }
        // On the port that the segment itself came from, on a port that no tap names, and without a good checksum.
        assert!(matches!(steered(from.other(), &[&other, &web]), Steered::Forward));
        assert!(matches!(steered(from, &[&other]), Steered::Forward));
        let mut damaged = frame.clone();
        damaged[60] ^= 1;
        assert!(matches!(
            steer(from, &mut damaged, true, config::Fragments::Drop, [&web].into_iter()),
            Ok(Steered::Forward)
        ));
    }
}

fn worker(index: usize, workers: usize) -> Worker {
    let state = TapState {
        programs: Default::default(),
        application: Side::Server,
        observe: false,
        on_parse_error: config::OnParseError::Disconnect,
        message_timeout: None,
        midstream: config::Midstream::Reset,
    };
    let selection = Selection { server_ports: vec![80..=80], ..Selection::default() };
    let config = WorkerConfig {
        index,
        workers,
        seed: index as u64,
        owner_seed: 2,
        mtu: [1500; 2],
        ifindex: [1, 2],
        accept_partial_checksums: [false; 2],
        fragments: config::Fragments::Drop,
        flows: 10,
        message: 1000,
        taps: vec![Tap { name: "web".into(), selection, state }],
    };
    Worker::new(config, Instant::ZERO).unwrap()
}

#[test]
fn the_owner_of_the_flow_sees_it_and_sends_it_across() {
    const WORKERS: usize = 4;
    let mut workers: Vec<Worker> = (0..WORKERS).map(|index| worker(index, WORKERS)).collect();
    let (now, server) = (Instant::from_secs(1), address(SERVER));
    let mut owners = [0u64; WORKERS];
    for port in 1..=200 {
        let client = SocketAddr::new(address(CLIENT).ip(), port);
        let mut error = too_big(client, server);
        let mut reply = segment(server, client, Flags::SYN.with(Flags::ACK));

        // The worker that the flow's segments are handed to is the one that the error is handed to.
        let fates =
            |worker: &mut Worker, frame: &mut [u8]| worker.handle_frame(now, Side::Server, frame, &mut One::default());
        let fate = fates(&mut workers[0], &mut error);
        let owner = match (fate, fates(&mut workers[0], &mut reply)) {
            (Fate::Forward, Fate::Dropped(_)) => 0,
            (Fate::HandOver(owner), Fate::HandOver(same)) if owner == same && owner != 0 => owner,
            fates => panic!("{fates:?}"),
        };
        if owner != 0 {
            assert_eq!(fates(&mut workers[owner], &mut error), Fate::Forward);
        }
        owners[owner] += 1;
    }
    assert!(owners.iter().all(|&flows| flows > 0), "{owners:?}");
    for (worker, flows) in workers.iter().zip(owners) {
        let counters = worker.counters();
        assert_eq!((counters.icmp_errors_seen, counters.frames_forwarded), (flows, [0, flows]));
        assert_eq!(worker.flow_count(), 0);
    }
}

/// A router behind the server's port refuses to forward: the client that waits in `connect` hears of it at once.
fn refusals_of_a_router_reach_the_client(options: LabOptions, cross: &str) {
    let Some(lab) = Lab::start_with(options) else { return };
    need(&["curl"]);
    lab.server.within(|| {
        for (file, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/{file}"), value).expect("a sysctl");
        }
    });
    let targets = [("10.99.0.1", "10.77.0.2", "-4"), ("fd99::1", "fd77::2", "-6")];
    for (target, router, family) in targets {
        lab.server.run("ip", &[family, "route", "add", "prohibit", target]);
        lab.client.run("ip", &[family, "route", "add", target, "via", router]);
    }
    let rest = "[metrics]\nlisten = \"127.0.0.1:9464\"\n[[tap]]\nname = \"web\"\nserver_port = [80]\n";
    let mut socktap = lab.socktap(&lab.ops(cross, rest));
    for (target, ..) in targets {
        // Several ports, so that the errors belong to flows of all workers. The kernel sends only 5 errors of this kind at a
        // time (route/error_burst), and then one a second.
        for _ in 0..4 {
            let address = SocketAddr::new(target.parse().expect("an address"), 80);
            let error = connect_from(&lab.client, address, STEP_LIMIT).expect_err("nobody is there");
            let refused = matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied);
            assert!(refused, "{target}: {error}");
        }
    }
    wait_until("the counters to tell of it", STEP_LIMIT, || {
        let metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
        let value = |name: &str| -> u64 {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a counter");
            line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        let errors = value("socktap_icmp_errors_seen_total");
        let steered = value("socktap_xdp_frames_total{port=\"server\",decision=\"icmp_error\"}");
        errors >= 8 && steered >= errors
    });
    socktap.assert_healthy();
}

#[test]
fn refusals_of_a_router_reach_the_client_over_two_workers() {
    let queues = Some(2);
    let options = LabOptions { wire_queues: queues, host_queues: queues, ..LabOptions::default() };
    refusals_of_a_router_reach_the_client(options, "");
}

#[test]
fn refusals_of_a_router_reach_the_client_beside_a_devmap() {
    let options = LabOptions { plain_redirect: true, ..LabOptions::default() };
    refusals_of_a_router_reach_the_client(options, "cross = \"devmap\"");
}
