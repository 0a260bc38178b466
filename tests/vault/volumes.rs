//! Secrets that do not fit: into a volume, into a limit, or to what an item asks for.

use serde_json::json;

use crate::rig::{Rig, SOON, VOLUME};
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const WEB: &str = "secret/data/shop/web";
const SHORT: &str = "[cache]\nttl = \"1s\"\nmax_stale = \"1h\"\n";
const TOKEN_FILE: &str = "
[[volumes.items]]
secret = \"secret/shop/web#token\"
path = \"token\"
";

fn bed(token: &str) -> Testbed {
    let bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "token": token, "colour": "blue" }));
    bed
}

fn refresh(rig: &Rig) {
    let (code, text) = rig.agent.command(&["refresh", "secret/shop/web"]);
    assert_eq!(code, 0, "{text}");
}

fn alarm(rig: &Rig) -> String {
    rig.json_file("..status.json")["alarm"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_full_tmpfs_keeps_the_old_revision_alarms_and_recovers() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT ROOT: only root can mount a tmpfs of a size of its own");
        return;
    }
    let small = |config: String| {
        config.replace(
            "tmpfs = \"existing\"",
            "tmpfs = \"own\"\nsize = \"64KiB\"\nretire_grace = \"0s\"",
        )
    };
    let rig = Rig::start_with(bed("first"), &[VOLUME, TOKEN_FILE], small);
    rig.wait_for_file("token");
    let revision = || rig.json_file("..status.json")["revision"].clone();
    eventually(SOON, "the first revision", || {
        rig.path("..status.json").exists() && revision() != json!(null)
    });
    let first = revision();
    rig.bed.vault.put_kv2("shop/web", json!({ "token": "x".repeat(100_000) }));
    refresh(&rig);
    eventually(SOON, "the alarm", || alarm(&rig).contains("the volume is full"));
    assert_eq!(rig.file("token").as_deref(), Some("first"));
    assert_eq!(revision(), first);
    // The file says it a moment before the board does.
    eventually(SOON, "status says so", || rig.agent.status()["health"] == "degraded");
    let status = rig.agent.status();
    let told = status["causes"].to_string();
    assert!(told.contains("volume shop") && told.contains("full"), "{status:#}");
    // The socket has no such bound.
    assert_eq!(rig.agent.read(WEB).json()["data"]["metadata"]["version"], 2);

    rig.bed.vault.put_kv2("shop/web", json!({ "token": "third" }));
    refresh(&rig);
    eventually(SOON, "the new file", || rig.file("token").as_deref() == Some("third"));
    eventually(SOON, "no alarm", || alarm(&rig).is_empty());
    rig.wait_until_healthy();
}

#[test]
fn a_secret_without_the_asked_key_is_waited_for_and_named() {
    let bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "colour": "blue" }));
    let rig = Rig::start(bed, &[SHORT, VOLUME, TOKEN_FILE]);
    rig.wait_for_file("..status.json");
    eventually(SOON, "the alarm", || alarm(&rig).contains("'token'"));
    let told = alarm(&rig);
    assert!(told.contains("secret/shop/web") || told.contains(WEB), "{told}");
    assert!(!told.contains("blue"), "{told}");
    assert!(!rig.path("token").exists());
    rig.bed.vault.put_kv2("shop/web", json!({ "token": "t" }));
    eventually(SOON, "the file", || rig.file("token").as_deref() == Some("t"));
    eventually(SOON, "no alarm", || alarm(&rig).is_empty());
}

#[test]
fn a_key_that_goes_away_leaves_the_file_and_alarms() {
    let rig = Rig::start(bed("first"), &[SHORT, VOLUME, TOKEN_FILE]);
    rig.wait_for_file("token");
    rig.bed.vault.put_kv2("shop/web", json!({ "colour": "green" }));
    eventually(SOON, "the alarm", || alarm(&rig).contains("the files stay as they are"));
    assert_eq!(rig.file("token").as_deref(), Some("first"));
    eventually(SOON, "status says so", || rig.agent.status()["health"] == "degraded");
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_last_one_within_it_stays() {
    let limit = "[limits]\nvalue_bytes = \"16KiB\"\n";
    let rig = Rig::start(bed("first"), &[limit, SHORT, VOLUME, TOKEN_FILE]);
    rig.wait_for_file("token");
    rig.bed.vault.put_kv2("shop/web", json!({ "token": "x".repeat(20_000) }));
    let told = || rig.agent.explain(WEB)["entries"][0]["problem"]["message"].to_string();
    eventually(SOON, "the refusal", || told().contains("limits.value_bytes = 16384"));
    assert_eq!(rig.file("token").as_deref(), Some("first"));
    // Refreshed ahead of its time, so for a moment it is still fresh.
    eventually(SOON, "it is stale", || {
        let answer = rig.agent.read(WEB);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.header("x-cache") == Some("STALE")
    });
    let other = "secret/data/shop/large";
    rig.bed.vault.put_kv2("shop/large", json!({ "token": "x".repeat(20_000) }));
    let refused = rig.agent.read(other);
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert!(refused.body.contains("limits.value_bytes"), "{}", refused.body);
}
