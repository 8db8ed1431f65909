//! What is known of a rollback whatever it is doing: its plan, how far every step is, timings, who failed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::Corrupt;
use super::failures::{Failures, TooMany};
use super::hands::{Abort, Approved, Hands, Standstill};
use super::index::{Index, Place};
use super::judge::{Judgement, judge};
use crate::event::{Direction, Effect, Ending, Outcome, Problem};
use crate::ids::{HostName, StepId};
use crate::loss::Consent;
use crate::plan::{Phase, PhaseName, Plan, Step, Undo};
use crate::problems;

/// Attempts are numbered from 1, in each direction. Only a person has a step tried again, and only one that failed: what is
/// unknown is asked for again under the same key. The way back of a step is tried once.
const FIRST_ATTEMPT: u32 = 1;

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
    /// Forward attempts that failed and were followed by another one.
    earlier: BTreeMap<StepId, Vec<Attempt>>,
    /// Executions without an end, and which attempts these are.
    awaited: BTreeMap<(StepId, Direction), u32>,
    ended: [u32; 2],
    irreversible_begun: bool,
    pub(super) failures: Failures,
    pub(super) hands: Hands,
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
            earlier: BTreeMap::new(),
            awaited: BTreeMap::new(),
            ended: [0; 2],
            irreversible_begun: false,
            failures: Failures::default(),
            hands: Hands::default(),
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

    /// Hosts with a step that mattered and did not succeed, nor at a later attempt.
    pub fn failed_hosts(&self) -> &BTreeSet<HostName> {
        self.failures.hosts()
    }

    /// Hosts that operators said to go on without.
    pub fn skipped_hosts(&self) -> &BTreeSet<HostName> {
        self.failures.skipped()
    }

    /// Attempts of this step that were followed by another one, the first one first.
    pub fn earlier_attempts(&self, step: StepId) -> &[Attempt] {
        self.earlier.get(&step).map_or(&[], Vec::as_slice)
    }

    /// It is paused, and since when.
    pub fn standstill(&self) -> Option<&Standstill> {
        self.hands.standstill.as_ref()
    }

    /// An operator wants it to end.
    pub fn abort(&self) -> Option<&Abort> {
        self.hands.abort.as_ref()
    }

    /// The second operator, if one had to approve and did.
    pub fn approved(&self) -> Option<&Approved> {
        self.hands.approved.as_ref()
    }

    /// Until when a second operator can approve; `None`: nobody has to.
    pub fn approval_expires_at(&self) -> Option<Timestamp> {
        let within = self.plan.body.approval?.within_ms;
        let within = SignedDuration::from_millis(i64::try_from(within).unwrap_or(i64::MAX));
        Some(self.creation.at.checked_add(within).unwrap_or(Timestamp::MAX))
    }

    pub fn awaits_approval(&self) -> bool {
        self.plan.body.approval.is_some() && self.approved().is_none()
    }

    /// Nothing new begins.
    pub fn stands_still(&self) -> bool {
        self.standstill().is_some() || self.awaits_approval()
    }

    /// How many executions have no end yet.
    pub fn in_flight(&self) -> usize {
        self.awaited.len()
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
        self.awaited
            .iter()
            .map(|((step, direction), attempt)| Effect::Dispatch {
                step: *step,
                direction: *direction,
                attempt: *attempt,
            })
    }

    /// The number of the step's next execution in this direction.
    pub(super) fn next_attempt(&self, step: StepId, direction: Direction) -> u32 {
        match (self.step_state(step), direction) {
            (Some(StepState::Ended { forward }), Direction::Forward) => forward.attempt.saturating_add(1),
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
            ) => FIRST_ATTEMPT,
        }
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
        let expected = self.next_attempt(step, direction);
        let failed = self.has_failed(step);
        let not_due = Corrupt::NotDue {
            event: "intent",
            step,
            attempt,
        };
        let Some(state) = usize::try_from(step.0).ok().and_then(|i| self.steps.get_mut(i)) else {
            return Err(Corrupt::NoSuchStep(step));
        };
        if attempt != expected {
            return Err(not_due);
        }
        *state = match (std::mem::replace(state, StepState::Pending), direction) {
            (StepState::Pending, Direction::Forward) => StepState::InFlight { attempt, since: at },
            (StepState::Ended { forward }, Direction::Forward) if failed => {
                self.earlier.entry(step).or_default().push(*forward);
                self.ended[Direction::Forward as usize] -= 1;
                StepState::InFlight { attempt, since: at }
            }
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
        self.awaited.insert((step, direction), attempt);
        Ok(())
    }

    /// Its forward attempt has ended, and is known to have failed: no step takes effect twice.
    fn has_failed(&self, step: StepId) -> bool {
        match (self.step(step), self.step_state(step)) {
            (Some(planned), Some(StepState::Ended { forward })) => {
                match judge(planned, Direction::Forward, &forward.outcome) {
                    Judgement::Bad { .. } => true,
                    Judgement::Good | Judgement::Unknown(_) => false,
                }
            }
            (None, _)
            | (
                Some(_),
                None
                | Some(
                    StepState::Pending
                    | StepState::InFlight { .. }
                    | StepState::Undoing { .. }
                    | StepState::UndoEnded { .. },
                ),
            ) => false,
        }
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
        self.failures.tolerated().contains(host)
    }

    /// A step of the plan, and those that follow it in its lane.
    pub(super) fn rest_of_lane(&self, step: StepId) -> &[Step] {
        self.index.rest_of_lane(&self.plan, step)
    }

    pub(super) fn tolerate(&mut self, failure: Failure) {
        let rest = self.index.rest_of_lane(&self.plan, failure.step);
        self.failures.tolerate(failure, rest);
    }

    pub(super) fn tolerate_known(&mut self, failure: Failure) {
        let rest = self.index.rest_of_lane(&self.plan, failure.step);
        self.failures.tolerate_known(failure, rest);
    }

    pub(super) fn skip(&mut self, failure: Failure) {
        let rest = self.index.rest_of_lane(&self.plan, failure.step);
        self.failures.skip(failure, rest);
    }

    /// Would it leave too many hosts behind to go on without the rests of these steps' lanes?
    pub(super) fn too_many(&self, most: Option<u32>, steps: impl IntoIterator<Item = StepId>) -> Option<TooMany> {
        let most = most?;
        let rests = steps.into_iter().map(|step| self.rest_of_lane(step));
        let hosts = self.failures.would_be_behind(rests);
        let allowed = usize::try_from(most).unwrap_or(usize::MAX);
        (hosts > allowed).then_some(TooMany { hosts, most })
    }

    pub(super) fn recovered(&mut self, step: &Step) {
        let (index, plan) = (&self.index, &self.plan);
        self.failures.recovered(step, |id| index.step(plan, id));
    }

    /// How a rollback ends that went through all its phases.
    pub(super) fn final_ending(&self) -> Ending {
        let excused = &self.plan.body.excused;
        let mut hosts = self.failures.tolerated().clone();
        hosts.extend(excused.iter().map(|e| e.host.clone()));
        let hosts: Vec<HostName> = hosts.into_iter().collect();
        match self.failures.first_tolerated() {
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
