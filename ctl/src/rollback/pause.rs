//! `rollbackctl rollback pause`

use clap::Args;
use rollback_proto::v1::steer_rollback_request::{Act, Pause};

use super::steer;
use crate::exit::ExitCode;
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
    #[command(flatten)]
    pub act: steer::PlainAct,
}

pub async fn run(session: &Session, args: PauseArgs) -> anyhow::Result<ExitCode> {
    steer::plainly(session, &args.act, Act::Pause(Pause {}), ":").await
}
