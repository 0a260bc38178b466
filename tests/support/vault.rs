//! A real Vault with file storage, an audit log and a small client with the root token.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::{TlsFiles, issue};
use super::http::{Api, Reply};
use super::process::{Process, eventually};
use super::server_program;

/// A free port of it.
const LOOPBACK: &str = "127.0.0.1:0";
const LIMIT: Duration = Duration::from_secs(30);

pub struct Vault {
    process: Process,
    api: Api,
    pub address: String,
    pub root_token: String,
    unseal_key: String,
    tls: Option<TlsFiles>,
    // Last, so that the server is gone before its directory.
    dir: TempDir,
}

impl Vault {
    /// Over plain HTTP.
    pub fn start() -> Vault {
        Vault::initialise(new_dir(), LOOPBACK, None)
    }

    /// Over TLS, for 127.0.0.1 and localhost, under an authority of its own (`ca_file`).
    pub fn start_tls() -> Vault {
        Vault::start_tls_at(LOOPBACK, &["127.0.0.1", "localhost"])
    }

    /// The same at another address, for these names and addresses.
    pub fn start_tls_at(listen: &str, names: &[&str]) -> Vault {
        let dir = new_dir();
        let tls = issue(dir.path(), names);
        Vault::initialise(dir, listen, Some(tls))
    }

    fn initialise(dir: TempDir, listen: &str, tls: Option<TlsFiles>) -> Vault {
        let mut command = command(dir.path(), listen, tls.as_ref());
        command.arg("--audit").arg(dir.path().join("audit.log"));
        let mut process = Process::spawn("vault", &command, dir.path());
        let ready = wait_ready(&mut process, 0);
        let text = |key: &str| ready[key].as_str().expect("a field of the ready line").to_owned();
        let ca = tls.as_ref().map(|files| fs::read_to_string(&files.ca).expect("read the CA"));
        Vault {
            process,
            api: Api::new(&text("address"), ca.as_deref()),
            address: text("address"),
            root_token: text("root_token"),
            unseal_key: text("unseal_key"),
            tls,
            dir,
        }
    }

    /// The authority of `start_tls` and `start_tls_at`.
    pub fn ca_file(&self) -> &Path {
        &self.tls.as_ref().expect("started with start_tls").ca
    }

    pub fn stop(&mut self) {
        self.process.stop(LIMIT);
    }

    /// SIGKILL: nothing is revoked, nothing is flushed.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// After `stop` or `kill`: same storage, same address, unsealed.
    pub fn start_again(&mut self) {
        let listen = self.address.split_once("//").expect("a URL").1;
        let mut command = command(self.dir.path(), listen, self.tls.as_ref());
        command.args(["--unseal-key", &self.unseal_key]);
        let lines_before = self.process.stdout().lines().count();
        self.process = Process::spawn("vault", &command, self.dir.path());
        wait_ready(&mut self.process, lines_before);
    }

    /// Keeps the process but answers nothing until `resume`: connections hang.
    pub fn pause(&self) {
        self.process.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.process.signal(rustix::process::Signal::CONT);
    }

    pub fn seal(&self) {
        self.write("sys/seal", json!({}));
        eventually(LIMIT, "Vault sealed", || self.health() == 503);
    }

    pub fn unseal(&self) {
        self.write("sys/unseal", json!({ "key": self.unseal_key }));
        eventually(LIMIT, "Vault unsealed", || self.health() == 200);
    }

    /// 200 active, 503 sealed.
    fn health(&self) -> u16 {
        self.send("GET", "sys/health", None, None).status
    }

    /// Any request with any token; `path` is without `/v1/`. Panics only when no answer comes.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Reply {
        let headers: Vec<_> = token.map(|token| ("X-Vault-Token", token)).into_iter().collect();
        self.api
            .send(method, &format!("v1/{path}"), &headers, body.as_ref())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The whole reply to a read with the root token, or `None` when there is nothing.
    pub fn read(&self, path: &str) -> Option<Value> {
        let reply = self.send("GET", path, Some(&self.root_token), None);
        (reply.status != 404).then(|| accepted("GET", path, reply))
    }

    pub fn write(&self, path: &str, body: Value) -> Value {
        accepted("PUT", path, self.send("PUT", path, Some(&self.root_token), Some(body)))
    }

    pub fn delete(&self, path: &str) {
        accepted("DELETE", path, self.send("DELETE", path, Some(&self.root_token), None));
    }

    /// Keys under a path, none when it does not exist.
    pub fn list(&self, path: &str) -> Vec<String> {
        let reply = self.send("LIST", path, Some(&self.root_token), None);
        if reply.status == 404 {
            return Vec::new();
        }
        let body = accepted("LIST", path, reply);
        let keys = body["data"]["keys"].as_array().expect("data.keys of a list");
        keys.iter().map(|key| key.as_str().expect("a key").to_owned()).collect()
    }

    pub fn put_kv1(&self, path: &str, data: Value) {
        self.write(&format!("kv/{path}"), data);
    }

    pub fn put_kv2(&self, path: &str, data: Value) {
        self.write(&format!("secret/data/{path}"), json!({ "data": data }));
    }

    pub fn mount(&self, path: &str, kind: &str, options: Value) {
        self.write(&format!("sys/mounts/{path}"), json!({ "type": kind, "options": options }));
    }

    /// Every line of the audit log, oldest first.
    pub fn audit_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("audit.log")).expect("read the log");
        // Vault may be in the middle of its last line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// Requests that reached Vault, refused ones included: paths that start with `path_prefix`
    /// (no `/v1/`), operation `read`, `update`, `list`, … The harness's own count as well.
    pub fn audit_requests(&self, path_prefix: &str, operation: &str) -> usize {
        let counts = |entry: &&Value| {
            let request = &entry["request"];
            entry["type"] == "request"
                && request["operation"] == operation
                && request["path"].as_str().is_some_and(|path| path.starts_with(path_prefix))
        };
        self.audit_log().iter().filter(counts).count()
    }
}

fn new_dir() -> TempDir {
    TempDir::with_prefix("vault-").expect("create a directory")
}

fn command(dir: &Path, listen: &str, tls: Option<&TlsFiles>) -> Command {
    let mut command = Command::new(server_program("vault"));
    command.args(["--listen", listen, "--storage"]).arg(storage(dir));
    if let Some(files) = tls {
        command.arg("--tls-cert").arg(&files.certificate).arg("--tls-key").arg(&files.key);
    }
    command
}

fn storage(dir: &Path) -> PathBuf {
    dir.join("storage")
}

/// The ready line of the start that found `lines_before` lines of earlier ones.
fn wait_ready(process: &mut Process, lines_before: usize) -> Value {
    let mut output = String::new();
    let out = process.stdout_file().to_owned();
    process.wait_until(LIMIT, "the ready line", || {
        output = fs::read_to_string(&out).unwrap_or_default();
        output.matches('\n').count() > lines_before
    });
    let line = output.lines().nth(lines_before).expect("the ready line");
    serde_json::from_str(line).expect("the ready line is JSON")
}

fn accepted(method: &str, path: &str, reply: Reply) -> Value {
    let Reply { status, body } = reply;
    assert!((200..300).contains(&status), "{method} {path}: {status} {}", body["errors"]);
    body
}
