//! Many pods of one service account at once: what it costs Vault.

use std::time::Duration;

use serde_json::{Value, json};

use crate::product::{pod, product_alone};
use crate::support::node::BUSYBOX;
use crate::support::process::eventually;
use crate::support::shared::node;

const PODS: usize = 30;
/// Two cores start and end a pod in a second or two.
const LONG: Duration = Duration::from_secs(400);

#[test]
fn thirty_pods_at_once_cost_one_login_and_one_read_and_a_session_each_for_a_credential() {
    let product = product_alone();
    let node = node();
    product.account("many", "web");
    product.let_in("many", "web");
    // Long enough that nothing is renewed or replaced meanwhile.
    let hours = json!({ "default_ttl": "1h", "max_ttl": "2h" });
    product.bed.write_database_role("many", hours);
    product.bed.vault.put_kv2("shop/many", json!({ "token": "s3cr3t" }));
    product.bed.vault.put_kv2("shop/more", json!({ "token": "s3cr3t" }));
    let items = "- secret: secret/shop/many\n  path: many.json\n\
                 - secret: secret/shop/more\n  path: more.json\n\
                 - secret: database/creds/many\n  path: database.json\n";
    for number in 0..PODS {
        let name = format!("app-{number}");
        let mut app = pod("many", &name, "web", BUSYBOX, json!({ "items": items }));
        let waits = "trap 'exit 0' TERM; sleep infinity & wait $!";
        app["spec"]["containers"][0]["command"] = json!(["sh", "-c", waits]);
        node.apply(&app);
    }
    let running = |pods: &Value| {
        let pods = pods["items"].as_array().into_iter().flatten();
        pods.filter(|pod| pod["status"]["phase"] == "Running").count()
    };
    node.wait("api/v1/namespaces/many/pods", LONG, "all run", |pods| running(pods) == PODS);

    assert_eq!(product.requests("secret/data/shop/many", "read"), 1);
    assert_eq!(product.requests("secret/data/shop/more", "read"), 1);
    assert_eq!(product.requests("database/creds/many", "read"), PODS);
    assert_eq!(product.logins_of("many"), 1 + PODS);
    let users = product.users_of("many");
    assert_eq!(users.len(), PODS);
    let file = |number: usize| {
        let name = format!("app-{number}");
        node.exec("many", &name, "main", &["cat", "/secrets/database.json"]).stdout
    };
    let shown: std::collections::BTreeSet<String> = (0..PODS)
        .map(|number| {
            let credential: Value = serde_json::from_slice(&file(number)).expect("JSON");
            credential["username"].as_str().expect("a user").to_owned()
        })
        .collect();
    assert_eq!(shown.into_iter().collect::<Vec<_>>(), users, "each pod has one of its own");

    node.kubectl(&["delete", "pods", "--all", "--namespace", "many", "--timeout=400s"]);
    eventually(LONG, "every credential ends", || product.users_of("many").is_empty());
    assert_eq!(product.logins_of("many"), 1 + PODS);
}
