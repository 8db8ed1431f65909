//! Completion: `rollbackctl completions SHELL` prints a few lines that let the shell ask this program for every word, so that
//! releases, hosts and rollbacks are completed as they are in the fleet now ([`candidates`]).
//!
//! Whatever goes wrong while a word is completed, nothing is written to stderr: somebody is typing there.

mod candidates;

use std::ffi::OsString;

use clap::Args;
use clap_complete::Shell;
use clap_complete::env::{CompleteEnv, Shells};

use crate::exit::ExitCode;
use crate::output;

/// Set by the shell's lines: which shell asks.
const ASKS: &str = "ROLLBACKCTL_COMPLETE";
const NAME: &str = "rollbackctl";

/// Print what a shell needs to complete commands, releases, hosts and rollbacks
///
/// Releases, hosts, services, labels, runbooks and rollbacks are asked of the
/// coordinator while you type, for 400 ms at most; when it does not answer, they are
/// not completed and nothing is said. Options and help never ask anybody.
///
/// The lines call the rollbackctl that is on the PATH. Make them anew after an upgrade,
/// or at every start of the shell as in the last example.
///
/// Examples:
///   rollbackctl completions bash > /etc/bash_completion.d/rollbackctl
///   rollbackctl completions zsh > "${fpath[1]}/_rollbackctl"
///   rollbackctl completions fish > ~/.config/fish/completions/rollbackctl.fish
///   echo 'source <(rollbackctl completions bash)' >> ~/.bashrc
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let shell = args.shell.to_string();
    let shells = Shells::builtins();
    let shell = shells
        .completer(&shell)
        .ok_or_else(|| anyhow::anyhow!("{shell} cannot be completed"))?;
    let mut script = Vec::new();
    shell.write_registration(ASKS, NAME, NAME, NAME, &mut script)?;
    output::data(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::Done)
}

/// Answers a shell that asks for candidates. `None`: nobody asks, this is a command to be run.
pub fn answer() -> Option<ExitCode> {
    std::env::var_os(ASKS)?;
    let line: Vec<OsString> = std::env::args_os().collect();
    // What is still missing in the line is what is asked for; its context is there, or in the environment.
    let context = context(&line);
    let factory = || candidates::attach(clap_command(), context.clone());
    let answered = CompleteEnv::with_factory(factory)
        .var(ASKS)
        .bin(NAME)
        .completer(NAME)
        .try_complete(line, std::env::current_dir().ok().as_deref());
    Some(match answered {
        Ok(true) => ExitCode::Done,
        Ok(false) | Err(_) => ExitCode::Error,
    })
}

fn clap_command() -> clap::Command {
    <crate::cli::Cli as clap::CommandFactory>::command()
}

/// The context that the line names, as [`crate::session::Session`] would find it.
fn context(line: &[OsString]) -> Option<OsString> {
    let mut words = line.iter();
    while let Some(word) = words.next() {
        if word == "--context" {
            return words.next().cloned();
        }
        if let Some(given) = word.to_str().and_then(|word| word.strip_prefix("--context=")) {
            return Some(given.into());
        }
    }
    std::env::var_os("ROLLBACKCTL_CONTEXT").filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_whose_fleet_it_is() {
        let line = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            context(&line(&["r", "--context", "a.toml", "fleet"])),
            Some("a.toml".into())
        );
        assert_eq!(
            context(&line(&["r", "fleet", "--context=b.toml"])),
            Some("b.toml".into())
        );
    }
}
