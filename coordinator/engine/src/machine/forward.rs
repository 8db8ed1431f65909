//! The way to the target: phase by phase, batch by batch.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::Corrupt;
use super::hands::Abort;
use super::judge::Judgement;
use super::run::{Failure, Run, held};
use super::stop::{Stop, Then};
use super::wave::Wave;
use crate::event::{AbortThen, Direction, Ending, Event, Problem};
use crate::ids::{HostName, StepId};
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
        stop: Stop,
    },
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
            Position::InBatch { wave, stop, .. } => {
                let direction = Direction::Forward;
                // A stopped batch has many lanes that could go on and do not: they are not looked through for every answer.
                let due: Vec<Event> = (stop.is_empty() || stop.is_at_it())
                    .then(|| wave.due())
                    .into_iter()
                    .flatten()
                    .filter(|(lane, _)| stop.lets(*lane))
                    .map(|(_, step)| Event::StepIntended {
                        at,
                        step,
                        direction,
                        attempt: run.next_attempt(step, direction),
                    })
                    .collect();
                if due.is_empty() && wave.is_still() {
                    self.stopped(run, at).into_iter().collect()
                } else {
                    due
                }
            }
        }
    }

    /// All answers of a stopped batch are in.
    fn stopped(&self, run: &Run, at: Timestamp) -> Option<Event> {
        let (then, _) = self.stop()?.leads_to()?;
        let cause = self.cause(run)?;
        Some(match then {
            Then::Pause => Event::Paused { at, cause },
            Then::HoldUnknown | Then::Hold => Event::Ended {
                at,
                ending: held(run, cause),
            },
            Then::Undo => self.back(run, at, cause),
        })
    }

    /// What "undo" comes to here.
    fn back(&self, run: &Run, at: Timestamp, cause: Problem) -> Event {
        if self.has_touched_nothing(run) {
            Event::Ended {
                at,
                ending: Ending::Undone { blocked: true, cause },
            }
        } else if run.irreversible_begun() {
            Event::Ended {
                at,
                ending: held(run, problems::irreversible(&cause)),
            }
        } else {
            Event::UndoStarted { at, cause }
        }
    }

    /// An operator ended it, and nothing is in flight. What nobody knows is not undone, whoever asks for it.
    pub(super) fn aborted(&self, run: &Run, abort: &Abort, at: Timestamp) -> Event {
        let failed = self.cause(run);
        match (self.stop().and_then(Stop::unknown), failed) {
            (Some(_), Some(unknown)) => Event::Ended {
                at,
                ending: held(run, unknown),
            },
            (_, failed) => {
                let cause = problems::aborted(&abort.by, &abort.reason, failed.as_ref());
                match abort.then {
                    AbortThen::Undo => self.back(run, at, cause),
                    // There is nothing to hold where nothing was begun.
                    AbortThen::Hold if run.awaits_approval() => self.back(run, at, cause),
                    AbortThen::Hold => Event::Ended {
                        at,
                        ending: held(run, cause),
                    },
                }
            }
        }
    }

    /// Not even a step of the first phase that touches anything was begun.
    pub(super) fn has_touched_nothing(&self, run: &Run) -> bool {
        let phase = match self.position {
            Position::BeforePhase(next) => next.checked_sub(1),
            Position::BeforeBatch { phase, .. } | Position::InBatch { phase, .. } => Some(phase),
        };
        // Phases are in their one order, so preflight is the first one.
        phase.is_none_or(|phase| run.phase(phase).is_some_and(|p| p.name == PhaseName::Preflight))
    }

    /// What failed in this batch; `None` between batches.
    pub(super) fn stop(&self) -> Option<&Stop> {
        match &self.position {
            Position::BeforePhase(_) | Position::BeforeBatch { .. } => None,
            Position::InBatch { stop, .. } => Some(stop),
        }
    }

    /// All answers are in, and what failed is for an operator to decide.
    pub(super) fn waits_for_operator(&self) -> bool {
        self.stop()
            .is_some_and(|stop| !stop.is_at_it() && matches!(stop.leads_to(), Some((Then::Pause, _))))
    }

    /// Hosts whose steps failed in this batch and can be tried again: none where nobody knows what one of them did.
    pub(crate) fn retryable_hosts(&self, run: &Run) -> BTreeSet<HostName> {
        let stop = self.stop().filter(|stop| stop.unknown().is_none());
        stop.map(|stop| stop.hosts(run)).unwrap_or_default()
    }

    /// Why it stopped, for people.
    pub(crate) fn cause(&self, run: &Run) -> Option<Problem> {
        let in_preflight = self.phase(run).is_some_and(|p| p.name == PhaseName::Preflight);
        self.stop()?.cause(run, in_preflight)
    }

    /// The failed steps of these hosts again, and then the rest of their lanes. False: nothing that failed concerns them.
    #[must_use]
    pub(super) fn retry(&mut self, run: &Run, hosts: &BTreeSet<HostName>) -> bool {
        let Position::InBatch { wave, stop, .. } = &mut self.position else {
            return false;
        };
        // What nobody knows is not made less by trying beside it.
        if stop.unknown().is_some() {
            return false;
        }
        let failed = stop.concerning(run, hosts);
        let lanes: Vec<usize> = failed.iter().map(|(lane, _)| *lane).collect();
        stop.send_on(&lanes);
        for (lane, failure) in &failed {
            wave.again(*lane, failure.step);
        }
        !failed.is_empty()
    }

    /// On without these hosts. False: nothing that failed concerns them.
    #[must_use]
    pub(super) fn skip(&mut self, run: &mut Run, hosts: &BTreeSet<HostName>) -> bool {
        let Position::InBatch { stop, .. } = &mut self.position else {
            return false;
        };
        if stop.unknown().is_some() {
            return false;
        }
        let failed = stop.concerning(run, hosts);
        stop.forget(failed.iter().map(|(lane, _)| *lane));
        let any = !failed.is_empty();
        failed.into_iter().for_each(|(_, failure)| run.skip(failure));
        self.settle();
        any
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
            stop: Stop::default(),
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
                stop,
            } => {
                (*phase, *batch) == (place.phase, place.batch) && stop.lets(place.lane) && wave.begin(place.lane, step)
            }
            Position::BeforePhase(_) | Position::BeforeBatch { .. } => false,
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
        let Some(planned) = run
            .phase(*phase)
            .filter(|_| (*phase, *batch) == (place.phase, place.batch))
        else {
            return Err(out_of_place("StepEnded"));
        };
        let (on_failure, most) = (planned.on_failure, planned.max_unavailable);
        let good = judgement == Judgement::Good;
        if good {
            run.recovered(step);
        }
        if !wave.end(place.lane, good) {
            stop.through(place.lane);
        }
        if let Some((then, failure)) = consequence(run, step, on_failure, most, judgement) {
            stop.stand(place.lane, then, failure);
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
            stop,
        } = &self.position
            && stop.is_empty()
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
fn consequence(
    run: &mut Run,
    step: &Step,
    on_failure: OnFailure,
    most: Option<u32>,
    judgement: Judgement,
) -> Option<(Then, Failure)> {
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
    run.failures.note(step, Direction::Forward);
    if unknown {
        return Some((Then::HoldUnknown, failure));
    }
    // Where it went on without a host, that host's verification cannot pass and must not condemn the others.
    if step.action == Action::Verify && run.is_tolerated(&step.target.host) {
        run.tolerate_known(failure);
        return None;
    }
    match on_failure {
        OnFailure::Undo => Some((Then::Undo, failure)),
        OnFailure::Hold => Some((Then::Hold, failure)),
        OnFailure::Pause => Some((Then::Pause, failure)),
        OnFailure::Continue => match run.too_many(most, [step.id]) {
            None => {
                run.tolerate(failure);
                None
            }
            Some(too_many) => {
                let problem = problems::too_many(failure.problem, &too_many);
                Some((Then::Hold, Failure { problem, ..failure }))
            }
        },
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
