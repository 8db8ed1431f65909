//! The way to the target: phase by phase, batch by batch.

use jiff::Timestamp;

use super::Corrupt;
use super::judge::Judgement;
use super::run::{FIRST_ATTEMPT, Failure, Run, held};
use super::wave::Wave;
use crate::event::{Direction, Ending, Event, Problem};
use crate::ids::StepId;
use crate::plan::{OnFailure, PhaseName, Step};
use crate::problems;
use crate::release::Action;

/// Where on the way it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    position: Position,
}

/// Indices into the plan; one past the last means that nothing is left.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    BeforePhase(usize),
    BeforeBatch {
        phase: usize,
        batch: usize,
    },
    InBatch {
        phase: usize,
        batch: usize,
        wave: Wave,
        stop: Option<Stop>,
    },
}

/// Nothing new is begun in this batch, and when the last answer is in, this happens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stop {
    then: Then,
    failure: Failure,
}

/// In the order of precedence: what nobody knows must not be undone, whatever else failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Then {
    Undo,
    Hold,
    HoldUnknown,
}

impl Stop {
    fn merge(&mut self, other: Stop) {
        match other.then.cmp(&self.then) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => self.failure.merge(other.failure),
            std::cmp::Ordering::Greater => *self = other,
        }
    }
}

impl Forward {
    pub(super) fn start() -> Self {
        Self {
            position: Position::BeforePhase(0),
        }
    }

    /// The phase that it is in; `None` between phases.
    pub fn phase<'r>(&self, run: &'r Run) -> Option<&'r crate::plan::Phase> {
        match self.position {
            Position::BeforePhase(_) => None,
            Position::BeforeBatch { phase, .. } | Position::InBatch { phase, .. } => run.phase(phase),
        }
    }

    /// Every phase of the plan is behind.
    pub(super) fn is_through(&self, run: &Run) -> bool {
        match self.position {
            Position::BeforePhase(phase) => run.phase(phase).is_none(),
            Position::BeforeBatch { .. } | Position::InBatch { .. } => false,
        }
    }

    pub(super) fn follow_ups(&self, run: &Run, at: Timestamp) -> Vec<Event> {
        match &self.position {
            Position::BeforePhase(phase) => match run.phase(*phase) {
                Some(phase) => vec![Event::PhaseStarted { at, phase: phase.name }],
                None => vec![Event::Ended {
                    at,
                    ending: run.final_ending(),
                }],
            },
            Position::BeforeBatch { phase, batch } => match run.phase(*phase) {
                Some(phase) if *batch < phase.batches.len() => {
                    vec![Event::BatchStarted {
                        at,
                        phase: phase.name,
                        batch: batch_number(*batch),
                    }]
                }
                Some(phase) => vec![Event::PhaseEnded { at, phase: phase.name }],
                None => Vec::new(),
            },
            Position::InBatch { wave, stop: None, .. } => {
                let direction = Direction::Forward;
                wave.due()
                    .map(|step| Event::StepIntended {
                        at,
                        step,
                        direction,
                        attempt: FIRST_ATTEMPT,
                    })
                    .collect()
            }
            Position::InBatch {
                phase,
                wave,
                stop: Some(stop),
                ..
            } => {
                if wave.is_still() {
                    vec![what_failure_leads_to(run, *phase, stop, at)]
                } else {
                    Vec::new()
                }
            }
        }
    }

    pub(super) fn phase_started(&mut self, run: &mut Run, name: PhaseName, at: Timestamp) -> Result<(), Corrupt> {
        let Position::BeforePhase(phase) = self.position else {
            return Err(out_of_place("PhaseStarted"));
        };
        if run.phase(phase).map(|p| p.name) != Some(name) {
            return Err(out_of_place("PhaseStarted"));
        }
        if let Some(timing) = run.timing(phase) {
            timing.started_at = Some(at);
        }
        self.position = Position::BeforeBatch { phase, batch: 0 };
        Ok(())
    }

    pub(super) fn batch_started(&mut self, run: &Run, name: PhaseName, number: u32) -> Result<(), Corrupt> {
        let Position::BeforeBatch { phase, batch } = self.position else {
            return Err(out_of_place("BatchStarted"));
        };
        let found = run
            .phase(phase)
            .filter(|p| p.name == name)
            .and_then(|p| p.batches.get(batch));
        let Some(planned) = found.filter(|_| batch_number(batch) == number) else {
            return Err(out_of_place("BatchStarted"));
        };
        let lanes = planned
            .lanes
            .iter()
            .map(|lane| lane.steps.iter().rev().map(|s| s.id).collect())
            .enumerate();
        self.position = Position::InBatch {
            phase,
            batch,
            wave: Wave::new(lanes),
            stop: None,
        };
        self.settle();
        Ok(())
    }

    pub(super) fn phase_ended(&mut self, run: &mut Run, name: PhaseName, at: Timestamp) -> Result<(), Corrupt> {
        let Position::BeforeBatch { phase, batch } = self.position else {
            return Err(out_of_place("PhaseEnded"));
        };
        if !run
            .phase(phase)
            .is_some_and(|p| p.name == name && batch == p.batches.len())
        {
            return Err(out_of_place("PhaseEnded"));
        }
        if let Some(timing) = run.timing(phase) {
            timing.ended_at = Some(at);
        }
        self.position = Position::BeforePhase(phase + 1);
        Ok(())
    }

    /// Marks the step as begun; refused when it is not due here or when the batch is stopping.
    pub(super) fn begin(&mut self, run: &Run, step: StepId, attempt: u32) -> Result<(), Corrupt> {
        let place = run.place(step)?;
        let begun = match &mut self.position {
            Position::InBatch {
                phase,
                batch,
                wave,
                stop: None,
            } => (*phase, *batch) == (place.phase, place.batch) && wave.begin(place.lane, step),
            Position::InBatch { .. } | Position::BeforePhase(_) | Position::BeforeBatch { .. } => false,
        };
        if begun {
            Ok(())
        } else {
            Err(Corrupt::NotDue {
                event: "intent",
                step,
                attempt,
            })
        }
    }

    /// The step in flight has ended, with this meaning.
    pub(super) fn end(&mut self, run: &mut Run, step: &Step, judgement: Judgement) -> Result<(), Corrupt> {
        let place = run.place(step.id)?;
        let Position::InBatch {
            phase,
            batch,
            wave,
            stop,
        } = &mut self.position
        else {
            return Err(out_of_place("StepEnded"));
        };
        let Some(on_failure) = run
            .phase(*phase)
            .filter(|_| (*phase, *batch) == (place.phase, place.batch))
        else {
            return Err(out_of_place("StepEnded"));
        };
        let on_failure = on_failure.on_failure;
        wave.end(place.lane, judgement == Judgement::Good);
        if let Some(new) = consequence(run, step, on_failure, judgement) {
            match stop {
                Some(stop) => stop.merge(new),
                none @ None => *none = Some(new),
            }
        }
        self.settle();
        Ok(())
    }

    /// A batch whose lanes are all done, without a reason to stop, is behind.
    fn settle(&mut self) {
        if let Position::InBatch {
            phase,
            batch,
            wave,
            stop: None,
        } = &self.position
            && wave.is_done()
        {
            self.position = Position::BeforeBatch {
                phase: *phase,
                batch: *batch + 1,
            };
        }
    }
}

/// What a step's end means for the batch. `None`: it goes on.
fn consequence(run: &mut Run, step: &Step, on_failure: OnFailure, judgement: Judgement) -> Option<Stop> {
    let (problem, count, unknown) = match judgement {
        Judgement::Good => return None,
        // The rollback is decided when finish runs; what it leaves behind is litter, not a state.
        Judgement::Bad { .. } | Judgement::Unknown(_) if step.action == Action::Finish => return None,
        Judgement::Bad { problem, count } => (problem, count, false),
        Judgement::Unknown(problem) => (problem, 1, true),
    };
    let failure = Failure {
        step: step.id,
        problem,
        count,
    };
    step.hosts().for_each(|host| run.note_failed(host));
    if unknown {
        return Some(Stop {
            then: Then::HoldUnknown,
            failure,
        });
    }
    // Where the runbook went on without a host, its verification cannot pass and must not condemn the others.
    let known_bad = step.action == Action::Verify && run.is_tolerated(&step.target.host);
    match on_failure {
        OnFailure::Undo if !known_bad => Some(Stop {
            then: Then::Undo,
            failure,
        }),
        OnFailure::Hold if !known_bad => Some(Stop {
            then: Then::Hold,
            failure,
        }),
        OnFailure::Undo | OnFailure::Hold | OnFailure::Pause | OnFailure::Continue => {
            run.tolerate(failure);
            None
        }
    }
}

/// All answers of a stopped batch are in.
fn what_failure_leads_to(run: &Run, phase: usize, stop: &Stop, at: Timestamp) -> Event {
    let in_preflight = run.phase(phase).is_some_and(|p| p.name == PhaseName::Preflight);
    let failure = &stop.failure;
    let cause: Problem = match run.step(failure.step) {
        None => failure.problem.clone(),
        Some(step) if stop.then == Then::HoldUnknown => problems::indeterminate(step, failure.problem.clone()),
        Some(step) if in_preflight => problems::blocked(step, failure.problem.clone(), failure.count),
        Some(step) => problems::of_step(
            step,
            step.action,
            failure.problem.clone(),
            failure.count.saturating_sub(1),
        ),
    };
    match stop.then {
        Then::HoldUnknown | Then::Hold => Event::Ended {
            at,
            ending: held(run, cause),
        },
        // Nothing was touched, so there is nothing to undo.
        Then::Undo if in_preflight => Event::Ended {
            at,
            ending: Ending::Undone { blocked: true, cause },
        },
        Then::Undo if run.irreversible_begun() => Event::Ended {
            at,
            ending: held(run, problems::irreversible(&cause)),
        },
        Then::Undo => Event::UndoStarted { at, cause },
    }
}

fn batch_number(batch: usize) -> u32 {
    u32::try_from(batch).unwrap_or(u32::MAX)
}

fn out_of_place(event: &'static str) -> Corrupt {
    Corrupt::OutOfPlace {
        event,
        state: "going forward",
    }
}
