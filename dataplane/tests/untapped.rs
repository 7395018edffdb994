//! What no tap selects crosses the wire as if socktap were not there.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::{
    CLIENT_V4, Lab, LabOptions, Nginx, Random, SERVER_V4, SERVERS, STEP_LIMIT, Socktap, assert_same_bytes,
    connect_from, listen_in, need, wait_until,
};

/// Taps only port 80, and of that only one network: the tests below use other ports.
const ONE_PORT: &str = "[[tap]]\nname = \"web\"\nserver_port = [80]\n";

/// Every kind of untapped traffic, over this laboratory with `keys` in `[ports]`.
fn everything_crosses(lab: &Lab, keys: &str) {
    need(&["curl", "ping", "arping", "socat"]);
    let nginx = Nginx::start(lab);
    nginx.add("hello", b"hello\n");
    let mut socktap = lab.socktap(&lab.ops(keys, ONE_PORT));

    neighbours(lab);
    echo_requests(lab);
    datagrams(lab);
    untapped_tcp(lab, &nginx);
    foreign_frames(lab);
    // And the tap beside it works.
    assert_eq!(lab.client.run("curl", &["-sS", "--fail", &format!("http://{SERVER_V4}/hello")]), "hello\n");
    socktap.assert_healthy();
    ends_well(&mut socktap);
}

fn ends_well(socktap: &mut Socktap) {
    assert_eq!(socktap.terminate().code(), Some(0), "exit status after SIGTERM; the log:\n{}", socktap.process.log());
}

/// ARP requests and answers, both ways; learnt anew.
fn neighbours(lab: &Lab) {
    for host in [&lab.client, &lab.server] {
        host.run("ip", &["neigh", "flush", "dev", "eth0"]);
    }
    lab.client.run("arping", &["-c", "2", "-w", "20", "-I", "eth0", &SERVER_V4.to_string()]);
    lab.server.run("arping", &["-c", "2", "-w", "20", "-I", "eth0", &CLIENT_V4.to_string()]);
}

/// ICMP and ICMPv6 echo: small, full frames, and larger than a frame, so in fragments.
fn echo_requests(lab: &Lab) {
    for server in SERVERS {
        for size in ["0", "56", "1400", "4000", "20000"] {
            lab.client.run("ping", &["-q", "-c", "3", "-i", "0.05", "-w", "20", "-s", size, &server.to_string()]);
        }
    }
    let both = lab.client.run("ip", &["neigh", "show", "dev", "eth0"]);
    for server in SERVERS {
        assert!(both.contains(&server.to_string()), "no neighbour entry of {server}: {both}");
    }
}

/// Datagrams of many sizes there and back. Each is sent again until its echo comes: UDP may lose, but must not change.
fn datagrams(lab: &Lab) {
    let mut random = Random::from_environment(7);
    for server in SERVERS {
        let any: SocketAddr =
            if server.is_ipv4() { "0.0.0.0:0".parse() } else { "[::]:0".parse() }.expect("an address");
        let echo = lab.server.within(|| UdpSocket::bind(SocketAddr::new(server, 7007))).expect("bind");
        let client = lab.client.within(|| UdpSocket::bind(any)).expect("bind");
        client.connect(SocketAddr::new(server, 7007)).expect("connect");
        let quick = Some(std::time::Duration::from_millis(500));
        echo.set_read_timeout(quick).expect("a timeout");
        client.set_read_timeout(quick).expect("a timeout");
        let mut room = vec![0; 65536];
        for size in [0, 1, 2, 18, 19, 511, 1000, 1452, 1472, 1473, 3000, 9000, 30_000] {
            let datagram = random.bytes(size);
            wait_until(&format!("the echo of a datagram of {size} bytes from {server}"), STEP_LIMIT, || {
                client.send(&datagram).expect("send");
                let Ok((length, from)) = echo.recv_from(&mut room) else { return false };
                assert_same_bytes("datagram at the server", &room[..length], &datagram);
                echo.send_to(&room[..length], from).expect("send back");
                let Ok(length) = client.recv(&mut room) else { return false };
                assert_same_bytes("datagram at the client", &room[..length], &datagram);
                true
            });
        }
    }
}

/// TCP on a port that no tap names: 10 MB down and up, and a connection in the other direction.
fn untapped_tcp(lab: &Lab, nginx: &Nginx) {
    let contents = Random::from_environment(8).bytes(10_000_000);
    nginx.add("large", &contents);
    let file = lab.write("to-upload", &contents);
    let copy = lab.path("copy");
    for server in SERVERS {
        let base = format!("http://{}", SocketAddr::new(server, 8080));
        lab.client.run("curl", &["-sS", "--fail", "-o", &copy.to_string_lossy(), &format!("{base}/large")]);
        assert_same_bytes("untapped download", &std::fs::read(&copy).expect("the download"), &contents);
        lab.client.run("curl", &["-sS", "--fail", "-T", &file.to_string_lossy(), &format!("{base}/upload/large")]);
        assert_same_bytes(
            "untapped upload",
            &std::fs::read(nginx.www.join("upload/large")).expect("the upload"),
            &contents,
        );
    }
    from_server_to_client(lab, CLIENT_V4);
}

/// The server host connects to the client host: no tap, since the server port is judged on the server's side.
fn from_server_to_client(lab: &Lab, client: IpAddr) {
    use std::io::{Read, Write};
    let listener = listen_in(&lab.client, SocketAddr::new(client, 9999));
    let mut there = connect_from(&lab.server, SocketAddr::new(client, 9999), STEP_LIMIT).expect("connect");
    let (mut here, _) = listener.accept().expect("accept");
    there.write_all(b"the other way").expect("write");
    let mut text = [0; 13];
    here.read_exact(&mut text).expect("read");
    assert_eq!(&text, b"the other way");
}

/// Frames of a protocol that nobody knows, and of a VLAN, byte for byte.
fn foreign_frames(lab: &Lab) {
    let mut random = Random::from_environment(9);
    let kinds: [(&str, &[u8]); 3] = [
        ("unknown protocol", &[0x88, 0xb5]),
        ("unknown protocol in a VLAN", &[0x81, 0x00, 0x00, 0x05, 0x88, 0xb5]),
        ("unknown protocol in two VLANs", &[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x05, 0x88, 0xb5]),
    ];
    for (from, to) in [(&lab.client, &lab.server), (&lab.server, &lab.client)] {
        for (what, header) in kinds {
            let mut frame = vec![0xff; 6];
            frame.extend([0x02, 0, 0, 0, 0, 0x99]);
            frame.extend(header);
            frame.extend(random.bytes(200));
            let file = lab.write("frame", &frame);
            let capture = lab.path(&format!("{}-{}.pcap", to.namespace, what.replace(' ', "-")));
            let mut dump = to.spawn(
                "tcpdump",
                "tcpdump",
                &["-i", "eth0", "-U", "-Z", "root", "-w", &capture.to_string_lossy(), "ether src 02:00:00:00:00:99"],
            );
            dump.wait_until("tcpdump to listen", STEP_LIMIT, |dump| dump.log().contains("listening on"));
            wait_until(&format!("a frame of {what} to arrive"), STEP_LIMIT, || {
                from.run("socat", &["-u", &format!("OPEN:{},rdonly", file.display()), "INTERFACE:eth0"]);
                let seen = std::fs::read(&capture).unwrap_or_default();
                seen.windows(frame.len()).any(|bytes| bytes == frame)
            });
        }
    }
}

#[test]
fn all_other_traffic_crosses_a_default_veth_pair() {
    let Some(lab) = Lab::start() else { return };
    everything_crosses(&lab, "");
}

#[test]
fn all_other_traffic_crosses_by_devmap() {
    let Some(lab) = Lab::start_with(LabOptions { plain_redirect: true, ..LabOptions::default() }) else {
        return;
    };
    everything_crosses(&lab, "cross = \"devmap\"");
}

#[test]
fn all_other_traffic_crosses_in_skb_mode() {
    let Some(lab) = Lab::start_with(LabOptions { small_frames: true, ..LabOptions::default() }) else { return };
    everything_crosses(&lab, "xdp_mode = \"skb\"");
}
