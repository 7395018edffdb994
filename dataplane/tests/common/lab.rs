//! The laboratory: namespaces, wires and their end.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::process::socktap_binary;
use super::{Host, STEP_LIMIT, Socktap, lacks_rights, need, wait_until};

/// Address of the client host.
pub const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// Address of the client host.
pub const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
/// Address of the server host.
pub const SERVER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// Address of the server host.
pub const SERVER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// Both addresses of the server host.
pub const SERVERS: [IpAddr; 2] = [SERVER_V4, SERVER_V6];
/// Addresses of the host behind the router that [`Lab::add_router`] makes.
pub const ROUTED_SERVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2))];
/// The wire's interface towards the client host.
pub const WIRE_CLIENT: &str = "port1";
/// The wire's interface towards the server host.
pub const WIRE_SERVER: &str = "port2";

/// At most this many laboratories at a time, over all test processes: more only slow each other down.
const LABS_AT_ONCE: usize = 2;
/// First part of the names of all namespaces that tests make.
const PREFIX: &str = "socktap";

/// What a laboratory may have that is not the default.
#[derive(Clone, Copy, Default)]
pub struct LabOptions {
    /// Queues of the wire's interfaces. `None`: what the kernel gives by default.
    pub wire_queues: Option<u32>,
    /// Queues of the hosts' interfaces.
    pub host_queues: Option<u32>,
    /// The hosts' interfaces get `gro on` and `tx off`: then frames that are redirected by XDP alone arrive, with full checksums.
    pub plain_redirect: bool,
    /// The hosts' interfaces get `tso off` and `gso off`. XDP in native mode takes segmentation offload from the other end
    /// of a veth pair, in skb mode it does not: then hosts would send frames of up to 64 KiB, which no wire carries.
    pub small_frames: bool,
}

/// Two hosts and a wire. See the module's picture.
pub struct Lab {
    /// The machine with the client.
    pub client: Host,
    /// The machine in between, on which socktap runs.
    pub wire: Host,
    /// The machine with the server.
    pub server: Host,
    folder: TempDir,
    // Held open: closing it gives the place to the next laboratory.
    _place: File,
}

impl Lab {
    /// A laboratory with default veth pairs, or nothing (and a line that says why) without the right to make one.
    pub fn start() -> Option<Lab> {
        Lab::start_with(LabOptions::default())
    }

    /// A laboratory with the given settings.
    pub fn start_with(options: LabOptions) -> Option<Lab> {
        if lacks_rights() {
            return None;
        }
        need(&["ip", "setpriv", "timeout"]);
        let place = take_place();
        remove_leftovers();

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new().prefix(&format!("{id}-")).tempdir().expect("a temporary folder");
        let host = |letter: &str| Host { namespace: format!("{id}-{letter}"), folder: folder.path().to_owned() };
        // From here on `Drop` removes what was made, also if one of the next steps panics.
        let lab = Lab { client: host("c"), wire: host("w"), server: host("s"), folder, _place: place };
        lab.build(options);
        Some(lab)
    }

    /// A file of this laboratory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of this laboratory and gives its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("a folder");
        }
        std::fs::write(&path, contents).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// An ops file: the two ports, then `ports` (more keys of `[ports]`), then `rest`.
    pub fn ops(&self, ports: &str, rest: &str) -> String {
        format!("[ports]\nclient = \"{WIRE_CLIENT}\"\nserver = \"{WIRE_SERVER}\"\n{ports}\n\n{rest}\n")
    }

    /// Starts `socktap run` on the wire with this ops file, and returns when it forwards.
    pub fn socktap(&self, ops: &str) -> Socktap {
        let file = self.write("ops.toml", ops);
        Socktap::ready(self.wire.spawn_command("socktap", self.socktap_command(&["run", &file.to_string_lossy()])))
    }

    /// `socktap` with these arguments, on the wire.
    pub fn socktap_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.wire.command(&socktap_binary().to_string_lossy(), arguments);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        command.env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs `socktap` with these arguments on the wire to its end, within the step limit.
    pub fn socktap_output(&self, arguments: &[&str]) -> Output {
        self.wire.output(&socktap_binary().to_string_lossy(), arguments)
    }

    /// Writes the objects of the filters that ship with socktap: `redis.bpf.o`, `http1.bpf.o`, `lines.bpf.o`, `len4.bpf.o`.
    pub fn write_shipped_programs(&self) {
        use tap_engine::shipped::{HTTP1, LEN4, LINES, REDIS};
        for (name, object) in [("redis", REDIS), ("http1", HTTP1), ("lines", LINES), ("len4", LEN4)] {
            self.write(&format!("{name}.bpf.o"), object);
        }
    }

    /// Tells both hosts each other's Ethernet address for good: then nothing but the tests' own frames is on the wire.
    pub fn introduce_neighbours(&self) {
        let ends = [(&self.client, &self.server, SERVERS), (&self.server, &self.client, [CLIENT_V4, CLIENT_V6])];
        for (host, other, addresses) in ends {
            let ethernet = other.ethernet_address();
            for address in addresses {
                host.add_neighbour(address, &ethernet);
            }
        }
    }

    /// Makes the server host a router to one more host, over a link that carries IP packets of up to `mtu` bytes to there. That
    /// host does not know, and asks for longer ones.
    pub fn add_router(&self, mtu: u32) -> Inner<'_> {
        let name = format!("{}i", self.server.namespace);
        // From here on `Drop` removes it.
        let inner = Inner { host: Host { namespace: name.clone(), folder: self.folder.path().to_owned() }, _lab: self };
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        let router = &self.server.namespace;
        ip(&["-n", router, "link", "add", "down0", "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["-n", router, "link", "set", "down0", "mtu", &mtu.to_string()]);
        for (namespace, device, last) in [(router.as_str(), "down0", 1), (&name, "eth0", 2)] {
            ip(&["-n", namespace, "link", "set", device, "up"]);
            ip(&["-n", namespace, "addr", "add", &format!("10.78.0.{last}/24"), "dev", device]);
            ip(&["-n", namespace, "addr", "add", &format!("fd78::{last}/64"), "dev", device, "nodad"]);
        }
        for (namespace, [v4, v6], [v4_router, v6_router]) in [
            (name.as_str(), ["10.77.0.0/24", "fd77::/64"], ["10.78.0.1", "fd78::1"]),
            (&self.client.namespace, ["10.78.0.0/24", "fd78::/64"], ["10.77.0.2", "fd77::2"]),
        ] {
            ip(&["-n", namespace, "route", "add", v4, "via", v4_router]);
            ip(&["-n", namespace, "-6", "route", "add", v6, "via", v6_router]);
        }
        for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.server.set_sysctl(switch, "1");
        }
        inner
    }

    /// Whether an XDP program is attached to an interface of the wire.
    pub fn xdp_attached(&self) -> bool {
        self.wire.links().contains("prog/xdp")
    }

    fn build(&self, options: LabOptions) {
        for host in [&self.client, &self.wire, &self.server] {
            ip(&["netns", "add", &host.namespace]);
            ip(&["-n", &host.namespace, "link", "set", "lo", "up"]);
        }
        let queues = |count: Option<u32>| -> Vec<String> {
            count.map_or(Vec::new(), |count| {
                vec!["numrxqueues".into(), count.to_string(), "numtxqueues".into(), count.to_string()]
            })
        };
        let sides =
            [(&self.client, WIRE_CLIENT, CLIENT_V4, CLIENT_V6), (&self.server, WIRE_SERVER, SERVER_V4, SERVER_V6)];
        for (host, port, v4, v6) in sides {
            let mut arguments: Vec<String> = Vec::new();
            arguments.extend(["-n", &self.wire.namespace, "link", "add", port].map(String::from));
            arguments.extend(queues(options.wire_queues));
            arguments.extend(["type", "veth", "peer", "name", "eth0"].map(String::from));
            arguments.extend(queues(options.host_queues));
            arguments.extend(["netns", &host.namespace].map(String::from));
            ip(&arguments.iter().map(String::as_str).collect::<Vec<_>>());

            ip(&["-n", &self.wire.namespace, "link", "set", port, "up"]);
            ip(&["-n", &host.namespace, "addr", "add", &format!("{v4}/24"), "dev", "eth0"]);
            ip(&["-n", &host.namespace, "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]);
            ip(&["-n", &host.namespace, "link", "set", "eth0", "up"]);
            if options.plain_redirect {
                host.run("ethtool", &["-K", "eth0", "gro", "on", "tx", "off"]);
            }
            if options.small_frames {
                host.run("ethtool", &["-K", "eth0", "tso", "off", "gso", "off"]);
            }
        }
        for host in [&self.client, &self.server] {
            wait_until("carrier on the hosts' interfaces", STEP_LIMIT, || {
                host.run("ip", &["link", "show", "dev", "eth0"]).contains("LOWER_UP")
            });
        }
    }
}

/// A host behind a router.
pub struct Inner<'a> {
    host: Host,
    _lab: &'a Lab,
}

impl std::ops::Deref for Inner<'_> {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        remove_namespace(&self.host.namespace);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in [&self.client, &self.wire, &self.server] {
            remove_namespace(&host.namespace);
        }
    }
}

/// Waits for a free place among the laboratories that may run at once: a lock on one of a few files.
fn take_place() -> File {
    let files: Vec<File> = (0..LABS_AT_ONCE)
        .map(|place| {
            let path = std::env::temp_dir().join(format!("{PREFIX}-laboratory-{place}.lock"));
            File::options()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect();
    let mut taken = None;
    wait_until("a free place for a laboratory", STEP_LIMIT * 15, || {
        taken = files.iter().position(|file| file.try_lock().is_ok());
        taken.is_some()
    });
    files.into_iter().nth(taken.expect("a place was taken")).expect("the place's file")
}

/// Removes namespaces of test processes that were killed before they could tidy up.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let ours = parts.next() == Some(PREFIX);
        let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
        if let (true, Some(owner)) = (ours, owner)
            && !Path::new(&format!("/proc/{owner}")).exists()
        {
            remove_namespace(&name);
        }
    }
}

fn remove_namespace(name: &str) {
    // One that was never made, or that another test run removes at the same time, is no fault.
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
}

/// Runs `ip`, which must succeed.
fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap_or_else(|error| panic!("ip: {error}"));
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}
