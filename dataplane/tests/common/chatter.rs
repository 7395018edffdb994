//! Many connections that live long, talk now and then, and check every byte in both directions.
//!
//! Each connection has a text of its own, without end. A *talker* on the client host sends the text in bursts, with pauses;
//! an *echo* on the server host compares what arrives with the text, and sends it back; the talker compares that again.
//! One thread has all talkers, one all echoes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::host::set_limits;
use super::{Lab, Random, STEP_LIMIT, assert_same_bytes, listen_in, now};

/// An echo that holds so many bytes reads no more until some are sent.
const ECHO_HOLDS: usize = 128 << 10;
/// Most that is read or written at once.
const AT_ONCE: usize = 64 << 10;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Bursts of all talkers.
    pub bursts: u64,
    /// Bytes in them; as many came back.
    pub bytes: u64,
    /// Times that a talker stopped reading for a while.
    pub slow_reads: u64,
}

/// `count` connections to `port` that talk for `time`, in turn to each of `servers`. Panics if a byte is wrong or missing.
pub fn chatter(lab: &Lab, servers: &[IpAddr], port: u16, count: usize, time: Duration, random: &mut Random) -> Report {
    raise_file_limit(2 * count as u64 + 200);
    let connections = connections(lab, servers, port, count);
    let end = now() + time;
    let (mut talkers, mut echoes) = (Vec::new(), Vec::new());
    for (number, (client, served)) in connections.into_iter().enumerate() {
        let text = Text(random.next());
        talkers.push(Talker::new(client, text, random.fork(number as u64)));
        echoes.push(Echo { stream: served, text, received: 0, held: Vec::new(), ended: false });
    }
    std::thread::scope(|scope| {
        scope.spawn(move || run_echoes(echoes, end + STEP_LIMIT));
        run_talkers(talkers, end)
    })
}

/// So many files may be open in this process.
fn raise_file_limit(needed: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(hard >= needed, "the limit of open files is {hard}, needed are {needed} (`ulimit -n`)");
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).expect("a higher soft limit");
    }
}

/// Opens the connections: (the client's end, the server's end), non-blocking.
fn connections(lab: &Lab, servers: &[IpAddr], port: u16, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let addresses: Vec<_> = servers.iter().map(|server| SocketAddr::new(*server, port)).collect();
    let listeners: Vec<_> = addresses.iter().map(|address| listen_in(&lab.server, *address)).collect();
    lab.client.within(|| {
        let places = addresses.iter().zip(&listeners).cycle().take(count);
        let open = |(address, listener): (&SocketAddr, &std::net::TcpListener)| {
            let client = TcpStream::connect_timeout(address, STEP_LIMIT).expect("connect");
            let (served, from) = listener.accept().expect("accept");
            assert_eq!(Some(from), client.local_addr().ok(), "the server sees the client's own address");
            for end in [&client, &served] {
                set_limits(end);
                end.set_nonblocking(true).expect("a non-blocking socket");
            }
            (client, served)
        };
        places.map(open).collect()
    })
}

/// A text without end; any part of it can be had at once.
#[derive(Clone, Copy)]
struct Text(u64);

impl Text {
    /// The bytes from `offset` on.
    fn at(self, offset: u64, length: usize) -> Vec<u8> {
        let skipped = (offset % 8) as usize;
        let mut bytes = Random::after(self.0, offset / 8).bytes(skipped + length);
        bytes.drain(..skipped);
        bytes
    }

    /// Asserts that these are the bytes from `offset` on.
    fn check(self, offset: u64, bytes: &[u8], what: &str) {
        assert_same_bytes(
            &format!("{what}, from byte {offset} of the stream on"),
            bytes,
            &self.at(offset, bytes.len()),
        );
    }
}

/// What a socket that is ready is asked to do, with "not now" as nothing.
fn unless_blocked(result: io::Result<usize>, what: impl FnOnce() -> String) -> Option<usize> {
    match result {
        Ok(count) => Some(count),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
        Err(error) => panic!("{}: {error}", what()),
    }
}

/// Sockets and what each waits for.
struct Ready {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Ready {
    fn new() -> Ready {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        Ready { epoll, events: vec![EpollEvent::empty(); 256] }
    }

    fn add(&self, number: usize, stream: &TcpStream) {
        self.epoll.add(stream, EpollEvent::new(EpollFlags::empty(), number as u64)).expect("epoll");
    }

    fn wait_for(&self, number: usize, stream: &TcpStream, read: bool, write: bool) {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, read);
        flags.set(EpollFlags::EPOLLOUT, write);
        self.epoll.modify(stream, &mut EpollEvent::new(flags, number as u64)).expect("epoll");
    }

    /// The numbers of those that are ready, at the latest at `until`.
    fn wait(&mut self, until: Instant) -> Vec<usize> {
        // Rounded up: never too early.
        let time = until.saturating_duration_since(now()) + Duration::from_millis(1);
        let limit = EpollTimeout::try_from(time.min(STEP_LIMIT)).expect("a short time");
        let count = match self.epoll.wait(&mut self.events, limit) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => panic!("epoll: {error}"),
        };
        self.events[..count].iter().map(|event| event.data() as usize).collect()
    }
}

/// The server's end of a connection.
struct Echo {
    stream: TcpStream,
    text: Text,
    received: u64,
    /// Received, and not yet sent back.
    held: Vec<u8>,
    ended: bool,
}

impl Echo {
    /// Does what can be done now. Whether the connection is over.
    fn go_on(&mut self, number: usize, room: &mut [u8]) -> bool {
        if !self.ended && self.held.len() < ECHO_HOLDS {
            self.receive(number, room);
        }
        if !self.held.is_empty() {
            let sent = self.stream.write(&self.held[..self.held.len().min(AT_ONCE)]);
            let sent = unless_blocked(sent, || format!("the server's end of connection {number}, sending"));
            self.held.drain(..sent.unwrap_or(0));
        }
        let over = self.ended && self.held.is_empty();
        if over {
            self.stream.shutdown(Shutdown::Write).expect("shutdown");
        }
        over
    }

    fn receive(&mut self, number: usize, room: &mut [u8]) {
        let what = || format!("the server's end of connection {number}, after {} bytes", self.received);
        match unless_blocked(self.stream.read(room), what) {
            None => {}
            Some(0) => self.ended = true,
            Some(count) => {
                self.text.check(self.received, &room[..count], &format!("connection {number}, at the server"));
                self.received += count as u64;
                self.held.extend_from_slice(&room[..count]);
            }
        }
    }
}

/// Serves all connections to their end.
fn run_echoes(mut echoes: Vec<Echo>, limit: Instant) {
    let mut ready = Ready::new();
    for (number, echo) in echoes.iter().enumerate() {
        ready.add(number, &echo.stream);
        ready.wait_for(number, &echo.stream, true, false);
    }
    let mut room = vec![0; AT_ONCE];
    let mut left = echoes.len();
    while left > 0 {
        assert!(now() < limit, "the server's ends of {left} connections have not ended");
        for number in ready.wait(limit) {
            let echo = &mut echoes[number];
            let over = echo.go_on(number, &mut room);
            left -= usize::from(over);
            let reads = !echo.ended && echo.held.len() < ECHO_HOLDS;
            ready.wait_for(number, &echo.stream, reads, !echo.held.is_empty());
            if over {
                ready.epoll.delete(&echo.stream).expect("epoll");
            }
        }
    }
}

/// The client's end of a connection.
struct Talker {
    stream: TcpStream,
    text: Text,
    random: Random,
    /// What is left of the burst.
    burst: usize,
    sent: u64,
    received: u64,
    reads: bool,
    state: TalkerState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TalkerState {
    /// Talks, or will.
    Talks,
    /// Has said all, and listens to the rest.
    Listens,
    /// Has heard all.
    Over,
}

/// What a talker does at a point in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Talk,
    ReadAgain,
}

impl Talker {
    fn new(stream: TcpStream, text: Text, random: Random) -> Talker {
        Talker { stream, text, random, burst: 0, sent: 0, received: 0, reads: true, state: TalkerState::Talks }
    }

    /// Mostly short, sometimes more than a window.
    fn next_burst(&mut self) -> usize {
        match self.random.between(0, 99) {
            0..50 => self.random.between(1, 100),
            50..90 => self.random.between(101, 4000),
            90..99 => self.random.between(4001, 65_000),
            _ => self.random.between(65_001, 300_000),
        }
    }

    /// Until the next burst.
    fn pause(&mut self) -> Duration {
        let milliseconds = match self.random.between(0, 99) {
            0..70 => self.random.between(0, 300),
            70..95 => self.random.between(300, 3000),
            _ => self.random.between(3000, 10_000),
        };
        Duration::from_millis(milliseconds as u64)
    }

    /// Sends what can be sent of the burst.
    fn send(&mut self, number: usize) {
        while self.burst > 0 {
            let bytes = self.text.at(self.sent, self.burst.min(AT_ONCE));
            let what = || format!("the client's end of connection {number}, sending, after {} bytes", self.sent);
            let Some(count) = unless_blocked(self.stream.write(&bytes), what) else { return };
            self.sent += count as u64;
            self.burst -= count;
        }
    }

    /// Receives once. Whether anything came.
    fn receive(&mut self, number: usize, room: &mut [u8]) -> bool {
        let what = || format!("the client's end of connection {number}, after {} bytes", self.received);
        let Some(count) = unless_blocked(self.stream.read(room), what) else { return false };
        if count == 0 {
            assert!(self.state == TalkerState::Listens, "connection {number} ended too early");
            assert_eq!(self.received, self.sent, "connection {number}: bytes that came back, and that were sent");
            self.state = TalkerState::Over;
        }
        self.text.check(self.received, &room[..count], &format!("connection {number}, back at the client"));
        self.received += count as u64;
        count > 0
    }
}

/// All talkers, and what they will do when.
struct Talkers {
    all: Vec<Talker>,
    tasks: BinaryHeap<Reverse<(Instant, usize, Task)>>,
    ready: Ready,
    /// When they begin no more bursts.
    end: Instant,
    report: Report,
}

/// Talks on all connections until `end`, then waits for the rest to come back.
fn run_talkers(all: Vec<Talker>, end: Instant) -> Report {
    let count = all.len();
    let mut talkers = Talkers { all, tasks: BinaryHeap::new(), ready: Ready::new(), end, report: Report::default() };
    for number in 0..count {
        talkers.ready.add(number, &talkers.all[number].stream);
        talkers.wait_for(number);
        talkers.talk_later(number);
    }
    let mut room = vec![0; AT_ONCE];
    let limit = end + STEP_LIMIT;
    let mut left = count;
    while left > 0 {
        assert!(now() < limit, "{left} of {count} connections have not ended: {}", talkers.unfinished());
        let next = talkers.tasks.peek().map_or(limit, |Reverse((at, ..))| *at);
        for number in talkers.ready.wait(next) {
            talkers.go_on(number, &mut room);
            left -= usize::from(talkers.all[number].state == TalkerState::Over);
        }
        talkers.do_tasks(now());
    }
    talkers.report
}

impl Talkers {
    fn wait_for(&self, number: usize) {
        let talker = &self.all[number];
        self.ready.wait_for(number, &talker.stream, talker.reads, talker.burst > 0);
    }

    fn talk_later(&mut self, number: usize) {
        let at = (now() + self.all[number].pause()).min(self.end);
        self.tasks.push(Reverse((at, number, Task::Talk)));
    }

    fn do_tasks(&mut self, now: Instant) {
        while let Some(&Reverse((at, number, task))) = self.tasks.peek() {
            if at > now {
                return;
            }
            self.tasks.pop();
            let talker = &mut self.all[number];
            match task {
                Task::ReadAgain => talker.reads = true,
                Task::Talk if at < self.end => {
                    talker.burst = talker.next_burst();
                    self.report.bursts += 1;
                    self.report.bytes += talker.burst as u64;
                    self.send(number);
                }
                Task::Talk => {
                    talker.state = TalkerState::Listens;
                    talker.stream.shutdown(Shutdown::Write).expect("shutdown");
                }
            }
            self.wait_for(number);
        }
    }

    fn send(&mut self, number: usize) {
        self.all[number].send(number);
        if self.all[number].burst == 0 {
            self.talk_later(number);
        }
    }

    /// Does what this one can do now.
    fn go_on(&mut self, number: usize, room: &mut [u8]) {
        if self.all[number].burst > 0 {
            self.send(number);
        }
        let talker = &mut self.all[number];
        if talker.reads && talker.receive(number, room) && talker.random.between(0, 199) == 0 {
            talker.reads = false;
            let pause = Duration::from_millis(talker.random.between(1, 700) as u64);
            self.tasks.push(Reverse((now() + pause, number, Task::ReadAgain)));
            self.report.slow_reads += 1;
        }
        if self.all[number].state == TalkerState::Over {
            self.ready.epoll.delete(&self.all[number].stream).expect("epoll");
        } else {
            self.wait_for(number);
        }
    }

    /// Says of some unfinished connections how far they are.
    fn unfinished(&self) -> String {
        let unfinished = self.all.iter().enumerate().filter(|(_, talker)| talker.state != TalkerState::Over);
        let lines = unfinished.take(5).map(|(number, talker)| {
            format!("connection {number}: {} bytes sent, {} came back", talker.sent, talker.received)
        });
        lines.collect::<Vec<_>>().join("; ")
    }
}
