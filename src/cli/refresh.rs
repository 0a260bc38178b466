//! `refresh`: has a secret fetched again now.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;

use super::agent_client::{self, Question};
use super::{EXIT_OK, SocketArgs, output};

#[derive(Debug, Args)]
pub(super) struct RefreshArgs {
    /// The secret, as on Vault's command line or as an API path: secret/shop/db.
    path: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What the agent did.
#[derive(Deserialize)]
struct Refreshed {
    secret: String,
    entries: usize,
}

pub(super) fn refresh(args: &RefreshArgs) -> anyhow::Result<ExitCode> {
    agent_client::block_on(async {
        let body = serde_json::json!({ "path": args.path });
        let question = Question::Post { path: "/agent/v1/refresh", body: &body };
        let done: Refreshed = agent_client::ask(&args.socket.socket, question).await?;
        let text = match done.entries {
            0 => format!("{}: nothing is cached, the next read fetches it\n", done.secret),
            1 => format!("{}: 1 entry is being refreshed\n", done.secret),
            entries => format!("{}: {entries} entries are being refreshed\n", done.secret),
        };
        output::print(&text)?;
        Ok(ExitCode::from(EXIT_OK))
    })
}
