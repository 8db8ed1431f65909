//! From a wish to the end of a rollback: look, agree, start exactly once, watch. The one way for every verb that starts one.

use anyhow::Context as _;
use rollback_proto::problem::Code;
use rollback_proto::v1::{RollbackTarget, StartRollbackRequest, StartRollbackResponse};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ask::{self, Answer};
use super::consent::{self, Accept};
use super::{StartArgs, start};
use crate::cli::Format;
use crate::client::Client;
use crate::exit::ExitCode;
use crate::follow::{self, Interrupts, Screen};
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::words::Waits;
use crate::output::{self, loss, plan, standstill};
use crate::session::Session;

/// What shall be started.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub target: RollbackTarget,
    /// A plan that was saved, as it was sealed, and its digest: this one or none.
    pub saved: Option<(Vec<u8>, String)>,
    /// What is asked when nothing needs to be typed; empty: "Roll the fleet back to …?".
    pub question: String,
}

/// Asks (or takes `--yes`), starts, and watches to the end. The caller has asked [`StartArgs::check`].
pub async fn go(session: &Session, wanted: Wanted, args: &StartArgs, format: Format) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    // A coordinator that is not there is told at once; from here on, losing it is no reason to give up.
    client.connect().await?;
    let accept = args.accept_data_loss;
    let answer = match (args.yes, accept) {
        (false, _) => ask::ask(&mut client, &wanted, accept, format).await?,
        (true, Some(Accept::Shown)) => ask::accept_shown(&mut client, &wanted, format).await?,
        // Whatever the plan of now is. One that needs a consent that is not given is refused by the coordinator.
        (true, Some(Accept::Rows(_) | Accept::Any) | None) => {
            let consent = accept.and_then(consent::without_plan);
            if let Some(consent) = consent {
                output::note(&format!(
                    "agreed, for each database: {} may be lost",
                    loss::consent(consent, 1)
                ));
            }
            Answer::Yes {
                digest: String::new(),
                consent,
            }
        }
    };
    let (digest, consent) = match answer {
        Answer::Yes { digest, consent } => (digest, consent),
        Answer::No => {
            output::note("Not started.");
            return Ok(ExitCode::Error);
        }
        Answer::Blocked => return Ok(ExitCode::Blocked),
    };
    let shown = !digest.is_empty();
    let (sealed_plan, saved_digest) = wanted.saved.unzip();
    let release = wanted.target.release.clone();
    let request = StartRollbackRequest {
        target: Some(wanted.target),
        reason: args.reason.clone(),
        incident: args.incident.clone(),
        request_id: uuid::Uuid::now_v7().to_string(),
        // Consent is to that plan: if the fleet has moved since, nothing starts.
        plan_digest: saved_digest.unwrap_or(digest),
        consent,
        sealed_plan: sealed_plan.unwrap_or_default(),
    };
    // The root of the rollback's trace: everything that coordinator and agents do hangs below it.
    let span = tracing::info_span!(
        "fleet_rollback",
        %release,
        rollback.id = tracing::field::Empty,
        outcome = tracing::field::Empty
    );
    start_and_watch(client, request, shown, args, format)
        .instrument(span)
        .await
}

async fn start_and_watch(
    mut client: Client,
    request: StartRollbackRequest,
    shown: bool,
    args: &StartArgs,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::catch()?;
    // A stale plan was a file; the plan that was shown can be shown again with the same command.
    let saved = (!request.sealed_plan.is_empty()).then(|| request.target.clone().unwrap_or_default().release);
    let started = tokio::select! {
        started = start::start(&mut client, request) => started,
        () = interrupts.next() => {
            output::note("Left while the request was on its way: it may have started. Look: rollbackctl rollback list");
            return Ok(ExitCode::StillRunning);
        }
    };
    let StartRollbackResponse { rollback_id: id, plan } = match started {
        Ok(started) => started,
        Err(error) if error.problem.code == Code::ScopeHeld => {
            return start::show_holders(&mut client, error, format).await;
        }
        Err(mut error) => {
            if let (Code::PlanStale, Some(release)) = (error.problem.code, saved.filter(|name| !name.is_empty())) {
                let release = clean(&release);
                error.problem.remedy = format!(
                    "look at the plan of now: rollbackctl fleet plan --to {release} --out FILE (with the same options)"
                );
            }
            return Err(error.into());
        }
    };
    tracing::Span::current().record("rollback.id", &id);
    if let Some(plan) = plan.as_ref().filter(|_| !shown) {
        output::note(&plan::changes(plan, Paint::stderr()));
    }
    output::note(&format!("started rollback {id}"));
    if args.detach {
        if let Some(asked) = plan.as_ref().and_then(|plan| standstill::approval_asked(&id, plan)) {
            output::note(&asked);
        }
        if format == Format::Table {
            output::data(&id)?;
        }
        let awaits = plan.as_ref().is_some_and(|plan| plan.approve_within.is_some());
        return follow::left_running(&id, "detached", awaits.then_some(Waits::ForApproval), format);
    }
    let until = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut screen = Screen::choose(format, &id, plan.as_ref());
    let attended = follow::attend(&mut client, &id, &mut screen, until, &mut interrupts).await;
    screen.close();
    let exit = follow::conclude(&mut client, &id, attended, format)
        .await
        .context("end the watch")?;
    tracing::Span::current().record("outcome", tracing::field::debug(exit));
    Ok(exit)
}
