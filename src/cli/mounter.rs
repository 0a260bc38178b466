//! `mounter`: the privileged half, for the container beside the agent's.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::domain::CsiDriverName;
use crate::hardening::Hardened;
use crate::mounter::KubeletRoot;
use crate::mounter::listener::listen;
use crate::mounter::mounts::{Mounts, MountsConfig};
use crate::mounter::server::{Peers, serve};
use crate::telemetry::{self, LogFormat};

/// Arguments of `mounter`. None is taken from the environment.
#[derive(Debug, Args)]
pub(super) struct MounterArgs {
    /// The kubelet's root directory, as its --root-dir spells it.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_root: KubeletRoot,
    /// Where the agent finds the mounter; the directory is the mounter's own.
    #[arg(long, value_name = "PATH", default_value = "/run/secrets-broker/mounter/mounter.sock")]
    socket: PathBuf,
    /// The CSI driver whose volumes are mounted.
    #[arg(long, value_name = "NAME", default_value = "csi.secrets-broker.io")]
    driver: CsiDriverName,
    /// The user the agent runs as: it may connect, and owns the volumes' root directories.
    #[arg(long, value_name = "UID", default_value_t = 0)]
    agent_uid: u32,
    /// Log level: trace, debug, info, warn, error.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Log format: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = log_format)]
    log_format: LogFormat,
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    let named = LogFormat::NAMES.into_iter().find(|(name, _)| *name == text);
    named.map(|(_, format)| format).ok_or("give text or json")
}

/// Serves until SIGTERM or SIGINT. Every mount outlives it.
pub(super) fn mounter(args: MounterArgs, hardened: &Hardened) -> anyhow::Result<ExitCode> {
    telemetry::init_logging(&args.log, args.log_format)?;
    for failure in hardened.failures() {
        tracing::warn!("{failure}");
    }
    let MounterArgs { kubelet_root, socket, driver, agent_uid, .. } = args;
    let mounts = Mounts::open(MountsConfig { kubelet_root, driver, agent_uid })?;
    if !mounts.propagate() {
        tracing::warn!(
            "mounts made here stay in this mount namespace; in a container, give the kubelet's \
             root `mountPropagation: Bidirectional`"
        );
    }
    let listener = listen(&socket, agent_uid)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "mounter");
    serve(listener, mounts, Peers { agent_uid })?;
    tracing::info!("stopped; mounts stay");
    Ok(ExitCode::SUCCESS)
}
