//! A pod that throws all it can at its own socket or at the node's, and the pod beside it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::load::{self, CONNECTS, NAMES, Seen, Target};
use crate::node_socket;
use crate::product::{Product, pod, product, product_alone};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

const ROUNDS: usize = 5;
/// What is promised. The test prints what it measured, which is about 1.
const RATIO_MAX: f64 = 2.0;
const FIRST_MAX: Duration = Duration::from_secs(2);

/// A container's process. With the test it stops, also when that fails: others come after it.
struct Puppet(OwnedFd);

impl Puppet {
    fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.0, signal).expect("signal it");
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // Its pod may be gone already.
        let _ = pidfd_send_signal(&self.0, Signal::STOP);
    }
}

#[test]
fn a_pod_that_floods_its_socket_costs_others_no_request_and_little_time() {
    let product = product();
    product.account("flood", "web");
    product.let_in("flood", "web");
    product.bed.vault.put_kv2("shop/flood", json!({ "token": "s3cr3t" }));
    let caller =
        |name: &str| pod("flood", name, "web", load::image(), json!({ "deliver": "socket" }));
    flood(&product, "flood", caller, Target::Own("shop/flood"));
}

#[test]
fn a_pod_that_floods_the_nodes_socket_costs_others_no_request_and_little_time() {
    // The others connect without waiting, which fails while the queue is full.
    let product = product_alone();
    product.account("hall", "web");
    product.bed.vault.put_kv2("shop/hall", json!({ "token": "s3cr3t" }));
    let caller = |name: &str| node_socket::caller("hall", name, load::image());
    flood(&product, "hall", caller, Target::Node("shop/hall"));
}

/// The attacker may have half a core, as a pod with a limit. That the two compete for processors is
/// the scheduler's matter, so the other rounds have a pod that takes as much of them and asks for
/// nothing. What is left is what the agent does for the one and makes the other wait.
fn flood(product: &Product, namespace: &str, caller: impl Fn(&str) -> Value, target: Target) {
    let node = node();
    node.apply(&caller("victim"));
    node.wait_until_ready(namespace, "victim");
    let measure = || load::measure(namespace, "victim", target);
    let warm = measure();
    assert_eq!(warm.refused, 0);

    let (mut busy, mut hostile) = (caller("busy"), caller("hostile"));
    load::spin(&mut busy);
    load::flood(&mut hostile, target);
    let start = |name: &str, pod: &Value| {
        node.apply(pod);
        node.wait_until_ready(namespace, name);
        let process = node.container_process(namespace, name, "main").expect("its process");
        let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
        Puppet(pidfd_open(process, PidfdFlags::empty()).expect("a handle on it"))
    };
    let (busy, hostile) = (start("busy", &busy), start("hostile", &hostile));
    let answered = || product.metric("secrets_broker_requests_total");
    let mut rounds: Vec<(Seen, Seen)> = Vec::new();
    for _ in 0..ROUNDS {
        hostile.signal(Signal::STOP);
        busy.signal(Signal::CONT);
        let quiet = measure();
        busy.signal(Signal::STOP);
        hostile.signal(Signal::CONT);
        let before = answered();
        eventually(SOON, "the flood is felt", || answered() > before + 1000.0);
        rounds.push((quiet, measure()));
    }
    let refused: usize =
        rounds.iter().map(|(quiet, flooded)| quiet.refused + flooded.refused).sum();
    assert_eq!(refused, 0, "of the other pod's");

    // Neither does it keep a new pod from its files.
    let files = json!({ "secret": format!("secret/{}#token", target.secret()) });
    node.apply(&pod(namespace, "late", "web", BUSYBOX, files));
    node.wait_until_ready(namespace, "late");
    for what in [format!("{CONNECTS} connects"), format!("{NAMES} names")] {
        eventually(SOON, &what, || node.pod_log(namespace, "hostile", "main").contains(&what));
    }
    let median = |of: &dyn Fn(&(Seen, Seen)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let ratio = median(&|(quiet, flooded)| micros(flooded.p99) / micros(quiet.p99));
    let p50 = median(&|(quiet, flooded)| micros(flooded.p50) / micros(quiet.p50));
    println!(
        "{target}: p99 of the other pod: {:.0} µs, in the flood {:.0} µs; of {ROUNDS} rounds' \
         ratios the median is {ratio:.2}, that of p50 {p50:.2}; a new connection's first reply \
         came after {:.0} µs, in the flood {:.0} µs",
        median(&|(quiet, _)| micros(quiet.p99)),
        median(&|(_, flooded)| micros(flooded.p99)),
        median(&|(quiet, _)| micros(quiet.first)),
        median(&|(_, flooded)| micros(flooded.first)),
    );
    assert!(ratio < RATIO_MAX, "{ratio}");
    assert!(rounds.iter().all(|(_, flooded)| flooded.first < FIRST_MAX), "a new connection waits");
    for name in ["late", "hostile", "busy", "victim"] {
        node.delete_pod(namespace, name);
    }
}
