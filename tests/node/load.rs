//! Load from inside a pod: this test binary once more, as a container's program.

use std::collections::VecDeque;
use std::env;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::node::image::program_with_libraries;
use crate::support::shared::node;

/// Says what the program is to do.
const JOB: &str = "SECRETS_BROKER_TEST_LOAD";
const SOCKET: &str = "/secrets/broker.sock";
/// Reads that one measurement takes.
const READS: usize = 1000;
/// What a flood is at least, before it says so.
pub const CONNECTS: usize = 10_000;
pub const NAMES: usize = 1_000_000;
/// In how many bursts they come.
const BURSTS: usize = 5;
const BREATH: Duration = Duration::from_millis(50);
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

/// Makes the container of a pod flood the pod's socket, reading `secret` where it reads anything.
pub fn flood(pod: &mut Value, secret: &str) {
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(command());
    container["env"] = json!([{ "name": JOB, "value": format!("flood {secret}") }]);
}

/// Reads `secret` again and again on one connection of a pod.
pub fn measure(namespace: &str, pod: &str, secret: &str) -> Seen {
    measure_in(&node().container_id(namespace, pod, "main"), secret)
}

/// The same by the container's id.
pub fn measure_in(container: &str, secret: &str) -> Seen {
    let job = format!("{JOB}=measure {secret}");
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
    match job.split_once(' ').expect("a job and a secret") {
        ("measure", secret) => println!("seen: {}", reads(secret).expect("read")),
        ("flood", secret) => attack(secret),
        (other, _) => panic!("no job {other}"),
    }
}

/// What a reader saw.
pub struct Seen {
    pub refused: usize,
    pub p50: Duration,
    pub p99: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.refused, self.p50.as_nanos(), self.p99.as_nanos())
    }
}

impl FromStr for Seen {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.split_whitespace().map(str::parse::<u64>);
        let mut field = || fields.next().unwrap_or_else(|| "".parse());
        let refused = usize::try_from(field()?).unwrap_or(usize::MAX);
        let (p50, p99) = (Duration::from_nanos(field()?), Duration::from_nanos(field()?));
        Ok(Seen { refused, p50, p99 })
    }
}

fn request(path: &str) -> String {
    format!("GET /v1/secret/data/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

fn connect() -> io::Result<UnixStream> {
    let stream = UnixStream::connect(Path::new(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn connect_nonblocking() -> io::Result<UnixStream> {
    let stream = connect()?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn reads(secret: &str) -> io::Result<Seen> {
    let (mut stream, request) = (connect()?, request(secret));
    let (mut took, mut refused) = (Vec::new(), 0);
    let mut reply = [0; 8192];
    for _ in 0..READS {
        let asked = Instant::now();
        stream.write_all(request.as_bytes())?;
        // Replies are small: each comes in one piece.
        let length = stream.read(&mut reply)?;
        took.push(asked.elapsed());
        refused += usize::from(!reply[..length].starts_with(b"HTTP/1.1 200 "));
    }
    took.sort_unstable();
    Ok(Seen { refused, p50: took[READS / 2], p99: took[READS * 99 / 100] })
}

/// All kinds at once, until the container ends. What fails is tried again: that is the attack.
fn attack(secret: &str) {
    thread::scope(|scope| {
        scope.spawn(connects);
        scope.spawn(names);
        scope.spawn(giant_heads);
        scope.spawn(|| never_reads(secret));
    });
}

/// Connections by the thousand, all open at once; then a moment for the other kinds.
fn connects() {
    for count in 1_usize.. {
        let kept: Vec<_> = (0..CONNECTS / BURSTS).map(|_| connect()).collect();
        drop(kept);
        if count == BURSTS {
            println!("flood: {CONNECTS} connects");
        }
        thread::sleep(BREATH);
    }
}

/// Names of secrets that are not there, each another, as many as a connection takes unanswered.
fn names() {
    let (mut sent, mut said) = (0, false);
    loop {
        let Ok(mut stream) = connect_nonblocking() else { continue };
        loop {
            let names = sent..sent + BATCH;
            let batch: String = names.map(|name| request(&format!("none/{name}"))).collect();
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
fn giant_heads() {
    let head = format!("GET /v1/sys/health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    loop {
        if let Ok(mut stream) = connect() {
            // It is refused before it is through.
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        }
    }
}

/// Asks as much as fits and reads nothing of what comes.
fn never_reads(secret: &str) {
    let requests = request(secret).repeat(BATCH);
    let mut kept = VecDeque::new();
    loop {
        if let Ok(mut stream) = connect_nonblocking() {
            while stream.write_all(requests.as_bytes()).is_ok() {}
            kept.push_back(stream);
        }
        if kept.len() > UNREAD {
            kept.pop_front();
        }
    }
}
