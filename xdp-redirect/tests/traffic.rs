//! Real frames over veth: tapped ones through the sockets, all others across.

mod common;

use std::{
    net::UdpSocket,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    Network, PATIENCE, Place, SERVER_ADDRESSES, Setup, counted, eventually,
    packet::{C_TAG, Packet, S_TAG, UDP},
    relay::{FRAMES, Relay},
    skipped,
    tap::{Wire, ping},
};
use xdp_redirect::{Cross, Rule, Side, Socket, SocketConfig, Umem, XdpMode};

fn redis() -> Rule {
    Rule { server_ports: vec![6379..=6379], ..Rule::default() }
}

/// The counters of one port that are not 0.
type Counted = Vec<(&'static str, u64)>;

/// Runs `work` while a relay forwards in the middle, and checks that it lost no frame.
fn with_relay<T: Send>(
    network: &Network,
    rules: &[Rule],
    mode: XdpMode,
    cross: Cross,
    work: impl FnOnce() -> T + Send,
) -> (T, [usize; 2], [Counted; 2]) {
    let stop = AtomicBool::new(false);
    let (ready, started) = mpsc::channel();
    thread::scope(|scope| {
        let relay = scope.spawn(|| {
            network.enter(Place::Middle);
            let (mut steering, ports) = Network::attach(rules, mode, cross);
            let mut relay = Relay::new(&mut steering, &ports);
            ready.send(()).expect("the test waits");
            while !stop.load(Ordering::Relaxed) {
                relay.turn(10);
            }
            // The hosts' IPv6 speaks when it likes: what is counted must be what was taken in.
            let mut counters = Side::ALL.map(|side| counted(&steering, side));
            eventually("all redirected frames taken in", || {
                relay.turn(0);
                counters = Side::ALL.map(|side| counted(&steering, side));
                relay.forwarded == counters.each_ref().map(redirected)
            });
            relay.count_all();
            let forwarded = counters.each_ref().map(redirected);
            let statistics = relay.sockets.each_ref().map(|socket| socket.statistics().expect("statistics"));
            for counted in statistics {
                assert_eq!((counted.rx_invalid_descriptors, counted.tx_invalid_descriptors), (0, 0));
                assert_eq!((counted.rx_dropped, counted.rx_ring_full, counted.rx_fill_ring_empty), (0, 0, 0));
            }
            let umem = relay.umem.clone();
            let lent: usize = relay.sockets.iter().map(Socket::lent).sum();
            drop(relay.sockets);
            assert_eq!(umem.census().closed, lent);
            assert_eq!(relay.pool.len() + lent, FRAMES as usize);
            (forwarded, counters)
        });
        let result = started.recv_timeout(PATIENCE).map(|()| work());
        stop.store(true, Ordering::Relaxed);
        let (forwarded, counters) = relay.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result.expect("the relay started"), forwarded, counters)
    })
}

/// Frames that went to sockets.
fn redirected(counters: &Counted) -> usize {
    let to_sockets = |name: &str| ["tapped", "to_worker"].contains(&name);
    counters.iter().filter(|(name, _)| to_sockets(name)).map(|(_, count)| *count as usize).sum()
}

/// Frames of one flow with different contents, lengths and tags.
fn numbered(number: u16) -> Packet {
    let mut packet = Packet::tcp("192.0.2.7:40000", "10.0.0.5:6379");
    packet.payload = number.to_be_bytes().repeat(1 + usize::from(number) % 700);
    match number % 3 {
        0 => packet,
        1 => packet.vlan(C_TAG, 5),
        _ => packet.vlan(S_TAG, 7).vlan(C_TAG, 8),
    }
}

/// Removes what an AF_PACKET receiver does not show: the outermost tag.
fn as_received(mut frame: Vec<u8>) -> Vec<u8> {
    if matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) {
        frame.drain(12..16);
    }
    frame
}

fn echo(mode: XdpMode) {
    const COUNT: u16 = 3000;
    // As many as one veth queue holds, with room to spare.
    const BURST: u16 = 100;
    let network = Network::new(&Setup::default());
    let ((), forwarded, counters) = with_relay(&network, &[redis()], mode, Cross::Devmap, || {
        let client = network.within(Place::Client, Wire::open);
        let server = network.within(Place::Server, Wire::open);
        for start in (0..COUNT).step_by(usize::from(BURST)) {
            let burst = start..start + BURST;
            for number in burst.clone() {
                client.send(&numbered(number).bytes());
                server.send(&numbered(number).mirrored().bytes());
            }
            for number in burst {
                assert_eq!(server.receive(), as_received(numbered(number).bytes()), "{number} to the server");
                assert_eq!(
                    client.receive(),
                    as_received(numbered(number).mirrored().bytes()),
                    "{number} to the client"
                );
            }
        }
    });
    assert_eq!(forwarded, [usize::from(COUNT); 2]);
    for side in counters {
        assert_eq!(side, [("selected", u64::from(COUNT)), ("tapped", u64::from(COUNT))]);
    }
}

#[test]
fn tapped_frames_come_and_go_through_the_sockets_in_native_mode() {
    if !skipped() {
        echo(XdpMode::Native);
    }
}

#[test]
fn tapped_frames_come_and_go_through_the_sockets_in_skb_mode() {
    if !skipped() {
        echo(XdpMode::Skb);
    }
}

#[test]
fn untapped_frames_cross_by_devmap_when_the_hosts_have_napi() {
    if skipped() {
        return;
    }
    for mode in [XdpMode::Native, XdpMode::Skb] {
        let network = Network::new(&Setup { addresses: true, ..Setup::default() });
        network.set_offload("gro", "on");
        network.within(Place::Middle, || {
            let (steering, _) = Network::attach(&[redis()], mode, Cross::Devmap);
            assert!(network.within(Place::Client, || ping(SERVER_ADDRESSES[0])), "{mode:?}");
            let counters = counted(&steering, Side::Server);
            let get = |name| counters.iter().find(|(counter, _)| *counter == name).map_or(0, |(_, frames)| *frames);
            // The answers to ARP and to the ping at least; IPv6 may talk, too.
            assert!(get("not_ip") >= 1 && get("not_tcp") >= 1, "{counters:?}");
            assert_eq!(get("crossed"), get("not_ip") + get("not_tcp") + get("not_selected"), "{counters:?}");
        });
    }
}

#[test]
fn untapped_frames_cross_by_the_worker_on_a_default_veth_pair() {
    if skipped() {
        return;
    }
    for mode in [XdpMode::Native, XdpMode::Skb] {
        let network = Network::new(&Setup { addresses: true, ..Setup::default() });
        let ((), forwarded, [client, server]) = with_relay(&network, &[redis()], mode, Cross::Worker, || {
            assert!(network.within(Place::Client, || ping(SERVER_ADDRESSES[0])), "{mode:?}");
        });
        for (counters, forwarded) in [client, server].iter().zip(forwarded) {
            let sum =
                |names: &[&str]| counters.iter().filter(|(name, _)| names.contains(name)).map(|(_, n)| n).sum::<u64>();
            assert!(sum(&["not_ip"]) >= 1 && sum(&["not_tcp"]) >= 1, "{counters:?}");
            assert_eq!(sum(&["to_worker"]), forwarded as u64, "{counters:?}");
            // A frame that came before the sockets were registered crossed, or tried to.
            assert_eq!(sum(&["to_worker", "crossed"]), sum(&["not_ip", "not_tcp", "not_selected"]), "{counters:?}");
        }
    }
}

#[test]
fn udp_crosses_in_both_families() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup { addresses: true, ..Setup::default() });
    network.set_offload("gro", "on");
    // A redirected frame keeps the partial checksum of a local sender.
    network.set_offload("tx", "off");
    network.within(Place::Middle, || {
        let (_steering, _) = Network::attach(&[redis()], XdpMode::Native, Cross::Devmap);
        for address in SERVER_ADDRESSES {
            let bind = |place| {
                network.within(place, || {
                    let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = UdpSocket::bind(any).expect("a socket");
                    socket.set_read_timeout(Some(PATIENCE / 40)).expect("a timeout");
                    socket
                })
            };
            let (client, server) = (bind(Place::Client), bind(Place::Server));
            let target = (common::address(address), server.local_addr().expect("bound").port());
            let mut buffer = [0; 16];
            eventually("a datagram and its answer", || {
                client.send_to(b"question", target).expect("sent");
                let Ok((8, from)) = server.recv_from(&mut buffer) else { return false };
                server.send_to(b"answer", from).expect("sent");
                client.recv_from(&mut buffer).is_ok_and(|(length, _)| &buffer[..length] == b"answer")
            });
        }
    });
}

#[test]
fn without_a_socket_tapped_frames_are_dropped_and_others_cross() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.set_offload("gro", "on");
    network.within(Place::Middle, || {
        let (mut steering, ports) = Network::attach(&[redis()], XdpMode::Native, Cross::Devmap);
        let client = network.within(Place::Client, Wire::open);
        let server = network.within(Place::Server, Wire::open);
        let tapped = Packet::tcp("192.0.2.7:40000", "10.0.0.5:6379").bytes();
        let other = Packet { protocol: UDP, ..Packet::tcp("192.0.2.7:40000", "10.0.0.5:6379") }.bytes();
        client.send(&tapped);
        client.send(&other);
        assert_eq!(server.receive(), other);
        let expected = [("selected", 1), ("not_tcp", 1), ("no_socket", 1), ("crossed", 1)];
        assert_eq!(counted(&steering, Side::Client), expected);

        let icmp = Packet::icmp("198.51.100.1:0", "10.0.0.5:0", 3, &tapped[14..42]).bytes();
        client.send(&icmp);
        assert_eq!(server.receive(), icmp);
        assert!(counted(&steering, Side::Client).ends_with(&[("no_socket", 1), ("crossed", 2)]));

        // A socket takes them; when it is closed, they are dropped again.
        let (umem, mut frames) = Umem::new(64, 4096).expect("a umem");
        let mut socket = Socket::bind(&umem, &ports[0], 0, &SocketConfig::default()).expect("a socket");
        steering.register(Side::Client, 0, std::os::fd::AsFd::as_fd(&socket)).expect("registered");
        socket.fill(&mut frames);
        client.send(&tapped);
        eventually("a frame", || socket.receive(&mut frames, 64) == 1);
        assert_eq!(frames[0][..], tapped);
        // An ICMP error about TCP too, of whichever flow.
        client.send(&icmp);
        eventually("an ICMP error", || socket.receive(&mut frames, 64) == 1);
        assert_eq!(frames[1][..], icmp);
        assert!(counted(&steering, Side::Client).contains(&("to_worker", 1)));
        drop((socket, frames, umem));
        eventually("the socket is out of the map", || {
            client.send(&tapped);
            client.send(&other);
            server.receive();
            counted(&steering, Side::Client).contains(&("no_socket", 2))
        });
    });
}

#[test]
fn one_wakeup_sends_a_whole_ring() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (_steering, ports) = Network::attach(&[], XdpMode::Native, Cross::Devmap);
        let server = network.within(Place::Server, Wire::open);
        let (umem, mut pool) = Umem::new(300, 2048).expect("a umem");
        let config = SocketConfig { rx_size: 64, tx_size: 256, force_copy: false };
        let mut socket = Socket::bind(&umem, &ports[1], 0, &config).expect("a socket");
        let packet = numbered(3).bytes();
        for round in 0..10 {
            assert!(!socket.needs_wakeup(), "nothing was sent yet");
            for _ in 0..256 {
                let mut frame = pool.pop().expect("enough frames");
                frame.set_len(packet.len());
                frame.copy_from_slice(&packet);
                socket.send(frame).expect("there is room");
            }
            assert_eq!((socket.tx_room(), socket.in_flight()), (0, 256));
            let frame = pool.pop().expect("enough frames");
            let back = socket.send(frame).expect_err("the ring is full");
            pool.push(back);

            socket.wakeup().expect("the port is up");
            assert!(!socket.needs_wakeup(), "round {round}: the kernel took all at once");
            eventually("all sent", || {
                socket.complete(&mut pool);
                socket.in_flight() == 0
            });
            for _ in 0..256 {
                assert_eq!(server.receive(), packet);
            }
            assert_eq!((pool.len(), socket.lent()), (300, 0));
        }

        // What the kernel would swallow does not reach it.
        let mut short = pool.pop().expect("a frame");
        short.set_len(13);
        socket.send(short).expect("there is room");
        assert_eq!((socket.in_flight(), umem.census().dropped), (0, 1));
        assert_eq!(umem.reclaim(&mut pool), 1);
    });
}

#[test]
fn a_port_that_goes_down_is_an_error_of_wakeup() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let (_steering, ports) = Network::attach(&[], XdpMode::Native, Cross::Devmap);
        let (umem, mut pool) = Umem::new(8, 2048).expect("a umem");
        let mut socket = Socket::bind(&umem, &ports[0], 0, &SocketConfig::default()).expect("a socket");
        common::run("ip", &["-n", &network.name(Place::Middle), "link", "set", "client", "down"]);
        let mut frame = pool.pop().expect("a frame");
        frame.set_len(60);
        socket.send(frame).expect("there is room");
        let error = socket.wakeup().expect_err("the port is down");
        assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
    });
}

#[test]
fn each_queue_has_its_socket() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup { queues: 2, host_queues: 2, ..Setup::default() });
    network.within(Place::Middle, || {
        for (place, interface) in [(Place::Middle, "client"), (Place::Middle, "server"), (Place::Client, "host")] {
            let namespace = network.name(place);
            common::run("ip", &["netns", "exec", &namespace, "ethtool", "-L", interface, "rx", "2", "tx", "2"]);
        }
        let (mut steering, ports) = Network::attach(&[redis()], XdpMode::Native, Cross::Devmap);
        assert_eq!(ports[0].rx_queues, 2);
        let (umem, mut pool) = Umem::with_rings(1024, 2048, 256, 256).expect("a umem");
        let config = SocketConfig { rx_size: 256, tx_size: 256, force_copy: false };
        let mut sockets = [0, 1].map(|queue| {
            let mut socket = Socket::bind(&umem, &ports[0], queue, &config).expect("a socket");
            socket.fill(&mut pool);
            steering.register(Side::Client, queue, std::os::fd::AsFd::as_fd(&socket)).expect("registered");
            socket
        });
        // Each frame is of another flow, so that the sender's queues are all used.
        let client = network.within(Place::Client, Wire::open);
        let mut got = Vec::with_capacity(256);
        for port in 1..=200 {
            client.send(&Packet::tcp(&format!("192.0.2.7:{port}"), "10.0.0.5:6379").bytes());
        }
        eventually("all frames", || {
            for socket in &mut sockets {
                socket.receive(&mut got, 64);
            }
            got.len() == 200
        });
        assert_eq!(counted(&steering, Side::Client), [("selected", 200), ("tapped", 200)]);
        let lent: usize = sockets.iter().map(Socket::lent).sum();
        assert_eq!((pool.len() + got.len() + lent, umem.census().dropped), (1024, 0));
    });
}
