//! Reads of cached secrets on a full node: 500 pods with a socket each, 10 000 cached secrets, a
//! rule for each pod, against a bare hyper server that gives the same bytes.
//!
//! The caller is a process in a pod's cgroup, which visits one pod after the other, and reads that
//! pod's secrets in turn; or a user of the host. On a new connection it is placed, decided about
//! and answered. The decision is one that was made a moment ago, as nearly all are, since it holds
//! for a minute: a visit begins when each of its secrets was read once. Kept connections are there
//! before the count begins, and have read each secret once.
//!
//! Both servers are processes of their own, use the agent's allocator and run on the same
//! processors, the load on another one. They take turns in one run; each figure is the median of
//! the rounds' own figures, each ratio the median of the rounds' ratios. Target for a pod: at least
//! 0.7 × the bare server's rate with a new connection for each request, 0.85 × on kept ones. A p99
//! below 1 ms is no ratio: it is reported, for this machine. So is each server's processor time per
//! request, which the load has no part in: where the load is what is busy all the time, a ratio of
//! rates says less than what the agent costs.
//!
//! Pods take root and a cgroup v2 hierarchy, beside v1 ones or alone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bare;
use crate::cgroup::Cgroups;
use crate::cores::Cores;
use crate::load::{self, Connections, Seen};
use crate::node;
use crate::report::{self, median, verdict};
use crate::resident::processor_time;

const NEW_LEAST: f64 = 0.7;
const KEPT_LEAST: f64 = 0.85;
const P99_MOST: Duration = Duration::from_millis(1);
const VISITS: usize = 9;
/// Rounds of one visit.
const ROUNDS: usize = 3;
/// Long beside what a turn costs: processors' caches are the other server's at its beginning.
const ROUND: Duration = Duration::from_millis(300);
/// Visits go through the pods in steps of this.
const STEP: usize = 23;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Pod,
    HostUser,
}

/// The two servers.
struct Servers<'a> {
    dir: &'a Path,
    agent: u32,
    bare: u32,
    bare_socket: PathBuf,
}

/// What a load saw of a server, and what it cost that one.
struct Round {
    seen: Seen,
    processor: Duration,
}

impl Round {
    fn of(
        server: u32,
        socket: &Path,
        targets: &[String],
        connections: Connections,
    ) -> io::Result<Self> {
        let before = processor_time(server)?;
        let seen = load::run(socket, targets, connections, ROUND)?;
        Ok(Self { seen, processor: processor_time(server)?.saturating_sub(before) })
    }
}

/// Prints the tables.
pub fn run() -> io::Result<()> {
    let cores = Cores::share_out()?;
    cores.be_a_server()?;
    let dir = tempfile::TempDir::with_prefix("bench-")?;
    let cgroups = Cgroups::make();
    let root = cgroups.as_ref().map_or("/kubepods", |cgroups| cgroups.root.as_str());
    let agent = node::start(dir.path(), root);
    let body = load::body(&node::host_socket(dir.path()), &node::targets(0))?;
    let (bare, bare_socket) = bare::start(dir.path(), "bare", &body);
    cores.be_the_load()?;
    let servers = Servers { dir: dir.path(), agent: agent.pid(), bare: bare.pid(), bare_socket };
    let shapes = [
        ("4, new per request", Connections::New(4)),
        ("16, new per request", Connections::New(16)),
        ("16", Connections::Kept(16)),
    ];
    let mut rows = Vec::new();
    for (label, shape) in shapes {
        match &cgroups {
            Ok(cgroups) => {
                let enter = |pod| cgroups.enter(&node::uid(pod));
                rows.push(compare(Caller::Pod, label, shape, &servers, enter)?);
                cgroups.leave()?;
            }
            Err(why) => println!("pod, {label}: not run: {why}"),
        }
        // One row for what a look at a user costs; on kept connections the other bench has it.
        if matches!(shape, Connections::New(4)) {
            rows.push(compare(Caller::HostUser, label, shape, &servers, |_| Ok(()))?);
        }
    }
    let columns =
        ["caller", "connections", "agent", "bare", "rate", "p50", "p99", "p99 alone", "processor"];
    let (pods, secrets) = (node::PODS, node::SECRETS);
    report::print(
        &format!("{pods} pods, {secrets} cached secrets, agent / bare hyper"),
        columns,
        &rows,
    );
    println!("  k = 1000 requests per second; p50 / p99 in µs; rate, p50 and p99 are ratios");
    println!("  processor: µs of each server's processor time per request");
    Ok(())
}

fn compare(
    caller: Caller,
    label: &str,
    shape: Connections,
    servers: &Servers<'_>,
    enter: impl Fn(usize) -> io::Result<()>,
) -> io::Result<[String; 9]> {
    let mut rounds = Vec::new();
    for visit in 0..=VISITS {
        let pod = visit * STEP % node::PODS;
        enter(pod)?;
        let socket = match caller {
            Caller::Pod => node::pod_socket(servers.dir, pod),
            Caller::HostUser => node::host_socket(servers.dir),
        };
        let targets = node::targets(pod);
        load::body(&socket, &targets)?;
        for _ in 0..ROUNDS {
            let ours = Round::of(servers.agent, &socket, &targets, shape)?;
            let bare = Round::of(servers.bare, &servers.bare_socket, &targets, shape)?;
            rounds.push((ours, bare));
        }
    }
    // The first visit warms both up.
    rounds.drain(..ROUNDS);
    let (ours, bare): (Vec<Round>, Vec<Round>) = rounds.into_iter().unzip();
    let pairs = || ours.iter().zip(&bare);
    let ratio = |of: fn(&Seen) -> f64| median(pairs().map(|(a, b)| of(&a.seen) / of(&b.seen)));
    let rate = ratio(|seen| seen.per_second);
    let p99 = median(ours.iter().map(|round| round.seen.p99.as_secs_f64()));
    let least = match shape {
        Connections::New(_) => NEW_LEAST,
        Connections::Kept(_) => KEPT_LEAST,
    };
    let judged = match caller {
        Caller::Pod => format!("{rate:.2} ({})", verdict(format!("≥ {least}"), rate >= least)),
        Caller::HostUser => format!("{rate:.2}"),
    };
    let below = if p99 < P99_MOST.as_secs_f64() { "< 1 ms" } else { "≥ 1 ms" };
    Ok([
        (if caller == Caller::Pod { "pod" } else { "host user" }).to_owned(),
        label.to_owned(),
        load::figures(ours.iter().map(|round| &round.seen)),
        load::figures(bare.iter().map(|round| &round.seen)),
        judged,
        format!("{:.2}", ratio(|seen| seen.p50.as_secs_f64())),
        format!("{:.2}", ratio(|seen| seen.p99.as_secs_f64())),
        below.to_owned(),
        format!("{:.1} / {:.1}", per_request(&ours), per_request(&bare)),
    ])
}

/// Processor time per request over all rounds, in µs: the kernel counts it in large ticks.
fn per_request(rounds: &[Round]) -> f64 {
    let requests: usize = rounds.iter().map(|round| round.seen.requests).sum();
    let processor: Duration = rounds.iter().map(|round| round.processor).sum();
    processor.as_secs_f64() * 1e6 / requests as f64
}
