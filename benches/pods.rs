//! A node's pods: how long the kubelet waits for a volume, and what a full node costs.
//!
//! Agent and mounter run as two processes in cgroups of their own; the kubelet's calls come over
//! the driver's socket, with signed tokens, and every volume is mounted. Vault is scripted, in this
//! process. Targets: a volume of five KV secrets that are cached is published within 50 ms (p99);
//! with 110 pods of five secrets each both processes together take under 40 MiB resident, and under
//! 0.5 % of one processor while nothing happens.
//!
//! Takes root: it starts itself again inside of `tests/node/isolated`.

use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use futures_util::StreamExt;
use serde_json::json;

use crate::cluster::{self, Pod};
use crate::csi_driver::CsiDriver;
use crate::fake_vault::{Answer, FakeVault};
use crate::pod_node::{self, PodNode, VAULT};
use crate::report;
use crate::resident::{Memory, processor_time};

const PODS: usize = 110;
const SECRETS: usize = 5;
/// Publishes that are measured, one after the other and some at once.
const PUBLISHES: usize = 300;
const AT_ONCE: usize = 8;
const PUBLISH_MOST: Duration = Duration::from_millis(50);
const RESIDENT_MOST: f64 = 40.0;
const IDLE_MOST: f64 = 0.5;
/// For what the agent does behind the last answer.
const PAUSE: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(20);
const CONFIG: &str = r#"
[cache]
ttl = "1h"
[limits]
upstream_per_second = 1000000
"#;

/// Prints the tables.
pub fn run() -> io::Result<()> {
    if env::var_os("SECRETS_BROKER_TEST_ISOLATED").is_none() {
        let isolated = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/isolated");
        return Err(Command::new(isolated).arg(env::current_exe()?).arg("pods").exec());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut published = Vec::new();
    let vault = scripted();
    let config = [VAULT, CONFIG].concat().replace("{vault}", &vault.url());
    {
        let node = PodNode::start("warn", &config);
        runtime.block_on(publish_many(&node, "none", &mut published));
    }
    let node = PodNode::start("warn", &config);
    runtime.block_on(fill(&node));
    std::thread::sleep(PAUSE);
    let rows = memory(&node)?;
    let idle = idle(&node)?;
    runtime.block_on(publish_many(&node, &format!("{PODS} pods"), &mut published));

    let columns = ["beside", "calls", "p50", "p99", "target"];
    let title = format!("NodePublishVolume of {SECRETS} cached secrets, {PUBLISHES} calls, ms");
    report::print(&title, columns, &published);
    let columns = ["process", "RSS", "anonymous", "program", "proportional", "target"];
    report::print(&format!("{PODS} pods of {SECRETS} secrets each, MiB"), columns, &rows);
    report::print("The same while nothing happens", ["process", "ms per s", "target"], &idle);
    Ok(())
}

/// Measures publishes of new pods of one account, one after the other, then some at once.
async fn publish_many(node: &PodNode, beside: &str, rows: &mut Vec<[String; 5]>) {
    let driver = node.driver().await;
    let account_uid = cluster::uid();
    let pod = |number: usize| {
        let pod = Pod::new("team", &format!("web-{number}"), "web-000");
        Pod { account_uid: account_uid.clone(), ..pod }
    };
    let items = items(0);
    // The first one logs in and reads; its volume stays, so that the session does.
    publish(&driver, &pod(0), &items).await;
    for at_once in [1, AT_ONCE] {
        let pods: Vec<Pod> = (1..=PUBLISHES).map(pod).collect();
        let calls = pods.iter().map(|pod| publish(&driver, pod, &items));
        let calls = futures_util::stream::iter(calls).buffer_unordered(at_once);
        let mut nanos: Vec<u32> = calls.collect().await;
        nanos.sort_unstable();
        for pod in &pods {
            driver.unpublish(pod, "secrets").await.expect("unpublish");
        }
        let [p50, p99] = [0.50, 0.99].map(|share| report::percentile(&nanos, share));
        let milliseconds = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let most = format!("p99 < {} ms", PUBLISH_MOST.as_millis());
        let calls = if at_once == 1 { "one by one" } else { "8 at once" };
        let verdict = report::verdict(most, p99 < PUBLISH_MOST);
        rows.push([
            beside.to_owned(),
            calls.to_owned(),
            milliseconds(p50),
            milliseconds(p99),
            verdict,
        ]);
    }
    driver.unpublish(&pod(0), "secrets").await.expect("unpublish");
}

/// Publishes one volume; nanoseconds until the answer.
async fn publish(driver: &CsiDriver, pod: &Pod, items: &str) -> u32 {
    let tokens = pod.tokens();
    let attributes = [("items", items)];
    let started = Instant::now();
    driver.publish_with(pod, "secrets", &attributes, tokens).await.expect("publish");
    u32::try_from(started.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// A volume for each pod, each pod with an account and secrets of its own.
async fn fill(node: &PodNode) {
    let driver = node.driver().await;
    for number in 0..PODS {
        let pod = Pod::new("team", &format!("app-{number}"), &format!("web-{number:03}"));
        publish(&driver, &pod, &items(number)).await;
        let files = pod_node::files(&node.target(&pod, "secrets"));
        let filled = files.iter().filter(|(_, content)| *content == value(number).into_bytes());
        assert_eq!(filled.count(), SECRETS, "{files:?}");
    }
}

fn memory(node: &PodNode) -> io::Result<Vec<[String; 6]>> {
    let mebibytes = |kibibytes: f64| format!("{:.1}", kibibytes / 1024.0);
    let (mut rows, mut sums) = (Vec::new(), [0.0; 4]);
    for (name, pid) in processes(node) {
        let memory = Memory::of(pid)?;
        let figures = [memory.resident, memory.anonymous, memory.file, memory.proportional];
        sums = std::array::from_fn(|at| sums[at] + figures[at]);
        let [rss, anonymous, program, proportional] = figures.map(mebibytes);
        rows.push([name.to_owned(), rss, anonymous, program, proportional, String::new()]);
    }
    let verdict =
        report::verdict(format!("RSS < {RESIDENT_MOST}"), sums[0] / 1024.0 < RESIDENT_MOST);
    let [rss, anonymous, program, proportional] = sums.map(mebibytes);
    rows.push(["both".to_owned(), rss, anonymous, program, proportional, verdict]);
    let none = String::new;
    let all = mebibytes(charged(node)? / 1024.0);
    rows.push(["their cgroup, with tmpfs".to_owned(), all, none(), none(), none(), none()]);
    Ok(rows)
}

/// Bytes that the cgroup of both is charged for.
fn charged(node: &PodNode) -> io::Result<f64> {
    let cgroup = node.memory_cgroup();
    let read = |name: &str| fs::read_to_string(cgroup.join(name));
    let text = read("memory.current").or_else(|_| read("memory.usage_in_bytes"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn idle(node: &PodNode) -> io::Result<Vec<[String; 3]>> {
    let before = processes(node).map(|(_, pid)| processor_time(pid));
    let started = Instant::now();
    std::thread::sleep(IDLE);
    let seconds = started.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    let mut all = 0.0;
    for ((name, pid), before) in processes(node).into_iter().zip(before) {
        let spent = (processor_time(pid)? - before?).as_secs_f64() * 1e3 / seconds;
        all += spent;
        rows.push([name.to_owned(), format!("{spent:.2}"), String::new()]);
    }
    let verdict = report::verdict(format!("< {IDLE_MOST} %"), all < IDLE_MOST * 10.0);
    rows.push(["both".to_owned(), format!("{all:.2}"), verdict]);
    Ok(rows)
}

fn processes(node: &PodNode) -> [(&'static str, u32); 2] {
    [("agent", node.agent.process.pid()), ("mounter", node.mounter.pid())]
}

fn items(number: usize) -> String {
    let mut items = String::new();
    for secret in 0..SECRETS {
        let path = format!("secret/team/web-{number:03}/s{secret}");
        writeln!(items, "- secret: {path}#password\n  path: s{secret}").expect("a string");
    }
    items
}

fn value(number: usize) -> String {
    format!("correct-horse-battery-staple-{number}")
}

fn scripted() -> FakeVault {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::auth("hvs.bench", 86_400));
    for number in 0..PODS {
        let data = json!({
            "data": { "password": value(number) },
            "metadata": {
                "created_time": "2026-01-01T00:00:00.000000000Z", "custom_metadata": null,
                "deletion_time": "", "destroyed": false, "version": 1,
            },
        });
        let answer = Answer::envelope(json!({ "data": data }));
        for secret in 0..SECRETS {
            let path = format!("/v1/secret/data/team/web-{number:03}/s{secret}");
            vault.answer("GET", &path, answer.clone());
        }
    }
    vault
}
