//! A path behind a port that carries less than the port: the router's error makes the flow's segments shorter, and goes on to
//! the host that it was sent to.
#![forbid(unsafe_code)]
#![expect(clippy::single_range_in_vec_init, reason = "one piece of text among lists of them")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::ops::Range;

use common::{
    Lab, LabOptions, ROUTED_SERVERS, Random, STEP_LIMIT, assert_same_bytes, connect_from, listen_in, need, now,
    wait_until,
};
use dataplane::steer::Selection;
use dataplane::worker::{Tap, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use tcp::FrameSink;
use tcp::time::{Duration, Instant};
use tcp::wire::{self, Envelope, Flags, L2Header, Parsed, Segment};

/// Client, server and router, by IP version.
const V4: [&str; 3] = ["10.0.0.1:4000", "10.0.0.2:80", "192.0.2.1:1"];
const V6: [&str; 3] = ["[fd00::1]:4000", "[fd00::2]:80", "[fd99::1]:1"];
/// MSS 1460, SACK permitted, a window scale of 7.
const OPTIONS: [u8; 12] = [2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 1];
const SYN: Flags = Flags::SYN;
const ACK: Flags = Flags::ACK;
/// Initial sequence numbers of client and server.
const ISS: [u32; 2] = [1000, 2000];
const NOTHING: [Range<usize>; 0] = [];
/// Length of the Ethernet header.
const L2: usize = 14;

/// What leaves the worker.
#[derive(Default)]
struct Sent(Vec<(Side, Vec<u8>)>);

impl Output for Sent {
    fn room(&self, _: Side) -> usize {
        1000
    }

    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]> {
        self.0.push((to, vec![0; length]));
        self.0.last_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}

/// One frame.
#[derive(Default)]
struct One(Vec<u8>);

impl FrameSink for One {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.0 = vec![0; length];
        Some(&mut self.0)
    }
}

fn sum(bytes: &[u8], mut sum: u32) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    (sum & 0xffff) + (sum >> 16)
}

fn folded(sum: u32) -> [u8; 2] {
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

/// A flow through a worker, open, whose server has got nothing yet.
struct Flow {
    worker: Worker,
    now: Instant,
    ends: [SocketAddr; 2],
    router: IpAddr,
    /// What the client has written.
    written: Vec<u8>,
}

impl Flow {
    fn open(version: [&str; 3]) -> Self {
        let state = TapState {
            programs: Default::default(),
            application: Side::Server,
            observe: false,
            on_parse_error: config::OnParseError::Disconnect,
            message_timeout: None,
            midstream: config::Midstream::Reset,
        };
        let config = WorkerConfig {
            index: 0,
            workers: 1,
            seed: 1,
            owner_seed: 2,
            mtu: [1500; 2],
            ifindex: [1, 2],
            fragments: config::Fragments::Drop,
            accept_partial_checksums: [false; 2],
            flows: 10,
            message: 1000,
            taps: vec![Tap { name: "all".into(), selection: Selection::default(), state }],
        };
        let now = Instant::from_secs(1);
        let worker = Worker::new(config, now).unwrap();
        let [client, server, router]: [SocketAddr; 3] = version.map(|text| text.parse().unwrap());
        let mut flow = Self { worker, now, ends: [client, server], router: router.ip(), written: Vec::new() };
        assert_eq!(flow.says(Side::Client, SYN, 0, 0, &OPTIONS, &[]).len(), 1);
        assert_eq!(flow.says(Side::Server, SYN.with(ACK), 0, 1, &OPTIONS, &[]).len(), 1);
        assert_eq!(flow.says(Side::Client, ACK, 1, 1, &[], &[]).len(), 1);
        flow
    }

    fn frame(&self, from: Side, flags: Flags, seq: u32, ack: u32, options: &[u8], text: &[u8]) -> Vec<u8> {
        let (near, far) = (from as usize, from.other() as usize);
        let kind = if self.ends[0].is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        let l2 = L2Header::from_bytes(&[&[2, 0, 0, 0, 0, far as u8, 2, 0, 0, 0, 0, near as u8], &kind[..]].concat());
        let envelope = Envelope { l2: l2.unwrap(), hop_limit: 64, ..Envelope::default() };
        let segment = Segment {
            source: self.ends[near],
            destination: self.ends[far],
            seq: ISS[near].wrapping_add(seq),
            ack: if flags.ack() { ISS[far].wrapping_add(ack) } else { 0 },
            flags,
            window: 0xffff,
            options,
            payload: [text, &[]],
        };
        let mut frame = One::default();
        assert!(wire::build_segment(&mut frame, &envelope, &segment));
        frame.0
    }

    /// A frame comes in; what leaves.
    fn takes(&mut self, from: Side, mut frame: Vec<u8>) -> Vec<(Side, Vec<u8>)> {
        self.now += Duration::from_millis(1);
        let mut sent = Sent::default();
        match self.worker.handle_frame(self.now, from, &mut frame, &mut sent) {
            Fate::Forward => sent.0.push((from.other(), frame)),
            Fate::Consumed => {}
            fate => panic!("{fate:?}"),
        }
        self.worker.pump(self.now);
        self.worker.poll_transmit(self.now, &mut sent);
        sent.0
    }

    fn says(
        &mut self,
        from: Side,
        flags: Flags,
        seq: u32,
        ack: u32,
        options: &[u8],
        text: &[u8],
    ) -> Vec<(Side, Vec<u8>)> {
        self.takes(from, self.frame(from, flags, seq, ack, options, text))
    }

    /// The client writes a full segment; the segments that go to the server.
    fn writes(&mut self) -> Vec<Range<usize>> {
        let begin = self.written.len();
        self.written.extend((begin..begin + 1400).map(|place| (place / 7) as u8));
        let text = self.written[begin..].to_vec();
        let sent = self.says(Side::Client, ACK, 1 + begin as u32, 1, &[], &text);
        self.to_server(&sent)
    }

    /// Which bytes of the stream the frames to the server carry: they must be the ones that the client has written.
    fn to_server(&self, sent: &[(Side, Vec<u8>)]) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        for (_, frame) in sent.iter().filter(|(to, _)| *to == Side::Server) {
            let Ok(Parsed::Tcp(h)) = wire::parse(frame) else { continue };
            let text = &frame[h.payload_offset..h.end];
            if !text.is_empty() {
                let begin = h.seq.wrapping_sub(ISS[0] + 1) as usize;
                assert_eq!(text, &self.written[begin..begin + text.len()]);
                pieces.push(begin..begin + text.len());
            }
        }
        pieces
    }

    /// A router's error about a segment of the client's end that begins at this byte of the stream.
    fn error(&self, begin: u32, mtu: u32) -> Vec<u8> {
        let quoted = self.frame(Side::Client, ACK, 1 + begin, 1, &[], &[0; 100]);
        error_about(&quoted, self.router, self.ends[0].ip(), mtu)
    }

    /// The segments that leave to the server when an error comes in, which must go on to the client as it is.
    fn is_told(&mut self, error: Vec<u8>) -> Vec<Range<usize>> {
        let sent = self.takes(Side::Server, error.clone());
        assert!(sent.contains(&(Side::Client, error)), "the error goes to the client");
        self.to_server(&sent)
    }

    fn shortened(&self) -> u64 {
        self.worker.counters().segments_shortened
    }
}

/// "Fragmentation needed" or "packet too big", about the packet in `quoted`.
fn error_about(quoted: &[u8], router: IpAddr, to: IpAddr, mtu: u32) -> Vec<u8> {
    let mut frame = quoted[..L2].to_vec();
    match (router, to) {
        (IpAddr::V4(router), IpAddr::V4(to)) => {
            let mut message = [&[3, 4, 0, 0, 0, 0], &(mtu as u16).to_be_bytes()[..], &quoted[L2..L2 + 28]].concat();
            let check = folded(sum(&message, 0));
            message[2..4].copy_from_slice(&check);
            let mut header = vec![0x45, 0, 0, 20 + message.len() as u8, 0, 7, 0, 0, 64, 1, 0, 0];
            header.extend(router.octets().into_iter().chain(to.octets()));
            let check = folded(sum(&header, 0));
            header[10..12].copy_from_slice(&check);
            frame.extend(header.into_iter().chain(message));
        }
        (IpAddr::V6(router), IpAddr::V6(to)) => {
            let mut message = [&[2, 0, 0, 0], &mtu.to_be_bytes()[..], &quoted[L2..]].concat();
            let length = message.len() as u32;
            let addresses = [router.octets(), to.octets()].concat();
            let check = folded(sum(&message, sum(&addresses, 58 + length)));
            message[2..4].copy_from_slice(&check);
            frame.extend([0x60, 0, 0, 0, 0, length as u8, 58, 64]);
            frame.extend(addresses.into_iter().chain(message));
        }
        _ => panic!("{router} and {to}"),
    }
    frame
}

/// The text of a full segment on a path with this MTU.
fn text_of(version: [&str; 3], mtu: usize) -> usize {
    mtu - if version == V4 { 40 } else { 60 }
}

#[test]
fn what_is_too_big_is_sent_again_in_shorter_pieces_and_so_is_all_that_follows() {
    for version in [V4, V6] {
        let mut flow = Flow::open(version);
        let most = text_of(version, 1300);
        assert_eq!(flow.writes(), [0..1400]);
        assert_eq!(flow.writes(), [1400..2800]);
        // Both are refused; the first error does for both.
        let error = flow.error(0, 1300);
        assert_eq!(flow.is_told(error), [0..most, most..1400, 1400..1400 + most, 1400 + most..2800]);
        let error = flow.error(1400, 1300);
        assert_eq!(flow.is_told(error), NOTHING, "that is known");
        assert_eq!(flow.shortened(), 1);
        assert_eq!(flow.writes(), [2800..2800 + most, 2800 + most..4200]);
        // A second router, with less.
        let least = text_of(version, 1280);
        let error = flow.error(2800, 1280);
        let longer = [0, 1400, 2800].into_iter().flat_map(|begin| [begin..begin + least, begin + least..begin + most]);
        assert_eq!(flow.is_told(error), longer.collect::<Vec<_>>(), "what is short enough is still on its way");
        assert_eq!(flow.shortened(), 2);
        assert_eq!(flow.says(Side::Server, ACK, 1, 4201, &[], &[]), [], "and all of it may arrive");
        assert_eq!(flow.writes(), [4200..4200 + least, 4200 + least..5600]);
    }
}

#[test]
fn an_error_that_is_not_about_what_is_on_its_way_changes_nothing() {
    for version in [V4, V6] {
        let mut flow = Flow::open(version);
        assert_eq!(flow.writes(), [0..1400]);
        assert_eq!(flow.says(Side::Server, ACK, 1, 1401, &[], &[]).len(), 0);
        assert_eq!(flow.writes(), [1400..2800]);
        let floor = if version == V4 { 552 } else { 1280 };
        let forged = [
            ("acknowledged", flow.error(1399, 1300)),
            ("not sent", flow.error(2800, 1300)),
            ("below the floor", flow.error(1400, floor - 1)),
            ("no less than what is sent", flow.error(1400, 1500)),
            ("more than what is sent", flow.error(1400, 9000)),
            ("of another flow", {
                let other =
                    Flow { ends: [SocketAddr::new(flow.ends[0].ip(), 4001), flow.ends[1]], ..Flow::open(version) };
                other.error(1400, 1300)
            }),
            ("about a segment of the server, which it cannot have met", {
                let quoted = flow.frame(Side::Server, ACK, 1, 1, &[], &[]);
                error_about(&quoted, flow.router, flow.ends[1].ip(), 1300)
            }),
        ];
        for (what, error) in forged {
            assert_eq!(flow.is_told(error), NOTHING, "{what}");
            assert_eq!(flow.shortened(), 0, "{what}");
        }
        assert_eq!(flow.writes(), [2800..4200]);
        // On the port that it cannot come from.
        let error = flow.error(2800, 1300);
        let sent = flow.takes(Side::Client, error);
        assert_eq!((flow.to_server(&sent), flow.shortened()), (vec![], 0));
        let error = flow.error(2800, 1300);
        assert_ne!(flow.is_told(error), NOTHING);
        assert_eq!(flow.shortened(), 1, "and the same, true, does");
    }
}

/// Bytes of an upload: many windows, and quick unless each window waits for a timer.
const UPLOAD: usize = 5_000_000;
/// How long it may take; a loaded machine needs a second.
const QUICK: Duration = Duration::from_secs(20);

/// A router behind the server's port, and behind it a network that carries packets of up to 1300 bytes.
///
/// ```text
///   client ── socktap ── eth0 router down0 ──MTU 1300── eth0 server
/// ```
fn behind_a_router(options: LabOptions, cross: &str) {
    let Some(lab) = Lab::start_with(options) else { return };
    need(&["curl"]);
    let inner = lab.add_router(1300);
    let rest = "[metrics]\nlisten = \"127.0.0.1:9464\"\n[[tap]]\nname = \"all\"\nserver_port = [7001]\n";
    let mut socktap = lab.socktap(&lab.ops(cross, rest));
    let shortened = || -> u64 {
        let metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
        let line = metrics.lines().find_map(|line| line.strip_prefix("socktap_segments_shortened_total"));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no such counter: {metrics}"))
    };
    let data = Random::after(7, 0).bytes(UPLOAD);
    for (number, server) in ROUTED_SERVERS.into_iter().enumerate() {
        let address = SocketAddr::new(server, 7001);
        let listener = listen_in(&inner, address);
        let mut client = connect_from(&lab.client, address, STEP_LIMIT).expect("a connection");
        let begin = now();
        let received = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut served, _) = listener.accept().expect("accept");
                served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
                let mut received = Vec::new();
                served.read_to_end(&mut received).expect("all of it");
                received
            });
            client.write_all(&data).expect("write");
            client.shutdown(Shutdown::Write).expect("shutdown");
            reader.join().expect("the reader")
        });
        let took = begin.elapsed();
        assert_same_bytes(&address.to_string(), &received, &data);
        assert!(took < QUICK.into(), "{address}: took {took:?}");
        wait_until("the counter to tell of it", STEP_LIMIT, || shortened() > number as u64);
    }
    socktap.assert_healthy();
}

#[test]
fn an_upload_passes_a_router_to_a_narrower_network() {
    behind_a_router(LabOptions::default(), "");
}

#[test]
fn an_upload_passes_a_router_to_a_narrower_network_beside_a_devmap() {
    behind_a_router(LabOptions { plain_redirect: true, ..LabOptions::default() }, "cross = \"devmap\"");
}
