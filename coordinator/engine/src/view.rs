//! What people want to know of a rollback, read off its state.
//!
//! A summary costs the same for ten hosts and for ten thousand; reports and findings are iterators over the steps.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::event::{Direction, Ending, Finding, Outcome, Problem};
use crate::ids::{Digest, HostName};
use crate::machine::{self, Abort, Approved, Attempt, PhaseTiming, Run, State, StepState};
use crate::plan::{PhaseName, Step};

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Running,
    Undoing,
    Ended,
}

#[derive(Clone, Debug)]
pub struct Summary<'a> {
    pub kind: Kind,
    /// Going forward: the phase under way. On the way back and after the end: the last one that was begun.
    pub phase: Option<PhaseName>,
    pub steps_total: usize,
    /// Forward steps that have ended, well or not.
    pub steps_done: u32,
    pub undone_steps: u32,
    pub phases: &'a [PhaseTiming],
    pub failed_hosts: &'a BTreeSet<HostName>,
    /// Left out by operators.
    pub skipped_hosts: &'a BTreeSet<HostName>,
    /// Nothing new begins. `None` while approval is awaited: see there.
    pub standstill: Option<Standstill<'a>>,
    /// There when the plan asks for a second operator.
    pub approval: Option<Approval<'a>>,
    /// An operator ends it, as soon as what is in flight has ended. `None` after the end, too.
    pub abort: Option<&'a Abort>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub ending: Option<&'a Ending>,
}

/// It is paused.
#[derive(Clone, Debug)]
pub struct Standstill<'a> {
    /// `None`: the runbook's policy for a failure.
    pub by: Option<&'a str>,
    /// The operator's; empty when it was the policy.
    pub reason: &'a str,
    pub since: Timestamp,
    /// What failed in this batch, if anything did.
    pub cause: Option<Problem>,
    /// Whose failed steps can be retried now, or skipped.
    pub failed_hosts: BTreeSet<HostName>,
    /// Steps that were begun before and are not over yet.
    pub in_flight: usize,
}

/// A second operator has to approve, or did. Until then nothing begins.
#[derive(Clone, Copy, Debug)]
pub struct Approval<'a> {
    pub expires_at: Timestamp,
    /// `None`: it is awaited (or was, when it has ended).
    pub approved: Option<&'a Approved>,
    pub plan_digest: &'a Digest,
}

/// One execution of a step, under way or ended.
#[derive(Clone, Debug)]
pub struct StepReport<'a> {
    pub step: &'a Step,
    pub phase: PhaseName,
    pub direction: Direction,
    pub attempt: u32,
    /// It failed, and an operator had the step tried again.
    pub superseded: bool,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub outcome: Option<&'a Outcome>,
}

impl State {
    /// `None` before it was created.
    pub fn summary(&self) -> Option<Summary<'_>> {
        let (kind, run, ending, ended_at) = match self {
            State::New => return None,
            State::Forward { run, .. } => (Kind::Running, run, None, None),
            State::Undoing { run, .. } => (Kind::Undoing, run, None, None),
            State::Ended { run, ending, at } => (Kind::Ended, run, Some(ending), Some(*at)),
        };
        Some(Summary {
            kind,
            phase: run
                .phases()
                .iter()
                .rev()
                .find(|p| p.started_at.is_some())
                .map(|p| p.name),
            steps_total: run.steps_total(),
            steps_done: run.steps_ended(Direction::Forward),
            undone_steps: run.steps_ended(Direction::Undo),
            phases: run.phases(),
            failed_hosts: run.failed_hosts(),
            skipped_hosts: run.skipped_hosts(),
            standstill: standstill(self),
            approval: run.approval_expires_at().map(|expires_at| Approval {
                expires_at,
                approved: run.approved(),
                plan_digest: &run.plan().digest,
            }),
            abort: run.abort().filter(|_| ending.is_none()),
            started_at: run.creation.at,
            ended_at,
            ending,
        })
    }

    /// Every execution that was begun, in plan order: a step that was undone has two, and one that was tried again more.
    pub fn reports(&self) -> impl Iterator<Item = StepReport<'_>> {
        self.run()
            .into_iter()
            .flat_map(|run| run.plan().body.phases.iter().map(move |phase| (run, phase)))
            .flat_map(|(run, phase)| {
                let steps = phase.batches.iter().flat_map(|b| &b.lanes).flat_map(|l| &l.steps);
                steps.flat_map(move |step| of_step(run, phase.name, step))
            })
    }

    /// Every finding of preflight, with the step that found it. What a later attempt did not find again is mended.
    pub fn findings(&self) -> impl Iterator<Item = (&Step, &Finding)> {
        self.reports()
            .filter(|r| r.direction == Direction::Forward && !r.superseded)
            .flat_map(|report| {
                let findings = report.outcome.map_or(&[][..], |outcome| &outcome.findings);
                findings.iter().map(move |finding| (report.step, finding))
            })
    }
}

fn of_step<'a>(run: &'a Run, phase: PhaseName, step: &'a Step) -> impl Iterator<Item = StepReport<'a>> {
    let running = |direction, attempt, started_at| StepReport {
        step,
        phase,
        direction,
        attempt,
        superseded: false,
        started_at,
        ended_at: None,
        outcome: None,
    };
    let ended = move |direction, attempt: &'a Attempt| StepReport {
        step,
        phase,
        direction,
        attempt: attempt.attempt,
        superseded: false,
        started_at: attempt.started_at,
        ended_at: Some(attempt.ended_at),
        outcome: Some(&attempt.outcome),
    };
    let (forward, undo) = match run.step_state(step.id) {
        None | Some(StepState::Pending) => (None, None),
        Some(StepState::InFlight { attempt, since }) => (Some(running(Direction::Forward, *attempt, *since)), None),
        Some(StepState::Ended { forward }) => (Some(ended(Direction::Forward, forward)), None),
        Some(StepState::Undoing {
            forward,
            attempt,
            since,
        }) => (
            Some(ended(Direction::Forward, forward)),
            Some(running(Direction::Undo, *attempt, *since)),
        ),
        Some(StepState::UndoEnded { forward, undo }) => (
            Some(ended(Direction::Forward, forward)),
            Some(ended(Direction::Undo, undo)),
        ),
    };
    let earlier = run.earlier_attempts(step.id).iter().map(move |attempt| StepReport {
        superseded: true,
        ..ended(Direction::Forward, attempt)
    });
    earlier.chain(forward).chain(undo)
}

fn standstill(state: &State) -> Option<Standstill<'_>> {
    let run = state.run()?;
    let (by, reason, since, policy) = match run.standstill()? {
        machine::Standstill::ByOperator { by, reason, at } => (Some(by.as_str()), reason.as_str(), *at, None),
        machine::Standstill::ByPolicy { cause, at } => (None, "", *at, Some(cause)),
    };
    let (cause, failed_hosts) = match state {
        State::Forward { run, forward } => (forward.cause(run), forward.retryable_hosts(run)),
        State::New | State::Undoing { .. } | State::Ended { .. } => (None, BTreeSet::new()),
    };
    Some(Standstill {
        by,
        reason,
        since,
        cause: cause.or_else(|| policy.cloned()),
        failed_hosts,
        in_flight: run.in_flight(),
    })
}
