//! `rollbackctl rollback undo`

use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{RollbackState, RollbackTarget};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::fleet::rollback::{StartArgs, Wanted, go};
use crate::fleet::target::ShapeArgs;
use crate::output::text::clean;
use crate::output::words;
use crate::session::Session;

/// Take back a rollback that has ended: everything goes to where it was before
///
/// A new rollback like any other: it has a plan, preflight, a backup, and you are
/// asked. A database that was restored from a backup there is not taken back, since
/// what was written in the meantime would be lost: --database keep leaves it, with
/// --database migrate only its schema goes.
///
/// One that still runs is not undone but aborted: rollbackctl rollback abort.
///
/// Exit codes: as of `fleet rollback`; 3 also when there is no way back.
///
/// Examples:
///   rollbackctl rollback undo latest --reason "v3.0.0 was not the cause"
///   rollbackctl rollback undo 0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f --database keep
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct UndoArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub shape: ShapeArgs,
    #[command(flatten)]
    pub start: StartArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: UndoArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let target = args.shape.target()?;
    args.start.check()?;
    let mut client = session.client()?;
    // `latest` is resolved once: the undo itself is a rollback, too.
    let summary = steer::resolve(&mut client, &args.id).await?.summary.unwrap_or_default();
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let state = RollbackState::try_from(summary.state).unwrap_or(RollbackState::Unspecified);
    if !words::is_over(state) {
        let text = format!("rollback {id} to {release} has not ended");
        return Err(Problem::new(Code::ActUnfit, text)
            .remedy(format!(
                "end it, and everything is undone: rollbackctl rollback abort {id} --undo --reason TEXT"
            ))
            .into());
    }
    let wanted = Wanted {
        target: RollbackTarget {
            undo_of: summary.id.clone(),
            ..target
        },
        saved: None,
        question: format!("Take the rollback to {release} back, to where everything was before it?"),
    };
    go(session, wanted, &args.start, args.output.output).await
}
