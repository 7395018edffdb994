//! What the two hosts see of each other through a tap: the same handshake, the same numbers, the same marks, the same
//! silence, the same end. Captured at both ends.
//!
//! Each test runs the same assertions first on a port that no tap selects, whose frames cross unchanged: what fails there
//! is a fault of the test.

mod common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use common::{
    Capture, Captures, Host, Lab, Random, SERVERS, STEP_LIMIT, Segment, Socktap, assert_same_bytes, connect_from, flag,
    listen_in, option,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, sockopt,
};

/// A port that the tap selects. It passes all.
const TAPPED: u16 = 7001;
/// A port that no tap selects.
const UNTAPPED: u16 = 7002;
/// The control first.
const PORTS: [u16; 2] = [UNTAPPED, TAPPED];
const OPS: &str = "[[tap]]\nname = \"all\"\nserver_port = [7001]\n";
/// How long a host takes at most to give up its dead peer: three probes, a second apart, and what a loaded machine adds.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(15);

/// A laboratory whose hosts know each other, and socktap.
fn start() -> Option<(Lab, Socktap)> {
    let lab = Lab::start()?;
    lab.introduce_neighbours();
    let socktap = lab.socktap(&lab.ops("", OPS));
    Some((lab, socktap))
}

/// All servers' addresses with all ports, the control first.
fn addresses() -> impl Iterator<Item = SocketAddr> {
    PORTS.into_iter().flat_map(|port| SERVERS.map(|server| SocketAddr::new(server, port)))
}

/// What a test says of itself when it fails.
fn called(address: SocketAddr) -> String {
    format!("{address} ({})", if address.port() == TAPPED { "tapped" } else { "untapped: the control" })
}

fn filter(port: u16) -> String {
    format!("tcp port {port}")
}

/// A connection through the wire: (the client's end, the server's end).
fn pair(lab: &Lab, address: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = listen_in(&lab.server, address);
    let client =
        connect_from(&lab.client, address, STEP_LIMIT).unwrap_or_else(|error| panic!("{}: {error}", called(address)));
    (client, accept(&listener))
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (served, _) = listener.accept().expect("accept");
    served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
    served.set_write_timeout(Some(STEP_LIMIT)).expect("a timeout");
    served
}

/// `text` goes from one end to the other.
fn say(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).expect("write");
    let mut received = vec![0; text.len()];
    to.read_exact(&mut received).expect("read");
    assert_eq!(received, text);
}

/// What of a segment has to be the same at both ends of the wire.
#[derive(Debug, PartialEq, Eq)]
struct Mirrored<'a> {
    seq: u32,
    ack: u32,
    options: Vec<(u8, &'a [u8])>,
    ttl: u8,
    dscp: u8,
    ecn: u8,
    flow_label: u32,
}

fn mirrored(segment: &Segment) -> Mirrored<'_> {
    let &Segment { seq, ack, ttl, dscp, ecn, flow_label, .. } = segment;
    Mirrored { seq, ack, options: segment.option_list(), ttl, dscp, ecn, flow_label }
}

/// The handshake of one connection, as one end saw it.
struct Opening {
    syn: Segment,
    syn_ack: Segment,
}

impl Opening {
    /// Opens a connection, and gives what was seen of it (at the client, at the server).
    fn between(lab: &Lab, address: SocketAddr) -> (Opening, Opening) {
        let captures = Captures::start(lab, &filter(address.port()));
        let _open = pair(lab, address);
        (Opening::seen(&captures.client, address), Opening::seen(&captures.server, address))
    }

    /// The first handshake of a capture.
    fn seen(capture: &Capture, address: SocketAddr) -> Opening {
        let what = format!("SYN and SYN-ACK of {}", called(address));
        let seen = capture.wait_until(&what, |segments| {
            segments.iter().any(Segment::is_syn) && segments.iter().any(Segment::is_syn_ack)
        });
        let first = |wanted: fn(&Segment) -> bool| seen.iter().find(|segment| wanted(segment)).cloned();
        Opening { syn: first(Segment::is_syn).expect("a SYN"), syn_ack: first(Segment::is_syn_ack).expect("a SYN-ACK") }
    }
}

/// What the options of a first segment ask for, timestamps aside: kinds in their order, and what is agreed on.
fn offer(segment: &Segment) -> Vec<(u8, &[u8])> {
    let agreed = |kind: u8| matches!(kind, option::MSS | option::WINDOW_SCALE);
    let list = segment.option_list().into_iter();
    list.map(|(kind, contents)| (kind, if agreed(kind) { contents } else { &[] })).collect()
}

/// Opens a connection to the untapped and to the tapped port, and compares all there is to compare.
fn handshakes_are_the_same(lab: &Lab, server: IpAddr, settings: &str) {
    let openings = PORTS.map(|port| {
        let address = SocketAddr::new(server, port);
        let (near, far) = Opening::between(lab, address);
        let what = format!("{}, {settings}", called(address));
        assert_eq!(
            mirrored(&far.syn),
            mirrored(&near.syn),
            "the SYN (left: at the server, right: at the client): {what}"
        );
        assert_eq!(
            mirrored(&near.syn_ack),
            mirrored(&far.syn_ack),
            "the SYN-ACK (left: at the client, right: at the server): {what}"
        );
        assert_eq!(near.syn_ack.ack, near.syn.seq.wrapping_add(1), "the SYN-ACK answers the SYN: {what}");
        (near, far)
    });
    let [(direct_near, direct_far), (near, far)] = &openings;
    assert_eq!(offer(&far.syn), offer(&direct_far.syn), "the tapped SYN is like an untapped one: {server}, {settings}");
    assert_eq!(
        offer(&near.syn_ack),
        offer(&direct_near.syn_ack),
        "the tapped SYN-ACK is like an untapped one: {server}, {settings}"
    );
}

#[test]
fn the_handshake_passes_verbatim() {
    let Some((lab, mut socktap)) = start() else { return };
    const SETTINGS: [(&str, &str); 5] = [
        ("client", "tcp_timestamps"),
        ("server", "tcp_window_scaling"),
        ("client", "tcp_sack"),
        ("server", "tcp_timestamps"),
        ("client", "tcp_window_scaling"),
    ];
    let both_families = |settings: &str| SERVERS.map(|server| handshakes_are_the_same(&lab, server, settings));
    both_families("the default settings");
    // They add up: the last handshakes have nothing but the maximum segment size.
    for (end, name) in SETTINGS {
        let host = if end == "client" { &lab.client } else { &lab.server };
        host.set_sysctl(&format!("net/ipv4/{name}"), "0");
        both_families(&format!("settings up to no {name} at the {end}"));
    }
    socktap.assert_healthy();
}

#[test]
fn the_handshake_through_a_tap_agrees_on_no_ecn() {
    let Some((lab, mut socktap)) = start() else { return };
    lab.client.set_sysctl("net/ipv4/tcp_ecn", "1");
    for address in addresses() {
        let (near, far) = Opening::between(&lab, address);
        let what = called(address);
        assert_eq!(near.syn.flags & (flag::ECE | flag::CWR), flag::ECE | flag::CWR, "the client asks for ECN: {what}");
        let tapped = address.port() == TAPPED;
        assert_eq!(far.syn.has(flag::ECE | flag::CWR), !tapped, "the server is asked for ECN: {what}");
        assert_eq!(far.syn_ack.has(flag::ECE), !tapped, "the server agrees to ECN: {what}");
        assert_eq!(near.syn_ack.has(flag::ECE), !tapped, "the client gets ECN: {what}");
        for segment in [&near.syn, &near.syn_ack, &far.syn, &far.syn_ack] {
            assert_eq!(segment.ecn, 0, "ECN bits of the IP header: {what}: {segment}");
        }
    }
    socktap.assert_healthy();
}

#[test]
fn an_option_that_cannot_be_honoured_becomes_padding() {
    let Some((lab, mut socktap)) = start() else { return };
    lab.client.set_sysctl("net/ipv4/tcp_fastopen", "1");
    for address in addresses() {
        let captures = Captures::start(&lab, &filter(address.port()));
        let listener = listen_in(&lab.server, address);
        // Asks for a cookie with an empty TCP Fast Open option, if it does not know that this host gives none.
        lab.client.run("ip", &["tcp_metrics", "flush"]);
        let mut client =
            open_socket(&lab.client, address, &|socket| setsockopt(socket, sockopt::TcpFastOpenConnect, &true));
        let mut served = accept(&listener);
        say(&mut client, &mut served, b"no cookie, no hurry");

        let what = called(address);
        let (near, far) = (Opening::seen(&captures.client, address), Opening::seen(&captures.server, address));
        assert_eq!(near.syn.option(option::FAST_OPEN), Some(&[][..]), "the client asks for a cookie: {what}");
        let expected: Vec<_> = if address.port() == UNTAPPED {
            near.syn.option_list()
        } else {
            let nops = [(option::NOP, &[][..]); 2];
            let list = near.syn.option_list().into_iter();
            list.flat_map(|entry| if entry.0 == option::FAST_OPEN { nops.to_vec() } else { vec![entry] }).collect()
        };
        assert_eq!(far.syn.option_list(), expected, "the options at the server: {what}");
    }
    socktap.assert_healthy();
}

/// A TCP socket on a host, prepared and connected.
fn open_socket(host: &Host, to: SocketAddr, prepare: &(dyn Fn(&OwnedFd) -> nix::Result<()> + Sync)) -> TcpStream {
    host.within(|| {
        let socket = new_socket(to, SockFlag::empty());
        // Limits the time of `connect` too.
        let limit = nix::sys::time::TimeVal::new(STEP_LIMIT.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::SendTimeout, &limit).expect("a timeout");
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).expect("a timeout");
        prepare(&socket).expect("socket options");
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
            .unwrap_or_else(|error| panic!("{}: {error}", called(to)));
        TcpStream::from(socket)
    })
}

fn new_socket(address: SocketAddr, flags: SockFlag) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).expect("a socket")
}

/// What one end sent in one direction of a connection, put together from a capture.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    /// Initial sequence number.
    initial: u32,
    /// Sequence number of the FIN.
    fin: u32,
    /// The bytes by sequence number, up to the first gap.
    bytes: Vec<u8>,
    /// The highest acknowledgment that the other end sent.
    acknowledged: u32,
}

impl Sent {
    /// What `from` sent, if its SYN, its FIN and the acknowledgment of that are there.
    fn by(from: SocketAddr, segments: &[Segment]) -> Option<Sent> {
        let sent = || segments.iter().filter(|segment| segment.from == from);
        let initial = sent().find(|segment| segment.has(flag::SYN))?.seq;
        let after = |number: u32| number.wrapping_sub(initial);
        let fin = sent().find(|segment| segment.has(flag::FIN))?;
        let fin = fin.seq.wrapping_add(fin.payload.len() as u32);
        let acks = segments.iter().filter(|segment| segment.to == from && segment.has(flag::ACK));
        let acknowledged = acks.map(|segment| segment.ack).max_by_key(|ack| after(*ack))?;
        if after(acknowledged) <= after(fin) {
            return None;
        }
        let mut pieces: Vec<_> = sent().filter(|segment| !segment.payload.is_empty()).collect();
        pieces.sort_by_key(|segment| after(segment.seq));
        let mut bytes = Vec::new();
        for piece in pieces {
            // Sequence number 0 is the SYN. What is there already was sent again; what is further on follows a gap.
            let known = (bytes.len() as u32 + 1).checked_sub(after(piece.seq));
            bytes.extend_from_slice(known.and_then(|known| piece.payload.get(known as usize..)).unwrap_or_default());
        }
        Some(Sent { initial, fin, bytes, acknowledged })
    }
}

/// Sends random bytes both ways at once, ends both directions, and gives (what the client sent, what the server sent).
fn exchange(client: &TcpStream, served: &TcpStream, random: &mut Random) -> [Vec<u8>; 2] {
    let texts = [random.bytes(200_000), random.bytes(300_000)];
    std::thread::scope(|scope| {
        for (text, mut from, mut to) in [(&texts[0], client, served), (&texts[1], served, client)] {
            scope.spawn(move || {
                from.write_all(text).expect("write");
                from.shutdown(Shutdown::Write).expect("shutdown");
            });
            scope.spawn(move || {
                let mut received = Vec::new();
                to.read_to_end(&mut received).expect("read");
                assert_same_bytes("exchanged", &received, text);
            });
        }
    });
    texts
}

/// A whole connection with bytes in both directions: what was seen (at the client, at the server), the client's address,
/// and what client and server sent.
fn whole_connection(
    lab: &Lab,
    address: SocketAddr,
    random: &mut Random,
) -> ([Vec<Segment>; 2], SocketAddr, [Vec<u8>; 2]) {
    let captures = Captures::start(lab, &filter(address.port()));
    let (client, served) = pair(lab, address);
    let texts = exchange(&client, &served, random);
    let from = client.local_addr().expect("an address");
    let seen = [&captures.client, &captures.server].map(|capture| {
        let what = format!("the acknowledged end of both directions of {}", called(address));
        capture.wait_until(&what, |segments| [from, address].iter().all(|end| Sent::by(*end, segments).is_some()))
    });
    (seen, from, texts)
}

#[test]
fn both_ends_see_the_same_numbers_for_the_same_bytes() {
    let Some((lab, mut socktap)) = start() else { return };
    let mut random = Random::from_environment(20);
    for address in addresses() {
        let (seen, client, texts) = whole_connection(&lab, address, &mut random);
        for (end, text) in [client, address].into_iter().zip(&texts) {
            let what = format!("what {end} sent, {}", called(address));
            let [near, far] = seen.each_ref().map(|segments| Sent::by(end, segments).expect("a whole direction"));
            for (host, sent) in [("client", &near), ("server", &far)] {
                assert_same_bytes(&format!("{what}, by sequence number, at the {host}"), &sent.bytes, text);
            }
            let numbers = |sent: &Sent| (sent.initial, sent.fin, sent.acknowledged);
            assert_eq!(
                numbers(&near),
                numbers(&far),
                "numbers of SYN, FIN and last acknowledgment (left: at the client, right: at the server): {what}"
            );
            assert_eq!(near.fin, near.initial.wrapping_add(1 + text.len() as u32), "the FIN follows the bytes: {what}");
        }
    }
    socktap.assert_healthy();
}

#[test]
fn timestamps_are_on_all_segments_and_echo_what_was_sent() {
    let Some((lab, mut socktap)) = start() else { return };
    let mut random = Random::from_environment(21);
    for address in addresses() {
        let (seen, client, _) = whole_connection(&lab, address, &mut random);
        // At its own end of the wire a host's segments are as it sent them.
        for (end, segments) in [client, address].into_iter().zip(&seen) {
            let what = format!("at {end}, {}", called(address));
            for segment in segments.iter().filter(|segment| !segment.has(flag::RST)) {
                assert!(
                    segment.timestamps().is_some(),
                    "a segment without timestamps (RFC 7323, section 3.2) {what}: {segment}"
                );
            }
            let own = segments.iter().filter(|segment| segment.from == end);
            let values: HashSet<u32> = own.filter_map(Segment::timestamps).map(|(value, _)| value).collect();
            for segment in segments.iter().filter(|segment| segment.to == end && segment.has(flag::ACK)) {
                let echo = segment.timestamps().map(|(_, echo)| echo);
                assert!(
                    echo.is_none_or(|echo| values.contains(&echo)),
                    "echoes a timestamp that {end} never sent, {what}: {segment}"
                );
            }
        }
    }
    socktap.assert_healthy();
}

#[test]
fn a_refused_port_refuses_within_half_a_second() {
    let Some((lab, mut socktap)) = start() else { return };
    for address in addresses() {
        let captures = Captures::start(&lab, &filter(address.port()));
        let what = called(address);
        for _ in 0..10 {
            let error = connect_from(&lab.client, address, Duration::from_millis(500)).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}: {error}");
        }
        let resets = |segments: &[Segment]| -> Vec<Segment> {
            segments.iter().filter(|segment| segment.has(flag::RST)).cloned().collect()
        };
        let at_client = resets(&captures.client.wait_until("ten resets", |segments| resets(segments).len() == 10));
        let at_server = resets(&captures.server.wait_until("ten resets", |segments| resets(segments).len() == 10));
        for (near, far) in at_client.iter().zip(&at_server) {
            let numbers = |reset: &Segment| (reset.seq, reset.ack);
            assert_eq!(numbers(near), numbers(far), "the reset (left: at the client, right: at the server): {what}");
        }
    }
    socktap.assert_healthy();
}

/// Begins to connect, and does not wait.
fn begin_to_connect(host: &Host, to: SocketAddr) -> TcpStream {
    host.within(|| {
        let socket = new_socket(to, SockFlag::SOCK_NONBLOCK);
        assert_eq!(connect(socket.as_raw_fd(), &SockaddrStorage::from(to)), Err(Errno::EINPROGRESS), "{}", called(to));
        TcpStream::from(socket)
    })
}

#[test]
fn a_dead_server_stays_silent_and_gets_each_syn() {
    /// As many SYNs of each connection: the first, and two more after a second each.
    const SYNS: usize = 3;
    let Some((lab, mut socktap)) = start() else { return };
    let captures = Captures::start(&lab, &format!("tcp port {TAPPED} or tcp port {UNTAPPED}"));
    let dead: [IpAddr; 2] = ["10.77.0.99", "fd77::99"].map(|address| address.parse().expect("an address"));
    // An address whose machine is gone.
    dead.iter().for_each(|address| lab.client.add_neighbour(*address, "02:00:00:00:00:63"));
    let connections: Vec<(SocketAddr, TcpStream)> = PORTS
        .into_iter()
        .flat_map(|port| dead.map(|address| SocketAddr::new(address, port)))
        .map(|address| (address, begin_to_connect(&lab.client, address)))
        .collect();

    for (address, connection) in &connections {
        let what = called(*address);
        let own = |segments: &[Segment]| -> Vec<Segment> {
            segments.iter().filter(|segment| segment.to == *address).cloned().collect()
        };
        let sent = own(&captures.client.wait_until(&format!("{SYNS} SYNs to {what}"), |all| own(all).len() >= SYNS));
        let seen = own(&captures
            .server
            .wait_until(&format!("all {} SYNs to {what}", sent.len()), |all| own(all).len() >= sent.len()));
        // By then there may be more at either end.
        let sent = own(&captures
            .client
            .wait_until(&format!("no more SYNs to {what} than the client's"), |all| own(all).len() >= seen.len()));
        for (number, (near, far)) in sent.iter().zip(&seen).enumerate() {
            assert_eq!(
                (far.flags, mirrored(far)),
                (near.flags, mirrored(near)),
                "SYN number {number} (left: at the server, right: at the client): {what}"
            );
        }
        let answers: Vec<_> =
            captures.client.segments().into_iter().filter(|segment| segment.from == *address).collect();
        assert!(answers.is_empty(), "the client got an answer of {what}: {answers:?}");
        assert!(connection.take_error().expect("the state").is_none(), "the client still tries: {what}");
    }
    socktap.assert_healthy();
}

/// What a program can ask for its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marks {
    dscp: u8,
    ttl: u8,
}

impl Marks {
    fn set(self, socket: &OwnedFd, family: SocketAddr) -> nix::Result<()> {
        let (class, ttl) = (i32::from(self.dscp) << 2, i32::from(self.ttl));
        if family.is_ipv4() {
            setsockopt(socket, sockopt::Ipv4Tos, &class)?;
            setsockopt(socket, sockopt::Ipv4Ttl, &ttl)
        } else {
            setsockopt(socket, sockopt::Ipv6TClass, &class)?;
            setsockopt(socket, sockopt::Ipv6Ttl, &ttl)
        }
    }

    fn set_on(self, stream: &TcpStream, family: SocketAddr) {
        let socket = OwnedFd::from(stream.try_clone().expect("a second descriptor"));
        self.set(&socket, family).expect("marks");
    }

    /// Of the first segment that carries exactly this text.
    fn carried(capture: &Capture, text: &[u8], address: SocketAddr) -> Marks {
        let what = format!("{:?} of {}", String::from_utf8_lossy(text), called(address));
        let seen = capture.wait_until(&what, |segments| segments.iter().any(|segment| segment.payload == text));
        let segment = seen.into_iter().find(|segment| segment.payload == text).expect("it is there");
        Marks { dscp: segment.dscp, ttl: segment.ttl }
    }
}

/// A listening socket whose connections, and whose SYN-ACKs, have these marks.
fn listen_marked(lab: &Lab, address: SocketAddr, marks: Marks) -> TcpListener {
    lab.server.within(|| {
        let socket = new_socket(address, SockFlag::empty());
        setsockopt(&socket, sockopt::ReuseAddr, &true).expect("socket options");
        marks.set(&socket, address).expect("marks");
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("bind");
        listen(&socket, Backlog::new(16).expect("a backlog")).expect("listen");
        TcpListener::from(socket)
    })
}

/// Both ends say something with the marks that they have now; the other end's capture shows the same marks.
fn marks_arrive(
    captures: &Captures,
    ends: (&mut TcpStream, &mut TcpStream),
    marks: (Marks, Marks),
    when: &str,
    address: SocketAddr,
) {
    let (client, served) = ends;
    let (request, reply) = (format!("request, {when}"), format!("reply, {when}"));
    say(client, served, request.as_bytes());
    say(served, client, reply.as_bytes());
    for (text, marks, near, far) in
        [(&request, marks.0, &captures.client, &captures.server), (&reply, marks.1, &captures.server, &captures.client)]
    {
        let [near, far] = [near, far].map(|capture| Marks::carried(capture, text.as_bytes(), address));
        assert_eq!(near, marks, "{text}, at its sender: {}", called(address));
        assert_eq!(far, marks, "{text}, at its receiver: {}", called(address));
    }
}

#[test]
fn dscp_and_ttl_reach_the_other_end() {
    let Some((lab, mut socktap)) = start() else { return };
    let (client_marks, server_marks) = (Marks { dscp: 46, ttl: 37 }, Marks { dscp: 18, ttl: 99 });
    for address in addresses() {
        let captures = Captures::start(&lab, &filter(address.port()));
        let listener = listen_marked(&lab, address, server_marks);
        let mut client = open_socket(&lab.client, address, &|socket| client_marks.set(socket, address));
        let mut served = accept(&listener);
        marks_arrive(
            &captures,
            (&mut client, &mut served),
            (client_marks, server_marks),
            "marked from the start",
            address,
        );

        let (near, far) = (Opening::seen(&captures.client, address), Opening::seen(&captures.server, address));
        assert_eq!(mirrored(&far.syn), mirrored(&near.syn), "the SYN of {}", called(address));
        assert_eq!(mirrored(&near.syn_ack), mirrored(&far.syn_ack), "the SYN-ACK of {}", called(address));
    }
    socktap.assert_healthy();
}

#[test]
fn dscp_and_ttl_that_change_later_reach_the_other_end() {
    let Some((lab, mut socktap)) = start() else { return };
    // As ssh does it: it marks a connection when it knows what it is for.
    let (client_marks, server_marks) = (Marks { dscp: 8, ttl: 55 }, Marks { dscp: 34, ttl: 200 });
    for address in addresses() {
        let captures = Captures::start(&lab, &filter(address.port()));
        let (mut client, mut served) = pair(&lab, address);
        let usual = Marks { dscp: 0, ttl: 64 };
        marks_arrive(&captures, (&mut client, &mut served), (usual, usual), "not marked", address);
        client_marks.set_on(&client, address);
        server_marks.set_on(&served, address);
        marks_arrive(&captures, (&mut client, &mut served), (client_marks, server_marks), "marked later", address);
    }
    socktap.assert_healthy();
}

/// Three probes, a second apart, after a second of silence.
fn keep_alive(stream: &TcpStream) {
    setsockopt(stream, sockopt::TcpKeepIdle, &1).expect("socket options");
    setsockopt(stream, sockopt::TcpKeepInterval, &1).expect("socket options");
    setsockopt(stream, sockopt::TcpKeepCount, &3).expect("socket options");
    setsockopt(stream, sockopt::KeepAlive, &true).expect("socket options");
}

/// Connections that only one end keeps alive: they live as long as the other host does, and no longer.
fn keepalives_reach_the_other_host(client_probes: bool) {
    /// More than the three that may go unanswered.
    const PROBES: usize = 4;
    let Some((lab, mut socktap)) = start() else { return };
    let captures = Captures::start(&lab, &format!("tcp port {TAPPED} or tcp port {UNTAPPED}"));
    let far = if client_probes { &captures.server } else { &captures.client };
    let mut connections: Vec<(SocketAddr, TcpStream, TcpStream)> = addresses()
        .map(|address| {
            let (client, served) = pair(&lab, address);
            let (prober, other) = if client_probes { (client, served) } else { (served, client) };
            keep_alive(&prober);
            (address, prober, other)
        })
        .collect();

    for (address, prober, other) in &mut connections {
        let from = prober.local_addr().expect("an address");
        let to = prober.peer_addr().expect("an address");
        far.wait_until(&format!("{PROBES} keepalive probes of {}", called(*address)), |segments| {
            let own = || segments.iter().filter(|segment| (segment.from, segment.to) == (from, to));
            // Nothing was sent yet: a probe repeats the SYN's number (RFC 9293, section 3.8.4).
            let initial = own().find(|segment| segment.has(flag::SYN)).map(|segment| segment.seq);
            own().filter(|segment| !segment.has(flag::SYN) && Some(segment.seq) == initial).count() >= PROBES
        });
        say(prober, other, b"still there?");
        // Acknowledges what was said: nothing but probes is left to be answered.
        say(other, prober, b"still there.");
    }

    let gone = if client_probes { &lab.server } else { &lab.client };
    gone.run("ip", &["link", "set", "eth0", "down"]);
    for (address, prober, _) in &mut connections {
        prober.set_read_timeout(Some(GIVES_UP_WITHIN)).expect("a timeout");
        match prober.read(&mut [0; 16]) {
            Ok(count) => panic!("read {count} bytes of a host that is gone: {}", called(*address)),
            // A read that timed out would be EAGAIN.
            Err(error) => assert_eq!(
                error.raw_os_error(),
                Some(libc::ETIMEDOUT),
                "{error}, {GIVES_UP_WITHIN:?} after the other host was gone: {}",
                called(*address)
            ),
        }
    }
    socktap.assert_healthy();
}

#[test]
fn keepalives_of_the_client_tell_of_the_server() {
    keepalives_reach_the_other_host(true);
}

#[test]
fn keepalives_of_the_server_tell_of_the_client() {
    keepalives_reach_the_other_host(false);
}

#[test]
fn one_direction_can_end_while_the_other_goes_on() {
    let Some((lab, mut socktap)) = start() else { return };
    let mut random = Random::from_environment(22);
    for address in addresses() {
        for client_ends_first in [true, false] {
            let (client, served) = pair(&lab, address);
            let (mut first, mut second) = if client_ends_first { (client, served) } else { (served, client) };
            let what = format!("{}, the client ends first: {client_ends_first}", called(address));
            for (from, to) in [(0, 1), (1, 0)] {
                let text = random.bytes(20_000);
                let ends = [&first, &second];
                let (mut from, mut to) = (ends[from], ends[to]);
                from.write_all(&text).expect("write");
                from.shutdown(Shutdown::Write).expect("shutdown");
                let mut received = Vec::new();
                to.read_to_end(&mut received).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_same_bytes(&what, &received, &text);
            }
            for end in [&mut first, &mut second] {
                assert_eq!(end.read(&mut [0; 16]).expect("an end"), 0, "{what}");
            }
        }
    }
    socktap.assert_healthy();
}

#[test]
fn a_reset_passes_with_its_number() {
    let Some((lab, mut socktap)) = start() else { return };
    for address in addresses() {
        for client_resets in [true, false] {
            let captures = Captures::start(&lab, &filter(address.port()));
            let (mut client, mut served) = pair(&lab, address);
            say(&mut client, &mut served, b"request");
            say(&mut served, &mut client, b"reply");
            let (gone, mut left) = if client_resets { (client, served) } else { (served, client) };
            let what = format!("{}, the client resets: {client_resets}", called(address));

            setsockopt(&gone, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("socket options");
            let from = gone.local_addr().expect("an address");
            drop(gone);
            let error = left.read(&mut [0; 16]).expect_err("reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {error}");
            let [near, far] = [&captures.client, &captures.server].map(|capture| {
                let is_reset = |segment: &&Segment| segment.has(flag::RST) && segment.from == from;
                let seen =
                    capture.wait_until(&format!("the reset of {what}"), |all| all.iter().any(|one| is_reset(&one)));
                seen.iter().find(is_reset).map(|segment| segment.seq)
            });
            assert_eq!(near, far, "number of the reset (left: at the client, right: at the server): {what}");
        }
    }
    socktap.assert_healthy();
}
