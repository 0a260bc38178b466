//! The audit log of the real agent, verified by the real command: crashes, rotation, two agents.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::agent::{Agent, request};
use support::process::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// A directory for a log, its anchor and some agents.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["log", "evidence"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        Self { dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log/audit.jsonl")
    }

    fn anchor(&self) -> PathBuf {
        self.dir.path().join("evidence/audit.anchor")
    }

    /// Starts an agent of this name that appends to the one log.
    fn agent(&self, name: &str) -> Agent {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).expect("the agent's directory");
        fs::write(dir.join("secrets.toml"), "[mounts.secret]\n").expect("the local source");
        let config = format!(
            r#"
[agent]
runtime_dir = "{{dir}}/run"
[sources.local]
kind = "local"
file = "{{dir}}/secrets.toml"
[audit]
output = "{}"
anchor = "{}"
[[grants]]
name = "users"
who = {{ any_host_user = true }}
paths = ["secret/data/**"]
"#,
            self.log().display(),
            self.anchor().display()
        );
        Agent::start(&dir, &config)
    }

    fn lines(&self) -> usize {
        fs::read_to_string(self.log()).map_or(0, |text| text.lines().count())
    }

    /// Decisions are queued: those of a busy agent may be written after the next ones are made.
    fn wait_for_decisions(&self, count: usize) {
        let written = || fs::read_to_string(self.log()).unwrap_or_default();
        eventually(PATIENCE, "the decisions are written", || {
            written().matches(r#""event":"decision""#).count() >= count
        });
    }

    fn rotate(&self, agents: &[&Agent]) -> PathBuf {
        let old = self.dir.path().join("log/audit.jsonl.1");
        fs::rename(self.log(), &old).expect("rename the log");
        // Each says how far the old file goes when it has the new one.
        let checkpoints = || fs::read_to_string(self.anchor()).map_or(0, |t| t.lines().count());
        let before = checkpoints();
        agents.iter().for_each(|agent| agent.process.signal(Signal::HUP));
        eventually(PATIENCE, "the new file is in use", || {
            checkpoints() >= before + agents.len() && self.log().exists()
        });
        old
    }
}

/// Makes some decisions: paths that nobody has.
fn ask(agent: &Agent, from: usize, count: usize) {
    for number in from..from + count {
        assert_eq!(agent.read(&format!("secret/data/none/{number}")).status, 404);
    }
}

fn verify(arguments: &[&Path]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_secrets-broker"))
        .args(["audit", "verify", "-o", "json"])
        .args(arguments)
        .output()
        .expect("run the binary");
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("an exit code"), report)
}

fn anchored<'a>(anchor: &'a Path, files: &[&'a Path]) -> Vec<&'a Path> {
    [&[Path::new("--anchor"), anchor], files].concat()
}

/// Goal: whatever a crash leaves is no tampering. Method: `kill -9` at any moment while decisions
/// are written, several times into one file; then the last line is cut, as a power failure does.
#[test]
fn an_agent_killed_while_it_writes_leaves_an_intact_log() {
    let place = Place::new();
    let (log, anchor) = (place.log(), place.anchor());
    for round in 0..4_usize {
        let mut agent = place.agent("one");
        let socket = agent.host_socket();
        let before = place.lines();
        std::thread::scope(|scope| {
            for client in 0..3 {
                let socket = &socket;
                scope.spawn(move || {
                    let path = |n| format!("/v1/secret/data/none/{client}/{n}");
                    // Until the agent is gone.
                    (0..)
                        .take_while(|n: &u32| request(socket, "GET", &path(*n), None).is_ok())
                        .count()
                });
            }
            eventually(PATIENCE, "lines are written", || place.lines() > before + 10 + 7 * round);
            agent.process.kill();
        });
        let (code, report) = verify(&anchored(&anchor, &[&log]));
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["instances"].as_array().map(Vec::len), Some(round + 1));
    }
    let text = fs::read(&log).expect("the log");
    fs::write(&log, &text[..text.len() - 40]).expect("the cut log");
    let mut agent = place.agent("one");
    ask(&agent, 0, 3);
    agent.stop();
    let (code, report) = verify(&anchored(&anchor, &[&log]));
    assert_eq!(code, 0, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("a line was cut off"), "{notes}");
}

#[test]
fn two_agents_and_a_rotation_leave_an_intact_log() {
    let place = Place::new();
    let (log, anchor) = (place.log(), place.anchor());
    let mut old_agent = place.agent("old");
    ask(&old_agent, 0, 5);
    let mut new_agent = place.agent("new");
    ask(&new_agent, 0, 5);
    ask(&old_agent, 5, 5);
    place.wait_for_decisions(15);
    let rotated = place.rotate(&[&old_agent, &new_agent]);
    ask(&new_agent, 5, 5);
    ask(&old_agent, 10, 5);
    old_agent.stop();
    ask(&new_agent, 10, 5);
    new_agent.stop();
    for files in [[log.as_path(), &rotated], [&rotated, &log]] {
        let (code, report) = verify(&anchored(&anchor, &files));
        assert_eq!(code, 0, "{report:#}");
        let instances = report["instances"].as_array().expect("instances");
        assert_eq!(instances.len(), 2);
        for instance in instances {
            assert_eq!(instance["anchored_seq"], instance["last_seq"], "{report:#}");
            assert_eq!(instance["records"], instance["last_seq"], "{report:#}");
        }
    }
    // The older file is gone: only a checkpoint, or the one who asks, can say that this is right.
    assert_eq!(verify(&anchored(&anchor, &[&log])).0, 0);
    assert_eq!(verify(&[Path::new("--partial"), &log]).0, 0);
    let (code, report) = verify(&[&log]);
    assert_eq!(code, 1);
    assert_eq!(report["instances"][0]["trouble"]["kind"], "dropped", "{report:#}");
}

#[test]
fn a_cut_end_is_found_with_the_anchor_and_not_without() {
    let place = Place::new();
    let (log, anchor) = (place.log(), place.anchor());
    let mut agent = place.agent("one");
    ask(&agent, 0, 5);
    agent.stop();
    let text = fs::read_to_string(&log).expect("the log");
    let lines: Vec<&str> = text.lines().collect();
    let kept = lines.len() - 2;
    fs::write(&log, lines[..kept].join("\n") + "\n").expect("the cut log");
    assert_eq!(verify(&[&log]).0, 0);
    let (code, report) = verify(&anchored(&anchor, &[&log]));
    assert_eq!(code, 1);
    let trouble = &report["instances"][0]["trouble"];
    assert_eq!(trouble["kind"], "truncated", "{report:#}");
    assert_eq!((&trouble["seq"], &trouble["line"]), (&(kept + 1).into(), &kept.into()));

    // The whole instance removed, and the agent's own log in place of the anchor.
    fs::write(&log, "").expect("the emptied log");
    assert_eq!(verify(&[&log]).0, 2);
    let stderr = place.dir.path().join("one/agent.err");
    for anchor in [&anchor, &stderr] {
        let (code, report) = verify(&anchored(anchor, &[&log]));
        assert_eq!(code, 1, "{report:#}");
        assert_eq!(report["troubles"][0]["kind"], "unanchored", "{report:#}");
    }
}

/// Goal: a log that begins where no file ever did was cut there. Method: a SIGHUP without a rename
/// brings a checkpoint within the file; the file is cut everywhere, there too.
#[test]
fn a_cut_beginning_is_found_at_every_checkpoint_but_a_rotations() {
    let place = Place::new();
    let (log, anchor) = (place.log(), place.anchor());
    let mut agent = place.agent("one");
    ask(&agent, 0, 5);
    let before = place.lines();
    // Not renamed, so it is the same file again.
    let checkpoints = || fs::read_to_string(&anchor).map_or(0, |text| text.lines().count());
    let many = checkpoints();
    agent.process.signal(Signal::HUP);
    eventually(PATIENCE, "a checkpoint", || checkpoints() > many);
    ask(&agent, 5, 5);
    place.wait_for_decisions(10);
    let rotated = place.rotate(&[&agent]);
    ask(&agent, 10, 5);
    agent.stop();
    let text = fs::read_to_string(&rotated).expect("the older file");
    let lines: Vec<&str> = text.lines().collect();
    for cut in 1..lines.len() {
        fs::write(&rotated, lines[cut..].join("\n") + "\n").expect("the cut file");
        let (code, report) = verify(&anchored(&anchor, &[&rotated, &log]));
        assert_eq!(code, 1, "{cut} of {before}: {report:#}");
        let trouble = &report["instances"][0]["trouble"];
        assert_eq!((&trouble["kind"], &trouble["seq"]), (&"dropped".into(), &1.into()));
    }
    assert_eq!(verify(&anchored(&anchor, &[&log])).0, 0);

    // An instance that ended before may have gone with age: that is said.
    let mut agent = place.agent("two");
    ask(&agent, 0, 1);
    agent.stop();
    let text = fs::read_to_string(&log).expect("the log");
    let last = text.lines().position(|line| line.contains(r#""seq":1,"#)).expect("a beginning");
    let rest: Vec<&str> = text.lines().skip(last).collect();
    fs::write(&log, rest.join("\n") + "\n").expect("the cut log");
    let (code, report) = verify(&anchored(&anchor, &[&log]));
    assert_eq!(code, 0, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("where these files begin: 1;"), "{notes}");
}

#[test]
fn exit_codes_tell_tampered_from_unreadable_and_a_wrong_command_line() {
    let place = Place::new();
    let mut agent = place.agent("one");
    ask(&agent, 0, 2);
    agent.stop();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_secrets-broker"))
            .args(["audit", "verify"])
            .args(arguments)
            .output()
            .expect("run the binary");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("a code"), String::from_utf8_lossy(&text).into_owned())
    };
    let log = place.log().display().to_string();
    let (code, text) = run(&[&log]);
    assert!(code == 0 && text.starts_with("intact\ninstance "), "{code} {text}");
    let altered = fs::read_to_string(&log).expect("the log").replacen("started", "stopped", 1);
    fs::write(&log, altered).expect("the altered log");
    let (code, text) = run(&[&log]);
    assert_eq!(code, 1);
    assert!(text.starts_with("tampered\n"), "{text}");
    assert!(text.contains(&format!("  {log}:1: record 1 of ")), "{text}");
    assert!(text.contains(" is altered: its hash does not fit"), "{text}");
    let (code, text) = run(&["/nowhere/audit.jsonl"]);
    assert!(code == 2 && text.contains("cannot read '/nowhere/audit.jsonl'"), "{code} {text}");
    assert_eq!(run(&[&log, "--anchor", &log]).0, 2);
    assert_eq!(run(&[]).0, 64);
}
