//! Buffers that grow with what the path carries.

use tcp::time::Duration;

use crate::common::{ACK, Setup, seg};
use crate::play::{Transcript, text};

/// A peer that fills the window, and what it has come to.
struct Peer {
    script: Transcript,
    next: u32,
    edge: u32,
}

impl Peer {
    fn new(setup: Setup) -> Self {
        Self { script: Transcript::new(setup), next: 1, edge: 65_536 }
    }

    /// Sends all that the window has room for, in full segments; returns how much that was.
    fn fill(&mut self) -> u32 {
        let begin = self.next;
        while self.next + 1460 <= self.edge {
            let number = self.script.setup.peers.seq.wrapping_add(self.next);
            let segment = seg(ACK, number, self.script.connection.snd_nxt());
            self.script.receive(&segment.with(&text(self.next, 1460)));
            self.next += 1460;
        }
        self.listen();
        self.next - begin
    }

    fn listen(&mut self) {
        let scale = self.script.setup.ours.options.window_scale.unwrap_or_default();
        for ack in self.script.transmit() {
            self.edge = ack.ack.wrapping_sub(self.script.setup.peers.seq) + (u32::from(ack.window) << scale);
        }
    }
}

/// The window doubles each round trip in which it is filled and read, as that of Linux, up to 4 MiB; the text that was not read when
/// the buffer was exchanged is still there.
#[test]
fn a_fast_peer_gets_a_larger_window() {
    let mut peer = Peer::new(Setup::default().scales(Some(7), Some(7)));
    let mut unread = 0;
    let mut round_trips = [0; 9];
    for got in &mut round_trips {
        *got = peer.fill();
        peer.script.now += Duration::from_millis(100);
        let length = (unread + *got).saturating_sub(1000);
        let all = peer.script.take(length as usize);
        assert!(all == text(peer.next - unread - *got, length));
        unread += *got - length;
        peer.listen();
    }
    assert!(round_trips.windows(2).all(|pair| pair[1] + 3000 >= pair[0]), "{round_trips:?}");
    assert!((3_900_000..=4 << 20).contains(&round_trips[8]), "{round_trips:?}");
    assert!(peer.script.take(usize::MAX) == text(peer.next - unread, unread));
}

/// A peer that is read slowly, or sends slowly, gets no more.
#[test]
fn a_slow_peer_gets_no_more() {
    let mut peer = Peer::new(Setup::default().scales(Some(7), Some(7)));
    for _ in 0..100 {
        peer.fill();
        peer.script.now += Duration::from_millis(100);
        let length = peer.script.connection.receive_queue() / 3;
        peer.script.take(length);
        peer.listen();
        assert!(peer.edge - peer.next <= 65_536);
    }
}

/// RFC 7323 §2.2: without a scale, nobody could be told of more.
#[test]
fn without_a_scale_nothing_grows() {
    let mut peer = Peer::new(Setup::default());
    for _ in 0..20 {
        assert!(peer.fill() <= 65_535);
        peer.script.now += Duration::from_millis(100);
        peer.script.take(usize::MAX);
        peer.listen();
    }
}

/// With a hole before what was received, the buffer is exchanged later; nothing of it is lost.
#[test]
fn a_hole_is_waited_for() {
    let mut peer = Peer::new(Setup::default().scales(Some(7), Some(7)));
    peer.edge -= 4000;
    peer.fill();
    peer.script.take(usize::MAX);
    let hole = peer.next;
    peer.next += 1460;
    let behind = seg(ACK, peer.script.setup.peers.seq.wrapping_add(peer.next), peer.script.connection.snd_nxt());
    peer.script.receive(&behind.with(&text(peer.next, 1000)));
    peer.script.now += Duration::from_millis(100);
    peer.listen();
    let missing = seg(ACK, peer.script.setup.peers.seq.wrapping_add(hole), peer.script.connection.snd_nxt());
    peer.script.receive(&missing.with(&text(hole, 1460)));
    peer.listen();
    assert!(peer.edge - hole > 100_000, "{}", peer.edge - hole);
    let got = peer.script.take(usize::MAX);
    assert_eq!(got.len(), 2460);
    assert!(got == text(hole, 2460));
}
