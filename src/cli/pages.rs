//! `completions` and `man`: made from the command line's own description.

use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use super::{Cli, EXIT_OK, output};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "secrets-broker", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::from(EXIT_OK))
}

pub(super) fn man(command: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut all = Cli::command();
    // Gives subcommands their full names and global settings.
    all.build();
    let page = match command {
        None => all,
        Some(name) => all.find_subcommand(name).cloned().with_context(|| {
            let names: Vec<&str> = all.get_subcommands().map(clap::Command::get_name).collect();
            format!("no command is named '{name}'; there are: {}", names.join(", "))
        })?,
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page).render(&mut roff)?;
    output::print(&String::from_utf8_lossy(&roff))?;
    Ok(ExitCode::from(EXIT_OK))
}
