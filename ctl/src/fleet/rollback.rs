//! `rollbackctl fleet rollback`: the one that matters.

mod ask;
mod consent;
mod go;
mod start;

use std::path::PathBuf;

use clap::Args;
use rollback_proto::problem::{Code, Problem};

use crate::cli::{OutputArgs, parse_duration};
use crate::exit::ExitCode;
use crate::fleet::plan_file::PlanFile;
use crate::fleet::target::ShapeArgs;
use crate::output;
use crate::output::text::clean;
use crate::session::Session;

use consent::Accept;

pub use ask::{confirm, has_terminal};
pub use go::{Wanted, go};

/// Take the fleet back to a release, and watch it until it ends
///
/// First every host proves that it can finish (preflight, stage); only then is
/// anything switched. When a step fails, everything that was switched goes back.
/// On a terminal the plan is shown and you are asked; elsewhere --yes is needed.
///
/// Restoring a database from a backup loses what was written since. That needs
/// --accept-data-loss: with =ROWS at most so many rows (in each database), with
/// =all any loss, bare what the plan shows plus a tenth and 1000 rows. Writers go on
/// until they are stopped; then the agents count again, and where it would cost more
/// than was agreed to, nothing is exchanged and everything goes back (exit code 5).
/// On a terminal you can also agree by typing the number that is shown.
///
/// A plan that was saved with `fleet plan --out` is started with --plan: exactly that
/// plan, or none. When the fleet has moved since, you are told what moved.
///
/// Part of the fleet goes back with --service, --host and -l (all that are given have
/// to fit). Rollbacks of different parts may run at the same time.
///
/// --on-failure pause stops at the first failure and leaves the choice to you:
/// rollbackctl rollback retry, skip or abort. Where the runbook asks for a second
/// operator, nothing begins before: rollbackctl rollback approve.
///
/// The rollback runs on the coordinator. Ctrl-C, a closed terminal or a broken
/// network stop the watching, never the rollback: come back with `rollbackctl
/// rollback watch latest`.
///
/// Exit codes:
///   0  the target was observed and verified on every host in scope
///   1  error (also: you answered no)
///   3  blocked by preflight, nobody agreed to a loss of data or approved in time, or the
///      saved plan is stale; nothing was touched
///   4  partial: the target was not reached on every host
///   5  undone, aborted or held: the target was not reached
///   6  another rollback holds the scope
///   7  started and still running: --detach, Ctrl-C or --timeout
///
/// Examples:
///   rollbackctl fleet rollback --to v2.9.0 --reason "error rate 12 %" --incident INC-4711
///   rollbackctl fleet rollback --to previous --yes
///   rollbackctl fleet rollback --to v2.9.0 --database keep
///   rollbackctl fleet rollback --to v2.9.0 --database restore --accept-data-loss=500 --yes
///   rollbackctl fleet rollback --plan plan.json --incident INC-4711
///   rollbackctl fleet rollback --to v2.9.0 --service api --exclude-host app-3 --on-failure pause
///   rollbackctl fleet rollback --to v2.9.0 --yes -o json | tail -n 1 | jq .state
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RollbackArgs {
    /// The release to go back to, or `previous`: the newest stable one that is not what runs now
    #[arg(long, value_name = "RELEASE", required_unless_present = "plan")]
    pub to: Option<String>,
    /// Start exactly the plan in this file, which `fleet plan --out` has written
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["to", "runbook", "database", "on_failure", "service", "host", "label", "exclude_service", "exclude_host"])]
    pub plan: Option<PathBuf>,
    #[command(flatten)]
    pub shape: ShapeArgs,
    #[command(flatten)]
    pub start: StartArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What every verb takes that starts a rollback.
#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// The incident it belongs to; kept in the journal
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub incident: String,
    /// Do not ask. Needed when there is no terminal
    #[arg(long)]
    pub yes: bool,
    /// Agree that rows are lost by restoring databases: =ROWS at most so many, =all any; bare: what the plan shows and some room
    #[arg(long, value_name = "ROWS|all", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = consent::SHOWN, value_parser = consent::parse)]
    pub accept_data_loss: Option<Accept>,
    /// Start it, print its id and do not wait (exit code 7)
    #[arg(long)]
    pub detach: bool,
    /// Stop watching after this time, like 30m (exit code 7); the rollback goes on. Default: watch until it ends
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "detach")]
    pub timeout: Option<std::time::Duration>,
}

impl StartArgs {
    /// Refuses before anybody is asked for anything.
    pub fn check(&self) -> Result<(), Problem> {
        if self.yes || has_terminal() {
            return Ok(());
        }
        let text = "a rollback changes the whole fleet, and there is no terminal to ask you on";
        Err(Problem::new(Code::BadRequest, text).remedy("if you mean it, add --yes"))
    }
}

pub async fn run(session: &Session, args: RollbackArgs) -> anyhow::Result<ExitCode> {
    let wanted = match (&args.plan, &args.to) {
        (Some(path), _) => {
            let file = PlanFile::read(path)?;
            output::note(&format!(
                "the plan of {} at {}, for {}",
                clean(&file.saved_by),
                clean(&file.saved_at),
                clean(&file.fleet)
            ));
            Wanted {
                target: file.target()?,
                saved: Some((file.sealed(), file.digest)),
                question: format!("Roll the fleet back to {}?", clean(&file.release)),
            }
        }
        (None, to) => {
            let to = to.as_deref().unwrap_or_default();
            Wanted {
                target: args.shape.target_to(to)?,
                saved: None,
                question: String::new(),
            }
        }
    };
    args.start.check()?;
    go(session, wanted, &args.start, args.output.output).await
}
