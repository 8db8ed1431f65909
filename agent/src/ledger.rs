//! The agent's durable record of what it was told and what came of it.
//!
//! What is stored, in `ledger.db` (SQLite, WAL, synchronous=FULL) in the state directory:
//! - `meta`: the ledger's generation, and the highest epoch seen with the leader that it belongs to;
//! - `steps`: one row for each key, with the request (the intent) and the outcome, once it is known.
//!
//! Invariants:
//! - Whatever a method answered with `Ok` is on the disk.
//! - A key never gets a second outcome, and never other arguments.
//! - The epoch never goes back. The same epoch belongs to one leader for ever.
//! - A failed write means: refused. Nothing was done under it and nothing may be done because of it.
//!
//! One task owns the connection. Requests that arrive together share a transaction, and so one fsync. Simulations have a
//! ledger in memory ([`memory`]) with the same promises, which outlives its owner.
//!
//! Leaves out what a step means, and what to do about an intent without a result: that is the executor's.

mod actor;
pub mod memory;
mod place;
mod rows;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1::{ExecuteRequest, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use self::actor::{Actor, Ask};
use self::memory::Life;
pub use self::place::OpenError;

/// Requests that may wait for the disk. Callers beyond that wait too: the disk is the bound, not memory.
const WAITING: usize = 256;
/// How long steps that ended are remembered. A coordinator that asks after a month has other worries.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// How old the steps of rollbacks that nobody asked for may be in an answer to `recall`, and how many rollbacks it names.
const RECENT: Duration = Duration::from_secs(24 * 3600);
const OTHERS: u32 = 64;

/// SHA-256 over a step's arguments.
pub type ArgsDigest = [u8; 32];

/// Names a step for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepKey {
    pub rollback_id: String,
    pub step_id: String,
    pub attempt: u32,
}

impl std::fmt::Display for StepKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}#{}", self.rollback_id, self.step_id, self.attempt)
    }
}

/// A leader's fencing number, and the leader's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub epoch: u64,
    pub leader: String,
}

/// What the ledger knew of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// Nothing, or that it was interrupted before it took effect. From `begin`: the intent is now durable.
    New,
    /// It ended.
    Known(Box<Outcome>),
    /// There is an intent without a result, and nothing was written.
    Unfinished,
    /// The key stands for other arguments.
    ArgsDiffer,
}

/// An intent without a result.
#[derive(Clone, Debug)]
pub struct Unfinished {
    pub key: StepKey,
    pub request: ExecuteRequest,
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// It runs, or was cut off and is not resolved yet.
    Unfinished,
    Ended,
    /// Cut off before it took effect; the same key runs again.
    Interrupted,
}

/// What is known of some rollbacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Every step with an intent, oldest first.
    pub steps: Vec<(StepKey, StepState)>,
    /// Rollbacks that were not asked for and began a step here in the last day, newest first, at most 64.
    pub others: Vec<String>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{} of epoch {} is refused: epoch {} of {} was seen", asking.leader, asking.epoch, known.epoch, known.leader)]
    Stale { asking: Fence, known: Fence },
    #[error("the agent's ledger cannot be used")]
    Disk(#[source] Arc<sqlx::Error>),
    #[error("the entry of step {0} in the agent's ledger cannot be read")]
    Damaged(StepKey),
    #[error("the agent is stopping")]
    Stopping,
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match &error {
            LedgerError::Stale { known, .. } => {
                Problem::new(Code::StaleLeader, error.to_string()).hint(Hint::Epoch(known.epoch))
            }
            LedgerError::Disk(source) => Problem::from_error(Code::StoreUnavailable, &error, source)
                .remedy("look at the disk of the host's state directory and at the agent's log"),
            LedgerError::Damaged(_) => Problem::new(Code::StoreUnavailable, error.to_string())
                .remedy("look at the component by hand: what runs, and what is on disk"),
            LedgerError::Stopping => {
                Problem::new(Code::HostUnreachable, error.to_string()).remedy("ask again when the agent is back")
            }
        }
    }
}

/// A cheap handle. The file is closed when the last one is gone.
#[derive(Clone, Debug)]
pub struct Ledger {
    place: Place,
    generation: Arc<str>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(mpsc::Sender<Ask>),
    Memory(Life),
}

impl Ledger {
    /// Opens or makes the ledger in this directory, which is made 0700, and holds the directory's lock: there is one
    /// agent for each. Steps that ended more than 30 days ago are forgotten.
    pub async fn open(state: &Path, tasks: &TaskTracker) -> Result<Self, OpenError> {
        let actor = Actor::open(state).await?;
        let generation = actor.generation();
        let (asks, waiting) = mpsc::channel(WAITING);
        tasks.spawn(actor.run(waiting));
        Ok(Self {
            place: Place::Disk(asks),
            generation,
        })
    }

    /// Another one after the ledger was lost: "never heard of it" means nothing across a change.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// Once this returns, this leader, or a later one, is the only one that is obeyed, also after a restart.
    pub async fn observe_epoch(&self, fence: Fence) -> Result<(), LedgerError> {
        self.ask(|reply| Ask::Observe { fence, reply }).await
    }

    /// What is known of a key. Writes nothing but the epoch.
    pub async fn look(&self, fence: Fence, key: StepKey, digest: ArgsDigest) -> Result<Begin, LedgerError> {
        self.ask(|reply| Ask::Look {
            fence,
            key,
            digest,
            reply,
        })
        .await
    }

    /// Records the intent, unless the key is known. Once this returned `New`, the intent is durable: a restart finds
    /// it in [`Ledger::unfinished`].
    pub async fn begin(
        &self,
        fence: Fence,
        key: StepKey,
        digest: ArgsDigest,
        request: ExecuteRequest,
    ) -> Result<Begin, LedgerError> {
        self.ask(|reply| Ask::Begin {
            fence,
            key,
            digest,
            request: Box::new(request),
            reply,
        })
        .await
    }

    /// Records what came of a step. Once this returns, every further question is answered with it. A second outcome
    /// for the same key is ignored.
    pub async fn finish(&self, key: StepKey, outcome: Outcome) -> Result<(), LedgerError> {
        self.ask(|reply| Ask::Finish {
            key,
            outcome: Box::new(outcome),
            reply,
        })
        .await
    }

    /// Records that the agent was stopped inside this step before it took effect: the same key runs again when it is
    /// asked for. The interruption stays on record.
    pub async fn interrupt(&self, key: StepKey) -> Result<(), LedgerError> {
        self.ask(|reply| Ask::Interrupt { key, reply }).await
    }

    /// Intents without a result, oldest first.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, LedgerError> {
        self.ask(|reply| Ask::Unfinished { reply }).await
    }

    /// Observes the fence, and answers what is known of these rollbacks. Once this returns, no step of an earlier leader
    /// begins here any more that is not in the answer.
    pub async fn recall(&self, fence: Fence, rollbacks: Vec<String>) -> Result<Recalled, LedgerError> {
        self.ask(|reply| Ask::Recall {
            fence,
            rollbacks,
            reply,
        })
        .await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Ask) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        match &self.place {
            Place::Disk(asks) => asks.send(ask(reply)).await.map_err(|_| LedgerError::Stopping)?,
            Place::Memory(life) => life.answer(ask(reply)).await,
        }
        answer.await.map_err(|_| LedgerError::Stopping)?
    }
}

#[cfg(test)]
mod tests;
