//! Command → events. Refuses what does not fit; changes nothing.

use jiff::Timestamp;

use super::{Rejected, Run, State, steer};
use crate::event::{Command, Effect, Ending, Event, Outcome, Problem, StepResult};
use crate::lint::lint;
use crate::problems;

/// The events that a command leads to by itself; see [`super::transition`] for what follows from them.
///
/// A plan is accepted only when the second opinion finds nothing wrong with it: the invariants of execution hold
/// because the plan has the right shape *and* the machine follows it, and here is the one place where both meet. That
/// the plan is unchanged since it was sealed is for whoever read it to ask ([`crate::plan::Plan::open`]).
pub fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejected> {
    match (state, command) {
        (
            State::New,
            Command::Create {
                at,
                plan,
                started_by,
                reason,
                incident,
                trace_id,
                parent_span_id,
                consent,
                ledgers,
            },
        ) => {
            let errors = lint(plan);
            if !errors.is_empty() {
                return Err(Rejected::Unsound(errors));
            }
            let restored: Vec<_> = plan.body.restored_databases().cloned().collect();
            if consent.is_none() && !restored.is_empty() {
                return Err(Rejected::NoConsent(restored));
            }
            // Consent to a loss that cannot be would read as if there had been one.
            let consent = consent.filter(|_| !restored.is_empty());
            Ok(vec![Event::Created {
                at: *at,
                plan: plan.clone(),
                started_by: started_by.clone(),
                reason: reason.clone(),
                incident: incident.clone(),
                trace_id: trace_id.clone(),
                parent_span_id: parent_span_id.clone(),
                consent,
                ledgers: ledgers.clone(),
            }])
        }
        (
            State::New,
            Command::StepEnded { .. }
            | Command::TakeUp { .. }
            | Command::Hold { .. }
            | Command::Steer { .. }
            | Command::Expire { .. },
        ) => Err(Rejected::NotCreated),
        (State::Forward { .. } | State::Undoing { .. } | State::Ended { .. }, Command::Expire { at }) => {
            Ok(steer::expire(state, *at).into_iter().collect())
        }
        (
            State::Forward { .. } | State::Undoing { .. } | State::Ended { .. },
            Command::Steer { at, by, reason, act },
        ) => Ok(vec![Event::Steered {
            at: *at,
            by: by.clone(),
            reason: reason.clone(),
            act: steer::decide(state, *at, by, act)?,
        }]),
        (State::Forward { .. } | State::Undoing { .. } | State::Ended { .. }, Command::Create { .. }) => {
            Err(Rejected::AlreadyCreated)
        }
        (State::Forward { .. } | State::Undoing { .. } | State::Ended { .. }, Command::TakeUp { .. }) => Ok(Vec::new()),
        (State::Ended { .. }, Command::Hold { .. }) => Ok(Vec::new()),
        (State::Forward { run, .. } | State::Undoing { run, .. }, Command::Hold { at, cause }) => {
            Ok(hold(run, *at, cause))
        }
        (
            State::Forward { run, .. } | State::Undoing { run, .. } | State::Ended { run, .. },
            Command::StepEnded {
                at,
                step,
                direction,
                attempt,
                outcome,
            },
        ) => {
            let (step, direction, attempt) = (*step, *direction, *attempt);
            if !run.awaits(step, direction, attempt) {
                return Err(Rejected::NotInFlight {
                    step,
                    direction,
                    attempt,
                });
            }
            Ok(vec![Event::StepEnded {
                at: *at,
                step,
                direction,
                attempt,
                outcome: outcome.clone(),
            }])
        }
    }
}

/// Every step in flight has an end that says that nobody knows, whatever kind of step it is: also one that changes nothing
/// has a successor that the journal may have lost.
fn hold(run: &Run, at: Timestamp, cause: &Problem) -> Vec<Event> {
    let unknown = |effect: Effect| match effect {
        Effect::Dispatch {
            step,
            direction,
            attempt,
        } => Some(Event::StepEnded {
            at,
            step,
            direction,
            attempt,
            outcome: Outcome {
                result: StepResult::Indeterminate(cause.clone()),
                findings: Vec::new(),
                observed: None,
                receipt: None,
                operations: Vec::new(),
                summary: String::new(),
                loss: None,
            },
        }),
        Effect::Close => None,
    };
    let ending = Ending::Held {
        cause: problems::held(cause.clone(), &run.plan().body),
    };
    let end = Event::Ended { at, ending };
    run.awaited().filter_map(unknown).chain([end]).collect()
}
