//! `rollbackctl rollback abort`

use anyhow::Context as _;
use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::steer_rollback_request::abort::Then;
use rollback_proto::v1::steer_rollback_request::{Abort, Act};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::fleet::rollback::{confirm, has_terminal};
use crate::output;
use crate::output::text::clean;
use crate::session::Session;

/// End a rollback: undo everything that was begun, or leave it as it is
///
/// What runs now ends first. Works also while it is paused, and while it waits for
/// an approval (then nothing was touched). While it is being undone already only
/// --hold fits. --undo holds instead when something was begun that cannot be
/// reversed.
///
/// On a terminal you are asked; elsewhere --yes is needed.
///
/// Exit codes: 0 the abort is written down, 1 error (also: it has ended, or you
/// answered no). How it ended in the end: rollback watch.
///
/// Examples:
///   rollbackctl rollback abort latest --undo --reason "v2.9.0 has the bug, too"
///   rollbackctl rollback abort latest --hold --reason "going on by hand" --yes
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
#[command(group(clap::ArgGroup::new("then").required(true).args(["undo", "hold"])))]
pub struct AbortArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID")]
    pub id: String,
    /// Reverse every step that was begun and has a way back, newest first
    #[arg(long)]
    pub undo: bool,
    /// Leave everything where it is, for a person
    #[arg(long)]
    pub hold: bool,
    /// Why; kept in the journal and in the report
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Do not ask. Needed when there is no terminal
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: AbortArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    if !args.yes && !has_terminal() {
        let text = "this ends a rollback in the middle, and there is no terminal to ask you on";
        return Err(Problem::new(Code::BadRequest, text)
            .remedy("if you mean it, add --yes")
            .into());
    }
    let mut client = session.client()?;
    let then = if args.undo { Then::Undo } else { Then::Hold };
    let mut id = args.id.clone();
    if !args.yes {
        let details = steer::resolve(&mut client, &args.id).await?;
        let summary = details.summary.context("has a summary")?;
        let what = if args.undo {
            "and reverse everything that was begun"
        } else {
            "and leave everything where it is"
        };
        let (release, phase) = (clean(&summary.release), clean(&summary.phase));
        let question = if phase.is_empty() {
            format!("End the rollback to {release}, of which nothing has begun?")
        } else {
            format!("End the rollback to {release} in phase {phase} {what}?")
        };
        if !confirm(&question)? {
            output::note("Not aborted.");
            return Ok(ExitCode::Error);
        }
        id = summary.id;
    }
    let act = Act::Abort(Abort { then: then.into() });
    let summary = steer::steer(&mut client, &id, &args.reason, act).await?;
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let done = if summary.blocked {
        format!("rollback {id} to {release} is ended before anything was touched")
    } else if args.undo {
        format!(
            "rollback {id} to {release} is being ended: what was begun is reversed, as soon as what runs now is over"
        )
    } else {
        format!("rollback {id} to {release} is ended: it stays as it is, when what runs now has ended")
    };
    steer::tell(&mut client, &summary, &done, args.output.output).await
}
