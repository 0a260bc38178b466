//! What must never leave: upstream tokens, accessors and lease ids, and paths that are Vault's own.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{DATABASE_FILE, Rig, SOON, VOLUME};
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const CREDS: &str = "database/creds/shop";

/// Reads what there is to read, the agent's own answers and all errors that are easy to get.
fn everything_said(rig: &Rig) -> String {
    let mut said = String::new();
    let mut note = |answer: crate::support::agent::Answer| {
        writeln!(said, "{answer:?}").expect("a string takes everything");
    };
    for path in ["kv/shop/old", "secret/data/shop/web", CREDS, "database/static-creds/reports"] {
        note(rig.agent.read(path));
    }
    for path in ["secret/data/none", "kv/none", "database/creds/none", "other/x", "secret/../x"] {
        note(rig.agent.read(path));
    }
    let local = rig.agent.read(CREDS).json()["lease_id"].clone();
    for action in ["lookup", "renew"] {
        let body = json!({ "lease_id": local });
        note(rig.agent.host("PUT", &format!("/v1/sys/leases/{action}"), Some(&body)));
    }
    for path in ["auth/token/lookup-self", "sys/health", "sys/seal-status"] {
        note(rig.agent.read(path));
    }
    note(rig.agent.read("sys/internal/ui/mounts/secret/shop/web"));
    for path in ["status", "leases", "metrics", "explain?path=database/creds/shop"] {
        note(rig.agent.operator("GET", &format!("/agent/v1/{path}"), None));
        note(rig.agent.host("GET", &format!("/agent/v1/{path}"), None));
    }
    for arguments in [&["status"][..], &["status", "-o", "json"], &["explain", CREDS]] {
        said += &rig.agent.command(arguments).1;
    }
    said += &rig.json_file("..status.json").to_string();
    said
}

#[test]
fn no_reply_log_or_file_holds_an_upstream_token_accessor_or_lease_id() {
    let bed = Testbed::start();
    bed.vault.put_kv1("shop/old", json!({ "motto": "canary-in-kv1" }));
    bed.vault.put_kv2("shop/web", json!({ "colour": "canary-in-kv2" }));
    bed.add_static_role("reports", Duration::from_secs(3600));
    let rig = Rig::start(bed, &[VOLUME, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    let mut said = everything_said(&rig);
    let mut hidden = rig.sessions();
    assert_eq!(hidden.len(), 3);
    hidden.extend(rig.bed.leases("shop"));
    assert_eq!(hidden.len(), 5);
    // Now with failures of every kind on the way.
    rig.bed.vault.seal();
    said += &everything_said(&rig);
    rig.bed.vault.unseal();
    rig.bed.write_policy("path \"other/*\" { capabilities = [\"read\"] }");
    for path in [CREDS, "secret/shop/web", "kv/shop/old"] {
        rig.agent.command(&["refresh", path]);
    }
    eventually(SOON, "a denial", || rig.agent.read("secret/data/shop/web").status == 403);
    let without_values = said.len();
    said += &everything_said(&rig);
    assert!(said.len() > without_values);

    let logs = rig.agent.process.stdout() + &rig.agent.process.stderr();
    let jwt = std::fs::read_to_string(&rig.bed.token_file).expect("read the token");
    hidden.extend(["hvs.".to_owned(), "hvb.".to_owned(), jwt]);
    for secret in &hidden {
        assert!(!said.contains(secret.as_str()), "a reply holds {secret}");
        assert!(!logs.contains(secret.as_str()), "a log holds {secret}");
    }
    // Values are for replies, and nothing else.
    let file = rig.json_file("database.json");
    let password = file["password"].as_str().expect("a password");
    let told = rig.agent.status().to_string() + &rig.agent.explain(CREDS).to_string();
    for value in ["canary-in-kv1", "canary-in-kv2", password] {
        assert!(!logs.contains(value) && !told.contains(value), "{value}");
    }
    assert!(said.contains("canary-in-kv1") && said.contains("canary-in-kv2"));
}

#[test]
fn vaults_own_paths_are_refused_through_a_broad_grant_and_never_reach_vault() {
    let grant = "
[[grants]]
name = \"everything\"
who = { any_host_user = true }
paths = [\"**\"]
";
    let bed = Testbed::start();
    // Vault would allow it.
    bed.write_policy("path \"*\" { capabilities = [\"read\", \"list\", \"update\", \"sudo\"] }");
    let rig = Rig::start(bed, &[grant]);
    assert_eq!(rig.agent.read("database/creds/shop").status, 200);
    let before = rig.bed.vault.audit_log().len();
    for path in [
        "sys/mounts",
        "sys/raw/core/keyring",
        "sys/leases/lookup/database/creds/shop",
        "sys/policies/acl/broker",
        "auth/token/accessors",
        "auth/token/lookup",
        "auth/kubernetes/config",
        "identity/entity/id",
        "cubbyhole/x",
    ] {
        for method in ["GET", "PUT", "POST", "DELETE", "LIST"] {
            let answer = rig.agent.host(method, &format!("/v1/{path}"), None);
            let expected = [400, 403, 404, 405];
            assert!(expected.contains(&answer.status), "{method} {path}: {}", answer.status);
            let errors = answer.json()["errors"].as_array().map(Vec::len);
            assert_eq!(errors, Some(1), "{method} {path}: {}", answer.body);
        }
    }
    // Answered here, with nothing of Vault's in it.
    let own = rig.agent.read("auth/token/lookup-self").json();
    assert_eq!((&own["data"]["id"], &own["data"]["accessor"]), (&json!(""), &json!("")));
    assert_eq!(own["data"]["policies"], json!([]));
    let ours = |entry: &Value| entry["request"]["headers"]["user-agent"].is_array();
    let log = rig.bed.vault.audit_log();
    assert_eq!(log[before..].iter().filter(|entry| ours(entry)).count(), 0);
}
