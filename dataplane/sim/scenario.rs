//! What happens in a run: everything is drawn from the seed before it begins.
//!
//! Swarm style (Groce et al., 2012): each seed switches features and faults on or off as a whole, so that rare
//! combinations meet often enough.

use tcp::time::{Duration, Instant};

use crate::link::LinkPlan;
use crate::random::Random;

/// The server's port that the tap takes.
pub const TAPPED_PORT: u16 = 7000;
/// A port that no tap takes.
pub const UNTAPPED_PORT: u16 = 9000;
/// Added to a server's port: one at which nobody listens.
pub const REFUSED: u16 = 1;
/// Added to a server's port: one to which frames vanish.
pub const SILENT: u16 = 2;
/// The port of client number 0.
pub const FIRST_CLIENT_PORT: u16 = 40_000;

/// What stands between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// socktap.
    Workers,
    /// A wire: the control, by which hosts, links and oracle are proved right.
    Wire,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// VLAN ids of all frames, outermost first.
    pub vlan: Vec<u16>,
    /// Largest IP packet, by side.
    pub mtu: [usize; 2],
    /// Links by side: towards the middle, and from it.
    pub links: [[LinkPlan; 2]; 2],
    /// From then on the network is without fault.
    pub faults_end: Instant,
    /// The two hosts' sockets.
    pub hosts: [HostPlan; 2],
    /// The middle.
    pub middle: MiddlePlan,
    /// What the applications do.
    pub connections: Vec<ConnectionPlan>,
}

/// Sockets of a host.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Receive and send buffer of a socket, in bytes.
    pub buffers: [usize; 2],
    /// Nagle's algorithm.
    pub nagle: bool,
    /// Delay of acknowledgements.
    pub ack_delay: Option<Duration>,
    /// Interval of keep-alive probes. A host that only waits learns of a lost reset by no other way.
    pub keep_alive: Option<Duration>,
    /// Offers timestamps.
    pub timestamps: bool,
    /// Congestion control.
    pub cubic: bool,
    /// Frames leave with a checksum of the pseudo-header only, as those of a sender on the same machine do.
    pub partial_checksums: bool,
}

/// The middle.
#[derive(Clone, Debug)]
pub struct MiddlePlan {
    /// Number of workers.
    pub workers: usize,
    /// Frames of a batch, at most.
    pub batch: usize,
    /// Frames that a port can send after a batch, at most, while faults last.
    pub room: usize,
    /// Frames that can wait for the middle while faults last.
    pub ring: usize,
    /// How long a batch waits after the first frame of it arrived, at most.
    pub latency: Duration,
    /// The longest message.
    pub message: usize,
    /// By the side that bytes come from: whether the tap judges them.
    pub judged: [bool; 2],
    /// Whether the tap has verdicts, or parsers only.
    pub verdicts: bool,
    /// What cannot be cut into messages is discarded, and does not end the flow.
    pub discards: bool,
    /// Percent of batches with which a frame arrives that is noise.
    pub noise: usize,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct ConnectionPlan {
    /// When the client opens it.
    pub open_at: Instant,
    /// Port of the server.
    pub server_port: u16,
    /// Client and server.
    pub applications: [ApplicationPlan; 2],
}

/// What one application does with its end of a connection.
#[derive(Clone, Debug)]
pub struct ApplicationPlan {
    /// What it writes.
    pub writes: Vec<u8>,
    /// What of that the other application may read.
    pub passed: Vec<u8>,
    /// What it writes ends the connection: by a verdict, or because it cannot be cut into messages.
    pub disconnects: bool,
    /// Number of messages that are dropped.
    pub dropped: usize,
    /// The most bytes of one write.
    pub write: usize,
    /// Time between two writes.
    pub write_pause: Duration,
    /// The most bytes of one read.
    pub read: usize,
    /// Time between two reads.
    pub read_pause: Duration,
    /// When it begins to read, counted from the connection's beginning.
    pub read_after: Duration,
    /// Closes its direction only after it has seen the other's end.
    pub closes_second: bool,
    /// Aborts the connection when it has written so many bytes, after this time.
    pub abort: Option<(usize, Duration)>,
    /// Gives up when nothing happens for so long.
    pub patience: Option<Duration>,
}

/// What a seed switches on.
struct Features {
    loss: usize,
    duplicate: usize,
    reorder: usize,
    corrupt: usize,
    stingy: bool,
    drops: bool,
    disconnects: bool,
    malformed: bool,
    aborts: bool,
    refused: bool,
    untapped: bool,
    large: bool,
    slow: bool,
}

impl Scenario {
    /// The run of a seed.
    pub fn new(seed: u64, between: Between) -> Self {
        let random = &mut Random::new(seed);
        let ipv6 = random.chance(50);
        let on = Features::new(random);
        let middle = MiddlePlan::new(random, &on, between);
        let faults_end = Instant::from_millis(random.between(500, 20_000) as i64);
        let links = [(); 2].map(|()| [(); 2].map(|()| on.link(random)));
        let quiet = links.iter().flatten().all(LinkPlan::is_faultless) && !on.stingy && middle.ring >= 1024;
        let keep_alive = if quiet && random.chance(50) { None } else { Some(random.between(2, 20) as u64) };
        let hosts = [(); 2].map(|()| HostPlan::new(random, &on, keep_alive, between));
        let count = if random.chance(10) { random.between(8, 24) } else { random.between(1, 6) };
        let connections = (0..count).map(|_| on.connection(random, &middle, faults_end)).collect();
        Self {
            ipv6,
            vlan: (0..random.pick(&[0, 0, 0, 1, 2])).map(|_| random.between(1, 4094) as u16).collect(),
            mtu: [(); 2]
                .map(|()| if random.chance(50) { 1500 } else { random.between(if ipv6 { 1280 } else { 576 }, 1500) }),
            links,
            faults_end,
            hosts,
            middle,
            connections,
        }
    }
}

impl Features {
    fn new(random: &mut Random) -> Self {
        let faultless = random.chance(15);
        let mut fault = |percent: usize, most: usize| {
            if !faultless && random.chance(percent) { random.between(1, most) } else { 0 }
        };
        let (loss, duplicate, reorder, corrupt) = (fault(50, 20), fault(40, 20), fault(50, 30), fault(30, 10));
        Self {
            loss,
            duplicate,
            reorder,
            corrupt,
            stingy: !faultless && random.chance(25),
            drops: random.chance(70),
            disconnects: random.chance(40),
            malformed: random.chance(15),
            aborts: random.chance(30),
            refused: random.chance(30),
            untapped: random.chance(40),
            large: random.chance(30),
            slow: random.chance(40),
        }
    }

    fn link(&self, random: &mut Random) -> LinkPlan {
        // Not every link has every fault that is on.
        let mut maybe = |percent: usize| if random.chance(70) { percent } else { 0 };
        let (loss, duplicate, reorder, corrupt) =
            (maybe(self.loss), maybe(self.duplicate), maybe(self.reorder), maybe(self.corrupt));
        let faultless = self.loss + self.duplicate + self.reorder + self.corrupt == 0;
        LinkPlan {
            delay: Duration::from_micros(random.pick(&[1, 50, 1_000, 20_000, 100_000])),
            byte_ns: random.pick(&[0, 0, 1, 80, 800]),
            queue: if faultless { usize::MAX } else { random.pick(&[5, 50, 10_000]) },
            loss: 10 * loss,
            duplicate,
            reorder,
            hold: Duration::from_micros(random.pick(&[100, 5_000, 100_000, 1_500_000])),
            corrupt,
            pad: random.chance(50),
        }
    }

    fn connection(&self, random: &mut Random, middle: &MiddlePlan, faults_end: Instant) -> ConnectionPlan {
        let refused = self.refused && random.chance(25);
        let tapped = !(self.untapped && random.chance(35));
        let nobody = if refused { random.pick(&[REFUSED, REFUSED, SILENT]) } else { 0 };
        let server_port = nobody + if tapped { TAPPED_PORT } else { UNTAPPED_PORT };
        let judged = middle.judged.map(|judged| judged && tapped);
        let mut applications = judged.map(|judged| self.application(random, judged, middle));
        if applications[0].closes_second && applications[1].closes_second {
            applications[random.below(2)].closes_second = false;
        }
        if nobody == SILENT {
            applications[0].abort = Some((0, Duration::from_secs(random.between(1, 90) as u64)));
        }
        if applications.iter().any(|application| application.abort.is_some()) {
            // A lost reset leaves the other end waiting; real applications do not wait for ever.
            for application in &mut applications {
                application.patience = Some(Duration::from_secs(random.between(40, 90) as u64));
            }
        }
        let latest = (faults_end.total_millis() + 1000).min(5_000) as usize;
        ConnectionPlan { open_at: Instant::from_millis(random.below(latest) as i64), server_port, applications }
    }

    fn application(&self, random: &mut Random, judged: bool, middle: &MiddlePlan) -> ApplicationPlan {
        let stream = self.stream(random, judged, middle);
        let aborts = self.aborts && random.chance(25);
        let at = random.below(stream.writes.len() + 1);
        let slow = self.slow && random.chance(50);
        let pause = |random: &mut Random| {
            let longest = if slow { 200_000 } else { 2_000 };
            Duration::from_micros(if random.chance(50) { 0 } else { random.below(longest) as u64 })
        };
        ApplicationPlan {
            write: random.pick(&[7, 100, 1_000, 4_000, 100_000]).max(stream.writes.len() / 200),
            write_pause: pause(random),
            read: random.pick(&[50, 1_000, 10_000, 100_000]).max(stream.writes.len() / 200),
            read_pause: pause(random),
            read_after: Duration::from_millis(if slow { random.below(4_000) as u64 } else { 0 }),
            closes_second: random.chance(50),
            abort: aborts.then(|| (at, Duration::from_millis(random.below(500) as u64))),
            patience: None,
            ..stream
        }
    }

    /// What an application writes: messages of a 4-byte length and as many bytes, the first of which decides the verdict.
    fn stream(&self, random: &mut Random, judged: bool, middle: &MiddlePlan) -> ApplicationPlan {
        let mut plan = ApplicationPlan {
            writes: Vec::new(),
            passed: Vec::new(),
            disconnects: false,
            dropped: 0,
            write: 0,
            write_pause: Duration::ZERO,
            read: 0,
            read_pause: Duration::ZERO,
            read_after: Duration::ZERO,
            closes_second: false,
            abort: None,
            patience: None,
        };
        let count = if random.chance(10) { 0 } else { random.between(1, 40) };
        let ends = random.below(count + 1);
        let disconnects = self.disconnects && random.chance(40);
        let malformed = self.malformed && random.chance(30);
        let mut ended = false;
        for number in 0..count {
            let begin = plan.writes.len();
            let length = self.message_length(random, middle.message);
            plan.writes.extend((length as u32).to_be_bytes());
            random.fill(length, &mut plan.writes);
            let first = plan.writes.get_mut(begin + 4);
            let mut verdict = b'P';
            if let Some(first) = first {
                if number == ends && disconnects {
                    verdict = b'X';
                } else if self.drops && random.chance(30) {
                    verdict = b'D';
                }
                *first = verdict;
            }
            if judged && number == ends && malformed {
                ended = true;
                plan.disconnects |= !middle.discards;
                // A message that is too big, or whose end never comes.
                if random.chance(50) {
                    let too_big = middle.message as u32 - 3 + random.below(1000) as u32;
                    plan.writes[begin..begin + 4].copy_from_slice(&too_big.to_be_bytes());
                } else {
                    let left = random.between(1, 4 + length);
                    if left < 4 + length {
                        plan.writes.truncate(begin + left);
                    } else {
                        plan.writes[begin..begin + 4].copy_from_slice(&(length as u32 + 1).to_be_bytes());
                    }
                    break;
                }
            }
            match verdict {
                _ if ended => {}
                b'X' if judged && middle.verdicts => (ended, plan.disconnects) = (true, true),
                b'D' if judged && middle.verdicts => plan.dropped += 1,
                _ => plan.passed.extend_from_slice(&plan.writes[begin..]),
            }
        }
        plan
    }

    fn message_length(&self, random: &mut Random, most: usize) -> usize {
        let most = most - 4;
        if self.large && random.chance(10) {
            return random.between(most.saturating_sub(10).min(20_000), most.min(40_000));
        }
        let most = most.min(random.pick(&[4, 60, 500, 3_000]));
        random.between(0, most)
    }
}

impl HostPlan {
    /// The shift of the windows that a socket offers: just enough for its buffer to fit in 16 bits, as smoltcp does.
    pub fn window_scale(&self) -> usize {
        (usize::BITS - self.buffers[0].leading_zeros()).saturating_sub(16) as usize
    }

    fn new(random: &mut Random, on: &Features, keep_alive: Option<u64>, between: Between) -> Self {
        let buffer = |random: &mut Random| match on.slow {
            true => random.pick(&[600, 2_000, 8_000, 65_535]),
            false => random.pick(&[4_000, 16_000, 65_535, 200_000]),
        };
        Self {
            buffers: [buffer(random), buffer(random)],
            nagle: random.chance(50),
            ack_delay: random.chance(70).then(|| Duration::from_millis(random.pick(&[1, 10, 40, 200]))),
            keep_alive: keep_alive.map(Duration::from_secs),
            timestamps: random.chance(30),
            cubic: random.chance(50),
            // Over a wire, nobody would complete them.
            partial_checksums: on.corrupt == 0 && random.chance(15) && between == Between::Workers,
        }
    }
}

impl MiddlePlan {
    fn new(random: &mut Random, on: &Features, between: Between) -> Self {
        let workers = between == Between::Workers;
        let judged = random.pick(&[[true, true], [true, true], [true, false], [false, true], [false, false]]);
        Self {
            workers: random.pick(&[1, 1, 2, 3]),
            batch: random.pick(&[1, 4, 64]),
            room: if on.stingy { random.pick(&[1, 3, 10]) } else { 4096 },
            ring: if on.stingy { random.pick(&[4, 30, 1000]) } else { 1_000_000 },
            latency: Duration::from_micros(random.pick(&[0, 20, 2_000])),
            message: random.pick(&[300, 5_000, 64 * 1024]),
            judged: judged.map(|judged| judged && workers),
            verdicts: random.chance(90),
            discards: random.chance(30),
            noise: if random.chance(20) { 5 } else { 0 },
        }
    }
}
