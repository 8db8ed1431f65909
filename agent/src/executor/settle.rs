//! One step, from the asking to the durable outcome. Runs in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::Outcome;
use rollback_proto::v1::outcome::Status;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::drive::drive;
use super::order::Order;
use super::recovery::{Resolved, resolve};
use super::running::{Reporter, Stage};
use super::{Component, Inner, stopping};
use crate::ledger::{Begin, StepKey};

/// First pause between two attempts to write an outcome; it doubles.
const LEDGER_BACKOFF: Duration = Duration::from_millis(100);

/// Takes the step out of the map, however its task ends.
struct Listed<'a>(&'a Inner, &'a StepKey);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.running().remove(self.1);
    }
}

pub(super) async fn settle(inner: Arc<Inner>, order: Order, reporter: Reporter, parent: Context) {
    let listed = Listed(&inner, &order.key);
    let span = tracing::info_span!(
        "step_execute",
        rollback.id = %order.key.rollback_id,
        step.id = %order.key.step_id,
        attempt = order.key.attempt,
        host = %inner.host,
        component = %order.component,
        action = action_name(&order),
        leader.epoch = order.fence.epoch,
        outcome = tracing::field::Empty,
    );
    // Fails only where no spans are exported.
    let _ = span.set_parent(parent);
    let stage = async {
        match run(&inner, &order, &reporter).await {
            Ok(stage) => stage,
            Err(problem) => Stage::Refused(problem),
        }
    }
    .instrument(span.clone())
    .await;
    span.in_scope(|| {
        let outcome = describe(&stage);
        span.record("outcome", outcome);
        match &stage {
            Stage::Ended(result) => tracing::info!(outcome, summary = %result.summary, "step ended"),
            Stage::Refused(problem) => tracing::warn!(%problem, "step refused"),
            Stage::Known(_) | Stage::Asked | Stage::Started => {}
        }
    });
    // The span ends before the caller can look for it, and whoever asks again finds no step that is over: the ledger
    // answers, or, where this one was refused, a new step begins.
    drop(span);
    drop(listed);
    reporter.report(stage);
}

/// `switch`, as in the traces of the coordinator.
fn action_name(order: &Order) -> String {
    let name = order.action.as_str_name();
    name.strip_prefix("ACTION_").unwrap_or(name).to_ascii_lowercase()
}

fn describe(stage: &Stage) -> &'static str {
    match stage {
        Stage::Ended(outcome) => match outcome.status() {
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Indeterminate | Status::Unspecified => "indeterminate",
        },
        Stage::Known(_) => "from_ledger",
        Stage::Refused(_) => "refused",
        Stage::Asked | Stage::Started => "cut_off",
    }
}

/// The last stage of the step. An error: nothing was done.
async fn run(inner: &Arc<Inner>, order: &Order, reporter: &Reporter) -> Result<Stage, Problem> {
    let component = inner.components.get(&order.component).ok_or_else(|| {
        Problem::new(
            Code::UnknownComponent,
            format!("this agent has no component {}", order.component),
        )
    })?;
    let _turn = match order.mutates() {
        true => match take_turn(inner, order, Arc::clone(&component.turn)).await? {
            Turn::Taken(permit) => permit,
            Turn::Known(outcome) => return Ok(Stage::Known(outcome)),
        },
        // What only reads is simply done again: there is nothing that a ledger would have to remember. Whether its leader
        // still leads is asked again all the same, as `begin` does for the others.
        false => {
            inner.ledger.observe_epoch(order.fence.clone()).await?;
            return Ok(carry_out(inner, component, order, reporter).await);
        }
    };
    loop {
        let (fence, key) = (order.fence.clone(), order.key.clone());
        match inner
            .ledger
            .begin(fence, key.clone(), order.digest, order.request.clone())
            .await?
        {
            Begin::New => break,
            Begin::Known(outcome) => return Ok(Stage::Known(outcome.into())),
            Begin::ArgsDiffer => return Err(order.key_reused()),
            // A write whose success was not known left it there. The driver says whether anything was done under it.
            Begin::Unfinished => match resolve(inner, order).await {
                Resolved::Ended(outcome) => {
                    finish_durably(inner, &key, &outcome).await;
                    return Ok(Stage::Known(outcome.into()));
                }
                Resolved::Repeatable(_) => inner.ledger.interrupt(key).await?,
            },
        }
    }
    let ended = carry_out(inner, component, order, reporter).await;
    if let Stage::Ended(outcome) = &ended {
        finish_durably(inner, &order.key, outcome).await;
    }
    Ok(ended)
}

async fn carry_out(inner: &Inner, component: &Component, order: &Order, reporter: &Reporter) -> Stage {
    reporter.report(Stage::Started);
    tracing::info!("step started");
    Stage::Ended(Arc::new(drive(inner, component, order, reporter.sink()).await))
}

enum Turn {
    Taken(OwnedSemaphorePermit),
    /// No turn is needed: the step ended before.
    Known(Arc<Outcome>),
}

/// Waits for the component, first come, first served, as long as the step has time. The ledger is asked before, so
/// that a known outcome waits for nobody.
async fn take_turn(inner: &Inner, order: &Order, turn: Arc<tokio::sync::Semaphore>) -> Result<Turn, Problem> {
    if let Ok(permit) = Arc::clone(&turn).try_acquire_owned() {
        return Ok(Turn::Taken(permit));
    }
    match inner
        .ledger
        .look(order.fence.clone(), order.key.clone(), order.digest)
        .await?
    {
        Begin::Known(outcome) => return Ok(Turn::Known(outcome.into())),
        Begin::ArgsDiffer => return Err(order.key_reused()),
        Begin::New | Begin::Unfinished => {}
    }
    tracing::info!("waiting for another step of the component");
    match tokio::time::timeout_at(order.deadline, turn.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(Turn::Taken(permit)),
        Ok(Err(_)) => Err(stopping()),
        Err(_) => Err(Problem::new(
            Code::ComponentBusy,
            format!(
                "{}: another step was busy until the time of step {} was over",
                order.component, order.key.step_id
            ),
        )),
    }
}

/// Returns when the outcome is on the disk. As long as it is not, nobody hears of it: a caller that acted on an
/// outcome that a restart forgets would be worse off than one that waits.
pub(super) async fn finish_durably(inner: &Inner, key: &StepKey, outcome: &Outcome) {
    let mut pause = LEDGER_BACKOFF;
    while let Err(error) = inner.ledger.finish(key.clone(), outcome.clone()).await {
        tracing::error!(step = %key, error = &error as &dyn std::error::Error, "write outcome into the ledger; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(inner.limits.ledger_backoff);
    }
}
