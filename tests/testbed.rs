//! The ground the other tests stand on: do the real servers work together as `support` says?

mod support;

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::process::eventually;
use support::testbed::Testbed;
use support::vault::Vault;

const SOON: Duration = Duration::from_secs(10);

fn client_token(login: &Value) -> &str {
    login["auth"]["client_token"].as_str().expect("auth.client_token")
}

fn mint(bed: &Testbed, token: &str) -> (String, String) {
    let reply = bed.vault.send("GET", "database/creds/shop", Some(token), None);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let text = |key: &str| reply.body["data"][key].as_str().expect("a credential").to_owned();
    (text("username"), text("password"))
}

#[test]
fn a_service_account_reads_both_kv_engines_and_counts_are_in_the_audit_log() {
    let bed = Testbed::start();
    bed.vault.put_kv1("shop/web", json!({ "colour": "blue" }));
    bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    let login = bed.log_in();
    assert!(login["auth"]["metadata"]["service_account_uid"].is_string(), "{login}");
    assert_eq!(bed.vault.audit_requests("auth/kubernetes/login", "update"), 1);

    let token = Some(client_token(&login));
    for _ in 0..3 {
        let reply = bed.vault.send("GET", "kv/shop/web", token, None);
        assert_eq!(reply.body["data"], json!({ "colour": "blue" }));
    }
    let reply = bed.vault.send("GET", "secret/data/shop/web", token, None);
    assert_eq!(reply.body["data"]["data"], json!({ "colour": "green" }));
    assert_eq!(bed.vault.send("GET", "sys/policies/acl", token, None).status, 403);

    assert_eq!(bed.vault.audit_requests("kv/shop/web", "read"), 3);
    assert_eq!(bed.vault.audit_requests("secret/data/shop", "read"), 1);
    assert_eq!(bed.vault.audit_requests("sys/policies/acl", "list"), 0);
    let refused = bed.vault.audit_log().into_iter().find(|entry| {
        entry["type"] == "response" && entry["request"]["path"] == "sys/policies/acl"
    });
    let refused = refused.expect("the refused request is logged");
    assert!(refused["error"].as_str().expect("an error in clear").contains("permission denied"));
}

#[test]
fn a_database_credential_works_in_postgres_until_its_lease_ends() {
    let bed = Testbed::start();
    let login = bed.log_in();
    let (user, password) = mint(&bed, client_token(&login));

    bed.postgres.login(&user, &password).expect("the credential works");
    let refused = bed.postgres.login(&user, "guess").expect_err("a wrong password is refused");
    assert!(refused.contains("password authentication failed"), "{refused}");
    assert_eq!(bed.database_users(), [user.as_str()]);
    assert!(bed.postgres.roles().contains(&user));
    let leases = bed.leases("shop");
    assert_eq!(leases.len(), 1);

    let lease_id = format!("database/creds/shop/{}", leases[0]);
    bed.vault.write("sys/leases/revoke", json!({ "lease_id": lease_id }));
    eventually(SOON, "the role is dropped", || bed.database_users().is_empty());
    assert!(bed.postgres.login(&user, &password).is_err());
    // Which is the last thing that Vault does.
    eventually(SOON, "the lease is forgotten", || bed.leases("shop").is_empty());
}

#[test]
fn a_lease_that_nobody_renews_ends_after_its_ttl() {
    let bed = Testbed::start();
    bed.write_database_role("brief", json!({ "default_ttl": "4s", "max_ttl": "8s" }));
    let minted = Instant::now();
    bed.vault.read("database/creds/brief").expect("a credential");
    assert_eq!(bed.database_users().len(), 1);
    eventually(SOON, "Vault drops the role", || bed.database_users().is_empty());
    assert!(minted.elapsed() > Duration::from_millis(3500), "{:?}", minted.elapsed());
}

#[test]
fn a_static_role_gets_a_new_password_on_rotation() {
    let bed = Testbed::start();
    let user = bed.add_static_role("reports", Duration::from_secs(3600));
    let password = || {
        let reply = bed.vault.read("database/static-creds/reports").expect("a static credential");
        assert_eq!(reply["data"]["username"], *user);
        reply["data"]["password"].as_str().expect("a password").to_owned()
    };
    let first = password();
    bed.postgres.login(&user, &first).expect("the first password works");
    bed.vault.write("database/rotate-role/reports", json!({}));
    let second = password();
    assert_ne!(first, second);
    bed.postgres.login(&user, &second).expect("the second password works");
    assert!(bed.postgres.login(&user, &first).is_err());
}

#[test]
fn a_sealed_vault_answers_503_and_keeps_leases_through_unseal_and_crash() {
    let mut bed = Testbed::start();
    bed.write_database_role("shop", json!({ "default_ttl": "1h", "max_ttl": "2h" }));
    let login = bed.log_in();
    let (user, password) = mint(&bed, client_token(&login));

    bed.vault.seal();
    let token = Some(client_token(&login));
    assert_eq!(bed.vault.send("GET", "database/creds/shop", token, None).status, 503);
    bed.vault.unseal();
    bed.vault.kill();
    bed.vault.start_again();
    bed.vault.stop();
    bed.vault.start_again();

    assert_eq!(bed.leases("shop").len(), 1);
    bed.postgres.login(&user, &password).expect("the credential outlives the outage");
    assert_eq!(bed.vault.send("GET", "auth/token/lookup-self", token, None).status, 200);
}

#[test]
fn a_rotated_token_logs_in_and_a_foreign_audience_does_not() {
    let bed = Testbed::start();
    let read = || fs::read_to_string(&bed.token_file).expect("read the token file");
    let first = read();
    let rotated = bed.rotate_token();
    assert_ne!(first, rotated);
    assert_eq!(read(), rotated);
    bed.log_in();

    let lifetime = Duration::from_secs(600);
    let foreign = bed.kubernetes.token("secrets-broker", "secrets-broker", Some("other"), lifetime);
    let body = json!({ "role": "broker", "jwt": foreign });
    assert_eq!(bed.vault.send("PUT", "auth/kubernetes/login", None, Some(body)).status, 403);

    bed.kubernetes.create_service_account("secrets-broker", "stranger");
    let stranger = bed.kubernetes.token("secrets-broker", "stranger", Some("vault"), lifetime);
    let body = json!({ "role": "broker", "jwt": stranger });
    assert_eq!(bed.vault.send("PUT", "auth/kubernetes/login", None, Some(body)).status, 403);
    bed.kubernetes.delete_service_account("secrets-broker", "stranger");
}

#[test]
fn withdrawing_the_policy_acts_on_live_tokens() {
    let bed = Testbed::start();
    bed.vault.put_kv1("shop", json!({ "a": "b" }));
    let login = bed.log_in();
    let status = || bed.vault.send("GET", "kv/shop", Some(client_token(&login)), None).status;
    assert_eq!(status(), 200);
    bed.write_policy("path \"kv/other\" { capabilities = [\"read\"] }");
    assert_eq!(status(), 403);
    bed.write_policy(support::testbed::POLICY);
    assert_eq!(status(), 200);
}

#[test]
fn testbeds_do_not_see_each_other() {
    let (left, right) = (Testbed::start(), Testbed::start());
    let (user, _) = mint(&left, client_token(&left.log_in()));
    assert_eq!(left.database_users(), [user]);
    assert!(right.database_users().is_empty());
    let addresses = HashSet::from([&left.vault.address, &right.vault.address]);
    assert_eq!(addresses.len(), 2);
    assert_eq!(right.vault.audit_requests("database/creds", "read"), 0);
}

#[test]
fn vault_serves_tls_under_its_own_authority() {
    let vault = Vault::start_tls();
    assert!(vault.address.starts_with("https://127.0.0.1:"), "{}", vault.address);
    assert_eq!(vault.read("sys/seal-status").expect("a status")["version"], "1.21.4");
    let stranger = support::http::Api::new(&vault.address, None);
    assert!(stranger.send("GET", "v1/sys/health", &[], None).is_err());
}
