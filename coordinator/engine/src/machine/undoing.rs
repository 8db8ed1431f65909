//! The way back: every step that was begun and has an undo, newest first.
//!
//! Phases and batches backwards, the lanes of a batch side by side, a lane backwards. Steps that failed are asked for
//! their undo too: "failed" means that the step did not reach its end, not that it left nothing (a start that never
//! became healthy may have left a process running), and an undo that finds nothing to do succeeds at the agent.
//!
//! When an undo fails, its lane stops there, the other lanes of the batch go on (they are other components), and then
//! the rollback is held: the batches before would be undone on top of something that is not as they left it.

use jiff::Timestamp;

use super::Corrupt;
use super::hands::Abort;
use super::judge::Judgement;
use super::run::{Failure, Run, StepState, held};
use super::wave::Wave;
use crate::event::{Direction, Ending, Event, Problem};
use crate::ids::StepId;
use crate::plan::{Step, Undo};
use crate::problems;
use crate::release::Action;

/// Where on the way back it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undoing {
    cause: Problem,
    /// What is left, in plan order: the last one is under way.
    left: Vec<Part>,
    stuck: Option<Failure>,
}

/// One batch of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    phase: usize,
    batch: usize,
    wave: Wave,
}

impl Undoing {
    pub(super) fn start(run: &Run, cause: Problem) -> Self {
        let mut left = Vec::new();
        for (p, phase) in run.plan().body.phases.iter().enumerate() {
            for (b, batch) in phase.batches.iter().enumerate() {
                let back = |steps: &[Step]| steps.iter().filter(|s| has_way_back(run, s)).map(|s| s.id).collect();
                let wave = Wave::new(batch.lanes.iter().map(|lane| back(&lane.steps)).enumerate());
                if !wave.is_done() {
                    left.push(Part {
                        phase: p,
                        batch: b,
                        wave,
                    });
                }
            }
        }
        Self {
            cause,
            left,
            stuck: None,
        }
    }

    /// Why it is going back.
    pub fn cause(&self) -> &Problem {
        &self.cause
    }

    /// Everything that could be undone was.
    pub(super) fn is_through(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn follow_ups(&self, run: &Run, at: Timestamp) -> Vec<Event> {
        let Some(part) = self.left.last() else {
            return vec![Event::Ended {
                at,
                ending: Ending::Undone {
                    blocked: false,
                    cause: self.cause.clone(),
                },
            }];
        };
        match &self.stuck {
            Some(stuck) if part.wave.is_done() => {
                vec![Event::Ended {
                    at,
                    ending: held(run, self.held_because(run, stuck)),
                }]
            }
            Some(_) | None => {
                let direction = Direction::Undo;
                let due = part.wave.due();
                due.map(|(_, step)| Event::StepIntended {
                    at,
                    step,
                    direction,
                    attempt: run.next_attempt(step, direction),
                })
                .collect()
            }
        }
    }

    pub(super) fn begin(&mut self, run: &Run, step: StepId, attempt: u32) -> Result<(), Corrupt> {
        let place = run.place(step)?;
        let part = self
            .left
            .last_mut()
            .filter(|part| (part.phase, part.batch) == (place.phase, place.batch));
        let begun = part.is_some_and(|part| part.wave.begin(place.lane, step));
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

    pub(super) fn end(&mut self, run: &mut Run, step: &Step, judgement: Judgement) -> Result<(), Corrupt> {
        let place = run.place(step.id)?;
        let part = self
            .left
            .last_mut()
            .filter(|part| (part.phase, part.batch) == (place.phase, place.batch));
        let Some(part) = part else {
            return Err(Corrupt::OutOfPlace {
                event: "StepEnded",
                state: "being undone",
            });
        };
        let failure = match judgement {
            Judgement::Good => None,
            // What was staged lies beside the service; a leftover harms nobody and is thrown away by the next stage.
            Judgement::Bad { .. } | Judgement::Unknown(_) if step.undo == Undo::By(Action::Discard) => None,
            Judgement::Bad { problem, count } => Some(Failure {
                step: step.id,
                problem,
                count,
            }),
            Judgement::Unknown(problem) => Some(Failure {
                step: step.id,
                problem,
                count: 1,
            }),
        };
        part.wave.end(place.lane, failure.is_none());
        if let Some(failure) = failure {
            run.failures.note(step, Direction::Undo);
            match &mut self.stuck {
                Some(first) => first.merge(failure),
                none @ None => *none = Some(failure),
            }
        }
        if self.stuck.is_none() && part.wave.is_done() {
            self.left.pop();
        }
        Ok(())
    }

    /// An operator stopped it here, and nothing is in flight.
    pub(super) fn aborted(&self, run: &Run, abort: &Abort, at: Timestamp) -> Event {
        let why = match &self.stuck {
            Some(stuck) => self.held_because(run, stuck),
            None => problems::undo_left(&self.cause),
        };
        Event::Ended {
            at,
            ending: held(run, problems::aborted(&abort.by, &abort.reason, Some(&why))),
        }
    }

    fn held_because(&self, run: &Run, stuck: &Failure) -> Problem {
        match run.step(stuck.step) {
            Some(step) => {
                let action = step
                    .in_direction(Direction::Undo)
                    .map_or(step.action, |asked| asked.action);
                problems::undo_failed(step, action, &stuck.problem, &self.cause)
            }
            None => stuck.problem.clone(),
        }
    }
}

fn has_way_back(run: &Run, step: &Step) -> bool {
    let begun = match run.step_state(step.id) {
        Some(StepState::Ended { .. }) => true,
        None
        | Some(
            StepState::Pending | StepState::InFlight { .. } | StepState::Undoing { .. } | StepState::UndoEnded { .. },
        ) => false,
    };
    let has_undo = match step.undo {
        Undo::By(_) => true,
        Undo::Nothing | Undo::Impossible => false,
    };
    begun && has_undo
}
