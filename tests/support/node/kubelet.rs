//! The kubelet and its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::json;

use super::super::kubernetes::{Kubernetes, NODE, User};
use super::super::process::Process;
use super::super::server_program;
use super::{ADDRESS, CLUSTER_DOMAIN, containers};

/// Its root directory, where every node has it; `tests/node/isolated` mounts something of our own.
pub const ROOT: &str = "/var/lib/kubelet";

/// Starts it; it registers the node by itself.
pub fn start(kubernetes: &Kubernetes, dir: &Path) -> Process {
    // What a pod mounts with `Bidirectional` is seen by others only from a shared mount.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change(ROOT, shared).expect("share the kubelet's mounts");

    let mut command = Command::new(server_program("kubelet"));
    command.arg("--config").arg(configure(kubernetes, dir));
    command.arg("--kubeconfig").arg(kubernetes.kubeconfig(User::Node));
    command.args(["--root-dir", ROOT]);
    command.arg("--cert-dir").arg(dir.join("kubelet-certs"));
    command.args(["--hostname-override", NODE, "--node-ip", ADDRESS]);
    containers::put_programs_first(&mut command);
    Process::spawn("kubelet", &command, dir)
}

fn configure(kubernetes: &Kubernetes, dir: &Path) -> PathBuf {
    // Pods on the host's network get a copy; the host's own may name servers nobody can reach.
    let resolver = dir.join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").expect("write resolv.conf");
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", containers::SOCKET),
        "cgroupDriver": "cgroupfs",
        "resolvConf": resolver,
        // Pods on the pod network ask there; a test that needs names has somebody answer.
        "clusterDNS": [ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "authentication": { "x509": { "clientCAFile": kubernetes.kubelet_client_ca() } },
        // Test machines have swap, little free space, and cgroups of the first version.
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "1Mi",
            "nodefs.inodesFree": "1",
            "imagefs.available": "1Mi",
        },
        // Nothing can be pulled again.
        "imageGCHighThresholdPercent": 100,
        // Changes on pods' side are seen at once; this is for what is noticed only now and then.
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "2s",
    });
    let file = dir.join("kubelet.json");
    fs::write(&file, config.to_string()).expect("write the kubelet's configuration");
    file
}
