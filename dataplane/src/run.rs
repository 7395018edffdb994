//! `socktap run`: from a checked ops file to running workers, and back.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use config::Config;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info};
use xdp_redirect::{Attached, Cross, Frame, Port, RING_SIZE, Rule, Socket, SocketConfig, Steering, Umem, XdpMode};

use crate::control::{ControlServer, ControlSocket, Service};
use crate::events::{EventSink, TapLabel};
use crate::io::{IoConfig, IoLoop, Mailbox, Published, now};
use crate::load::{LoadFailure, LoadedTap, Prepared, Runner};
use crate::metrics::MetricsServer;
use crate::programs::Generations;
use crate::records::Records;
use crate::reload::{Reloader, Workers};
use crate::samples::Snapshot;
use crate::steer::{Selection, Side};
use crate::worker::{Tap, TapState, Worker, WorkerConfig};

/// Bytes of a UMEM frame.
const FRAME_SIZE: u32 = 4096;
/// rx queues of both ports that one worker can serve.
const SOCKETS_PER_WORKER: usize = 60;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ops file names something that is not there or not acceptable.
    #[error(transparent)]
    Load(#[from] LoadFailure),
    /// A program that was checked before cannot be made ready to run.
    #[error(transparent)]
    Program(#[from] tap_engine::LoadError),
    /// The steering program cannot be loaded or attached.
    #[error(transparent)]
    Steering(#[from] xdp_redirect::SteeringError),
    /// Frames cannot be shared with the kernel.
    #[error(transparent)]
    Umem(#[from] xdp_redirect::UmemError),
    /// An rx queue got no AF_XDP socket.
    #[error(transparent)]
    Bind(#[from] xdp_redirect::BindError),
    /// An AF_XDP socket failed while it was used: its interface went down or away.
    #[error("an AF_XDP socket failed: {0}")]
    Socket(#[source] std::io::Error),
    /// Message memory cannot be had.
    #[error(transparent)]
    Memory(#[from] tap_engine::MemoryError),
    /// The metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// The events cannot be written.
    #[error(transparent)]
    Events(#[from] crate::events::EventsError),
    /// Commands cannot be heard.
    #[error(transparent)]
    Control(#[from] crate::control::ControlError),
    /// More queues than workers can serve, or fewer than workers asked for.
    #[error("{0}")]
    Queues(String),
    /// The operating system refused something else.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// A worker ended although nobody asked it to.
    #[error("worker {0} failed: {1}")]
    Worker(usize, String),
}

/// Runs the dataplane until SIGINT or SIGTERM. SIGHUP reads the ops file again.
pub fn run(config: &Config) -> Result<(), RunError> {
    let Prepared { ports, taps, maps } = crate::load::prepare(config)?;
    let cross = crate::load::cross(config, &ports);
    let worker_count = worker_count(config, &ports)?;
    let cores = cores(config, worker_count)?;
    // From here on a signal is heard, however long the start takes.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| RunError::System("signals", error))?;
    let signal_handle = signals.handle();
    let control = config.control.as_ref().map(|path| ControlSocket::bind(&path.value)).transpose()?;

    let rules: Vec<Rule> = taps.iter().map(|tap| rule(&tap.config)).collect();
    let mut steering =
        Steering::attach(&ports[0], &ports[1], &rules, xdp_mode(config), cross, crate::load::fragments(config))?;
    steering.set_observing(taps.iter().map(LoadedTap::observes))?;
    let sockets = bind(&ports, worker_count, &mut steering)?;

    let published: Vec<Arc<Mutex<Published>>> = (0..worker_count).map(|_| Arc::default()).collect();
    let mailboxes = Mailbox::for_workers(worker_count).map_err(|errno| RunError::System("eventfd", errno.into()))?;
    let events = match &config.events {
        Some(output) => Some(EventSink::open(output, taps.iter().map(|tap| TapLabel::from(&tap.config)).collect())?),
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let seeds = Seeds::from_kernel()?;

    let mut threads = Vec::new();
    for (index, (sockets, frames)) in sockets.into_iter().enumerate() {
        let setup = Setup {
            index,
            worker_count,
            core: cores.get(index).copied(),
            seeds,
            mtu: [ports[0].mtu as usize, ports[1].mtu as usize],
            ifindex: [ports[0].ifindex, ports[1].ifindex],
            partial: [ports[0].partial_checksums(), ports[1].partial_checksums()],
            fragments: config.ports.fragments,
            flows: config.limits.flows.div_ceil(worker_count),
            message: config.limits.message,
            taps: taps.clone(),
            io: IoConfig {
                index,
                sockets,
                frames,
                mailboxes: Arc::clone(&mailboxes),
                published: Arc::clone(&published[index]),
                events: events.clone(),
                busy: config.workers.poll == config::Poll::Busy,
            },
        };
        let (stop, signal_handle) = (Arc::clone(&stop), signal_handle.clone());
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // Whichever way this thread ends, the others are to end too.
            scopeguard::defer! { signal_handle.close() }
            setup.run(&stop)
        });
        threads.push(thread.map_err(|error| RunError::System("thread", error))?);
    }

    let records = Records::start(events.clone()).map_err(|error| RunError::System("thread", error))?;
    let steering = Arc::new(Mutex::new(steering));
    let metrics = match config.metrics {
        Some(listen) => {
            let snapshot = Snapshot {
                taps: taps.iter().map(|tap| tap.config.name.value.clone()).collect(),
                published: published.clone(),
                steering: Arc::clone(&steering),
                events: events.clone(),
                records: records.clone(),
            };
            Some(MetricsServer::serve(listen, move || snapshot.samples())?)
        }
        None => None,
    };
    let watchers =
        Workers { mailboxes: Arc::clone(&mailboxes), steering: Arc::clone(&steering), records, seed: seeds.private };
    let reloader = Arc::new(Reloader::new(config.clone(), taps, maps, watchers));
    let service = Service { reloader: Arc::clone(&reloader), published };
    let control = control.map(|socket| ControlServer::start(socket, service)).transpose()?;
    announce(config, &ports, &steering.lock().expect("not poisoned").modes(), cross, worker_count);

    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("signal {signal}: ending");
            break;
        }
        match reloader.reload(config.source.path()) {
            Ok(generation) => info!("reloaded: generation {generation} runs"),
            Err(failure) => error!("not reloaded: {failure}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    mailboxes.iter().for_each(Mailbox::interrupt);
    let mut outcome = Ok(());
    for (index, thread) in threads.into_iter().enumerate() {
        let result = thread.join().unwrap_or_else(|_| Err(RunError::Worker(index, "it panicked".into())));
        if let Err(failure) = result {
            error!("worker {index}: {failure}");
            outcome = Err(failure);
        }
    }
    drop(control);
    drop(metrics);
    drop(steering);
    info!("socktap has ended: programs detached, flows reset");
    outcome
}

/// What a worker thread is given; its programs are made in the thread itself, since they do not move.
struct Setup {
    index: usize,
    worker_count: usize,
    core: Option<core_affinity::CoreId>,
    seeds: Seeds,
    mtu: [usize; 2],
    ifindex: [u32; 2],
    partial: [bool; 2],
    fragments: config::Fragments,
    flows: usize,
    message: usize,
    taps: Vec<LoadedTap>,
    io: IoConfig,
}

impl Setup {
    fn run(self, stop: &AtomicBool) -> Result<(), RunError> {
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!("worker {} could not be pinned to core {}", self.index, core.id);
        }
        let seed = self.seeds.private.wrapping_add(self.index as u64);
        let runner = Runner { worker: self.index, max_message: self.message, seed };
        let taps = self.taps.iter().map(|tap| make_tap(tap, &runner)).collect::<Result<_, _>>()?;
        let config = WorkerConfig {
            index: self.index,
            workers: self.worker_count,
            seed,
            owner_seed: self.seeds.shared,
            mtu: self.mtu,
            ifindex: self.ifindex,
            accept_partial_checksums: self.partial,
            fragments: self.fragments,
            flows: self.flows,
            message: self.message,
            taps,
        };
        let worker = Worker::new(config, now())?;
        IoLoop::new(worker, self.io).run(stop).map_err(RunError::Socket)
    }
}

/// Secrets of this run.
#[derive(Clone, Copy)]
struct Seeds {
    private: u64,
    shared: u64,
}

impl Seeds {
    fn from_kernel() -> Result<Self, RunError> {
        let mut bytes = [[0; 8]; 2];
        let mut source =
            std::fs::File::open("/dev/urandom").map_err(|error| RunError::System("/dev/urandom", error))?;
        for secret in &mut bytes {
            std::io::Read::read_exact(&mut source, secret).map_err(|error| RunError::System("/dev/urandom", error))?;
        }
        let [private, shared] = bytes.map(u64::from_ne_bytes);
        Ok(Self { private, shared })
    }
}

fn make_tap(tap: &LoadedTap, runner: &Runner) -> Result<Tap, tap_engine::LoadError> {
    let instances = tap.instances(runner)?;
    Ok(Tap {
        name: tap.config.name.value.clone(),
        selection: Selection {
            servers: tap.config.servers.clone(),
            server_ports: tap.config.server_ports.clone(),
            clients: tap.config.clients.clone(),
            observes: instances.observe,
        },
        state: TapState {
            programs: instances.programs.map(Generations::new),
            application: match tap.config.application {
                config::Application::Server => Side::Server,
                config::Application::Client => Side::Client,
            },
            observe: instances.observe,
            on_parse_error: instances.on_parse_error,
            message_timeout: instances.message_timeout,
            midstream: tap.config.midstream,
        },
    })
}

fn rule(tap: &config::Tap) -> Rule {
    Rule { servers: tap.servers.clone(), server_ports: tap.server_ports.clone(), clients: tap.clients.clone() }
}

fn xdp_mode(config: &Config) -> XdpMode {
    match config.ports.xdp_mode {
        config::XdpMode::Auto => XdpMode::Auto,
        config::XdpMode::Native => XdpMode::Native,
        config::XdpMode::Skb => XdpMode::Skb,
    }
}

/// How many workers there are, if there are queues for all of them.
fn worker_count(config: &Config, ports: &[Port; 2]) -> Result<usize, RunError> {
    let workers = crate::load::worker_count(config, ports.each_ref());
    let queues = ports.each_ref().map(|port| port.rx_queues as usize);
    let pairs = queues[0].min(queues[1]);
    if workers > pairs {
        return Err(RunError::Queues(format!(
            "workers.cores names {workers} cores, but {} has {} rx queue(s) and {} has {}: name at most {pairs}",
            ports[0].name, queues[0], ports[1].name, queues[1],
        )));
    }
    Ok(workers)
}

/// The cores to pin the workers to, in their order.
fn cores(config: &Config, worker_count: usize) -> Result<Vec<core_affinity::CoreId>, RunError> {
    let there = core_affinity::get_core_ids().unwrap_or_default();
    match &config.workers.cores {
        None => Ok(there.into_iter().take(worker_count).collect()),
        Some(wanted) => Ok(wanted
            .iter()
            .map(|core| there.iter().find(|id| id.id == core.value).copied().ok_or(core))
            .collect::<Result<_, _>>()
            .map_err(|core| {
                let message = format!("core {} does not exist or is not ours to use", core.value);
                let known = there.iter().map(|id| id.id.to_string()).collect::<Vec<_>>().join(", ");
                let help = format!("the cores here are {known}");
                LoadFailure { problems: vec![config.diagnostic(core.at, message, Some(&help))] }
            })?),
    }
}

/// Binds a socket to every rx queue of both ports, and deals them out to the workers with their frames.
#[expect(clippy::type_complexity, reason = "sockets by side, and frames, of each worker")]
fn bind(
    ports: &[Port; 2],
    worker_count: usize,
    steering: &mut Steering,
) -> Result<Vec<([Vec<Socket>; 2], Vec<Frame>)>, RunError> {
    let socket_count = ports.iter().map(|port| port.rx_queues).sum::<u32>();
    // Enough to fill the fill, rx and tx rings at once.
    let frames_per_socket = 3 * RING_SIZE + RING_SIZE / 4;
    let (umem, mut frames) = Umem::new(socket_count * frames_per_socket, FRAME_SIZE)?;
    let modes = steering.modes();
    let mut workers: Vec<([Vec<Socket>; 2], Vec<Frame>)> = (0..worker_count).map(|_| Default::default()).collect();
    // All sockets of a umem work as the first one that is bound.
    let force_copy = modes.0 == Attached::Skb || modes.1 == Attached::Skb;
    for (side, port) in Side::BOTH.into_iter().zip(ports) {
        for queue in 0..port.rx_queues {
            let settings = SocketConfig { force_copy, ..SocketConfig::default() };
            let socket = Socket::bind(&umem, port, queue, &settings)?;
            steering.register(port_side(side), queue, socket.as_fd())?;
            let worker = &mut workers[queue as usize % worker_count];
            worker.1.extend(frames.drain(frames.len() - frames_per_socket as usize..));
            worker.0[side as usize].push(socket);
        }
    }
    if workers.iter().any(|(sockets, _)| sockets.iter().map(Vec::len).sum::<usize>() > SOCKETS_PER_WORKER) {
        return Err(RunError::Queues(format!("more than {SOCKETS_PER_WORKER} rx queues a worker: name more cores")));
    }
    Ok(workers)
}

fn port_side(side: Side) -> xdp_redirect::Side {
    match side {
        Side::Client => xdp_redirect::Side::Client,
        Side::Server => xdp_redirect::Side::Server,
    }
}

/// Says that traffic flows now, and how.
fn announce(config: &Config, ports: &[Port; 2], modes: &(Attached, Attached), cross: Cross, workers: usize) {
    let mode = |mode: &Attached| match mode {
        Attached::Native => "native",
        Attached::Skb => "skb",
    };
    info!(
        "socktap is running: client port {} ({}, {}), server port {} ({}, {}), {workers} worker(s), {} tap(s), other traffic crosses {}",
        ports[0].name,
        ports[0].driver,
        mode(&modes.0),
        ports[1].name,
        ports[1].driver,
        mode(&modes.1),
        config.taps.len(),
        match cross {
            Cross::Devmap => "in the driver",
            Cross::Worker => "through the workers",
        },
    );
    // In native mode the kernel takes this offload from the peer of a veth; in skb mode it does not.
    for (port, mode) in ports.iter().zip([modes.0, modes.1]) {
        if mode == Attached::Skb && port.driver == "veth" {
            tracing::warn!(
                "{}: in skb mode on a veth, frames longer than the MTU are lost: turn segmentation offload off at its peer, \
                 `ethtool -K PEER tso off gso off`",
                port.name
            );
        }
    }
}
