//! Servers as child processes: output in files, ended by their own id, never left behind.
#![allow(dead_code, reason = "every user compiles this and uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(20);

/// One child process. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `<dir>/<name>.out` and `<dir>/<name>.err`, appended to
    /// what an earlier start left there.
    pub fn spawn(name: &str, command: &Command, dir: &Path) -> Process {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        let append = |path| fs::OpenOptions::new().create(true).append(true).open(path);
        let mut child = dying_with_parent(command);
        child
            .stdin(Stdio::null())
            .stdout(append(&stdout).expect("create the output file"))
            .stderr(append(&stderr).expect("create the output file"));
        let child = spawn_from_lasting_thread(child)
            .unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        Process { name: name.to_owned(), child, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout_file(&self) -> &Path {
        &self.stdout
    }

    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Waits until `ready` holds; panics with the end of the output if the process ends first or
    /// `limit` passes.
    pub fn wait_until(&mut self, limit: Duration, what: &str, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.exit_status() {
                panic!("{} ended ({status}) before {what}:\n{}", self.name, self.tail());
            }
            if Instant::now() > deadline {
                panic!("{}: {what} took over {limit:?}:\n{}", self.name, self.tail());
            }
            thread::sleep(POLL);
        }
    }

    /// Whether it still runs; `None` while it does.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for the child's state")
    }

    pub fn signal(&self, signal: Signal) {
        // A process that has ended but is not reaped yet still takes signals: nothing to check.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Asks it to end and waits; panics after `limit`.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit(limit)
    }

    /// Panics after `limit`.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        self.exits_within(limit)
            .unwrap_or_else(|| panic!("{} still runs after {limit:?}:\n{}", self.name, self.tail()))
    }

    pub fn exits_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.exit_status();
            if status.is_some() || Instant::now() > deadline {
                return status;
            }
            thread::sleep(POLL);
        }
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn tail(&self) -> String {
        let output = format!("{}{}", self.stdout(), self.stderr());
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `holds`; panics after `limit`.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        thread::sleep(POLL);
    }
}

/// A loopback port nobody listens on. Below the range the kernel gives outgoing connections, so
/// that none of those takes it before the server does.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    // Test binaries that run at the same time begin at different places.
    static NEXT: LazyLock<AtomicU16> =
        LazyLock::new(|| AtomicU16::new((std::process::id().wrapping_mul(97) % 60_000) as u16));
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The same command under `setpriv`, which execs it with a parent-death signal: servers end with
/// the test process even when that is killed.
fn dying_with_parent(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    wrapped
}

/// The parent whose death counts is the spawning *thread*, and a test's thread ends before the
/// servers that tests share.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::SyncSender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::sync_channel::<Order>(0);
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, child) = mpsc::sync_channel(1);
    SPAWNER.send((command, reply)).expect("the spawner thread lives as long as the process");
    child.recv().expect("the spawner thread answers every order")
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
