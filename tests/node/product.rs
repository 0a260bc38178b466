//! The product on the node as a cluster runs it: installed by Helm from the chart, Vault beside it,
//! and the pods that use it.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::ground::{self, SERVE};
use crate::support::kubernetes::{NODE, User};
use crate::support::node::image::{File, program_with_libraries};
use crate::support::node::{ADDRESS, Node, SOON};
use crate::support::process::eventually;
use crate::support::server_program;
use crate::support::shared::{NAMESPACE, node};
use crate::support::testbed::Testbed;

/// The driver's name.
pub const DRIVER: &str = "csi.secrets-broker.io";
/// The chart's port for metrics.
const METRICS_PORT: u16 = 9102;
/// The chart's release.
const RELEASE: &str = "secrets-broker";

/// What Vault lets a pod's own service account read.
const POD_POLICY: &str = r#"
path "secret/data/shop/*" { capabilities = ["read"] }
path "database/creds/*"   { capabilities = ["read"] }
"#;

/// What an operator writes: the chart adds the rest.
const CONFIG: &str = r#"
[sources.vault]
kind = "vault"
address = "{vault}"
role = "broker"
pod_role = "{namespace}-{serviceaccount}"
token_file = "/var/run/secrets/vault/token"
mounts = { secret = "kv2", database = "database" }

[audit]
output = "/run/secrets-broker/audit.log"

[policy]
forbid_grace = "1s"

[[grants]]
name = "hall"
who = { namespace = "hall", service_account = "web" }
paths = ["secret/data/shop/hall"]
login = "agent"
[[grants]]
name = "together"
who = { namespace = "together", service_account = "web" }
paths = ["database/creds/together"]
share = "service-account"

# Of one namespace only, for `labels`.
[[grants]]
name = "labels-front"
who = { namespace = "labels", labels = { tier = "front" } }
paths = ["secret/data/agent/**"]
login = "agent"

[[grants]]
name = "labels-others"
effect = "forbid"
who = { namespace = "labels" }
paths = ["secret/data/**"]
when = '!(principal.hasTag("tier") && principal.getTag("tier") == "front")'
"#;

/// The installed product with its Vault.
pub struct Product {
    pub bed: Testbed,
}

/// The product on this test binary's node, which others use at the same time. The node's end takes
/// it away.
pub fn product() -> RwLockReadGuard<'static, Product> {
    installed().read().unwrap_or_else(PoisonError::into_inner)
}

/// The same for a test that ends its processes: nobody else uses it meanwhile.
pub fn product_alone() -> RwLockWriteGuard<'static, Product> {
    installed().write().unwrap_or_else(PoisonError::into_inner)
}

fn installed() -> &'static RwLock<Product> {
    static PRODUCT: LazyLock<RwLock<Product>> = LazyLock::new(|| RwLock::new(Product::install()));
    &PRODUCT
}

impl Product {
    /// Installs it and waits until the kubelet knows the driver.
    fn install() -> Product {
        let node = node();
        let bed = Testbed::start_beside(&node);
        bed.vault.write("sys/policies/acl/pods", json!({ "policy": POD_POLICY }));
        let product = Product { bed };
        product.let_in("shop", "web");
        let program = Path::new(env!("CARGO_BIN_EXE_secrets-broker"));
        let files: Vec<File> = program_with_libraries(program);
        node.image("secrets-broker", &files);
        product.configure("");
        product.wait_until_registered();
        product
    }

    /// Installs the chart or brings the release to a configuration that ends with these lines.
    pub fn configure(&self, more: &str) {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart");
        let values = self.bed.dir.path().join("values.json");
        fs::write(&values, self.values(more).to_string()).expect("write the chart's values");
        let mut helm = Command::new(server_program("helm"));
        // With directories of its own: nothing of whoever runs the tests counts.
        helm.env("HOME", self.bed.dir.path());
        helm.args(["upgrade", RELEASE, chart, "--install", "--namespace", NAMESPACE]);
        // The testbed made the service account, for Vault's sake.
        helm.arg("--take-ownership");
        helm.arg("--kubeconfig").arg(self.bed.kubernetes.kubeconfig(User::Admin));
        helm.arg("--values").arg(values);
        let output = helm.output().expect("run helm");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&said));
    }

    fn values(&self, more: &str) -> Value {
        let config = CONFIG.replace("{vault}", &self.bed.vault.address);
        json!({
            "image": {
                "repository": "localhost/secrets-broker",
                "tag": "test",
                "pullPolicy": "Never",
            },
            "config": format!("{config}{more}"),
            "vaultCA": { "configMap": "" },
            "log": { "level": "debug", "format": "text" },
            "csi": {
                "settings": "retire_grace = \"2s\"",
            },
            // Vault listens on loopback here.
            "hostNetwork": true,
            "placement": { "enabled": true },
            "podDirectory": "apiserver",
            "nodeSocket": { "enabled": true },
        })
    }

    /// Never held for longer than a call: the node ends when its last user lets go of it.
    fn node(&self) -> Arc<Node> {
        node()
    }

    /// Lets the pods of one service account log in to Vault as themselves.
    pub fn let_in(&self, namespace: &str, account: &str) {
        self.bed.vault.write(
            &format!("auth/kubernetes/role/{namespace}-{account}"),
            json!({
                "bound_service_account_names": [account],
                "bound_service_account_namespaces": [namespace],
                "audience": "vault",
                "token_policies": ["pods"],
                "token_ttl": "1h",
            }),
        );
    }

    /// Makes a namespace with a service account in it.
    pub fn account(&self, namespace: &str, account: &str) {
        self.node().create_namespace(namespace);
        self.node().apply(&json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "namespace": namespace, "name": account },
        }));
    }

    /// The kubelet lists the driver on the node's CSINode.
    pub fn wait_until_registered(&self) {
        let registered = || {
            let csinode = self.node().get(&format!("apis/storage.k8s.io/v1/csinodes/{NODE}"));
            let csinode = csinode.unwrap_or_default();
            let drivers = csinode["spec"]["drivers"].as_array();
            drivers.into_iter().flatten().any(|driver| driver["name"] == DRIVER)
        };
        let deadline = Instant::now() + SOON;
        while !registered() {
            assert!(
                Instant::now() < deadline,
                "the kubelet does not know the driver\n{}\n{}",
                self.log(),
                self.kubelet_says("plugin")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The name of the product's pod.
    pub fn pod_name(&self) -> String {
        self.pods().into_iter().next().expect("the DaemonSet has a pod")
    }

    /// The product's pods that are not being deleted.
    pub fn pods(&self) -> Vec<String> {
        let pods = self.node().get(&format!("api/v1/namespaces/{NAMESPACE}/pods")).expect("pods");
        let ours = |pod: &&Value| {
            pod["metadata"]["labels"]["app.kubernetes.io/name"] == "secrets-broker"
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let names = pods["items"].as_array().into_iter().flatten().filter(ours);
        names.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect()
    }

    /// Ends the product's pod at once and waits until it has ended and its successor is ready;
    /// `meanwhile` is looked at until then.
    pub fn replace_pod(&self, meanwhile: impl Fn()) {
        let node = self.node();
        let before = self.pod_name();
        let process = |container| node.container_process(NAMESPACE, &before, container);
        let predecessors = ["agent", "mounter"].map(|name| process(name).expect("it runs"));
        let at_once = ["--namespace", NAMESPACE, "--grace-period=0", "--force"];
        node.kubectl(&[&["delete", "pod", &before], &at_once[..]].concat());
        eventually(SOON, "a successor runs", || {
            meanwhile();
            self.pods().iter().any(|pod| *pod != before)
        });
        // The API server forgot it at once. Until it ends it has the node's port, and answers there
        // when the successor is asked whether it is ready.
        eventually(SOON, "the predecessor has ended", || {
            meanwhile();
            predecessors.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists())
        });
        node.wait_until_ready(NAMESPACE, &self.pod_name());
    }

    /// Kills containers of the product's pod, and waits until they run again and are ready;
    /// `meanwhile` is looked at until then.
    pub fn kill(&self, containers: &[&str], meanwhile: impl Fn()) {
        let node = self.node();
        let pod = self.pod_name();
        let process = |container: &str| node.container_process(NAMESPACE, &pod, container);
        let running = containers.iter().map(|name| (*name, process(name).expect("it runs")));
        let running: Vec<_> = running.collect();
        for (_, id) in &running {
            let id = i32::try_from(*id).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(id, Signal::KILL).expect("kill it");
        }
        for (name, before) in running {
            eventually(SOON, "the container runs again", || {
                meanwhile();
                process(name).is_some_and(|now| now != before)
            });
        }
        // Its volumes are taken up before it says that it is ready.
        node.wait_until_ready(NAMESPACE, &pod);
    }

    /// Runs a command of the product's in the agent's container, whatever comes of it.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let command = [&["secrets-broker"], arguments].concat();
        self.node().exec(NAMESPACE, &self.pod_name(), "agent", &command)
    }

    /// `secrets-broker status -o json` as `kubectl exec` would run it.
    pub fn status(&self) -> Value {
        let output = self.command(&["status", "-o", "json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// A metric's value, summed over its labels, as Prometheus would read it.
    pub fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{ADDRESS}:{METRICS_PORT}/agent/v1/metrics");
        let output = Command::new("curl").args(["-sS", &url]).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
        samples.filter_map(value).sum()
    }

    /// The last of the kubelet's log lines with this word.
    fn kubelet_says(&self, word: &str) -> String {
        let log = self.node().kubelet_log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(word)).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// What both containers have logged.
    pub fn log(&self) -> String {
        let Some(pod) = self.pods().into_iter().next() else { return String::new() };
        ["agent", "mounter"].map(|name| self.node().pod_log(NAMESPACE, &pod, name)).concat()
    }

    /// Logins and reads that reached Vault, from its audit log.
    pub fn requests(&self, path: &str, operation: &str) -> usize {
        self.bed.vault.audit_requests(path, operation)
    }

    /// Waits until a message of the pod's events holds this reason; they never hold the secret
    /// `canary`.
    pub fn wait_for_event(&self, namespace: &str, pod: &str, reason: &str, canary: &str) {
        let path =
            format!("api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name={pod}");
        let events = || self.node().get(&path).unwrap_or_default();
        let deadline = Instant::now() + 2 * SOON;
        let says_so = || {
            let events = events();
            let mut items = events["items"].as_array().into_iter().flatten();
            items.any(|event| event["message"].as_str().is_some_and(|text| text.contains(reason)))
        };
        while !says_so() {
            assert!(Instant::now() < deadline, "{pod}: {}\n{}", events(), self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        let events = events().to_string();
        assert!(!events.contains(canary), "{events}");
    }

    /// Logins to Vault of this namespace's service accounts, from its audit log.
    pub fn logins_of(&self, namespace: &str) -> usize {
        let entries = self.bed.vault.audit_log();
        let counts = |entry: &&Value| {
            entry["type"] == "response"
                && entry["request"]["path"] == "auth/kubernetes/login"
                && entry["auth"]["metadata"]["service_account_namespace"] == namespace
        };
        entries.iter().filter(counts).count()
    }

    /// Users in PostgreSQL that Vault made for this database role.
    pub fn users_of(&self, role: &str) -> Vec<String> {
        let users = self.bed.database_users();
        users.into_iter().filter(|user| user.contains(&format!("-{role}-"))).collect()
    }
}

/// The files as a process in a container sees them.
pub fn root_of(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/root"))
}

/// A pod of one container `main` with a volume at `/secrets`.
pub fn pod(namespace: &str, name: &str, account: &str, image: &str, attributes: Value) -> Value {
    let mut pod = ground::pod(namespace, name, image, SERVE);
    pod["spec"]["serviceAccountName"] = json!(account);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "secrets", "mountPath": "/secrets" }]);
    pod["spec"]["volumes"] = json!([{
        "name": "secrets",
        "csi": { "driver": DRIVER, "readOnly": true, "volumeAttributes": attributes },
    }]);
    pod
}

/// What a restricted namespace demands.
pub fn restrict(pod: &mut Value) {
    pod["spec"]["securityContext"] = json!({
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 2000,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    pod["spec"]["containers"][0]["securityContext"] =
        json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
}

/// What is mounted, or left of directories, of a pod's volumes.
pub fn leftovers(uid: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
    let mounts = table.lines().filter(|line| line.contains(uid)).map(str::to_owned);
    let private = node().kubelet_root().join(format!("plugins/{DRIVER}/volumes"));
    let names = fs::read_dir(private).expect("the driver's directory").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    mounts.chain(names.filter(|name| name.contains(uid))).collect()
}

/// Reads a file's bytes also after it was unlinked, without keeping it open until then.
pub fn unlinked(file: &Path) -> impl Fn() -> Vec<u8> + use<> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let handle = open(file, flags, Mode::empty()).expect("find the file");
    move || fs::read(format!("/proc/self/fd/{}", handle.as_raw_fd())).expect("read the file")
}
