//! `unlock`: lets a pod in again that was locked out of the node socket.

use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;

use super::agent_client::{self, Question};
use super::{EXIT_OK, EXIT_PROBLEM, SocketArgs, output};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   the pod is let in again
  1   no such pod is locked out
  2   no agent answers on the socket
  64  the command line is wrong";

#[derive(Debug, Args)]
pub(super) struct UnlockArgs {
    /// The pod, as status shows it: NAMESPACE/NAME, or its uid.
    pod: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What the agent did.
#[derive(Deserialize)]
struct Unlocked {
    unlocked: usize,
}

pub(super) fn unlock(args: &UnlockArgs) -> anyhow::Result<ExitCode> {
    agent_client::block_on(async {
        let body = serde_json::json!({ "pod": args.pod });
        let question = Question::Post { path: "/agent/v1/unlock", body: &body };
        let done: Unlocked = agent_client::ask(&args.socket.socket, question).await?;
        let (text, code) = match done.unlocked {
            0 => ("is not locked out", EXIT_PROBLEM),
            _ => ("is let in again", EXIT_OK),
        };
        output::print(&format!("pod {} {text}\n", args.pod))?;
        Ok(ExitCode::from(code))
    })
}
