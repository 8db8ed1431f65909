//! What there is in one instant: the store, the coordinators, the agents with their hosts, and what is on the wire.
//!
//! Everything is small, ordered and comparable, so that equal instants are one state. What the properties need to remember
//! of the past and the protocol does not ([`Agent::taken`], [`World::faults`], [`Term::serial`]) says so.

use std::collections::{BTreeMap, BTreeSet};

use rollback_engine::event::{AbortThen, Act};
use rollback_engine::plan::Change;
use rollback_engine::release::Revision;

use crate::engine::NodeId;

/// One execution of a rollback: a step, or its undo, for the first time or again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Move {
    pub step: u8,
    pub back: bool,
    pub attempt: u8,
}

/// As agents know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub rollback: u8,
    pub step: Move,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Revised {
    Origin,
    Target,
}

impl Revised {
    pub fn of(self, change: &Change) -> &Revision {
        match self {
            Revised::Origin => &change.from,
            Revised::Target => &change.to,
        }
    }
}

/// An outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Said {
    /// It succeeded, and this was observed.
    Done(Option<Revised>),
    Failed,
    Unknown(Cause),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    Step,
    /// The store has lost what it had confirmed.
    Journal,
}

/// What agents tell leaders apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fence {
    pub epoch: u8,
    /// Another one for every start of a process.
    pub leader: u8,
}

/// One time of leading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    pub fence: Fence,
    /// Another one for every term, also when a store that lost commits gives an epoch out again. Nobody in the protocol
    /// knows it; answers travel on the connection on which was asked, and so reach no other term.
    pub serial: u8,
}

/// What a store writes in one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Committed {
    /// By rollback.
    pub journals: Vec<NodeId>,
    pub lease: Term,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    pub now: Committed,
    /// Before the last commits, the newest last: what a standby that lags may be promoted with. Empty where no commit is
    /// ever lost.
    pub past: Vec<Committed>,
    /// Of the last term.
    pub serial: u8,
}

/// What a coordinator does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    Following,
    /// Has the lease, and finds out what there is to go on with.
    TakingOver {
        term: Term,
        /// The journals, as read; `None` before that.
        read: Option<Vec<NodeId>>,
        /// Hosts that were asked for their ledgers, a bit for each.
        asked: u8,
        /// Rollbacks that an agent remembers more of than the journal, a bit for each.
        doubts: u8,
    },
    /// Believes to lead.
    Leading {
        term: Term,
        /// The rollbacks that run here, by number.
        running: Vec<Option<NodeId>>,
    },
}

impl Standing {
    pub fn term(&self) -> Option<Term> {
        match self {
            Standing::Following => None,
            Standing::TakingOver { term, .. } | Standing::Leading { term, .. } => Some(*term),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    pub identity: u8,
    /// The highest epoch that this process had; followed only where epochs can repeat.
    pub had: u8,
    pub standing: Standing,
}

/// A step in an agent's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// The intent is durable.
    Unfinished,
    /// Cut off before it took effect: may run again.
    Interrupted,
    Ended(Said),
}

/// A step that an agent's process is at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    pub fence: Fence,
    /// Terms that wait for the answer, by serial, with their fences.
    pub asked_by: BTreeMap<u8, Fence>,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waits for its turn; nothing is durable.
    Queued,
    /// The intent is durable, the driver is at work.
    Begun,
    /// The driver is done; the result is not durable.
    Driven { said: Said, applied: bool },
}

/// What a host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Component {
    pub revision: Revised,
    pub staged: bool,
    pub snapshot: bool,
    pub running: bool,
    pub drained: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Durable: the highest epoch, and whose it is.
    pub seen: Option<Fence>,
    /// Durable: another one after the ledger was lost.
    pub generation: u8,
    /// The generation that the coordinators know of.
    pub registered: u8,
    /// Durable.
    pub ledger: BTreeMap<Key, Entry>,
    /// Gone with the process.
    pub tasks: BTreeMap<Key, Task>,
    pub component: Component,
    /// For the properties alone: every step that ever took effect here.
    pub taken: BTreeSet<Key>,
}

/// What travels. A message stays on the wire after it has arrived, and may arrive again at any time, in any order, or
/// never: loss, duplication and reordering without a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    Execute {
        term: Term,
        key: Key,
        /// The ledger under which it is asked for.
        generation: u8,
    },
    Answer {
        serial: u8,
        key: Key,
        reply: Reply,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    Said(Said),
    /// The ledger is another one.
    LedgerLost,
    /// The agent obeys this epoch.
    Stale(u8),
}

/// What an operator does to a rollback that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hand {
    Pause,
    Resume,
    /// All that failed.
    Retry,
    Undo,
    Hold,
}

impl Hand {
    pub const ALL: [Hand; 5] = [Hand::Pause, Hand::Resume, Hand::Retry, Hand::Undo, Hand::Hold];

    pub fn act(self) -> Act {
        let abort = |then| Act::Abort { then };
        match self {
            Hand::Pause => Act::Pause,
            Hand::Resume => Act::Resume,
            Hand::Retry => Act::Retry { hosts: BTreeSet::new() },
            Hand::Undo => abort(AbortThen::Undo),
            Hand::Hold => abort(AbortThen::Hold),
        }
    }
}

/// How often each kind of trouble may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Takeovers, for whatever reason: the leader was killed, stopped, cut off, too slow, or asked to hand over.
    pub takeovers: u8,
    /// Of an agent's process.
    pub kills: u8,
    /// Steps that say that they failed, with or without having taken effect.
    pub failures: u8,
    /// Steps and probes that cannot tell.
    pub unknowns: u8,
    /// Steps that a leader waits for no longer.
    pub give_ups: u8,
    /// Ledgers that are lost.
    pub wipes: u8,
    /// Hosts that do not answer a new leader's question for their ledger in time.
    pub silences: u8,
    /// Failovers of the store to a copy that lags.
    pub failovers: u8,
    /// Of operators, on a rollback that runs.
    pub acts: u8,
}

/// What must never happen and cannot be seen in a state alone, noted when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    SwitchedUnstaged,
    ChangedUnprotected,
    IntentNotDurable,
    OutcomeNotDurable,
    TookEffectTwice,
    EndedTwice,
    StaleAppend,
    ObeyedStale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults(u16);

impl Faults {
    pub fn note(&mut self, fault: Fault) {
        self.0 |= 1 << fault as u16;
    }

    pub fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u16) != 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub store: Store,
    pub coordinators: Vec<Coordinator>,
    pub agents: Vec<Agent>,
    pub wire: BTreeSet<Message>,
    pub left: Budget,
    pub faults: Faults,
}
