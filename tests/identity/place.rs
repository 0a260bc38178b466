//! Where pods of the test lie: a hierarchy, one of the kubelet's drivers, a root of the test's.

use std::sync::Arc;

use secrets_broker::domain::{Pod, ServiceAccount};
use secrets_broker::identity::kubelet_cgroup::KubeletCgroup;

use crate::cluster;
use crate::tree::{Tree, Trees};

pub(crate) const VICTIM: &str = "7d2c5a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f";
pub(crate) const ATTACKER: &str = "0b9f4d3c-1e2a-4b5c-8d7e-9f8e7d6c5b4a";
pub(crate) const ID: &str = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";

/// What the kubelet calls its cgroup driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

/// One hierarchy under one driver.
pub(crate) struct Place {
    pub(crate) tree: Tree,
    /// The other hierarchy, for processes that are in both.
    pub(crate) other_tree: Tree,
    pub(crate) driver: Driver,
    /// What everything of the test is named after.
    pub(crate) name: String,
    pub(crate) kubelet: KubeletCgroup,
}

impl Place {
    pub(crate) fn all(trees: &Trees) -> Vec<Self> {
        let mut places = Vec::new();
        for (tree, other_tree) in [(&trees.v1, &trees.v2), (&trees.v2, &trees.v1)] {
            for driver in [Driver::Cgroupfs, Driver::Systemd] {
                let root = root(&trees.name, driver);
                places.push(Self {
                    tree: tree.clone(),
                    other_tree: other_tree.clone(),
                    driver,
                    name: trees.name.clone(),
                    kubelet: KubeletCgroup::configured(&root).unwrap(),
                });
            }
        }
        places
    }

    /// The kubelet's root, as a path in the hierarchy.
    pub(crate) fn root(&self) -> String {
        root(&self.name, self.driver)
    }

    /// The cgroup of a container of a burstable pod.
    pub(crate) fn container(&self, uid: &str) -> String {
        format!("{}{}", self.root(), self.below_root(uid))
    }

    /// The same without the root in front.
    pub(crate) fn below_root(&self, uid: &str) -> String {
        format!("{}/{}", self.pod_below_root(uid), self.scope("cri-containerd-", ID))
    }

    pub(crate) fn pod_below_root(&self, uid: &str) -> String {
        let slice = format!("{}-kubepods-burstable", self.name);
        match self.driver {
            Driver::Cgroupfs => format!("/burstable/pod{uid}"),
            Driver::Systemd => format!("/{slice}.slice/{slice}-pod{}.slice", uid.replace('-', "_")),
        }
    }

    /// A container's directory or scope.
    pub(crate) fn scope(&self, prefix: &str, id: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => id.to_owned(),
            Driver::Systemd => format!("{prefix}{id}.scope"),
        }
    }
}

fn root(name: &str, driver: Driver) -> String {
    match driver {
        Driver::Cgroupfs => format!("/{name}/kubepods"),
        Driver::Systemd => format!("/{name}.slice/{name}-kubepods.slice"),
    }
}

/// The node that they are on.
pub(crate) const NODE: &str = "node-1";

/// The victim, as the volume of its socket and the API server know it.
pub(crate) fn victim() -> Arc<Pod> {
    pod(VICTIM, "shop", "web")
}

/// The attacker's pod, as the API server knows it.
pub(crate) fn attacker() -> Arc<Pod> {
    pod(ATTACKER, "stranger", "idle")
}

fn pod(uid: &str, namespace: &str, account: &str) -> Arc<Pod> {
    let account = ServiceAccount {
        namespace: namespace.parse().unwrap(),
        name: account.parse().unwrap(),
        uid: "5d1c4a0e-3f1b-4c8d-9e6f-0a1b2c3d4e5f".parse().unwrap(),
    };
    Arc::new(Pod { uid: uid.parse().unwrap(), name: "web-0".parse().unwrap(), account })
}

/// The victim's own token, genuine in every respect.
pub(crate) fn victims_token() -> String {
    in_cluster(&victim()).token()
}

/// The pod as the cluster has it, which gives it tokens.
pub(crate) fn in_cluster(pod: &Pod) -> cluster::Pod {
    let account = &pod.account;
    let [namespace, name, uid] =
        [account.namespace.to_string(), pod.name.to_string(), pod.uid.to_string()];
    let (account, account_uid) = (account.name.to_string(), account.uid.to_string());
    cluster::Pod { namespace, name, uid, account, account_uid }
}
