//! Secrets as files in real pods, published by the real kubelet.

use serde_json::json;

use crate::product::{pod, product, restrict};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

#[test]
fn a_restricted_pod_reads_kv_and_a_database_credential_and_its_end_ends_them() {
    let product = product();
    let node = node();
    product.bed.vault.put_kv2("shop/web", json!({ "user": "web", "token": "s3cr3t" }));
    product.account("shop", "web");
    node.admit_restricted_pods_only("shop");
    product.bed.write_database_role("csi", json!({}));
    let items = "- secret: secret/shop/web\n- secret: database/creds/csi\n  path: database.json\n";
    let mut app = pod("shop", "app", "web", BUSYBOX, json!({ "items": items }));
    restrict(&mut app);
    node.apply(&app);
    node.wait_until_ready("shop", "app");

    let cat = |file: &str| {
        let path = format!("/secrets/{file}");
        let output = node.exec("shop", "app", "main", &["cat", &path]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!((cat("user").as_str(), cat("token").as_str()), ("web", "s3cr3t"));
    let database: serde_json::Value = serde_json::from_str(&cat("database.json")).expect("JSON");
    let (user, password) = (&database["username"], &database["password"]);
    let (user, password) = (user.as_str().expect("a user"), password.as_str().expect("a password"));
    product.bed.postgres.login(user, password).expect("the credential works");
    let listing = node.exec("shop", "app", "main", &["ls", "-lnL", "/secrets/token"]);
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(listing.starts_with("-r--r-----"), "{listing}");
    assert!(listing.contains(" 0        2000 "), "{listing}");
    let write = node.exec("shop", "app", "main", &["sh", "-c", "echo x >/secrets/x"]);
    assert!(!write.status.success());

    // A KV session, one for the credential's consumer, and one read of each path.
    assert_eq!(product.requests("secret/data/shop/web", "read"), 1);
    assert_eq!(product.requests("database/creds/csi", "read"), 1);
    let users = product.users_of("csi");
    assert_eq!(users.len(), 1, "{users:?}");

    node.delete_pod("shop", "app");
    eventually(SOON, "the credential ends with its pod", || product.users_of("csi").is_empty());
    let volumes = product.status()["volumes"].to_string();
    assert!(!volumes.contains("shop/app"), "{volumes}");
}

#[test]
fn a_pod_that_may_not_gets_nothing_and_its_events_say_why() {
    let product = product();
    let node = node();
    product.bed.vault.put_kv2("shop/other", json!({ "token": "s3cr3t" }));
    // The same account name in another namespace, which has no role in Vault.
    product.account("other", "web");
    let rows = [
        ("stranger", json!({ "secret": "secret/shop/other#token" }), "invalid role name"),
        ("typo", json!({ "secrets": "secret/shop/web" }), "unknown attribute 'secrets'"),
        (
            "role",
            json!({ "secret": "secret/shop/other#token", "role": "shop-web" }),
            "may not choose 'shop-web'",
        ),
    ];
    for (name, attributes, reason) in &rows {
        node.apply(&pod("other", name, "web", BUSYBOX, attributes.clone()));
        product.wait_for_event("other", name, reason, "s3cr3t");
        node.delete_pod("other", name);
    }
    let volumes = product.status()["volumes"].to_string();
    assert!(!volumes.contains("other/"), "{volumes}");
    assert!(!product.log().contains("s3cr3t"));
}
