//! Event → state. The only place where the state changes, live and on replay.
//!
//! Every (state, event) pair is answered in one `match`; a pair that cannot be is an error and never a panic, because
//! the events come from a disk. After an error the state is unchanged or, when the event was half-way right, not to be
//! used; callers throw it away in either case.

use super::forward::Forward;
use super::hands::Standstill;
use super::judge::judge;
use super::run::{Creation, Run, UndoStart};
use super::undoing::Undoing;
use super::{Corrupt, State, steer};
use crate::event::{AbortThen, Direction, Ending, Event, Outcome};
use crate::ids::StepId;
use crate::plan::Step;

pub fn apply(state: &mut State, event: &Event) -> Result<(), Corrupt> {
    let out_of_place = Corrupt::OutOfPlace {
        event: name(event),
        state: state.name(),
    };
    if !may_be_now(state, event) {
        return Err(out_of_place);
    }
    match (&mut *state, event) {
        (
            State::New,
            Event::Created {
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
            let creation = Creation {
                at: *at,
                started_by: started_by.clone(),
                reason: reason.clone(),
                incident: incident.clone(),
                trace_id: trace_id.clone(),
                parent_span_id: parent_span_id.clone(),
                consent: *consent,
                ledgers: ledgers.clone(),
            };
            let run = Box::new(Run::new(creation, plan)?);
            *state = State::Forward {
                run,
                forward: Forward::start(),
            };
            Ok(())
        }

        (State::Forward { run, forward }, Event::PhaseStarted { at, phase }) => forward.phase_started(run, *phase, *at),
        (State::Forward { run, forward }, Event::BatchStarted { phase, batch, .. }) => {
            forward.batch_started(run, *phase, *batch)
        }
        (State::Forward { run, forward }, Event::PhaseEnded { at, phase }) => forward.phase_ended(run, *phase, *at),
        (
            State::Forward { run, forward },
            Event::StepIntended {
                at,
                step,
                direction: direction @ Direction::Forward,
                attempt,
            },
        ) => {
            forward.begin(run, *step, *attempt)?;
            run.intend(*step, *direction, *attempt, *at)
        }
        (
            State::Forward { run, forward },
            Event::StepEnded {
                at,
                step,
                direction: direction @ Direction::Forward,
                attempt,
                outcome,
            },
        ) => {
            run.end(*step, *direction, *attempt, *at, outcome)?;
            let (step, judgement) = judged(run, *step, *direction, outcome)?;
            forward.end(run, &step, judgement)
        }
        (State::Forward { run, .. }, Event::UndoStarted { at, cause }) if run.is_still() => {
            let undoing = Undoing::start(run, cause.clone());
            run.undo = Some(UndoStart {
                at: *at,
                cause: cause.clone(),
            });
            run.close_phase(*at);
            let Some(run) = into_run(state) else {
                return Err(out_of_place);
            };
            *state = State::Undoing { run, undoing };
            Ok(())
        }

        (
            State::Undoing { run, undoing },
            Event::StepIntended {
                at,
                step,
                direction: direction @ Direction::Undo,
                attempt,
            },
        ) => {
            undoing.begin(run, *step, *attempt)?;
            run.intend(*step, *direction, *attempt, *at)
        }
        (
            State::Undoing { run, undoing },
            Event::StepEnded {
                at,
                step,
                direction: direction @ Direction::Undo,
                attempt,
                outcome,
            },
        ) => {
            run.end(*step, *direction, *attempt, *at, outcome)?;
            let (step, judgement) = judged(run, *step, *direction, outcome)?;
            undoing.end(run, &step, judgement)
        }

        (State::Forward { .. } | State::Undoing { .. }, Event::Steered { at, by, reason, act }) => {
            steer::apply(state, *at, by, reason, act)
        }
        (State::Forward { run, .. }, Event::Paused { at, cause }) => {
            run.hands.standstill = Some(Standstill::ByPolicy {
                cause: cause.clone(),
                at: *at,
            });
            Ok(())
        }

        (State::Forward { .. } | State::Undoing { .. }, Event::Ended { at, ending }) => {
            if !may_end(state, ending) {
                return Err(out_of_place);
            }
            let Some(mut run) = into_run(state) else {
                return Err(out_of_place);
            };
            run.close_phase(*at);
            *state = State::Ended {
                run,
                ending: ending.clone(),
                at: *at,
            };
            Ok(())
        }

        (
            State::New,
            Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended { .. }
            | Event::StepEnded { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Steered { .. }
            | Event::Paused { .. }
            | Event::Ended { .. },
        )
        | (
            State::Forward { .. },
            Event::Created { .. }
            | Event::StepIntended {
                direction: Direction::Undo,
                ..
            }
            | Event::StepEnded {
                direction: Direction::Undo,
                ..
            }
            | Event::UndoStarted { .. },
        )
        | (
            State::Undoing { .. },
            Event::Created { .. }
            | Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended {
                direction: Direction::Forward,
                ..
            }
            | Event::StepEnded {
                direction: Direction::Forward,
                ..
            }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Paused { .. },
        )
        | (
            State::Ended { .. },
            Event::Created { .. }
            | Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended { .. }
            | Event::StepEnded { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Steered { .. }
            | Event::Paused { .. }
            | Event::Ended { .. },
        ) => Err(out_of_place),
    }
}

/// The step is cloned because it lives in the run that is about to change; steps are small and this is once per end.
fn judged(
    run: &Run,
    step: StepId,
    direction: Direction,
    outcome: &Outcome,
) -> Result<(Step, super::judge::Judgement), Corrupt> {
    let step = run.step(step).ok_or(Corrupt::NoSuchStep(step))?.clone();
    let judgement = judge(&step, direction, outcome);
    Ok((step, judgement))
}

/// Does what people want let this happen? Nothing begins while it stands still, and who ends it has the last word.
fn may_be_now(state: &State, event: &Event) -> bool {
    let Some(run) = state.run() else {
        return true;
    };
    let ends = run.abort().map(|abort| abort.then);
    match event {
        Event::PhaseStarted { .. }
        | Event::BatchStarted { .. }
        | Event::StepIntended {
            direction: Direction::Forward,
            ..
        }
        | Event::PhaseEnded { .. } => !run.stands_still() && ends.is_none(),
        Event::StepIntended {
            direction: Direction::Undo,
            ..
        }
        | Event::UndoStarted { .. } => !run.stands_still() && ends != Some(AbortThen::Hold),
        Event::Paused { .. } => {
            let due = match state {
                State::Forward { forward, .. } => forward.waits_for_operator(),
                State::New | State::Undoing { .. } | State::Ended { .. } => false,
            };
            due && run.is_still() && !run.stands_still() && ends.is_none()
        }
        Event::Created { .. } | Event::StepEnded { .. } | Event::Steered { .. } | Event::Ended { .. } => true,
    }
}

/// Is this ending believable here? Asked by kind only: the words of a cause may change from version to version, and an
/// old journal must stay readable. Held it can be from everywhere: when the journal is known to have lost something.
fn may_end(state: &State, ending: &Ending) -> bool {
    let ends = |run: &Run| run.abort().map(|abort| abort.then);
    match state {
        State::New | State::Ended { .. } => false,
        State::Forward { run, forward } => match ending {
            Ending::Verified | Ending::Partial { .. } => {
                forward.is_through(run) && !run.stands_still() && ends(run).is_none()
            }
            Ending::Undone { blocked, .. } => *blocked && run.is_still() && run.standstill().is_none(),
            Ending::Held { .. } => run.is_still(),
        },
        State::Undoing { run, undoing } => match ending {
            Ending::Verified | Ending::Partial { .. } => false,
            Ending::Undone { blocked, .. } => {
                !*blocked && undoing.is_through() && !run.stands_still() && ends(run) != Some(AbortThen::Hold)
            }
            Ending::Held { .. } => run.is_still(),
        },
    }
}

fn into_run(state: &mut State) -> Option<Box<Run>> {
    match std::mem::take(state) {
        State::New => None,
        State::Forward { run, .. } | State::Undoing { run, .. } | State::Ended { run, .. } => Some(run),
    }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Created { .. } => "Created",
        Event::PhaseStarted { .. } => "PhaseStarted",
        Event::BatchStarted { .. } => "BatchStarted",
        Event::StepIntended { .. } => "StepIntended",
        Event::StepEnded { .. } => "StepEnded",
        Event::PhaseEnded { .. } => "PhaseEnded",
        Event::UndoStarted { .. } => "UndoStarted",
        Event::Steered { .. } => "Steered",
        Event::Paused { .. } => "Paused",
        Event::Ended { .. } => "Ended",
    }
}
