//! `run`: the agent itself.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use crate::app::{self, App};
use crate::config::Config;
use crate::hardening::Hardened;
use crate::telemetry;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the agent until SIGTERM or SIGINT. Secrets, mounts and leases outlive it.
pub(super) fn run(args: RunArgs, hardened: &Hardened) -> anyhow::Result<ExitCode> {
    let file = args.config.config;
    let config = Config::load(&file)?;
    telemetry::init_logging(&config.agent.log, config.agent.log_format)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    for failure in hardened.failures() {
        tracing::warn!("{failure}");
    }
    runtime()?.block_on(async {
        let app = App::start(config, Some(file), hardened, app::service_manager()?).await?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");
        app.run(async {
            if let Err(error) = app::stop_signal().await {
                tracing::error!(%error, "signals cannot be listened to; stopping");
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Few workers: a node agent shares its cores with what it serves.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(1, 4))
        .max_blocking_threads(16)
        .enable_all()
        .build()
}
