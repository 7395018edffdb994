//! What a host puts together or reads where we cannot: between addresses that a tap selects it does not cross. Everything here
//! is a SYN to a listening socket of a Linux host, which answers it when it gets it.
#![forbid(unsafe_code)]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::{
    CLIENT_V4, CLIENT_V6, Capture, Lab, LabOptions, SERVER_V4, SERVERS, STEP_LIMIT, listen_in, need, wait_until,
};
use tcp::FrameSink;
use tcp::wire::{self, Envelope, Flags, L2Header, Segment};

const TAPPED: u16 = 80;
const UNTAPPED: u16 = 8080;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const TCP: u8 = 6;

/// What the tap in the ops file has to do with the hosts of the laboratory.
#[derive(Clone, Copy, PartialEq)]
enum Taps {
    /// It selects their addresses.
    Ours,
    /// The same, and it only observes.
    Observing,
    /// It selects others.
    Others,
}

/// How a SYN is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Plain,
    /// In two fragments.
    Fragments,
    /// In one fragment (RFC 6946), IPv6.
    AtomicFragment,
    /// Behind nine extension headers, IPv6.
    Headers,
    /// With 0 as the packet's length, IPv6.
    NoLength,
    /// From port 0.
    PortZero,
}

const FORMS: [Form; 5] = [Form::Fragments, Form::AtomicFragment, Form::Headers, Form::NoLength, Form::PortZero];

impl Form {
    fn is_fragment(self) -> bool {
        matches!(self, Form::Fragments | Form::AtomicFragment)
    }

    fn is_of(self, server: IpAddr) -> bool {
        server.is_ipv6() || matches!(self, Form::Plain | Form::Fragments | Form::PortZero)
    }

    /// The client's port, by which an answer is known.
    fn port(self) -> u16 {
        if self == Form::PortZero { 0 } else { 40_000 + self as u16 }
    }
}

struct One(Vec<u8>);

impl FrameSink for One {
    fn frame(&mut self, length: usize) -> Option<&mut [u8]> {
        self.0 = vec![0; length];
        Some(&mut self.0)
    }
}

/// The frames of a SYN from the client host to a port of the server host.
fn syn(lab: &Lab, server: SocketAddr, form: Form) -> Vec<Vec<u8>> {
    let address = |text: &str| -> Vec<u8> {
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("an Ethernet address")).collect()
    };
    let ethertype: [u8; 2] = if server.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let ends = [address(&lab.server.ethernet_address()), address(&lab.client.ethernet_address())].concat();
    let l2 = L2Header::from_bytes(&[&ends[..], &ethertype].concat()).expect("an Ethernet header");
    let source = SocketAddr::new(if server.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 }, form.port());
    let (flags, options, payload) = (Flags::SYN, &[2, 4, 5, 180, 1, 1, 1, 1][..], [&[][..]; 2]);
    let segment = Segment { source, destination: server, seq: 7, ack: 0, flags, window: 1000, options, payload };
    let mut frame = One(Vec::new());
    assert!(wire::build_segment(&mut frame, &Envelope { l2, hop_limit: 64, ..Envelope::default() }, &segment));
    let frame = frame.0;

    let transport = if server.is_ipv4() { 34 } else { 54 };
    let with_header = |header: &[u8], piece: &[u8], first: u8| {
        let mut frame = [&frame[..54], header, piece].concat();
        frame[20] = first;
        frame[18..20].copy_from_slice(&((header.len() + piece.len()) as u16).to_be_bytes());
        frame
    };
    // IPv6 wants all headers in the first fragment (RFC 7112).
    let (start, end) = frame[transport..].split_at(24);
    match form {
        Form::Plain | Form::PortZero => vec![frame],
        Form::Fragments if server.is_ipv4() => {
            let piece = |bytes: &[u8], flags: [u8; 2]| {
                let mut frame = [&frame[..34], bytes].concat();
                frame[16..18].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
                frame[20..22].copy_from_slice(&flags);
                smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
                frame
            };
            vec![piece(start, [0x20, 0]), piece(end, [0, 3])]
        }
        Form::Fragments => vec![
            with_header(&[TCP, 0, 0, 1, 0, 0, 0, 9], start, FRAGMENT),
            with_header(&[TCP, 0, 0, 24, 0, 0, 0, 9], end, FRAGMENT),
        ],
        Form::AtomicFragment => vec![with_header(&[TCP, 0, 0, 0, 0, 0, 0, 9], &frame[54..], FRAGMENT)],
        Form::Headers => {
            let headers: Vec<u8> =
                (0..9).flat_map(|at| [if at == 8 { TCP } else { DESTINATION_OPTIONS }, 0, 1, 4, 0, 0, 0, 0]).collect();
            vec![with_header(&headers, &frame[54..], DESTINATION_OPTIONS)]
        }
        Form::NoLength => {
            let mut frame = with_header(&[TCP, 0, 1, 4, 0, 0, 0, 0], &frame[54..], 0);
            frame[18..20].fill(0);
            vec![frame]
        }
    }
}

fn send(lab: &Lab, frames: &[Vec<u8>]) {
    for frame in frames {
        let file = lab.write("frame", frame);
        lab.client.run("socat", &["-u", &format!("OPEN:{},rdonly", file.display()), "INTERFACE:eth0"]);
    }
}

/// Sends each form of a SYN to the tapped port, and finds the answers to be those that are expected.
fn answers(options: LabOptions, ports: &str, taps: Taps, is_answered: impl Fn(Form) -> bool) {
    let Some(lab) = Lab::start_with(options) else { return };
    need(&["curl", "ping", "socat", "tcpdump"]);
    lab.introduce_neighbours();
    let rest = match taps {
        Taps::Ours => "",
        Taps::Observing => "mode = \"observe\"\n",
        Taps::Others => "server = [\"192.0.2.0/24\", \"2001:db8::/32\"]\n",
    };
    let tap = format!("[metrics]\nlisten = \"127.0.0.1:9464\"\n[[tap]]\nname = \"web\"\nserver_port = [{TAPPED}]\n");
    let mut socktap = lab.socktap(&lab.ops(ports, &(tap + rest)));
    for server in SERVERS {
        let _listening = [TAPPED, UNTAPPED].map(|port| listen_in(&lab.server, SocketAddr::new(server, port)));
        let capture = Capture::start(&lab.server, "tcp src port 80 or tcp src port 8080");
        let forms: Vec<Form> = FORMS.into_iter().filter(|form| form.is_of(server)).collect();
        for form in &forms {
            send(&lab, &syn(&lab, SocketAddr::new(server, TAPPED), *form));
        }
        // Frames do not overtake each other: once this one is answered, the others would have been.
        send(&lab, &syn(&lab, SocketAddr::new(server, UNTAPPED), Form::Plain));
        let segments = capture.wait_until("the answer to the last SYN", |segments| {
            segments.iter().any(|segment| segment.is_syn_ack() && segment.from.port() == UNTAPPED)
        });
        for form in forms {
            let mut answers = segments.iter().filter(|segment| segment.is_syn_ack() && segment.from.port() == TAPPED);
            let is_one = answers.any(|segment| segment.to.port() == form.port());
            assert_eq!(is_one, is_answered(form), "{form:?} to {server}");
        }
    }
    larger_than_a_frame(&lab);

    let metrics = lab.wire.run("curl", &["-sS", "--fail", "http://127.0.0.1:9464/metrics"]);
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a counter");
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    let steered =
        |decision: &str| value(&format!("socktap_xdp_frames_total{{port=\"client\",decision=\"{decision}\"}}"));
    let count =
        |form: Form| SERVERS.into_iter().filter(|server| form.is_of(*server) && !is_answered(form)).count() as u64;
    let fragments = 2 * count(Form::Fragments) + count(Form::AtomicFragment);
    let unreadable = count(Form::Headers) + count(Form::NoLength);
    assert_eq!((steered("fragment_of_tap"), steered("unreadable_of_tap")), (fragments, unreadable));
    assert_eq!(steered("unjudgeable"), fragments + unreadable);
    let unaddressable = value("socktap_frames_dropped_total{reason=\"unaddressable\"}");
    assert_eq!(unaddressable, count(Form::PortZero));
    socktap.assert_healthy();
}

/// Echo requests and datagrams that the hosts send in fragments.
fn larger_than_a_frame(lab: &Lab) {
    for server in SERVERS {
        lab.client.run("ping", &["-q", "-c", "3", "-i", "0.05", "-w", "20", "-s", "4000", &server.to_string()]);
        let receiver = lab.server.within(|| UdpSocket::bind(SocketAddr::new(server, TAPPED))).expect("bind");
        let any = if server == SERVER_V4 { "0.0.0.0:0" } else { "[::]:0" };
        let sender = lab.client.within(|| UdpSocket::bind(any)).expect("bind");
        receiver.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("a timeout");
        wait_until("a datagram of 4000 bytes", STEP_LIMIT, || {
            sender.send_to(&[7; 4000], SocketAddr::new(server, TAPPED)).expect("send");
            matches!(receiver.recv(&mut [0; 5000]), Ok(4000))
        });
    }
}

/// By devmap, XDP alone decides.
fn devmap() -> LabOptions {
    LabOptions { plain_redirect: true, ..LabOptions::default() }
}

#[test]
fn nothing_goes_around_a_tap_by_devmap() {
    answers(devmap(), "cross = \"devmap\"", Taps::Ours, |_| false);
}

#[test]
fn nothing_goes_around_a_tap_by_the_worker() {
    answers(LabOptions::default(), "", Taps::Ours, |_| false);
}

#[test]
fn fragments_cross_by_devmap_where_the_ops_file_says_so() {
    answers(devmap(), "cross = \"devmap\"\nfragments = \"cross\"", Taps::Ours, Form::is_fragment);
}

#[test]
fn fragments_cross_by_the_worker_where_the_ops_file_says_so() {
    answers(LabOptions::default(), "fragments = \"cross\"", Taps::Ours, Form::is_fragment);
}

#[test]
fn a_tap_that_observes_holds_nothing_back_by_devmap() {
    answers(devmap(), "cross = \"devmap\"", Taps::Observing, |form| form != Form::PortZero);
}

#[test]
fn a_tap_that_observes_holds_nothing_back_by_the_worker() {
    answers(LabOptions::default(), "", Taps::Observing, |form| form != Form::PortZero);
}

#[test]
fn what_no_tap_selects_crosses_in_every_form_by_devmap() {
    answers(devmap(), "cross = \"devmap\"", Taps::Others, |_| true);
}

#[test]
fn what_no_tap_selects_crosses_in_every_form_by_the_worker() {
    answers(LabOptions::default(), "", Taps::Others, |_| true);
}
