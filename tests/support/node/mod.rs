//! A whole Kubernetes node: API server, controllers, scheduler, containerd and kubelet, with real
//! pods in real containers.
//!
//! It takes ports, addresses and directories that a machine has once, so the test binary runs in
//! namespaces of its own (`tests/node/isolated`) and its tests share one node (`shared`). In there:
//!
//! - the node is `node-1` at `ADDRESS`; the API server answers there, and at `SERVICE_ADDRESS` for
//!   pods, as in any cluster;
//! - pods on the pod network reach the node (with PostgreSQL at its address) and each other; what
//!   listens on 127.0.0.1 only, as Vault does, is reached with `hostNetwork: true`;
//! - images come from `Node::image` and `Node::image_as` only; nothing can be pulled;
//! - pods on the pod network ask the node's address for names, where nobody answers by itself;
//! - a namespace's pods can be created as soon as `Node::create_namespace` returns.

mod containers;
mod control_plane;
mod end;
pub mod image;
mod kubelet;
mod objects;
pub mod pods;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::kubernetes::{Kubernetes, Listen, NODE};
use super::process::Process;
use containers::Containerd;
use image::File;

/// How long the node may take for what nothing delays on purpose. Two cores are enough for it, but
/// not idle ones: a pod of several images takes seconds, thirty pods at once a minute.
pub const SOON: Duration = Duration::from_secs(120);
/// The node's own address (reserved for documentation, so nobody else's).
pub const ADDRESS: &str = "192.0.2.10";
/// What `KUBERNETES_SERVICE_HOST` says in pods.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";
/// The last part of what services are called in full.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// A busybox with all its commands.
pub const BUSYBOX: &str = "localhost/busybox:test";

/// A running node. Dropping it deletes its pods, as a drain would, and ends everything.
pub struct Node {
    pub kubernetes: Arc<Kubernetes>,
    control_plane: Vec<Process>,
    kubelet: Process,
    containerd: Containerd,
    // Last, so that everything is gone before its directory.
    dir: TempDir,
}

impl Node {
    /// Starts all of it and waits until pods can be scheduled.
    pub fn start() -> Node {
        assert!(
            env::var_os("SECRETS_BROKER_TEST_ISOLATED").is_some(),
            "a node needs namespaces of its own: use `tests/run node`, or tests/node/isolated"
        );
        let dir = TempDir::with_prefix("node-").expect("create a directory");
        for address in [ADDRESS, SERVICE_ADDRESS] {
            run(Command::new("ip").args(["address", "replace", address, "dev", "lo"]));
        }
        let (kubernetes, containerd) = std::thread::scope(|scope| {
            let containerd = scope.spawn(|| Containerd::start(dir.path()));
            // In a network namespace nobody else listens on any address.
            let listen = Listen { bind: "0.0.0.0", advertise: ADDRESS, port: 443 };
            let kubernetes = Kubernetes::start_at(&listen);
            (Arc::new(kubernetes), containerd.join().expect("containerd starts"))
        });
        let control_plane = control_plane::start(&kubernetes, dir.path());
        let kubelet = kubelet::start(&kubernetes, dir.path());
        let mut node = Node { kubernetes, control_plane, kubelet, containerd, dir };
        node.wait_ready();
        node
    }

    /// Where pods' volumes, plugins and their registration are: `--root-dir`, shared mounts.
    pub fn kubelet_root(&self) -> &'static Path {
        Path::new(kubelet::ROOT)
    }

    /// What the kubelet has logged.
    pub fn kubelet_log(&self) -> String {
        self.kubelet.stderr()
    }

    /// Makes `localhost/<name>:test`, which holds these files and a busybox, and returns that
    /// reference.
    pub fn image(&self, name: &str, files: &[File]) -> String {
        let reference = format!("localhost/{name}:test");
        self.image_as(&reference, files);
        reference
    }

    /// The same under any reference, as if it had been pulled.
    pub fn image_as(&self, reference: &str, files: &[File]) {
        self.containerd.import(reference, files);
    }

    fn wait_ready(&mut self) {
        let kubernetes = Arc::clone(&self.kubernetes);
        self.kubelet.wait_until(SOON, "the node is ready", || {
            let node = kubernetes.send("GET", &format!("api/v1/nodes/{NODE}"), &[], None);
            node.is_ok_and(|node| {
                let conditions = node.body["status"]["conditions"].as_array();
                let ready = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
                // A taint keeps pods away until a controller has seen the condition as well.
                ready && node.body["spec"]["taints"].is_null()
            })
        });
        self.create_namespace("default");
    }
}

/// Runs a command to its end; panics with its output when it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// What mounts there are at and under a directory, deepest first.
pub fn mounts_under(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut under: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    under.reverse();
    under
}
