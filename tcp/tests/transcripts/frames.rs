//! Frames: what segments are wrapped in, and what happens when none is free.

use tcp::time::Duration;
use tcp::wire::Envelope;
use tcp::{Connection, OpenError, Stack};

use crate::common::{ACK, BUFFER, FIN_ACK, IRS, ISS, MTU, NETWORKS, Network, PSH_ACK, RST, Seg, Setup, naive_sum, seg};
use crate::play::{Transcript, text};

/// Each kind of segment has the link layer, VLAN tags, hop limit, DSCP and flow label that the caller asks for: each
/// [`Script::transmit`](crate::common::Script::transmit) checks that. ECN's bits are not set.
#[test]
fn every_segment_is_wrapped_as_asked_for() {
    for network in NETWORKS {
        let mut script = Transcript::new(Setup { active: true, ..Setup::on(network) });
        script.play(
            "> . 1 ack 1
             < . 11:21 ack 1
             > . 1 ack 1 sack 11:21
             send 10
             > P. 1:11 ack 1
             +300 > P. 1:11 ack 1
             < . 1 ack 11 win 0
             probe
             > . 10 ack 1
             send 1
             +300 > . 10 ack 1
             < . 1 ack 11
             > P. 11:12 ack 1
             finish
             > F. 12 ack 1
             abort
             > R. 13 ack 1
             bury
             < P. 1:2 ack 13
             > R 13",
        );
    }
}

/// The host across may change its mind with each of its segments.
#[test]
fn the_envelope_may_change() {
    let mut script = Transcript::new(Setup::on(NETWORKS[3]));
    for hop_limit in [255, 1, 64] {
        let envelope = Envelope { hop_limit, flow_label: 77, traffic_class: 0x28, l2: NETWORKS[2].l2() };
        script.connection.acknowledge();
        let crate::common::Script { connection, stack, now, sink, .. } = &mut *script;
        assert!(connection.poll_transmit(stack, *now, &envelope, sink));
        assert_eq!(Seg::from_frame(&sink.frames.pop_front().unwrap()).0.envelope(), envelope);
    }
}

/// Nothing is lost, and no caller spins: what could not be sent is asked for again after a millisecond.
#[test]
fn without_frames_everything_waits() {
    for (event, segment) in [
        ("acknowledge", "> . 1 ack 1"),
        ("< F. 1 ack 1", "> . 1 ack 2"),
        ("< . 11:21 ack 1", "> . 1 ack 1 sack 11:21"),
        ("send 10", "> P. 1:11 ack 1"),
        ("finish", "> F. 1 ack 1"),
        ("abort", "> R. 1 ack 1"),
        ("probe", "> . 0 ack 1"),
    ] {
        let mut script = Transcript::new(Setup::default());
        script.play(&format!("frames 0\n {event}\n +20"));
        assert_eq!(script.poll_at().unwrap() - script.now, Duration::from_millis(1), "{event}");
        script.play(&format!("+100 frames 9\n {segment}"));
    }
}

/// The same for what timers send.
#[test]
fn without_frames_timers_wait() {
    Transcript::new(Setup::default()).play(
        "send 100
         > P. 1:101 ack 1
         frames 0
         +500
         frames 1
         > P. 1:101 ack 1
         +100 < . 1 ack 101 win 0
         send 100
         frames 0
         +1000
         frames 9
         > . 100 ack 1
         < P. 1:11 ack 101 win 0
         frames 0
         +100
         frames 1
         > . 101 ack 11",
    );
}

/// A flight for which there are not enough frames goes on where it stopped.
#[test]
fn a_flight_is_interrupted() {
    Transcript::new(Setup::default()).play(
        "send 4380
         frames 2
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         +10 frames 9
         > P. 2921:4381 ack 1",
    );
}

/// RFC 9293 §3.10, RFC 1122 §4.2.3.10: between these ends, there is no TCP.
#[test]
fn impossible_ends_are_refused() {
    let mut stack = Stack::new(0, MTU);
    for (local, remote) in [
        ("10.0.0.1:1", "[fd00::1]:1"),
        ("0.0.0.0:1", "10.0.0.1:1"),
        ("10.0.0.1:0", "10.0.0.2:1"),
        ("10.0.0.1:1", "10.0.0.2:0"),
        ("10.0.0.1:1", "224.0.0.1:1"),
        ("10.0.0.1:1", "255.255.255.255:1"),
        ("[fd00::1]:1", "[ff02::1]:1"),
        ("[::]:1", "[fd00::1]:1"),
    ] {
        let mut handshake = Setup::default().handshake();
        (handshake.local, handshake.remote) = (local.parse().unwrap(), remote.parse().unwrap());
        for open in [Connection::passive_open, Connection::active_open] {
            let refused = open(&mut stack, tcp::time::Instant::ZERO, &handshake, &BUFFER);
            assert_eq!(refused.err(), Some(OpenError::Unaddressable), "{local} {remote}");
        }
    }
}

/// IPv4 options, IPv6 hop-by-hop and destination options, and padding of Ethernet behind.
#[test]
fn headers_that_mean_nothing_to_us_are_taken_off() {
    for v6 in [false, true] {
        let mut script = Transcript::new(Setup::on(Network { v6, tags: 1 }));
        let plain = script.frame(&seg(PSH_ACK, IRS + 1, ISS.wrapping_add(1)).with(&text(1, 4)));
        let ip = script.setup.network.l2().len();
        let mut frame = if v6 { with_ipv6_options(&plain, ip) } else { with_ipv4_options(&plain, ip) };
        frame.extend([0; 6]);
        script.receive_frame(frame);
        script.play("read 4\n +10 > . 1 ack 5");
    }
}

fn with_ipv4_options(plain: &[u8], ip: usize) -> Vec<u8> {
    let mut frame = [&plain[..ip + 20], &[7, 3, 4, 1, 1, 1, 1, 0], &plain[ip + 20..]].concat();
    let length = (frame.len() - ip) as u16;
    frame[ip] = 0x47;
    frame[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
    frame[ip + 10..ip + 12].fill(0);
    let sum = naive_sum(&frame[ip..ip + 28], 0);
    frame[ip + 10..ip + 12].copy_from_slice(&(!sum as u16).to_be_bytes());
    frame
}

fn with_ipv6_options(plain: &[u8], ip: usize) -> Vec<u8> {
    let options = [60, 0, 0xc2, 4, 0, 0, 0, 0, 6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut frame = [&plain[..ip + 40], &options, &plain[ip + 40..]].concat();
    let length = (frame.len() - ip - 40) as u16;
    frame[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
    frame[ip + 6] = 0;
    frame
}

/// A segment between other ends is not this connection's.
#[test]
fn segments_of_others_are_ignored() {
    let network = NETWORKS[0];
    let (client, server) = (network.client(), network.server());
    let other = |mut end: std::net::SocketAddr| {
        end.set_port(1);
        end
    };
    let mut script = Transcript::new(Setup::on(network));
    for (from, to) in [(other(client), server), (client, other(server)), (server, client)] {
        for segment in [seg(RST, IRS + 1, 0), seg(FIN_ACK, IRS + 1, ISS), seg(ACK, IRS + 1, ISS).with(b"text")] {
            script.receive_frame(segment.to_frame(&network.l2(), from, to));
        }
    }
    script.play("+1000 is Established\n read 0");
}
