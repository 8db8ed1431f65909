//! The records themselves. Reading and deciding is apart from writing: a request is planned against what is there, and
//! its changes are applied together, or not at all.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use rollback_proto::v1::{ExecuteRequest, Outcome};

use super::{Record, Write};
use crate::ledger::{
    ArgsDigest, Begin, Fence, LedgerError, OTHERS, RECENT, RETENTION, Recalled, StepKey, StepState, Unfinished,
};

#[derive(Debug, Default)]
pub(super) struct Records {
    fence: Option<Fence>,
    steps: BTreeMap<StepKey, Step>,
    pub now: Duration,
}

#[derive(Clone, Debug)]
struct Step {
    digest: ArgsDigest,
    request: ExecuteRequest,
    begun: Duration,
    interruptions: u32,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Running,
    Interrupted { at: Duration },
    Ended { at: Duration, outcome: Box<Outcome> },
}

/// What a request writes.
#[derive(Debug)]
pub(super) enum Change {
    Epoch(Fence),
    Begin(StepKey, ArgsDigest, Box<ExecuteRequest>),
    Finish(StepKey, Box<Outcome>),
    Interrupt(StepKey),
}

impl Change {
    pub fn write(&self) -> Write {
        match self {
            Change::Epoch(fence) => Write::Epoch(fence.clone()),
            Change::Begin(key, _, _) => Write::Begin(key.clone()),
            Change::Finish(key, _) => Write::Finish(key.clone()),
            Change::Interrupt(key) => Write::Interrupt(key.clone()),
        }
    }
}

/// An answer, and what becomes durable with it.
type Planned<T> = Result<(T, Vec<Change>), LedgerError>;

impl Records {
    pub fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    pub fn observe(&self, fence: &Fence) -> Planned<()> {
        match &self.fence {
            Some(known) if known == fence => Ok(((), Vec::new())),
            Some(known) if fence.epoch <= known.epoch => Err(LedgerError::Stale {
                asking: fence.clone(),
                known: known.clone(),
            }),
            Some(_) | None => Ok(((), vec![Change::Epoch(fence.clone())])),
        }
    }

    pub fn look(&self, fence: &Fence, key: &StepKey, digest: &ArgsDigest) -> Planned<Begin> {
        let ((), changes) = self.observe(fence)?;
        let known = match self.steps.get(key) {
            None => Begin::New,
            Some(step) if step.digest != *digest => Begin::ArgsDiffer,
            Some(step) => match &step.state {
                State::Running => Begin::Unfinished,
                State::Interrupted { .. } => Begin::New,
                State::Ended { outcome, .. } => Begin::Known(outcome.clone()),
            },
        };
        Ok((known, changes))
    }

    pub fn begin(&self, fence: &Fence, key: &StepKey, digest: &ArgsDigest, request: ExecuteRequest) -> Planned<Begin> {
        let (known, mut changes) = self.look(fence, key, digest)?;
        if known == Begin::New {
            changes.push(Change::Begin(key.clone(), *digest, Box::new(request)));
        }
        Ok((known, changes))
    }

    pub fn finish(&self, key: &StepKey, outcome: Box<Outcome>) -> Planned<()> {
        let change = Change::Finish(key.clone(), outcome);
        Ok(((), Vec::from_iter(self.runs(key).then_some(change))))
    }

    pub fn interrupt(&self, key: &StepKey) -> Planned<()> {
        let change = Change::Interrupt(key.clone());
        Ok(((), Vec::from_iter(self.runs(key).then_some(change))))
    }

    fn runs(&self, key: &StepKey) -> bool {
        self.steps
            .get(key)
            .is_some_and(|step| matches!(step.state, State::Running))
    }

    pub fn unfinished(&self) -> Vec<Unfinished> {
        self.oldest_first()
            .into_iter()
            .filter(|(key, _)| self.runs(key))
            .map(|(key, step)| Unfinished {
                key: key.clone(),
                request: step.request.clone(),
            })
            .collect()
    }

    pub fn recall(&self, fence: &Fence, rollbacks: &[String]) -> Planned<Recalled> {
        let ((), changes) = self.observe(fence)?;
        let asked = |key: &StepKey| rollbacks.contains(&key.rollback_id);
        let steps = self.oldest_first();
        let known = steps.iter().filter(|(key, _)| asked(key));
        let known = known.map(|(key, step)| ((*key).clone(), step.state.seen())).collect();
        let mut newest: BTreeMap<&str, Duration> = BTreeMap::new();
        for (key, step) in steps {
            if !asked(key) && step.begun + RECENT >= self.now {
                newest.insert(&key.rollback_id, step.begun);
            }
        }
        let mut others: Vec<_> = newest.into_iter().map(|(id, begun)| (Reverse(begun), id)).collect();
        others.sort();
        others.truncate(OTHERS as usize);
        let recalled = Recalled {
            steps: known,
            others: others.into_iter().map(|(_, id)| id.to_owned()).collect(),
        };
        Ok((recalled, changes))
    }

    pub fn all(&self) -> Vec<Record> {
        let record = |(key, step): (&StepKey, &Step)| Record {
            key: key.clone(),
            state: step.state.seen(),
            interruptions: step.interruptions,
            request: step.request.clone(),
            outcome: match &step.state {
                State::Ended { outcome, .. } => Some((**outcome).clone()),
                State::Running | State::Interrupted { .. } => None,
            },
        };
        self.oldest_first().into_iter().map(record).collect()
    }

    /// Steps that began at the same time in the order of their keys.
    fn oldest_first(&self) -> Vec<(&StepKey, &Step)> {
        let mut steps: Vec<_> = self.steps.iter().collect();
        steps.sort_by_key(|(_, step)| step.begun);
        steps
    }

    /// Forgets steps that nobody will ask for any more.
    pub fn forget(&mut self) {
        let now = self.now;
        self.steps.retain(|_, step| match &step.state {
            State::Running => true,
            State::Interrupted { at } | State::Ended { at, .. } => *at + RETENTION >= now,
        });
    }

    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.apply_one(change);
        }
    }

    fn apply_one(&mut self, change: Change) {
        let now = self.now;
        match change {
            Change::Epoch(fence) => self.fence = Some(fence),
            Change::Begin(key, digest, request) => {
                let step = Step {
                    digest,
                    request: *request,
                    begun: now,
                    interruptions: self.steps.get(&key).map_or(0, |step| step.interruptions),
                    state: State::Running,
                };
                self.steps.insert(key, step);
            }
            Change::Finish(key, outcome) => {
                if let Some(step) = self.steps.get_mut(&key) {
                    step.state = State::Ended { at: now, outcome };
                }
            }
            Change::Interrupt(key) => {
                if let Some(step) = self.steps.get_mut(&key) {
                    step.interruptions += 1;
                    step.state = State::Interrupted { at: now };
                }
            }
        }
    }
}

impl State {
    fn seen(&self) -> StepState {
        match self {
            State::Running => StepState::Unfinished,
            State::Interrupted { .. } => StepState::Interrupted,
            State::Ended { .. } => StepState::Ended,
        }
    }
}
