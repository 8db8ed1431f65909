//! Carries a step to its agent and an outcome back.
//!
//! Invariants:
//! - A step is asked for again and again under the *same* key until its agent gives an outcome or its time is over. The
//!   agent's ledger makes that safe: it joins the running step or answers with the stored result.
//! - When nobody can tell what came of a step that changes the service, the outcome is `Indeterminate`, never a guess.
//! - An agent whose ledger was lost cannot vouch for the past: a step that changes the service is asked for under the
//!   ledger that the agent had when the step was intended, and is `Indeterminate` when that ledger is gone.
//! - Nothing is sent when the leader's term is over.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;
use rollback_engine::event::{Direction, Outcome, StepResult};
use rollback_engine::ids::{Epoch, RollbackId, StepId};
use rollback_engine::loss::Consent;
use rollback_engine::plan::Step;
use rollback_engine::release::{Action, Revision};
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::{jitter, kill_point, telemetry, v1};
use tokio::time::Instant;
use v1::agent_client::AgentClient;

use crate::convert;
use crate::inventory::Inventory;
use crate::term::Term;

/// An agent that is busy with its own deadline gets this much longer to say so before we stop listening.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is said that a host does not answer.
const SAY_AGAIN: Duration = Duration::from_secs(10);
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One execution of a step, as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Order {
    pub rollback: RollbackId,
    pub step: Step,
    pub direction: Direction,
    pub attempt: u32,
    /// What may be lost by restoring a database. `None`: nobody agreed to anything, as in a plan that is only shown.
    pub consent: Option<Consent>,
    /// The generation of the agent's ledger when the step was intended. `None`: whatever it is now.
    pub ledger: Option<String>,
    /// The step's span: the agent's spans become its children.
    pub context: Context,
}

impl Order {
    /// What is really asked of the agent: the step, or its undo with `from` and `to` exchanged.
    pub fn asked(&self) -> (Action, &Revision, &Revision) {
        match self.step.in_direction(self.direction) {
            Some(asked) => (asked.action, asked.from, asked.to),
            // The machine never sends back a step that has no way back; asking for the step itself would be the one
            // thing that is surely recorded in the agent's ledger already.
            None => (self.step.action, &self.step.from, &self.step.to),
        }
    }

    fn key(&self) -> v1::StepKey {
        v1::StepKey {
            rollback_id: self.rollback.0.clone(),
            step_id: step_name(self.step.id, self.direction),
            attempt: self.attempt,
        }
    }
}

/// What a step is called on the wire and in the agents' ledgers.
pub fn step_name(step: StepId, direction: Direction) -> String {
    match direction {
        Direction::Forward => step.to_string(),
        Direction::Undo => format!("{step}.undo"),
    }
}

#[derive(Clone, Debug)]
pub struct Dispatcher {
    inventory: Arc<Inventory>,
    term: Term,
}

/// Why one attempt to ask brought no outcome.
enum NoOutcome {
    /// The agent could not be reached, or the stream broke.
    Lost(Problem),
    /// The agent refused to take the step up. It did not do anything.
    Refused(Problem),
    /// The agent is busy with another step of this component.
    Busy(Problem),
    /// The agent's ledger is not the one that we know it by: it cannot vouch for what was done before.
    LedgerLost(Problem),
}

impl Dispatcher {
    pub fn new(inventory: Arc<Inventory>, term: Term) -> Self {
        Self { inventory, term }
    }

    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    pub fn term(&self) -> &Term {
        &self.term
    }

    /// The generation of this host's ledger as it last registered.
    pub fn ledger_of(&self, host: &str) -> Option<String> {
        self.inventory.record(host).map(|record| record.ledger_generation)
    }

    /// Executes the step; returns when its outcome is known or its time is over. `progress` gets the running step's
    /// words. Cancel-safe in the sense that matters: the agent goes on, and asking again joins it.
    pub async fn execute(&self, order: &Order, progress: &(dyn Fn(v1::Progress) + Send + Sync)) -> Outcome {
        let host = order.step.target.host.as_str();
        let timeout = Duration::from_millis(order.step.timeout_ms);
        let deadline = Instant::now() + timeout + GRACE;
        let mut pause = RETRY.0;
        let mut last_word: Option<Instant> = None;
        loop {
            let problem = match tokio::time::timeout_at(deadline, self.ask(order, deadline, progress)).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(NoOutcome::Refused(problem))) => {
                    return ended(StepResult::Failed(convert::problem(problem)));
                }
                Ok(Err(NoOutcome::LedgerLost(problem))) if order.asked().0.changes_service() => {
                    return ended(StepResult::Indeterminate(convert::problem(problem)));
                }
                Ok(Err(NoOutcome::Lost(problem) | NoOutcome::Busy(problem) | NoOutcome::LedgerLost(problem))) => {
                    problem
                }
                Err(_) => Problem::new(Code::StepTimeout, format!("{host} gave no outcome within {timeout:?}")),
            };
            // Whoever watches must not take the silence of a lost host for work.
            if last_word.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                last_word = Some(Instant::now());
                let left = deadline.saturating_duration_since(Instant::now()).as_secs();
                tracing::warn!(host, step = %order.step.id, %problem, seconds_left = left, "no outcome yet; asking again");
                let message = format!("no answer ({}); asking again for {left} s", problem.message);
                progress(v1::Progress {
                    message,
                    fraction: -1.0,
                });
            }
            let next = Instant::now() + jitter::spread(pause, 0.5..=1.0);
            if next >= deadline {
                return given_up(order, problem);
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn ask(
        &self,
        order: &Order,
        deadline: Instant,
        progress: &(dyn Fn(v1::Progress) + Send + Sync),
    ) -> Result<Outcome, NoOutcome> {
        let host = order.step.target.host.as_str();
        let left = deadline.saturating_duration_since(Instant::now());
        let channel = self.inventory.channel(host, left).await.map_err(NoOutcome::Lost)?;
        // Asked for as late as can be: the process may have been stopped for minutes between any two lines above.
        if !self.term.holds() {
            let problem = Problem::new(Code::NotLeader, "this coordinator does not lead any more");
            return Err(NoOutcome::Lost(problem));
        }
        let mut client = AgentClient::new(channel);
        let (action, from, to) = order.asked();
        // What leaves the service alone can be done again under any ledger.
        let pinned = order.ledger.clone().filter(|_| action.changes_service());
        let mut request = tonic::Request::new(v1::ExecuteRequest {
            key: Some(order.key()),
            epoch: self.term.epoch().0,
            leader_id: self.term.leader_for_agents(),
            component: order.step.target.component.0.clone(),
            action: convert::action_to_wire(action).into(),
            from: Some(convert::revision_to_wire(from)),
            to: Some(convert::revision_to_wire(to)),
            timeout: Some(convert::duration(left.saturating_sub(GRACE))),
            ledger_generation: pinned.or_else(|| self.ledger_of(host)).unwrap_or_default(),
            backend: convert::backend_to_wire(&order.step),
            from_backup: order.step.from_backup,
            // Only to those whom it concerns.
            consent: order
                .consent
                .filter(|_| order.step.from_backup)
                .map(convert::consent_to_wire),
            undo: order.direction == Direction::Undo,
        });
        telemetry::inject(&order.context, request.metadata_mut());
        kill_point::pass(|| "rpc.execute.before".to_owned());
        let mut stream = client
            .execute(request)
            .await
            .map_err(|s| self.classify(host, &s))?
            .into_inner();
        kill_point::pass(|| "rpc.execute.accepted".to_owned());
        loop {
            match stream.message().await {
                Ok(Some(event)) => match event.event {
                    Some(v1::execute_event::Event::Outcome(outcome)) => {
                        kill_point::pass(|| "rpc.execute.answered".to_owned());
                        return Ok(convert::outcome_from_wire(outcome));
                    }
                    Some(v1::execute_event::Event::Progress(p)) => progress(p),
                    Some(v1::execute_event::Event::Accepted(_)) | None => {}
                },
                Ok(None) => {
                    let problem = Problem::new(
                        Code::HostUnreachable,
                        format!("{host} ended the call without an outcome"),
                    );
                    return Err(NoOutcome::Lost(problem));
                }
                Err(status) => return Err(self.classify(host, &status)),
            }
        }
    }

    fn classify(&self, host: &str, status: &tonic::Status) -> NoOutcome {
        let problem = Problem::from_status(status);
        // Whoever is refused as stale finds out whether it leads, and asks again under another epoch or not at all.
        if let (Code::StaleLeader, Some(Hint::Epoch(epoch))) = (problem.code, &problem.hint) {
            self.term.outdone(Epoch(*epoch));
        }
        classify(host, problem)
    }
}

fn classify(host: &str, problem: Problem) -> NoOutcome {
    let problem = Problem {
        message: format!("{host}: {}", problem.message),
        ..problem
    };
    match problem.code {
        Code::ComponentBusy => NoOutcome::Busy(problem),
        Code::LedgerLost => NoOutcome::LedgerLost(problem),
        // Too late to begin says nothing of a step that was begun earlier under the same key.
        Code::HostUnreachable
        | Code::StoreUnavailable
        | Code::NotLeader
        | Code::StaleLeader
        | Code::StepTimeout
        | Code::Internal => NoOutcome::Lost(problem),
        // Everything else is an agent's considered no, given before it did anything.
        _ => NoOutcome::Refused(problem),
    }
}

/// The step's time is over and its agent has said nothing.
fn given_up(order: &Order, problem: Problem) -> Outcome {
    let (action, ..) = order.asked();
    let message = format!("{} of {}: {}", action.as_str(), order.step.subject(), problem.message);
    let problem = convert::problem(Problem { message, ..problem });
    if action.changes_service() {
        ended(StepResult::Indeterminate(problem))
    } else {
        ended(StepResult::Failed(problem))
    }
}

/// An outcome of which only the result is known.
fn ended(result: StepResult) -> Outcome {
    Outcome {
        result,
        findings: Vec::new(),
        observed: None,
        receipt: None,
        operations: Vec::new(),
        summary: String::new(),
        loss: None,
    }
}
