//! A protocol of length-prefixed messages, over connections through the wire.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};

use super::{Lab, Random, STEP_LIMIT, connect_from, listen_in};

/// The first of the ports that [`pair`] connects to: 4444 to 5443.
pub const MESSAGE_PORT: u16 = 4444;
const MESSAGE_PORTS: u16 = 1000;

/// A message: four bytes of length, then the body, whose first byte is `kind`.
pub fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(rest.len() + 1).expect("a short message");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(rest);
    bytes
}

/// A random conversation of one direction: what is sent, and what of it must arrive.
pub fn conversation(random: &mut Random, messages: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..messages {
        let size = match random.between(0, 9) {
            0 => random.between(0, 2),
            1..=6 => random.between(3, 400),
            7 | 8 => random.between(1000, 5000),
            _ => random.between(10_000, 60_000),
        };
        let dropped = random.between(0, 4) == 0;
        let kind = if dropped { b'D' } else { b'a' + (random.next() % 26) as u8 };
        let message = message(kind, &random.bytes(size));
        if !dropped {
            expected.extend_from_slice(&message);
        }
        sent.extend_from_slice(&message);
    }
    (sent, expected)
}

/// Writes `bytes` in chunks of random sizes, then ends the direction.
pub fn write_in_chunks(stream: &TcpStream, bytes: &[u8], random: &mut Random) {
    write_chunks(stream, bytes, random);
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

/// Writes `bytes` in chunks of random sizes, many of them tiny.
pub fn write_chunks(mut stream: &TcpStream, bytes: &[u8], random: &mut Random) {
    stream.set_nodelay(true).expect("no delay");
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = match random.between(0, 9) {
            0..=2 => random.between(1, 6),
            3..=7 => random.between(1, 1500),
            _ => random.between(1, 50_000),
        };
        let (now, later) = rest.split_at(size.min(rest.len()));
        stream.write_all(now).expect("write");
        rest = later;
    }
}

pub fn read_to_end(mut stream: &TcpStream, what: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{what}: {error} after {} bytes", bytes.len()));
    bytes
}

/// A connection through the wire: (the client's end, the server's end).
pub fn pair(lab: &Lab, server: IpAddr) -> (TcpStream, TcpStream) {
    // A port of its own each: a program that another test is just starting may hold a copy of the last listening socket.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let address = SocketAddr::new(server, MESSAGE_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % MESSAGE_PORTS);
    let listener = listen_in(&lab.server, address);
    let client = connect_from(&lab.client, address, STEP_LIMIT).expect("connect");
    let (served, _) = listener.accept().expect("accept");
    served.set_read_timeout(Some(STEP_LIMIT)).expect("a timeout");
    served.set_write_timeout(Some(STEP_LIMIT)).expect("a timeout");
    (client, served)
}
