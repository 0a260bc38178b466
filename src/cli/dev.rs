//! `dev`: a complete agent for trying out. No Vault, no root, no configuration; everything it makes
//! is removed when it ends.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::agent_client::{Question, ask};
use super::output;
use super::run::runtime;
use crate::app::{self, App};
use crate::config::{Config, Host};
use crate::delivery::files::mount::is_tmpfs;
use crate::hardening::Hardened;
use crate::service_manager::ServiceManager;
use crate::status::{StatusView, changes, render_status};
use crate::telemetry::{self, LogFormat};

/// How often the live table is drawn anew.
const REDRAW: Duration = Duration::from_secs(1);

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// A directory on tmpfs to work in; the default is a new one in the user's runtime directory
    /// or in /dev/shm.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the agent over a local source until Ctrl-C, then removes everything.
pub(super) fn dev(args: &DevArgs, hardened: &Hardened) -> anyhow::Result<ExitCode> {
    telemetry::init_logging("warn", LogFormat::Text)?;
    let playground = Playground::create(args.dir.as_deref())?;
    let config = playground.config()?;
    let volumes = config.volumes.clone();
    let result = runtime()?.block_on(async {
        let operator_socket = config.sockets.operator.path.clone();
        let app = App::start(config, None, hardened, ServiceManager::none()).await?;
        let instructions = playground.instructions()?;
        output::print(&instructions)?;
        app.run(async {
            tokio::select! {
                stopped = app::stop_signal() => {
                    if let Err(error) = stopped {
                        tracing::error!(%error, "signals cannot be listened to; stopping");
                    }
                }
                () = live_table(&operator_socket, instructions.lines().count()) => {}
            }
        })
        .await
    });
    app::discard_volumes(&volumes)?;
    playground.remove()?;
    output::print(&format!("\nstopped; {} is removed\n", playground.dir.display()))?;
    result.map(|()| ExitCode::SUCCESS)
}

/// The directory `dev` works in, with a local source and a configuration of its own.
struct Playground {
    dir: PathBuf,
}

impl Playground {
    fn create(wanted: Option<&Path>) -> anyhow::Result<Self> {
        let dir = match wanted {
            Some(dir) => std::path::absolute(dir)?,
            None => tmpfs_parent()?.join(format!("secrets-broker-dev-{}", std::process::id())),
        };
        fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| {
            format!("making the directory '{}' (it must not exist yet)", dir.display())
        })?;
        let playground = Self { dir };
        if !is_tmpfs(&playground.dir)? {
            let dir = playground.dir.display().to_string();
            playground.remove()?;
            anyhow::bail!("'{dir}' is not on tmpfs; name one with --dir, for example in /dev/shm");
        }
        let volume = playground.dir.join("volume");
        fs::DirBuilder::new().mode(0o755).create(&volume)?;
        let source = playground.dir.join("secrets.toml");
        fs::write(&source, SECRETS).context("writing the local source")?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600))?;
        Ok(playground)
    }

    fn config(&self) -> anyhow::Result<Config> {
        let file = self.dir.join("broker.toml");
        let text = CONFIG.replace("{dir}", &self.dir.display().to_string());
        fs::write(&file, &text).context("writing the configuration")?;
        Ok(Config::parse(&text, &file.display().to_string(), &Host::this())?)
    }

    /// What to paste; the binary by its path, since it may not be installed.
    fn instructions(&self) -> anyhow::Result<String> {
        let program = std::env::current_exe().context("finding this program's own path")?;
        Ok(INSTRUCTIONS
            .replace("{dir}", &self.dir.display().to_string())
            .replace("{program}", &program.display().to_string()))
    }

    fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing '{}'", self.dir.display()))
    }
}

/// Where a private directory on tmpfs can be made without privileges.
fn tmpfs_parent() -> anyhow::Result<PathBuf> {
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let candidates = runtime_dir.into_iter().chain([PathBuf::from("/dev/shm")]);
    for dir in candidates {
        if is_tmpfs(&dir).unwrap_or(false) && fs::metadata(&dir).is_ok_and(|m| m.is_dir()) {
            return Ok(dir);
        }
    }
    anyhow::bail!("neither XDG_RUNTIME_DIR nor /dev/shm is on tmpfs; name a directory with --dir")
}

/// Draws the status every second on a terminal; in a pipe, one line per change. Ends when nobody
/// reads it any more.
async fn live_table(socket: &Path, rows_above: usize) {
    let mut before: Option<StatusView> = None;
    loop {
        let question = Question::Get { path: "/agent/v1/status", query: &[] };
        // The agent starts and stops beside this table: a missed answer is no news.
        if let Ok(now) = ask::<StatusView>(socket, question).await {
            let drawn = if output::is_terminal() {
                draw(&now, rows_above)
            } else {
                changes(before.as_ref(), &now).into_iter().map(|line| line + "\n").collect()
            };
            if output::print(&drawn).is_err() {
                return;
            }
            before = Some(now);
        }
        if crate::clock::sleep(REDRAW).await.is_err() {
            return;
        }
    }
}

/// The table below the instructions, cut to the rows that are left; then the cursor goes back up.
fn draw(status: &StatusView, rows_above: usize) -> String {
    let rows = output::size().map_or(usize::MAX, |(_, rows)| usize::from(rows));
    let room = rows.saturating_sub(rows_above + 1).max(8);
    let table = render_status(status, output::style());
    let shown: Vec<String> = table.lines().take(room).map(|line| format!("{line}\n")).collect();
    // Clear to the end of the screen, draw, go back up: no scrolling, no flicker.
    format!("\x1b[J{}\x1b[{}A", shown.concat(), shown.len())
}

const SECRETS: &str = r#"# The local source of this playground: edit it and watch the files change.
[mounts.secret]
kind = "kv2"

[mounts.secret.secrets."shop/web"]
username = "shop"
api_key = "change-me-in-secrets.toml"

# Credentials that are made up here and honoured by no server; they renew and rotate like Vault's.
[mounts.database]
kind = "generated"

[mounts.database.roles.shop]
ttl = "20s"
max_ttl = "1m"
"#;

const CONFIG: &str = r#"
[agent]
runtime_dir = "{dir}/run"

[sources.dev]
kind = "local"
file = "{dir}/secrets.toml"

[sockets.operator]
path = "{dir}/run/operator/operator.sock"

[sockets.host]
path = "{dir}/run/broker.sock"

[audit]
output = "{dir}/audit.jsonl"

[[grants]]
name = "dev-users"
who = { any_host_user = true }
paths = ["secret/data/**", "database/creds/*"]

[[grants]]
name = "dev-volume"
who = { volume = "shop" }
paths = ["secret/data/**", "database/creds/*"]

[[volumes]]
name = "shop"
path = "{dir}/volume"
tmpfs = "existing"
retire_grace = "5s"

[[volumes.items]]
secret = "secret/shop/web"

[[volumes.items]]
path = "database.json"
keys = { username = "database/creds/shop#username", password = "database/creds/shop#password" }
"#;

const INSTRUCTIONS: &str = r#"A complete agent in {dir}; Ctrl-C ends and removes it.
Paste into another terminal:

  cat {dir}/volume/api_key
  cat {dir}/volume/database.json          # renewed at 70-75 % of 20s, replaced at 1m
  curl -sS --unix-socket {dir}/run/broker.sock http://localhost/v1/secret/data/shop/web
  curl -sS --unix-socket {dir}/run/broker.sock http://localhost/v1/database/creds/shop
  export SECRETS_BROKER_SOCKET={dir}/run/operator/operator.sock
  {program} status
  {program} explain database/creds/shop
  {program} refresh secret/shop/web
  sed -i s/change-me/changed/ {dir}/secrets.toml   # and cat the file again
  tail {dir}/audit.jsonl

"#;
