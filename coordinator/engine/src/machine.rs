//! The state machine that carries a plan out, event by event.
//!
//! ```text
//!          Created            UndoStarted            Ended
//!   New ───────────▶ Forward ─────────────▶ Undoing ───────▶ Ended
//!                       └──────────────────────────────────────▲
//!                                        Ended
//!
//!   Forward:  before a phase ─PhaseStarted─▶ before a batch ─BatchStarted─▶ in a batch ─(all lanes done)─┐
//!                   ▲  └─(no phase left)─▶ Ended   ▲  └─PhaseEnded─▶ before the next phase               │
//!                   └──────────────────────────────┴─────────────────────────────────────────────────────┘
//! ```
//!
//! Operators steer it with [`Command::Steer`]: see the module `steer` for what fits where. While it stands still (paused by
//! somebody, paused by the runbook's policy for a failure, or waiting for a second operator's approval) nothing follows by
//! itself; what is in flight ends and is written down.
//!
//! How to run it: give a command to [`transition`]; append the events that it returns, in one transaction; then carry
//! out [`effects_of`] those events. When the append fails, throw the state away and read it from the journal again.
//! Recovery is the same thing: [`State::replay`], [`Command::TakeUp`], then [`outstanding`] instead of `effects_of`.
//!
//! Invariants, by construction and property-tested:
//! - a step is intended (and that is durable) before it is dispatched, once in each direction; again only when an operator
//!   says so and the attempts before are known to have failed;
//! - nothing new is intended in a batch after a failure in it, nor while it stands still; what is in flight is awaited and
//!   written down;
//! - the journal keeps what agents said; what it *means* (was the target really observed?) is judged here, by
//!   [`judge`], the same way on every replay;
//! - a step whose outcome nobody knows is never undone blindly nor tried again, whoever asks: the rollback is held for a
//!   person;
//! - a rollback ends exactly once; `verified` only after every component in scope was observed at its target, and never
//!   when a host was left out.
//!
//! The work for one event does not grow with the fleet: counters and queues, no scanning. Only creating, starting a
//! batch and starting the undo look at all the steps that they concern.

mod apply;
mod decide;
mod failures;
mod forward;
mod hands;
mod index;
pub mod judge;
mod run;
mod steer;
mod stop;
mod undoing;
mod wave;

use jiff::Timestamp;

use crate::event::{AbortThen, Command, Direction, Effect, Ending, Event};
use crate::ids::{StepId, Target};
use crate::lint::LintError;
use crate::plan::{Plan, Step};

pub use apply::apply;
pub use decide::decide;
pub(crate) use failures::TooMany;
pub use forward::Forward;
pub use hands::{Abort, Approved, Standstill};
pub use run::{Attempt, Creation, PhaseTiming, Run, StepState, UndoStart};
pub use undoing::Undoing;

/// Where a rollback is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has happened.
    #[default]
    New,
    /// On the way to the target.
    Forward { run: Box<Run>, forward: Forward },
    /// On the way back.
    Undoing { run: Box<Run>, undoing: Undoing },
    Ended {
        run: Box<Run>,
        ending: Ending,
        at: Timestamp,
    },
}

/// A command that does not fit; nothing happened.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    #[error("the rollback was not created yet")]
    NotCreated,
    #[error("the rollback exists already")]
    AlreadyCreated,
    #[error("the plan breaks the rules: {}", crate::problems::name_some(.0.iter()))]
    Unsound(Vec<LintError>),
    /// Nobody agreed to lose what was written to these databases since their backups.
    #[error("what was written since the backup is lost in {}, and nobody agreed to that", crate::problems::name_some(.0.iter()))]
    NoConsent(Vec<Target>),
    /// An operator's act that does not fit what the rollback is doing; the text says what would.
    #[error("{0}")]
    Unfit(String),
    /// Whoever approves is not somebody else, or has looked at another plan.
    #[error("{0}")]
    NotApproved(String),
    /// A late or repeated answer. To be ignored.
    #[error("step {step} ({direction:?}, attempt {attempt}) is not in flight")]
    NotInFlight {
        step: StepId,
        direction: Direction,
        attempt: u32,
    },
    /// A defect of this crate: it decided on something that it cannot apply. The state is not to be used any more.
    #[error("apply what was decided")]
    Corrupt(#[from] Corrupt),
}

/// An event that does not fit the state: the journal is damaged, or was written by something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("{event} does not fit a rollback that is {state}")]
    OutOfPlace { event: &'static str, state: &'static str },
    #[error("the plan's steps are not numbered in order: {found} where {expected} belongs")]
    Misnumbered { expected: StepId, found: StepId },
    #[error("the plan has no step {0}")]
    NoSuchStep(StepId),
    #[error("{event} of step {step} (attempt {attempt}) is not due")]
    NotDue {
        event: &'static str,
        step: StepId,
        attempt: u32,
    },
}

impl State {
    /// The state after these events.
    pub fn replay(events: impl IntoIterator<Item = Event>) -> Result<Self, Corrupt> {
        let mut state = State::New;
        for event in events {
            apply(&mut state, &event)?;
        }
        Ok(state)
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            State::New => "new",
            State::Forward { .. } => "going forward",
            State::Undoing { .. } => "being undone",
            State::Ended { .. } => "ended",
        }
    }

    /// What every state but `New` has.
    pub fn run(&self) -> Option<&Run> {
        match self {
            State::New => None,
            State::Forward { run, .. } | State::Undoing { run, .. } | State::Ended { run, .. } => Some(run),
        }
    }

    pub fn plan(&self) -> Option<&Plan> {
        self.run().map(Run::plan)
    }

    pub fn ending(&self) -> Option<&Ending> {
        match self {
            State::Ended { ending, .. } => Some(ending),
            State::New | State::Forward { .. } | State::Undoing { .. } => None,
        }
    }

    /// The plan's step of this number.
    pub fn step(&self, step: StepId) -> Option<&Step> {
        self.run().and_then(|run| run.step(step))
    }

    /// How far that step is.
    pub fn step_state(&self, step: StepId) -> Option<&StepState> {
        self.run().and_then(|run| run.step_state(step))
    }
}

/// Decides, applies, and goes on as far as it can without an answer from outside. On `Err` other than
/// [`Rejected::Corrupt`] the state is unchanged.
pub fn transition(state: &mut State, command: Command) -> Result<Vec<Event>, Rejected> {
    let at = match &command {
        Command::Create { at, .. }
        | Command::StepEnded { at, .. }
        | Command::TakeUp { at }
        | Command::Steer { at, .. }
        | Command::Expire { at }
        | Command::Hold { at, .. } => *at,
    };
    let mut events = decide(state, &command)?;
    for event in &events {
        apply(state, event)?;
    }
    loop {
        let more = follow_ups(state, at);
        if more.is_empty() {
            return Ok(events);
        }
        for event in &more {
            apply(state, event)?;
        }
        events.extend(more);
    }
}

/// The events that this state makes due by itself; empty while it waits for answers, and at the end.
pub fn follow_ups(state: &State, at: Timestamp) -> Vec<Event> {
    match state {
        State::New | State::Ended { .. } => Vec::new(),
        State::Forward { run, forward } => match run.abort() {
            Some(_) if !run.is_still() => Vec::new(),
            Some(abort) => vec![forward.aborted(run, abort, at)],
            None if run.stands_still() => Vec::new(),
            None => forward.follow_ups(run, at),
        },
        State::Undoing { run, undoing } => match run.abort() {
            Some(abort) if abort.then == AbortThen::Hold => {
                if run.is_still() {
                    vec![undoing.aborted(run, abort, at)]
                } else {
                    Vec::new()
                }
            }
            // It is what led here.
            Some(_) | None if run.stands_still() => Vec::new(),
            Some(_) | None => undoing.follow_ups(run, at),
        },
    }
}

/// What newly durable events ask the runner to do.
pub fn effects_of(state: &State, events: &[Event]) -> Vec<Effect> {
    let asked = |event: &Event| match event {
        Event::StepIntended {
            step,
            direction,
            attempt,
            ..
        } => {
            let awaited = state.run().is_some_and(|run| run.awaits(*step, *direction, *attempt));
            awaited.then_some(Effect::Dispatch {
                step: *step,
                direction: *direction,
                attempt: *attempt,
            })
        }
        Event::Ended { .. } => Some(Effect::Close),
        Event::Created { .. }
        | Event::PhaseStarted { .. }
        | Event::BatchStarted { .. }
        | Event::StepEnded { .. }
        | Event::PhaseEnded { .. }
        | Event::UndoStarted { .. }
        | Event::Steered { .. }
        | Event::Paused { .. } => None,
    };
    events.iter().filter_map(asked).collect()
}

/// What a leader that has just read this state must do: ask again for every step that has no end, under the same key
/// (agents answer a known key from their ledger), or give the scope back (again; that is harmless).
pub fn outstanding(state: &State) -> Vec<Effect> {
    match state {
        State::New => Vec::new(),
        State::Forward { run, .. } | State::Undoing { run, .. } => run.awaited().collect(),
        State::Ended { .. } => vec![Effect::Close],
    }
}
