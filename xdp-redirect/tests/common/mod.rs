//! Two hosts and the machine between them, in three network namespaces of their own.
//!
//! ```text
//!  namespace "client"            namespace "middle"             namespace "server"
//!      host ─────────────── client          server ─────────────── host
//!  10.77.0.1, fd77::1         (the ports under test)         10.77.0.2, fd77::2
//! ```
#![allow(dead_code, reason = "each test file uses a part")]

pub mod packet;
pub mod relay;
pub mod tap;

use std::{
    fs::File,
    net::IpAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use xdp_redirect::{Cross, Fragments, Port, Rule, Side, Steering, XdpMode};

pub const CLIENT_ADDRESSES: [&str; 2] = ["10.77.0.1", "fd77::1"];
pub const SERVER_ADDRESSES: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// How long a test waits for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the test has to be skipped, which it says.
pub fn skipped() -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        println!("skipped: needs root");
    }
    skip
}

/// The three namespaces; they and all in them go when this is dropped.
pub struct Network {
    prefix: String,
}

/// What differs between the tests' networks.
#[derive(Clone)]
pub struct Setup {
    pub mtu: u32,
    /// Rx and tx queues of the ports.
    pub queues: u32,
    /// Rx and tx queues of the hosts.
    pub host_queues: u32,
    /// The hosts have addresses and speak; otherwise all is silent.
    pub addresses: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { mtu: 1500, queues: 1, host_queues: 1, addresses: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Client,
    Middle,
    Server,
}

impl From<Side> for Place {
    fn from(side: Side) -> Place {
        match side {
            Side::Client => Place::Client,
            Side::Server => Place::Server,
        }
    }
}

impl Network {
    pub fn new(setup: &Setup) -> Network {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let network = Network { prefix: format!("xr{}-{number}", std::process::id()) };
        for place in [Place::Client, Place::Middle, Place::Server] {
            run("ip", &["netns", "add", &network.name(place)]);
            network.within(place, || {
                for file in ["all/disable_ipv6", "default/disable_ipv6"] {
                    let value = if setup.addresses && place != Place::Middle { "0" } else { "1" };
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{file}"), value).expect("a sysctl");
                }
            });
        }
        for side in Side::ALL {
            network.add_wire(side, setup);
        }
        network
    }

    fn add_wire(&self, side: Side, setup: &Setup) {
        let host = self.name(side.into());
        let port = port_name(side);
        let [queues, host_queues] = [setup.queues, setup.host_queues].map(|number| number.to_string());
        let mtu = setup.mtu.to_string();
        #[rustfmt::skip]
        run("ip", &["-n", &self.name(Place::Middle), "link", "add", "name", port, "mtu", &mtu,
            "numrxqueues", &queues, "numtxqueues", &queues, "type", "veth", "peer", "name", "host", "mtu", &mtu,
            "numrxqueues", &host_queues, "numtxqueues", &host_queues, "netns", &host]);
        if setup.addresses {
            let addresses = if side == Side::Client { CLIENT_ADDRESSES } else { SERVER_ADDRESSES };
            run("ip", &["-n", &host, "address", "add", &format!("{}/24", addresses[0]), "dev", "host"]);
            run("ip", &["-n", &host, "address", "add", &format!("{}/64", addresses[1]), "dev", "host", "nodad"]);
        }
        run("ip", &["-n", &host, "link", "set", "host", "up"]);
        run("ip", &["-n", &self.name(Place::Middle), "link", "set", port, "up"]);
    }

    pub fn name(&self, place: Place) -> String {
        format!("{}-{place:?}", self.prefix).to_lowercase()
    }

    /// Runs `work` on a thread of its own inside a namespace.
    pub fn within<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(place);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into a namespace.
    pub fn enter(&self, place: Place) {
        enter(&self.name(place));
    }

    /// `ethtool -K host ...` on both hosts.
    pub fn set_offload(&self, feature: &str, value: &str) {
        for place in [Place::Client, Place::Server] {
            run("ip", &["netns", "exec", &self.name(place), "ethtool", "-K", "host", feature, value]);
        }
    }

    /// What `ip link show` says of the ports.
    pub fn links(&self) -> String {
        run("ip", &["-n", &self.name(Place::Middle), "-details", "link", "show"])
    }

    /// Waits until no XDP program is attached to a port. It is not so at once after a drop: while another test starts a
    /// program, the new process has this one's descriptors, from fork to exec.
    #[track_caller]
    pub fn detached(&self) {
        eventually("no XDP program is attached", || !self.links().contains("xdp"));
    }

    /// To be called in the middle.
    pub fn attach(rules: &[Rule], mode: XdpMode, cross: Cross) -> (Steering, [Port; 2]) {
        Network::attach_with(rules, mode, cross, Fragments::Drop)
    }

    /// The same, and says what becomes of fragments.
    pub fn attach_with(rules: &[Rule], mode: XdpMode, cross: Cross, fragments: Fragments) -> (Steering, [Port; 2]) {
        let ports = open_ports();
        eventually("the ports are free", || !run("ip", &["link", "show"]).contains("xdp"));
        let steering = Steering::attach(&ports[0], &ports[1], rules, mode, cross, fragments).expect("attached");
        (steering, ports)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in [Place::Client, Place::Middle, Place::Server] {
            let _ = Command::new("ip").args(["netns", "delete", &self.name(place)]).status();
        }
    }
}

pub fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).expect("a namespace");
    setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
}

pub fn open_ports() -> [Port; 2] {
    Side::ALL.map(|side| Port::open(port_name(side)).expect("a port"))
}

pub fn port_name(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Server => "server",
    }
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    text
}

/// The counters that are not 0, of one side.
pub fn counted(steering: &Steering, side: Side) -> Vec<(&'static str, u64)> {
    let counters = steering.counters().expect("counters");
    counters.into_iter().map(|(name, sides)| (name, sides[side.index()])).filter(|(_, frames)| *frames > 0).collect()
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = now() + PATIENCE;
    while !condition() {
        assert!(now() < end, "waited too long for: {what}");
        thread::yield_now();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's deadline is in the real world")]
pub fn now() -> Instant {
    Instant::now()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
