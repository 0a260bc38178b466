//! Official clients against the agent's host socket, with real servers behind it.
//!
//! Each client gets a Vault and an agent of its own and runs as a child process; what it checks are
//! lines of its output. `tests/clients/run` gets the clients ready and says where they are.

#[path = "../support/mod.rs"]
mod support;

mod command_line;
mod report;
mod rig;
mod upstream;

use std::process::Command;
use std::{env, fs, thread};

use report::Report;
use rig::Rig;
use upstream::Upstream;

#[test]
fn vaults_go_client() {
    test("vault-go", |rig, report| child(rig, report, "go-clients", "vault"));
}

#[test]
fn openbaos_go_client() {
    test("openbao-go", |rig, report| child(rig, report, "go-clients", "openbao"));
}

#[test]
fn hvac() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/hvac_client.py");
    test("hvac", |rig, report| child(rig, report, "python", script));
}

#[test]
fn vaults_command_line() {
    test("vault-cli", |rig, report| command_line::run(rig, report, "vault"));
}

#[test]
fn openbaos_command_line() {
    test("bao-cli", |rig, report| command_line::run(rig, report, "bao"));
}

/// A client's own checks, then what can only be seen from behind the agent. `run` returns what the
/// agent replied.
fn test(name: &'static str, run: impl FnOnce(&Rig, &mut Report) -> String) {
    let rig = Rig::start();
    let mut report = Report::new(name);
    let (replies, upstream) = thread::scope(|scope| {
        let watch = Upstream::watch(scope, &rig.bed);
        let replies = run(&rig, &mut report);
        (replies, watch.stop())
    });
    report.check("no reply holds an upstream token, accessor or lease id", || {
        upstream.assert_absent_from(&replies);
    });
    report.check("one mint per credential, nothing left in PostgreSQL", || {
        assert_eq!(rig.bed.vault.audit_requests("database/creds/shop", "read"), 1);
        assert!(rig.bed.vault.audit_requests("database/creds/watched", "read") <= 1);
        assert_eq!(rig.bed.vault.audit_requests("database/creds/private", "read"), 0);
        assert!(rig.bed.database_users().is_empty(), "{:?}", rig.bed.database_users());
    });
    assert_eq!(report.failed, 0, "failed checks of {name}");
}

/// A client that is a program of its own and reports in lines.
fn child(rig: &Rig, report: &mut Report, program: &str, argument: &str) -> String {
    let file = rig.bed.dir.path().join("replies");
    let mut command = rig.client(program);
    command.arg(argument).env("REPLIES", &file);
    report.follow(command);
    fs::read_to_string(&file).unwrap_or_default()
}

/// A program that `tests/clients/run` got ready.
fn client_program(name: &str) -> Command {
    const VARIABLE: &str = "SECRETS_BROKER_TEST_CLIENTS";
    let dir = env::var_os(VARIABLE).expect("SECRETS_BROKER_TEST_CLIENTS: use tests/clients/run");
    Command::new(std::path::Path::new(&dir).join(name))
}
