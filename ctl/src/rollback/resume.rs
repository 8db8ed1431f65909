//! `rollbackctl rollback resume`

use clap::Args;
use rollback_proto::v1::steer_rollback_request::{Act, Resume};

use super::steer;
use crate::exit::ExitCode;
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
    #[command(flatten)]
    pub act: steer::PlainAct,
}

pub async fn run(session: &Session, args: ResumeArgs) -> anyhow::Result<ExitCode> {
    steer::plainly(session, &args.act, Act::Resume(Resume {}), " goes on").await
}
