//! Starting, exactly once, over a network that may lose the answer.

use std::time::Duration;

use rollback_proto::problem::Code;
use rollback_proto::v1::{
    ListRollbacksRequest, RollbackState, RollbackSummary, StartRollbackRequest, StartRollbackResponse,
};
use serde_json::json;
use tokio::time::Instant;

use crate::cli::Format;
use crate::client::{ALL_HOSTS, Backoff, CallError, Client, QUICK};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::{self, json as documents, problem, status, words};

/// How long we keep asking a coordinator that does not answer. A restart or a change of leader takes seconds.
const ASK_FOR: Duration = Duration::from_secs(60);

/// Asks until there is an answer. Every attempt carries the same `request_id`, so that an attempt whose answer was lost
/// and the next one are the same rollback, whichever replica they reach.
pub async fn start(client: &mut Client, request: StartRollbackRequest) -> Result<StartRollbackResponse, CallError> {
    let give_up = Instant::now() + ASK_FOR;
    let mut backoff = Backoff::new();
    // An answer was lost: it may have been started.
    let mut unknown = false;
    loop {
        let answer = client
            .call(ALL_HOSTS, request.clone(), |mut fleet, request| async move {
                fleet.start_rollback(request).await
            })
            .await;
        let error = match answer {
            // Nobody led for as long as a call waits for that. Once an answer was lost, it is worth more patience.
            Err(error) if error.lost || unknown && error.problem.code == Code::NotLeader => error,
            other => return other,
        };
        if Instant::now() >= give_up {
            return Err(nobody_can_tell(error));
        }
        if !std::mem::replace(&mut unknown, true) {
            let why = clean(&error.problem.message);
            output::note(&format!("no answer from the coordinator, asking again … ({why})"));
        }
        backoff.pause().await;
    }
}

fn nobody_can_tell(mut error: CallError) -> CallError {
    error.problem.message = format!(
        "nobody can tell whether the rollback was started: {}",
        error.problem.message
    );
    error.problem.remedy =
        "when the coordinator answers again, look before you try again: rollbackctl rollback list".to_owned();
    error
}

/// Somebody else is rolling back: who, where to, since when.
pub async fn show_holders(client: &mut Client, held: CallError, format: Format) -> anyhow::Result<ExitCode> {
    let paint = Paint::stderr();
    output::note(&problem::error(&held.problem, paint));
    let holders = holders(client).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "list rollbacks");
        Vec::new()
    });
    for holder in &holders {
        output::note(&format!("  held by {}", status::active(holder, paint)));
    }
    let exit = ExitCode::ScopeHeld;
    if format == Format::Json {
        let body = json!({
            "rollback_id": null,
            "state": null,
            "blocked": false,
            "exit_code": exit.number(),
            "phases": [],
            "error": {"code": held.problem.code.id(), "message": held.problem.message, "remedy": held.problem.remedy},
            "holders": holders.iter().map(documents::summary).collect::<Vec<_>>(),
        });
        output::data(&documents::document("rollback", body))?;
    }
    Ok(exit)
}

/// Rollbacks that have not ended.
async fn holders(client: &mut Client) -> Result<Vec<RollbackSummary>, CallError> {
    let request = ListRollbacksRequest { limit: 20 };
    let mut list = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.list_rollbacks(request).await
        })
        .await?
        .rollbacks;
    list.retain(|r| !words::is_over(RollbackState::try_from(r.state).unwrap_or(RollbackState::Unspecified)));
    Ok(list)
}
