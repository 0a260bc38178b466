//! The way to Vault: which authority is believed, and what a wrong one or a bad token file at the
//! start is told as.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::rig::{BACKOFF, Rig, SOON, VOLUME};
use crate::support::certificates::issue;
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

const WEB: &str = "secret/data/shop/web";
const WEB_FILE: &str = "
[[volumes.items]]
secret = \"secret/shop/web\"
path = \"web.json\"
";

fn bed_with_tls() -> Testbed {
    let bed = Testbed::start_tls();
    bed.vault.put_kv2("shop/web", json!({ "colour": "blue" }));
    bed
}

/// The agent with these settings in its source.
fn start(bed: Testbed, settings: &str) -> Rig {
    let settings = format!("role = \"broker\"\n{settings}");
    Rig::start_with(bed, &[VOLUME, WEB_FILE], |config| {
        config.replace("role = \"broker\"\n", &settings)
    })
}

fn ca_file(path: &Path) -> String {
    format!("ca_file = \"{}\"\n", path.display())
}

#[test]
fn vault_is_believed_under_its_own_authority_by_address_or_by_name() {
    let bed = bed_with_tls();
    let settings = ca_file(bed.vault.ca_file()) + "server_name = \"localhost\"\n";
    let rig = start(bed, &settings);
    rig.wait_for_file("web.json");
    assert_eq!(rig.agent.read(WEB).status, 200);
    assert_eq!(rig.requests(WEB, "read"), 1);
}

/// Nothing is sent; the reader, the file's status and the operator are told why.
fn is_refused(rig: &Rig, words: &[&str]) {
    let answer = rig.agent.read(WEB);
    assert_eq!(answer.status, 503, "{}", answer.body);
    for word in words {
        assert!(answer.body.contains(word), "{word}: {}", answer.body);
    }
    eventually(SOON, "degraded", || rig.agent.status()["health"] == "degraded");
    let status = rig.agent.status();
    assert!(words.iter().all(|word| status["causes"].to_string().contains(word)), "{status:#}");
    assert_eq!(rig.agent.command(&["status"]).0, 1);
    assert!(!rig.path("web.json").exists());
    assert_eq!(rig.requests("", "update") + rig.requests("", "read"), 0);
}

#[test]
fn a_vault_under_another_authority_is_told_nothing() {
    let bed = bed_with_tls();
    let stranger = issue(bed.dir.path(), &["127.0.0.1"]);
    let rig = start(bed, &ca_file(&stranger.ca));
    is_refused(&rig, &["cannot connect to Vault", "certificate"]);
}

#[test]
fn a_vault_whose_certificate_has_another_name_is_told_nothing() {
    let bed = bed_with_tls();
    let settings = ca_file(bed.vault.ca_file()) + "server_name = \"vault.example.com\"\n";
    let rig = start(bed, &settings);
    is_refused(&rig, &["cannot connect to Vault", "vault.example.com"]);
}

#[test]
fn an_agent_that_starts_while_vault_is_away_is_ready_and_fills_the_volume_later() {
    let mut bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "colour": "blue" }));
    bed.vault.stop();
    let mut rig = Rig::start(bed, &[VOLUME, WEB_FILE]);
    assert_eq!(rig.agent.read(WEB).status, 503);
    assert_eq!(rig.agent.operator("GET", "/agent/v1/health/ready", None).status, 200);
    rig.bed.vault.start_again();
    eventually(BACKOFF, "the file", || rig.path("web.json").exists());
    assert_eq!(rig.agent.read(WEB).status, 200);
}

#[test]
fn an_agent_without_a_usable_token_file_says_so_and_begins_when_there_is_one() {
    let bed = Testbed::start();
    bed.vault.put_kv2("shop/web", json!({ "colour": "blue" }));
    let token = fs::read_to_string(&bed.token_file).expect("read the token");
    fs::write(&bed.token_file, format!("{token}\n")).expect("write the file");
    let rig = Rig::start(bed, &[VOLUME, WEB_FILE]);
    let answer = rig.agent.read(WEB);
    assert_eq!(answer.status, 503, "{}", answer.body);
    for word in ["token_file", "line end", "write the token alone into it"] {
        assert!(answer.body.contains(word), "{}", answer.body);
    }
    assert!(!answer.body.contains(&token));
    rig.bed.rotate_token();
    eventually(BACKOFF, "the file", || rig.path("web.json").exists());
}
