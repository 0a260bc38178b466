//! The agent and its mounter as a pod of the DaemonSet runs them: two processes in one pod's
//! cgroups, a kubelet's directories, and no kubelet. Only inside of `tests/node/isolated`. Include
//! it with `#[path = "support/pod_node.rs"]`, beside `agent`, `cluster`, `csi_driver`,
//! `pod_cgroups` and `process`.
#![allow(dead_code, reason = "each user compiles this and uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::cluster::{Pod, key_set, uid};
use crate::csi_driver::{self, CsiDriver};
use crate::pod_cgroups::{self, container, inside};
use crate::support::agent::Agent;
use crate::support::process::Process;

const PATIENCE: Duration = Duration::from_secs(60);
/// What every such node has; what a test adds comes first.
const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
log = "{log}"
[sockets.host]
enabled = false
[csi]
enabled = true
node = "node-1"
kubelet_root = "{dir}/kubelet"
keys_file = "{dir}/keys.json"
issuers = ["https://kubernetes.default.svc"]
mounter_socket = "{dir}/mounter/mounter.sock"
volume_bytes_total = "1GiB"
[placement]
pod_uid = "{pod}"
cgroup_root = "{root}"
"#;

/// A source where pods read as their own service accounts, to be added with its address.
pub const VAULT: &str = r#"
[sources.vault]
kind = "vault"
address = "{vault}"
role = "agent"
pod_role = "{namespace}-{serviceaccount}"
token_file = "{dir}/token"
mounts = { secret = "kv2", database = "database" }
"#;

/// A running pair.
pub struct PodNode {
    // Both end before their directory goes.
    pub agent: Agent,
    pub mounter: Process,
    pub dir: TempDir,
    /// The pair's own pod.
    pub uid: String,
}

impl PodNode {
    /// Starts both and waits until the driver takes calls. In `config`, `{dir}` is the node's own
    /// directory, and `{dir}/token` holds the token of the agent's own account.
    pub fn start(log: &str, config: &str) -> PodNode {
        assert!(
            std::env::var_os("SECRETS_BROKER_TEST_ISOLATED").is_some(),
            "the driver mounts: use tests/run, or tests/node/isolated"
        );
        let (dir, uid) = (TempDir::with_prefix("node-").expect("create a directory"), uid());
        // On a tmpfs, as `/run` is on a node.
        let run = dir.path().join("run");
        fs::create_dir(&run).expect("create the runtime directory");
        mount("run", &run, "tmpfs", MountFlags::empty(), c"mode=755").expect("mount it");
        let kubelet = dir.path().join("kubelet");
        for made in ["plugins_registry", "pods"] {
            fs::create_dir_all(kubelet.join(made)).expect("create a directory of the kubelet's");
        }
        let own = Pod::new("secrets-broker", "secrets-broker-0", "secrets-broker");
        for (name, content) in [("keys.json", key_set().to_string()), ("token", own.token())] {
            let file = dir.path().join(name);
            fs::write(&file, content).expect("write a file");
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("close it");
        }
        let hierarchies = [pod_cgroups::placing(), pod_cgroups::counting_memory()];
        let cgroups = hierarchies.map(|hierarchy| container(&hierarchy, &uid));
        let mut mounter = Command::new(env!("CARGO_BIN_EXE_secrets-broker"));
        mounter.arg("mounter").arg("--kubelet-root").arg(&kubelet);
        mounter.arg("--socket").arg(dir.path().join("mounter/mounter.sock"));
        let mounter = Process::spawn("mounter", &inside(&cgroups, &mounter), dir.path());
        let common = CONFIG.replace("{log}", log).replace("{pod}", &uid);
        let config = format!("{config}{}", common.replace("{root}", pod_cgroups::ROOT));
        let through = |command: &Command| inside(&cgroups, command);
        let mut agent = Agent::launch_through(dir.path(), &config, through).wait_ready();
        let socket = csi_driver::socket(&kubelet);
        agent.process.wait_until(PATIENCE, "the driver's socket", || socket.exists());
        PodNode { agent, mounter, dir, uid }
    }

    pub fn kubelet(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    /// A connection to the driver; inside a tokio runtime.
    pub async fn driver(&self) -> CsiDriver {
        CsiDriver::connect(&self.kubelet()).await
    }

    /// Where a pod's volume appears.
    pub fn target(&self, pod: &Pod, volume: &str) -> PathBuf {
        csi_driver::target(&self.kubelet(), pod, volume)
    }

    /// The cgroup that counts the pair's memory, their volumes included.
    pub fn memory_cgroup(&self) -> PathBuf {
        container(&pod_cgroups::counting_memory(), &self.uid)
    }
}

impl Drop for PodNode {
    /// Unlike the agent's own end, this takes the volumes away.
    fn drop(&mut self) {
        self.agent.process.kill();
        self.mounter.kill();
        let mounts = secrets_broker::mountinfo::read().unwrap_or_default();
        let ours = mounts.iter().filter(|line| line.mount_point.starts_with(self.dir.path()));
        for line in ours.rev() {
            if let Err(error) = unmount(&line.mount_point, UnmountFlags::DETACH) {
                eprintln!("{} stays mounted: {error}", line.mount_point.display());
            }
        }
    }
}

/// Every file below a directory, links followed only as names within it; path and content.
pub fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("read a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push((entry.path(), fs::read(entry.path()).expect("read a file")));
        }
    }
    found
}
