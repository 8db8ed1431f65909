//! Could this plan be followed? Every PREPARE of it on the real hosts, as part of no rollback.
//!
//! Plans that are shown and the checks in the background ([`crate::readiness`]) ask in the same way. Nothing is changed, and
//! agents keep nothing of it: what only reads is in no ledger.
//!
//! Leaves out making the plan, and the end of the term: nothing is sent after it, so whoever waits here has to watch it.

use futures::StreamExt as _;
use rollback_engine::event::{Direction, Finding, Severity, StepResult};
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::plan::{Plan, Step};
use rollback_engine::release::Action;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::dispatcher::{Dispatcher, Order};

/// What was found of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub target: Target,
    pub finding: Finding,
}

/// Lets every host of the plan look whether it could follow it, at most `at_once` components at the same time. The answer is
/// in the plan's order. A component that could not look has a blocker that says why.
pub async fn prepare(dispatcher: &Dispatcher, plan: &Plan, at_once: usize) -> Vec<Found> {
    let id = RollbackId(format!("plan-{}", uuid::Uuid::now_v7()));
    let context = tracing::Span::current().context();
    let prepares: Vec<Step> = plan
        .body
        .steps()
        .filter(|s| s.action == Action::Prepare)
        .cloned()
        .collect();
    let ask = |step: Step| {
        let dispatcher = dispatcher.clone();
        let order = Order {
            rollback: id.clone(),
            step,
            direction: Direction::Forward,
            attempt: 1,
            consent: None,
            ledger: None,
            context: context.clone(),
        };
        async move {
            let outcome = dispatcher.execute(&order, &|_| {}).await;
            let mut findings = outcome.findings;
            if let StepResult::Failed(p) | StepResult::Indeterminate(p) = outcome.result {
                findings.push(Finding {
                    severity: Severity::Blocker,
                    code: p.code,
                    message: p.message,
                    remedy: p.remedy,
                    loss: None,
                });
            }
            let target = order.step.target;
            let found = findings.into_iter().map(|finding| Found {
                target: target.clone(),
                finding,
            });
            found.collect::<Vec<_>>()
        }
    };
    let answers: Vec<Vec<Found>> = futures::stream::iter(prepares)
        .map(ask)
        .buffered(at_once.max(1))
        .collect()
        .await;
    answers.into_iter().flatten().collect()
}
