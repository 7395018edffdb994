//! Loads the XDP program, fills its maps and attaches it to the two ports.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, DevMap, LpmTrie, Map, MapData, MapError, PerCpuArray, XskMap, lpm_trie::Key},
    programs::{ProgramError, TestRun, TestRunOptions, Xdp, links::FdLink, xdp},
};

use crate::{
    Side,
    counters::COUNTERS,
    port::Port,
    prefixes::{MAX_PREFIXES, MAX_RULES, Prefixes, Rule, port_masks},
    sys,
};

/// The most rx queues of one port (`MAX_QUEUES` of `bpf/steer.bpf.c`).
pub const MAX_QUEUES: u32 = 1024;

/// The program's functions, by side.
const FUNCTIONS: [&str; 2] = ["steer_client", "steer_server"];

/// `enum xdp_action` of `linux/bpf.h`.
const XDP_REDIRECT: u32 = 4;

/// An object file whose bytes start where an ELF header may start.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o")));

/// How the XDP program is to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native; if a port's driver cannot, skb mode on that port, with a warning.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's general receive path, which every interface has; slower.
    Skb,
}

/// How the XDP program is attached to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// In the driver.
    Native,
    /// In the kernel's general receive path. Sockets on this port need [`crate::SocketConfig::force_copy`].
    Skb,
}

/// What becomes of frames that no tap selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cross {
    /// XDP redirects them to the other port. Right where [`Port::passes_redirect`] says so of both ports.
    Devmap,
    /// They go to the AF_XDP socket of their rx queue, too, and the worker forwards them: needs nothing of the ports,
    /// and the worker can complete partial checksums. While a queue has no socket, they are redirected.
    Worker,
}

/// What becomes of IP fragments of TCP between two addresses that a tap selects. All other fragments cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fragments {
    /// They are dropped: they could be of a tapped flow, and cannot be judged.
    #[default]
    Drop,
    /// They cross, unjudged.
    Cross,
}

/// What the program would do with a frame, see [`Steering::decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To a socket or across; which of them, the counters say.
    Redirect,
    /// Dropped: selected, and there is no socket; or perhaps of a tapped flow, and not to be judged.
    Drop,
}

/// Why steering could not be set up, or failed later.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// More taps than the masks have bits.
    #[error("{0} taps are too many: at most {MAX_RULES}")]
    TooManyRules(usize),
    /// More prefixes than a map holds.
    #[error("{count} different {what} prefixes are too many: at most {MAX_PREFIXES} of each address family")]
    TooManyPrefixes {
        /// "server" or "client".
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// More queues than the map of sockets has places.
    #[error("port `{port}` has {queues} rx queues, at most {MAX_QUEUES} are possible: ethtool -L {port} ...")]
    TooManyQueues {
        /// The port's name.
        port: String,
        /// How many it has.
        queues: u32,
    },
    /// Both ports are the same interface.
    #[error("`{0}` cannot be the client port and the server port")]
    SamePort(String),
    /// The kernel did not load the program or its maps.
    #[error("cannot load the XDP program: {0} (CAP_BPF and CAP_NET_ADMIN, in practice root, are needed)")]
    Load(String),
    /// A map could not be read or written.
    #[error("cannot {action} of the XDP program: {cause}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        cause: String,
    },
    /// The program could not be attached.
    #[error("cannot attach XDP to port `{port}` in {mode} mode: {reason}")]
    Attach {
        /// The port's name.
        port: String,
        /// "native" or "skb".
        mode: &'static str,
        /// Why, and what can be done.
        reason: String,
    },
    /// The port cannot be made promiscuous, without which it takes no frames for other hosts.
    #[error("cannot make port `{port}` promiscuous: {source}")]
    Promiscuous {
        /// The port's name.
        port: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The XDP program, attached to both ports until this value is dropped or the process ends.
#[derive(Debug)]
pub struct Steering {
    ebpf: Ebpf,
    modes: [Attached; 2],
    /// Each closes its bpf_link, which detaches the program.
    _links: [FdLink; 2],
    _promiscuous: [OwnedFd; 2],
}

impl Steering {
    /// Loads the program, writes `rules` (one per tap) into its maps and attaches it to both ports by bpf_links. From
    /// then on the ports belong to the pair: nothing that arrives on them reaches the kernel's own stack.
    ///
    /// Selected frames are dropped until [`Steering::register`].
    pub fn attach(
        client: &Port,
        server: &Port,
        rules: &[Rule],
        mode: XdpMode,
        cross: Cross,
        fragments: Fragments,
    ) -> Result<Steering, SteeringError> {
        let ports = [client, server];
        check(ports, rules)?;
        let prefixes = [Prefixes::of(rules, |rule| &rule.servers), Prefixes::of(rules, |rule| &rule.clients)];
        let mut ebpf = load(&prefixes, cross, fragments)?;
        write_rules(&mut ebpf, &prefixes, rules)?;
        write_ports(&mut ebpf, ports)?;

        // Attached together: when the second fails, dropping the first link detaches it.
        let (client_link, client_mode) = attach_port(&mut ebpf, Side::Client, client, mode)?;
        let (server_link, server_mode) = attach_port(&mut ebpf, Side::Server, server, mode)?;
        Ok(Steering {
            ebpf,
            modes: [client_mode, server_mode],
            _links: [client_link, server_link],
            _promiscuous: [promiscuous(client)?, promiscuous(server)?],
        })
    }

    /// How the program is attached to the client port and to the server port.
    pub fn modes(&self) -> (Attached, Attached) {
        (self.modes[0], self.modes[1])
    }

    /// Makes `socket`, an AF_XDP socket bound to rx queue `queue` of the port of `side`, the place for the frames of
    /// that queue. When the socket is closed, the kernel takes it out again.
    pub fn register(&mut self, side: Side, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        const ACTION: &str = "add a socket to the map";
        if queue >= MAX_QUEUES {
            return Err(map_error(ACTION, &MapError::OutOfBounds { index: queue, max_entries: MAX_QUEUES }));
        }
        let mut sockets: XskMap<&mut MapData> = typed(&mut self.ebpf, "sockets", ACTION)?;
        let index = side.index() as u32 * MAX_QUEUES + queue;
        sockets.set(index, socket, 0).map_err(|error| map_error(ACTION, &error))
    }

    /// Which taps only observe, by their number: fragments and unreadable packets that could be of their flows cross, if no other
    /// tap selects their addresses too. At first none does.
    pub fn set_observing(&mut self, taps: impl IntoIterator<Item = bool>) -> Result<(), SteeringError> {
        const ACTION: &str = "write the set of observing taps";
        let mask = taps.into_iter().enumerate().fold(0u64, |mask, (tap, observes)| mask | u64::from(observes) << tap);
        let mut observing: Array<&mut MapData, u64> = typed(&mut self.ebpf, "observing", ACTION)?;
        observing.set(0, mask, 0).map_err(|error| map_error(ACTION, &error))
    }

    /// Reads all counters, summed over the CPUs: the name ([`COUNTERS`]), and the frames of the client and of the
    /// server port.
    pub fn counters(&self) -> Result<Vec<(&'static str, [u64; 2])>, SteeringError> {
        const ACTION: &str = "read the counters";
        let map = self.ebpf.map("counters").ok_or_else(|| missing("counters"))?;
        let map: PerCpuArray<&MapData, u64> = map.try_into().map_err(|error| map_error(ACTION, &error))?;
        let read = |side: Side, reason: usize| {
            let index = (side.index() * COUNTERS.len() + reason) as u32;
            let cpus = map.get(&index, 0).map_err(|error| map_error(ACTION, &error))?;
            Ok(cpus.iter().sum())
        };
        let each = COUNTERS.iter().enumerate();
        each.map(|(reason, name)| Ok((*name, [read(Side::Client, reason)?, read(Side::Server, reason)?]))).collect()
    }

    /// Asks the loaded program what it would do with a frame (14 to about 3500 bytes) that comes in on rx queue 0 of the
    /// port of `side` (BPF_PROG_TEST_RUN). Nothing is sent; the counters count it.
    pub fn decide(&self, side: Side, frame: &[u8]) -> Result<Decision, SteeringError> {
        const ACTION: &str = "make a test run";
        let function = FUNCTIONS[side.index()];
        let program = self.ebpf.program(function).ok_or_else(|| missing(function))?;
        let program: &Xdp = program.try_into().map_err(|error: ProgramError| map_error(ACTION, &error))?;
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let result = program.test_run(options).map_err(|error| map_error(ACTION, &error))?;
        Ok(if result.return_value == XDP_REDIRECT { Decision::Redirect } else { Decision::Drop })
    }
}

fn check(ports: [&Port; 2], rules: &[Rule]) -> Result<(), SteeringError> {
    if rules.len() > MAX_RULES {
        return Err(SteeringError::TooManyRules(rules.len()));
    }
    if ports[0].ifindex == ports[1].ifindex {
        return Err(SteeringError::SamePort(ports[0].name.clone()));
    }
    match ports.iter().find(|port| port.rx_queues > MAX_QUEUES) {
        Some(port) => Err(SteeringError::TooManyQueues { port: port.name.clone(), queues: port.rx_queues }),
        None => Ok(()),
    }
}

fn load([servers, clients]: &[Prefixes; 2], cross: Cross, fragments: Fragments) -> Result<Ebpf, SteeringError> {
    let cross_by_worker = u32::from(cross == Cross::Worker);
    let cross_fragments = u32::from(fragments == Fragments::Cross);
    let mut loader = EbpfLoader::new();
    loader.override_global("cross_by_worker", &cross_by_worker, true);
    loader.override_global("cross_fragments", &cross_fragments, true);
    for (map, what, count) in [
        ("servers4", "server", servers.v4.len()),
        ("servers6", "server", servers.v6.len()),
        ("clients4", "client", clients.v4.len()),
        ("clients6", "client", clients.v6.len()),
    ] {
        if count > MAX_PREFIXES {
            return Err(SteeringError::TooManyPrefixes { what, count });
        }
        loader.map_max_entries(map, count.max(1) as u32);
    }
    let mut ebpf = loader.load(&OBJECT.0).map_err(|error| SteeringError::Load(chain(&error)))?;
    for function in FUNCTIONS {
        let program: &mut Xdp = xdp_program(&mut ebpf, function)?;
        program.load().map_err(|error| SteeringError::Load(chain(&error)))?;
    }
    Ok(ebpf)
}

fn write_rules(ebpf: &mut Ebpf, [servers, clients]: &[Prefixes; 2], rules: &[Rule]) -> Result<(), SteeringError> {
    for (name4, name6, prefixes) in [("servers4", "servers6", servers), ("clients4", "clients6", clients)] {
        let v4 = prefixes.v4.iter().map(|(net, mask)| (net.prefix_len(), net.network().octets(), *mask));
        write_prefixes(ebpf, name4, v4)?;
        let v6 = prefixes.v6.iter().map(|(net, mask)| (net.prefix_len(), net.network().octets(), *mask));
        write_prefixes(ebpf, name6, v6)?;
    }

    const ACTION: &str = "write the port map";
    let mut ports: Array<&mut MapData, u64> = typed(ebpf, "server_ports", ACTION)?;
    for (port, mask) in port_masks(rules).into_iter().enumerate() {
        if mask != 0 {
            ports.set(port as u32, mask, 0).map_err(|error| map_error(ACTION, &error))?;
        }
    }
    Ok(())
}

fn write_prefixes<const N: usize>(
    ebpf: &mut Ebpf,
    name: &str,
    prefixes: impl Iterator<Item = (u8, [u8; N], u64)>,
) -> Result<(), SteeringError>
where
    [u8; N]: Pod,
{
    const ACTION: &str = "write a prefix map";
    let mut map: LpmTrie<&mut MapData, [u8; N], u64> = typed(ebpf, name, ACTION)?;
    for (length, address, mask) in prefixes {
        let key = Key::new(u32::from(length), address);
        map.insert(&key, mask, 0).map_err(|error| map_error(ACTION, &error))?;
    }
    Ok(())
}

fn write_ports(ebpf: &mut Ebpf, ports: [&Port; 2]) -> Result<(), SteeringError> {
    const ACTION: &str = "write the device map";
    let mut map: DevMap<&mut MapData> = typed(ebpf, "ports", ACTION)?;
    for (side, port) in Side::ALL.into_iter().zip(ports) {
        map.set(side.index() as u32, port.ifindex, None, 0).map_err(|error| map_error(ACTION, &error))?;
    }
    Ok(())
}

fn attach_port(ebpf: &mut Ebpf, side: Side, port: &Port, mode: XdpMode) -> Result<(FdLink, Attached), SteeringError> {
    let program = xdp_program(ebpf, FUNCTIONS[side.index()])?;
    let failed = |mode, failure: AttachFailure| SteeringError::Attach {
        port: port.name.clone(),
        mode,
        reason: failure.explain(port),
    };
    if mode == XdpMode::Skb {
        let link = attach_link(program, port, xdp::XdpMode::Skb).map_err(|failure| failed("skb", failure))?;
        return Ok((link, Attached::Skb));
    }
    let failure = match attach_link(program, port, xdp::XdpMode::Driver) {
        Ok(link) => return Ok((link, Attached::Native)),
        Err(failure) => failure,
    };
    // In skb mode these would fail as well.
    if mode == XdpMode::Native || failure.is_of_any_mode() {
        return Err(failed("native", failure));
    }
    tracing::warn!(
        port = port.name,
        driver = port.driver,
        reason = failure.explain(port),
        "native XDP is not possible on this port: falling back to skb mode, which is slower"
    );
    let link = attach_link(program, port, xdp::XdpMode::Skb).map_err(|failure| failed("skb", failure))?;
    Ok((link, Attached::Skb))
}

fn attach_link(program: &mut Xdp, port: &Port, mode: xdp::XdpMode) -> Result<FdLink, AttachFailure> {
    let id = program.attach_to_if_index(port.ifindex, mode).map_err(AttachFailure::Program)?;
    let link = program.take_link(id).map_err(AttachFailure::Program)?;
    // Where the kernel refuses a bpf_link with EINVAL, aya attaches through netlink: that would outlive the process.
    // The conversion fails for such a link, and detaches it.
    FdLink::try_from(link).map_err(|_| AttachFailure::NoLink)
}

/// Why one attempt to attach failed.
enum AttachFailure {
    Program(ProgramError),
    NoLink,
}

impl AttachFailure {
    fn code(&self) -> Option<i32> {
        match self {
            AttachFailure::Program(ProgramError::SyscallError(error)) => error.io_error.raw_os_error(),
            AttachFailure::Program(_) | AttachFailure::NoLink => None,
        }
    }

    /// Whether another mode cannot help.
    fn is_of_any_mode(&self) -> bool {
        matches!(self.code(), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV))
    }

    /// The kernel says more (extended acknowledgement), but not to users of bpf_links.
    fn explain(&self, port: &Port) -> String {
        let name = &port.name;
        let text = match (self, self.code()) {
            (AttachFailure::NoLink, _) => {
                "the kernel gives no bpf_link for it (Linux 5.9 or later is needed)".to_owned()
            }
            (_, Some(libc::EBUSY | libc::EEXIST)) => format!(
                "another XDP program is attached to it (`ip link show {name}` shows its id; `ip link set {name} xdp off` \
                 and `... xdpgeneric off` detach one that no process holds)"
            ),
            (_, Some(libc::ERANGE)) => format!(
                "its MTU of {} (or its peer's) is too big for native XDP, which needs the frame in one page: try `ip link set {name} mtu 1500`",
                port.mtu
            ),
            (_, Some(libc::ENOSPC)) => format!(
                "it has fewer rx queues ({}) than its peer has tx queues: ethtool -L {name} rx N, or tx on the peer",
                port.rx_queues
            ),
            (_, Some(libc::EOPNOTSUPP)) => {
                let driver = if port.driver.is_empty() { "unknown" } else { &port.driver };
                format!(
                    "its driver ({driver}) has no XDP, or an offload is on that excludes it (LRO, GRO_HW: `ethtool -k {name}`)"
                )
            }
            (_, Some(libc::EPERM)) => {
                "no permission: CAP_NET_ADMIN and CAP_BPF, in practice root, are needed".to_owned()
            }
            (_, Some(libc::ENODEV)) => "it is gone".to_owned(),
            (AttachFailure::Program(error), _) => chain(error),
        };
        match self.code() {
            Some(code) => format!("{text} ({})", io::Error::from_raw_os_error(code)),
            None => text,
        }
    }
}

fn promiscuous(port: &Port) -> Result<OwnedFd, SteeringError> {
    sys::hold_promiscuous(port.ifindex).map_err(|source| SteeringError::Promiscuous { port: port.name.clone(), source })
}

fn xdp_program<'a>(ebpf: &'a mut Ebpf, function: &'static str) -> Result<&'a mut Xdp, SteeringError> {
    let program = ebpf.program_mut(function).ok_or_else(|| missing(function))?;
    program.try_into().map_err(|error: ProgramError| SteeringError::Load(chain(&error)))
}

fn typed<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
    ebpf: &'a mut Ebpf,
    name: &str,
    action: &'static str,
) -> Result<T, SteeringError> {
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(|error| map_error(action, &error))
}

fn missing(name: &str) -> SteeringError {
    SteeringError::Load(format!("the object file has no `{name}`"))
}

fn map_error(action: &'static str, error: &dyn std::error::Error) -> SteeringError {
    SteeringError::Map { action, cause: chain(error) }
}

/// An error with all its causes, those left out that the text before repeats.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
