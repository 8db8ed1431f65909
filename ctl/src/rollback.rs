//! `rollbackctl rollback …`

pub mod abort;
pub mod approve;
pub mod list;
pub mod pause;
pub mod report;
pub mod resume;
pub mod retry;
pub mod show;
pub mod skip;
mod steer;
pub mod trace;
pub mod undo;
pub mod watch;

use clap::Subcommand;
use rollback_proto::names::check_name;
use rollback_proto::problem::Problem;
use rollback_proto::v1::{GetRollbackRequest, GetRollbackResponse};

use crate::cli::Format;
use crate::client::{CallError, Client, QUICK};

#[derive(Subcommand, Debug)]
pub enum Verb {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Watch(watch::WatchArgs),
    Pause(pause::PauseArgs),
    Resume(resume::ResumeArgs),
    Retry(retry::RetryArgs),
    Skip(skip::SkipArgs),
    Abort(abort::AbortArgs),
    Undo(undo::UndoArgs),
    Approve(approve::ApproveArgs),
    Trace(trace::TraceArgs),
    Report(report::ReportArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::List(args) => args.output.output,
            Verb::Show(args) => args.output.output,
            Verb::Watch(args) => args.output.output,
            Verb::Pause(args) => args.act.output.output,
            Verb::Resume(args) => args.act.output.output,
            Verb::Retry(args) => args.output.output,
            Verb::Skip(args) => args.output.output,
            Verb::Abort(args) => args.output.output,
            Verb::Undo(args) => args.output.output,
            Verb::Approve(args) => args.output.output,
            Verb::Trace(args) => args.output.output,
            Verb::Report(args) => args.format(),
        }
    }
}

/// Fetches one rollback; `latest` is a name that the coordinator knows.
async fn fetch(client: &mut Client, id: &str) -> Result<GetRollbackResponse, CallError> {
    ask(client, id, false).await
}

/// [`fetch`], with its journal as watchers see it.
async fn fetch_with_events(client: &mut Client, id: &str) -> Result<GetRollbackResponse, CallError> {
    ask(client, id, true).await
}

async fn ask(client: &mut Client, id: &str, events: bool) -> Result<GetRollbackResponse, CallError> {
    let request = GetRollbackRequest {
        id: id.to_owned(),
        events,
    };
    client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.get_rollback(request).await
        })
        .await
}

fn check_id(id: &str) -> Result<(), Problem> {
    check_name("rollback", id)
}
