//! Reads of cached secrets on a full node: 500 pods with a socket each, 10 000 cached secrets, a
//! rule for each pod, against a bare hyper server that gives the same bytes.
//!
//! The caller is a process in a pod's cgroup, which visits one pod after the other, and reads that
//! pod's secrets in turn; or a user of the host. On a new connection it is placed, decided about
//! and answered. The decision is one that was made a moment ago, as nearly all are, since it holds
//! for a minute: a visit begins when each of its secrets was read once.
//!
//! Both servers are processes of their own, use the agent's allocator and run on the same
//! processors, the load on another one. They take turns in one run; each figure is the median of
//! the rounds' own figures, each ratio the median of the rounds' ratios. Target for a pod: at least
//! 0.7 × the bare server's rate with a new connection for each request, 0.85 × on kept ones. A p99
//! below 1 ms is no ratio: it is reported, for this machine.
//!
//! Pods take root and a cgroup v2 hierarchy, beside v1 ones or alone.

use std::io;
use std::path::Path;
use std::time::Duration;

#[path = "support/bare.rs"]
mod bare;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "support/cores.rs"]
mod cores;
#[path = "support/load.rs"]
mod load;
#[path = "../tests/support/nobody_asks.rs"]
mod nobody_asks;
#[path = "support/node.rs"]
mod node;
#[path = "../tests/support/process.rs"]
mod process;
#[path = "support/report.rs"]
mod report;

use cgroup::Cgroups;
use cores::Cores;
use load::{Connections, Seen};
use report::{median, verdict};
use secrets_broker::sys::WipingAllocator;

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

const NEW_LEAST: f64 = 0.7;
const KEPT_LEAST: f64 = 0.85;
const P99_MOST: Duration = Duration::from_millis(1);
const VISITS: usize = 21;
/// Rounds of one visit.
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(100);
/// Visits go through the pods in steps of this.
const STEP: usize = 23;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Pod,
    HostUser,
}

fn main() -> io::Result<()> {
    bare::serve_if_asked()?;
    node::serve_if_asked()?;
    let cores = Cores::share_out()?;
    cores.be_a_server()?;
    let dir = tempfile::TempDir::with_prefix("bench-")?;
    let cgroups = Cgroups::make();
    let root = cgroups.as_ref().map_or("/kubepods", |cgroups| cgroups.root.as_str());
    let _node = node::start(dir.path(), root);
    let body = load::body(&node::host_socket(dir.path()), &node::targets(0))?;
    let (_bare, bare_socket) = bare::start(dir.path(), "bare", &body);
    cores.be_the_load()?;
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
                rows.push(compare(Caller::Pod, label, shape, dir.path(), &bare_socket, enter)?);
                cgroups.leave()?;
            }
            Err(why) => println!("pod, {label}: not run: {why}"),
        }
        // One row for what a look at a user costs; on kept connections the other bench has it.
        if matches!(shape, Connections::New(4)) {
            let stay = |_| Ok(());
            rows.push(compare(Caller::HostUser, label, shape, dir.path(), &bare_socket, stay)?);
        }
    }
    let columns = ["caller", "connections", "agent", "bare", "rate", "p50", "p99", "p99 alone"];
    let (pods, secrets) = (node::PODS, node::SECRETS);
    report::print(
        &format!("{pods} pods, {secrets} cached secrets, agent / bare hyper"),
        columns,
        &rows,
    );
    println!("  k = 1000 requests per second; p50 / p99 in µs; rate, p50 and p99 are ratios");
    Ok(())
}

fn compare(
    caller: Caller,
    label: &str,
    shape: Connections,
    dir: &Path,
    bare: &Path,
    enter: impl Fn(usize) -> io::Result<()>,
) -> io::Result<[String; 8]> {
    let mut rounds = Vec::new();
    for visit in 0..=VISITS {
        let pod = visit * STEP % node::PODS;
        enter(pod)?;
        let socket = match caller {
            Caller::Pod => node::pod_socket(dir, pod),
            Caller::HostUser => node::host_socket(dir),
        };
        let targets = node::targets(pod);
        load::body(&socket, &targets)?;
        let ask = |socket: &Path| load::run(socket, &targets, shape, ROUND);
        for _ in 0..ROUNDS {
            rounds.push((ask(&socket)?, ask(bare)?));
        }
    }
    // The first visit warms both up.
    rounds.drain(..ROUNDS);
    let ratio = |of: fn(&Seen) -> f64| median(rounds.iter().map(|(a, b)| of(a) / of(b)));
    let rate = ratio(|seen| seen.per_second);
    let p99 = median(rounds.iter().map(|(seen, _)| seen.p99.as_secs_f64()));
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
        load::figures(rounds.iter().map(|(ours, _)| ours)),
        load::figures(rounds.iter().map(|(_, bare)| bare)),
        judged,
        format!("{:.2}", ratio(|seen| seen.p50.as_secs_f64())),
        format!("{:.2}", ratio(|seen| seen.p99.as_secs_f64())),
        below.to_owned(),
    ])
}
