//! Between whichever addresses two hosts may make a handshake through us, both can be terminated: no address is a panic.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use tcp::handshake::Syn;
use tcp::time::Instant;
use tcp::wire::SynOptions;
use tcp::{Connection, Handshake, Options, Stack, is_possible};

fn opens(local: IpAddr, remote: IpAddr) {
    let (local, remote) = (SocketAddr::new(local, 80), SocketAddr::new(remote, 4000));
    let syn = Syn { seq: 7, window: 1000, options: SynOptions::default() };
    let handshake = Handshake { local, remote, ours: syn, peers: syn, rtt: None };
    let options = Options { receive_buffer: 0 };
    let opened = Connection::passive_open(&mut Stack::new(1, 1500), Instant::ZERO, &handshake, &options);
    assert_eq!(opened.is_ok(), is_possible(local, remote));
    assert!(opened.is_ok_and(|open| open.rcv_nxt() == 8) || !is_possible(local, remote));
}

#[test]
fn between_unusual_addresses() {
    let v4 =
        ["127.0.0.1", "0.0.0.1", "240.0.0.1", "255.255.255.254", "169.254.1.1", "10.0.0.255", "224.0.0.1", "0.0.0.0"];
    let v6 = ["::1", "::2", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::1", "fc00::", "ff02::1", "::"];
    for family in [v4, v6] {
        for local in family {
            for remote in family {
                opens(local.parse().unwrap(), remote.parse().unwrap());
            }
        }
    }
}

proptest! {
    #[test]
    fn between_any_addresses(local: [u8; 16], remote: [u8; 16], v4: [[u8; 4]; 2]) {
        opens(local.into(), remote.into());
        opens(v4[0].into(), v4[1].into());
    }
}
