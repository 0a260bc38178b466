//! Sessions with Vault: what their end, their kind and the files behind a login do to secrets.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::client::Client;
use crate::rig::{BACKOFF, DATABASE_FILE, Rig, SOON, VOLUME, seconds};
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const CREDS: &str = "database/creds/shop";
const LOGIN: &str = "auth/kubernetes/login";
const WEB_FILE: &str = "
[[volumes.items]]
secret = \"secret/shop/web\"
path = \"web.json\"
";

fn bed() -> Testbed {
    let bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "colour": "blue" }));
    bed
}

/// One volume with a KV secret and a database credential: two sessions.
fn published(bed: Testbed, more: &str) -> Rig {
    let rig = Rig::start(bed, &[more, VOLUME, WEB_FILE, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    rig.wait_for_file("web.json");
    assert_eq!((rig.succeeded(LOGIN, "update").len(), rig.sessions().len()), (2, 2));
    rig
}

#[test]
fn a_revoked_token_costs_one_login_and_its_leases_are_replaced_once_while_kv_is_kept() {
    let rig = published(bed(), "");
    let (first, revision) = (rig.bed.database_users(), rig.json_file("..status.json"));
    for accessor in rig.sessions() {
        rig.bed.vault.write("auth/token/revoke-accessor", json!({ "accessor": accessor }));
    }
    eventually(SOON, "Vault drops the role", || rig.bed.database_users().is_empty());
    // It is noticed with the next call, which an operator may hasten; KV asks for nothing yet.
    assert_eq!(rig.agent.command(&["refresh", CREDS]).0, 0);
    eventually(SOON, "the replacement", || rig.bed.database_users().len() == 1);
    let user = || rig.json_file("database.json")["username"].clone();
    eventually(SOON, "the new file", || user() != *first[0]);
    let now = || rig.json_file("..status.json")["revision"].clone();
    eventually(SOON, "the new revision", || now() != revision["revision"]);
    assert_eq!(rig.agent.read("secret/data/shop/web").header("x-cache"), Some("HIT"));
    assert_eq!(rig.requests(LOGIN, "update"), 3);

    assert_eq!(rig.agent.command(&["refresh", "secret/shop/web"]).0, 0);
    eventually(SOON, "KV is read anew", || rig.succeeded("secret/data", "read").len() == 2);
    assert_eq!(rig.agent.read("secret/data/shop/web").header("x-cache"), Some("HIT"));
    thread::sleep(Duration::from_secs(2));
    assert_eq!((rig.requests(LOGIN, "update"), rig.requests(CREDS, "read")), (4, 2));
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "blue" }));
    assert_eq!((rig.sessions().len(), rig.agent.status()["health"].clone()), (2, json!("healthy")));
}

#[test]
fn a_rotated_service_account_token_is_used_for_the_next_login() {
    let rig = published(bed(), "");
    let hash = |token: &str| {
        let reply = rig.bed.vault.write("sys/audit-hash/file", json!({ "input": token }));
        reply["data"]["hash"].clone()
    };
    let used = || -> Vec<Value> {
        let log = rig.bed.vault.audit_log();
        let logins = log
            .iter()
            .filter(|entry| entry["type"] == "request" && entry["request"]["path"] == LOGIN);
        logins.map(|entry| entry["request"]["data"]["jwt"].clone()).collect()
    };
    let first = hash(&fs::read_to_string(&rig.bed.token_file).expect("read the token"));
    assert_eq!(used(), [first.clone(), first.clone()]);
    let second = hash(&rig.bed.rotate_token());
    // A caller has a session of its own, so it needs a login.
    assert_eq!(rig.agent.read(CREDS).status, 200);
    assert_eq!(used(), [first.clone(), first, second]);
    assert_eq!(rig.sessions().len(), 3);
}

#[test]
fn a_session_that_must_end_is_succeeded_before_its_end_and_its_leases_overlap() {
    let bed = bed();
    bed.write_login_role(json!({ "token_ttl": "10s", "token_max_ttl": "20s" }));
    let rig = published(bed, "");
    let client = Client::start(&rig, "database.json");
    let logins = rig.succeeded(LOGIN, "update");
    // Renewed in full at 7 to 7.5 s, cut short at 14 to 15 s, ended by Vault at 20 s.
    eventually(Duration::from_secs(18), "a successor", || {
        rig.succeeded(LOGIN, "update").len() == 4
    });
    // It may be the first one's or the second one's.
    let successor = rig.succeeded(LOGIN, "update")[2];
    let after = [logins[0], logins[1]].map(|login| seconds(login, successor));
    eprintln!("succeeded after {after:.3?} s of 20");
    assert!(after[0] > 13.7 && after[1] < 15.5, "{after:?} s");
    eventually(SOON, "the replacement", || rig.succeeded(CREDS, "read").len() == 2);
    let replaced = seconds(logins[1], rig.succeeded(CREDS, "read")[1]);
    eprintln!("its lease was replaced after {replaced:.3} s");
    assert!(replaced < 19.0, "{replaced} s");
    assert_eq!(rig.bed.database_users().len(), 2);
    // The old session ends by itself at its known end, with the old credential.
    eventually(Duration::from_secs(10), "the old role is dropped", || {
        rig.bed.database_users().len() == 1
    });
    thread::sleep(Duration::from_secs(1));
    assert_eq!(client.never_failed(90).len(), 2);
    assert_eq!(rig.requests(CREDS, "read"), 2);
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "blue" }));
    rig.wait_until_healthy();
}

#[test]
fn batch_tokens_are_never_renewed_and_their_leases_are_replaced_with_overlap() {
    let bed = bed();
    bed.write_login_role(json!({ "token_type": "batch", "token_ttl": "10s" }));
    let rig = Rig::start(bed, &[VOLUME, WEB_FILE, DATABASE_FILE]);
    rig.wait_for_file("database.json");
    let client = Client::start(&rig, "database.json");
    let start = rig.succeeded(CREDS, "read")[0];
    let user = || rig.json_file("database.json")["username"].clone();
    let mut users = vec![user()];
    eventually(Duration::from_secs(30), "two replacements", || {
        if users.last() != Some(&user()) {
            users.push(user());
        }
        users.len() == 3
    });
    // Enough for the client to meet the last one as well.
    thread::sleep(Duration::from_millis(500));
    let minted = rig.succeeded(CREDS, "read");
    for pair in minted.windows(2) {
        let after = seconds(pair[0], pair[1]);
        eprintln!("a credential under a 10 s batch token was replaced after {after:.3} s");
        // A login at 7 to 7.5 s after the last, then up to half of what the old token has left:
        // the first may have come that late, too.
        assert!((5.2..9.3).contains(&after), "{after} s");
    }
    let alive = seconds(start, SystemTime::now());
    assert_eq!(client.never_failed((alive * 5.0) as usize).len(), 3);
    assert_eq!(rig.requests("auth/token/renew-self", "update"), 0);
}

#[test]
fn a_role_whose_tokens_end_after_some_uses_is_refused_with_the_remedy_and_heals() {
    let bed = bed();
    bed.write_login_role(json!({ "token_num_uses": 5 }));
    let rig = Rig::start(bed, &[VOLUME, WEB_FILE]);
    let answer = rig.agent.read("secret/data/shop/web");
    assert_eq!(answer.status, 503, "{}", answer.body);
    let remedy = "set token_num_uses=0 on the role";
    assert!(answer.body.contains(remedy), "{}", answer.body);
    let status = rig.agent.status();
    assert!(status["causes"].to_string().contains(remedy), "{status:#}");
    assert!(!rig.path("web.json").exists());
    // What was refused is not left behind in Vault.
    eventually(SOON, "no session", || rig.sessions().is_empty());
    rig.bed.write_login_role(json!({ "token_num_uses": 0 }));
    eventually(BACKOFF, "the file", || rig.path("web.json").exists());
    rig.wait_until_healthy();
}

#[test]
fn a_bad_token_file_is_named_with_its_remedy_and_what_was_serving_goes_on() {
    let rig = published(bed(), "");
    let token = fs::read_to_string(&rig.bed.token_file).expect("read the token");
    let file = rig.bed.token_file.display().to_string();
    let bad: [(&str, Option<String>); 3] = [
        ("empty", Some(String::new())),
        ("line end", Some(format!("{token}\n"))),
        ("No such file", None),
    ];
    let mut problems = Vec::new();
    for (problem, content) in bad {
        match content {
            Some(content) => fs::write(&rig.bed.token_file, content).expect("write the file"),
            None => fs::remove_file(&rig.bed.token_file).expect("remove the file"),
        }
        // A caller needs a login of its own; it is told, and so are operators.
        let named = |text: &str| {
            text.contains("token_file") && text.contains(&file) && text.contains(problem)
        };
        eventually(BACKOFF, problem, || {
            let answer = rig.agent.read(CREDS);
            assert_eq!(answer.status, 503, "{}", answer.body);
            named(&answer.body)
        });
        let status = rig.agent.status();
        assert!(named(&status.to_string()), "{problem}: {status:#}");
        problems.push(status.to_string());
        assert_eq!(rig.agent.read("secret/data/shop/web").header("x-cache"), Some("HIT"));
        assert_eq!(
            (rig.item("web.json")["state"].clone(), rig.item("database.json")["state"].clone()),
            (json!("fresh"), json!("fresh"))
        );
    }
    assert!(problems.iter().all(|told| !told.contains(&token)));
    assert_eq!(rig.requests(LOGIN, "update"), 2, "nothing was sent");
    rig.bed.rotate_token();
    eventually(BACKOFF, "a login", || rig.agent.read(CREDS).status == 200);
}
