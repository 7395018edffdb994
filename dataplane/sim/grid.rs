//! How much of a link one transfer gets, by its round-trip time and by what goes wrong on the link: a table, kept in `grid.txt`.
//!
//! ```text
//!   sender   client host ──no delay──▶ socktap ══════════════════════▶ sink
//!   both     client host ──no delay──▶ socktap ═════▶ socktap ──no delay──▶ sink
//!   wire     client host ════════════════════════════════════════════▶ sink
//!                           ═══ 100 Mbit/s, half the round-trip time, faults in both directions, up to 250 frames that wait
//! ```
//! - `sender` is socktap's sending half against a receiver that is no limit ([`crate::sink`]); `both` has its receiving half
//!   at the other end of the link; `wire`, the control, is the client's host alone: smoltcp, which knows no SACK, waits for a
//!   second or more, and sends again what has arrived. It is not what socktap has to be compared with.
//! - The last column is what a sender gets that follows CUBIC, in the long run. A transfer begins with slow start, and many a
//!   cell has too few losses to come down to the long run: then goodput is above that.
//! - Full segments, with the headers and the timestamps, leave 95.6 % of the rate to the text; the clock of the link,
//!   which counts whole microseconds, 95.0; slow start takes about 5 round trips.
//! - With `both` and many losses at once, as slow start overshoots, socktap's receiving half drops what would make more
//!   than 30 islands, and the sender has to send that again.
//!
//! `SOCKTAP_BLESS=1 cargo test -p dataplane --test sim goodput` writes the table anew. All of it comes from seeds; the same
//! machine gives the same table to the bit.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tcp::time::{Duration, Instant};

use crate::chain::Chain;
use crate::link::LinkPlan;
use crate::middle::{Middle, Wire};
use crate::network::{self, Network};
use crate::random::Random;
use crate::scenario::{ApplicationPlan, ConnectionPlan, HostPlan, MiddlePlan, Scenario, TAPPED_PORT};
use crate::sink::Sink;
use crate::workers::Workers;

/// Time that a byte takes on the link, in nanoseconds: 100 Mbit/s.
const BYTE_NS: u64 = 80;
/// Frames that may wait for the link.
const QUEUE: usize = 250;
/// Socket buffers of the hosts.
const BUFFER: usize = 4 << 20;
/// Text of a full segment: an MTU of 1500, and timestamps.
const MSS: f64 = 1448.0;
/// A transfer by the hosts alone that takes longer is cut short: smoltcp takes a second or more for many a loss.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Transfers of a cell; what counts is their median. (Of the control, there is one.)
const SEEDS: u64 = 3;

/// What the link does.
#[derive(Clone, Copy, Debug)]
struct Cell {
    /// Round-trip time in milliseconds.
    rtt: u64,
    /// Of a thousand frames, how many are lost, in each direction.
    loss: usize,
    /// Percent of frames that are held up for up to half a round trip.
    reorder: usize,
}

/// What carries the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    /// socktap sends across the link, to a host that takes all.
    Sender,
    /// One socktap sends across the link, and another one receives.
    Both,
    /// The client's host, which is smoltcp, sends across the link itself.
    Wire,
}

impl Cell {
    /// Bytes of a transfer: so many that slow start does not decide.
    fn transfer(&self) -> usize {
        if self.rtt > 10 { 16 << 20 } else { 8 << 20 }
    }
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for rtt in [0, 10, 50] {
        cells.extend([0, 1, 10, 30].map(|loss| Cell { rtt, loss, reorder: 0 }));
        cells.extend((rtt > 0).then_some(Cell { rtt, loss: 0, reorder: 1 }));
    }
    cells
}

fn scenario(seed: u64, cell: Cell) -> Scenario {
    let mut data = Vec::new();
    Random::new(seed).fill(cell.transfer(), &mut data);
    let application = |writes: Vec<u8>| ApplicationPlan {
        passed: writes.clone(),
        disconnects: false,
        dropped: 0,
        write: 1 << 20,
        write_pause: Duration::ZERO,
        read: 1 << 16,
        read_pause: Duration::ZERO,
        read_after: Duration::ZERO,
        closes_second: false,
        abort: None,
        patience: None,
        writes,
    };
    let applications = [application(data), application(Vec::new())];
    let near = LinkPlan {
        delay: Duration::ZERO,
        byte_ns: 0,
        queue: usize::MAX,
        loss: 0,
        duplicate: 0,
        reorder: 0,
        hold: Duration::ZERO,
        corrupt: 0,
        pad: false,
    };
    let far = LinkPlan {
        delay: Duration::from_millis(cell.rtt) / 2,
        byte_ns: BYTE_NS,
        queue: QUEUE,
        loss: cell.loss,
        reorder: cell.reorder,
        hold: Duration::from_millis(cell.rtt) / 2,
        ..near.clone()
    };
    let host = HostPlan {
        buffers: [BUFFER; 2],
        nagle: true,
        ack_delay: Some(Duration::from_millis(10)),
        keep_alive: None,
        timestamps: true,
        cubic: true,
        partial_checksums: false,
    };
    Scenario {
        ipv6: false,
        vlan: Vec::new(),
        mtu: [1500; 2],
        links: [[near.clone(), near], [far.clone(), far]],
        faults_end: Instant::from_secs(100_000),
        hosts: [host.clone(), host],
        middle: MiddlePlan {
            workers: 1,
            batch: 64,
            room: 4096,
            ring: usize::MAX,
            latency: Duration::ZERO,
            message: 64 * 1024,
            judged: [false; 2],
            verdicts: false,
            discards: false,
            noise: 0,
        },
        connections: vec![ConnectionPlan { open_at: Instant::ZERO, server_port: TAPPED_PORT, applications }],
    }
}

/// Runs one transfer. Returns what has arrived, and in which time from the SYN on.
fn transfer(seed: u64, cell: Cell, through: Through, trace: bool) -> (usize, Duration) {
    let mut scenario = scenario(seed, cell);
    let middle: Box<dyn Middle> = match through {
        Through::Sender => Box::new(Workers::new(seed, &scenario)),
        Through::Both => Box::new(Chain::new(seed, &scenario)),
        Through::Wire => Box::new(Wire),
    };
    if through == Through::Both {
        scenario.links[1] = scenario.links[0].clone();
    }
    let mut network = Network::new(seed, &scenario, middle, trace);
    if through == Through::Wire {
        network.time_limit = TIME_LIMIT;
    }
    network.sink = Some(Sink::new(network::addresses(scenario.ipv6)));
    let end = network.run();
    if trace {
        println!("{:#?}", network.middle.counts());
    }
    let (received, last) = network.sink.as_ref().map(Sink::received).expect("a sink");
    let data = &scenario.connections[0].applications[0].writes;
    assert!(data.starts_with(received), "seed {seed} {cell:?} {through:?}: other bytes arrived than were sent");
    match end {
        Ok(_) if received.len() == data.len() => (received.len(), last - Instant::ZERO),
        Err(_) if through == Through::Wire => (received.len(), TIME_LIMIT),
        end => panic!("seed {seed} {cell:?} {through:?}: {} bytes arrived; {end:?}", received.len()),
    }
}

/// Goodput of a cell in percent of the link's rate.
fn goodput(cell: Cell, through: Through) -> f64 {
    let rate = |seed: u64| {
        let (bytes, time) = transfer(seed, cell, through, false);
        100.0 * (bytes as u64 * BYTE_NS) as f64 / (1000 * time.total_micros()) as f64
    };
    let mut rates: Vec<f64> = (1..=if through == Through::Wire { 1 } else { SEEDS }).map(rate).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// What one transfer gets that reacts to losses as CUBIC does, in the long run: RFC 9438 §5.1, and where Reno would be faster, as Reno
/// (Mathis et al., 1997).
fn yardstick(cell: Cell) -> f64 {
    let most = 100.0 * MSS / 1514.0;
    let (rtt, p) = (cell.rtt as f64 / 1e3, cell.loss as f64 / 1e3);
    if p == 0.0 || rtt == 0.0 {
        return most;
    }
    let reno = (1.5 / p).sqrt();
    let cubic = 1.054 * (rtt / p).powf(0.75);
    (100.0 * reno.max(cubic) * MSS * BYTE_NS as f64 / (rtt * 1e9)).min(most)
}

fn table() -> String {
    let cells = cells();
    let columns = [Through::Sender, Through::Both, Through::Wire];
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![0.0; cells.len() * columns.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&cell) = cells.get(number / columns.len()) else { break };
                    let goodput = goodput(cell, columns[number % columns.len()]);
                    results.lock().expect("no thread panics with the lock")[number] = goodput;
                }
            });
        }
    });
    let results = results.into_inner().expect("no thread panics with the lock");
    let mut table = String::from("RTT    faults        sender    both    wire   CUBIC\n");
    for (cell, row) in cells.iter().zip(results.chunks(columns.len())) {
        let faults = match cell {
            Cell { reorder: 0, loss: 0, .. } => "none".to_owned(),
            Cell { reorder: 0, loss, .. } => format!("loss {} %", *loss as f64 / 10.0),
            Cell { reorder, .. } => format!("reorder {reorder} %"),
        };
        let (Cell { rtt, .. }, yardstick) = (cell, yardstick(*cell));
        let numbers: String = row.iter().chain([&yardstick]).map(|number| format!(" {number:>7.1}")).collect();
        writeln!(table, "{rtt:>2} ms  {faults:<12} {numbers}").expect("a string takes all");
    }
    table
}

#[test]
fn goodput_is_what_it_was() {
    let table = table();
    println!("{table}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/sim/grid.txt");
    if std::env::var_os("SOCKTAP_BLESS").is_some() {
        std::fs::write(path, &table).expect("grid.txt can be written");
        return;
    }
    let kept = std::fs::read_to_string(path).expect("grid.txt is there");
    assert!(table == kept, "the table is another one than in {path}; SOCKTAP_BLESS=1 rewrites it. It is now:\n{table}");
}

/// Runs one transfer and prints every frame: `SOCKTAP_CELL=rtt,loss,reorder,through,seed`, `through` being 0 to 2.
#[test]
fn one_cell() {
    let Ok(cell) = std::env::var("SOCKTAP_CELL") else { return };
    let parts: Vec<u64> = cell.split(',').map(|part| part.parse().expect("a number")).collect();
    let &[rtt, loss, reorder, through, seed] = &parts[..] else { panic!("five numbers") };
    let cell = Cell { rtt, loss: loss as usize, reorder: reorder as usize };
    let through = [Through::Sender, Through::Both, Through::Wire][through as usize];
    println!("{:?}", transfer(seed, cell, through, true));
}
