//! `status`: once or followed; tables on a terminal, a line per change in a pipe, or JSON.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::agent_client::{self, AgentError, Question};
use super::{EXIT_OK, EXIT_PROBLEM, OutputFormat, SocketArgs, output};
use crate::status::{Health, StatusView, changes, render_status};

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor to the top left.
const HOME: &str = "\x1b[H";
/// Clears to the end of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears to the end of the screen.
const CLEAR_BELOW: &str = "\x1b[J";

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Follows the status until Ctrl-C: redrawn on a terminal, one line per change in a pipe.
    #[arg(long, short)]
    watch: bool,
    /// How to print it; JSON with --watch is one line whenever something changed.
    #[arg(long, short, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    agent_client::block_on(async {
        let view = fetch(args).await?;
        if args.watch {
            return watch(args, view).await;
        }
        match args.output {
            OutputFormat::Table => output::print(&render_status(&view, output::style()))?,
            OutputFormat::Json => {
                output::print(&format!("{}\n", serde_json::to_string_pretty(&view)?))?;
            }
        }
        Ok(ExitCode::from(match view.health {
            Health::Healthy => EXIT_OK,
            Health::Degraded => EXIT_PROBLEM,
        }))
    })
}

async fn fetch(args: &StatusArgs) -> Result<StatusView, AgentError> {
    let question = Question::Get { path: "/agent/v1/status", query: &[] };
    agent_client::ask(&args.socket.socket, question).await
}

/// Ends with Ctrl-C, or when nobody reads any more. An agent that goes away is waited for.
async fn watch(args: &StatusArgs, first: StatusView) -> anyhow::Result<ExitCode> {
    show(args, None, Ok(&first))?;
    let mut last = first;
    loop {
        tokio::time::sleep(INTERVAL).await;
        match fetch(args).await {
            Ok(view) => {
                show(args, Some(&last), Ok(&view))?;
                last = view;
            }
            Err(error) => show(args, Some(&last), Err(&error))?,
        }
    }
}

fn show(
    args: &StatusArgs,
    last: Option<&StatusView>,
    now: Result<&StatusView, &AgentError>,
) -> anyhow::Result<()> {
    let view = match now {
        Ok(view) => view,
        Err(error) if output::is_terminal() && args.output == OutputFormat::Table => {
            return output::print(&screen(&format!("{error}\n"), output::size()));
        }
        // Standard output is for what the agent says.
        Err(error) => {
            eprintln!("{error}");
            return Ok(());
        }
    };
    if output::is_terminal() && args.output == OutputFormat::Table {
        return output::print(&screen(&render_status(view, output::style()), output::size()));
    }
    let lines = changes(last, view);
    match args.output {
        OutputFormat::Table => {
            lines.iter().try_for_each(|line| output::print(&format!("{line}\n")))
        }
        OutputFormat::Json if lines.is_empty() => Ok(()),
        OutputFormat::Json => output::print(&format!("{}\n", serde_json::to_string(view)?)),
    }
}

/// The text drawn over what was there, without the flicker of clearing first; cut to the rows.
fn screen(text: &str, size: Option<(u16, u16)>) -> String {
    let rows = size.map_or(usize::MAX, |(_, rows)| usize::from(rows).saturating_sub(1));
    let lines: Vec<String> =
        text.lines().take(rows).map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{HOME}{}{CLEAR_BELOW}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_redrawn_in_place_and_never_scrolls() {
        assert_eq!(screen("a\nb\nc\n", Some((80, 3))), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(screen("a\n", None), "\x1b[Ha\x1b[K\n\x1b[J");
    }
}
