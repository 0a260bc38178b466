//! The whole agent as a process over a local source: reload, local leases, leaks and hygiene.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::agent::{Agent, request};
use support::process::{eventually, free_port};

/// Appears in every secret value, so that any leak shows.
const CANARY: &str = "canary-7f3a9c51d2";

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
[cache]
ttl = "1s"
max_stale = "10s"
[policy]
forbid_grace = "6s"
"#;

const GRANTS: &str = r#"
[[grants]]
name = "users"
who = { any_host_user = true }
paths = ["secret/data/**", "database/creds/*"]
"#;

const VOLUME: &str = r#"
[[grants]]
name = "volumes"
who = { volume = "shop" }
paths = ["secret/data/**", "database/creds/*"]
[[volumes]]
name = "shop"
path = "{dir}/volume"
tmpfs = "existing"
[[volumes.items]]
secret = "secret/shop/web"
"#;

/// A directory on tmpfs with a local source in it.
fn playground() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    fs::create_dir(dir.path().join("volume")).expect("the volume's directory");
    let secrets = format!(
        r#"
[mounts.secret]
[mounts.secret.secrets."shop/web"]
token = "{CANARY}"
[mounts.database]
kind = "generated"
[mounts.database.roles.shop]
ttl = "1h"
max_ttl = "2h"
"#
    );
    fs::write(dir.path().join("secrets.toml"), secrets).expect("the local source");
    dir
}

fn start(dir: &Path, parts: &[&str]) -> Agent {
    Agent::start(dir, &parts.concat())
}

fn rewrite(agent: &Agent, parts: &[&str]) {
    let text = parts.concat().replace("{dir}", agent.dir.to_str().expect("a readable path"));
    fs::write(agent.dir.join("broker.toml"), text).expect("the new configuration");
}

#[test]
fn a_reloaded_policy_holds_within_five_seconds_for_sockets_and_files() {
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS, VOLUME]);
    let file = dir.path().join("volume/token");
    eventually(Duration::from_secs(5), "the file is there", || file.exists());
    assert_eq!(agent.read("secret/data/shop/web").status, 200);
    let forbid = r#"
[[grants]]
name = "stop"
effect = "forbid"
who = { any_host_user = true }
paths = ["secret/data/**"]
[[grants]]
name = "stop-volume"
effect = "forbid"
who = { volume = "shop" }
paths = ["secret/data/**"]
"#;
    rewrite(&agent, &[CONFIG, GRANTS, VOLUME, forbid]);
    eventually(Duration::from_secs(5), "the socket denies", || {
        agent.read("secret/data/shop/web").status == 403
    });
    assert!(file.exists(), "the file was not given its grace");
    eventually(Duration::from_secs(10), "the file is removed", || !file.exists());
    rewrite(&agent, &[CONFIG, GRANTS, VOLUME]);
    eventually(Duration::from_secs(8), "the file is back", || file.exists());
}

#[test]
fn a_bad_new_configuration_changes_nothing_and_status_says_so() {
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS]);
    rewrite(&agent, &[CONFIG, "[[grants]]\nname = \"broken\"\n"]);
    eventually(Duration::from_secs(5), "status names the bad file", || {
        agent.command(&["status"]).1.contains("grants[1]")
    });
    assert_eq!(agent.read("secret/data/shop/web").status, 200);
}

#[test]
fn a_local_lease_is_looked_up_renewed_and_revoked_by_its_holder() {
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS]);
    let first = agent.read("database/creds/shop").json();
    let again = agent.read("database/creds/shop").json();
    assert_eq!(first["data"], again["data"]);
    assert_eq!(first["lease_id"], again["lease_id"]);
    let lease = json!({ "lease_id": first["lease_id"] });
    let renewed = agent.host("PUT", "/v1/sys/leases/renew", Some(&lease)).json();
    assert_eq!(renewed["lease_id"], first["lease_id"]);
    assert!(renewed["lease_duration"].as_u64().is_some_and(|n| n > 3500 && n <= 3600));
    assert_eq!(agent.host("PUT", "/v1/sys/leases/revoke", Some(&lease)).status, 204);
    assert_eq!(agent.host("PUT", "/v1/sys/leases/renew", Some(&lease)).status, 400);
    eventually(Duration::from_secs(3), "the credential is let go", || {
        agent.secrets("local:database/creds/shop").is_empty()
    });
    let other = agent.read("database/creds/shop").json();
    assert_ne!(first["data"], other["data"]);
}

#[test]
fn no_value_appears_in_logs_audit_status_metrics_or_errors() {
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS, VOLUME]);
    let answer = agent.read("secret/data/shop/web");
    // The control: the search does find the value where it belongs.
    assert!(answer.body.contains(CANARY));
    let password = agent.read("database/creds/shop").json()["data"]["password"]
        .as_str()
        .expect("a password")
        .to_owned();
    let mut told = vec![
        agent.status().to_string(),
        agent.explain("secret/shop/web").to_string(),
        agent.operator("GET", "/agent/v1/leases", None).body,
        agent.operator("GET", "/agent/v1/metrics", None).body,
        agent.operator("GET", "/v1/secret/data/shop/web", None).body,
        agent.read("secret/data/shop/%2e%2e/web").body,
        agent.read("sys/internal/ui/mounts/secret/shop/web").body,
        agent.host("GET", "/v1/auth/token/lookup-self", None).body,
        agent.command(&["status"]).1,
        agent.command(&["explain", "database/creds/shop"]).1,
    ];
    told.push(fs::read_to_string(dir.path().join("volume/..status.json")).unwrap_or_default());
    told.push(agent.process.stdout());
    told.push(agent.process.stderr());
    for text in told {
        assert!(!text.contains(CANARY) && !text.contains(&password), "leaked into: {text}");
    }
}

/// How often `needle` is in the process's memory; needs root, as the agent is not dumpable.
fn copies_in_memory(pid: u32, needle: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the memory map");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the memory");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (from, to) = (address(from), address(to));
        let mut bytes = vec![0; usize::try_from(to - from).expect("a size")];
        // A region that cannot be read now (a guard page) holds nothing of ours.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            found += bytes.windows(needle.len()).filter(|window| *window == needle).count();
        }
    }
    found
}

#[test]
fn after_eviction_no_copy_of_a_value_is_left_in_the_process() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT ROOT: the agent is not dumpable, so its memory cannot be scanned");
        return;
    }
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS]);
    let answer = agent.read("secret/data/shop/web");
    assert_eq!(answer.status, 200);
    // The control: while it is cached, the scan finds it.
    let cached = copies_in_memory(agent.process.pid(), CANARY.as_bytes());
    assert!(cached >= 1, "the scan does not see the cached value");
    eventually(Duration::from_secs(13), "the entry is evicted", || {
        agent.secrets("local:secret/data/shop/web").is_empty()
    });
    let left = copies_in_memory(agent.process.pid(), CANARY.as_bytes());
    assert_eq!(left, 0, "copies are left after eviction (there were {cached})");
}

#[test]
fn sockets_have_their_modes_and_a_second_agent_does_not_steal_them() {
    use std::os::unix::fs::PermissionsExt;
    let dir = playground();
    let mut agent = start(dir.path(), &[CONFIG, GRANTS]);
    let mode = |path: &str| {
        fs::metadata(dir.path().join(path)).expect("there").permissions().mode() & 0o777
    };
    assert_eq!(mode("run"), 0o755);
    assert_eq!(mode("run/broker.sock"), 0o666);
    assert_eq!(mode("run/operator"), 0o700);
    let mut second = Agent::launch(dir.path(), &[CONFIG, GRANTS].concat());
    let status = second.process.wait_for_exit(Duration::from_secs(10));
    assert!(!status.success(), "a second agent took the sockets over");
    assert_eq!(agent.read("secret/data/shop/web").status, 200);
    agent.stop();
    let socket = agent.host_socket();
    assert!(!socket.exists() && request(&socket, "GET", "/v1/x", None).is_err());
}

#[test]
fn a_body_that_follows_its_head_does_not_end_the_connection_whatever_becomes_of_it() {
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, GRANTS]);
    let head = |method: &str, target: &str, body: usize| {
        format!("{method} {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {body}\r\n\r\n")
    };
    assert_eq!(agent.read("secret/data/shop/web").status, 200);
    // A write, a hit, a path that there is not, what is an operator's, and a body that is too long.
    for (method, target, code, body) in [
        ("POST", "/v1/secret/data/shop/web", "405", 2),
        ("GET", "/v1/secret/data/shop/web", "200", 2),
        ("GET", "/v1/nowhere/data/x", "404", 2),
        ("POST", "/agent/v1/reload", "403", 2),
        ("PUT", "/v1/sys/leases/renew", "413", 64 * 1024 + 2),
        ("GET", "/agent/v1/health/live", "200", 2),
    ] {
        let mut stream = UnixStream::connect(agent.host_socket()).expect("a connection");
        for _ in 0..2 {
            for piece in [head(method, target, body).as_bytes(), &vec![b' '; body - 1], b"}"] {
                stream.write_all(piece).expect("the connection is still there");
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut reply = [0; 4096];
            let length = stream.read(&mut reply).expect("an answer");
            let reply = String::from_utf8_lossy(&reply[..length]);
            assert!(reply.starts_with(&format!("HTTP/1.1 {code} ")), "{method} {target}: {reply}");
        }
    }
}

/// A cap as `status` has it.
fn limit(agent: &Agent, name: &str) -> Value {
    let limits = agent.status()["limits"].as_array().expect("status has limits").clone();
    let found = limits.into_iter().find(|limit| limit["name"] == name);
    found.unwrap_or_else(|| panic!("status has no limit {name}"))
}

#[test]
fn a_callers_cap_that_was_reached_is_in_status_and_metrics() {
    let limits = "[limits]\nconnections_per_user = 8\nrequest_body_bytes = \"1KiB\"\n";
    let dir = playground();
    let agent = start(dir.path(), &[CONFIG, limits, GRANTS]);
    let name = "connections_per_user";
    assert_eq!(limit(&agent, name), json!({ "name": name, "used": null, "cap": 8, "hits": 0 }));
    let held: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(agent.host_socket()).expect("a connection");
            // An answer shows that it has its place.
            stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nhost: a\r\n\r\n").expect("sent");
            assert!(stream.read(&mut [0; 1024]).expect("an answer") > 0);
            stream
        })
        .collect();
    assert_eq!(agent.read("secret/data/shop/web").status, 429);
    assert_eq!(limit(&agent, name), json!({ "name": name, "used": null, "cap": 8, "hits": 1 }));
    // A refused connection may hold its place for a moment, so there are eight or nine.
    let places = limit(&agent, "connections");
    assert!(matches!(places["used"].as_u64(), Some(8 | 9)) && places["hits"] == 0, "{places}");
    let text = agent.operator("GET", "/agent/v1/metrics", None).body;
    for line in [
        r#"secrets_broker_limit_cap{limit="connections_per_user"} 8.0"#,
        r#"secrets_broker_limit_reached{limit="connections_per_user"} 1.0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let table = agent.command(&["status"]).1;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let row = format!("{name} 8 each hit 1x");
    assert!(table.lines().any(|line| words(line) == row), "{table}");
    drop(held);

    let body = json!({ "path": "x".repeat(2000) });
    let refused = agent.operator("POST", "/agent/v1/refresh", Some(&body));
    assert_eq!(refused.status, 413);
    assert_eq!(limit(&agent, "request_body_bytes")["hits"], 1);
}

/// Everything that can be switched on and has a cap. Nobody answers at the addresses.
const ALL_PARTS: &str = r#"
[sockets.metrics]
enabled = true
port = {port}
[csi]
enabled = true
node = "node-1"
kubelet_root = "{dir}/kubelet"
keys_file = "{dir}/keys.json"
issuers = ["https://kubernetes.default.svc"]
api_server = "https://127.0.0.1:1"
api_server_ca_file = "{dir}/ca.pem"
api_server_token_file = "{dir}/token"
[pods]
directory = "apiserver"
[sockets.node]
enabled = true
[placement]
pod_uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
cgroup_root = "/kubepods"
"#;

#[test]
fn the_caps_in_the_documentation_are_those_that_the_agent_shows() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let page = fs::read_to_string(page).expect("the page");
    let rows = page.lines().skip_while(|line| !line.starts_with("| `limit` |")).skip(2);
    // Its name, and whether everybody shares it.
    let documented: BTreeSet<(String, bool)> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|row| {
            let mut cells = row.split('|').skip(1).map(str::trim);
            let name = cells.next().expect("a name").trim_matches('`').to_owned();
            (name, cells.next().expect("whose it is") == "all")
        })
        .collect();
    assert!(documented.len() > 20, "{documented:?}");

    let dir = playground();
    fs::write(dir.path().join("keys.json"), r#"{"keys":[]}"#).expect("the cluster's keys");
    fs::create_dir_all(dir.path().join("kubelet/plugins_registry")).expect("the kubelet's");
    let parts = ALL_PARTS.replace("{port}", &free_port().to_string());
    let agent = start(dir.path(), &[CONFIG, &parts, GRANTS]);
    let shown = || -> BTreeSet<(String, bool)> {
        let limits = agent.status()["limits"].as_array().expect("status has limits").clone();
        let row = |limit: &Value| {
            let name = limit["name"].as_str().expect("a name").to_owned();
            (name, limit["used"].is_u64())
        };
        limits.iter().map(row).collect()
    };
    eventually(Duration::from_secs(10), "the parts that start last show theirs", || {
        let shown = shown();
        ["metrics_connections", "volume_bytes_total"]
            .iter()
            .all(|name| shown.contains(&((*name).to_owned(), true)))
    });
    assert_eq!(shown(), documented);
    let text = agent.operator("GET", "/agent/v1/metrics", None).body;
    for (metric, shared_only) in [("used", true), ("cap", false), ("reached", false)] {
        for (name, shared) in &documented {
            let series = format!("secrets_broker_limit_{metric}{{limit=\"{name}\"}} ");
            assert_eq!(text.contains(&series), *shared || !shared_only, "{series}");
        }
    }
}

#[test]
fn reads_on_new_connections_are_decided_once_and_recorded_in_one_line() {
    let dir = playground();
    let mut agent = start(dir.path(), &[CONFIG, GRANTS]);
    let closed = r#"secrets_broker_connections{socket="host"} 0"#;
    for _ in 0..3 {
        assert_eq!(agent.read("secret/data/shop/web").status, 200);
        eventually(Duration::from_secs(10), "the connection is over", || {
            agent.operator("GET", "/agent/v1/metrics", None).body.contains(closed)
        });
    }
    agent.stop();
    let lines = agent.audit();
    let lines =
        |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(lines("decision").len(), 1);
    let served: Vec<_> = lines("served").iter().map(|line| line["served"].clone()).collect();
    assert_eq!(served, [3]);
}
