//! Both containers of the DaemonSet's pod are told to stop at the same moment.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::Pod;
use crate::fake_vault::{Answer, FakeVault};
use crate::pod_node::{PodNode, VAULT};
use crate::support::process::eventually;
use crate::upstream::Upstream;
use crate::{LIMIT, leftovers, runtime, with_secrets};

const ITEMS: &str =
    "- secret: database/creds/shop-web\n  path: db.json\n- secret: secret/shop/web\n";
const UNAVAILABLE: u32 = 14;
/// Well below the 25 s that a mounter waits for an agent.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Has a pod ask for a credential and for a secret that Vault keeps silent about, and both
/// containers stopped once `begun` holds. There may be no other agent that would clean up: the
/// chart was uninstalled.
fn stop_a_publish(vault: &FakeVault, begun: impl Fn(&PodNode) -> bool) {
    let mut node = PodNode::start("info", &VAULT.replace("{vault}", &vault.url()));
    let (pod, kubelet) = (Pod::new("shop", "web-0", "web"), node.kubelet());
    let refused = runtime().block_on(async {
        let driver = node.driver().await;
        let publish = driver.publish(&pod, "secrets", &[("items", ITEMS)]);
        let stop = async {
            let until = Instant::now() + LIMIT;
            while !begun(&node) {
                assert!(Instant::now() < until, "nothing is begun");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The mounter first, which is the worse order.
            node.mounter.signal(Signal::TERM);
            let mounter = &node.mounter;
            eventually(LIMIT, "it waits", || mounter.stderr().contains("stopping after the agent"));
            node.agent.process.signal(Signal::TERM);
        };
        tokio::join!(publish, stop).0.expect_err("Vault is silent")
    });
    assert_eq!(refused.code, UNAVAILABLE, "{refused:?}");
    assert!(refused.message.contains("the agent is stopping"), "{refused:?}");
    assert_eq!(node.agent.process.wait_for_exit(LIMIT).code(), Some(0));
    assert_eq!(leftovers(&kubelet), Vec::<String>::new());
    assert_eq!(node.mounter.wait_for_exit(AT_ONCE).code(), Some(0));
}

#[test]
fn a_stop_in_the_middle_of_a_publish_leaves_nothing_mounted() {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::hang());
    stop_a_publish(&vault, |node| !leftovers(&node.kubelet()).is_empty());
}

#[test]
fn a_stop_in_the_middle_of_a_publish_ends_the_session_of_its_credential() {
    let upstream = Upstream::start(&[("shop", "web")]);
    let vault = &upstream.vault;
    vault.answer("GET", "/v1/secret/data/shop/web", Answer::hang());
    let seen = |path: &str| vault.seen().iter().any(|request| request.ends_with(path));
    stop_a_publish(vault, |_| seen("/database/creds/shop-web") && seen("/secret/data/shop/web"));
    assert!(seen("/auth/token/revoke-self"), "{:#?}", vault.seen());
}

#[test]
fn a_mounter_whose_agent_is_gone_stops_at_once() {
    let (_dir, config) = with_secrets();
    let mut node = PodNode::start("info", &config);
    node.agent.process.kill();
    assert_eq!(node.mounter.stop(AT_ONCE).code(), Some(0));
}
