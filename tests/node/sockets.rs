//! Secrets over a socket in the pod's own volume, which knows who calls.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::product::{Product, pod, product, product_alone, restrict};
use crate::support::node::SOON;
use crate::support::node::image::program_with_libraries;
use crate::support::process::eventually;
use crate::support::shared::node;

/// Where a pod has its socket.
pub const SOCKET: &str = "/secrets/broker.sock";

/// An image with `curl` in it.
pub fn curl() -> &'static str {
    static CURL: LazyLock<String> =
        LazyLock::new(|| node().image("curl", &program_with_libraries(Path::new("/usr/bin/curl"))));
    &CURL
}

/// A pod with a socket of its own.
pub fn caller(namespace: &str, name: &str) -> Value {
    pod(namespace, name, "web", curl(), json!({ "deliver": "socket" }))
}

/// What a process in the pod gets of a path; status and body.
pub fn get(namespace: &str, name: &str, socket: &str, path: &str) -> (u16, String) {
    let url = format!("http://localhost{path}");
    let format = "\n%{http_code}";
    let command = ["curl", "-s", "-w", format, "--unix-socket", socket, &url];
    reply(&node().exec(namespace, name, "main", &command))
}

/// Splits what `curl -w '\n%{http_code}'` prints.
pub fn reply(output: &Output) -> (u16, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').expect("curl prints a status");
    (code.parse().expect("a status"), body.to_owned())
}

/// Fails if one of these replies holds a token or an accessor of Vault's, or one of `leases`.
pub fn check_for_vaults_own(product: &Product, replies: &[&str], leases: Vec<String>) {
    let mut hidden = product.bed.vault.list("auth/token/accessors");
    assert!(!hidden.is_empty());
    hidden.extend(leases);
    hidden.extend(["hvs.", "hvb."].map(str::to_owned));
    for reply in replies {
        let found = hidden.iter().find(|one| reply.contains(one.as_str()));
        assert_eq!(found, None, "{reply}");
    }
}

/// A pod's volume as the node's root has it.
fn volume_on_the_node(pod: &str) -> PathBuf {
    let volumes = node().kubelet_root().join("pods").join(pod).join("volumes");
    volumes.join("kubernetes.io~csi/secrets/mount")
}

fn prepare(product: &Product, namespace: &str, secret: &str) {
    product.account(namespace, "web");
    product.let_in(namespace, "web");
    product.bed.vault.put_kv2(&format!("shop/{secret}"), json!({ "token": "s3cr3t" }));
}

#[test]
fn a_pods_socket_serves_its_own_pod_and_its_end_ends_what_was_read() {
    let product = product();
    prepare(&product, "talk", "talk");
    let node = node();
    let mut app = caller("talk", "app");
    restrict(&mut app);
    node.apply(&app);
    node.wait_until_ready("talk", "app");
    let listing = node.exec("talk", "app", "main", &["ls", "-ln", SOCKET]);
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(listing.starts_with("srw-rw----") && listing.contains(" 2000 "), "{listing}");

    let reads = product.requests("secret/data/shop/talk", "read");
    for _ in 0..3 {
        let (code, body) = get("talk", "app", SOCKET, "/v1/secret/data/shop/talk");
        assert_eq!(code, 200, "{body}\n{}", product.log());
        assert!(body.contains("s3cr3t"), "{body}");
    }
    assert_eq!(product.requests("secret/data/shop/talk", "read"), reads + 1);
    let (code, body) = get("talk", "app", SOCKET, "/v1/secret/data/else/where");
    assert_eq!(code, 403, "{body}");

    let before = product.bed.database_users();
    let (code, first) = get("talk", "app", SOCKET, "/v1/database/creds/shop");
    assert_eq!(code, 200, "{first}");
    let (_, second) = get("talk", "app", SOCKET, "/v1/database/creds/shop");
    let data = |text: &str| serde_json::from_str::<Value>(text).expect("JSON")["data"].clone();
    assert_eq!(data(&first), data(&second));
    let (user, password) = (data(&first)["username"].clone(), data(&first)["password"].clone());
    let user = user.as_str().expect("a user");
    product.bed.postgres.login(user, password.as_str().expect("a password")).expect("it works");
    assert!(!before.contains(&user.to_owned()));

    // Its own view: nothing of anybody else's, and how it was proved.
    let (code, status) = get("talk", "app", SOCKET, "/agent/v1/status");
    assert_eq!(code, 200, "{status}\n{}", product.log());
    assert!(status.contains("database/creds/shop"), "{status}");
    let proof = product.status()["hardening"].to_string();
    assert!(proof.contains("callers in pods proved by pidfd"), "{proof}");
    let leases = product.bed.leases("shop");
    assert!(!leases.is_empty());
    check_for_vaults_own(&product, &[&first, &second, &body, &status], leases);

    node.delete_pod("talk", "app");
    eventually(SOON, "the credential ends with its pod", || {
        !product.bed.database_users().contains(&user.to_owned())
    });
}

#[test]
fn nobody_else_gets_anything_from_a_pods_socket() {
    let product = product();
    prepare(&product, "closed", "closed");
    let node = node();
    node.apply(&caller("closed", "victim"));
    let victim = node.wait_until_ready("closed", "victim");
    let uid = victim["metadata"]["uid"].as_str().expect("a uid");
    // A root container of the same namespace and account that sees the node's directories.
    let mut attacker = pod("closed", "attacker", "web", curl(), json!({ "deliver": "socket" }));
    let add = |list: &mut Value, one| list.as_array_mut().expect("a list").push(one);
    let spec = &mut attacker["spec"];
    let kubelet = json!({ "name": "kubelet", "hostPath": { "path": node.kubelet_root() } });
    add(&mut spec["volumes"], kubelet);
    add(
        &mut spec["containers"][0]["volumeMounts"],
        json!({
            "name": "kubelet",
            "mountPath": "/kubelet",
            "mountPropagation": "HostToContainer",
        }),
    );
    node.apply(&attacker);
    node.wait_until_ready("closed", "attacker");

    let path = "/v1/secret/data/shop/closed";
    assert_eq!(get("closed", "attacker", SOCKET, path).0, 200);
    let theirs = format!("/kubelet/pods/{uid}/volumes/kubernetes.io~csi/secrets/mount/broker.sock");
    let (code, body) = get("closed", "attacker", &theirs, path);
    assert_eq!((code, body.contains("another pod")), (403, true), "{body}");

    // The node's own root is in no pod.
    let mut curl = Command::new("curl");
    curl.current_dir(volume_on_the_node(uid));
    curl.args(["-s", "-w", "\n%{http_code}", "--unix-socket", "broker.sock"]);
    let output = curl.arg(format!("http://localhost{path}")).output().expect("run curl");
    let (code, body) = reply(&output);
    assert_eq!((code, body.contains("outside every pod")), (403, true), "{body}");
    let log = product.log();
    assert!(!log.contains("s3cr3t"));
    node.delete_pod("closed", "attacker");
    node.delete_pod("closed", "victim");
}

#[test]
fn a_pods_socket_comes_back_with_the_agents_successor_and_after_both_halves_were_killed() {
    let product = product_alone();
    prepare(&product, "successor", "successor");
    let node = node();
    node.apply(&caller("successor", "app"));
    node.wait_until_ready("successor", "app");
    let path = "/v1/secret/data/shop/successor";
    let (code, body) = get("successor", "app", SOCKET, path);
    assert_eq!(code, 200, "{body}\n{}", product.log());
    // The kubelet brings the pod's token again within two minutes; then the agent can log in.
    let answers_again = || {
        eventually(Duration::from_secs(180), "the socket answers again", || {
            get("successor", "app", SOCKET, path).0 == 200
        });
    };
    product.replace_pod(|| ());
    answers_again();
    product.kill(&["agent", "mounter"], || ());
    answers_again();
    node.delete_pod("successor", "app");
}
