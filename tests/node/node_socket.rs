//! The node's one socket for all of its pods: placed by the kernel, named by the API server, proved
//! by a token.

use serde_json::{Value, json};

use crate::ground::{self, SERVE};
use crate::product::product;
use crate::sockets::{check_for_vaults_own, curl, reply};
use crate::support::node::SOON;
use crate::support::process::eventually;
use crate::support::shared::node;

/// Where pods have the node's socket and their proof.
pub const SOCKET: &str = "/run/node-socket/node.sock";
pub const PROOF: &str = "/run/proof/token";
const SECRET: &str = "/v1/secret/data/shop/hall";
/// The pod's own token, and one that is the same but for its signature.
const TOKEN: &str = "$(cat /run/proof/token)";
const FORGED: &str = "$(sed 's/..........$/AAAAAAAAAA/' /run/proof/token)";

/// A pod as docs/delivery/sockets.md has it.
pub fn caller(namespace: &str, name: &str, image: &str) -> Value {
    let mut pod = ground::pod(namespace, name, image, SERVE);
    pod["spec"]["serviceAccountName"] = json!("web");
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "node-socket", "mountPath": "/run/node-socket", "readOnly": true },
        { "name": "proof", "mountPath": "/run/proof", "readOnly": true },
    ]);
    let token = |audience: &str, path: &str| {
        let projection = json!({ "audience": audience, "path": path });
        json!({ "serviceAccountToken": projection })
    };
    pod["spec"]["volumes"] = json!([
        {
            "name": "node-socket",
            "hostPath": { "path": "/run/secrets-broker/node", "type": "Directory" },
        },
        {
            "name": "proof",
            "projected": {
                "sources": [token("secrets-broker", "token"), token("vault", "for-vault")],
            },
        },
    ]);
    pod
}

/// What a process in the pod is answered; `token` is a word of its shell.
fn ask(namespace: &str, name: &str, token: &str, path: &str) -> (u16, String) {
    let header = if token.is_empty() { String::new() } else { format!("Authorization: {token}") };
    let url = format!("http://localhost{path}");
    let script =
        format!("curl -s -w '\n%{{http_code}}' --unix-socket {SOCKET} -H \"{header}\" {url}");
    reply(&node().exec(namespace, name, "main", &["sh", "-c", &script]))
}

fn start(namespace: &str, name: &str) {
    node().apply(&caller(namespace, name, curl()));
    node().wait_until_ready(namespace, name);
}

#[test]
fn the_nodes_socket_answers_pods_that_the_kernel_the_api_server_and_a_token_agree_about() {
    let product = product();
    product.account("hall", "web");
    product.account("lobby", "web");
    product.bed.vault.put_kv2("shop/hall", json!({ "token": "s3cr3t" }));
    for (namespace, name) in [("hall", "app"), ("hall", "other"), ("lobby", "app")] {
        start(namespace, name);
    }
    let bearer = format!("Bearer {TOKEN}");

    // As soon as it runs, with its own token: read with the agent's login.
    let (code, body) = ask("hall", "app", &bearer, SECRET);
    assert_eq!((code, body.contains("s3cr3t")), (200, true), "{body}\n{}", product.log());
    let decisions = product.command(&["status", "-o", "json"]);
    assert!(decisions.status.code().is_some_and(|code| code < 2));

    let (_, status) = ask("hall", "app", &bearer, "/agent/v1/status");
    check_for_vaults_own(&product, &[&body, &status], Vec::new());

    // Without one, with one for somebody else, with none at all, with another pod's.
    let stolen = node().exec("hall", "other", "main", &["cat", "/run/proof/token"]).stdout;
    let stolen = String::from_utf8_lossy(&stolen).into_owned();
    for (token, reason) in [
        (String::new(), "Authorization: Bearer"),
        ("Bearer $(cat /run/proof/for-vault)".to_owned(), "aud lacks"),
        ("Basic eDp5".to_owned(), "Bearer"),
        (format!("Bearer {stolen}"), "pod name"),
    ] {
        let (code, body) = ask("hall", "app", &token, SECRET);
        assert!(matches!(code, 400 | 403) && body.contains(reason), "{reason}: {code} {body}");
        assert!(!body.contains("s3cr3t") && !body.contains(stolen.trim()), "{body}");
    }

    // The same account's name in another namespace: no rule permits it.
    let (code, body) = ask("lobby", "app", &bearer, SECRET);
    assert_eq!((code, body.contains("permission denied")), (403, true), "{body}");
    // What this pod may read as itself is not read here: the agent has no token of its for Vault.
    let (code, body) = ask("hall", "app", &bearer, "/v1/secret/data/shop/else");
    assert_eq!(code, 403, "{body}");
    // A view of its own, and no operator's.
    let (code, body) = ask("hall", "app", &bearer, "/agent/v1/status");
    assert_eq!(code, 200, "{body}");
    assert!(!body.contains("lobby") && !body.contains("callers in pods"), "{body}");

    // The node's root is in no pod.
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "-w", "\n%{http_code}", "--unix-socket"]);
    curl.args(["/run/secrets-broker/node/node.sock", &format!("http://localhost{SECRET}")]);
    let (code, body) = reply(&curl.output().expect("run curl"));
    assert_eq!((code, body.contains("outside every pod")), (403, true), "{body}");
    for (namespace, name) in [("hall", "app"), ("hall", "other"), ("lobby", "app")] {
        node().delete_pod(namespace, name);
    }
}

#[test]
fn forged_tokens_lock_one_pod_out_until_an_operator_lets_it_in() {
    let product = product();
    product.account("hall", "web");
    product.bed.vault.put_kv2("shop/hall", json!({ "token": "s3cr3t" }));
    for name in ["forger", "neighbour"] {
        start("hall", name);
    }
    let good = format!("Bearer {TOKEN}");
    let ask = |name: &str, token: &str| ask("hall", name, token, SECRET);

    // What happens to honest pods does not count.
    for _ in 0..6 {
        let (code, body) = ask("forger", "Bearer $(cat /run/proof/for-vault)");
        assert_eq!((code, body.contains("aud lacks")), (403, true), "{body}");
    }
    assert_eq!(ask("forger", &good).0, 200, "{}", product.log());
    let locked = product.metric("secrets_broker_lock_outs_total");
    for _ in 0..5 {
        let (code, body) = ask("forger", &format!("Bearer {FORGED}"));
        assert_eq!((code, body.contains("signature")), (403, true), "{body}");
    }
    let (code, body) = ask("forger", &good);
    assert_eq!((code, body.contains("locked out")), (403, true), "{body}");
    assert_eq!(ask("neighbour", &good).0, 200);
    let status = product.status();
    assert_eq!(status["locked_out"][0]["pod"], "hall/forger", "{status}");
    // A scrape is answered anew once a second.
    eventually(SOON, "the lock-out is counted", || {
        product.metric("secrets_broker_lock_outs_total") == locked + 1.0
    });

    let unlocked = |pod: &str| product.command(&["unlock", pod]).status.code();
    assert_eq!(unlocked("hall/neighbour"), Some(1));
    assert_eq!(unlocked("hall/forger"), Some(0));
    assert_eq!(ask("forger", &good).0, 200);
    assert_eq!(product.status()["locked_out"], json!([]));
    for name in ["forger", "neighbour"] {
        node().delete_pod("hall", name);
    }
}
