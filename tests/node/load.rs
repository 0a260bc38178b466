//! Load from inside a pod: this test binary once more, as a container's program.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use serde_json::{Value, json};

use crate::node_socket;
use crate::support::node::image::program_with_libraries;
use crate::support::shared::node;

/// Says what the program is to do.
const JOB: &str = "SECRETS_BROKER_TEST_LOAD";
/// The one job that no socket is needed for.
const SPIN: &str = "spin";
/// Reads that one measurement takes, and what is between two: together many times the 100 ms after
/// which a container gets its share of the processors anew.
const READS: usize = 1000;
const BETWEEN_READS: Duration = Duration::from_millis(1);
/// New connections that it makes before.
const CONNECTIONS: usize = 5;
/// What a flood is at least, before it says so.
pub const CONNECTS: usize = 10_000;
pub const NAMES: usize = 1_000_000;
/// In how many bursts they come.
const BURSTS: usize = 5;
const BREATH: Duration = Duration::from_millis(50);
/// Kinds of attack.
const KINDS: usize = 4;
/// Connections whose replies nobody reads.
const UNREAD: usize = 50;
/// Names in one write.
const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// An image with this program in it.
pub fn image() -> &'static str {
    static IMAGE: LazyLock<String> = LazyLock::new(|| {
        let program = env::current_exe().expect("this program");
        node().image("load", &program_with_libraries(&program))
    });
    &IMAGE
}

/// Which socket a pod uses, and which secret it reads there.
#[derive(Clone, Copy)]
pub enum Target {
    /// The pod's own, in its volume.
    Own(&'static str),
    /// The node's, with the pod's proof.
    Node(&'static str),
}

impl Target {
    pub fn secret(self) -> &'static str {
        match self {
            Self::Own(secret) | Self::Node(secret) => secret,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = match self {
            Self::Own(_) => "own",
            Self::Node(_) => "node",
        };
        write!(f, "{socket} {}", self.secret())
    }
}

/// Makes the container of a pod flood the socket, reading the secret where it reads anything.
pub fn flood(pod: &mut Value, target: Target) {
    give(pod, &format!("flood {target}"));
}

/// Makes the container of a pod take processors as a flood does, and ask for nothing.
pub fn spin(pod: &mut Value) {
    give(pod, SPIN);
}

fn give(pod: &mut Value, job: &str) {
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(command());
    container["env"] = json!([{ "name": JOB, "value": job }]);
    container["resources"] = json!({ "limits": { "cpu": "500m" } });
}

/// Reads the secret again and again on one connection of a pod, and on a few new ones.
pub fn measure(namespace: &str, pod: &str, target: Target) -> Seen {
    measure_in(&node().container_id(namespace, pod, "main"), target)
}

/// The same by the container's id.
pub fn measure_in(container: &str, target: Target) -> Seen {
    let job = format!("{JOB}=measure {target}");
    let command = command();
    let mut arguments = vec!["env", &job];
    arguments.extend(command.iter().map(String::as_str));
    let output = node().exec_in(container, &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once("seen: ")).map(|(_, seen)| seen);
    let seen = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    seen.parse().expect("what was seen")
}

fn command() -> Vec<String> {
    let program = env::current_exe().expect("this program");
    let name = program.file_name().expect("a name").to_string_lossy();
    let arguments = ["--exact", "load::in_a_pod", "--nocapture"];
    let arguments = arguments.into_iter().map(str::to_owned);
    std::iter::once(format!("/bin/{name}")).chain(arguments).collect()
}

/// No test: what a container does.
#[test]
fn in_a_pod() {
    let Ok(job) = env::var(JOB) else { return };
    if job == SPIN {
        return burn();
    }
    let words: Vec<&str> = job.split(' ').collect();
    let [job, socket, secret] = words[..] else { panic!("{words:?}") };
    let door = Door::of(socket);
    match job {
        "measure" => println!("seen: {}", reads(&door, secret).expect("read")),
        "flood" => attack(&door, secret),
        other => panic!("no job {other}"),
    }
}

/// A socket as the pod has it, and what it has to say there.
struct Door {
    socket: &'static str,
    authorization: String,
}

impl Door {
    fn of(socket: &str) -> Door {
        match socket {
            "own" => Door { socket: "/secrets/broker.sock", authorization: String::new() },
            "node" => {
                let token = fs::read_to_string(node_socket::PROOF).expect("the pod's proof");
                let authorization = format!("authorization: Bearer {token}\r\n");
                Door { socket: node_socket::SOCKET, authorization }
            }
            other => panic!("no socket {other}"),
        }
    }

    fn request(&self, path: &str) -> String {
        let proof = &self.authorization;
        format!("GET /v1/secret/data/{path} HTTP/1.1\r\nhost: localhost\r\n{proof}\r\n")
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn connect_nonblocking(&self) -> io::Result<UnixStream> {
        let stream = self.connect()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// What a reader saw.
pub struct Seen {
    pub refused: usize,
    pub p50: Duration,
    pub p99: Duration,
    /// The longest that a new connection waited for its first reply.
    pub first: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, first] = [self.p50, self.p99, self.first].map(|time| time.as_nanos());
        write!(f, "{} {p50} {p99} {first}", self.refused)
    }
}

impl FromStr for Seen {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.split_whitespace().map(str::parse::<u64>);
        let mut field = || fields.next().unwrap_or_else(|| "".parse());
        let refused = usize::try_from(field()?).unwrap_or(usize::MAX);
        let mut time = || field().map(Duration::from_nanos);
        Ok(Seen { refused, p50: time()?, p99: time()?, first: time()? })
    }
}

fn reads(door: &Door, secret: &str) -> io::Result<Seen> {
    let request = door.request(secret);
    let mut reply = [0; 8192];
    let mut refused = 0;
    let mut ask = |stream: &mut UnixStream| {
        stream.write_all(request.as_bytes())?;
        // Replies are small: each comes in one piece.
        let length = stream.read(&mut reply)?;
        refused += usize::from(!reply[..length].starts_with(b"HTTP/1.1 200 "));
        io::Result::Ok(())
    };
    let mut first = Duration::ZERO;
    for _ in 0..CONNECTIONS {
        let asked = Instant::now();
        ask(&mut door.connect()?)?;
        first = first.max(asked.elapsed());
    }
    let (mut stream, mut took) = (door.connect()?, Vec::new());
    for _ in 0..READS {
        thread::sleep(BETWEEN_READS);
        let asked = Instant::now();
        ask(&mut stream)?;
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    Ok(Seen { refused, p50: took[READS / 2], p99: took[READS * 99 / 100], first })
}

/// As many threads as an attack has, until the container ends.
fn burn() {
    thread::scope(|scope| {
        for _ in 0..KINDS {
            scope.spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
        }
    });
}

/// All kinds at once, until the container ends. What fails is tried again: that is the attack.
fn attack(door: &Door, secret: &str) {
    thread::scope(|scope| {
        scope.spawn(|| connects(door));
        scope.spawn(|| names(door));
        scope.spawn(|| giant_heads(door));
        scope.spawn(|| never_reads(door, secret));
    });
}

/// Connections by the thousand, all open at once; then a moment for the other kinds.
fn connects(door: &Door) {
    let (mut made, mut said) = (0, false);
    loop {
        let burst = (0..CONNECTS / BURSTS).filter_map(|_| door.connect().ok());
        // All of them are open before the first is closed.
        let kept: Vec<_> = burst.collect();
        made += kept.len();
        drop(kept);
        if made >= CONNECTS && !said {
            println!("flood: {CONNECTS} connects");
            said = true;
        }
        thread::sleep(BREATH);
    }
}

/// Names of secrets that are not there, each another, as many as a connection takes unanswered.
fn names(door: &Door) {
    let (mut sent, mut said) = (0, false);
    loop {
        let Ok(mut stream) = door.connect_nonblocking() else { continue };
        loop {
            let names = sent..sent + BATCH;
            let batch: String = names.map(|name| door.request(&format!("none/{name}"))).collect();
            if stream.write_all(batch.as_bytes()).is_err() {
                break;
            }
            sent += BATCH;
        }
        if sent >= NAMES && !said {
            println!("flood: {NAMES} names");
            said = true;
        }
    }
}

/// Heads that are many times too large.
fn giant_heads(door: &Door) {
    let head = format!("GET /v1/sys/health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    loop {
        if let Ok(mut stream) = door.connect() {
            // It is refused before it is through.
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        }
    }
}

/// Asks as much as fits and reads nothing of what comes.
fn never_reads(door: &Door, secret: &str) {
    let requests = door.request(secret).repeat(BATCH);
    let mut kept = VecDeque::new();
    loop {
        if let Ok(mut stream) = door.connect_nonblocking() {
            while stream.write_all(requests.as_bytes()).is_ok() {}
            kept.push_back(stream);
        }
        if kept.len() > UNREAD {
            kept.pop_front();
        }
    }
}
