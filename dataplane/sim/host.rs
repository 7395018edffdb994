//! A host: smoltcp sockets, an application on each, and the Ethernet header around its packets.

use std::collections::VecDeque;
use std::net::IpAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr};
use tcp::time::{Duration, Instant};

use crate::frames;
use crate::mend::Mend;
use crate::random::Random;
use crate::scenario::{ApplicationPlan, ConnectionPlan, FIRST_CLIENT_PORT, HostPlan, TAPPED_PORT, UNTAPPED_PORT};

/// Longer than a socket's retransmission timer can take.
const LAST_RESORT: Duration = Duration::from_secs(100);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions were closed.
    Closed,
    /// The other host (or someone between) reset it.
    Reset,
    /// Its application aborted it.
    Aborted,
    /// Its application had no more patience.
    GaveUp,
}

/// One end of a connection with the application on it.
pub struct Session {
    /// Number of the connection in the scenario.
    pub connection: usize,
    socket: Option<SocketHandle>,
    started: Instant,
    /// It got through the handshake.
    pub established: bool,
    written: usize,
    /// What its application has read.
    pub received: Vec<u8>,
    /// It has read the other's end of stream.
    pub eof: bool,
    /// It has closed its direction.
    pub closed: bool,
    /// How it ended; none: it has not.
    pub end: Option<End>,
    write_at: Instant,
    read_at: Instant,
    /// When it last read or wrote something.
    active: Instant,
    /// When it last heard of the other host, or asked for it.
    heard: Instant,
    /// How many bytes are acknowledged, and since when.
    acked: (usize, Instant),
}

/// The hosts' link-layer and network addresses.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// By side.
    pub mac: [[u8; 6]; 2],
    /// By side.
    pub ip: [IpAddr; 2],
}

/// One of the two hosts.
pub struct Host {
    side: usize,
    addresses: Addresses,
    header: Vec<u8>,
    expected_header: Vec<u8>,
    plan: HostPlan,
    interface: Interface,
    device: OneFrame,
    /// Sockets of connections.
    sockets: SocketSet<'static>,
    /// Sockets that listen: apart, since a connection's segments belong to its socket first.
    listeners: SocketSet<'static>,
    listening: Vec<(SocketHandle, u16)>,
    /// All connections that there ever were at this host.
    pub sessions: Vec<Session>,
    connections: Vec<ConnectionPlan>,
    /// Connections that the client has not opened yet, the next one last.
    to_open: Vec<usize>,
    mend: Mend,
    random: Random,
}

impl Host {
    /// A host; side 0 opens connections, side 1 listens.
    pub fn new(
        side: usize,
        addresses: Addresses,
        vlan: &[u16],
        mtu: usize,
        plan: &HostPlan,
        connections: &[ConnectionPlan],
        mut random: Random,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random.bits();
        let mut device = OneFrame { received: None, sent: VecDeque::new(), mtu };
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|ips| {
            ips.push(IpCidr::new(addresses.ip[side].into(), 8)).expect("room for an address");
        });
        let mut to_open: Vec<usize> = if side == 0 { (0..connections.len()).collect() } else { Vec::new() };
        to_open.sort_by_key(|&number| std::cmp::Reverse((connections[number].open_at, number)));
        let ipv6 = addresses.ip[0].is_ipv6();
        let mut host = Self {
            side,
            addresses,
            header: frames::ethernet(addresses.mac[1 - side], addresses.mac[side], vlan, ipv6),
            expected_header: frames::ethernet(addresses.mac[side], addresses.mac[1 - side], vlan, ipv6),
            plan: plan.clone(),
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            listeners: SocketSet::new(Vec::new()),
            listening: Vec::new(),
            sessions: Vec::new(),
            connections: connections.to_vec(),
            to_open,
            mend: Mend::default(),
            random,
        };
        if side == 1 {
            for port in [TAPPED_PORT, UNTAPPED_PORT] {
                (0..connections.len() + 1).for_each(|_| host.listen(port));
            }
        }
        host
    }

    /// True when every connection that was to be has been and has ended.
    pub fn is_done(&self) -> bool {
        self.to_open.is_empty() && self.sessions.iter().all(|session| session.end.is_some() && session.socket.is_none())
    }

    /// Takes in a frame, if there is one, lets the applications work and hands out all frames to send. Returns when it wants
    /// to be called again at the latest.
    pub fn step(
        &mut self,
        now: Instant,
        frame: Option<Vec<u8>>,
        mut send: impl FnMut(Vec<u8>),
    ) -> Result<Option<Instant>, String> {
        if let Some(frame) = frame {
            self.receive(now, frame)?;
        }
        self.open_connections(now);
        let mut wake = self.to_open.last().map(|&number| self.connections[number].open_at);
        loop {
            let application = self.run_applications(now);
            let (probes, probe) = self.keep_alive(now);
            let retry = self.retransmit_forgotten(now);
            while !matches!(
                self.interface.poll_egress(now, &mut self.device, &mut self.sockets),
                smoltcp::iface::PollResult::None
            ) {}
            self.forget_closed();
            for packet in probes {
                send([&self.header[..], &packet].concat());
            }
            if self.device.sent.is_empty() {
                wake = [wake, application, probe, retry].into_iter().flatten().min();
                break;
            }
            for packet in self.device.sent.drain(..) {
                let mut frame = self.header.clone();
                frame.extend(packet);
                self.mend.sent(&mut frame, self.plan.window_scale());
                if self.plan.partial_checksums {
                    make_checksum_partial(&mut frame, self.header.len(), &self.addresses, self.side);
                }
                send(frame);
            }
        }
        let protocol = self.interface.poll_at(now, &self.sockets);
        Ok([wake, protocol].into_iter().flatten().min())
    }

    fn receive(&mut self, now: Instant, mut frame: Vec<u8>) -> Result<(), String> {
        self.mend.received(&mut frame);
        let segment = frames::segment(&frame).filter(|segment| segment.checksums_good);
        let Some(packet) = frame.strip_prefix(&self.expected_header[..]).filter(|packet| !packet.is_empty()) else {
            return match segment {
                Some(_) => Err(format!("side {} got a frame with the wrong Ethernet header: {frame:02x?}", self.side)),
                None => Ok(()),
            };
        };
        let packet = packet.to_vec();
        let Some(segment) = segment else {
            // Damaged under way: smoltcp is to find out.
            self.ingress(now, packet, true);
            return Ok(());
        };
        let ends = (segment.destination, segment.source);
        let before = self.states(ends);
        for &(position, _) in &before {
            let session = &mut self.sessions[position];
            session.heard = now;
            if let Some(handle) = session.socket
                && self.mend.is_useless(&segment, self.sockets.get(handle))
            {
                return Ok(());
            }
        }
        self.ingress(now, packet, !before.is_empty());
        self.accept(now)?;
        for (position, state) in before {
            let session = &mut self.sessions[position];
            let Some(handle) = session.socket else { continue };
            let socket = self.sockets.get_mut::<Socket>(handle);
            if state == State::SynReceived && socket.state() == State::Listen {
                // smoltcp's socket keeps old state when it falls back: it is not used again.
                socket.close();
                session.end = Some(End::Reset);
            } else if socket.state() == State::Closed && state != State::Closed && session.end.is_none() {
                let all_said = matches!(state, State::TimeWait | State::LastAck | State::Closing);
                session.end = Some(if segment.rst && !all_said { End::Reset } else { End::Closed });
            }
        }
        Ok(())
    }

    fn ingress(&mut self, now: Instant, packet: Vec<u8>, known: bool) {
        self.device.received = Some(packet);
        let sockets = if known { &mut self.sockets } else { &mut self.listeners };
        self.interface.poll_ingress_single(now, &mut self.device, sockets);
    }

    /// The sessions between these ports, and the states of their sockets.
    fn states(&self, (local, remote): (u16, u16)) -> Vec<(usize, State)> {
        let of = |(position, session): (usize, &Session)| {
            let socket = self.sockets.get::<Socket>(session.socket?);
            let between = socket.local_endpoint()?.port == local && socket.remote_endpoint()?.port == remote;
            between.then(|| (position, socket.state()))
        };
        self.sessions.iter().enumerate().filter_map(of).collect()
    }

    fn open_connections(&mut self, now: Instant) {
        while let Some(&number) = self.to_open.last()
            && self.connections[number].open_at <= now
        {
            self.to_open.pop();
            let mut socket = self.socket();
            let remote = (self.addresses.ip[1], self.connections[number].server_port);
            let local = FIRST_CLIENT_PORT + number as u16;
            socket.connect(self.interface.context(), remote, local).expect("a fresh socket connects");
            let handle = self.sockets.add(socket);
            self.begin(now, number, handle);
        }
    }

    fn listen(&mut self, port: u16) {
        let mut socket = self.socket();
        socket.listen(port).expect("a fresh socket listens");
        let handle = self.listeners.add(socket);
        self.listening.push((handle, port));
    }

    /// Makes a session of a listening socket that has got a SYN, and puts a fresh one in its place.
    fn accept(&mut self, now: Instant) -> Result<(), String> {
        let taken = |&(handle, _): &(SocketHandle, u16)| self.listeners.get::<Socket>(handle).state() != State::Listen;
        let Some(position) = self.listening.iter().position(taken) else { return Ok(()) };
        let (handle, port) = self.listening.swap_remove(position);
        let handle = self.sockets.add(self.listeners.remove(handle));
        let remote = self.sockets.get::<Socket>(handle).remote_endpoint().ok_or("accepted from nobody")?;
        let number = usize::from(remote.port.wrapping_sub(FIRST_CLIENT_PORT));
        if IpAddr::from(remote.addr) != self.addresses.ip[0] || number >= self.connections.len() {
            return Err(format!("the server got a connection from {remote}, which is no client"));
        }
        if self.connections[number].server_port != port {
            return Err(format!("connection {number} came to port {port}"));
        }
        self.begin(now, number, handle);
        self.listen(port);
        Ok(())
    }

    fn socket(&self) -> Socket<'static> {
        let [receive, send] = self.plan.buffers.map(|size| SocketBuffer::new(vec![0; size]));
        let mut socket = Socket::new(receive, send);
        socket.set_nagle_enabled(self.plan.nagle);
        socket.set_ack_delay(self.plan.ack_delay);
        if self.plan.timestamps {
            socket.set_tsval_generator(Some(|| 77));
        }
        if self.plan.cubic {
            socket.set_congestion_control(CongestionControl::Cubic);
        }
        socket
    }

    fn begin(&mut self, now: Instant, connection: usize, handle: SocketHandle) {
        self.sessions.push(Session {
            connection,
            socket: Some(handle),
            started: now,
            established: false,
            written: 0,
            received: Vec::new(),
            eof: false,
            closed: false,
            end: None,
            write_at: now,
            read_at: now + self.connections[connection].applications[self.side].read_after,
            active: now,
            heard: now,
            acked: (0, now),
        });
    }

    fn run_applications(&mut self, now: Instant) -> Option<Instant> {
        let mut wake: Option<Instant> = None;
        for session in &mut self.sessions {
            let Some(handle) = session.socket else { continue };
            let plan = &self.connections[session.connection].applications[self.side];
            let socket = self.sockets.get_mut::<Socket>(handle);
            wake = [wake, session.run(now, plan, socket, &mut self.random)].into_iter().flatten().min();
        }
        wake
    }

    /// Asks for the other host where nothing was heard of it for long; returns when to ask next.
    fn keep_alive(&mut self, now: Instant) -> (Vec<Vec<u8>>, Option<Instant>) {
        let (mut probes, mut wake) = (Vec::new(), None);
        let Some(interval) = self.plan.keep_alive else { return (probes, wake) };
        for session in self.sessions.iter_mut().filter(|session| session.established && session.end.is_none()) {
            let Some(handle) = session.socket else { continue };
            let socket = self.sockets.get::<Socket>(handle);
            let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint()) else { continue };
            if socket.state() == State::TimeWait {
                continue;
            }
            if now >= session.heard + interval {
                let ports = (local.port, remote.port);
                let probe = self.mend.probe([local.addr, remote.addr], ports, self.plan.window_scale(), 1);
                probes.extend(probe);
                session.heard = now;
            }
            wake = [wake, Some(session.heard + interval)].into_iter().flatten().min();
        }
        (probes, wake)
    }

    /// A segment for each connection that this host has aborted, as one that was under way for long.
    pub fn segments_of_the_dead(&self) -> Vec<Vec<u8>> {
        let aborted = |session: &&Session| matches!(session.end, Some(End::Aborted | End::GaveUp));
        let segment = |session: &Session| {
            let client = FIRST_CLIENT_PORT + session.connection as u16;
            let server = self.connections[session.connection].server_port;
            let ports = if self.side == 0 { (client, server) } else { (server, client) };
            let ends = [self.side, 1 - self.side].map(|side| self.addresses.ip[side].into());
            let packet = self.mend.probe(ends, ports, self.plan.window_scale(), 1 << 20)?;
            Some([&self.header[..], &packet].concat())
        };
        self.sessions.iter().filter(aborted).filter_map(segment).collect()
    }

    /// Makes a socket send again whose bytes were not acknowledged for longer than any of its timers can take; returns when
    /// to look again.
    fn retransmit_forgotten(&mut self, now: Instant) -> Option<Instant> {
        let (mut wake, mut packets) = (None, Vec::new());
        for session in self.sessions.iter_mut().filter(|session| session.established && session.end.is_none()) {
            let Some(handle) = session.socket else { continue };
            let socket = self.sockets.get::<Socket>(handle);
            let (Some(local), Some(remote)) = (socket.local_endpoint(), socket.remote_endpoint()) else { continue };
            let acked = session.written - socket.send_queue();
            if socket.send_queue() == 0 || session.acked.0 != acked {
                session.acked = (acked, now);
            } else if now >= session.acked.1 + LAST_RESORT {
                session.acked.1 = now;
                packets.extend(self.mend.duplicate_acks([remote.addr, local.addr], (local.port, remote.port)));
            }
            if socket.send_queue() > 0 {
                wake = [wake, Some(session.acked.1 + LAST_RESORT)].into_iter().flatten().min();
            }
        }
        packets.into_iter().for_each(|packet| self.ingress(now, packet, true));
        wake
    }

    /// Removes sockets that are closed and whose bytes were all read.
    fn forget_closed(&mut self) {
        for session in &mut self.sessions {
            let Some(handle) = session.socket else { continue };
            let socket = self.sockets.get_mut::<Socket>(handle);
            if socket.state() == State::Closed && socket.remote_endpoint().is_none() && !socket.can_recv() {
                // TIME-WAIT ends without a frame.
                session.end.get_or_insert(End::Closed);
                session.eof |= socket.recv_slice(&mut []) == Err(RecvError::Finished);
                session.socket = None;
                self.sockets.remove(handle);
            }
        }
    }

    /// What every session is doing, for a report.
    pub fn describe(&self) -> String {
        let name = ["client", "server"][self.side];
        let line = |session: &Session| {
            let socket = session.socket.map(|handle| self.sockets.get::<Socket>(handle));
            let state = socket.map(|socket| (socket.state(), socket.send_queue(), socket.recv_queue()));
            let Session { connection, established, written, eof, closed, end, .. } = session;
            let plan = &self.connections[*connection].applications;
            format!(
                "  {name} {connection}: state, send and receive queue {state:?} established {established} written \
                 {written} of {} read {} of {} eof {eof} closed {closed} end {end:?}\n",
                plan[self.side].writes.len(),
                session.received.len(),
                plan[1 - self.side].passed.len(),
            )
        };
        self.sessions.iter().map(line).collect()
    }
}

impl Session {
    /// The application does what it can do now; returns when it wants to do more, if not after a frame.
    fn run(
        &mut self,
        now: Instant,
        plan: &ApplicationPlan,
        socket: &mut Socket,
        random: &mut Random,
    ) -> Option<Instant> {
        let state = socket.state();
        self.established |= !matches!(state, State::Closed | State::SynSent | State::SynReceived | State::Listen);
        let mut wake = None;
        let mut at = |time: Instant| wake = Some(wake.map_or(time, |wake: Instant| wake.min(time)));
        if self.end.is_none() {
            if let Some((written, after)) = plan.abort
                && self.written >= written
            {
                if now >= self.started + after {
                    return self.abort(End::Aborted, socket);
                }
                at(self.started + after);
            }
            if let Some(patience) = plan.patience {
                if now >= self.active + patience {
                    return self.abort(End::GaveUp, socket);
                }
                if state != State::TimeWait {
                    at(self.active + patience);
                }
            }
        }
        while self.written < plan.writes.len() && socket.can_send() {
            if now < self.write_at {
                at(self.write_at);
                break;
            }
            let most = plan.write.min(plan.writes.len() - self.written);
            let chunk = random.between(1, most);
            let taken = socket.send_slice(&plan.writes[self.written..self.written + chunk]).expect("it can send");
            self.written += taken;
            self.active = now;
            self.write_at = now + plan.write_pause;
        }
        if state == State::TimeWait {
            // The socket will forget what is not read by the end of TIME-WAIT.
            self.read_at = now;
        }
        self.read(now, plan, socket);
        if socket.can_recv() || (!self.eof && self.read_at > now) {
            at(self.read_at);
        }
        // In LAST-ACK smoltcp ignores an ACK that only opens the window, and may wait for ever with bytes to send.
        let all_written = self.written == plan.writes.len() && (state != State::CloseWait || socket.send_queue() == 0);
        if !self.closed && all_written && self.established && socket.may_send() && (!plan.closes_second || self.eof) {
            socket.close();
            self.closed = true;
        }
        wake
    }

    fn read(&mut self, now: Instant, plan: &ApplicationPlan, socket: &mut Socket) {
        while now >= self.read_at {
            let begin = self.received.len();
            self.received.resize(begin + plan.read, 0);
            let result = socket.recv_slice(&mut self.received[begin..]);
            self.received.truncate(begin + result.unwrap_or(0));
            match result {
                Ok(0) | Err(RecvError::InvalidState) => break,
                Err(RecvError::Finished) => {
                    self.eof = true;
                    break;
                }
                Ok(_) => {
                    self.active = now;
                    if socket.state() != State::TimeWait {
                        self.read_at = now + plan.read_pause;
                    }
                }
            }
        }
    }

    fn abort(&mut self, end: End, socket: &mut Socket) -> Option<Instant> {
        socket.abort();
        self.end = Some(end);
        None
    }
}

/// Leaves only the sum of the pseudo-header in the checksum field, as Linux does when a device is to complete it.
fn make_checksum_partial(frame: &mut [u8], ip: usize, addresses: &Addresses, side: usize) {
    let Some(segment) = frames::segment(frame) else { return };
    let (header, pseudo) = match addresses.ip[side] {
        IpAddr::V4(_) => (20, &frame[ip + 12..ip + 20]),
        IpAddr::V6(_) => (40, &frame[ip + 8..ip + 40]),
    };
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum += 6 + (segment.ip_length - header) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[ip + header + 16..ip + header + 18].copy_from_slice(&(sum as u16).to_be_bytes());
}

/// A device that holds one frame for ingress and all frames of egress.
struct OneFrame {
    received: Option<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for OneFrame {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sent<'_>)> {
        self.received.take().map(|packet| (Received(packet), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
