//! A private PostgreSQL: the superuser needs no password, everyone else does.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, Error, NoTls};

use super::http::block_on;
use super::process::{Process, free_port};

pub const LOOPBACK: &str = "127.0.0.1";
const START: Duration = Duration::from_secs(60);

pub struct Postgres {
    process: Process,
    pub port: u16,
    // Last, so that the server is gone before its directory.
    _dir: TempDir,
}

impl Postgres {
    /// Where only this machine's own network reaches it.
    pub fn start() -> Postgres {
        Postgres::start_at(&[LOOPBACK])
    }

    /// The same at these addresses; one of them is `LOOPBACK`.
    pub fn start_at(addresses: &[&str]) -> Postgres {
        let dir = TempDir::with_prefix("postgres-").expect("create a directory");
        if let Some((user, group)) = unprivileged() {
            chown(dir.path(), Some(user), Some(group)).expect("hand over the directory");
        }
        let data = dir.path().join("data");
        let initdb = server_command("initdb")
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"])
            .args(["--no-locale", "--no-instructions", "--pgdata"])
            .arg(&data)
            .current_dir(dir.path())
            .output()
            .expect("run initdb");
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        // In clear, as nothing leaves the machine: SCRAM's rounds cost an unoptimised client a
        // tenth of a second.
        let rules = "host all postgres 127.0.0.1/32 trust\n\
                     host all all all password\n";
        fs::write(data.join("pg_hba.conf"), rules).expect("write pg_hba.conf");

        let port = free_port();
        let mut command = server_command("postgres");
        command.arg("-D").arg(&data).args(["-h", &addresses.join(","), "-p", &port.to_string()]);
        // Nothing here outlives the machine; an fsync would only slow the tests down.
        for setting in ["unix_socket_directories=", "fsync=off", "max_connections=200"] {
            command.args(["-c", setting]);
        }
        command.current_dir(dir.path());
        let process = Process::spawn("postgres", &command, dir.path());
        let mut postgres = Postgres { process, port, _dir: dir };
        let accepts = move || block_on(connect(port, "postgres", "")).is_ok();
        postgres.process.wait_until(START, "accepting connections", accepts);
        postgres
    }

    /// First column of every row, as the superuser.
    pub fn query(&self, sql: &str) -> Vec<String> {
        let rows = block_on(async {
            let client = connect(self.port, "postgres", "").await?;
            client.simple_query(sql).await
        });
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {}", describe(&error)));
        let first = |row: &tokio_postgres::SimpleQueryRow| row.get(0).unwrap_or("").to_owned();
        rows.iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(first(row)),
                _ => None,
            })
            .collect()
    }

    /// Roles that exist, PostgreSQL's own left out.
    pub fn roles(&self) -> Vec<String> {
        self.roles_like("%")
    }

    /// The same, by an SQL `LIKE` pattern.
    pub fn roles_like(&self, pattern: &str) -> Vec<String> {
        assert!(!pattern.contains('\''), "a plain LIKE pattern");
        self.query(&format!(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE '{pattern}' \
             AND rolname NOT LIKE 'pg\\_%' AND rolname <> 'postgres' ORDER BY 1"
        ))
    }

    /// Logs in with a password; the error is PostgreSQL's own.
    pub fn login(&self, user: &str, password: &str) -> Result<(), String> {
        let answer = block_on(async {
            let client = connect(self.port, user, password).await?;
            client.query_one("SELECT current_user::text", &[]).await
        });
        let row = answer.map_err(|error| describe(&error))?;
        assert_eq!(row.get::<_, &str>(0), user);
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown ends the backends and frees shared memory, which a kill leaves.
        self.process.signal(Signal::QUIT);
        self.process.exits_within(Duration::from_secs(10));
    }
}

async fn connect(port: u16, user: &str, password: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host(LOOPBACK)
        .port(port)
        .user(user)
        .password(password)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(5))
        .connect(NoTls)
        .await?;
    // Ends when the client is dropped; its error reaches the client as well.
    tokio::spawn(async {
        let _ = connection.await;
    });
    Ok(client)
}

/// The driver says only "db error"; PostgreSQL's message is its source.
fn describe(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned())
}

/// PostgreSQL refuses to run as root.
fn server_command(program: &str) -> Command {
    let program = installed(program);
    let Some((user, group)) = unprivileged() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    // A change of user drops the parent-death signal, so it is set again; QUIT stops all backends.
    command.args(["--clear-groups", "--pdeathsig", "QUIT"]);
    command.args([format!("--reuid={user}"), format!("--regid={group}"), "--".to_owned()]);
    command.arg(program);
    command
}

/// The user to become when the tests run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let entry = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
        Some((ids.next()??, ids.next()??))
    };
    entry("postgres").or_else(|| entry("nobody"))
}

/// Debian keeps the server programs out of PATH, one directory per version, and has a script there
/// that looks for the client.
pub fn installed(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = versions.into_iter().rev().chain(env::split_paths(&path));
    let found = places.find_map(|dir| Some(dir.join(program)).filter(|file| runnable(file)));
    found.unwrap_or_else(|| panic!("{program} is not installed: run tests/servers/build postgres"))
}

fn runnable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}
