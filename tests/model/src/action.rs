//! What can happen next. Every action is one atomic step of one party; between any two of them anything else may happen.

use crate::world::{Hand, Key, Message, Term};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The lease of whoever held it has run out, or was given back, and this coordinator takes it. `restarted`: by a new
    /// process, which has another identity. Whatever it did before, in this process or another, ends.
    Campaign { who: usize, restarted: bool },
    /// The new leader reads the journals.
    Read { who: usize },
    /// The new leader asks a host for its ledger.
    Recall { who: usize, host: usize, heard: Heard },
    /// The new leader goes on with what it read.
    Resume { who: usize },
    /// The leader sees that the store has a rollback running that does not run here: its end was lost.
    Compare { who: usize },
    /// An operator's request for this rollback arrives, for the first time or again.
    Request { who: usize, rollback: u8 },
    /// An operator acts on this rollback.
    Steer { who: usize, rollback: u8, hand: Hand },
    /// A step is asked for under the agent's present ledger.
    Ask { who: usize, key: Key },
    /// The time of a step is over, and nobody has said what came of it.
    GiveUp { who: usize, key: Key },
    /// A message arrives. `fails`: what the step looks at is not as it should be.
    Arrive { message: Message, fails: bool },
    /// It is the step's turn: its intent becomes durable.
    Begin { host: usize, key: Key },
    /// The driver does its work.
    Drive { host: usize, key: Key, how: How },
    /// The result becomes durable, and everybody who asked is answered.
    Finish { host: usize, key: Key },
    /// The agent is killed and starts again; what was cut off is resolved by the driver's probe. `unsure`: the driver cannot
    /// tell.
    Kill { host: usize, unsure: bool },
    /// The agent is killed, and starts again with an empty ledger.
    Wipe { host: usize },
    /// The agent tells the coordinators of its new ledger.
    Register { host: usize },
    /// The store fails over to a copy that lacks so many of the last commits.
    FailOver { lost: usize },
}

/// What comes of asking for a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer,
    /// The agent was asked, and its answer did not arrive in time.
    Nothing,
    /// The agent was not even asked.
    NeverAsked,
}

/// What a step does, and what its driver says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Well,
    /// Says that it failed, and nothing was done.
    Fails,
    /// Says that it failed, although it took effect.
    FailsAfter,
    /// Cannot tell, and it took effect or not.
    Unsure {
        applied: bool,
    },
}

pub fn coordinator(who: usize) -> &'static str {
    ["coordinator A", "coordinator B", "coordinator C"][who]
}

pub fn term(term: Term) -> String {
    format!("epoch {} of leader {}", term.fence.epoch, term.fence.leader)
}
