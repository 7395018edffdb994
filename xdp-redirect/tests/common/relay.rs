//! A worker without TCP: what comes in on one port goes out of the other.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xdp_redirect::{Attached, Frame, Port, Side, Socket, SocketConfig, Steering, Umem};

/// One socket on queue 0 of each port.
pub struct Relay {
    pub umem: Umem,
    pub sockets: [Socket; 2],
    pub pool: Vec<Frame>,
    batch: Vec<Frame>,
    pub forwarded: [usize; 2],
}

pub const FRAMES: u32 = 4096;

impl Relay {
    pub fn new(steering: &mut Steering, ports: &[Port; 2]) -> Relay {
        let (umem, mut pool) = Umem::with_rings(FRAMES, 4096, 1024, 1024).expect("a umem");
        let (client, server) = steering.modes();
        let force_copy = client == Attached::Skb || server == Attached::Skb;
        let config = SocketConfig { rx_size: 1024, tx_size: 1024, force_copy };
        let sockets = Side::ALL.map(|side| {
            let mut socket = Socket::bind(&umem, &ports[side.index()], 0, &config).expect("a socket");
            assert_eq!(socket.fill(&mut pool), 1024);
            steering.register(side, 0, socket.as_fd()).expect("registered");
            socket
        });
        Relay { umem, sockets, pool, batch: Vec::with_capacity(64), forwarded: [0; 2] }
    }

    /// One batch. Returns whether anything moved. `wait_ms`: how long to sleep if there is nothing.
    pub fn turn(&mut self, wait_ms: u16) -> bool {
        let mut moved = false;
        for side in Side::ALL {
            let (from, to) = (side.index(), side.other().index());
            moved |= self.sockets[to].complete(&mut self.pool) > 0;
            let count = self.sockets[from].receive(&mut self.batch, 64);
            self.forwarded[from] += count;
            moved |= count > 0;
            for frame in self.batch.drain(..) {
                if let Err(frame) = self.sockets[to].send(frame) {
                    self.pool.push(frame);
                }
            }
            self.sockets[from].fill(&mut self.pool);
        }
        for socket in &mut self.sockets {
            socket.wakeup().expect("the port is up");
        }
        if !moved && wait_ms > 0 {
            let mut descriptors = self.sockets.each_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            poll(&mut descriptors, PollTimeout::from(wait_ms)).expect("poll");
        }
        moved
    }

    /// Takes back what was sent, and asserts that no frame is lost.
    pub fn count_all(&mut self) {
        super::eventually("all frames sent", || {
            self.turn(0);
            self.sockets.iter().all(|socket| socket.in_flight() == 0)
        });
        let lent: usize = self.sockets.iter().map(Socket::lent).sum();
        let census = self.umem.census();
        assert_eq!((self.pool.len() + lent, census.dropped, census.closed), (FRAMES as usize, 0, 0));
    }
}
