//! KV secrets and static credentials: one upstream read for all, versions, and what an outage, a
//! deletion, a withdrawn policy or a rotation does to the socket and to files.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::{BACKOFF, Rig, SOON, VOLUME};
use crate::support::agent::Answer;
use crate::support::process::eventually;
use crate::support::testbed::{POLICY, Testbed};

/// KV that is asked for again after a second and served for five, and failures that are asked about
/// again at once.
const SHORT: &str = "[cache]\nttl = \"1s\"\nmax_stale = \"5s\"\nnegative_ttl = \"100ms\"\n";
const WEB_FILE: &str = "
[[volumes.items]]
secret = \"secret/shop/web\"
path = \"web.json\"
";
const WEB: &str = "secret/data/shop/web";

fn cache(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.header("x-cache").unwrap_or("none"))
}

/// A testbed with a KV 2 secret.
fn colour(colour: &str) -> Testbed {
    let bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "colour": colour }));
    bed
}

/// State and problem of the file as its volume tells them.
fn told(rig: &Rig, file: &str) -> (Value, Value) {
    let item = rig.item(file);
    (item["state"].clone(), item["problem"].clone())
}

/// The file is in place a moment before its mark goes.
fn wait_until_fresh(rig: &Rig) {
    let fresh = (json!("fresh"), Value::Null);
    eventually(SOON, "the mark goes", || told(rig, "web.json") == fresh);
}

#[test]
fn two_hundred_concurrent_readers_of_a_cold_path_cause_one_login_and_one_read() {
    const READERS: usize = 200;
    let limits = "[limits]\nconnections_per_user = 256\n";
    let rig = Rig::start(colour("blue"), &[limits]);
    // Vault answers nothing until all of them wait.
    rig.bed.vault.pause();
    let start = Barrier::new(READERS);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let read = || {
            start.wait();
            rig.agent.read(WEB)
        };
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        eventually(SOON, "all readers wait", || open_connections(&rig) == READERS);
        rig.bed.vault.resume();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    });
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["data"]["data"], json!({ "colour": "blue" }));
    }
    assert_eq!(answers.len(), READERS);
    // Who connected and was slow to ask may find what the others waited for.
    let waited = answers.iter().filter(|answer| cache(answer) == (200, "MISS")).count();
    assert!(waited > READERS / 2, "{waited}");
    assert_eq!(rig.requests(WEB, "read"), 1);
    assert_eq!(rig.requests("auth/kubernetes/login", "update"), 1);
    assert_eq!(rig.requests("sys/internal/ui/mounts", "read"), 1);
    assert_eq!(cache(&rig.agent.read(WEB)), (200, "HIT"));
    assert_eq!(rig.requests(WEB, "read"), 1);
}

/// Connections to the host socket; the metric appears with the first.
fn open_connections(rig: &Rig) -> usize {
    let metrics = rig.agent.operator("GET", "/agent/v1/metrics", None).body;
    let name = "secrets_broker_connections{socket=\"host\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn both_kv_engines_versions_and_the_command_lines_spelling_are_read() {
    let bed = colour("blue");
    bed.vault.put_kv2("shop/web", json!({ "colour": "green", "size": 3 }));
    bed.vault.put_kv1("shop/old", json!({ "user": "web", "motto": "a \"b\"\n" }));
    let items = r#"
[[volumes.items]]
secret = "kv/shop/old"

[[volumes.items]]
secret = "secret/shop/web#colour"
path = "colour"

[[volumes.items]]
secret = "secret/data/shop/web"
path = "web.json"
"#;
    let rig = Rig::start(bed, &[VOLUME, items]);
    let data = |path: &str| {
        let answer = rig.agent.read(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()["data"].clone()
    };
    assert_eq!(data("kv/shop/old"), json!({ "user": "web", "motto": "a \"b\"\n" }));
    let newest = data(WEB);
    assert_eq!(newest["data"], json!({ "colour": "green", "size": 3 }));
    assert_eq!(newest["metadata"]["version"], 2);
    let pinned = data(&format!("{WEB}?version=1"));
    assert_eq!(
        (&pinned["data"], &pinned["metadata"]["version"]),
        (&json!({"colour": "blue"}), &json!(1))
    );
    assert_eq!(rig.agent.read(&format!("{WEB}?version=7")).status, 404);

    rig.wait_for_file("web.json");
    let names = ["user", "motto", "colour"];
    let files = names.map(|name| rig.file(name).unwrap_or_default());
    assert_eq!(files, ["web", "a \"b\"\n", "green"]);
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "green", "size": 3 }));
    // Two items and a caller in either spelling are one path upstream; a version is another.
    assert_eq!(rig.requests(WEB, "read"), 3);
    assert_eq!(rig.requests("kv/shop/old", "read"), 1);
    let explained = rig.agent.explain("secret/shop/web");
    assert_eq!(explained["secret"], "vault:secret/data/shop/web");
    let (code, text) = rig.agent.command(&["explain", "secret/shop/web#colour"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("vault:secret/data/shop/web"), "{text}");
}

#[test]
fn a_deleted_version_is_404_on_the_socket_keeps_the_file_and_heals() {
    let rig = Rig::start(colour("blue"), &[SHORT, VOLUME, WEB_FILE]);
    rig.wait_for_file("web.json");
    rig.bed.vault.delete(WEB);
    eventually(SOON, "the file is marked", || told(&rig, "web.json").0 == "gone");
    assert_eq!(told(&rig, "web.json"), (json!("gone"), json!("not-found")));
    let answer = rig.agent.read(WEB);
    assert_eq!((answer.status, answer.body.as_str()), (404, r#"{"errors":[]}"#));
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "blue" }));
    let why = rig.agent.explain(WEB)["entries"][0]["why"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("version 1 was deleted; write a new version"), "{why}");
    assert_eq!(rig.agent.status()["health"], "degraded");
    let alarm = || rig.agent.status()["volumes"][0]["alarm"].to_string();
    eventually(SOON, "the alarm", || alarm().contains("web.json"));

    rig.bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    assert_eq!(rig.agent.command(&["refresh", "secret/shop/web"]).0, 0);
    eventually(SOON, "the new file", || rig.json_file("web.json")["colour"] == "green");
    wait_until_fresh(&rig);
    assert_eq!(rig.agent.read(WEB).status, 200);
    rig.wait_until_healthy();
}

#[test]
fn a_withdrawn_policy_denies_on_the_socket_keeps_the_files_says_why_and_heals() {
    let rig = Rig::start(colour("blue"), &[SHORT, VOLUME, WEB_FILE]);
    rig.wait_for_file("web.json");
    assert_eq!(rig.agent.read(WEB).status, 200);
    let logins = rig.requests("auth/kubernetes/login", "update");
    rig.bed.write_policy("path \"kv/*\" { capabilities = [\"read\"] }");
    eventually(SOON, "the file is marked", || told(&rig, "web.json").0 == "denied");
    let answer = rig.agent.read(WEB);
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert!(!answer.body.contains("blue"));
    assert_eq!(told(&rig, "web.json"), (json!("denied"), json!("denied")));
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "blue" }));
    // The role might have changed, so one login beside the old one found out, and only one.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(rig.requests("auth/kubernetes/login", "update"), logins + 1);
    assert_eq!(rig.agent.read(WEB).status, 403);

    let explained = rig.agent.explain("secret/shop/web");
    let why = explained["entries"][0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("permission denied") && why.contains("allow `read`"), "{explained:#}");
    assert_eq!(explained["entries"][0]["state"], "denied");
    assert_eq!(explained["files"][0]["state"], "denied");
    let status = rig.agent.status();
    assert!(
        status["headline"].as_str().is_some_and(|line| line.contains("is denied")),
        "{status:#}"
    );
    let to_do = &status["outlook"]["to_do"];
    assert!(to_do.to_string().contains("permit secret/data/shop/web"), "{to_do}");

    rig.bed.write_policy(POLICY);
    rig.bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    assert_eq!(rig.agent.command(&["refresh", "secret/shop/web"]).0, 0);
    eventually(SOON, "the new file", || rig.json_file("web.json")["colour"] == "green");
    assert_eq!(rig.agent.read(WEB).json()["data"]["data"]["colour"], "green");
    rig.wait_until_healthy();
}

#[test]
fn a_withdrawn_policy_heals_by_itself() {
    let rig = Rig::start(colour("blue"), &[SHORT, VOLUME, WEB_FILE]);
    rig.wait_for_file("web.json");
    rig.bed.write_policy("path \"kv/*\" { capabilities = [\"read\"] }");
    eventually(SOON, "the file is marked", || told(&rig, "web.json").0 == "denied");
    rig.bed.write_policy(POLICY);
    eventually(BACKOFF, "the file is fresh", || told(&rig, "web.json").0 == "fresh");
}

#[test]
fn in_an_outage_kv_is_stale_then_refused_and_the_file_stays_and_is_marked() {
    let mut rig = Rig::start(colour("blue"), &[SHORT, VOLUME, WEB_FILE]);
    rig.wait_for_file("web.json");
    let last_success = Instant::now();
    assert_eq!(cache(&rig.agent.read(WEB)), (200, "HIT"));
    rig.bed.vault.stop();
    thread::sleep(Duration::from_millis(1200));
    let stale = rig.agent.read(WEB);
    assert_eq!(cache(&stale), (200, "STALE"), "{}", stale.body);
    let age: u64 = stale.header("age").and_then(|age| age.parse().ok()).expect("an age");
    assert!((1..5).contains(&age), "{age}");
    eventually(SOON, "the file is marked", || told(&rig, "web.json").0 == "stale");
    assert_eq!(rig.agent.command(&["status"]).0, 1);

    eventually(SOON, "past max_stale", || rig.agent.read(WEB).status != 200);
    // Refreshed at most once more before Vault was gone.
    let served = last_success.elapsed();
    assert!((4.5..7.0).contains(&served.as_secs_f64()), "{served:?}");
    let refused = rig.agent.read(WEB);
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok()));
    assert!(refused.body.contains("cannot connect to Vault"), "{}", refused.body);
    assert_eq!(told(&rig, "web.json"), (json!("stale"), json!("unreachable")));
    assert_eq!(rig.json_file("web.json"), json!({ "colour": "blue" }));
    assert_eq!(rig.item("web.json")["version"], 1);

    rig.bed.vault.start_again();
    rig.bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    assert_eq!(rig.agent.command(&["refresh", "secret/shop/web"]).0, 0);
    eventually(BACKOFF, "the new file", || rig.json_file("web.json")["colour"] == "green");
    wait_until_fresh(&rig);
    assert_eq!(rig.agent.read(WEB).status, 200);
}
