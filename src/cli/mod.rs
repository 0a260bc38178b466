//! The command line: arguments in, an exit code out. The only folder that prints.

#![expect(clippy::print_stderr, reason = "the command line is what talks to people")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::delivery::socket::client::ClientError;
use crate::hardening::Hardened;

mod agent_client;
mod audit;
mod check_config;
mod check_volume;
pub mod dev;
pub mod encrypt;
mod explain;
mod mounter;
mod output;
mod pages;
mod policy;
mod refresh;
mod reload;
pub mod run;
mod status;
mod unlock;

/// The command did what it was asked, and `status` found everything in order.
const EXIT_OK: u8 = 0;
/// The agent is degraded, the configuration has problems, or the command failed.
const EXIT_PROBLEM: u8 = 1;
/// No agent answers on the socket.
const EXIT_NO_AGENT: u8 = 2;
/// The command line itself is wrong (`EX_USAGE`), so that scripts can tell it from "no agent".
const EXIT_USAGE: u8 = 64;

const EXIT_CODES: &str = "\
Exit codes:
  0   done; status: healthy
  1   failed; status: degraded; check-config, check-volume: problems
  2   no agent answers on the socket
  64  the command line is wrong";

/// Node-local secrets agent: Vault secrets as files on tmpfs or over a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "secrets-broker", version, after_help = EXIT_CODES)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent until it is told to stop (SIGTERM, SIGINT).
    Run(run::RunArgs),
    /// Runs the privileged half of an agent that is split in two: mounts, and nothing else.
    Mounter(mounter::MounterArgs),
    /// Runs a complete agent for trying out: no Vault, no root, no configuration.
    Dev(dev::DevArgs),
    /// Shows how the agent and its secrets are: cause and deadlines first when something is wrong.
    #[command(after_help = EXIT_CODES)]
    Status(status::StatusArgs),
    /// Explains one secret: lease, age, next renewal, last error, consumers, who may read it.
    #[command(after_help = EXIT_CODES)]
    Explain(explain::ExplainArgs),
    /// Has a secret fetched again now; leased ones are renewed instead.
    #[command(after_help = EXIT_CODES)]
    Refresh(refresh::RefreshArgs),
    /// Has the agent read its configuration now; puts a policy in force that is held.
    #[command(after_help = reload::EXIT_CODES)]
    Reload(reload::ReloadArgs),
    /// Lets a pod in again that was locked out of the node socket for forged tokens.
    #[command(after_help = unlock::EXIT_CODES)]
    Unlock(unlock::UnlockArgs),
    /// Checks a configuration: every problem with file, line, reason and remedy. Changes nothing.
    CheckConfig(ConfigArgs),
    /// Checks the volumes of a Kubernetes manifest as the CSI driver would, without a cluster.
    #[command(after_help = check_volume::EXIT_CODES)]
    CheckVolume(check_volume::CheckVolumeArgs),
    /// Answers what the policy of a configuration decides.
    Policy(policy::PolicyArgs),
    /// Encrypts a value for the configuration or a local source; makes keys.
    Encrypt(encrypt::EncryptArgs),
    /// Decrypts such a value.
    Decrypt(encrypt::DecryptArgs),
    /// Looks after the audit log.
    Audit(audit::AuditArgs),
    /// Prints completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, as roff: secrets-broker man | man -l -
    Man {
        /// The page of this command instead of the overview.
        command: Option<String>,
    },
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "SECRETS_BROKER_CONFIG",
        default_value = "/etc/secrets-broker/config.toml"
    )]
    pub config: PathBuf,
}

/// Which agent.
#[derive(Debug, Args)]
struct SocketArgs {
    /// The agent's operator socket; on the host socket a caller sees only itself.
    #[arg(
        long,
        value_name = "PATH",
        env = "SECRETS_BROKER_SOCKET",
        default_value = "/run/secrets-broker/operator/operator.sock"
    )]
    socket: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people.
    Table,
    /// For programs; the fields are stable.
    Json,
}

/// Parses the process's arguments, runs the command and reports what went wrong.
pub fn main(hardened: &Hardened) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, on standard output and with code 0.
            let code = if error.use_stderr() { EXIT_USAGE } else { EXIT_OK };
            let _nobody_listens = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli.command, hardened) {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::from(EXIT_OK),
        Err(error) => {
            eprintln!("error: {error:#}");
            let no_agent = matches!(
                error.downcast_ref(),
                Some(agent_client::AgentError::Client(ClientError::NoAgent(_)))
            );
            let code = if no_agent { Some(EXIT_NO_AGENT) } else { audit::exit_code(&error) };
            ExitCode::from(code.unwrap_or(EXIT_PROBLEM))
        }
    }
}

fn dispatch(command: Command, hardened: &Hardened) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args, hardened),
        Command::Mounter(args) => mounter::mounter(args, hardened),
        Command::Dev(args) => dev::dev(&args, hardened),
        Command::Status(args) => status::status(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Refresh(args) => refresh::refresh(&args),
        Command::Reload(args) => reload::reload(&args),
        Command::Unlock(args) => unlock::unlock(&args),
        Command::CheckConfig(args) => check_config::check_config(&args),
        Command::CheckVolume(args) => check_volume::check_volume(&args),
        Command::Policy(args) => policy::policy(&args),
        Command::Encrypt(args) => encrypt::encrypt(args),
        Command::Decrypt(args) => encrypt::decrypt(args),
        Command::Audit(args) => audit::audit(args),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { command } => pages::man(command.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
