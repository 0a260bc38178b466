//! `policy test`: a file of cases, each answered as the configured policy would.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{ConfigArgs, EXIT_OK, EXIT_PROBLEM, output};
use crate::app;
use crate::config::{Config, Host, SourceConfig, cases};
use crate::domain::{SecretPath, SourceName};
use crate::policy::Case;
use crate::source::local::LocalSource;
use crate::source::{ConfiguredMount, Source as _};

const EXIT_CODES: &str = "\
Exit codes:
  0   every case passed
  1   a case failed, or the cases or the configuration have problems
  64  the command line is wrong";

#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Asks the configured policy what a file of cases expects of it; contacts nothing.
    #[command(after_help = EXIT_CODES)]
    Test(TestArgs),
}

#[derive(Debug, Args)]
struct TestArgs {
    /// The cases, as TOML: [[case]] with who, secret and expect.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn policy(args: &PolicyArgs) -> anyhow::Result<ExitCode> {
    let PolicyCommand::Test(TestArgs { file, config }) = &args.command;
    let config = Config::load_elsewhere(&config.config)?;
    let policy = app::compile(&config.policy)?;
    let local = local_sources(&config)?;
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading the cases {}", file.display()))?;
    let name = file.display().to_string();
    let mount_of = |source: &SourceName, path: &SecretPath| mount_of(&config, &local, source, path);
    let cases = match cases(&text, &name, &Host::this(), &config, &mount_of) {
        Ok(cases) => cases,
        Err(error) => {
            let count = error.problems.len();
            let plural = if count == 1 { "" } else { "s" };
            output::print(&format!("{error}\n{count} problem{plural}\n"))?;
            return Ok(ExitCode::from(EXIT_PROBLEM));
        }
    };
    let now = Timestamp::now();
    let (mut text, mut failed) = (String::new(), 0);
    for (line, case) in &cases {
        let outcome = case.ask(&policy, now);
        let (verdict, unexpected) = match outcome.unexpected.as_slice() {
            [] => ("ok    ", String::new()),
            unexpected => {
                failed += 1;
                ("FAILED", format!("{}, but ", unexpected.join(" and ")))
            }
        };
        let label = label(case);
        let decided = outcome.decided;
        let _infallible = writeln!(text, "{verdict} {name}:{line}: {label}{unexpected}{decided}");
    }
    let _infallible = writeln!(text, "{} passed, {failed} failed", cases.len() - failed);
    output::print(&text)?;
    Ok(ExitCode::from(if failed == 0 { EXIT_OK } else { EXIT_PROBLEM }))
}

fn label(case: &Case) -> String {
    case.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default()
}

/// What local sources hold, only their files say.
fn local_sources(config: &Config) -> anyhow::Result<BTreeMap<&SourceName, LocalSource>> {
    let local = config.sources.iter().filter_map(|(name, source)| match source {
        SourceConfig::Local(settings) => Some((name, settings)),
        SourceConfig::Vault(_) => None,
    });
    let opened = local.map(|(name, settings)| {
        let source = app::open_local(settings).with_context(|| format!("opening source '{name}'"));
        Ok((name, source?))
    });
    opened.collect()
}

fn mount_of(
    config: &Config,
    local: &BTreeMap<&SourceName, LocalSource>,
    source: &SourceName,
    path: &SecretPath,
) -> Option<ConfiguredMount> {
    match config.sources.get(source)? {
        SourceConfig::Vault(vault) => {
            vault.mounts.iter().find(|mount| path.below(&mount.path).is_some()).cloned()
        }
        SourceConfig::Local(_) => local.get(source)?.mount_of(path),
    }
}
