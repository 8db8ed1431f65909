//! `rollbackctl completions`

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::ExitCode;
use crate::output;

/// Print a completion script for a shell
///
/// Examples:
///   rollbackctl completions bash > /etc/bash_completion.d/rollbackctl
///   rollbackctl completions zsh > "${fpath[1]}/_rollbackctl"
///   rollbackctl completions fish > ~/.config/fish/completions/rollbackctl.fish
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rollbackctl", &mut script);
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::Done)
}
