//! `run`: the agent itself.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use crate::config::Config;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Placeholder until the wiring is merged: validates the configuration and stops.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let _config = Config::load(&args.config.config)?;
    anyhow::bail!("this build cannot run an agent yet")
}
