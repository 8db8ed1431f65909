//! Command → events. Refuses what does not fit; changes nothing.

use super::{Rejected, State};
use crate::event::{Command, Event};
use crate::lint::lint;

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
        (State::New, Command::StepEnded { .. } | Command::Resume { .. }) => Err(Rejected::NotCreated),
        (State::Forward { .. } | State::Undoing { .. } | State::Ended { .. }, Command::Create { .. }) => {
            Err(Rejected::AlreadyCreated)
        }
        (State::Forward { .. } | State::Undoing { .. } | State::Ended { .. }, Command::Resume { .. }) => Ok(Vec::new()),
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
