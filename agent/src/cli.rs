//! The command line: one file for each verb. Data goes to stdout, everything else to stderr.

mod check_config;
mod database;
mod enroll;
mod observe;
mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rollback_proto::problem::Problem;

use crate::config::Settings;

#[derive(Debug, Parser)]
#[command(
    name = "rollback-agent",
    version,
    about = "Does the steps of a rollback on this host, as its own configuration allows",
    long_about = "The daemon of rollbackctl on a host. It manages the components that its configuration declares, and \
                  does nothing else: a coordinator can ask for a component's moves, never for a command or a path.",
    after_long_help = "First steps on a new host:
  1. write /etc/rollback-agent/agent.toml        rollback-agent check-config
  2. see what it finds on this host              rollback-agent observe
  3. at your desk                                rollbackctl agent token NAME
  4. join the fleet                              rollback-agent enroll --coordinator HOST:PORT --token TOKEN
  5. start it                                    rollback-agent run"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon
    #[command(
        long_about = "Runs the daemon until SIGTERM or SIGINT. Steps that run then get 20 seconds to end; a step that is \
                      cut off is resolved at the next start and never done twice.",
        after_long_help = "Examples:
  rollback-agent run
  rollback-agent run --config ./agent.toml --ready-file ./ready.json
  ROLLBACK_LOG=debug rollback-agent run"
    )]
    Run(run::Args),
    /// Turn a join token into this host's certificate
    #[command(
        long_about = "Makes a private key on this host (it never leaves it), has the coordinator certify it, and writes \
                      ca.pem, agent.pem and agent.key (0600) into the `pki` directory of the configuration. A token \
                      works once, for 15 minutes, and only for the name that it was made for.",
        after_long_help = "Example:
  at your desk     rollbackctl agent token app-1
  on the host      rollback-agent enroll --coordinator coord-1:7443 --token rbt1.app-1.…"
    )]
    Enroll(enroll::Args),
    /// Say whether the configuration is right, and what it allows
    #[command(
        long_about = "Reads the configuration, makes every driver from it, and prints what a coordinator could ask of \
                      this host. Changes nothing and needs no coordinator.",
        after_long_help = "Example:
  rollback-agent check-config --config ./agent.toml"
    )]
    CheckConfig(check_config::Args),
    /// Show the revision and the health of every component and ask every check, without a coordinator
    #[command(after_long_help = "Examples:
  rollback-agent observe
  rollback-agent observe -o json | jq '.components[] | select(.problem)'

Exit status: 0 when every component could be observed and no check failed, 1 otherwise. An unhealthy component that
could be observed does not count; checks of logs are not asked, because they judge what follows a switch.")]
    Observe(observe::Args),
    /// List, make, take in and collect backups of a database
    #[command(
        subcommand,
        long_about = "What an operator does with the backups of a database on its own host. Works beside a running agent \
                      and needs no coordinator. Run it as the agent's user.",
        after_long_help = "Examples:
  rollback-agent database list db
  rollback-agent database backup db
  rollback-agent database adopt db /var/backups/shop-v2.9.0.dump"
    )]
    Database(database::Verb),
}

/// Where the configuration is; the same for every verb.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration
    #[arg(long = "config", value_name = "FILE", env = "ROLLBACK_AGENT_CONFIG")]
    #[arg(default_value = "/etc/rollback-agent/agent.toml")]
    path: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> Result<Settings, Problem> {
        Ok(Settings::load(&self.path)?)
    }

    /// A mistake that only the drivers found, in this file.
    fn wrong(&self, mistake: crate::config::Mistake) -> Problem {
        crate::config::ConfigError::Wrong {
            path: self.path.clone(),
            mistake,
        }
        .into()
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    rollback_proto::tls::install_crypto();
    let cli = Cli::parse();
    // An agent is idle nearly always, and one slow driver must not hold up another component.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(cli.verb.run());
            // A driver that blocks must not keep a process alive that was told to stop.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("start the runtime")),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

impl Verb {
    async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Verb::Run(args) => run::run(args).await,
            Verb::Enroll(args) => enroll::run(args).await,
            Verb::CheckConfig(args) => check_config::run(&args),
            Verb::Observe(args) => observe::run(args).await,
            Verb::Database(verb) => database::run(verb).await,
        }
    }
}

/// An error with its code, and what to do next where that is known.
fn complain(error: &anyhow::Error) {
    match error.downcast_ref::<Problem>() {
        Some(problem) => {
            eprintln!("error {}: {}", problem.code, problem.message);
            eprintln!("  what to do: {}", problem.remedy);
        }
        None => eprintln!("error: {error:#}"),
    }
}

/// Data for the caller. A reader that closed its end early is not an error of ours.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Left-aligned columns, two spaces apart; the last one is not padded.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
        }
    }
}
