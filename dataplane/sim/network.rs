//! Hosts, links and middle in virtual time: one queue of events, ordered by time and then by when they were put in.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use tcp::time::{Duration, Instant};

use crate::frames::{self, Segment};
use crate::host::{Addresses, Host};
use crate::link::Link;
use crate::middle::{Middle, Outbox, Sided};
use crate::mirror::Mirror;
use crate::random::{Random, mix};
use crate::scenario::{SILENT, Scenario, TAPPED_PORT, UNTAPPED_PORT};
use crate::sink::Sink;

/// All must be quiet by then: some readers take 50 bytes at a time, a few times a second.
const TIME_LIMIT: Duration = Duration::from_secs(60 * 60);
/// And after so many events: more are a loop.
const EVENT_LIMIT: usize = 500_000;
/// The middle may ask to be called for nothing so many times in a row.
const IDLE_LIMIT: usize = 2_000;

enum Event {
    ToMiddle(usize, Vec<u8>),
    ToHost(usize, Vec<u8>),
    WakeHost(usize),
    WakeMiddle,
}

/// A run.
pub struct Network {
    /// The client's and the server's host.
    pub hosts: [Host; 2],
    /// Takes the place of the server's host.
    pub sink: Option<Sink>,
    /// What is between them.
    pub middle: Box<dyn Middle>,
    scenario: Scenario,
    now: Instant,
    /// What is to happen, by time and then by number: the order is always the same.
    events: BTreeMap<(Instant, usize), Event>,
    event_count: usize,
    links: [[Link; 2]; 2],
    /// Frames that wait for the middle.
    ring: VecDeque<Sided>,
    /// When hosts and middle are to be called next: an event for another time is out of date.
    host_wake: [Option<Instant>; 2],
    middle_wake: Option<Instant>,
    idle_wakes: usize,
    /// Initial sequence numbers that each host has used, by the client's port.
    initial: [BTreeMap<u16, Vec<u32>>; 2],
    mirror: Mirror,
    random: Random,
    hash: u64,
    trace: bool,
    /// When all must be quiet.
    pub time_limit: Duration,
}

impl Network {
    /// All is set up, nothing has happened. `trace` prints every frame.
    pub fn new(seed: u64, scenario: &Scenario, middle: Box<dyn Middle>, trace: bool) -> Self {
        let mut random = Random::new(mix(seed));
        let addresses = addresses(scenario.ipv6);
        let mut host = |side: usize| {
            let Scenario { vlan, mtu, hosts, connections, .. } = scenario;
            Host::new(side, addresses, vlan, mtu[side], &hosts[side], connections, random.fork())
        };
        let hosts = [host(0), host(1)];
        let links = scenario
            .links
            .clone()
            .map(|directions| directions.map(|plan| Link::new(plan, scenario.faults_end, random.fork())));
        Self {
            hosts,
            sink: None,
            middle,
            scenario: scenario.clone(),
            now: Instant::ZERO,
            events: BTreeMap::new(),
            event_count: 0,
            links,
            ring: VecDeque::new(),
            host_wake: [None; 2],
            middle_wake: None,
            idle_wakes: 0,
            initial: Default::default(),
            mirror: Mirror::default(),
            random,
            hash: 0,
            trace,
            time_limit: TIME_LIMIT,
        }
    }

    /// Runs until nothing is left to happen. The hash is over all frames and their times.
    pub fn run(&mut self) -> Result<u64, String> {
        for side in 0..2 {
            self.step_host(side, None)?;
        }
        self.run_until_quiet()?;
        let done = [self.hosts[0].is_done(), self.sink.as_ref().map_or_else(|| self.hosts[1].is_done(), Sink::is_done)];
        if let Some(side) = done.iter().position(|done| !done) {
            return Err(format!("nothing happens any more, but side {side} is not done\n{}", self.describe()));
        }
        if self.middle.leftovers().is_some() {
            // Hosts that abort forget; with their resets lost, whoever waits for their bytes waits on, as in TCP without us.
            // The next segment between the same ends must show that nobody is there any more.
            self.now = self.now.max(self.scenario.faults_end);
            for side in 0..2 {
                for frame in self.hosts[side].segments_of_the_dead() {
                    self.carry(side, 0, frame);
                }
            }
            self.run_until_quiet()?;
        }
        match self.middle.leftovers() {
            Some(left) => Err(format!("left at the end, {}: {left}\n{}", self.now, self.describe())),
            None => Ok(self.hash),
        }
    }

    fn run_until_quiet(&mut self) -> Result<(), String> {
        while let Some(((time, _), event)) = self.events.pop_first() {
            self.now = time;
            if time > Instant::ZERO + self.time_limit || self.event_count > EVENT_LIMIT {
                return Err(format!("not quiet after {time} and {} events\n{}", self.event_count, self.describe()));
            }
            match event {
                Event::ToMiddle(from, frame) => self.arrive_at_middle(from, frame),
                Event::ToHost(to, frame) => {
                    self.note(3 + to, &frame);
                    self.step_host(to, Some(frame))?;
                }
                Event::WakeHost(side) if self.host_wake[side] == Some(time) => self.step_host(side, None)?,
                Event::WakeMiddle if self.middle_wake == Some(time) => self.step_middle()?,
                Event::WakeHost(_) | Event::WakeMiddle => {}
            }
        }
        Ok(())
    }

    /// Number of events so far.
    pub fn event_count(&self) -> usize {
        self.event_count
    }

    fn push(&mut self, time: Instant, event: Event) {
        self.event_count += 1;
        self.events.insert((time.max(self.now), self.event_count), event);
    }

    fn step_host(&mut self, side: usize, frame: Option<Vec<u8>>) -> Result<(), String> {
        let mut sent = Vec::new();
        let wake = match &mut self.sink {
            Some(sink) if side == 1 => sink.step(self.now, frame, |frame| sent.push(frame)),
            _ => self.hosts[side].step(self.now, frame, |frame| sent.push(frame))?,
        };
        for frame in sent {
            if let Some(segment) = frames::segment(&frame).filter(|segment| segment.syn) {
                let client_port = [segment.source, segment.destination][side];
                self.initial[side].entry(client_port).or_default().push(segment.seq);
            }
            self.mirror.said(side, &frame);
            self.carry(side, 0, frame);
        }
        // A host that wants to be called at once gets the time on: it has just done all that it could.
        let wake = wake.map(|wake| wake.max(self.now + Duration::from_micros(1)));
        if wake != self.host_wake[side] || wake.is_some_and(|wake| wake <= self.now) {
            self.host_wake[side] = wake;
            if let Some(wake) = wake {
                self.push(wake, Event::WakeHost(side));
            }
        }
        Ok(())
    }

    /// Puts a frame on a link: `way` 0 from host `side` to the middle, 1 from the middle to host `side`.
    fn carry(&mut self, side: usize, way: usize, frame: Vec<u8>) {
        let mut arrivals = Vec::new();
        self.links[side][way].carry(self.now, frame, |time, frame| arrivals.push((time, frame)));
        for (time, frame) in arrivals {
            self.push(time, if way == 0 { Event::ToMiddle(side, frame) } else { Event::ToHost(side, frame) });
        }
    }

    fn arrive_at_middle(&mut self, from: usize, frame: Vec<u8>) {
        self.note(from, &frame);
        let faults = self.now < self.scenario.faults_end;
        if faults && self.ring.len() >= self.scenario.middle.ring {
            return;
        }
        self.ring.push_back((from, frame));
        let latency = self.random.below(self.scenario.middle.latency.total_micros() as usize + 1);
        self.wake_middle(self.now + Duration::from_micros(latency as u64));
    }

    fn wake_middle(&mut self, time: Instant) {
        if self.middle_wake.is_none_or(|wake| wake > time) {
            self.middle_wake = Some(time);
            self.push(time, Event::WakeMiddle);
        }
    }

    fn step_middle(&mut self) -> Result<(), String> {
        self.middle_wake = None;
        let plan = &self.scenario.middle;
        let faults = self.now < self.scenario.faults_end;
        let most = self.random.between(1, plan.batch).min(self.ring.len());
        let mut batch: Vec<Sided> = self.ring.drain(..most).collect();
        if faults && self.random.chance(plan.noise) {
            batch.push(noise(&mut self.random, &batch));
        }
        let mut room = || if faults && plan.room < 100 { self.random.below(plan.room + 1) } else { 4096 };
        let mut out = Outbox { room: [room(), room()], frames: Vec::new() };
        let received = batch.len();
        self.middle.batch(self.now, batch, &mut out)?;
        self.idle_wakes = if received > 0 || !out.frames.is_empty() { 0 } else { self.idle_wakes + 1 };
        if self.idle_wakes > IDLE_LIMIT {
            return Err(format!("the middle spins at {}: poll_at {:?}", self.now, self.middle.poll_at()));
        }
        for (to, frame) in out.frames {
            self.check_sent(to, &frame)?;
            self.note(5 + to, &frame);
            let vanishes = frames::segment(&frame)
                .is_some_and(|segment| [TAPPED_PORT + SILENT, UNTAPPED_PORT + SILENT].contains(&segment.destination));
            if !vanishes {
                self.carry(to, 1, frame);
            }
        }
        if !self.ring.is_empty() || self.middle.has_work() {
            self.wake_middle(self.now + Duration::from_micros(20));
        } else if let Some(time) = self.middle.poll_at() {
            self.wake_middle(time.max(self.now + Duration::from_micros(1)));
        }
        Ok(())
    }

    /// Every segment that leaves the middle is well formed, fits, and says what the host across has said.
    fn check_sent(&mut self, to: usize, frame: &[u8]) -> Result<(), String> {
        let Some(segment) = frames::segment(frame) else { return Ok(()) };
        // Damage goes across with what is not tapped, and is found by the host.
        if !segment.checksums_good {
            return Ok(());
        }
        let tapped = segment.source == TAPPED_PORT || segment.destination == TAPPED_PORT;
        if tapped && segment.ip_length > self.scenario.mtu[to] {
            return Err(format!(
                "a segment of {} bytes for an MTU of {}: {segment}",
                segment.ip_length, self.scenario.mtu[to]
            ));
        }
        let client_port = [segment.destination, segment.source][to];
        let chosen = self.initial[1 - to].get(&client_port);
        if segment.syn && !chosen.is_some_and(|chosen| chosen.contains(&segment.seq)) {
            return Err(format!("{segment} to side {to} opens with a number that is not one of {chosen:?}"));
        }
        if self.middle.terminates() { self.mirror.told(to, frame, &self.scenario.connections) } else { Ok(()) }
    }

    /// Hashes, and perhaps prints, a frame that arrives (0, 1: at the middle; 3, 4: at a host) or leaves the middle (5, 6).
    fn note(&mut self, place: usize, frame: &[u8]) {
        self.hash = mix(self.hash ^ self.now.total_micros() as u64) ^ place as u64;
        for bytes in frame.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.hash = (self.hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        if self.trace {
            let place = [
                "client ──▶ middle",
                "middle ◀── server",
                "",
                "client ◀──",
                "──▶ server",
                "client ◀── middle",
                "middle ──▶ server",
            ][place];
            let what =
                frames::segment(frame).map_or_else(|| format!("{frame:02x?}"), |segment: Segment| segment.to_string());
            println!("{:>12} {place:<18} {what}", self.now.total_micros());
        }
    }

    /// The state of everything, for a report.
    pub fn describe(&self) -> String {
        let [client, server] = &self.hosts;
        let left = self.middle.leftovers();
        format!("{}{}  middle: {left:?} poll_at {:?}\n", client.describe(), server.describe(), self.middle.poll_at())
    }
}

/// A frame that means nothing to anyone: random bytes, or the beginning of a real frame with damage.
fn noise(random: &mut Random, batch: &[Sided]) -> Sided {
    let side = random.below(2);
    let mut frame = Vec::new();
    if let Some((_, real)) = batch.first()
        && random.chance(50)
    {
        // Cut within the IP packet, or as something that is not IP.
        let end = frames::covered_by_checksum(real).end;
        if end > 14 && random.chance(50) {
            frame.extend(&real[..random.between(14, end - 1)]);
        } else {
            frame.extend(real);
            frame[12..14].copy_from_slice(&[0x08, 0x06]);
        }
    } else {
        let length = random.between(14, 200);
        random.fill(length, &mut frame);
        // Unicast, and to nobody.
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 99]);
    }
    (side, frame)
}

/// Addresses of the two hosts.
pub fn addresses(ipv6: bool) -> Addresses {
    let ip = match ipv6 {
        false => [1, 2].map(|last| Ipv4Addr::new(10, 0, 0, last).into()),
        true => [1, 2].map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()),
    };
    Addresses { mac: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], ip }
}
