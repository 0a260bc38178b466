//! The broker itself as a child process: a configuration in, its sockets and volumes to ask.
#![allow(dead_code, reason = "every user compiles this and uses a part of it")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use serde_json::Value;

use super::process::Process;

/// How long the agent may take to answer anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running agent. Dropping it kills it; `stop` stops it as an operator would.
pub struct Agent {
    pub process: Process,
    pub dir: PathBuf,
}

/// An answer of the agent's sockets.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.body))
    }
}

impl Agent {
    /// Starts the agent with `config`, in which `{dir}` stands for `dir`, and waits until it is
    /// ready. Sockets are at `<dir>/run/{broker,operator/operator}.sock`; audit lines are in its
    /// output.
    pub fn start(dir: &Path, config: &str) -> Agent {
        let agent = Agent::launch(dir, config);
        agent.wait_ready()
    }

    /// Starts the agent without waiting.
    pub fn launch(dir: &Path, config: &str) -> Agent {
        Agent::launch_with(dir, config, &[])
    }

    /// The same with environment variables.
    pub fn launch_with(dir: &Path, config: &str, variables: &[(&str, &OsStr)]) -> Agent {
        let mut command = run_command(dir, config);
        command.envs(variables.iter().copied());
        Agent::launch_command(dir, &command)
    }

    /// The same through another command that makes it the agent, such as `pod_cgroups::inside`.
    pub fn launch_through(
        dir: &Path,
        config: &str,
        through: impl FnOnce(&Command) -> Command,
    ) -> Agent {
        Agent::launch_command(dir, &through(&run_command(dir, config)))
    }

    fn launch_command(dir: &Path, command: &Command) -> Agent {
        Agent { process: Process::spawn("agent", command, dir), dir: dir.to_owned() }
    }

    /// Waits until the agent says that it can serve.
    pub fn wait_ready(self) -> Agent {
        self.wait_healthy("ready")
    }

    /// Waits until the agent answers, whether or not it can serve.
    pub fn wait_live(self) -> Agent {
        self.wait_healthy("live")
    }

    fn wait_healthy(mut self, how: &str) -> Agent {
        let (socket, path) = (self.operator_socket(), format!("/agent/v1/health/{how}"));
        let healthy = || request(&socket, "GET", &path, None).is_ok_and(|a| a.status == 200);
        self.process.wait_until(PATIENCE, &format!("the agent is {how}"), healthy);
        self
    }

    pub fn host_socket(&self) -> PathBuf {
        self.dir.join("run/broker.sock")
    }

    pub fn operator_socket(&self) -> PathBuf {
        self.dir.join("run/operator/operator.sock")
    }

    /// GETs a secret as this process: `secret/data/shop/web`.
    pub fn read(&self, path: &str) -> Answer {
        self.host("GET", &format!("/v1/{path}"), None)
    }

    pub fn host(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        request(&self.host_socket(), method, path, body).expect("the host socket answers")
    }

    pub fn operator(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        request(&self.operator_socket(), method, path, body).expect("the operator socket answers")
    }

    pub fn status(&self) -> Value {
        self.operator("GET", "/agent/v1/status", None).json()
    }

    /// The status rows of one secret: `vault:database/creds/shop`.
    pub fn secrets(&self, secret: &str) -> Vec<Value> {
        let status = self.status();
        let rows = status["secrets"].as_array().expect("status has secrets");
        rows.iter().filter(|row| row["secret"] == secret).cloned().collect()
    }

    pub fn explain(&self, path: &str) -> Value {
        self.operator("GET", &format!("/agent/v1/explain?path={path}"), None).json()
    }

    /// Runs a command of the binary against this agent; returns exit code and output.
    pub fn command(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_secrets-broker"))
            .args(arguments)
            .env("SECRETS_BROKER_SOCKET", self.operator_socket())
            .output()
            .expect("run the binary");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// Audit lines so far.
    pub fn audit(&self) -> Vec<Value> {
        self.process.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// SIGTERM, then waits for the end.
    pub fn stop(&mut self) {
        self.process.stop(PATIENCE);
    }
}

/// Writes the configuration, in which `{dir}` stands for `dir`; what runs the agent with it.
fn run_command(dir: &Path, config: &str) -> Command {
    let file = dir.join("broker.toml");
    fs::write(&file, config.replace("{dir}", dir.to_str().expect("a readable path")))
        .expect("write the configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_secrets-broker"));
    command.arg("run").arg("--config").arg(&file);
    command
}

/// One HTTP/1.1 exchange on a connection of its own.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    // Who is refused may be answered, and the connection closed, before all of it is read.
    let sent = stream.write_all(request.as_bytes());
    let mut reply = Vec::new();
    match stream.read_to_end(&mut reply) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
        _ => {}
    }
    parse(&String::from_utf8_lossy(&reply)).ok_or_else(|| {
        let incomplete = || io::Error::new(io::ErrorKind::UnexpectedEof, "no complete HTTP reply");
        sent.err().unwrap_or_else(incomplete)
    })
}

fn parse(reply: &str) -> Option<Answer> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    let answer =
        Answer { status, headers: lines.filter_map(header).collect(), body: body.to_owned() };
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    // A 204 has none.
    (length.unwrap_or(0) == answer.body.len()).then_some(answer)
}
