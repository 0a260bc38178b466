//! The agent's driver: csi-sanity, the CSI project's own tests, against it, calls that no kubelet
//! would make (`hostile_calls`), and pods that ask for each other's secrets (`matrix`).
//!
//! csi-sanity cannot ask for an inline volume as a kubelet does: volumes come from a Controller
//! service, are published writable, and their targets end in `/target`. So it tries the driver
//! itself as far as that goes, and `tests/servers/csi-front` translates the rest. Its tests of
//! controllers, staging, expansion, statistics and health are about services that the driver does
//! not offer.

mod callers;
#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/csi_driver.rs"]
mod csi_driver;
mod deadlines;
mod doors;
#[path = "../support/fake_vault.rs"]
mod fake_vault;
mod hostile_calls;
mod leaks;
mod matrix;
mod pauses;
#[path = "../support/pod_cgroups.rs"]
mod pod_cgroups;
#[path = "../support/pod_node.rs"]
mod pod_node;
mod stops;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod upstream;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use cluster::{Pod, key_set};
use support::agent::Agent;
use support::process::{Process, eventually};
use support::server_program;

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
log = "debug"

[sockets.host]
enabled = false

[csi]
enabled = true
node = "node-1"
kubelet_root = "{dir}/kubelet"
keys_file = "{dir}/keys.json"
issuers = ["https://kubernetes.default.svc"]
volume_bytes_total = "8MiB"
"#;

const SECRETS: &str = r#"
[mounts.secret.secrets."shop/web"]
token = "s3cr3t"
"#;

/// What pods may read: the secrets in a file of the test's.
const CONFIG_OF_PODS: &str = r#"
[sources.local]
kind = "local"
file = "{secrets}"
[[grants]]
name = "pods"
who = { any_pod = true }
paths = ["secret/data/shop/*"]
login = "agent"
"#;

/// For a pair of agent and mounter: that configuration and its secrets, which are there as long as
/// the directory.
fn with_secrets() -> (TempDir, String) {
    let dir = TempDir::with_prefix("secrets-").expect("create a directory");
    let file = dir.path().join("secrets.toml");
    fs::write(&file, SECRETS).expect("write the secrets");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("close them");
    let path = file.to_str().expect("a path that is text");
    let config = CONFIG_OF_PODS.replace("{secrets}", path);
    (dir, config)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What csi-sanity tries of a driver without a Controller service.
const SERVICES: [&str; 10] = [
    "Identity Service GetPluginCapabilities should return appropriate capabilities",
    "Identity Service GetPluginInfo should return appropriate information",
    "Identity Service Probe should return appropriate information",
    "Node Service NodeGetCapabilities should return appropriate capabilities",
    "Node Service NodeGetInfo should return appropriate values",
    "Node Service NodePublishVolume should fail when no target path is provided",
    "Node Service NodePublishVolume should fail when no volume capability is provided",
    "Node Service NodePublishVolume should fail when no volume id is provided",
    "Node Service NodeUnpublishVolume should fail when no target path is provided",
    "Node Service NodeUnpublishVolume should fail when no volume id is provided",
];
/// What it tries with volumes.
const WITH_VOLUMES: [&str; 3] = [
    "Node Service NodeUnpublishVolume should remove target path",
    "Node Service should be idempotent",
    "Node Service should work",
];

/// An agent that mounts by itself, and a kubelet's directories.
struct Node {
    // The agent ends before its directory goes.
    agent: Agent,
    dir: TempDir,
    pod: Pod,
}

impl Node {
    fn start() -> Node {
        assert!(
            std::env::var_os("SECRETS_BROKER_TEST_ISOLATED").is_some(),
            "the driver mounts: use `tests/run csi`, or tests/node/isolated"
        );
        let dir = TempDir::with_prefix("csi-").expect("create a directory");
        let write = |name: &str, content: &str| {
            let file = dir.path().join(name);
            fs::write(&file, content).expect("write a file");
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("close it");
        };
        let pod = Pod::new("shop", "web-0", "web");
        for made in ["plugins_registry".to_owned(), format!("pods/{}", pod.uid)] {
            let directory = dir.path().join("kubelet").join(made);
            fs::create_dir_all(directory).expect("create a directory of the kubelet's");
        }
        write("keys.json", &key_set().to_string());
        write("secrets.toml", SECRETS);
        let pods = CONFIG_OF_PODS.replace("{secrets}", "{dir}/secrets.toml");
        let agent = Agent::start(dir.path(), &[CONFIG, &pods].concat());
        let mut node = Node { agent, dir, pod };
        let socket = node.driver();
        node.agent.process.wait_until(LIMIT, "the driver's socket", || socket.exists());
        node
    }

    fn driver(&self) -> PathBuf {
        csi_driver::socket(&self.dir.path().join("kubelet"))
    }

    /// Where the kubelet makes the directory of the pod's volume `secrets`, which is not there yet.
    fn volume(&self) -> PathBuf {
        let volumes = self.dir.path().join(format!("kubelet/pods/{}/volumes", self.pod.uid));
        let csi = volumes.join("kubernetes.io~csi");
        fs::create_dir_all(&csi).expect("create the pod's directory");
        csi.join("secrets")
    }

    /// Runs csi-sanity on a socket: the names of the tests that passed, once none has failed.
    fn sanity(&self, socket: &Path, more: &[&str]) -> BTreeSet<String> {
        let dir = self.dir.path();
        let secrets = dir.join("sanity-secrets.yaml");
        let tokens = json!({ "csi.storage.k8s.io/serviceAccount.tokens": self.pod.tokens() });
        let content = json!({ "NodePublishVolumeSecret": tokens });
        fs::write(&secrets, content.to_string()).expect("write csi-sanity's secrets");
        let report = dir.join("report.json");
        let output = Command::new(server_program("csi-sanity"))
            .arg("--csi.endpoint")
            .arg(format!("unix:{}", socket.display()))
            .arg("--csi.mountdir")
            .arg(self.volume())
            .arg("--csi.stagingdir")
            .arg(dir.join("staging"))
            .arg("--csi.secrets")
            .arg(&secrets)
            .arg("--ginkgo.json-report")
            .arg(&report)
            .arg("--ginkgo.no-color")
            .args(more)
            .output()
            .expect("run csi-sanity");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}\n{}", self.agent.process.stderr());
        let report = fs::read(&report).expect("read the report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let specs = report[0]["SpecReports"].as_array().expect("tests").iter();
        let passed = specs.filter(|spec| spec["State"] == "passed").map(|spec| {
            let groups = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let words = groups.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
            words.collect::<Vec<_>>().join(" ")
        });
        passed.filter(|name| !name.is_empty()).collect()
    }

    fn leftovers(&self) -> Vec<String> {
        leftovers(&self.dir.path().join("kubelet"))
    }
}

/// What is left of volumes below a kubelet's root.
fn leftovers(kubelet: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
    let private = csi_driver::socket(kubelet).with_file_name("volumes");
    let kubelet = kubelet.to_str().expect("a readable path");
    let mounts = table.lines().filter(|line| line.contains(kubelet)).map(str::to_owned);
    let names = fs::read_dir(private).into_iter().flatten().flatten();
    mounts.chain(names.map(|entry| entry.path().display().to_string())).collect()
}

const LIMIT: Duration = Duration::from_secs(60);

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_drivers_services_are_as_the_specification_has_them() {
    let node = Node::start();
    let passed = node.sanity(
        &node.driver(),
        &[
            "--ginkgo.focus=Identity Service|Node Service",
            "--ginkgo.skip=should remove target path",
        ],
    );
    assert_eq!(passed, names(SERVICES));
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn volumes_are_published_again_and_again_and_go_without_a_trace() {
    let node = Node::start();
    let dir = node.dir.path();
    let (socket, context) = (dir.join("front.sock"), dir.join("context.json"));
    let said = node.pod.volume_context(&[("secret", "secret/shop/web#token")]);
    fs::write(&context, json!(said).to_string()).expect("write");
    let mut front = Command::new(server_program("csi-front"));
    front.arg("--listen").arg(&socket).arg("--driver").arg(node.driver());
    front.arg("--context").arg(&context);
    let mut front = Process::spawn("csi-front", &front, dir);
    front.wait_until(LIMIT, "its socket", || socket.exists());
    // csi-sanity looks for the target that it has named.
    let check = dir.join("check");
    let script = "#!/bin/sh\n\
                  if [ -d \"${1%/target}/mount\" ]; then echo directory; else echo not_found; fi\n";
    fs::write(&check, script).expect("write the check");
    fs::set_permissions(&check, PermissionsExt::from_mode(0o755)).expect("make it a program");
    let check = format!("--csi.checkpathcmd={}", check.display());
    let focus = "--ginkgo.focus=Node Service should (work|be idempotent)|should remove target path";
    let passed = node.sanity(&socket, &[&check, focus]);
    assert_eq!(passed, names(WITH_VOLUMES));
    assert_eq!(node.leftovers(), Vec::<String>::new());
    // Each was filled, not only mounted.
    let is_read = |line: &&Value| line.to_string().contains("secret/data/shop/web");
    eventually(LIMIT, "each is in the audit log", || {
        node.agent.audit().iter().filter(is_read).count() >= 3
    });
}
