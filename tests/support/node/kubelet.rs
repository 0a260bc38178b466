//! The kubelet and its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use serde_json::json;

use super::super::kubernetes::{Kubernetes, NODE, User};
use super::super::process::Process;
use super::super::server_program;
use super::{ADDRESS, containers};

/// Its root directory. Sockets below it, of plugins too, must have paths under 108 bytes.
pub fn root(dir: &Path) -> PathBuf {
    dir.join("kubelet")
}

/// Starts it; it registers the node by itself.
pub fn start(kubernetes: &Kubernetes, dir: &Path) -> Process {
    let root = root(dir);
    fs::create_dir(&root).expect("create the kubelet's root");
    // What a pod mounts with `Bidirectional` is seen by others only from a shared mount.
    mount_bind(&root, &root).expect("bind the kubelet's root to itself");
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change(&root, shared).expect("share the kubelet's mounts");

    let mut command = Command::new(server_program("kubelet"));
    command.arg("--config").arg(configure(dir));
    command.arg("--kubeconfig").arg(kubernetes.kubeconfig(User::Node));
    command.arg("--root-dir").arg(&root);
    command.arg("--cert-dir").arg(dir.join("kubelet-certs"));
    command.args(["--hostname-override", NODE, "--node-ip", ADDRESS]);
    containers::put_programs_first(&mut command);
    Process::spawn("kubelet", &command, dir)
}

fn configure(dir: &Path) -> PathBuf {
    // Pods on the host's network get a copy; the host's own may name servers nobody can reach.
    let resolver = dir.join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").expect("write resolv.conf");
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", containers::SOCKET),
        "cgroupDriver": "cgroupfs",
        "resolvConf": resolver,
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
