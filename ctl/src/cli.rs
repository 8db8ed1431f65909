//! What can be typed. Nouns here, verbs in their own files; nothing in this file or in any help text touches the network.

use clap::{Args, Parser, Subcommand, ValueEnum};
use rollback_proto::problem::Problem;

use crate::exit::{self, ExitCode};
use crate::session::Session;
use crate::{agent, completions, doctor, explain, fleet, man, release, rollback, runbook, schema, version};

/// Takes a whole fleet back to the release that worked
///
/// Containers, releases, databases, env files and proxies of all hosts go back
/// together, in the right order, or stay exactly where they are, and you are told
/// why.
///
/// In an incident:
///   rollbackctl fleet status                      what runs where, and is it healthy?
///   rollbackctl fleet plan --to v2.9.0            what would happen? (changes nothing)
///   rollbackctl fleet rollback --to v2.9.0        do it, and watch it
///   rollbackctl rollback show latest              what was done?
///
/// After every good deployment:
///   rollbackctl release record v2.9.0             remember what runs now, so that it can come back
///
/// Before there is an incident:
///   rollbackctl fleet readiness                   could the fleet go back, if it had to now?
///
/// For a release that nobody recorded:
///   rollbackctl release import v2.9.0             every host looks for it by its name
///
/// When something does not answer:
///   rollbackctl doctor                            is this machine able to reach the coordinators, and who leads?
///
/// With several coordinators, list all of them in the context's `endpoints`: whichever
/// answers names the one that leads, and the command goes on there by itself.
#[derive(Parser, Debug)]
#[command(name = "rollbackctl", verbatim_doc_comment, after_long_help = exit::HELP)]
#[command(arg_required_else_help = true, infer_subcommands = false, infer_long_args = false)]
pub struct Cli {
    #[command(flatten)]
    pub session: Session,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// The whole fleet: what runs, what would change, and the rollback itself
    #[command(subcommand)]
    Fleet(fleet::Verb),
    /// Rollbacks that run or ran
    #[command(subcommand)]
    Rollback(rollback::Verb),
    /// Releases: what the fleet can go back to
    #[command(subcommand)]
    Release(release::Verb),
    /// Runbooks: the policy that shapes a rollback
    #[command(subcommand)]
    Runbook(runbook::Verb),
    /// The agents on the hosts
    #[command(subcommand)]
    Agent(agent::Verb),
    Doctor(doctor::DoctorArgs),
    Explain(explain::ExplainArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Version(version::VersionArgs),
}

/// How data is written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs: one JSON object on one line, with `schema` "rollbackctl/v1"
    Json,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// How to write what goes to stdout (everything else goes to stderr)
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
}

impl Command {
    /// The format that was asked for; errors are written in it, too.
    pub fn format(&self) -> Format {
        match self {
            Command::Fleet(verb) => verb.format(),
            Command::Rollback(verb) => verb.format(),
            Command::Release(verb) => verb.format(),
            Command::Runbook(verb) => verb.format(),
            Command::Agent(verb) => verb.format(),
            Command::Doctor(args) => args.output.output,
            Command::Version(args) => args.output.output,
            Command::Explain(_) | Command::Schema(_) | Command::Completions(_) | Command::Man(_) => Format::Table,
        }
    }

    /// Where spans go. Only what starts a rollback is traced: it is the one thing that is looked at afterwards.
    pub fn otlp_endpoint(&self, session: &Session) -> Result<Option<String>, Problem> {
        match self {
            Command::Fleet(fleet::Verb::Rollback(_) | fleet::Verb::Converge(_))
            | Command::Rollback(rollback::Verb::Undo(_) | rollback::Verb::Retry(_)) => {
                Ok(session.context()?.otlp_endpoint())
            }
            Command::Fleet(
                fleet::Verb::Status(_)
                | fleet::Verb::Plan(_)
                | fleet::Verb::Readiness(_)
                | fleet::Verb::Hold(_)
                | fleet::Verb::Unhold(_),
            )
            | Command::Rollback(_)
            | Command::Release(_)
            | Command::Runbook(_)
            | Command::Agent(_)
            | Command::Doctor(_)
            | Command::Explain(_)
            | Command::Schema(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::Version(_) => Ok(None),
        }
    }
}

pub async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let session = cli.session;
    match cli.command {
        Command::Fleet(fleet::Verb::Status(args)) => fleet::status::run(&session, args).await,
        Command::Fleet(fleet::Verb::Plan(args)) => fleet::plan::run(&session, args).await,
        Command::Fleet(fleet::Verb::Readiness(args)) => fleet::readiness::run(&session, args).await,
        Command::Fleet(fleet::Verb::Rollback(args)) => fleet::rollback::run(&session, args).await,
        Command::Fleet(fleet::Verb::Converge(args)) => fleet::converge::run(&session, args).await,
        Command::Fleet(fleet::Verb::Hold(args)) => fleet::hold::run(&session, args).await,
        Command::Fleet(fleet::Verb::Unhold(args)) => fleet::unhold::run(&session, args).await,
        Command::Rollback(rollback::Verb::List(args)) => rollback::list::run(&session, args).await,
        Command::Rollback(rollback::Verb::Show(args)) => rollback::show::run(&session, args).await,
        Command::Rollback(rollback::Verb::Watch(args)) => rollback::watch::run(&session, args).await,
        Command::Rollback(rollback::Verb::Pause(args)) => rollback::pause::run(&session, args).await,
        Command::Rollback(rollback::Verb::Resume(args)) => rollback::resume::run(&session, args).await,
        Command::Rollback(rollback::Verb::Retry(args)) => rollback::retry::run(&session, args).await,
        Command::Rollback(rollback::Verb::Skip(args)) => rollback::skip::run(&session, args).await,
        Command::Rollback(rollback::Verb::Abort(args)) => rollback::abort::run(&session, args).await,
        Command::Rollback(rollback::Verb::Undo(args)) => rollback::undo::run(&session, args).await,
        Command::Rollback(rollback::Verb::Approve(args)) => rollback::approve::run(&session, args).await,
        Command::Rollback(rollback::Verb::Trace(args)) => rollback::trace::run(&session, args).await,
        Command::Rollback(rollback::Verb::Report(args)) => rollback::report::run(&session, args).await,
        Command::Release(release::Verb::Record(args)) => release::record::run(&session, args).await,
        Command::Release(release::Verb::Import(args)) => release::import::run(&session, args).await,
        Command::Release(release::Verb::List(args)) => release::list::run(&session, args).await,
        Command::Release(release::Verb::Show(args)) => release::show::run(&session, args).await,
        Command::Release(release::Verb::Diff(args)) => release::diff::run(&session, args).await,
        Command::Release(release::Verb::Mark(args)) => release::mark::run(&session, args).await,
        Command::Release(release::Verb::Note(args)) => release::note::run(&session, args).await,
        Command::Release(release::Verb::Prune(args)) => release::prune::run(&session, args).await,
        Command::Release(release::Verb::Remove(args)) => release::remove::run(&session, args).await,
        Command::Release(release::Verb::Preflight(args)) => release::preflight::run(&session, args).await,
        Command::Runbook(runbook::Verb::Lint(args)) => runbook::lint::run(&session, args).await,
        Command::Runbook(runbook::Verb::Apply(args)) => runbook::apply::run(&session, args).await,
        Command::Runbook(runbook::Verb::List(args)) => runbook::list::run(&session, args).await,
        Command::Runbook(runbook::Verb::Show(args)) => runbook::show::run(&session, args).await,
        Command::Agent(agent::Verb::List(args)) => agent::list::run(&session, args).await,
        Command::Agent(agent::Verb::Token(args)) => agent::token::run(&session, args).await,
        Command::Doctor(args) => doctor::run(&session, args).await,
        Command::Explain(args) => explain::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Version(args) => version::run(&session, args).await,
    }
}

/// A duration like `30s`, `5m`, `1h 30m`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|_| "write it like 90s, 30m or 1h".to_owned())?;
    match std::time::Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) | Err(_) => Err("it must be longer than nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_is_guessed_from_a_prefix() {
        for line in [["rollbackctl", "fl", "status"], ["rollbackctl", "fleet", "stat"]] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
        assert!(Cli::try_parse_from(["rollbackctl", "fleet", "rollback", "--t", "v1"]).is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("30m"), Ok(std::time::Duration::from_secs(1800)));
        for bad in ["", "0s", "-5s", "30", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
