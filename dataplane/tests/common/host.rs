//! A network namespace that stands for a machine.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::{Process, STEP_LIMIT};

/// One machine of the laboratory.
pub struct Host {
    /// Name of its namespace.
    pub namespace: String,
    /// Where the output of its processes goes.
    pub folder: std::path::PathBuf,
}

impl Host {
    /// `program` with `arguments` on this host, without a time limit; it dies with the calling thread.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL", program])
            .args(arguments)
            .current_dir(&self.folder);
        command
    }

    /// Starts a process whose output goes to `NAME.log`.
    pub fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> Process {
        super::need(&[program]);
        self.spawn_command(name, self.command(program, arguments))
    }

    /// The same for a prepared command.
    pub fn spawn_command(&self, name: &str, command: Command) -> Process {
        Process::spawn(name, command, self.folder.join(format!("{name}-{}.log", self.namespace)))
    }

    /// Runs `program` to its end, within the step limit (exit status 124 = too slow).
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        super::need(&[program]);
        let limit = STEP_LIMIT.as_secs().to_string();
        Command::new("ip")
            .args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "TERM"])
            .args(["timeout", "-k", "2", &limit, program])
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"))
    }

    /// Runs `program`, which must succeed, and gives its stdout.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{program} {} ended with {} (124 = took longer than {STEP_LIMIT:?})\nstdout: {stdout}\nstderr: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// Runs `work` in a thread inside this host's namespace. Sockets that it opens stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace);
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                    setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("setns {path}: {error}"));
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sets a switch of this host's network, for instance `net/ipv4/tcp_ecn`.
    pub fn set_sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        self.within(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// The Ethernet address of its interface.
    pub fn ethernet_address(&self) -> String {
        self.run("cat", &["/sys/class/net/eth0/address"]).trim().to_owned()
    }

    /// Gives it a neighbour that it never asks for.
    pub fn add_neighbour(&self, address: std::net::IpAddr, ethernet: &str) {
        let address = address.to_string();
        self.run("ip", &["neigh", "replace", &address, "lladdr", ethernet, "dev", "eth0", "nud", "permanent"]);
    }

    /// What `ip -d link` says about this host's interfaces.
    pub fn links(&self) -> String {
        self.run("ip", &["-d", "link", "show"])
    }
}

/// A TCP connection from `host`, with both timeouts at the step limit.
pub fn connect_from(host: &Host, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = host.within(|| TcpStream::connect_timeout(&to, limit))?;
    set_limits(&stream);
    Ok(stream)
}

/// A listening socket on `host`.
pub fn listen_in(host: &Host, at: SocketAddr) -> TcpListener {
    host.within(|| TcpListener::bind(at)).unwrap_or_else(|error| panic!("listen on {at}: {error}"))
}

/// So that a hung connection fails a test instead of stopping it.
pub fn set_limits(stream: &TcpStream) {
    stream.set_read_timeout(Some(STEP_LIMIT)).expect("a read timeout");
    stream.set_write_timeout(Some(STEP_LIMIT)).expect("a write timeout");
}
