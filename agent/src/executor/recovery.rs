//! What the last process left unfinished: intents without a result, because it was killed inside the step.
//!
//! The driver's read-only `probe` decides: it took effect (the outcome is written now), it can be run again (the same
//! key runs when it is asked for; the interruption stays on record), or nobody can tell (a person must look). Nothing
//! is run again from here: only a leader knows whether the step is still wanted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::Outcome;
use tracing::Instrument;

use super::Inner;
use super::drive::{context, probe};
use super::order::Order;
use super::settle::finish_durably;
use crate::convert;
use crate::driver::{Done, Failure, Probe};
use crate::ledger::{StepKey, Unfinished};
use crate::step::NoProgress;

/// Pause between two attempts to use a ledger that refuses.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);

/// Resolves everything, components side by side, steps of one component in the order in which they were begun.
pub(super) async fn recover(inner: Arc<Inner>) {
    let unfinished = loop {
        match inner.ledger.unfinished().await {
            Ok(unfinished) => break unfinished,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "read unfinished steps; trying again"
                );
                tokio::time::sleep(LEDGER_PAUSE).await;
            }
        }
    };
    let mut by_component: BTreeMap<String, Vec<Unfinished>> = BTreeMap::new();
    for step in unfinished {
        by_component
            .entry(step.request.component.clone())
            .or_default()
            .push(step);
    }
    futures::future::join_all(by_component.into_values().map(|steps| async {
        for step in steps {
            let span = tracing::info_span!(
                "step_recover",
                rollback.id = %step.key.rollback_id,
                step.id = %step.key.step_id,
                attempt = step.key.attempt,
                host = %inner.host,
                component = %step.request.component,
            );
            recover_step(&inner, step).instrument(span).await;
        }
    }))
    .await;
    // Nobody else sets it.
    let _ = inner.recovered.set(());
}

async fn recover_step(inner: &Inner, step: Unfinished) {
    let resolved = match Order::read(step.request) {
        Ok(order) => resolve(inner, &order).await,
        // An older version accepted what this one does not read.
        Err(problem) => unknown(problem),
    };
    match resolved {
        Resolved::Ended(outcome) => {
            tracing::info!(status = outcome.status().as_str_name(), summary = %outcome.summary, "resolved a step that was cut off");
            finish_durably(inner, &step.key, &outcome).await;
        }
        Resolved::Repeatable(seen) => {
            tracing::info!(seen, "a step that was cut off can be run again");
            interrupt_durably(inner, &step.key).await;
        }
    }
}

/// What became of a step that was cut off.
pub(super) enum Resolved {
    Ended(Box<Outcome>),
    /// The same key may run again. What the driver saw.
    Repeatable(String),
}

fn unknown(problem: Problem) -> Resolved {
    Resolved::Ended(Box::new(convert::ended_badly(Failure::Indeterminate(problem))))
}

pub(super) async fn resolve(inner: &Inner, order: &Order) -> Resolved {
    if !order.mutates() {
        return Resolved::Repeatable("it only reads".to_owned());
    }
    let Some(component) = inner.components.get(&order.component) else {
        return unknown(Problem::new(
            Code::StepIndeterminate,
            format!(
                "component {} was taken out of the agent's configuration inside a step",
                order.component
            ),
        ));
    };
    let step = context(inner, order, inner.limits.probe, Arc::new(NoProgress));
    match probe(inner, component.driver.as_ref(), &step).await {
        Probe::Applied(done) => {
            let summary = format!(
                "recovered after the agent was stopped inside the step: {}",
                done.summary
            );
            Resolved::Ended(Box::new(convert::succeeded(Done { summary, ..done })))
        }
        Probe::Repeatable(seen) => Resolved::Repeatable(seen),
        Probe::Indeterminate(problem) => unknown(problem),
    }
}

async fn interrupt_durably(inner: &Inner, key: &StepKey) {
    while let Err(error) = inner.ledger.interrupt(key.clone()).await {
        tracing::error!(step = %key, error = &error as &dyn std::error::Error, "write interruption into the ledger; trying again");
        tokio::time::sleep(LEDGER_PAUSE).await;
    }
}
