//! A testbed with the agent on it, and what these tests read from both.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::agent::Agent;
use crate::support::process::eventually;
use crate::support::testbed::Testbed;

/// How long the agent and Vault may take for something that nothing delays on purpose.
pub const SOON: Duration = Duration::from_secs(10);

/// Longer than any pause the agent makes between attempts: those grow to 30 s, with full jitter.
pub const BACKOFF: Duration = Duration::from_secs(35);

/// Every mount's kind is asked for; host users may read all of them.
const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
log = "trace"

[sources.vault]
kind = "vault"
address = "{vault}"
role = "broker"
token_file = "{dir}/token"
mounts = { kv = "auto", secret = "auto", database = "auto" }

[[grants]]
name = "host"
who = { any_host_user = true }
paths = ["kv/**", "secret/**", "database/**"]
"#;

/// A volume that the agent does not have to mount, and may show all of them; its items follow.
pub const VOLUME: &str = r#"
[[grants]]
name = "files"
who = { volume = "shop" }
paths = ["kv/**", "secret/**", "database/**"]

[[volumes]]
name = "shop"
path = "{volumes}/shop"
tmpfs = "existing"
"#;

/// The database role `shop` as one file.
pub const DATABASE_FILE: &str = r#"
[[volumes.items]]
secret = "database/creds/shop"
path = "database.json"
"#;

/// The agent with its servers. Declared in the order in which they end.
pub struct Rig {
    pub agent: Agent,
    pub bed: Testbed,
    volumes: TempDir,
}

impl Rig {
    /// Starts the agent on `bed` with these additions to the configuration and waits until it is
    /// ready.
    pub fn start(bed: Testbed, more: &[&str]) -> Rig {
        Rig::start_with(bed, more, |config| config)
    }

    /// The same with a last change to the whole text.
    pub fn start_with(bed: Testbed, more: &[&str], change: impl FnOnce(String) -> String) -> Rig {
        let volumes = TempDir::with_prefix_in("volumes-", "/dev/shm").expect("create a directory");
        fs::create_dir(volumes.path().join("shop")).expect("create a directory");
        let path = volumes.path().to_str().expect("a readable path");
        let config = format!("{CONFIG}{}", more.concat());
        let config = config.replace("{vault}", &bed.vault.address).replace("{volumes}", path);
        let agent = Agent::start(bed.dir.path(), &change(config));
        Rig { agent, bed, volumes }
    }

    pub fn volume(&self) -> PathBuf {
        self.volumes.path().join("shop")
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.volume().join(file)
    }

    /// A file of the volume, or nothing while it is not there.
    pub fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    pub fn json_file(&self, name: &str) -> Value {
        let text = self.file(name).unwrap_or_else(|| panic!("{name} is not on the volume"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
    }

    /// Its status follows what it puts on the volume.
    pub fn wait_until_healthy(&self) {
        eventually(SOON, "healthy", || self.agent.status()["health"] == "healthy");
    }

    pub fn wait_for_file(&self, name: &str) {
        eventually(SOON, name, || self.path(name).exists());
    }

    /// What `..status.json` says of one file.
    pub fn item(&self, file: &str) -> Value {
        let status = self.json_file("..status.json");
        let items = status["items"].as_array().expect("items");
        let item = items.iter().find(|item| item["file"] == file);
        item.unwrap_or_else(|| panic!("no item {file}: {status}")).clone()
    }

    /// The only status row of one secret.
    pub fn secret(&self, secret: &str) -> Value {
        let mut rows = self.agent.secrets(secret);
        assert_eq!(rows.len(), 1, "{secret}: {rows:#?}");
        rows.remove(0)
    }

    /// How many requests of the agent reached Vault, refused ones included.
    pub fn requests(&self, path: &str, operation: &str) -> usize {
        let log = self.bed.vault.audit_log();
        log.iter().filter(|entry| is_of_agent(entry, "request", path, operation)).count()
    }

    /// When successful requests of the agent reached Vault, oldest first.
    pub fn succeeded(&self, path: &str, operation: &str) -> Vec<SystemTime> {
        self.times(path, operation, false)
    }

    /// When requests that Vault refused reached it, oldest first.
    pub fn refused(&self, path: &str, operation: &str) -> Vec<SystemTime> {
        self.times(path, operation, true)
    }

    fn times(&self, path: &str, operation: &str, refused: bool) -> Vec<SystemTime> {
        let log = self.bed.vault.audit_log();
        let outcomes = log.iter().filter(|entry| is_of_agent(entry, "response", path, operation));
        let wanted = outcomes.filter(|entry| entry["error"].is_string() == refused);
        let ids: Vec<&Value> = wanted.map(|entry| &entry["request"]["id"]).collect();
        let requests = log.iter().filter(|entry| is_of_agent(entry, "request", path, operation));
        requests.filter(|entry| ids.contains(&&entry["request"]["id"])).map(time).collect()
    }

    /// The sessions that Vault holds for the agent, by accessor.
    pub fn sessions(&self) -> Vec<String> {
        let mut accessors = self.bed.vault.list("auth/token/accessors");
        accessors.retain(|accessor| {
            let body = json!({ "accessor": accessor });
            let found = self.bed.vault.send(
                "PUT",
                "auth/token/lookup-accessor",
                Some(&self.bed.vault.root_token),
                Some(body),
            );
            // One that ended since the list was made is no session either.
            found.body["data"]["path"] == "auth/kubernetes/login"
        });
        accessors
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.agent.process.kill();
        while unmount(self.volume(), UnmountFlags::DETACH).is_ok() {}
        if !std::thread::panicking() {
            let output = self.agent.process.stdout() + &self.agent.process.stderr();
            assert!(!output.contains("hvs."), "a token of Vault's in the agent's output");
            assert!(!output.contains("panicked"), "{}", self.agent.process.stderr());
        }
    }
}

/// Whether an entry of Vault's audit log is about such a request of the agent, not of the harness.
fn is_of_agent(entry: &Value, kind: &str, path: &str, operation: &str) -> bool {
    let request = &entry["request"];
    let agent = request["headers"]["user-agent"][0].as_str().unwrap_or_default();
    entry["type"] == kind
        && agent.starts_with("secrets-broker/")
        && request["path"].as_str().is_some_and(|at| at.starts_with(path))
        && request["operation"] == operation
}

/// When Vault logged an entry.
fn time(entry: &Value) -> SystemTime {
    let text = entry["time"].as_str().expect("time");
    let time: jiff::Timestamp = text.parse().expect("an RFC 3339 time");
    time.into()
}

/// Seconds from one to the other.
pub fn seconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
