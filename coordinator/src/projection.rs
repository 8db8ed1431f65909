//! Readings of a rollback: the summary that lists show, the events that watchers see, the full report.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rollback_engine::event::{AbortThen, Act, Direction, Ending, Event, Problem};
use rollback_engine::ids::{Digest, HostName, RollbackId};
use rollback_engine::loss::Consent;
use rollback_engine::machine::State;
use rollback_engine::machine::judge::{Judgement, judge};
use rollback_engine::plan::Selection;
use rollback_engine::view::{self, Kind};
use rollback_proto::v1;
use serde::{Deserialize, Serialize};

use crate::convert;
use crate::estimate::Timing;

/// What lists show, as it is stored beside the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub id: String,
    pub release: String,
    pub runbook: String,
    pub state: SummaryState,
    pub blocked: bool,
    pub phase: String,
    pub started_by: String,
    pub reason: String,
    pub incident: String,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub trace_id: String,
    pub steps_total: u32,
    pub steps_done: u32,
    pub problem: Option<Problem>,
    pub failed_hosts: Vec<String>,
    #[serde(default)]
    pub consent: Option<Consent>,
    /// Nothing new begins until somebody acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standstill: Option<Standstill>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
    #[serde(default, skip_serializing_if = "Selection::is_everything")]
    pub selection: Selection,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_of: Option<RollbackId>,
    /// Left out by operators while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_hosts: Vec<String>,
    /// Of one that was verified, for estimates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// Somebody, or the runbook, has paused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standstill {
    pub since: Timestamp,
    /// `None`: the runbook.
    pub by: Option<String>,
    pub reason: String,
    pub problem: Option<Problem>,
    pub failed_hosts: Vec<String>,
    pub in_flight: u32,
}

/// A second operator has to approve, or has approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub expires_at: Timestamp,
    pub approved: Option<(String, Timestamp)>,
    pub plan_digest: Digest,
}

impl Standstill {
    fn of(view: &view::Standstill<'_>) -> Self {
        Self {
            since: view.since,
            by: view.by.map(str::to_owned),
            reason: view.reason.to_owned(),
            problem: view.cause.clone(),
            failed_hosts: view.failed_hosts.iter().map(|h| h.0.clone()).collect(),
            in_flight: u32::try_from(view.in_flight).unwrap_or(u32::MAX),
        }
    }

    fn to_wire(&self) -> v1::Standstill {
        v1::Standstill {
            since: Some(convert::timestamp(self.since)),
            by: self.by.clone().unwrap_or_default(),
            reason: self.reason.clone(),
            problem: self.problem.as_ref().map(convert::problem_to_wire),
            failed_hosts: self.failed_hosts.clone(),
            in_flight: self.in_flight,
        }
    }
}

impl Approval {
    fn of(view: view::Approval<'_>) -> Self {
        Self {
            expires_at: view.expires_at,
            approved: view.approved.map(|approved| (approved.by.clone(), approved.at)),
            plan_digest: view.plan_digest.clone(),
        }
    }

    fn to_wire(&self) -> v1::Approval {
        let (by, at) = self.approved.clone().unzip();
        v1::Approval {
            expires_at: Some(convert::timestamp(self.expires_at)),
            approved_by: by.unwrap_or_default(),
            approved_at: at.map(convert::timestamp),
            plan_digest: self.plan_digest.0.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SummaryState {
    Running,
    Undoing,
    Verified,
    Undone,
    Partial,
    Held,
}

impl SummaryState {
    fn to_wire(self) -> v1::RollbackState {
        match self {
            SummaryState::Running => v1::RollbackState::Running,
            SummaryState::Undoing => v1::RollbackState::Undoing,
            SummaryState::Verified => v1::RollbackState::Verified,
            SummaryState::Undone => v1::RollbackState::Undone,
            SummaryState::Partial => v1::RollbackState::Partial,
            SummaryState::Held => v1::RollbackState::Held,
        }
    }
}

/// State, was it blocked, and why it ended so.
fn read_ending(ending: &Ending) -> (SummaryState, bool, Option<&Problem>) {
    match ending {
        Ending::Verified => (SummaryState::Verified, false, None),
        Ending::Undone { blocked, cause } => (SummaryState::Undone, *blocked, Some(cause)),
        Ending::Partial { cause, .. } => (SummaryState::Partial, false, Some(cause)),
        Ending::Held { cause } => (SummaryState::Held, false, Some(cause)),
    }
}

/// The hosts that are not where they should be: with the partial ones that were left out, because they were away.
fn not_there(ending: Option<&Ending>, failed: &BTreeSet<HostName>) -> Vec<String> {
    let left = match ending {
        Some(Ending::Partial { hosts, .. }) => &hosts[..],
        Some(Ending::Verified | Ending::Undone { .. } | Ending::Held { .. }) | None => &[],
    };
    let all: BTreeSet<&HostName> = failed.iter().chain(left).collect();
    all.into_iter().map(|host| host.0.clone()).collect()
}

impl Summary {
    /// `None` before the rollback was created.
    pub fn of(id: &RollbackId, state: &State) -> Option<Self> {
        let (view, run) = (state.summary()?, state.run()?);
        let (word, blocked, problem) = match (view.ending, view.kind) {
            (Some(ending), _) => read_ending(ending),
            (None, Kind::Undoing) => (SummaryState::Undoing, false, run.undo_start().map(|u| &u.cause)),
            (None, Kind::Running | Kind::Ended) => (SummaryState::Running, false, None),
        };
        let body = &run.plan().body;
        Some(Self {
            id: id.0.clone(),
            release: body.release.0.clone(),
            runbook: body.runbook.clone(),
            state: word,
            blocked,
            phase: view.phase.map(|p| p.as_str().to_owned()).unwrap_or_default(),
            started_by: run.creation.started_by.clone(),
            reason: run.creation.reason.clone(),
            incident: run.creation.incident.clone(),
            started_at: view.started_at,
            ended_at: view.ended_at,
            trace_id: run.creation.trace_id.clone(),
            steps_total: u32::try_from(view.steps_total).unwrap_or(u32::MAX),
            steps_done: view.steps_done,
            problem: problem.cloned(),
            failed_hosts: not_there(view.ending, view.failed_hosts),
            consent: run.creation.consent,
            standstill: view.standstill.as_ref().map(Standstill::of),
            approval: view.approval.map(Approval::of),
            selection: body.selection.clone(),
            undo_of: body.undo_of.clone(),
            skipped_hosts: view.skipped_hosts.iter().map(|h| h.0.clone()).collect(),
            timing: Timing::of(state),
        })
    }

    pub fn to_wire(&self) -> v1::RollbackSummary {
        v1::RollbackSummary {
            id: self.id.clone(),
            release: self.release.clone(),
            runbook: self.runbook.clone(),
            state: self.state.to_wire().into(),
            blocked: self.blocked,
            phase: self.phase.clone(),
            started_by: self.started_by.clone(),
            reason: self.reason.clone(),
            incident: self.incident.clone(),
            started_at: Some(convert::timestamp(self.started_at)),
            ended_at: self.ended_at.map(convert::timestamp),
            trace_id: self.trace_id.clone(),
            steps_total: self.steps_total,
            steps_done: self.steps_done,
            problem: self.problem.as_ref().map(convert::problem_to_wire),
            failed_hosts: self.failed_hosts.clone(),
            consent: self.consent.map(convert::consent_to_wire),
            standstill: self.standstill.as_ref().map(Standstill::to_wire),
            approval: self.approval.as_ref().map(Approval::to_wire),
            scope: convert::selection_to_wire(&self.selection),
            undo_of: self.undo_of.as_ref().map(|id| id.0.clone()).unwrap_or_default(),
            skipped_hosts: self.skipped_hosts.clone(),
        }
    }
}

/// An event as watchers see it. `state` need only know the plan.
pub fn event(state: &State, seq: u64, event: &Event) -> v1::RollbackEvent {
    use v1::rollback_event::Kind as Wire;
    let plain = |at: &Timestamp, kind: Wire| v1::RollbackEvent {
        seq,
        at: Some(convert::timestamp(*at)),
        kind: kind.into(),
        ..v1::RollbackEvent::default()
    };
    match event {
        Event::Created {
            at,
            plan,
            started_by,
            reason,
            consent,
            ..
        } => v1::RollbackEvent {
            by: started_by.clone(),
            reason: reason.clone(),
            message: {
                let agreed = consent.map_or_else(String::new, |consent| format!(", agreed to {consent}"));
                let why = if reason.is_empty() {
                    String::new()
                } else {
                    format!(": {reason}")
                };
                format!("{started_by} rolls back to {}{agreed}{why}", plan.body.release)
            },
            ..plain(at, Wire::Created)
        },
        Event::PhaseStarted { at, phase } => v1::RollbackEvent {
            phase: phase.as_str().to_owned(),
            ..plain(at, Wire::PhaseStarted)
        },
        Event::PhaseEnded { at, phase } => v1::RollbackEvent {
            phase: phase.as_str().to_owned(),
            ..plain(at, Wire::PhaseEnded)
        },
        Event::BatchStarted { at, phase, batch } => v1::RollbackEvent {
            phase: phase.as_str().to_owned(),
            batch: *batch,
            ..plain(at, Wire::BatchStarted)
        },
        Event::StepIntended {
            at,
            step,
            direction,
            attempt,
        } => v1::RollbackEvent {
            attempt: *attempt,
            ..place(state, *step, *direction, plain(at, Wire::StepStarted))
        },
        Event::StepEnded {
            at,
            step,
            direction,
            attempt,
            outcome,
        } => {
            let judgement = state.step(*step).map(|planned| judge(planned, *direction, outcome));
            let (kind, problem) = match judgement {
                Some(Judgement::Good) | None => (Wire::StepSucceeded, None),
                Some(Judgement::Bad { problem, .. }) => (Wire::StepFailed, Some(problem)),
                Some(Judgement::Unknown(problem)) => (Wire::StepIndeterminate, Some(problem)),
            };
            v1::RollbackEvent {
                attempt: *attempt,
                message: outcome.summary.clone(),
                problem: problem.as_ref().map(convert::problem_to_wire),
                observed: outcome.observed.as_ref().map(convert::revision_to_wire),
                ..place(state, *step, *direction, plain(at, kind))
            }
        }
        Event::UndoStarted { at, cause } => v1::RollbackEvent {
            message: cause.message.clone(),
            problem: Some(convert::problem_to_wire(cause)),
            ..plain(at, Wire::UndoStarted)
        },
        Event::Steered { at, by, reason, act } => {
            let (kind, hosts, message) = act_to_wire(act);
            v1::RollbackEvent {
                message,
                by: by.clone(),
                reason: reason.clone(),
                hosts,
                ..plain(at, kind)
            }
        }
        Event::Paused { at, cause } => v1::RollbackEvent {
            message: cause.message.clone(),
            problem: Some(convert::problem_to_wire(cause)),
            ..plain(at, Wire::Paused)
        },
        Event::Ended { at, ending } => {
            let (word, blocked, problem) = read_ending(ending);
            v1::RollbackEvent {
                state: word.to_wire().into(),
                blocked,
                message: problem.map(|p| p.message.clone()).unwrap_or_default(),
                problem: problem.map(convert::problem_to_wire),
                ..plain(at, Wire::Ended)
            }
        }
    }
}

/// Kind, hosts that it is about, and one line for people.
fn act_to_wire(act: &Act) -> (v1::rollback_event::Kind, Vec<String>, String) {
    use v1::rollback_event::Kind as Wire;
    let names = |hosts: &BTreeSet<HostName>| hosts.iter().map(|h| h.0.clone()).collect();
    match act {
        Act::Pause => (Wire::Paused, Vec::new(), "nothing new begins".to_owned()),
        Act::Resume => (Wire::Resumed, Vec::new(), "goes on".to_owned()),
        Act::Retry { hosts } => (Wire::Retried, names(hosts), "the failed steps again".to_owned()),
        Act::Skip { hosts } => (Wire::Skipped, names(hosts), "goes on without them".to_owned()),
        Act::Abort { then: AbortThen::Undo } => (Wire::Aborted, Vec::new(), "everything is undone".to_owned()),
        Act::Abort { then: AbortThen::Hold } => (Wire::Aborted, Vec::new(), "it stays as it is".to_owned()),
        Act::Approve { .. } => (Wire::Approved, Vec::new(), "the plan is approved".to_owned()),
    }
}

/// Fills in where a step is.
pub fn place(
    state: &State,
    step: rollback_engine::ids::StepId,
    direction: Direction,
    event: v1::RollbackEvent,
) -> v1::RollbackEvent {
    let (Some(run), Some(planned)) = (state.run(), state.step(step)) else {
        return event;
    };
    let action = planned
        .in_direction(direction)
        .map_or(planned.action, |asked| asked.action);
    v1::RollbackEvent {
        phase: run.phase_of(step).map(|p| p.as_str().to_owned()).unwrap_or_default(),
        step_id: step.0,
        undo: direction == Direction::Undo,
        host: planned.target.host.0.clone(),
        component: planned.target.component.0.clone(),
        action: convert::action_to_wire(action).into(),
        backend: convert::backend_to_wire(planned),
        ..event
    }
}

/// Everything that is known of a rollback.
pub fn report(id: &RollbackId, state: &State) -> Option<v1::GetRollbackResponse> {
    let summary = Summary::of(id, state)?;
    let phases = state.run()?.phases().iter().filter(|p| p.started_at.is_some());
    Some(v1::GetRollbackResponse {
        summary: Some(summary.to_wire()),
        plan: state.plan().map(convert::plan_to_wire),
        phases: phases
            .map(|p| v1::PhaseTiming {
                name: p.name.as_str().to_owned(),
                started_at: p.started_at.map(convert::timestamp),
                ended_at: p.ended_at.map(convert::timestamp),
            })
            .collect(),
        steps: state
            .reports()
            .map(|r| v1::StepReport {
                id: r.step.id.0,
                undo: r.direction == Direction::Undo,
                attempt: r.attempt,
                phase: r.phase.as_str().to_owned(),
                host: r.step.target.host.0.clone(),
                component: r.step.target.component.0.clone(),
                action: convert::action_to_wire(
                    r.step
                        .in_direction(r.direction)
                        .map_or(r.step.action, |asked| asked.action),
                )
                .into(),
                started_at: Some(convert::timestamp(r.started_at)),
                ended_at: r.ended_at.map(convert::timestamp),
                outcome: r.outcome.map(|o| convert::outcome_to_wire(r.step, o)),
                backend: convert::backend_to_wire(r.step),
            })
            .collect(),
        findings: state
            .findings()
            .map(|(step, f)| convert::finding_to_wire(step, f))
            .collect(),
        events: Vec::new(),
    })
}
