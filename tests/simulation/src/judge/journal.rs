//! A journal, read event by event: its shape, and the order of things in it.

use std::collections::{BTreeMap, BTreeSet};

use rollback_coordinator::store::Recorded;
use rollback_engine::event::{AbortThen, Act, Direction, Ending, Event, Outcome, StepResult};
use rollback_engine::ids::{RollbackId, StepId};
use rollback_engine::plan::{Plan, Step};
use rollback_engine::release::{Action, Role};

pub struct Journal<'a> {
    pub id: &'a RollbackId,
    pub plan: &'a Plan,
    pub steps: BTreeMap<StepId, &'a Step>,
    events: Vec<&'a Event>,
}

type Execution = (StepId, Direction, u32);

impl<'a> Journal<'a> {
    /// `None`: it does not begin as a journal does.
    pub fn read(id: &'a RollbackId, recorded: &'a [Recorded]) -> Option<Self> {
        let Some(Event::Created { plan, .. }) = recorded.first().map(|r| &r.event) else {
            return None;
        };
        Some(Self {
            id,
            plan,
            steps: plan.body.steps().map(|step| (step.id, step)).collect(),
            events: recorded.iter().map(|r| &r.event).collect(),
        })
    }

    pub fn ending(&self) -> Option<&'a Ending> {
        self.events.iter().find_map(|event| match event {
            Event::Ended { ending, .. } => Some(ending),
            _ => None,
        })
    }

    pub fn events(&self) -> impl Iterator<Item = &'a Event> {
        self.events.iter().copied()
    }

    /// What the last abort was to leave.
    pub fn aborted(&self) -> Option<AbortThen> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Steered {
                act: Act::Abort { then },
                ..
            } => Some(*then),
            _ => None,
        })
    }

    pub fn held_because(&self) -> Option<String> {
        match self.ending()? {
            Ending::Held { cause } => Some(format!("{} {}", cause.code, cause.message)),
            Ending::Verified | Ending::Undone { .. } | Ending::Partial { .. } => None,
        }
    }

    fn step(&self, id: StepId) -> Option<&'a Step> {
        self.steps.get(&id).copied()
    }

    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut intended: BTreeSet<Execution> = BTreeSet::new();
        let mut ended: BTreeMap<Execution, &Outcome> = BTreeMap::new();
        let mut endings = 0;
        for (n, event) in self.events.iter().enumerate() {
            match event {
                Event::Created { .. } if n > 0 => found.push("it was created twice".to_owned()),
                Event::StepIntended {
                    step,
                    direction,
                    attempt,
                    ..
                } => {
                    if !intended.insert((*step, *direction, *attempt)) {
                        found.push(format!("step {step} {direction:?} was intended twice"));
                    }
                    found.extend(self.too_early(*step, *direction, &ended));
                }
                Event::StepEnded {
                    step,
                    direction,
                    attempt,
                    outcome,
                    ..
                } => {
                    let execution = (*step, *direction, *attempt);
                    if !intended.contains(&execution) {
                        found.push(format!("step {step} {direction:?} ended without an intent"));
                    }
                    if ended.insert(execution, outcome).is_some() {
                        found.push(format!("step {step} {direction:?} ended twice"));
                    }
                }
                Event::Ended { ending, .. } => {
                    endings += 1;
                    if n + 1 != self.events.len() {
                        found.push("something was written after its end".to_owned());
                    }
                    found.extend(self.groundless(ending, &ended));
                }
                Event::Created { .. }
                | Event::PhaseStarted { .. }
                | Event::BatchStarted { .. }
                | Event::PhaseEnded { .. }
                | Event::UndoStarted { .. }
                | Event::Steered { .. }
                | Event::Paused { .. } => {}
            }
        }
        if endings > 1 {
            found.push(format!("it ended {endings} times"));
        }
        found.into_iter().map(|what| format!("{}: {what}", self.id)).collect()
    }

    /// Is the step begun before what has to be done first?
    fn too_early(&self, id: StepId, direction: Direction, ended: &BTreeMap<Execution, &Outcome>) -> Option<String> {
        let step = self
            .step(id)
            .filter(|step| direction == Direction::Forward && step.action.changes_service())?;
        let is_done = |before: &&Step| {
            let outcomes = ended
                .iter()
                .filter(|((step, way, _), _)| *step == before.id && *way == Direction::Forward);
            outcomes
                .into_iter()
                .any(|(_, outcome)| outcome.result == StepResult::Succeeded)
        };
        let unstaged = self
            .plan
            .body
            .steps()
            .filter(|s| s.action == Action::Stage)
            .find(|s| !is_done(s));
        if let Some(unstaged) = unstaged {
            return Some(format!(
                "{} of {} before {} was staged",
                step.action, step.target, unstaged.target
            ));
        }
        let database = self
            .plan
            .body
            .changes
            .iter()
            .any(|c| c.target == step.target && c.role == Role::Database);
        let of_target = |s: &&Step| s.action == Action::Snapshot && s.target == step.target;
        let mut snapshots = self.plan.body.steps().filter(of_target);
        (database && !snapshots.any(|s| is_done(&s)))
            .then(|| format!("{} was changed before it was backed up", step.target))
    }

    /// An ending that says more than was seen.
    fn groundless(&self, ending: &Ending, ended: &BTreeMap<Execution, &Outcome>) -> Vec<String> {
        match ending {
            Ending::Verified => {
                let seen = |target: &rollback_engine::ids::Target, to| {
                    ended.iter().any(|((step, way, _), outcome)| {
                        *way == Direction::Forward
                            && outcome.result == StepResult::Succeeded
                            && outcome.observed.as_ref() == Some(to)
                            && self
                                .step(*step)
                                .is_some_and(|s| s.action == Action::Verify && s.target == *target)
                    })
                };
                let changes = self.plan.body.changes.iter();
                let unseen = changes.filter(|change| !seen(&change.target, &change.to));
                unseen
                    .map(|change| format!("verified, and nobody saw {} at its target", change.target))
                    .collect()
            }
            Ending::Undone { cause, .. } | Ending::Partial { cause, .. } | Ending::Held { cause } => {
                let said = !cause.code.is_empty() && !cause.message.is_empty();
                (!said)
                    .then(|| "it ended badly without a reason".to_owned())
                    .into_iter()
                    .collect()
            }
        }
    }

    /// Number of the journal's intents that ask for this, in this direction: one for each step, unless an operator had a step
    /// that failed tried again.
    pub fn asks_for(&self, deed: &crate::recorder::Deed) -> usize {
        let direction = if deed.undo { Direction::Undo } else { Direction::Forward };
        let fits = |step: &&&Step| {
            step.target == deed.target
                && step.in_direction(direction).is_some_and(|asked| {
                    let action = format!("ACTION_{}", asked.action.as_str().to_ascii_uppercase());
                    let backend = asked.backend.map(ToString::to_string);
                    deed.action.as_str_name() == action && backend == deed.backend
                })
        };
        let intents = self.events.iter().filter_map(|event| match event {
            Event::StepIntended {
                step, direction: way, ..
            } if *way == direction => self.steps.get(step),
            _ => None,
        });
        intents.filter(fits).count()
    }
}
