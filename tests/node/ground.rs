//! The ground the other tests stand on: pods, their tokens, their mounts, and Vault beside them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::api_server;
use crate::support::kubernetes::NODE;
use crate::support::node::image::{File, program_with_libraries};
use crate::support::node::{ADDRESS, BUSYBOX, SERVICE_ADDRESS, SOON};
use crate::support::process::eventually;
use crate::support::shared::{AGENT, NAMESPACE, node};
use crate::support::testbed::Testbed;

/// A pod of one container `main` that runs a shell script on this image.
pub fn pod(namespace: &str, name: &str, image: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["sh", "-ec", script],
            }],
        },
    })
}

/// Waits for a signal, as a server does.
pub const SERVE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

#[test]
fn the_node_is_ready_with_its_own_address_and_versions() {
    let (_runs, node) = (api_server(), node());
    let path = format!("api/v1/nodes/{NODE}");
    let status = node.get(&path).expect("the node is registered")["status"].clone();
    let address = json!({ "type": "InternalIP", "address": ADDRESS });
    assert!(status["addresses"].as_array().expect("addresses").contains(&address), "{status}");
    assert_eq!(status["nodeInfo"]["kubeletVersion"], "v1.36.3");
    let runtime = status["nodeInfo"]["containerRuntimeVersion"].as_str().expect("a version");
    assert!(runtime.starts_with("containerd://"), "{runtime}");
    assert!(node.kubectl(&["get", "nodes"]).contains("Ready"));
}

#[test]
fn a_restricted_pod_has_the_projected_token_and_its_output_is_read() {
    let (_runs, node) = (api_server(), node());
    node.create_namespace("restricted");
    let script = "id; cut -d. -f2 /tokens/vault | tr '_-' '/+' | base64 -d 2>/dev/null || echo; \
                  ls -ln /tokens/..data/; grep -E 'Seccomp:|CapEff|NoNewPrivs' /proc/self/status; \
                  cat /proc/self/cgroup";
    let mut restricted = pod("restricted", "app", BUSYBOX, script);
    restricted["spec"]["securityContext"] = json!({
        "runAsNonRoot": true,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 2000,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let container = &mut restricted["spec"]["containers"][0];
    container["securityContext"] =
        json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    container["volumeMounts"] = json!([{ "name": "tokens", "mountPath": "/tokens" }]);
    let token = json!({ "audience": "vault", "expirationSeconds": 600, "path": "vault" });
    restricted["spec"]["volumes"] = json!([
        { "name": "tokens", "projected": { "sources": [{ "serviceAccountToken": token }] } },
    ]);
    let uid = node.apply(&restricted)["metadata"]["uid"].as_str().expect("a uid").to_owned();
    node.wait_until_succeeded("restricted", "app");
    let container = node.container_id("restricted", "app", "main");

    let log = node.pod_log("restricted", "app", "main");
    assert!(log.contains("uid=1000 gid=1000 groups=1000,2000"), "{log}");
    assert!(log.contains(r#""aud":["vault"]"#), "{log}");
    assert!(log.contains("system:serviceaccount:restricted:default"), "{log}");
    assert!(log.contains("-rw-r-----    1 1000     2000"), "{log}");
    assert!(log.contains("Seccomp:\t2") && log.contains("NoNewPrivs:\t1"), "{log}");
    assert!(log.contains("CapEff:\t0000000000000000"), "{log}");
    let place = format!("/kubepods/besteffort/pod{uid}/{container}");
    assert!(log.contains(&format!("0::{place}\n")), "no line ends with {place}: {log}");
    node.delete_pod("restricted", "app");
}

#[test]
fn what_a_privileged_daemon_mounts_under_the_kubelets_root_the_host_sees() {
    let (_runs, node) = (api_server(), node());
    node.create_namespace("mounts");
    let root = node.kubelet_root();
    let target = root.join("plugins/mounts/volume");
    let mount = format!(
        "mkdir -p {target}; mount -t tmpfs -o noswap,size=1m,mode=750 secrets {target}; \
         echo from the daemon >{target}/file; {SERVE}",
        target = target.display()
    );
    let mut template = pod("mounts", "unused", BUSYBOX, &mount)["spec"].clone();
    template["restartPolicy"] = json!("Always");
    template["volumes"] = json!([{ "name": "kubelet", "hostPath": { "path": root } }]);
    let container = &mut template["containers"][0];
    container["securityContext"] = json!({ "privileged": true });
    container["volumeMounts"] = json!([
        { "name": "kubelet", "mountPath": root, "mountPropagation": "Bidirectional" },
    ]);
    let labels = json!({ "app": "mounter" });
    let set = node.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "namespace": "mounts", "name": "mounter" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": template },
        },
    }));
    assert_eq!(set["status"]["numberReady"], 0);
    let path = "apis/apps/v1/namespaces/mounts/daemonsets/mounter";
    node.wait(path, SOON, "its pod runs", |set| set["status"]["numberReady"] == 1);

    let file = target.join("file");
    let content = || fs::read_to_string(&file).unwrap_or_default();
    eventually(SOON, "the daemon's file on the host", || content() == "from the daemon\n");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
    let line = table.lines().find(|line| line.contains(target.to_str().expect("a path")));
    let line = line.expect("the daemon's mount on the host");
    assert!(line.contains(" - tmpfs secrets ") && line.contains("noswap"), "{line}");
    // And in the other direction.
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).expect("unmount it");
    let pods = "api/v1/namespaces/mounts/pods";
    let daemon = node.get(pods).expect("a list")["items"][0]["metadata"]["name"].clone();
    let daemon = daemon.as_str().expect("a name");
    let listing = ["ls", target.to_str().expect("a path")];
    let seen = node.exec("mounts", daemon, "main", &listing);
    assert!(seen.status.success() && seen.stdout.is_empty(), "{seen:?}");
    node.delete(path);
    node.wait(pods, SOON, "no pod of the set", |list| list["items"] == json!([]));
}

#[test]
fn a_pod_logs_in_to_vault_with_its_own_token_and_reads() {
    let (_runs, node) = (api_server(), node());
    let bed = Testbed::start_beside(&node);
    node.create_namespace(NAMESPACE);
    bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    let vault = &bed.vault.address;
    let script = format!(
        "printf '{{\"role\": \"broker\", \"jwt\": \"%s\"}}' \"$(cat /tokens/vault)\" >/tmp/login; \
         token=$(wget -qO- --post-file /tmp/login {vault}/v1/auth/kubernetes/login | \
         sed 's/.*\"client_token\":\"\\([^\"]*\\)\".*/\\1/'); \
         wget -qO- --header \"X-Vault-Token: $token\" {vault}/v1/secret/data/shop/web"
    );
    let mut reader = pod(NAMESPACE, "reader", BUSYBOX, &script);
    reader["spec"]["serviceAccountName"] = json!(AGENT);
    reader["spec"]["hostNetwork"] = json!(true);
    let token = json!({ "audience": "vault", "path": "vault" });
    reader["spec"]["volumes"] = json!([
        { "name": "tokens", "projected": { "sources": [{ "serviceAccountToken": token }] } },
    ]);
    reader["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "tokens", "mountPath": "/tokens" }]);
    node.apply(&reader);
    node.wait_until_succeeded(NAMESPACE, "reader");
    let log = node.pod_log(NAMESPACE, "reader", "main");
    assert!(log.contains(r#""colour":"green""#), "{log}");
    assert_eq!(bed.vault.audit_requests("auth/kubernetes/login", "update"), 1);
    node.delete_pod(NAMESPACE, "reader");
}

#[test]
fn a_pod_runs_the_products_own_binary_and_reaches_the_api_server() {
    let (_runs, node) = (api_server(), node());
    node.create_namespace("product");
    let program = Path::new(env!("CARGO_BIN_EXE_secrets-broker"));
    let mut files = program_with_libraries(program);
    files.push(File {
        path: "/etc/broker.toml".into(),
        from: Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml"),
        mode: 0o644,
    });
    let image = node.image("product", &files);
    let script = format!(
        "secrets-broker --version; ls -l /etc/broker.toml; echo $KUBERNETES_SERVICE_HOST; \
         nc -w 5 {SERVICE_ADDRESS} 443 </dev/null && echo connected; {SERVE}"
    );
    node.apply(&pod("product", "agent", &image, &script));
    node.wait_until_ready("product", "agent");
    eventually(SOON, "its output", || {
        node.pod_log("product", "agent", "main").contains("connected\n")
    });
    let log = node.pod_log("product", "agent", "main");
    assert!(log.starts_with("secrets-broker 0."), "{log}");
    assert!(log.contains("-rw-r--r--") && log.contains(SERVICE_ADDRESS), "{log}");
    let help = node.exec("product", "agent", "main", &["secrets-broker", "help"]);
    assert!(help.status.success(), "{help:?}");
    let missing = node.exec("product", "agent", "main", &["sh", "-c", "echo no >&2; exit 3"]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "no\n");
    node.delete_pod("product", "agent");
}

#[test]
fn manifests_in_yaml_are_applied_and_a_deployments_pods_see_each_other() {
    let (_runs, node) = (api_server(), node());
    node.create_namespace("yaml");
    node.apply_yaml(&format!(
        "apiVersion: v1\n\
         kind: ConfigMap\n\
         metadata: {{ name: page, namespace: yaml }}\n\
         data: {{ index.html: hello }}\n\
         ---\n\
         apiVersion: apps/v1\n\
         kind: Deployment\n\
         metadata: {{ name: web, namespace: yaml }}\n\
         spec:\n\
         \x20 selector: {{ matchLabels: {{ app: web }} }}\n\
         \x20 template:\n\
         \x20   metadata: {{ labels: {{ app: web }} }}\n\
         \x20   spec:\n\
         \x20     terminationGracePeriodSeconds: 1\n\
         \x20     volumes: [{{ name: page, configMap: {{ name: page }} }}]\n\
         \x20     containers:\n\
         \x20       - name: web\n\
         \x20         image: {BUSYBOX}\n\
         \x20         imagePullPolicy: Never\n\
         \x20         command: [httpd, -f, -h, /page]\n\
         \x20         volumeMounts: [{{ name: page, mountPath: /page }}]\n"
    ));
    let path = "apis/apps/v1/namespaces/yaml/deployments/web";
    node.wait(path, SOON, "available", |web| web["status"]["availableReplicas"] == 1);
    let pods = node.get("api/v1/namespaces/yaml/pods").expect("a list");
    let address = pods["items"][0]["status"]["podIP"].as_str().expect("an address").to_owned();
    node.apply(&pod("yaml", "client", BUSYBOX, &format!("wget -qO- http://{address}/index.html")));
    node.wait_until_succeeded("yaml", "client");
    assert_eq!(node.pod_log("yaml", "client", "main"), "hello");
    // The Deployment stays: the node's end deletes its pod.
}
