//! An agent that is a process of its own, in a pod, with a CSI driver that mounts by itself: the
//! kubelet's calls go in, and what lies in its volumes comes out.
//!
//! Its mounts are in a namespace that ends with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::agent::SECRET;
use crate::agent_process::Agent;
use crate::cluster::{Pod, key_set};
use crate::csi_driver::{self, CsiDriver, NodePublishVolumeRequest, Refused};
use crate::place::{NODE, Place, in_cluster, victim};
use crate::pod_cgroups::inside;

/// The agent's own pod.
const OWN: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
const VOLUME: &str = "secrets";
const ATTRIBUTES: &[(&str, &str)] = &[("secret", "secret/victim#token")];
const PATIENCE: Duration = Duration::from_secs(30);

/// As the agent whose server has the pods' sockets: the victim's account may read its secret.
const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
[sockets.host]
enabled = false
[csi]
enabled = true
node = "{node}"
kubelet_root = "{dir}/kubelet"
keys_file = "{dir}/keys.json"
issuers = ["{issuer}"]
[placement]
pod_uid = "{pod}"
cgroup_root = "{root}"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
[[grants]]
name = "victim"
who = { namespace = "shop", service_account = "web" }
paths = ["secret/data/victim"]
login = "agent"
"#;

/// The agent, and a connection to it as the kubelet's.
pub(crate) struct Driver {
    // The agent ends before its directory goes.
    agent: Agent,
    directory: TempDir,
    calls: CsiDriver,
    runtime: Runtime,
}

impl Driver {
    pub(crate) fn start(place: &Place) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubelet = directory.path().join("kubelet");
        for made in ["plugins_registry", "pods"] {
            fs::create_dir_all(kubelet.join(made)).unwrap();
        }
        let secrets = format!("[mounts.secret.secrets]\nvictim = {{ token = \"{SECRET}\" }}\n");
        for (name, content) in [("keys.json", key_set().to_string()), ("secrets.toml", secrets)] {
            let file = directory.path().join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        }
        let config = CONFIG.replace("{node}", NODE).replace("{issuer}", crate::cluster::ISSUER);
        let config = config.replace("{pod}", OWN).replace("{root}", &place.root());
        let cgroup = place.tree.make(&place.container(OWN));
        let through = |command: &Command| inside(&[cgroup], &with_own_mounts(command));
        let agent = Agent::launch_through(directory.path(), &config, through);
        let mut agent = agent.wait_ready();
        let socket = csi_driver::socket(&kubelet);
        agent.process.wait_until(PATIENCE, "the driver's socket", || socket.exists());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let calls = runtime.block_on(CsiDriver::connect(&kubelet));
        Self { agent, directory, calls, runtime }
    }

    fn kubelet(&self) -> PathBuf {
        self.directory.path().join("kubelet")
    }

    /// A call that is good: for this pod's volume with its own token.
    pub(crate) fn request(&self, pod: &Pod) -> NodePublishVolumeRequest {
        self.calls.request(pod, VOLUME, ATTRIBUTES)
    }

    pub(crate) fn send(&self, request: &NodePublishVolumeRequest) -> Result<(), Refused> {
        self.runtime.block_on(self.calls.send(request))
    }

    /// How many files of volumes hold the victim's secret, as the agent sees them.
    pub(crate) fn copies_of_the_secret(&self) -> usize {
        let root = PathBuf::from(format!("/proc/{}/root", self.agent.process.pid()));
        copies(&root.join(self.kubelet().strip_prefix("/").unwrap()), SECRET)
    }

    /// Whether a good call for the victim's volume gives it its secret.
    pub(crate) fn publishes_the_victims(&self) -> bool {
        let request = self.request(&in_cluster(&victim()));
        self.send(&request).is_ok() && self.mounts() > 0 && self.copies_of_the_secret() > 0
    }

    /// Whether that volume goes when the kubelet says so, and leaves nothing.
    pub(crate) fn takes_the_victims_back(&self) -> bool {
        let victim = in_cluster(&victim());
        let unpublished = self.runtime.block_on(self.calls.unpublish(&victim, VOLUME));
        unpublished.is_ok() && self.is_clean()
    }

    /// Whether there is no volume.
    pub(crate) fn is_clean(&self) -> bool {
        self.mounts() == 0 && self.copies_of_the_secret() == 0
    }

    /// How many mounts the agent sees below the kubelet's root.
    fn mounts(&self) -> usize {
        let table = format!("/proc/{}/mountinfo", self.agent.process.pid());
        let table = fs::read_to_string(table).unwrap();
        table.matches(self.kubelet().to_str().unwrap()).count()
    }
}

/// The same command in a mount namespace of its own.
fn with_own_mounts(command: &Command) -> Command {
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "--"]).arg(command.get_program()).args(command.get_args());
    apart
}

/// How many files below hold the text.
fn copies(directory: &Path, text: &str) -> usize {
    let entries = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let copies_in = |path: PathBuf| match path.symlink_metadata().unwrap().file_type() {
        kind if kind.is_dir() => copies(&path, text),
        kind if kind.is_file() => {
            usize::from(String::from_utf8_lossy(&fs::read(path).unwrap()).contains(text))
        }
        // A link to a name beside it, or a socket.
        _ => 0,
    };
    entries.map(copies_in).sum()
}
