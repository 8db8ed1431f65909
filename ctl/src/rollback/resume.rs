//! `rollbackctl rollback resume`

use clap::Args;
use rollback_proto::v1::steer_rollback_request::{Act, Resume};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::output::text::clean;
use crate::session::Session;

/// Go on with a rollback that was paused
///
/// It goes on where it stopped. When steps failed before the pause, what the
/// runbook says of a failure happens now (undo, hold); where the runbook itself
/// paused it because of a failure, decide: rollback retry, skip or abort.
///
/// Exit codes: 0 it goes on, 1 error (also: it is not paused).
///
/// Examples:
///   rollbackctl rollback resume latest && rollbackctl rollback watch latest
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ResumeArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ResumeArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let act = Act::Resume(Resume {});
    let summary = steer::steer(&mut client, &args.id, &args.reason, act).await?;
    let done = format!("rollback {} to {} goes on", clean(&summary.id), clean(&summary.release));
    steer::tell(&mut client, &summary, &done, args.output.output).await
}
