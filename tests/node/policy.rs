//! The operator changes the policy of a node that runs.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::product::{pod, product, root_of};
use crate::sockets::{SOCKET, caller, get};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::{NAMESPACE, node};

/// What is promised, and what `forbid_grace` leaves to files.
const PROMISED: Duration = Duration::from_secs(5 + 1);

const FORBIDDEN: &str = r#"
[[grants]]
name = "walled-off"
effect = "forbid"
who = { namespace = "barred" }
paths = ["secret/data/**"]
"#;

#[test]
fn a_forbidding_grant_takes_files_away_and_refuses_new_pods_within_five_seconds() {
    let product = product();
    let node = node();
    product.account("barred", "web");
    product.let_in("barred", "web");
    product.bed.vault.put_kv2("shop/barred", json!({ "token": "s3cr3t" }));
    let attributes = json!({ "secret": "secret/shop/barred#token" });
    let start = |name: &str| {
        node.apply(&pod("barred", name, "web", BUSYBOX, attributes.clone()));
    };
    start("app");
    node.wait_until_ready("barred", "app");
    node.apply(&caller("barred", "caller"));
    node.wait_until_ready("barred", "caller");
    let asks = || get("barred", "caller", SOCKET, "/v1/secret/data/shop/barred").0;
    assert_eq!(asks(), 200);
    let app = node.container_process("barred", "app", "main").expect("its process");
    let token = root_of(app).join("secrets/token");
    assert_eq!(fs::read_to_string(&token).expect("the file is there"), "s3cr3t");

    let ours = product.pod_name();
    let agent = node.container_process(NAMESPACE, &ours, "agent").expect("the agent's process");
    let config = root_of(agent).join("etc/secrets-broker/config.toml");
    let configured =
        || fs::read_to_string(&config).expect("the configuration").contains("walled-off");
    product.configure(FORBIDDEN);
    let deadline = Instant::now() + SOON;
    // The kubelet takes its time to bring the file.
    while !configured() {
        assert!(Instant::now() < deadline, "the new configuration does not arrive");
        std::thread::sleep(Duration::from_millis(10));
    }
    let changed = Instant::now();
    eventually(PROMISED, "the socket refuses", || asks() == 403);
    println!("what is forbidden was refused on the pod's socket after {:?}", changed.elapsed());
    let left = PROMISED.saturating_sub(changed.elapsed());
    eventually(left, "the file is gone", || !fs::exists(&token).expect("look at the file"));
    println!("forbidden files were gone after {:?}", changed.elapsed());
    // Not before: a policy that takes from two volumes of a few is held.
    start("late");
    product.wait_for_event("barred", "late", "rule 'walled-off' forbids", "s3cr3t");
    assert_eq!(node.pod("barred", "late")["status"]["phase"], "Pending");
    // Grants are reloaded by the agent that runs.
    assert_eq!(product.pods(), std::slice::from_ref(&ours));
    assert_eq!(node.container_process(NAMESPACE, &ours, "agent"), Some(agent));

    product.configure("");
    eventually(SOON, "what is not forbidden any more comes back", || {
        fs::read_to_string(&token).is_ok_and(|text| text == "s3cr3t")
    });
    assert_eq!(asks(), 200);
    node.wait_until_ready("barred", "late");
    for name in ["app", "caller", "late"] {
        node.delete_pod("barred", name);
    }
}
