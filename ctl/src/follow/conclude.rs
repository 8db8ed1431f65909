//! The last words of `fleet rollback` and `rollback watch`, and the exit code.

use std::time::Duration;

use rollback_proto::v1::{GetRollbackRequest, GetRollbackResponse, RollbackState};
use serde_json::json;
use tokio::time::Instant;

use super::Attended;
use crate::cli::Format;
use crate::client::{Backoff, CallError, Client, QUICK};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::words::Waits;
use crate::output::{self, json as documents, summary, words};

/// The end is known by then; only the details are missing. So we do not wait long for them.
const DETAILS_FOR: Duration = Duration::from_secs(20);

/// A last word that is not needed.
const LEAVING: Duration = Duration::from_secs(1);

/// Prints how it went. The exit code follows from the journal's last event alone, never from details that could not be
/// fetched.
pub async fn conclude(
    client: &mut Client,
    id: &str,
    attended: Result<Attended, CallError>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let (state, blocked) = match attended {
        Ok(Attended::Ended { state, blocked }) => (state, blocked),
        Ok(Attended::Interrupted) => return left_running(id, "left", waits(client, id).await, format),
        Ok(Attended::TimedOut) => return left_running(id, "--timeout has passed", waits(client, id).await, format),
        Err(error) => {
            if format == Format::Json {
                let told = json!({"code": error.problem.code.id(), "message": error.problem.message,
                    "remedy": error.problem.remedy});
                let body = json!({"rollback_id": id, "state": null, "error": told,
                    "exit_code": ExitCode::Error.number()});
                output::data(&documents::document("rollback", body))?;
                output::note(&output::problem::error(&error.problem, Paint::stderr()));
                return Ok(ExitCode::Error);
            }
            return Err(error.into());
        }
    };
    let exit = ExitCode::of_rollback(state, blocked);
    match details(client, id).await {
        Ok(details) => match format {
            Format::Table => output::data(&format!("\n{}", summary::render(&details, Paint::stdout())))?,
            Format::Json => output::data(&final_document(id, state, blocked, exit, Some(&details)))?,
        },
        Err(error) => {
            let (word, _) = words::state_told(state, blocked);
            output::note(&format!(
                "rollback {id} ended: {word}. Its details could not be fetched:"
            ));
            output::note(&output::problem::error(&error.problem, Paint::stderr()));
            if format == Format::Json {
                output::data(&final_document(id, state, blocked, exit, None))?;
            }
        }
    }
    Ok(exit)
}

/// What it waits for, for one who leaves; whoever leaves does not wait long for that.
async fn waits(client: &mut Client, id: &str) -> Option<Waits> {
    let request = GetRollbackRequest {
        id: id.to_owned(),
        events: false,
    };
    let asked = client.call(QUICK, request, |mut fleet, request| async move {
        fleet.get_rollback(request).await
    });
    let answer = tokio::time::timeout(LEAVING, asked).await.ok()?.ok()?;
    words::waits(answer.summary.as_ref()?)
}

/// The rollback goes on without us, or waits without us for what it waits for.
pub fn left_running(id: &str, why: &str, waits: Option<Waits>, format: Format) -> anyhow::Result<ExitCode> {
    let exit = ExitCode::StillRunning;
    let stands = match waits {
        None => "the rollback goes on",
        Some(Waits::Paused) => "the rollback is PAUSED, and stays so until somebody acts",
        Some(Waits::ForApproval) => "the rollback AWAITS APPROVAL of a second operator",
    };
    output::note(&format!("{why}: {stands}. Come back: rollbackctl rollback watch {id}"));
    if format == Format::Json {
        let body = json!({"rollback_id": id, "state": words::state(RollbackState::Running), "blocked": false,
            "exit_code": exit.number(), "phases": [], "waits_for": documents::waits_for(waits)});
        output::data(&documents::document("rollback", body))?;
    }
    Ok(exit)
}

fn final_document(
    id: &str,
    state: RollbackState,
    blocked: bool,
    exit: ExitCode,
    details: Option<&GetRollbackResponse>,
) -> String {
    let mut body = details.map_or_else(|| json!({"phases": []}), documents::rollback);
    body["rollback_id"] = json!(id);
    body["state"] = json!(words::state(state));
    body["blocked"] = json!(blocked);
    body["exit_code"] = json!(exit.number());
    documents::document("rollback", body)
}

/// Asks again while the coordinator cannot be reached, and while it has not caught up with its own journal.
async fn details(client: &mut Client, id: &str) -> Result<GetRollbackResponse, CallError> {
    let give_up = Instant::now() + DETAILS_FOR;
    let mut backoff = Backoff::new();
    loop {
        let request = GetRollbackRequest {
            id: id.to_owned(),
            events: false,
        };
        let answer = client
            .call(QUICK, request, |mut fleet, request| async move {
                fleet.get_rollback(request).await
            })
            .await;
        let enough = match &answer {
            Ok(details) => {
                let state = details.summary.as_ref().map_or(0, |s| s.state);
                words::is_over(RollbackState::try_from(state).unwrap_or(RollbackState::Unspecified))
            }
            Err(error) => !error.lost,
        };
        if enough || Instant::now() >= give_up {
            return answer;
        }
        backoff.pause().await;
    }
}
