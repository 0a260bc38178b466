//! The product on the node as a cluster runs it: a DaemonSet of agent and mounter, the CSIDriver,
//! Vault beside them, and the pods that use it.

use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ground::{self, SERVE};
use crate::support::kubernetes::NODE;
use crate::support::node::image::{File, program_with_libraries};
use crate::support::node::{Node, SOON};
use crate::support::shared::{AGENT, NAMESPACE, node};
use crate::support::testbed::Testbed;

/// The driver's name.
pub const DRIVER: &str = "csi.secrets-broker.io";
/// Below the kubelet's root of the node.
const RUN: &str = "/run/secrets-broker";

/// What Vault lets a pod's own service account read.
const POD_POLICY: &str = r#"
path "secret/data/shop/*"  { capabilities = ["read"] }
path "database/creds/shop" { capabilities = ["read"] }
"#;

const CONFIG: &str = r#"
[agent]
log = "debug"

[sources.vault]
kind = "vault"
address = "{vault}"
role = "broker"
pod_role = "{namespace}-{serviceaccount}"
token_file = "/var/run/secrets/vault/token"
mounts = { secret = "kv2", database = "database" }

[audit]
output = "/run/secrets-broker/audit.log"

[csi]
enabled = true
node = "${NODE_NAME}"
kubelet_root = "{kubelet}"
mounter_socket = "/run/secrets-broker/mounter/mounter.sock"
retire_grace = "2s"
"#;

/// The installed product with its Vault.
pub struct Product {
    pub bed: Testbed,
}

/// The product on this test binary's node; the node's end takes it away.
pub fn product() -> &'static Product {
    static PRODUCT: LazyLock<Product> = LazyLock::new(Product::install);
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
        let image = node.image("secrets-broker", &Self::program());
        for object in product.objects(&image) {
            node.apply(&object);
        }
        product.wait_until_registered();
        product
    }

    /// Never held for longer than a call: the node ends when its last user lets go of it.
    fn node(&self) -> Arc<Node> {
        node()
    }

    fn program() -> Vec<File> {
        program_with_libraries(&PathBuf::from(env!("CARGO_BIN_EXE_secrets-broker")))
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
            pod["metadata"]["labels"]["app"] == "secrets-broker"
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let names = pods["items"].as_array().into_iter().flatten().filter(ours);
        names.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect()
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

    fn objects(&self, image: &str) -> Vec<Value> {
        let kubelet = self.node().kubelet_root();
        let kubelet = kubelet.to_str().expect("a readable path");
        let config =
            CONFIG.replace("{vault}", &self.bed.vault.address).replace("{kubelet}", kubelet);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "secrets-broker-keys" },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:service-account-issuer-discovery",
            },
            "subjects": [
                { "kind": "ServiceAccount", "namespace": NAMESPACE, "name": AGENT },
            ],
        });
        let driver = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": { "name": DRIVER },
            "spec": {
                "attachRequired": false,
                "podInfoOnMount": true,
                "volumeLifecycleModes": ["Ephemeral"],
                "fsGroupPolicy": "None",
                "requiresRepublish": true,
                "storageCapacity": false,
                "tokenRequests": [{ "audience": "vault", "expirationSeconds": 3600 }],
            },
        });
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "namespace": NAMESPACE, "name": "secrets-broker" },
            "data": { "config.toml": config },
        });
        vec![binding, driver, map, Self::daemon_set(image, kubelet)]
    }

    fn daemon_set(image: &str, kubelet: &str) -> Value {
        let labels = json!({ "app": "secrets-broker" });
        let plugins = format!("{kubelet}/plugins/{DRIVER}");
        let registry = format!("{kubelet}/plugins_registry");
        let token = json!({ "audience": "vault", "expirationSeconds": 3600, "path": "token" });
        let mut kubelet_mount = at("kubelet", kubelet);
        kubelet_mount["mountPropagation"] = json!("Bidirectional");
        let agent = json!({
            "name": "agent",
            "image": image,
            "imagePullPolicy": "Never",
            "command": ["secrets-broker", "run"],
            "env": [{
                "name": "NODE_NAME",
                "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } },
            }],
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {
                    "drop": ["ALL"],
                    "add": ["CHOWN", "FOWNER", "IPC_LOCK", "LEASE"],
                },
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "volumeMounts": [
                at("config", "/etc/secrets-broker"),
                at("vault-token", "/var/run/secrets/vault"),
                at("plugin", &plugins),
                at("registry", &registry),
                at("run", RUN),
            ],
        });
        let mounter = json!({
            "name": "mounter",
            "image": image,
            "imagePullPolicy": "Never",
            "command": ["secrets-broker", "mounter", "--kubelet-root", kubelet],
            "securityContext": { "privileged": true, "readOnlyRootFilesystem": true },
            "volumeMounts": [kubelet_mount, at("run", RUN)],
        });
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": { "namespace": NAMESPACE, "name": "secrets-broker" },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "serviceAccountName": AGENT,
                        // Vault listens on loopback here.
                        "hostNetwork": true,
                        "terminationGracePeriodSeconds": 10,
                        "containers": [agent, mounter],
                        "volumes": [
                            { "name": "config", "configMap": { "name": "secrets-broker" } },
                            { "name": "vault-token", "projected": { "sources": [
                                { "serviceAccountToken": token },
                            ] } },
                            host("plugin", &plugins),
                            host("registry", &registry),
                            host("run", RUN),
                            { "name": "kubelet", "hostPath": { "path": kubelet } },
                        ],
                    },
                },
            },
        })
    }
}

/// A directory of the node's.
fn host(name: &str, path: &str) -> Value {
    json!({ "name": name, "hostPath": { "path": path, "type": "DirectoryOrCreate" } })
}

/// Where a container has a volume.
fn at(name: &str, path: &str) -> Value {
    json!({ "name": name, "mountPath": path })
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
