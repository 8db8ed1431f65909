//! Calls the driver: which method, until when, and what it means when it panics or does not come back.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{Action, Outcome};

use super::order::{Order, mutates};
use super::{Component, Inner};
use crate::convert;
use crate::driver::{Done, Driver, Failure, Probe, unsupported};
use crate::step::{ProgressSink, StepContext};

/// Runs the step to its outcome, which is not durable yet.
pub(super) async fn drive(
    inner: &Inner,
    component: &Component,
    order: &Order,
    progress: Arc<dyn ProgressSink>,
) -> Outcome {
    let step = context(inner, order, order.time_left(), progress);
    let work = guarded(call(component.driver.as_ref(), &step));
    let outcome = match tokio::time::timeout_at(order.deadline + inner.limits.grace, work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => panicked(order, &panic),
        // The driver's future is dropped, and its programs are killed with it.
        Err(_) => overrun(inner, component, order, &step).await,
    };
    let operations = step.operations().into_iter().map(Into::into).collect();
    Outcome { operations, ..outcome }
}

/// What a driver is given for this step.
pub(super) fn context(
    inner: &Inner,
    order: &Order,
    time: std::time::Duration,
    progress: Arc<dyn ProgressSink>,
) -> StepContext {
    StepContext::new(
        order.key.rollback_id.clone(),
        order.component.clone(),
        order.action,
        order.from.clone(),
        order.to.clone(),
        time,
        Arc::clone(&inner.vault),
        progress,
    )
    .for_backend(order.backend.clone())
    .from_backup(order.request.from_backup, order.request.consent)
    .reversing(order.request.undo)
}

async fn call(driver: &dyn Driver, step: &StepContext) -> Outcome {
    let result = match step.action {
        Action::Prepare => return convert::prepared(driver.prepare(step).await),
        Action::Stage => driver.stage(step).await,
        Action::Discard => driver.discard(step).await,
        Action::Snapshot => driver.snapshot(step).await,
        Action::Drain => driver.drain(step).await,
        Action::Resume => driver.resume(step).await,
        Action::Stop => driver.stop(step).await,
        Action::Start => driver.start(step).await,
        Action::Switch => driver.switch(step).await,
        Action::Verify => driver.verify(step).await,
        Action::Finish => driver.finish(step).await,
        Action::Unspecified => Err(unsupported(driver.info().kind, step)),
    };
    match result {
        Ok(done) => convert::succeeded(done),
        Err(failure) => convert::ended_badly(failure),
    }
}

/// Runs something of a driver; a panic becomes an error with its message.
pub(super) async fn guarded<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .map_err(|payload| panic_message(payload.as_ref()))
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").chars().take(300).collect()
}

/// A panic is a defect of the driver, and nobody knows how far it came. Where it only read, it does not matter.
fn panicked(order: &Order, message: &str) -> Outcome {
    tracing::error!(panic = message, "the driver panicked");
    let what = format!("{}: a defect of the driver ended the step: {message}", order.component);
    convert::ended_badly(match order.mutates() {
        true => Failure::Indeterminate(Problem::new(Code::StepIndeterminate, what)),
        false => Failure::Failed(Problem::new(Code::Internal, what)),
    })
}

/// The step was cut off: what became of it?
async fn overrun(inner: &Inner, component: &Component, order: &Order, step: &StepContext) -> Outcome {
    tracing::warn!("the step did not end in time and was cut off");
    let timeout = |what: &str| {
        Failure::Failed(Problem::new(
            Code::StepTimeout,
            format!("{}: {:?} did not end in time{what}", order.component, order.action),
        ))
    };
    if !mutates(order.action) {
        return convert::ended_badly(timeout(""));
    }
    match probe(inner, component.driver.as_ref(), step).await {
        Probe::Applied(done) => {
            let summary = format!("took longer than it should, but took effect: {}", done.summary);
            convert::succeeded(Done { summary, ..done })
        }
        Probe::Repeatable(seen) => convert::ended_badly(timeout(&format!(", and did not take effect: {seen}"))),
        Probe::Indeterminate(problem) => convert::ended_badly(Failure::Indeterminate(problem)),
    }
}

/// Asks the driver what became of a step. No answer is an answer, too: nobody knows.
pub(super) async fn probe(inner: &Inner, driver: &dyn Driver, step: &StepContext) -> Probe {
    let unknown = |why: &str| {
        Probe::Indeterminate(Problem::new(
            Code::StepIndeterminate,
            format!(
                "{}: {:?} was cut off, and what became of it is not known: {why}",
                step.component, step.action
            ),
        ))
    };
    match tokio::time::timeout(inner.limits.probe, guarded(driver.probe(step))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            tracing::error!(panic, "the driver panicked while probing");
            unknown("a defect of the driver")
        }
        Err(_) => unknown("the driver did not answer in time"),
    }
}
