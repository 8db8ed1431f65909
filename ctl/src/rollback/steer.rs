//! Acting on a rollback that runs: ask until there is an answer, then say what it is now.
//!
//! An act whose answer was lost is asked for again, under the same words: the coordinator tells whoever did it that it is
//! done. The exception is a retry whose steps have failed again in the meantime: that is tried once more.

use std::time::Duration;

use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::steer_rollback_request::Act;
use rollback_proto::v1::{GetRollbackResponse, RollbackState, RollbackSummary, SteerRollbackRequest};
use serde_json::json;
use tokio::time::Instant;

use crate::cli::{Format, OutputArgs};
use crate::client::{ALL_HOSTS, Backoff, CallError, Client, QUICK};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::standstill::{self, Down};
use crate::output::text::clean;
use crate::output::{self, json as documents, words};
use crate::session::Session;

/// A restart or a change of leader takes seconds.
const ASK_FOR: Duration = Duration::from_secs(30);

/// The rollback as it is when the act is durable.
pub async fn steer(client: &mut Client, id: &str, reason: &str, act: Act) -> Result<RollbackSummary, CallError> {
    let request = SteerRollbackRequest {
        id: id.to_owned(),
        reason: reason.to_owned(),
        act: Some(act),
    };
    // Before an approval the hosts are asked whether they are still where the plan has found them.
    let deadline = match &request.act {
        Some(Act::Approve(_)) => ALL_HOSTS,
        Some(Act::Pause(_) | Act::Resume(_) | Act::Retry(_) | Act::Skip(_) | Act::Abort(_)) | None => QUICK,
    };
    let give_up = Instant::now() + ASK_FOR;
    let mut backoff = Backoff::new();
    loop {
        let answer = client
            .call(deadline, request.clone(), |mut fleet, request| async move {
                fleet.steer_rollback(request).await
            })
            .await;
        match answer {
            Ok(answer) => return Ok(answer.summary.unwrap_or_default()),
            Err(error) if error.lost && Instant::now() < give_up => {
                let why = clean(&error.problem.message);
                output::note(&format!("no answer from the coordinator, asking again … ({why})"));
            }
            Err(mut error) if error.lost => {
                error.problem.message = format!("nobody can tell whether it was done: {}", error.problem.message);
                error.problem.remedy = format!("look before you try again: rollbackctl rollback show {}", clean(id));
                return Err(error);
            }
            Err(mut error) => {
                // The general remedy of a code says ID; here it is known.
                error.problem.remedy = named(&error.problem.remedy, id);
                return Err(error);
            }
        }
        backoff.pause().await;
    }
}

fn named(remedy: &str, id: &str) -> String {
    let words = remedy.split(' ');
    let words: Vec<String> = words
        .map(|word| if word == "ID" { clean(id) } else { word.to_owned() })
        .collect();
    words.join(" ")
}

/// The id of the rollback that is meant: `latest` is resolved once, so that all that follows is about the same one.
pub async fn resolve(client: &mut Client, id: &str) -> Result<GetRollbackResponse, CallError> {
    let details = super::fetch(client, id).await?;
    if details.summary.is_none() {
        return Err(Problem::new(Code::Internal, "the coordinator answered without a summary").into());
    }
    Ok(details)
}

/// What an act is about that needs nothing else.
#[derive(Args, Debug)]
pub struct PlainAct {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Takes it. `done` comes after "rollback ID to RELEASE".
pub async fn plainly(session: &Session, args: &PlainAct, act: Act, done: &str) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let summary = steer(&mut client, &args.id, &args.reason, act).await?;
    let done = format!("rollback {} to {}{done}", clean(&summary.id), clean(&summary.release));
    tell(&mut client, &summary, &done, args.output.output).await
}

/// What is written of an act that was taken: for programs the rollback, for people `done` and how it stands.
pub async fn tell(
    client: &mut Client,
    summary: &RollbackSummary,
    done: &str,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let exit = ExitCode::Done;
    // The act is taken. That its consequences cannot be shown now is no failure of it.
    let details = match super::fetch(client, &summary.id).await {
        Ok(details) => details,
        Err(error) => {
            output::note(&output::problem::error(&error.problem, Paint::stderr()));
            GetRollbackResponse {
                summary: Some(summary.clone()),
                ..GetRollbackResponse::default()
            }
        }
    };
    output::data(&match format {
        Format::Table => text(&details, summary, done, Paint::stdout()),
        Format::Json => {
            let mut body = documents::rollback(&details);
            body["exit_code"] = json!(exit.number());
            documents::document("rollback", body)
        }
    })?;
    Ok(exit)
}

/// `summary` is as the act left it; `details` may be some steps further.
fn text(details: &GetRollbackResponse, summary: &RollbackSummary, done: &str, paint: Paint) -> String {
    let id = clean(&summary.id);
    let mut lines = vec![done.to_owned()];
    let now = details.summary.as_ref().unwrap_or(summary);
    let state = RollbackState::try_from(now.state).unwrap_or(RollbackState::Unspecified);
    if words::is_over(state) {
        let (word, _) = words::state_told(state, now.blocked);
        lines.push(format!(
            "rollback {id} has ended: {word}. See: rollbackctl rollback show {id}"
        ));
        return lines.join("\n");
    }
    lines.extend(standstill::awaited(&id, &now.started_by, now.approval.as_ref(), paint));
    match &now.standstill {
        Some(still) => {
            lines.push(standstill::headline(still, paint));
            let in_flight = Some(standstill::in_flight(still)).filter(|text| !text.is_empty());
            let down = Down::of(details).words();
            let meanwhile = if down.is_empty() {
                vec!["nothing is stopped or taken out of service by this rollback now".to_owned()]
            } else {
                down
            };
            lines.extend(in_flight.into_iter().chain(meanwhile).map(|line| format!("  {line}")));
            lines.extend(
                standstill::fits(&id, still)
                    .into_iter()
                    .map(|line| format!("  → {line}")),
            );
        }
        None => lines.push(format!("watch it: rollbackctl rollback watch {id}")),
    }
    lines.join("\n")
}
