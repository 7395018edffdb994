//! Processes that a test starts: their output goes to a file, they end with the test, and their output is shown when it fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The time. Hosts and programs live in real time.
#[expect(clippy::disallowed_methods, reason = "other processes live in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until `condition` holds. For conditions of other processes, which can only be asked for. Panics after `limit`.
pub fn wait_until(what: &str, limit: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(limit, condition), "waited {limit:?} for: {what}");
}

/// Whether `condition` holds by and by, and not later than after `limit`.
#[expect(clippy::disallowed_methods, reason = "other processes live in real time")]
fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = now();
    while !condition() {
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A running process; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with stdout and stderr in the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> Process {
        let file = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let also = file.try_clone().expect("a second descriptor of the log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(also)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Process { name: name.to_owned(), child, log, ended: None }
    }

    /// The process id. `ip netns exec` and the wrappers around a program replace themselves, so it is the program's own.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits in i32"))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waiting for a child");
        }
        self.ended
    }

    /// Waits until `condition` holds; panics if the process ends before.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut condition: impl FnMut(&Process) -> bool) {
        wait_until(what, limit, || {
            let status = self.status();
            let holds = condition(self);
            if let (false, Some(status)) = (holds, status) {
                panic!("{} ended with {status} before: {what}; it wrote:\n{}", self.name, self.log());
            }
            holds
        });
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.status().is_none(), "{} had already ended; it wrote:\n{}", self.name, self.log());
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Asks it to end, and gives it some time for that. For those that tidy up; never panics.
    pub fn end_gently(&mut self, signal: Signal) {
        if self.status().is_none() {
            // If it does not listen, it is killed when dropped.
            let _ = kill(self.pid(), signal);
            holds_within(Duration::from_secs(10), || self.status().is_some());
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_until(&format!("{name} to end"), limit, || self.status().is_some());
        self.ended.expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.status();
        if ended.is_none() {
            // A process that ended in between is no fault.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let state = ended.map_or("was running".to_owned(), |status| format!("had ended with {status}"));
            eprintln!("---- {} ({state}) wrote:\n{}----", self.name, tail(&self.log(), 80));
        }
    }
}

/// The last `lines` lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let mut end = all[all.len().saturating_sub(lines)..].join("\n");
    end.push('\n');
    end
}

/// The socktap command under test.
pub fn socktap_binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_socktap"))
}

/// A running `socktap run`, that has begun to forward.
pub struct Socktap {
    /// The process.
    pub process: Process,
}

impl Socktap {
    /// Waits until it says that it forwards.
    pub fn ready(mut process: Process) -> Socktap {
        process.wait_until("`socktap is running` in its log", super::STEP_LIMIT, |process| {
            process.log().contains("socktap is running")
        });
        Socktap { process }
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(Duration::from_secs(20))
    }

    /// Fails if socktap has ended or has panicked in some thread.
    pub fn assert_healthy(&mut self) {
        let status = self.process.status();
        let log = self.process.log();
        assert!(status.is_none(), "socktap ended with {status:?}; it wrote:\n{log}");
        assert!(!log.contains("panicked at"), "a thread of socktap panicked:\n{log}");
    }
}
