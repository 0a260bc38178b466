//! The dev mode driven as a user would: the printed commands are pasted, the credential is watched
//! through renewals and a replacement, and nothing is left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running `secrets-broker dev` and what it printed for pasting.
struct Dev {
    child: Child,
    commands: Vec<String>,
    dir: PathBuf,
}

impl Dev {
    fn start() -> Dev {
        let mut child = Command::new(env!("CARGO_BIN_EXE_secrets-broker"))
            .arg("dev")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start dev");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut commands = Vec::new();
        for line in lines.by_ref() {
            let line = line.expect("dev prints text");
            match line.strip_prefix("  ") {
                Some(command) => commands.push(command.to_owned()),
                None if !commands.is_empty() => break,
                None => {}
            }
        }
        // Somebody must read on, or the table would end with its reader.
        std::thread::spawn(move || lines.for_each(drop));
        let volume = commands[0].strip_prefix("cat ").expect("the first command shows a file");
        let dir = Path::new(volume).ancestors().nth(2).expect("in the volume").to_owned();
        let dev = Dev { child, commands, dir };
        dev.wait("the volume is filled", || dev.dir.join("volume/database.json").exists());
        dev
    }

    fn wait(&self, what: &str, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ready() {
            assert!(Instant::now() < deadline, "{what}: not within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn status(&self) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_secrets-broker"))
            .args(["status", "-o", "json", "--socket"])
            .arg(self.dir.join("run/operator/operator.sock"))
            .output()
            .expect("run status");
        serde_json::from_slice(&output.stdout).expect("status is JSON")
    }

    /// The volume's credential: renewals so far and the moments of its lease.
    fn lease(&self) -> Value {
        let status = self.status();
        let rows = status["secrets"].as_array().expect("secrets");
        let mine = |row: &&Value| {
            row["secret"] == "dev:database/creds/shop" && row["consumer"] == "volume:shop"
        };
        rows.iter().find(mine).expect("the volume's credential")["lease"].clone()
    }

    fn interrupt(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, Signal::INT).expect("interrupt dev");
        let status = self.child.wait().expect("dev ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn file(dir: &Path) -> (String, String) {
    let text = fs::read_to_string(dir.join("volume/database.json")).expect("the file is there");
    let value: Value = serde_json::from_str(&text).expect("the file is whole");
    let part = |key: &str| value[key].as_str().expect("a string").to_owned();
    (part("username"), part("password"))
}

#[test]
fn the_printed_commands_work_when_pasted_and_nothing_is_left_behind() {
    let mut dev = Dev::start();
    assert!(dev.commands.len() >= 8, "{:?}", dev.commands);
    let script = dev.commands.join("\n");
    let output = Command::new("bash").args(["-euc", &script]).output().expect("run the commands");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for expected in [
        "change-me-in-secrets.toml",
        r#""username":"#,
        r#""lease_id":"database/creds/shop/"#,
        "healthy",
        "by rule dev-volume",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
    let changed = || {
        fs::read_to_string(dev.dir.join("volume/api_key")).is_ok_and(|key| key.contains("changed-"))
    };
    dev.wait("the edited secret reaches the file", changed);
    dev.interrupt();
    assert!(!dev.dir.exists(), "{} is left", dev.dir.display());
}

#[test]
fn the_credential_is_renewed_at_70_to_75_percent_then_replaced_without_a_gap() {
    let mut dev = Dev::start();
    let first = file(&dev.dir);
    let started = Instant::now();
    let mut renewals: Vec<(u64, Duration)> = Vec::new();
    let mut replaced = None;
    let mut seen = 0;
    while replaced.is_none() && started.elapsed() < Duration::from_secs(70) {
        let now = file(&dev.dir);
        if now != first {
            replaced = Some(started.elapsed());
            break;
        }
        let count = dev.lease()["renewals"].as_u64().unwrap_or(0);
        if count > seen {
            seen = count;
            renewals.push((count, started.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // 20 s leases up to 1 minute: three renewals at 14-15 s each, the third one granted short.
    let gaps: Vec<Duration> = std::iter::once(Duration::ZERO)
        .chain(renewals.iter().map(|(_, at)| *at))
        .collect::<Vec<_>>()
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(renewals.len() >= 2, "{renewals:?}");
    for gap in &gaps {
        let low = Duration::from_millis(13_000);
        assert!(*gap > low && *gap < Duration::from_millis(16_500), "{gaps:?}");
    }
    let replaced = replaced.expect("replaced near its maximum TTL");
    assert!(replaced > Duration::from_secs(40) && replaced < Duration::from_secs(61));
    dev.interrupt();
}
