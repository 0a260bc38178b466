//! `encrypt` and `decrypt`.

use std::process::ExitCode;

use clap::Args;

/// Arguments of `encrypt`.
#[derive(Debug, Args)]
pub struct EncryptArgs {}

/// Arguments of `decrypt`.
#[derive(Debug, Args)]
pub struct DecryptArgs {}

/// Placeholder until encryption is merged.
pub fn encrypt(_args: EncryptArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no encryption yet")
}

/// Placeholder until encryption is merged.
pub fn decrypt(_args: DecryptArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no encryption yet")
}
