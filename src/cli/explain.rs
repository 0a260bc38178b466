//! `explain`: one secret in words, or as JSON.

use std::process::ExitCode;

use clap::Args;

use super::agent_client::{self, Question};
use super::{EXIT_OK, OutputFormat, SocketArgs, output};
use crate::status::{ExplainView, render_explain};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The secret, as on Vault's command line or as an API path: secret/shop/db.
    path: String,
    /// Asks for this identity instead: uid:1000, volume:shop, pod:NAMESPACE/SERVICEACCOUNT.
    #[arg(long = "as", value_name = "ID")]
    as_id: Option<String>,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let mut query = vec![("path", args.path.as_str())];
    query.extend(args.as_id.as_deref().map(|id| ("as", id)));
    agent_client::block_on(async {
        let question = Question::Get { path: "/agent/v1/explain", query: &query };
        let view: ExplainView = agent_client::ask(&args.socket.socket, question).await?;
        match args.output {
            OutputFormat::Table => output::print(&render_explain(&view))?,
            OutputFormat::Json => {
                output::print(&format!("{}\n", serde_json::to_string_pretty(&view)?))?;
            }
        }
        Ok(ExitCode::from(EXIT_OK))
    })
}
