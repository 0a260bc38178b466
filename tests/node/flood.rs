//! A pod that throws all it can at its own socket, and the pod beside it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::load::{self, CONNECTS, NAMES, Seen};
use crate::product::{pod, product};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

const ROUNDS: usize = 5;
/// Far above what is measured, which the test prints: two cores of a test machine also run the API
/// server, the kubelet and Vault.
const RATIO_MAX: f64 = 10.0;

/// The attacker may have half a core, as a pod with a limit: that the two compete for processors
/// is the scheduler's matter. What is left is what the agent does for the one and makes the other
/// wait.
#[test]
fn a_pod_that_floods_its_socket_costs_others_no_request_and_little_time() {
    let product = product();
    product.account("flood", "web");
    product.let_in("flood", "web");
    product.bed.vault.put_kv2("shop/flood", json!({ "token": "s3cr3t" }));
    let node = node();
    let socket = json!({ "deliver": "socket" });
    let caller = |name: &str| pod("flood", name, "web", load::image(), socket.clone());
    node.apply(&caller("victim"));
    let mut hostile = caller("hostile");
    load::flood(&mut hostile, "shop/flood");
    hostile["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "500m" } });
    node.wait_until_ready("flood", "victim");
    let warm = load::measure("flood", "victim", "shop/flood");
    assert_eq!(warm.refused, 0);

    node.apply(&hostile);
    node.wait_until_ready("flood", "hostile");
    let process = node.container_process("flood", "hostile", "main").expect("its process");
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    let send = |signal| kill_process(process, signal).expect("signal the flood");
    let answered = || product.metric("secrets_broker_requests_total");
    let mut rounds: Vec<(Seen, Seen)> = Vec::new();
    for _ in 0..ROUNDS {
        send(Signal::STOP);
        let quiet = load::measure("flood", "victim", "shop/flood");
        send(Signal::CONT);
        let before = answered();
        eventually(SOON, "the flood is felt", || answered() > before + 1000.0);
        rounds.push((quiet, load::measure("flood", "victim", "shop/flood")));
    }
    let refused: usize =
        rounds.iter().map(|(quiet, flooded)| quiet.refused + flooded.refused).sum();
    assert_eq!(refused, 0, "of the other pod's");

    // Neither does it keep a new pod from its files.
    let files = json!({ "secret": "secret/shop/flood#token" });
    node.apply(&pod("flood", "late", "web", BUSYBOX, files));
    node.wait_until_ready("flood", "late");
    for what in [format!("{CONNECTS} connects"), format!("{NAMES} names")] {
        eventually(SOON, &what, || node.pod_log("flood", "hostile", "main").contains(&what));
    }
    let median = |of: &dyn Fn(&(Seen, Seen)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let micros = |seen: &Seen| seen.p99.as_secs_f64() * 1e6;
    let ratio = median(&|(quiet, flooded)| micros(flooded) / micros(quiet));
    let p50 = median(&|(quiet, flooded)| flooded.p50.as_secs_f64() / quiet.p50.as_secs_f64());
    println!(
        "p99 of the other pod: {:.0} µs, in the flood {:.0} µs; of {ROUNDS} rounds' ratios the \
         median is {ratio:.2}, that of p50 {p50:.2}",
        median(&|(quiet, _)| micros(quiet)),
        median(&|(_, flooded)| micros(flooded)),
    );
    assert!(ratio < RATIO_MAX, "{ratio}");
    for name in ["late", "hostile", "victim"] {
        node.delete_pod("flood", name);
    }
}
