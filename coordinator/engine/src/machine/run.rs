//! What is known of a rollback whatever it is doing: its plan, how far every step is, timings, who failed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Corrupt;
use super::index::{Index, Place};
use crate::event::{Direction, Effect, Ending, Outcome, Problem};
use crate::ids::{HostName, StepId};
use crate::loss::Consent;
use crate::plan::{Phase, PhaseName, Plan, Step, Undo};
use crate::problems;

/// Attempts are numbered from 1. The engine never makes a second one: an outcome is final, and what is unknown is
/// asked for again under the same key. The number is in the journal's format for the day when a person may retry.
pub(super) const FIRST_ATTEMPT: u32 = 1;

/// Who started it, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creation {
    pub at: Timestamp,
    pub started_by: String,
    pub reason: String,
    pub incident: String,
    pub trace_id: String,
    pub parent_span_id: String,
    pub consent: Option<Consent>,
    pub ledgers: BTreeMap<HostName, String>,
}

/// When and why the way back began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoStart {
    pub at: Timestamp,
    pub cause: Problem,
}

/// One execution of a step that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub attempt: u32,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// As the agent said it; see [`super::judge`] for what it means.
    pub outcome: Outcome,
}

/// How far a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepState {
    Pending,
    InFlight {
        attempt: u32,
        since: Timestamp,
    },
    Ended {
        forward: Box<Attempt>,
    },
    Undoing {
        forward: Box<Attempt>,
        attempt: u32,
        since: Timestamp,
    },
    UndoEnded {
        forward: Box<Attempt>,
        undo: Box<Attempt>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseTiming {
    pub name: PhaseName,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// Failures of the same consequence: the first in plan order (arrival order would be chance), and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub step: StepId,
    pub problem: Problem,
    pub count: u32,
}

impl Failure {
    pub fn merge(&mut self, other: Failure) {
        self.count = self.count.saturating_add(other.count);
        if other.step < self.step {
            self.step = other.step;
            self.problem = other.problem;
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub creation: Creation,
    plan: Box<Plan>,
    index: Index,
    steps: Vec<StepState>,
    phases: Vec<PhaseTiming>,
    awaited: BTreeSet<(StepId, Direction)>,
    ended: [u32; 2],
    irreversible_begun: bool,
    failed_hosts: BTreeSet<HostName>,
    /// Hosts with failures where the runbook says to go on; they are not at the target.
    tolerated: BTreeSet<HostName>,
    first_tolerated: Option<Failure>,
    pub(super) undo: Option<UndoStart>,
}

impl Run {
    pub(super) fn new(creation: Creation, plan: &Plan) -> Result<Self, Corrupt> {
        let index = Index::of(plan)?;
        let phases = plan.body.phases.iter().map(|p| PhaseTiming {
            name: p.name,
            started_at: None,
            ended_at: None,
        });
        Ok(Self {
            creation,
            steps: vec![StepState::Pending; index.len()],
            phases: phases.collect(),
            index,
            plan: Box::new(plan.clone()),
            awaited: BTreeSet::new(),
            ended: [0; 2],
            irreversible_begun: false,
            failed_hosts: BTreeSet::new(),
            tolerated: BTreeSet::new(),
            first_tolerated: None,
            undo: None,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn step(&self, step: StepId) -> Option<&Step> {
        self.index.step(&self.plan, step)
    }

    pub fn step_state(&self, step: StepId) -> Option<&StepState> {
        self.steps.get(usize::try_from(step.0).ok()?)
    }

    /// The step's phase.
    pub fn phase_of(&self, step: StepId) -> Option<PhaseName> {
        let place = self.index.place(step)?;
        self.plan.body.phases.get(place.phase).map(|p| p.name)
    }

    pub fn phases(&self) -> &[PhaseTiming] {
        &self.phases
    }

    /// Hosts with a step that mattered and did not succeed.
    pub fn failed_hosts(&self) -> &BTreeSet<HostName> {
        &self.failed_hosts
    }

    /// When and why the way back began, if it did.
    pub fn undo_start(&self) -> Option<&UndoStart> {
        self.undo.as_ref()
    }

    pub fn steps_total(&self) -> usize {
        self.steps.len()
    }

    /// How many steps have ended in this direction, well or not.
    pub fn steps_ended(&self, direction: Direction) -> u32 {
        self.ended[direction as usize]
    }

    /// Is an answer to this very execution awaited?
    pub fn awaits(&self, step: StepId, direction: Direction, attempt: u32) -> bool {
        match (self.step_state(step), direction) {
            (Some(StepState::InFlight { attempt: a, .. }), Direction::Forward)
            | (Some(StepState::Undoing { attempt: a, .. }), Direction::Undo) => *a == attempt,
            (
                None
                | Some(
                    StepState::Pending
                    | StepState::InFlight { .. }
                    | StepState::Ended { .. }
                    | StepState::Undoing { .. }
                    | StepState::UndoEnded { .. },
                ),
                Direction::Forward | Direction::Undo,
            ) => false,
        }
    }

    /// Every execution without an end, in plan order.
    pub fn awaited(&self) -> impl Iterator<Item = Effect> {
        self.awaited.iter().map(|(step, direction)| Effect::Dispatch {
            step: *step,
            direction: *direction,
            attempt: FIRST_ATTEMPT,
        })
    }

    pub(super) fn place(&self, step: StepId) -> Result<Place, Corrupt> {
        self.index.place(step).ok_or(Corrupt::NoSuchStep(step))
    }

    pub(super) fn phase(&self, phase: usize) -> Option<&Phase> {
        self.plan.body.phases.get(phase)
    }

    pub(super) fn timing(&mut self, phase: usize) -> Option<&mut PhaseTiming> {
        self.phases.get_mut(phase)
    }

    /// A phase that is left by a failure ends when the way back begins, or with the rollback.
    pub(super) fn close_phase(&mut self, at: Timestamp) {
        for timing in &mut self.phases {
            if timing.started_at.is_some() && timing.ended_at.is_none() {
                timing.ended_at = Some(at);
            }
        }
    }

    pub(super) fn intend(
        &mut self,
        step: StepId,
        direction: Direction,
        attempt: u32,
        at: Timestamp,
    ) -> Result<(), Corrupt> {
        let irreversible = self.step(step).is_some_and(|s| s.undo == Undo::Impossible);
        let not_due = Corrupt::NotDue {
            event: "intent",
            step,
            attempt,
        };
        let Some(state) = usize::try_from(step.0).ok().and_then(|i| self.steps.get_mut(i)) else {
            return Err(Corrupt::NoSuchStep(step));
        };
        if attempt != FIRST_ATTEMPT {
            return Err(not_due);
        }
        *state = match (std::mem::replace(state, StepState::Pending), direction) {
            (StepState::Pending, Direction::Forward) => StepState::InFlight { attempt, since: at },
            (StepState::Ended { forward }, Direction::Undo) => StepState::Undoing {
                forward,
                attempt,
                since: at,
            },
            (unchanged, Direction::Forward | Direction::Undo) => {
                *state = unchanged;
                return Err(not_due);
            }
        };
        self.irreversible_begun |= irreversible;
        self.awaited.insert((step, direction));
        Ok(())
    }

    /// The caller has asked [`Run::awaits`]; anything else is refused here once more.
    pub(super) fn end(
        &mut self,
        step: StepId,
        direction: Direction,
        attempt: u32,
        at: Timestamp,
        outcome: &Outcome,
    ) -> Result<(), Corrupt> {
        let not_due = Corrupt::NotDue {
            event: "end",
            step,
            attempt,
        };
        if !self.awaits(step, direction, attempt) {
            return Err(not_due);
        }
        let Some(state) = usize::try_from(step.0).ok().and_then(|i| self.steps.get_mut(i)) else {
            return Err(Corrupt::NoSuchStep(step));
        };
        let ended = |since| {
            Box::new(Attempt {
                attempt,
                started_at: since,
                ended_at: at,
                outcome: outcome.clone(),
            })
        };
        *state = match std::mem::replace(state, StepState::Pending) {
            StepState::InFlight { since, .. } => StepState::Ended { forward: ended(since) },
            StepState::Undoing { forward, since, .. } => StepState::UndoEnded {
                forward,
                undo: ended(since),
            },
            unchanged @ (StepState::Pending | StepState::Ended { .. } | StepState::UndoEnded { .. }) => {
                *state = unchanged;
                return Err(not_due);
            }
        };
        self.awaited.remove(&(step, direction));
        self.ended[direction as usize] += 1;
        Ok(())
    }

    pub(super) fn is_still(&self) -> bool {
        self.awaited.is_empty()
    }

    pub(super) fn irreversible_begun(&self) -> bool {
        self.irreversible_begun
    }

    pub(super) fn is_tolerated(&self, host: &HostName) -> bool {
        self.tolerated.contains(host)
    }

    pub(super) fn note_failed(&mut self, host: &HostName) {
        if !self.failed_hosts.contains(host) {
            self.failed_hosts.insert(host.clone());
        }
    }

    /// The rollback goes on without what the rest of the failed step's lane would have reached: also a proxy to which the
    /// lane would have given a backend back.
    pub(super) fn tolerate(&mut self, failure: Failure) {
        let rest = self.index.rest_of_lane(&self.plan, failure.step);
        self.tolerated.extend(rest.iter().flat_map(Step::hosts).cloned());
        match &mut self.first_tolerated {
            Some(first) => first.merge(failure),
            none @ None => *none = Some(failure),
        }
    }

    /// How a rollback ends that went through all its phases.
    pub(super) fn final_ending(&self) -> Ending {
        let excused = &self.plan.body.excused;
        let mut hosts = self.tolerated.clone();
        hosts.extend(excused.iter().map(|e| e.host.clone()));
        let hosts: Vec<HostName> = hosts.into_iter().collect();
        match &self.first_tolerated {
            Some(failure) => {
                let cause = match self.step(failure.step) {
                    Some(step) => problems::of_step(step, step.action, failure.problem.clone(), 0),
                    None => failure.problem.clone(),
                };
                Ending::Partial {
                    cause: problems::partial(&hosts, &cause),
                    hosts,
                }
            }
            None if excused.is_empty() => Ending::Verified,
            None => Ending::Partial {
                hosts,
                cause: problems::excused(excused),
            },
        }
    }
}

/// The ending for what only a person can decide, with the command that goes on from there.
pub(super) fn held(run: &Run, cause: Problem) -> Ending {
    Ending::Held {
        cause: problems::held(cause, &run.plan().body),
    }
}
