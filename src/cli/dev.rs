//! `dev`: a complete agent for trying out.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {}

/// Placeholder until the wiring is merged.
pub fn dev(_args: &DevArgs, _hardened: &crate::hardening::Hardened) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no dev mode yet")
}
