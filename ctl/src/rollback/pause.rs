//! `rollbackctl rollback pause`

use clap::Args;
use rollback_proto::v1::steer_rollback_request::{Act, Pause};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::output::text::clean;
use crate::session::Session;

/// Pause a rollback: what runs now ends, and nothing new begins until you resume
///
/// Also while it is being undone. You are told what that means meanwhile: an
/// application that was stopped stays stopped, a proxy in maintenance stays so.
/// Its part of the fleet stays locked.
///
/// Exit codes: 0 it is paused (also when it was already), 1 error.
///
/// Examples:
///   rollbackctl rollback pause --reason "looking at the graphs"
///   rollbackctl rollback resume latest
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PauseArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: PauseArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let act = Act::Pause(Pause {});
    let summary = steer::steer(&mut client, &args.id, &args.reason, act).await?;
    let done = format!("rollback {} to {}:", clean(&summary.id), clean(&summary.release));
    steer::tell(&mut client, &summary, &done, args.output.output).await
}
