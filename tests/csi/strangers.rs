//! Callers that are nobody at a pod's socket: each group of them has a budget of its own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::callers::ask;
use crate::cluster::Pod;
use crate::pod_cgroups::{container, placing};
use crate::pod_node::PodNode;
use crate::{runtime, with_secrets};

/// Few, so that hardly any comes back while a slow machine asks.
const PER_SECOND: usize = 2;

/// A cgroup of nobody's, which a container engine beside the kubelet's might have made.
fn elsewhere(name: &str) -> PathBuf {
    let directory = placing().join("kubepods").join(name);
    fs::create_dir_all(&directory).expect("make a cgroup");
    directory
}

/// The statuses of this many requests of one process, in their order.
fn statuses(cgroup: PathBuf, socket: &Path, requests: usize) -> Vec<u16> {
    let paths = vec!["/v1/secret/data/shop/web".to_owned(); requests];
    ask(cgroup, socket, &paths).iter().map(|reply| reply.status).collect()
}

#[test]
fn who_is_refused_spends_its_cgroups_budget_and_nobody_elses() {
    let (_dir, config) = with_secrets();
    let limits = format!("[limits]\nrequests_per_second_per_user = {PER_SECOND}\n");
    let node = PodNode::start("info", &[config, limits].concat());
    let (pod, other) = (Pod::new("shop", "web-0", "web"), Pod::new("shop", "web-1", "web"));
    runtime().block_on(async {
        let driver = node.driver().await;
        let published = driver.publish(&pod, "door", &[("deliver", "socket")]).await;
        published.expect("publish the socket");
    });
    let socket = node.target(&pod, "door");
    for (crowd, bystander, status) in [
        (elsewhere("engine-a"), elsewhere("engine-b"), 403),
        (container(&placing(), &other.uid), container(&placing(), &pod.uid), 200),
    ] {
        let refused = statuses(crowd, &socket, 25 * PER_SECOND);
        assert!(refused[..PER_SECOND].iter().all(|status| *status == 403), "{refused:?}");
        assert!(refused.contains(&429), "a budget without an end");
        assert!(refused.iter().all(|status| matches!(*status, 403 | 429)), "{refused:?}");
        // A whole budget is left to others. What is spent takes a second to come back.
        assert_eq!(statuses(bystander, &socket, PER_SECOND), [status; PER_SECOND]);
    }
}
