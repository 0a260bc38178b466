//! Both containers of the DaemonSet's pod are told to stop at the same moment.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::Pod;
use crate::fake_vault::{Answer, FakeVault};
use crate::pod_node::{PodNode, VAULT};
use crate::support::process::eventually;
use crate::{LIMIT, leftovers, runtime, with_secrets};

const UNAVAILABLE: u32 = 14;
/// Well below the 25 s that a mounter waits for an agent.
const AT_ONCE: Duration = Duration::from_secs(10);

/// There may be no other agent that would clean up: the chart was uninstalled.
#[test]
fn a_stop_in_the_middle_of_a_publish_leaves_nothing_mounted() {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::hang());
    let mut node = PodNode::start("info", &VAULT.replace("{vault}", &vault.url()));
    let (pod, kubelet) = (Pod::new("shop", "web-0", "web"), node.kubelet());
    let refused = runtime().block_on(async {
        let driver = node.driver().await;
        let publish = driver.publish(&pod, "secrets", &[("secret", "secret/shop/web#token")]);
        let stop = async {
            while leftovers(&kubelet).is_empty() {
                tokio::task::yield_now().await;
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
fn a_mounter_whose_agent_is_gone_stops_at_once() {
    let (_dir, config) = with_secrets();
    let mut node = PodNode::start("info", &config);
    node.agent.process.kill();
    assert_eq!(node.mounter.stop(AT_ONCE).code(), Some(0));
}
