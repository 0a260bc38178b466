//! Database leases: when they are renewed, and when and how often they are replaced.

use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::client::Client;
use crate::rig::{DATABASE_FILE, Rig, SOON, VOLUME, seconds};
use crate::support::process::eventually;
use crate::support::testbed::{POLICY, Testbed};

const CREDS: &str = "database/creds/shop";
const RENEW: &str = "sys/leases/renew";
/// From the moment a request leaves to Vault's log entry for it, at most.
const LATENCY: f64 = 0.6;

/// A volume with the credential of the role `shop`, published; and when Vault was asked for it.
fn published(bed: Testbed) -> (Rig, SystemTime) {
    published_with(bed, "")
}

/// The same with these tables added to the configuration.
fn published_with(bed: Testbed, more: &str) -> (Rig, SystemTime) {
    let rig = Rig::start(bed, &[more, VOLUME, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    let minted = rig.succeeded(CREDS, "read");
    assert_eq!(minted.len(), 1);
    (rig, minted[0])
}

/// Waits until this long after `start`.
fn until(start: SystemTime, offset: f64) {
    let now = seconds(start, SystemTime::now());
    assert!(now < offset, "already {now} s after the start");
    thread::sleep(Duration::from_secs_f64(offset - now));
}

#[test]
fn a_20_s_lease_is_renewed_at_14_to_15_s_and_replaced_with_overlap_at_its_max_ttl_of_60_s() {
    let (rig, minted) = published(Testbed::start());
    let client = Client::start(&rig, "database.json");
    let lease = rig.bed.leases("shop");
    assert_eq!(lease.len(), 1);

    // Two renewals in full; the third is cut short by max_ttl, and only that says so.
    until(minted, 44.0 - 2.0);
    assert_eq!(rig.bed.leases("shop"), lease);
    eventually(SOON, "the replacement", || rig.succeeded(CREDS, "read").len() == 2);
    let renewed = rig.succeeded(RENEW, "update");
    let mut before = minted;
    for at in &renewed {
        let after = seconds(before, *at);
        eprintln!("a 20 s lease was renewed after {after:.3} s");
        assert!((14.0 - LATENCY..=15.0 + LATENCY).contains(&after), "{after} s");
        before = *at;
    }
    assert_eq!((renewed.len(), rig.refused(RENEW, "update").len()), (3, 0));
    assert_eq!(rig.requests(RENEW, "update"), 3);

    // Both credentials live until the old one's time is over.
    eventually(SOON, "both leases", || rig.bed.leases("shop").len() == 2);
    assert!(rig.bed.leases("shop").contains(&lease[0]));
    assert_eq!(rig.bed.database_users().len(), 2);
    let retiring = || rig.secret("vault:database/creds/shop")["retiring"].as_array().map(Vec::len);
    eventually(SOON, "status shows the overlap", || retiring() == Some(1));
    until(minted, 55.0);
    assert_eq!(rig.bed.database_users().len(), 2);
    until(minted, 61.5);
    eventually(SOON, "the old role is dropped", || rig.bed.database_users().len() == 1);
    let users = client.never_failed(300);
    assert_eq!(users.len(), 2, "{users:?}");
    assert_eq!(rig.bed.database_users(), users[1..]);
    assert_eq!(rig.requests(CREDS, "read"), 2);
    assert_eq!(rig.requests("sys/leases/revoke", "update"), 0);
}

/// Leases of 6 s that end after 12 s, with 2 s of overlap: the first renewal (at 4.2 to 4.5 s) is
/// in full, the second (at 8.4 to 9 s) is cut short.
fn short_leases(policy: &str) -> (Rig, SystemTime) {
    let bed = Testbed::start();
    bed.write_policy(policy);
    bed.write_database_role("shop", json!({ "default_ttl": "6s", "max_ttl": "12s" }));
    published_with(bed, "[cache]\noverlap = \"2s\"\n")
}

#[test]
fn a_replaced_lease_is_revoked_when_its_overlap_ends_where_vault_lets_us() {
    let revoke = "path \"sys/leases/revoke\" { capabilities = [\"update\"] }";
    let (rig, minted) = short_leases(&format!("{POLICY}{revoke}"));
    let client = Client::start(&rig, "database.json");
    let first = rig.bed.database_users();
    until(minted, 8.0);
    eventually(SOON, "the replacement", || rig.succeeded(CREDS, "read").len() == 2);
    let replaced = rig.succeeded(CREDS, "read")[1];
    eventually(SOON, "the old role is dropped", || rig.bed.database_users().len() == 1);
    // Vault drops the role before it answers.
    let revoked = || rig.succeeded("sys/leases/revoke", "update");
    eventually(SOON, "the answer", || revoked().len() == 1);
    let overlap = seconds(replaced, revoked()[0]);
    assert!((1.9..3.0).contains(&overlap), "revoked after {overlap} s");
    assert!(seconds(minted, SystemTime::now()) < 12.0, "before it would have lapsed");
    let users = client.never_failed(50);
    assert_eq!((users.len(), &users[..1]), (2, &first[..]));
}

#[test]
fn a_replaced_lease_that_may_not_be_revoked_is_asked_for_once_and_then_lapses() {
    let (rig, minted) = short_leases(POLICY);
    until(minted, 8.0);
    eventually(SOON, "the replacement", || rig.succeeded(CREDS, "read").len() == 2);
    eventually(SOON, "the refusal", || rig.refused("sys/leases/revoke", "update").len() == 1);
    assert_eq!(rig.bed.database_users().len(), 2);
    let secret = rig.secret("vault:database/creds/shop");
    assert_eq!(secret["state"], "fresh", "{secret:#}");
    assert_eq!(secret["problem"], json!(null), "{secret:#}");
    let lapses = secret["retiring"][0]["in_seconds"].as_i64().expect("when the old one lapses");
    assert!((0..4).contains(&lapses), "{secret:#}");
    until(minted, 12.0);
    eventually(SOON, "the old role is dropped", || rig.bed.database_users().len() == 1);
    assert_eq!(rig.requests("sys/leases/revoke", "update"), 1);
}

#[test]
fn a_vault_sealed_from_second_5_to_17_of_a_20_s_lease_mints_nothing_and_the_lease_lives_on() {
    let (rig, minted) = published(Testbed::start());
    let client = Client::start(&rig, "database.json");
    let (lease, users) = (rig.bed.leases("shop"), rig.bed.database_users());
    until(minted, 5.0);
    rig.bed.vault.seal();
    until(minted, 16.0);
    let status = rig.agent.status();
    let error = status["sources"][0]["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("sealed") && error.contains("unseal Vault"), "{status:#}");
    assert_eq!(status["sources"][0]["reachable"], false);
    assert!(status["headline"].as_str().is_some_and(|line| line.contains("unreachable")));
    // What stops working if nobody does anything, and when.
    assert_eq!(status["deadlines"][0]["what"], "vault:database/creds/shop", "{status:#}");
    assert_eq!(status["deadlines"][0]["consumers"], json!(["volume:shop"]));
    assert_eq!(
        (
            rig.item("database.json")["state"].as_str(),
            rig.item("database.json")["problem"].as_str()
        ),
        (Some("fresh"), Some("unreachable"))
    );
    assert_eq!(rig.agent.command(&["status"]).0, 1);

    until(minted, 17.0);
    rig.bed.vault.unseal();
    eventually(SOON, "the renewal", || !rig.succeeded(RENEW, "update").is_empty());
    let renewed = rig.succeeded(RENEW, "update");
    let after = seconds(minted, renewed[0]);
    eprintln!("sealed from 5 to 17 s, renewed after {after:.3} s");
    assert!((17.0..20.0).contains(&after), "{after} s");
    rig.wait_until_healthy();
    assert_eq!(rig.agent.command(&["status"]).0, 0);
    until(minted, 22.0);
    assert_eq!(rig.bed.leases("shop"), lease);
    assert_eq!((rig.bed.database_users(), client.never_failed(110)), (users.clone(), users));
    assert_eq!((rig.requests(CREDS, "read"), rig.succeeded(RENEW, "update").len()), (1, 1));
}

/// Breaks the renewal of 10 s leases with `damage`; after exactly one replacement `repair` lets the
/// new lease live.
fn failing_renewals(damage: fn(&Testbed), repair: fn(&Testbed), reason: &str) {
    let bed = Testbed::start();
    ten_seconds(&bed, json!([]));
    let (rig, minted) = published(bed);
    let client = Client::start(&rig, "database.json");
    damage(&rig.bed);

    until(minted, 8.5);
    // Nine tenths of its life it is tried to keep what is there.
    assert_eq!(rig.requests(CREDS, "read"), 1);
    let tried = rig.refused(RENEW, "update");
    assert!(tried.len() > 1 && seconds(minted, tried[0]) > 7.0 - LATENCY, "{tried:?}");
    let explained = rig.agent.explain(CREDS);
    let why = explained["entries"][0]["problem"]["message"].as_str().unwrap_or_default();
    assert!(why.contains("renewing the lease failed") && why.contains(reason), "{explained:#}");
    assert_eq!(rig.agent.status()["health"], "degraded");

    eventually(SOON, "the replacement", || rig.succeeded(CREDS, "read").len() == 2);
    let replaced = seconds(minted, rig.succeeded(CREDS, "read")[1]);
    eprintln!(
        "{} renewals failed, replaced after {replaced:.3} s",
        rig.refused(RENEW, "update").len()
    );
    assert!((9.0 - LATENCY..10.0).contains(&replaced), "{replaced} s");
    repair(&rig.bed);
    until(minted, 20.5);
    assert_eq!((rig.requests(CREDS, "read"), rig.succeeded(RENEW, "update").len()), (2, 1));
    rig.wait_until_healthy();
    assert_eq!(client.never_failed(90).len(), 2);
    assert_eq!(rig.bed.database_users().len(), 1);
}

fn ten_seconds(bed: &Testbed, renew_statements: serde_json::Value) {
    let role = json!({
        "default_ttl": "10s", "max_ttl": "300s", "renew_statements": renew_statements
    });
    bed.write_database_role("shop", role);
}

#[test]
fn renewals_that_vault_forbids_cause_one_replacement_before_expiry() {
    let deny = |bed: &Testbed| {
        let deny = r#"path "sys/leases/renew" { capabilities = ["deny"] }"#;
        bed.write_policy(&format!("{POLICY}{deny}"));
    };
    failing_renewals(deny, |bed| bed.write_policy(POLICY), "allow `update` on sys/leases/renew");
}

#[test]
fn renewals_that_the_database_fails_cause_one_replacement_before_expiry() {
    let damage = |bed: &Testbed| ten_seconds(bed, json!(["SELECT no_such_function()"]));
    failing_renewals(damage, |bed| ten_seconds(bed, json!([])), "no_such_function");
}
