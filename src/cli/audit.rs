//! `audit verify`: what became of an audit log, in words or as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{EXIT_OK, EXIT_PROBLEM, OutputFormat, output};
use crate::audit::verify::{self, InstanceReport, Question, Report, Trouble, VerifyError};

/// The log could not be read, so nothing is known about it.
const EXIT_UNREADABLE: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes:
  0   intact
  1   a record was altered, dropped, duplicated or moved, or contradicts the anchor
  2   a file cannot be read, or holds nothing to verify
  64  the command line is wrong";

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Verifies audit logs: names the first altered, dropped or moved record of each instance.
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The log and its rotated files, in any order.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A file of [audit] anchor, or a log with checkpoints; may be given several times.
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// Accepts that the first records are in files that are no longer there.
    #[arg(long)]
    partial: bool,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) fn audit(args: AuditArgs) -> anyhow::Result<ExitCode> {
    let AuditCommand::Verify(VerifyArgs { files, anchor, partial, output }) = args.command;
    let report = verify::verify(&Question { files, anchors: anchor, partial })?;
    let text = match output {
        OutputFormat::Table => render(&report),
        OutputFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    output::print(&text)?;
    Ok(ExitCode::from(if report.intact { EXIT_OK } else { EXIT_PROBLEM }))
}

/// The exit code of an error of this command, if it is one.
pub(super) fn exit_code(error: &anyhow::Error) -> Option<u8> {
    error.downcast_ref::<VerifyError>().map(|_| EXIT_UNREADABLE)
}

fn render(report: &Report) -> String {
    let mut text = String::from(if report.intact { "intact\n" } else { "tampered\n" });
    let mut line = |line: String| {
        let _infallible = writeln!(text, "{line}");
    };
    for instance in &report.instances {
        line(describe(instance));
        if let Some(trouble) = &instance.trouble {
            line(format!("  {}", explain(trouble)));
        }
    }
    for trouble in &report.troubles {
        line(explain(trouble));
    }
    for note in &report.notes {
        line(format!("note: {note}"));
    }
    text
}

fn describe(of: &InstanceReport) -> String {
    let verdict = if of.trouble.is_some() { "tampered" } else { "intact" };
    let anchored = of.anchored_seq.map(|seq| format!(", anchored up to {seq}"));
    let lost = (of.lost > 0).then(|| format!(", {} not kept by the agent", of.lost));
    format!(
        "instance {}: {verdict}, {} records, {} to {}, {} to {}{}{}",
        of.instance,
        of.records,
        of.first_seq,
        of.last_seq,
        of.first_time,
        of.last_time,
        anchored.unwrap_or_default(),
        lost.unwrap_or_default()
    )
}

/// `audit.jsonl:7: record 7 of ab… was altered: its hash does not fit`
fn explain(trouble: &Trouble) -> String {
    let file = trouble.file.as_ref().map(|file| match trouble.line {
        Some(line) => format!("{}:{line}: ", file.display()),
        None => format!("{}: ", file.display()),
    });
    let record = trouble.seq.map_or_else(|| "a record".to_owned(), |seq| format!("record {seq}"));
    let of = trouble.instance.as_ref().map(|instance| format!(" of {}", printable(instance)));
    format!(
        "{}{record}{} is {}: {}",
        file.unwrap_or_default(),
        of.unwrap_or_default(),
        trouble.kind,
        trouble.detail
    )
}

/// An altered line may say anything; it must not reach a terminal as it is.
fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}
