//! `check-config`: every problem of a configuration, or a summary of what would run.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::{ConfigArgs, EXIT_OK, EXIT_PROBLEM, output};
use crate::app;
use crate::audit::Output;
use crate::config::{Config, SourceConfig};

pub(super) fn check_config(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match Config::load(&args.config) {
        Ok(config) => {
            let file = args.config.display();
            let summary = summary(&config);
            let problems = app::check(config);
            if problems.is_empty() {
                output::print(&format!("{file}: in order\n{summary}"))?;
                return Ok(ExitCode::from(EXIT_OK));
            }
            output::print(&format!("{}\n{}\n", problems.join("\n"), count(problems.len())))?;
            Ok(ExitCode::from(EXIT_PROBLEM))
        }
        Err(error) => {
            output::print(&format!("{error}\n{}\n", count(error.problems.len())))?;
            Ok(ExitCode::from(EXIT_PROBLEM))
        }
    }
}

fn count(problems: usize) -> String {
    format!("{problems} problem{}", if problems == 1 { "" } else { "s" })
}

fn summary(config: &Config) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        let _infallible = writeln!(text, "  {what:<9} {value}");
    };
    for (name, source) in &config.sources {
        let default = if *name == config.default_source { " (default)" } else { "" };
        line("source", format!("{name}{default}: {}", describe(source)));
    }
    line("socket", format!("{} for operators", config.sockets.operator.path.display()));
    let host = &config.sockets.host;
    if host.enabled {
        line(
            "socket",
            format!("{} for users of this host, mode {:04o}", host.path.display(), host.mode),
        );
    }
    for volume in &config.volumes {
        let items = volume.config.items.len();
        let plural = if items == 1 { "" } else { "s" };
        line(
            "volume",
            format!(
                "{} at {}, {items} item{plural}",
                volume.config.name,
                volume.config.path.display()
            ),
        );
    }
    let grants: Vec<&str> = config.policy.grants.iter().map(|grant| grant.name.as_str()).collect();
    match grants.as_slice() {
        [] if config.policy.cedar.is_none() => {
            line("grants", "none: nobody may read anything".to_owned())
        }
        grants => line("grants", grants.join(", ")),
    }
    if let Some(cedar) = &config.policy.cedar {
        line("policy", cedar.name.clone());
    }
    line(
        "audit",
        match &config.audit.output {
            Output::Stdout => "standard output".to_owned(),
            Output::File(file) => file.display().to_string(),
        },
    );
    if let Some(anchor) = &config.audit.anchor {
        line("anchor", anchor.display().to_string());
    }
    for warning in &config.warnings {
        let _infallible = writeln!(text, "warning: {warning}");
    }
    text
}

fn describe(source: &SourceConfig) -> String {
    match source {
        SourceConfig::Local(local) => format!("local file {}", local.file.display()),
        SourceConfig::Vault(vault) => {
            let mounts: Vec<&str> = vault.mounts.iter().map(|mount| mount.path.as_str()).collect();
            let namespace = vault.namespace.as_ref();
            let namespace =
                namespace.map_or_else(String::new, |name| format!(", namespace {name}"));
            format!(
                "Vault {}{namespace}, role {} at {}, mounts {}",
                vault.address,
                vault.role,
                vault.auth_mount,
                mounts.join(" ")
            )
        }
    }
}
