//! `check-volume`: what the CSI driver would say about the volumes of a manifest, in a developer's
//! CI: no cluster, no agent, nothing contacted.
//!
//! | part | what it is |
//! |---|---|
//! | [`yaml`], [`manifest`] | pure: lines and values, and the pods of a manifest's objects |
//! | [`judge`] | pure: everything that is wrong with their volumes |
//! | [`plan`], [`readers`] | pure: files, owners and secrets; who could not read them |

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::{EXIT_OK, EXIT_PROBLEM, output};
use crate::config::{Config, SourceConfig};
use crate::domain::{CsiDriverName, Namespace};
use crate::status::{Style, table};

mod judge;
mod manifest;
mod plan;
mod readers;
mod yaml;

use judge::{Finding, Judged, Operator, PlannedVolume, Severity, Terms};

/// The driver's name unless a configuration or `--driver` says another.
const DRIVER: &str = "csi.secrets-broker.io";

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   every volume is in order
  1   a problem, no volume of the driver, or a file cannot be read
  64  the command line is wrong";

#[derive(Debug, Args)]
pub(super) struct CheckVolumeArgs {
    /// Kubernetes manifests in YAML: Pods, or what makes them; - is standard input.
    #[arg(required = true, value_name = "POD.yaml")]
    files: Vec<PathBuf>,
    /// The agent's configuration: checks roles and paths against what the operator permits.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The driver's name [default: that of the configuration, or csi.secrets-broker.io].
    #[arg(long, value_name = "NAME")]
    driver: Option<CsiDriverName>,
    /// The namespace of objects that name none.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: Namespace,
}

/// What one file came to.
struct Checked {
    file: String,
    judged: Judged,
}

pub(super) fn check_volume(args: &CheckVolumeArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load_elsewhere).transpose()?;
    let csi = config.as_ref().map(|config| {
        let csi = config.csi.as_ref().map(|settings| (config, &settings.driver));
        csi.context("the configuration serves no pods: [csi] is not enabled in it")
    });
    let csi = csi.transpose()?;
    let configured = csi.map(|(_, driver)| &driver.driver);
    let driver = args.driver.as_ref().or(configured).map_or(DRIVER, CsiDriverName::as_str);
    let operator = csi.map(|(config, driver)| Operator {
        source: &driver.source,
        mounts: match config.sources.get(&driver.source) {
            Some(SourceConfig::Vault(vault)) => Some(vault.mounts.as_slice()),
            // What a local source has, only its file says.
            Some(SourceConfig::Local(_)) | None => None,
        },
        tenant_roles: &driver.tenant_roles,
    });
    let terms = Terms { driver, namespace: args.namespace.as_str(), operator };
    let checked: Result<Vec<Checked>, _> =
        args.files.iter().map(|file| check(file, &terms)).collect();
    report(&checked?, driver)
}

fn check(file: &Path, terms: &Terms<'_>) -> anyhow::Result<Checked> {
    let (name, text) = match file.to_str() {
        Some("-") => ("standard input".to_owned(), read_input()),
        _ => (file.display().to_string(), std::fs::read_to_string(file)),
    };
    let text = text.with_context(|| format!("reading {name}"))?;
    let mut judged = Judged::default();
    match yaml::documents(&text) {
        Ok(documents) => {
            for pod in documents.iter().flat_map(manifest::pods) {
                judged.add(&pod, terms);
            }
        }
        Err((line, error)) => {
            let message = format!("{error}; templates must be rendered first (helm template)");
            let place = "not YAML".to_owned();
            judged.findings.push(Finding { severity: Severity::Problem, line, place, message });
        }
    }
    judged.findings.sort_by_key(|finding| finding.line);
    Ok(Checked { file: name, judged })
}

fn read_input() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map(|_| text)
}

/// Problems first; the files of the volumes only where everything is in order.
fn report(checked: &[Checked], driver: &str) -> anyhow::Result<ExitCode> {
    let mut problems: Vec<String> = Vec::new();
    let mut remarks: Vec<String> = Vec::new();
    for Checked { file, judged } in checked {
        for finding in &judged.findings {
            let Finding { line, place, message, .. } = finding;
            let text = printable(&format!("{file}:{line}: {place}: {message}"));
            match finding.severity {
                Severity::Problem => problems.push(text),
                Severity::Warning => remarks.push(format!("warning: {text}")),
                Severity::Hint => remarks.push(format!("hint: {text}")),
            }
        }
    }
    if problems.is_empty() && checked.iter().all(|checked| checked.judged.seen == 0) {
        let files: Vec<&str> = checked.iter().map(|checked| checked.file.as_str()).collect();
        problems.push(format!("{}: no pod has a volume of the driver {driver}", files.join(", ")));
    }
    let mut text = String::new();
    for line in problems.iter().chain(&remarks) {
        let _infallible = writeln!(text, "{line}");
    }
    let code = if problems.is_empty() {
        let volumes =
            checked.iter().flat_map(|one| one.judged.volumes.iter().map(|v| (&one.file, v)));
        for (file, volume) in volumes {
            text.push_str(&match output::is_terminal() {
                true => as_table(volume, output::style()),
                false => as_lines(file, volume),
            });
        }
        EXIT_OK
    } else {
        let plural = if problems.len() == 1 { "" } else { "s" };
        let _infallible = writeln!(text, "{} problem{plural}", problems.len());
        EXIT_PROBLEM
    };
    output::print(&text)?;
    Ok(ExitCode::from(code))
}

fn as_table(volume: &PlannedVolume, style: Style) -> String {
    let PlannedVolume { place, service_account, files } = volume;
    let mut text = printable(&format!("{place}: in order, read as {service_account}")) + "\n";
    let rows = files.iter().map(|file| {
        let cells = [file.file.clone(), file.owner(), file.mode(), file.secrets.join(" ")];
        cells.map(|cell| printable(&cell)).into()
    });
    table(&mut text, &["file", "owner", "mode", "secret"], rows.collect(), style);
    text
}

/// One line per file: where it is declared, its name, owner, mode and secrets.
fn as_lines(file: &str, volume: &PlannedVolume) -> String {
    let line = |planned: &plan::PlannedFile| {
        let secrets = planned.secrets.join(" ");
        let (owner, mode) = (planned.owner(), planned.mode());
        let place = &volume.place;
        printable(&format!("{file}: {place}: {} {owner} {mode} {secrets}", planned.file)) + "\n"
    };
    volume.files.iter().map(line).collect()
}

/// A manifest may hold anything; it must not reach a terminal as it is.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
