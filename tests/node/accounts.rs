//! Service accounts that only share a name have nothing in common.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::database::renewals;
use crate::product::{pod, product};
use crate::support::node::{BUSYBOX, SOON};
use crate::support::process::eventually;
use crate::support::shared::node;

#[test]
fn a_recreated_service_account_gets_nothing_of_the_old_ones() {
    let product = product();
    let node = node();
    let (namespace, account) = ("again", "api/v1/namespaces/again/serviceaccounts/web");
    product.account(namespace, "web");
    product.let_in(namespace, "web");
    product.bed.vault.put_kv2("shop/again", json!({ "token": "s3cr3t" }));
    let attributes = json!({ "secret": "secret/shop/again#token" });
    let start = |name: &str| node.apply(&pod(namespace, name, "web", BUSYBOX, attributes.clone()));
    let read = |name: &str| node.exec(namespace, name, "main", &["cat", "/secrets/token"]).stdout;
    let path = "secret/data/shop/again";
    start("old");
    node.wait_until_ready(namespace, "old");
    assert_eq!((product.logins_of(namespace), product.requests(path, "read")), (1, 1));
    // It shares with the first: a cached copy is there, and a session to read it with.
    start("same");
    node.wait_until_ready(namespace, "same");
    assert_eq!((product.logins_of(namespace), product.requests(path, "read")), (1, 1));

    node.delete(account);
    product.account(namespace, "web");
    // Vault does not know the new one yet.
    product.bed.vault.delete("auth/kubernetes/role/again-web");
    start("new");
    product.wait_for_event(namespace, "new", "invalid role name", "s3cr3t");
    assert_eq!((product.logins_of(namespace), product.requests(path, "read")), (1, 1));
    product.let_in(namespace, "web");
    node.wait_until_ready(namespace, "new");
    // Its own login, its own read; the old one's pods keep what they have.
    assert_eq!((product.logins_of(namespace), product.requests(path, "read")), (2, 2));
    for name in ["old", "same", "new"] {
        assert_eq!(read(name), b"s3cr3t", "{name}");
        node.delete_pod(namespace, name);
    }
}

#[test]
fn pods_of_one_account_share_a_credential_where_a_rule_says_so_until_the_last_one_ends() {
    let product = product();
    let node = node();
    let (namespace, creds) = ("together", "database/creds/together");
    product.account(namespace, "web");
    product.let_in(namespace, "web");
    // Leases of 20 s that can be renewed for as long as this takes.
    product.bed.write_database_role("together", json!({ "max_ttl": "10m" }));
    let attributes = json!({ "secret": creds, "path": "db.json" });
    let user = |name: &str| {
        let output = node.exec(namespace, name, "main", &["cat", "/secrets/db.json"]);
        let file: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |key: &str| file[key].as_str().expect("a credential").to_owned();
        (text("username"), text("password"))
    };
    for name in ["first", "second"] {
        node.apply(&pod(namespace, name, "web", BUSYBOX, attributes.clone()));
        node.wait_until_ready(namespace, name);
    }
    let shared = user("first");
    assert_eq!(user("second"), shared);
    assert_eq!(product.requests(creds, "read"), 1);
    assert_eq!(product.users_of("together"), std::slice::from_ref(&shared.0));

    // Whose token it was got with is not what it lives by.
    node.delete_pod(namespace, "first");
    let before = renewals(&product, "together");
    thread::sleep(Duration::from_secs(25));
    let after = renewals(&product, "together");
    assert!(after.len() == 1 && after > before, "{before:?} {after:?}");
    assert_eq!(user("second"), shared);
    product.bed.postgres.login(&shared.0, &shared.1).expect("it still works");
    assert_eq!(product.requests(creds, "read"), 1);
    node.delete_pod(namespace, "second");
    eventually(SOON, "the role is dropped", || product.users_of("together").is_empty());
}

#[test]
fn a_pod_of_another_namespace_with_the_same_account_name_gets_nothing() {
    let product = product();
    let node = node();
    let vault = &product.bed.vault;
    vault.put_kv2("shop/left", json!({ "token": "s3cr3t" }));
    for namespace in ["left", "right"] {
        product.account(namespace, "web");
        product.let_in(namespace, "web");
    }
    // Both may log in; only one may read.
    vault.write(
        "sys/policies/acl/right",
        json!({ "policy": r#"path "secret/data/right/*" { capabilities = ["read"] }"# }),
    );
    let role = "auth/kubernetes/role/right-web";
    vault.write(role, json!({ "token_policies": ["right"], "audience": "vault" }));
    let attributes = json!({ "secret": "secret/shop/left#token" });
    node.apply(&pod("left", "app", "web", BUSYBOX, attributes.clone()));
    node.wait_until_ready("left", "app");
    node.apply(&pod("right", "app", "web", BUSYBOX, attributes));
    product.wait_for_event("right", "app", "permission denied", "s3cr3t");
    assert_eq!(product.logins_of("left"), 1);
    assert!(product.logins_of("right") >= 1, "it logs in by itself");
    let right = &node.pod("right", "app")["status"];
    assert_eq!(right["phase"], "Pending", "{right}");
    let volumes = product.status()["volumes"].to_string();
    assert!(volumes.contains("left/app"), "{volumes}");
    for namespace in ["left", "right"] {
        node.delete_pod(namespace, "app");
    }
}
