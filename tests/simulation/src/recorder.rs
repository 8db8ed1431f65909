//! What really happened, in the order in which it happened. Nobody in the simulated fleet reads it; the judge does.
//!
//! Everything runs in one thread, so there is such an order, whatever the hosts' clocks say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollback_engine::event::Event;
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::release::Revision;
use rollback_proto::v1::Action;

/// A move of a driver, as its driver knows it: without a key and without an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deed {
    pub rollback: String,
    pub target: Target,
    pub action: Action,
    pub undo: bool,
    pub backend: Option<String>,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = self
            .action
            .as_str_name()
            .trim_start_matches("ACTION_")
            .to_ascii_lowercase();
        let undo = if self.undo { "undo: " } else { "" };
        write!(f, "{undo}{action} {}", self.target)?;
        match &self.backend {
            Some(backend) => write!(f, " ({backend})"),
            None => Ok(()),
        }
    }
}

/// A step's key on the wire: the rollback and the step ("17", "17.undo").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub rollback: String,
    pub step: String,
    pub attempt: u32,
}

/// How a component stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub revision: Revision,
    /// Its process runs, it is not drained, and nothing is half done.
    pub serves: bool,
}

/// Every component, at one moment.
pub type Picture = BTreeMap<Target, Standing>;

#[derive(Clone, Debug)]
pub enum Seen {
    /// The store gave out the lease.
    Won { epoch: u64, leader: String },
    /// The store took events up. The first ones begin the rollback.
    Written {
        epoch: u64,
        rollback: RollbackId,
        /// Number of the first of them.
        first: u64,
        events: Vec<Event>,
    },
    /// A rollback began with the events just written: how the fleet really stood then.
    Opened { rollback: RollbackId, picture: Picture },
    /// The same for its end.
    Closed { rollback: RollbackId, picture: Picture },
    /// The answer to a change of the store was lost.
    AnswerLost { replica: String },
    /// A request for a step reached an agent.
    Asked {
        host: String,
        epoch: u64,
        leader: String,
        key: Key,
        deed: Deed,
    },
    /// An agent answered somebody of this epoch as its leader.
    Obeyed { host: String, epoch: u64 },
    /// A step's intent is in the agent's ledger.
    Intended { host: String, key: Key },
    /// A driver was called.
    Entered { deed: Deed },
    /// A move took effect.
    Effect { deed: Deed },
    /// Something that no order of events may lead to was seen at a component.
    Wrong { what: String },
    /// A component was left in a state that its driver does not know.
    Torn { target: Target },
    /// What was done to the fleet.
    Fault { what: String },
    /// What an operator was told.
    Told { what: String },
    /// An operator's act was answered: it is done.
    Acted { rollback: RollbackId, act: String },
}

#[derive(Clone, Debug)]
pub struct Line {
    /// Simulated time.
    pub at: Duration,
    pub seen: Seen,
}

/// A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    lines: Vec<Line>,
    /// For what is seen outside of any host.
    now: Duration,
    leader: Option<String>,
    /// The newest epoch that each agent has answered as its leader's.
    obeyed: BTreeMap<String, u64>,
}

impl Recorder {
    pub fn note(&self, seen: Seen) {
        tracing::debug!(?seen, "recorded");
        let mut inner = self.lock();
        let at = turmoil::sim_elapsed().unwrap_or(inner.now);
        match &seen {
            Seen::Won { leader, .. } => inner.leader = Some(leader.clone()),
            Seen::Obeyed { host, epoch } => {
                let newest = inner.obeyed.entry(host.clone()).or_insert(0);
                *newest = (*newest).max(*epoch);
            }
            _ => {}
        }
        inner.lines.push(Line { at, seen });
    }

    /// The newest epoch that this agent has answered as its leader's.
    pub fn obeyed(&self, host: &str) -> u64 {
        self.lock().obeyed.get(host).copied().unwrap_or(0)
    }

    /// The simulation has come this far.
    pub fn tick(&self, now: Duration) {
        self.lock().now = now;
    }

    /// Who won the lease last.
    pub fn leader(&self) -> Option<String> {
        self.lock().leader.clone()
    }

    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// How many rollbacks have begun and not ended.
    pub fn running(&self) -> usize {
        let inner = self.lock();
        let begun = inner
            .lines
            .iter()
            .filter(|l| matches!(&l.seen, Seen::Written { first: 1, .. }));
        let closed = inner.lines.iter().filter(|l| matches!(&l.seen, Seen::Closed { .. }));
        begun.count().saturating_sub(closed.count())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
