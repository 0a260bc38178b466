//! Reads of a cached secret over the agent's host socket, against a bare hyper server that gives
//! the same bytes on the same kind of socket.
//!
//! Both are processes of their own and run on the same processors, the load, a closed loop of
//! keep-alive clients, on another one. They take turns in one run; each figure is the median of the
//! rounds' own figures, each ratio the median of the rounds' ratios. Target: with 16 connections at
//! least 0.85 × the bare server's rate, and a p99 of at most 1.5 × its p99.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::bare;
use crate::cores::Cores;
use crate::load::{self, Connections, Seen};
use crate::report::{self, median, verdict};
use crate::support::agent::Agent;

const RATE_LEAST: f64 = 0.85;
const P99_MOST: f64 = 1.5;
const ROUNDS: usize = 63;
const ROUND: Duration = Duration::from_millis(100);
const KV: &str = "secret/data/shop/web";
const LEASED: &str = "database/creds/shop";
const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
log = "warn"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
[cache]
ttl = "1h"
[limits]
requests_per_second_per_user = 100000000
[[grants]]
name = "bench"
who = { any_host_user = true }
paths = ["secret/data/shop/*", "database/creds/*"]
"#;
const SECRETS: &str = r#"
[mounts.secret.secrets]
"shop/web" = { username = "shop-web", password = "correct-horse-battery-staple" }
[mounts.database]
kind = "generated"
[mounts.database.roles.shop]
ttl = "24h"
max_ttl = "48h"
"#;

/// One server's socket and what to ask it for.
struct Server<'a> {
    socket: &'a Path,
    targets: Vec<String>,
}

/// Prints the tables.
pub fn run() -> io::Result<()> {
    let cores = Cores::share_out()?;
    cores.be_a_server()?;
    let dir = tempfile::TempDir::with_prefix("bench-")?;
    fs::write(dir.path().join("secrets.toml"), SECRETS)?;
    let agent = Agent::start(dir.path(), CONFIG);
    let socket = agent.host_socket();
    cores.be_the_load()?;
    let mut rows = Vec::new();
    for (name, path) in [("KV", KV), ("leased", LEASED)] {
        agent.read(path);
        let body = hit(&agent, path);
        // Started by a thread that was where servers run when it began.
        let (_process, bare_socket) = bare::start(dir.path(), name, &body);
        let targets = vec![format!("/v1/{path}")];
        let ours = Server { socket: &socket, targets: targets.clone() };
        let bare = Server { socket: &bare_socket, targets };
        let what = format!("{name}, {} bytes", body.len());
        let all = [
            ("1", Connections::Kept(1)),
            ("16", Connections::Kept(16)),
            ("64", Connections::Kept(64)),
        ];
        let shapes = if path == KV { &all[..] } else { &all[1..2] };
        for (label, shape) in shapes {
            rows.push(compare(&what, label, *shape, &ours, &bare)?);
        }
    }
    let columns = ["secret", "connections", "agent", "bare", "rate", "p50", "p99"];
    report::print("Cached read over the socket, agent / bare hyper", columns, &rows);
    println!("  k = 1000 requests per second; p50 / p99 in µs; the last three are ratios");
    Ok(())
}

/// The body of a reply that must come from the cache.
fn hit(agent: &Agent, path: &str) -> String {
    let answer = agent.read(path);
    assert_eq!((answer.status, answer.header("x-cache")), (200, Some("HIT")), "{}", answer.body);
    answer.body
}

fn compare(
    what: &str,
    label: &str,
    shape: Connections,
    ours: &Server<'_>,
    bare: &Server<'_>,
) -> io::Result<[String; 7]> {
    let ask = |server: &Server<'_>| load::run(server.socket, &server.targets, shape, ROUND);
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        rounds.push((ask(ours)?, ask(bare)?));
    }
    // The first round warms both up.
    rounds.remove(0);
    let ratio = |of: fn(&Seen) -> f64| median(rounds.iter().map(|(a, b)| of(a) / of(b)));
    let rate = ratio(|seen| seen.per_second);
    let p50 = ratio(|seen| seen.p50.as_secs_f64());
    let p99 = ratio(|seen| seen.p99.as_secs_f64());
    let counts = matches!(shape, Connections::Kept(16));
    let judged = |value: f64, target: String, met: bool| match counts {
        true => format!("{value:.2} ({})", verdict(target, met)),
        false => format!("{value:.2}"),
    };
    Ok([
        what.to_owned(),
        label.to_owned(),
        load::figures(rounds.iter().map(|(ours, _)| ours)),
        load::figures(rounds.iter().map(|(_, bare)| bare)),
        judged(rate, format!("≥ {RATE_LEAST}"), rate >= RATE_LEAST),
        format!("{p50:.2}"),
        judged(p99, format!("≤ {P99_MOST}"), p99 <= P99_MOST),
    ])
}
