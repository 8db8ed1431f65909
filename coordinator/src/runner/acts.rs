//! Operators' acts on their way to the machine, and those that were taken before.
//!
//! Whoever lost the answer to an act asks again. The machine refuses most of them then, since what was asked for is done; that
//! it is, is what is answered.

use rollback_engine::event::{Act, Event};
use rollback_engine::machine::{Rejected, State};
use rollback_proto::problem::{Code, Problem};
use tokio::sync::oneshot;

use crate::projection::Summary;

/// An operator's act on its way to the runner.
#[derive(Debug)]
pub struct Steering {
    pub by: String,
    pub reason: String,
    pub act: Act,
    /// Gets the rollback as it is afterwards. Whoever has given up waiting is not obeyed any more: an act that comes true
    /// minutes later, when the store answers again, would surprise everybody.
    pub answer: oneshot::Sender<Result<Summary, Problem>>,
}

/// Who acts, why, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub by: String,
    pub reason: String,
    pub act: Act,
}

impl Given {
    pub fn of(steering: &Steering) -> Self {
        Self {
            by: steering.by.clone(),
            reason: steering.reason.clone(),
            act: steering.act.clone(),
        }
    }

    /// Did the same operator ask for the same thing, in the same words? Hosts that were not named are, in the journal.
    fn repeats(&self, written: &Self) -> bool {
        let same = match (&written.act, &self.act) {
            (Act::Retry { .. }, Act::Retry { hosts }) | (Act::Skip { .. }, Act::Skip { hosts }) if hosts.is_empty() => {
                true
            }
            (written, given) => written == given,
        };
        same && (&written.by, &written.reason) == (&self.by, &self.reason)
    }
}

/// The last act in a journal, while it is what the rollback still goes by.
#[derive(Clone, Debug, Default)]
pub struct LastAct(Option<Given>);

impl LastAct {
    pub fn of(events: &[Event]) -> Self {
        let mut last = Self::default();
        last.follow(events);
        last
    }

    pub fn follow(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Steered { by, reason, act, .. } => {
                    self.0 = Some(Given {
                        by: by.clone(),
                        reason: reason.clone(),
                        act: act.clone(),
                    });
                }
                // What was asked for is not so any more: to be told "it goes on" would be a lie.
                Event::Paused { .. } => self.0 = None,
                Event::Created { .. }
                | Event::PhaseStarted { .. }
                | Event::BatchStarted { .. }
                | Event::StepIntended { .. }
                | Event::StepEnded { .. }
                | Event::PhaseEnded { .. }
                | Event::UndoStarted { .. }
                | Event::Ended { .. } => {}
            }
        }
    }

    /// Is what was refused done already? By the same operator, whose answer was lost; or, where only the result counts, by
    /// anybody: who wants it to stand still is told that it does.
    pub fn is_done_already(&self, state: &State, given: &Given, rejected: &Rejected) -> bool {
        let unfit = matches!(rejected, Rejected::Unfit(_) | Rejected::NotApproved(_));
        let stands_still = || state.summary().is_some_and(|summary| summary.standstill.is_some());
        let repeats = self.0.as_ref().is_some_and(|written| given.repeats(written));
        unfit && (repeats || given.act == Act::Pause && stands_still())
    }
}

/// Why the machine does not take it.
pub fn refused(rejected: Rejected) -> Problem {
    let code = match rejected {
        Rejected::NoConsent(_) => Code::ConsentNeeded,
        Rejected::Unfit(_) => Code::ActUnfit,
        Rejected::NotApproved(_) => Code::ApprovalRefused,
        Rejected::NotCreated
        | Rejected::AlreadyCreated
        | Rejected::Unsound(_)
        | Rejected::NotInFlight { .. }
        | Rejected::Corrupt(_) => Code::PlanRefused,
    };
    Problem::new(code, rejected.to_string())
}
