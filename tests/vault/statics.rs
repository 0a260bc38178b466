//! Static database credentials: Vault changes their password by a clock of its own.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Attempt, Client};
use crate::rig::{BACKOFF, Rig, SOON, VOLUME};
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const CREDS: &str = "database/static-creds/reports";
const FILE: &str = "
[[volumes.items]]
secret = \"database/static-creds/reports\"
path = \"reports.json\"
";

fn password(file: &Value) -> String {
    file["password"].as_str().expect("a password").to_owned()
}

#[test]
fn a_password_rotated_by_hand_reaches_file_and_socket_on_refresh_and_works() {
    let bed = Testbed::start();
    let user = bed.add_static_role("reports", Duration::from_secs(3600));
    let rig = Rig::start(bed, &[VOLUME, FILE]);
    rig.wait_for_file("reports.json");
    let first = password(&rig.json_file("reports.json"));
    rig.bed.postgres.login(&user, &first).expect("the first password works");
    assert_eq!(rig.agent.read(CREDS).header("x-cache"), Some("HIT"));
    assert_eq!(rig.requests(CREDS, "read"), 1);

    rig.bed.vault.write("database/rotate-role/reports", json!({}));
    assert!(rig.bed.postgres.login(&user, &first).is_err());
    assert_eq!(rig.agent.command(&["refresh", CREDS]).0, 0);
    eventually(SOON, "the new password", || password(&rig.json_file("reports.json")) != first);
    let second = password(&rig.json_file("reports.json"));
    rig.bed.postgres.login(&user, &second).expect("the second password works");
    let answer = rig.agent.read(CREDS).json();
    assert_eq!(answer["data"]["password"], *second);
    assert_eq!((&answer["lease_id"], &answer["renewable"]), (&json!(""), &json!(false)));
    assert_eq!(rig.requests(CREDS, "read"), 2);
}

#[test]
fn a_password_is_asked_for_again_when_it_rotates_and_is_never_stale() {
    let bed = Testbed::start();
    bed.add_static_role("reports", Duration::from_secs(8));
    let rig = Rig::start(bed, &[VOLUME, FILE]);
    rig.wait_for_file("reports.json");
    let client = Client::start(&rig, "reports.json");
    // Vault looks every five seconds whether a rotation is due, so one takes up to thirteen.
    let mut seen = vec![password(&rig.json_file("reports.json"))];
    eventually(Duration::from_secs(30), "two rotations", || {
        let now = password(&rig.json_file("reports.json"));
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        seen.len() == 3
    });
    // Enough for the client to meet the last one as well.
    thread::sleep(Duration::from_millis(500));
    let attempts = client.stop();
    // While Vault is late it says "zero seconds left", and it is asked every second.
    let refused = longest_failure(&attempts);
    eprintln!("after a rotation the old password was in the file for at most {refused:?}");
    assert!(refused < Duration::from_secs(3), "{refused:?}");
    assert!(attempts.last().is_some_and(|attempt| attempt.outcome.is_ok()));

    // Past its rotation it might be anything: neither stale nor fresh.
    rig.bed.vault.seal();
    let until = rig.secret(&format!("vault:{CREDS}"))["works_until"]["in_seconds"].clone();
    let until = u64::try_from(until.as_i64().unwrap_or(0).max(0)).expect("not negative");
    thread::sleep(Duration::from_secs(until + 2));
    let answer = rig.agent.read(CREDS);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("sealed"), "{}", answer.body);
    let item = rig.item("reports.json");
    assert_eq!((&item["state"], &item["problem"]), (&json!("stale"), &json!("unreachable")));
    let kept = password(&rig.json_file("reports.json"));
    rig.bed.vault.unseal();
    assert_eq!(rig.agent.command(&["refresh", CREDS]).0, 0);
    eventually(BACKOFF, "it is served", || rig.agent.read(CREDS).status == 200);
    assert!(!kept.is_empty());
}

/// The longest time between a failure and the next success.
fn longest_failure(attempts: &[Attempt]) -> Duration {
    let (mut longest, mut since) = (Duration::ZERO, None);
    for attempt in attempts {
        match (&attempt.outcome, since) {
            (Ok(()), Some(from)) => {
                longest = longest.max(attempt.at.duration_since(from));
                since = None;
            }
            (Ok(()), None) => {}
            (Err(_), _) => {
                since.get_or_insert(attempt.at);
            }
        }
    }
    longest
}
