//! Resident memory of the agent, idle and with 10 000 cached secrets of 1 KiB.
//!
//! The release binary is asked for each secret once over its socket, and `VmRSS` is read from
//! `/proc`. Two sources: a Vault (scripted, in this process), where the agent holds the cache only,
//! and a local file, whose values the agent also holds encrypted. Target: under 20 MiB idle, under
//! 60 MiB with 10 000 secrets.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde_json::json;

use crate::fake_vault::{Answer, FakeVault};
use crate::reader::Reader;
use crate::report;
use crate::resident::Memory;
use crate::support::agent::Agent;

const SECRETS: usize = 10_000;
const SECRET_BYTES: usize = 1024;
const IDLE_MOST: f64 = 20.0;
const FULL_MOST: f64 = 60.0;
/// After the last read, for what the agent does in the background.
const PAUSE: Duration = Duration::from_millis(500);
/// How often and how long a reader waits for the audit log.
const LATER_MAX: usize = 50;
const LATER: Duration = Duration::from_millis(100);
const CONFIG: &str = r#"
[audit]
lines_per_second_per_caller = 1000000
[agent]
runtime_dir = "{dir}/run"
log = "warn"
[cache]
ttl = "1h"
[limits]
requests_per_second_per_user = 1000000
upstream_per_second = 1000000
[[grants]]
name = "bench"
who = { any_host_user = true }
paths = ["secret/data/shop/*"]
"#;
const LOCAL: &str = r#"
[sources.local]
kind = "local"
file = "{dir}/secrets.toml"
"#;

/// Prints the tables.
pub fn run() -> io::Result<()> {
    let mut rows = Vec::new();
    for (source, secrets) in [("Vault", 1), ("Vault", SECRETS), ("local", 1), ("local", SECRETS)] {
        let dir = tempfile::TempDir::with_prefix("bench-")?;
        let vault = (source == "Vault").then(|| scripted(secrets));
        let upstream = match &vault {
            Some(vault) => vault_config(dir.path(), &vault.url())?,
            None => {
                fs::write(dir.path().join("secrets.toml"), local_file(secrets))?;
                LOCAL.to_owned()
            }
        };
        let agent = Agent::start(dir.path(), &format!("{CONFIG}{upstream}"));
        if secrets == 1 {
            std::thread::sleep(PAUSE);
            rows.push(row(source, "0", IDLE_MOST, Memory::of(agent_pid(&agent))?));
            continue;
        }
        read_all(&agent, secrets)?;
        std::thread::sleep(PAUSE);
        let cached = format!("{secrets} × {SECRET_BYTES} bytes");
        rows.push(row(source, &cached, FULL_MOST, Memory::of(agent_pid(&agent))?));
        check_status(&agent, secrets);
        let cached = format!("{cached}, after status");
        rows.push(row(source, &cached, FULL_MOST, Memory::of(agent_pid(&agent))?));
    }
    let columns = ["source", "cached", "RSS", "anonymous", "program", "peak", "target"];
    report::print("Memory of the agent, MiB", columns, &rows);
    Ok(())
}

fn row(source: &str, cached: &str, most: f64, memory: Memory) -> [String; 7] {
    let mebibytes = |kibibytes: f64| format!("{:.1}", kibibytes / 1024.0);
    [
        source.to_owned(),
        cached.to_owned(),
        mebibytes(memory.resident),
        mebibytes(memory.anonymous),
        mebibytes(memory.file),
        mebibytes(memory.peak),
        report::verdict(format!("< {most}"), memory.resident / 1024.0 < most),
    ]
}

/// The child was started through `setpriv`, which became the agent.
fn agent_pid(agent: &Agent) -> u32 {
    agent.process.pid()
}

fn path(number: usize) -> String {
    format!("secret/data/shop/app-{number:05}")
}

/// A value that makes the secret's JSON object as long as it is to be.
fn password(number: usize) -> String {
    let length = SECRET_BYTES - r#"{"password":""}"#.len();
    format!("{number:0>length$}")
}

fn read_all(agent: &Agent, secrets: usize) -> io::Result<()> {
    let mut reader = Reader::connect(&agent.host_socket(), Duration::from_secs(10))?;
    // Twice: afterwards everything is known to come from the cache.
    for _ in 0..2 {
        for number in 0..secrets {
            let (status, body) = read_when_recorded(&mut reader, number)?;
            assert_eq!(status, 200, "{}: {body}", path(number));
            assert!(body.contains(&password(number)), "another secret's value");
        }
    }
    Ok(())
}

/// A caller in such a hurry outruns the audit log on a busy machine, and is told to come again.
fn read_when_recorded(reader: &mut Reader, number: usize) -> io::Result<(u16, String)> {
    let mut answer = reader.read(&path(number))?;
    for _ in 0..LATER_MAX {
        if answer.0 != 503 {
            break;
        }
        std::thread::sleep(LATER);
        answer = reader.read(&path(number))?;
    }
    Ok(answer)
}

/// Operators look; the report on that many secrets is by far the largest reply there is.
fn check_status(agent: &Agent, secrets: usize) {
    for _ in 0..3 {
        let cached = agent.status()["secrets"].as_array().map_or(0, Vec::len);
        assert!(cached >= secrets, "only {cached} of {secrets} are cached");
    }
    std::thread::sleep(PAUSE);
}

fn scripted(secrets: usize) -> FakeVault {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::auth("hvs.bench", 3600));
    for number in 0..secrets {
        let data = json!({
            "data": { "password": password(number) },
            "metadata": {
                "created_time": "2026-01-01T00:00:00.000000000Z", "custom_metadata": null,
                "deletion_time": "", "destroyed": false, "version": 1,
            },
        });
        let answer = Answer::envelope(json!({ "data": data }));
        vault.answer("GET", &format!("/v1/{}", path(number)), answer);
    }
    vault
}

fn vault_config(dir: &Path, url: &str) -> io::Result<String> {
    let token = dir.join("token");
    fs::write(&token, "header.payload.signature")?;
    Ok(format!(
        "[sources.vault]\nkind = \"vault\"\naddress = \"{url}\"\nrole = \"broker\"\n\
         token_file = \"{}\"\n[sources.vault.mounts]\nsecret = \"kv2\"\n",
        token.display()
    ))
}

fn local_file(secrets: usize) -> String {
    let mut text = "[mounts.secret.secrets]\n".to_owned();
    for number in 0..secrets {
        let name = path(number).replace("secret/data/", "");
        writeln!(text, "\"{name}\" = {{ password = \"{}\" }}", password(number))
            .expect("a string takes every line");
    }
    text
}
