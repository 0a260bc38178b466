//! The hold: a policy that would take secrets from many volumes waits for an operator.

#[path = "support/fake_vault.rs"]
mod fake_vault;
mod support;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use fake_vault::{Answer, FakeVault};
use serde_json::{Value, json};
use support::agent::{Agent, request};
use support::process::eventually;

/// How long a reload may take to show.
const SOON: Duration = Duration::from_secs(5);

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
[sockets.operator]
path = "{dir}/run/operator/operator.sock"
[sockets.host]
path = "{dir}/run/broker.sock"
[policy]
forbid_grace = "1s"
"#;

/// A grant for each of the volumes, and the volumes.
fn config(granted: &[&str]) -> String {
    let mut text = CONFIG.to_owned();
    for name in granted {
        text += &format!(
            "[[grants]]\nname = \"{name}\"\nwho = {{ volume = \"{name}\" }}\n\
             paths = [\"secret/data/shop/*\"]\n"
        );
    }
    for name in VOLUMES {
        text += &format!(
            "[[volumes]]\nname = \"{name}\"\npath = \"{{dir}}/{name}\"\ntmpfs = \"existing\"\n\
             [[volumes.items]]\nsecret = \"secret/shop/web\"\n"
        );
    }
    text
}

const VOLUMES: [&str; 4] = ["a", "b", "c", "d"];

/// An agent whose four volumes have their files.
fn running() -> (tempfile::TempDir, Agent) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    for name in VOLUMES {
        fs::create_dir(dir.path().join(name)).expect("a volume's directory");
    }
    let secrets = "[mounts.secret]\n[mounts.secret.secrets.\"shop/web\"]\ntoken = \"t\"\n";
    fs::write(dir.path().join("secrets.toml"), secrets).expect("the local source");
    let agent = Agent::start(dir.path(), &config(&VOLUMES));
    eventually(SOON, "every volume has its file", || VOLUMES.iter().all(|v| has_file(&agent, v)));
    (dir, agent)
}

fn has_file(agent: &Agent, volume: &str) -> bool {
    agent.dir.join(volume).join("token").exists()
}

fn rewrite(agent: &Agent, text: &str) {
    let text = text.replace("{dir}", agent.dir.to_str().expect("a readable path"));
    // In one step, as whoever edits a live configuration should.
    let new = agent.dir.join("broker.toml.new");
    fs::write(&new, text).expect("the new configuration");
    fs::rename(new, agent.dir.join("broker.toml")).expect("the new configuration in place");
}

/// What the metric says, and whether status speaks of a hold.
fn held(agent: &Agent) -> (String, bool) {
    let metrics = agent.operator("GET", "/agent/v1/metrics", None).body;
    let line = metrics.lines().find(|line| line.starts_with("secrets_broker_policy_held_volumes "));
    let value = line.and_then(|line| line.split(' ').nth(1)).expect("the metric").to_owned();
    (value, agent.command(&["status"]).1.contains("held"))
}

/// Waits for a line of the audit log, which may be written after the reply.
fn wait_for_audit(agent: &Agent, what: &str) {
    let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.contains(what));
    eventually(SOON, what, || agent.audit().iter().any(said));
}

#[test]
fn a_policy_that_would_empty_many_volumes_waits_until_it_is_accepted() {
    let (_dir, agent) = running();
    rewrite(&agent, &config(&["a"]));
    eventually(SOON, "the policy is held", || held(&agent) == ("3".to_owned(), true));
    let status = agent.command(&["status"]);
    assert_eq!(status.0, 1, "{}", status.1);
    let loss = "3 of 4 volumes would lose secrets: volume b: local:secret/data/shop/web \
                (no rule permits it)";
    assert!(status.1.contains(loss), "{}", status.1);
    assert!(status.1.contains("secrets-broker reload --accept"), "{}", status.1);
    // Asking again changes nothing and says all of it.
    let (code, text) = agent.command(&["reload"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("held, the old policy stays in force: 3 of 4 volumes"), "{text}");
    assert_eq!(text.matches("  volume ").count(), 3, "{text}");
    wait_for_audit(&agent, "changed policy held (3 of 4 volumes would lose secrets");
    // Longer than forbid_grace.
    std::thread::sleep(Duration::from_secs(2));
    assert!(VOLUMES.iter().all(|volume| has_file(&agent, volume)), "a file was taken away");

    let (code, text) = agent.command(&["reload", "--accept"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("is in force; 3 of 4 volumes lose secrets by it:"), "{text}");
    eventually(SOON, "the files are gone", || {
        VOLUMES[1..].iter().all(|volume| !has_file(&agent, volume))
    });
    assert!(has_file(&agent, "a"));
    assert_eq!(held(&agent).0, "0");
    wait_for_audit(&agent, "held policy accepted by an operator");
}

#[test]
fn a_hold_ends_with_a_harmless_configuration_and_covers_what_the_held_one_would_add() {
    let (_dir, agent) = running();
    let users = "[[grants]]\nname = \"users\"\nwho = { any_host_user = true }\n\
                 paths = [\"secret/data/shop/*\"]\n";
    rewrite(&agent, &(config(&["a", "b"]) + users));
    eventually(SOON, "the policy is held", || held(&agent).0 == "2");
    assert_eq!(agent.read("secret/data/shop/web").status, 403, "half of a held policy counts");
    rewrite(&agent, &(config(&VOLUMES) + users));
    eventually(SOON, "the new policy is in force", || {
        agent.read("secret/data/shop/web").status == 200
    });
    assert_eq!(held(&agent), ("0".to_owned(), false));
    assert!(VOLUMES.iter().all(|volume| has_file(&agent, volume)));
}

#[test]
fn a_held_policy_gives_way_to_a_bad_file_and_one_volume_is_never_held() {
    let (_dir, agent) = running();
    rewrite(&agent, &config(&[]));
    eventually(SOON, "the policy is held", || held(&agent).0 == "4");
    rewrite(&agent, &(config(&VOLUMES) + "[[grants]]\nname = \"broken\"\n"));
    eventually(SOON, "the bad file is refused", || held(&agent).0 == "0");
    let (code, text) = agent.command(&["reload", "--accept"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("refused, the old policy stays in force:"), "{text}");
    assert!(text.contains("broker.toml") && text.contains("grants[5]"), "{text}");
    rewrite(&agent, &config(&["a", "b", "c"]));
    eventually(SOON, "the one volume loses its file", || !has_file(&agent, "d"));
    assert_eq!(held(&agent).0, "0");
}

#[test]
fn the_share_is_configured_and_the_one_in_force_judges_a_change_of_itself() {
    let (_dir, agent) = running();
    let lenient =
        |granted: &[&str]| config(granted).replace("[policy]", "[policy]\nhold_percent = 50");
    // Two of four are more than the tenth that is in force.
    rewrite(&agent, &lenient(&["a", "b"]));
    eventually(SOON, "the policy is held", || held(&agent).0 == "2");
    rewrite(&agent, &lenient(&VOLUMES));
    eventually(SOON, "the new share is in force", || held(&agent).0 == "0");
    rewrite(&agent, &lenient(&["a", "b"]));
    eventually(SOON, "half of the volumes lose their files", || !has_file(&agent, "c"));
    assert!(has_file(&agent, "a"));
}

#[test]
fn only_operators_reload() {
    let (_dir, agent) = running();
    let body = json!({ "accept": true });
    let host = |method: &str| agent.host(method, "/agent/v1/reload", Some(&body)).status;
    assert_eq!(host("POST"), 403);
    assert_eq!(host("GET"), 405);
    let bad = json!({ "force": true });
    assert_eq!(agent.operator("POST", "/agent/v1/reload", Some(&bad)).status, 400);
    let good = request(&agent.operator_socket(), "POST", "/agent/v1/reload", Some(&body));
    assert_eq!(good.expect("an answer").json()["outcome"], "in-force");
    assert!(Path::new(&agent.host_socket()).exists());
}

const VAULT: &str = r#"
[agent]
runtime_dir = "{dir}/run"
[sources.vault]
kind = "vault"
address = "{vault}"
role = "agent"
token_file = "{dir}/token"
mounts = { secret = "kv2" }
"#;
const GRANT: &str = r#"
[[grants]]
name = "users"
who = { any_host_user = true }
paths = ["secret/data/shop/*"]
"#;

/// Goal: a value that Vault takes its time with is not given to who lost the right meanwhile, and
/// is to whoever still has it. Method: a reload while Vault has the question.
#[test]
fn who_lost_a_right_while_vault_was_asked_is_not_given_what_it_brings() {
    for (grants, status) in [("", 403), (GRANT, 200)] {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        fs::write(dir.path().join("token"), "eyJhbGciOiJub25lIn0.e30.c2ln").expect("the token");
        let (asks, asked) = mpsc::sync_channel(1);
        let (answer, answers) = mpsc::sync_channel(1);
        let vault = FakeVault::with_model(move |request| match request.target.as_str() {
            "/v1/auth/kubernetes/login" => Answer::auth("hvs.agent", 3600),
            "/v1/secret/data/shop/web" => {
                asks.send(()).expect("the test waits for this");
                answers.recv_timeout(SOON).expect("the reload is over");
                let metadata = json!({ "version": 1, "created_time": "2027-01-15T08:00:00Z",
                    "deletion_time": "", "destroyed": false, "custom_metadata": null });
                Answer::envelope(
                    json!({ "data": { "data": { "token": "t" }, "metadata": metadata } }),
                )
            }
            _ => Answer::errors(404, &[]),
        });
        let config = VAULT.replace("{vault}", &vault.url());
        let agent = Agent::start(dir.path(), &[&config, GRANT].concat());
        let answered = std::thread::scope(|scope| {
            let reading = scope.spawn(|| agent.read("secret/data/shop/web"));
            asked.recv_timeout(SOON).expect("Vault is asked");
            // A line more: what is the same is no change.
            rewrite(&agent, &[&config, grants, "\n"].concat());
            let (code, text) = agent.command(&["reload"]);
            assert_eq!(code, 0, "{text}");
            answer.send(()).expect("Vault waits for this");
            reading.join().expect("an answer")
        });
        assert_eq!(answered.status, status, "{}", answered.body);
    }
}
