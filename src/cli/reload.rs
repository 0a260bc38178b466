//! `reload`: has the configuration file read now, and a held policy put in force.

use std::process::ExitCode;

use clap::Args;

use super::agent_client::{self, Question};
use super::{EXIT_OK, EXIT_PROBLEM, OutputFormat, SocketArgs, output};
use crate::status::{ReloadOutcome, ReloadView, render_reload};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   the policy of the configuration file is in force
  1   it is held or refused, and the old one is in force
  2   no agent answers on the socket
  64  the command line is wrong";

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Puts the policy in force whatever it takes from volumes.
    #[arg(long)]
    accept: bool,
    /// How to print what became of it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn reload(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    agent_client::block_on(async {
        let body = serde_json::json!({ "accept": args.accept });
        let question = Question::Post { path: "/agent/v1/reload", body: &body };
        let view: ReloadView = agent_client::ask(&args.socket.socket, question).await?;
        output::print(&match args.output {
            OutputFormat::Table => render_reload(&view),
            OutputFormat::Json => serde_json::to_string_pretty(&view)? + "\n",
        })?;
        Ok(ExitCode::from(match view.outcome {
            ReloadOutcome::InForce => EXIT_OK,
            ReloadOutcome::Held | ReloadOutcome::Refused | ReloadOutcome::NoFile => EXIT_PROBLEM,
        }))
    })
}
