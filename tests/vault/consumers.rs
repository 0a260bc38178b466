//! Who holds a database credential: its end with its last consumer, and not with the agent.

use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::rig::{DATABASE_FILE, Rig, SOON, VOLUME, seconds};
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const CREDS: &str = "database/creds/shop";

/// What a caller on the host socket gets.
fn mint(rig: &Rig) -> Value {
    let answer = rig.agent.read(CREDS);
    assert_eq!((answer.status, answer.header("x-cache")), (200, Some("MISS")), "{}", answer.body);
    answer.json()
}

/// The caller says that it needs the credential no more.
fn give_up(rig: &Rig, secret: &Value) {
    let body = json!({ "lease_id": secret["lease_id"] });
    let answer = rig.agent.host("PUT", "/v1/sys/leases/revoke", Some(&body));
    assert_eq!(answer.status, 204, "{}", answer.body);
}

/// Neither did the agent ask for a right that it does not have, nor is it needed. Vault drops the
/// role before it forgets the lease and before it answers.
fn ended_by_the_session_alone(rig: &Rig) {
    let ended = || rig.succeeded("auth/token/revoke-self", "update").len();
    eventually(SOON, "the session ends", || ended() == 1);
    eventually(SOON, "the lease is forgotten", || rig.bed.leases("shop").is_empty());
    assert_eq!(rig.requests("sys/leases/revoke", "update"), 0);
    assert_eq!(rig.requests("auth/token/revoke-self", "update"), 1);
}

#[test]
fn revoking_the_local_lease_of_the_last_caller_drops_the_role_in_postgres() {
    let rig = Rig::start(Testbed::start(), &[]);
    let secret = mint(&rig);
    let (user, password) = (&secret["data"]["username"], &secret["data"]["password"]);
    let (user, password) = (user.as_str().expect("a user"), password.as_str().expect("a password"));
    rig.bed.postgres.login(user, password).expect("the credential works");
    // Asked again, the same credential under the same local lease.
    let again = rig.agent.read(CREDS);
    assert_eq!(again.header("x-cache"), Some("HIT"));
    let again = again.json();
    assert_eq!((&again["data"], &again["lease_id"]), (&secret["data"], &secret["lease_id"]));
    let lease = &rig.bed.leases("shop")[0];
    assert!(!secret["lease_id"].as_str().expect("a lease id").contains(lease));

    let body = json!({ "lease_id": secret["lease_id"] });
    let renewed = rig.agent.host("PUT", "/v1/sys/leases/renew", Some(&body));
    assert_eq!(renewed.status, 200, "{}", renewed.body);
    assert_eq!(rig.requests("sys/leases", "update"), 0, "a local renewal stays local");
    let started = SystemTime::now();
    give_up(&rig, &secret);
    eventually(SOON, "the role is dropped", || rig.bed.database_users().is_empty());
    eprintln!("dropped {:.3} s after the revocation", seconds(started, SystemTime::now()));
    assert!(rig.bed.postgres.login(user, password).is_err());
    ended_by_the_session_alone(&rig);
    assert_eq!(rig.requests(CREDS, "read"), 1);
    // The session that found out the mount's kind is left.
    assert_eq!(rig.agent.secrets("vault:database/creds/shop"), [Value::Null; 0]);
    assert_eq!(rig.agent.host("PUT", "/v1/sys/leases/renew", Some(&body)).status, 400);
}

#[test]
fn a_caller_that_never_comes_back_keeps_the_role_as_long_as_it_was_told_and_no_longer() {
    let bed = Testbed::start();
    bed.write_database_role("shop", json!({ "default_ttl": "6s", "max_ttl": "60s" }));
    let rig = Rig::start(bed, &[]);
    let secret = mint(&rig);
    let minted = rig.succeeded(CREDS, "read")[0];
    let left = secret["lease_duration"].as_u64();
    assert!(matches!(left, Some(4 | 5)), "whole seconds of what is left: {left:?}");
    // Renewed upstream meanwhile, so that Vault alone would keep it until the eleventh second.
    eventually(SOON, "the renewal", || rig.succeeded("sys/leases/renew", "update").len() == 1);
    assert_eq!(rig.bed.database_users().len(), 1);
    eventually(SOON, "the role is dropped", || rig.bed.database_users().is_empty());
    let lived = seconds(minted, SystemTime::now());
    eprintln!("an unread 6 s local lease kept the role for {lived:.3} s");
    // Vault alone, which renewed it after four seconds, would drop it after ten.
    assert!((5.5..9.5).contains(&lived), "{lived} s");
    ended_by_the_session_alone(&rig);
    assert_eq!(rig.requests(CREDS, "read"), 1);
}

#[test]
fn a_caller_that_goes_on_reading_keeps_its_credential_beyond_the_first_lease() {
    let bed = Testbed::start();
    bed.write_database_role("shop", json!({ "default_ttl": "4s", "max_ttl": "60s" }));
    let rig = Rig::start(bed, &[]);
    let secret = mint(&rig);
    for _ in 0..10 {
        thread::sleep(Duration::from_secs(1));
        let answer = rig.agent.read(CREDS);
        assert_eq!((answer.status, answer.header("x-cache")), (200, Some("HIT")));
        assert_eq!(answer.json()["data"], secret["data"]);
        assert_eq!(answer.json()["lease_id"], secret["lease_id"]);
    }
    assert_eq!(rig.requests(CREDS, "read"), 1);
    assert_eq!(rig.bed.database_users().len(), 1);
}

#[test]
fn every_consumer_has_a_credential_and_a_session_of_its_own_and_keeps_it_when_another_ends() {
    let rig = Rig::start(Testbed::start(), &[VOLUME, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    let secret = mint(&rig);
    assert_ne!(secret["data"]["username"], rig.json_file("database.json")["username"]);
    // One for the mount's kind and KV, one per consumer.
    assert_eq!((rig.sessions().len(), rig.bed.database_users().len()), (3, 2));
    give_up(&rig, &secret);
    eventually(SOON, "one role is dropped", || rig.bed.database_users().len() == 1);
    let kept = rig.json_file("database.json");
    let field = |name: &str| kept[name].as_str().expect("a credential").to_owned();
    rig.bed.postgres.login(&field("username"), &field("password")).expect("it still works");
    eventually(SOON, "one session ends", || rig.sessions().len() == 2);
}

#[test]
fn a_grant_that_shares_gives_volume_and_caller_one_credential() {
    let grant = r#"
[[grants]]
name = "shared"
who = { any_host_user = true }
paths = ["database/creds/shop"]
share = "agent"

[[grants]]
name = "shared-files"
who = { volume = "shop" }
paths = ["database/creds/shop"]
share = "agent"
"#;
    let rig = Rig::start_with(Testbed::start(), &[grant, VOLUME, DATABASE_FILE], |config| {
        config.replace(r#", "database/**"]"#, "]")
    });
    rig.wait_for_file("database.json");
    let answer = rig.agent.read(CREDS);
    assert_eq!((answer.status, answer.header("x-cache")), (200, Some("HIT")), "{}", answer.body);
    let secret = answer.json();
    assert_eq!(secret["data"]["username"], rig.json_file("database.json")["username"]);
    give_up(&rig, &secret);
    // The volume still has it.
    thread::sleep(Duration::from_secs(1));
    assert_eq!((rig.bed.database_users().len(), rig.requests(CREDS, "read")), (1, 1));
    assert_eq!(rig.requests("auth/token/revoke-self", "update"), 0);
}

/// What must not change when the process ends, however it ends.
fn nothing_ends_with(end: fn(&mut Rig)) {
    let mut rig = Rig::start(Testbed::start(), &[VOLUME, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    mint(&rig);
    let (leases, users) = (rig.bed.leases("shop"), rig.bed.database_users());
    assert_eq!((leases.len(), users.len()), (2, 2));
    let (file, status) = (rig.json_file("database.json"), rig.json_file("..status.json"));
    end(&mut rig);
    // What Vault revokes for us would be gone within moments.
    thread::sleep(Duration::from_secs(1));
    assert_eq!((rig.bed.leases("shop"), rig.bed.database_users()), (leases, users));
    assert_eq!((rig.json_file("database.json"), rig.json_file("..status.json")), (file, status));
    assert_eq!(rig.requests("sys/leases/revoke", "update"), 0);
    assert_eq!(rig.requests("auth/token/revoke-self", "update"), 0);
}

#[test]
fn a_stop_of_the_agent_ends_no_lease_and_takes_no_file_away() {
    nothing_ends_with(|rig| {
        rig.agent.stop();
        let status = rig.agent.process.exit_status().expect("it ended");
        assert_eq!(status.code(), Some(0), "{}", rig.agent.process.stderr());
        assert!(!rig.agent.host_socket().exists(), "no socket is left that nobody answers");
    });
}

#[test]
fn a_crash_of_the_agent_ends_no_lease_and_takes_no_file_away() {
    nothing_ends_with(|rig| rig.agent.process.kill());
}
