//! From process start to the first secret, against a bare `curl` of the same secret.
//!
//! The agent is started, and its socket asked until it gives a KV secret from a Vault that is
//! already up; each time with a new directory. In turns with it, `curl` reads the same secret from
//! Vault itself with a token it is given. The Vault is the real one where
//! `SECRETS_BROKER_TEST_SERVERS` says where it is, otherwise a scripted one in this process.
//! Target: under 100 ms.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use serde_json::json;

use crate::fake_vault::{Answer, FakeVault};
use crate::reader::Reader;
use crate::report::{self, median, verdict};
use crate::support::agent::Agent;
use crate::support::testbed::Testbed;

const FIRST_SECRET_MOST: f64 = 100.0;
const STARTS: usize = 15;
const POLL: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(10);
const PATH: &str = "secret/data/shop/web";
const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"
log = "warn"
[[grants]]
name = "bench"
who = { any_host_user = true }
paths = ["secret/data/shop/*"]
"#;

/// A Vault that is up and holds the secret.
struct Upstream {
    what: &'static str,
    config: String,
    address: String,
    token: String,
    _server: Server,
}

/// Ends with the upstream.
enum Server {
    Scripted { _vault: FakeVault, _dir: tempfile::TempDir },
    Real { _testbed: Box<Testbed> },
}

/// Prints the tables.
pub fn run() -> io::Result<()> {
    let upstream = match env::var_os("SECRETS_BROKER_TEST_SERVERS") {
        Some(_) => real(),
        None => scripted()?,
    };
    let mut rounds = Vec::new();
    for _ in 0..STARTS {
        rounds.push((agent(&upstream)?, curl(&upstream)?));
    }
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let ours = median(rounds.iter().map(|(agent, _)| millis(agent.secret)));
    let socket = median(rounds.iter().map(|(agent, _)| millis(agent.socket)));
    let worst = rounds.iter().map(|(agent, _)| millis(agent.secret)).fold(0.0, f64::max);
    let bare = median(rounds.iter().map(|(_, curl)| millis(*curl)));
    let ratio = median(rounds.iter().map(|(agent, curl)| millis(agent.secret) / millis(*curl)));
    let target = verdict(format!("< {FIRST_SECRET_MOST} ms"), ours < FIRST_SECRET_MOST);
    let columns = ["upstream", "socket", "first secret", "worst", "curl", "ratio", "target"];
    let row = [
        upstream.what.to_owned(),
        format!("{socket:.1}"),
        format!("{ours:.1}"),
        format!("{worst:.1}"),
        format!("{bare:.1}"),
        format!("{ratio:.1}"),
        target,
    ];
    report::print("Process start to first secret, ms", columns, &[row]);
    Ok(())
}

/// What a start took, from just before it.
struct Started {
    socket: Duration,
    secret: Duration,
}

fn agent(upstream: &Upstream) -> io::Result<Started> {
    let dir = tempfile::TempDir::with_prefix("bench-")?;
    let started = Instant::now();
    let mut agent = Agent::launch(dir.path(), &format!("{CONFIG}{}", upstream.config));
    let socket = agent.host_socket();
    let mut reader = loop {
        if let Ok(reader) = Reader::connect(&socket, PATIENCE) {
            break reader;
        }
        check(&mut agent, started)?;
        sleep(POLL);
    };
    let connected = started.elapsed();
    loop {
        let (status, body) = reader.read(PATH)?;
        if status == 200 {
            assert!(body.contains("correct-horse"), "the secret itself");
            break;
        }
        check(&mut agent, started)?;
        sleep(POLL);
    }
    let secret = started.elapsed();
    agent.stop();
    Ok(Started { socket: connected, secret })
}

fn check(agent: &mut Agent, started: Instant) -> io::Result<()> {
    if started.elapsed() < PATIENCE && agent.process.exit_status().is_none() {
        return Ok(());
    }
    Err(io::Error::other(format!("the agent gives no secret: {}", agent.process.stderr())))
}

fn curl(upstream: &Upstream) -> io::Result<Duration> {
    let started = Instant::now();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--header"])
        .arg(format!("X-Vault-Token: {}", upstream.token))
        .arg(format!("{}/v1/{PATH}", upstream.address))
        .stderr(Stdio::inherit())
        .output()?;
    let took = started.elapsed();
    assert!(output.status.success(), "curl: {}", output.status);
    assert!(String::from_utf8_lossy(&output.stdout).contains("correct-horse"), "the secret itself");
    Ok(took)
}

fn scripted() -> io::Result<Upstream> {
    let vault = FakeVault::start();
    vault.answer("POST", "/v1/auth/kubernetes/login", Answer::auth("hvs.bench", 3600));
    let data = json!({ "data": { "password": "correct-horse" }, "metadata": { "version": 1 } });
    vault.answer("GET", &format!("/v1/{PATH}"), Answer::envelope(json!({ "data": data })));
    let dir = tempfile::TempDir::with_prefix("bench-")?;
    let token_file = dir.path().join("token");
    fs::write(&token_file, "header.payload.signature")?;
    Ok(Upstream {
        what: "scripted Vault",
        config: config(&vault.url(), &token_file),
        address: vault.url(),
        token: "hvs.bench".to_owned(),
        _server: Server::Scripted { _vault: vault, _dir: dir },
    })
}

fn real() -> Upstream {
    let testbed = Testbed::start();
    testbed.vault.put_kv2("shop/web", json!({ "password": "correct-horse" }));
    Upstream {
        what: "Vault",
        config: config(&testbed.vault.address, &testbed.token_file),
        address: testbed.vault.address.clone(),
        token: testbed.vault.root_token.clone(),
        _server: Server::Real { _testbed: Box::new(testbed) },
    }
}

fn config(address: &str, token_file: &Path) -> String {
    format!(
        "[sources.vault]\nkind = \"vault\"\naddress = \"{address}\"\nrole = \"broker\"\n\
         token_file = \"{}\"\n[sources.vault.mounts]\nsecret = \"kv2\"\n",
        token_file.display()
    )
}
