//! The contract between the agent and its drivers: one driver for each kind of component.
//!
//! A driver works in two moves: `stage` (slow, harmless, beside the live revision) and `switch` (short, reversible).
//! Undo is the same move backwards: `switch` with `from` and `to` exchanged, `start` for `stop`, `resume` for `drain`.
//!
//! Invariants:
//! - Every method may be repeated after a kill at any point inside it and then converges to the same end.
//! - A method that changes the service and returns [`Failure::Failed`] has put everything back, or says in the
//!   problem's message what it could not put back. It returns [`Failure::Indeterminate`] when it cannot tell.
//! - `Ok` means *observed*: the new state was seen, not a command's exit status.
//! - Nothing here ever takes a path, a command or SQL from the coordinator; only names and digests, checked before.
//!
//! Deliberately left out: idempotency keys, intents and results. The executor and the ledger do that, the same way
//! for every kind.

pub mod checked;
pub mod compose;
pub mod container;
pub mod env_file;
pub mod git;
pub mod link;
pub mod nginx;
pub mod postgres;
pub mod release_dir;

use std::collections::BTreeSet;

use async_trait::async_trait;
use rollback_proto::problem::{Code, Problem};

use crate::step::StepContext;

/// What a component is to the order of a rollback; see `rollback.v1.Role`.
pub use rollback_proto::v1::{Action, Health, Role};

/// Where a component is. Equality is by digest.
#[derive(Clone, Debug, Eq)]
pub struct Revision {
    /// For people.
    pub version: String,
    /// Identity. Made by the driver, opaque to everybody else. `[a-z0-9:]+`, e.g. `sha256:…`.
    pub digest: String,
}

impl PartialEq for Revision {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// What a driver is, from its configuration alone.
#[derive(Clone, Debug)]
pub struct DriverInfo {
    /// `release-dir`, `env-file`, `nginx`, `postgres`.
    pub kind: &'static str,
    pub role: Role,
    pub capabilities: Vec<Action>,
    /// Components of this host that this one reads when it starts.
    pub reads: BTreeSet<String>,
    /// Proxies: the components (`host/component`) that `drain` and `resume` can be asked for one by one, upstream by
    /// upstream. One that is alone in some upstream cannot be drained.
    pub backends: BTreeSet<BTreeSet<String>>,
    /// Databases: steps with `from_backup` are understood.
    pub restores: bool,
}

/// What `observe` saw.
#[derive(Clone, Debug)]
pub struct Observation {
    pub revision: Revision,
    pub health: Health,
    /// One line for people: "pid 812, 200 in 3 ms".
    pub detail: String,
    /// Proxies that are drained: the backends (`host/component`) that get no requests. Empty when the whole site answers
    /// with maintenance, whichever of its backends are out besides.
    pub out: BTreeSet<String>,
}

/// What `retain` pinned.
#[derive(Clone, Debug)]
pub struct Retained {
    pub revision: Revision,
    /// One line for people: "vault, 214 files, 3.1 MB".
    pub summary: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Ok,
    Warning,
    Blocker,
}

/// One result of `prepare`.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub problem: Problem,
    /// What a restore of a database would cost, as far as it can be said now.
    pub loss: Option<DataLoss>,
}

impl Finding {
    pub fn blocker(problem: Problem) -> Self {
        Self {
            severity: Severity::Blocker,
            problem,
            loss: None,
        }
    }

    pub fn warning(problem: Problem) -> Self {
        Self {
            severity: Severity::Warning,
            problem,
            loss: None,
        }
    }

    /// Not a reason to worry, but good to know.
    pub fn ok(problem: Problem) -> Self {
        Self {
            severity: Severity::Ok,
            problem,
            loss: None,
        }
    }

    #[must_use]
    pub fn with_loss(mut self, loss: DataLoss) -> Self {
        self.loss = Some(loss);
        self
    }
}

/// Proof that a backup was made, and what was checked. See `rollback.v1.Receipt`.
pub use rollback_proto::v1::Receipt;

/// What is in a live database and not in a backup, and an operator's consent to losing it.
pub use rollback_proto::v1::{Consent, DataLoss, TableLoss};

/// What a move that ended well has to say.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// One line for people.
    pub summary: String,
    /// The revision seen after the move. `switch`, `start` and `verify` always set it.
    pub observed: Option<Revision>,
    /// `snapshot` only.
    pub receipt: Option<Receipt>,
    /// `switch` of a database from a backup: what it cost.
    pub loss: Option<Box<DataLoss>>,
}

impl Done {
    pub fn new(summary: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            ..Self::default()
        }
    }

    pub fn at(revision: Revision, summary: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            observed: Some(revision),
            ..Self::default()
        }
    }
}

/// Why a move did not end well.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It did not take effect, or everything was put back.
    Failed(Problem),
    /// The driver cannot tell what state the host is in. A person must look.
    Indeterminate(Problem),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem)
    }
}

/// What `probe` says of a step whose intent is in the ledger and whose result is not: the agent was killed inside it.
#[derive(Clone, Debug)]
pub enum Probe {
    /// It took effect completely.
    Applied(Done),
    /// It did not take effect, or stopped half-way in a state that the driver recognises and from which running the
    /// same step again converges. The executor runs it again.
    Repeatable(String),
    /// Nothing that the driver knows looks like this. A person must look.
    Indeterminate(Problem),
}

/// One kind of component. Objects are made from the agent's configuration at start and live as long as the agent.
///
/// Every move that a driver does not offer in `info().capabilities` keeps the default body, which refuses.
#[async_trait]
pub trait Driver: Send + Sync + std::fmt::Debug {
    fn info(&self) -> DriverInfo;

    /// Current revision and health. Reads only, answers within seconds.
    async fn observe(&self) -> Result<Observation, Problem>;

    /// Observes, and pins what was observed so that it can come back. `release` becomes the revision's `version` where
    /// the component has no version of its own. Durable when it returns. Does not touch the service.
    async fn retain(&self, release: &str) -> Result<Retained, Problem>;

    /// For a release that was never recorded: finds the revision that goes by this name on this host by the conventions
    /// of the kind, and pins it like `retain`. Does not touch the service. [`Code::Unresolved`] when nothing goes by that
    /// name; the message then says where was looked.
    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        Err(Problem::new(
            Code::Unresolved,
            format!("{}: there is no convention for finding {release}", self.info().kind),
        ))
    }

    /// The reverse of `retain`: nothing needs to come back to `revision` any more, which is neither live nor one of
    /// `kept`. What those need stays, whatever it was kept for, and so does whatever this kind has not made itself. Says in
    /// one line what became free. May be repeated.
    async fn forget(&self, _revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        Ok("nothing was kept for it".to_owned())
    }

    /// Can this host reach `step.to` right now, and come back to `step.from`? Reads only. An empty list means yes.
    async fn prepare(&self, step: &StepContext) -> Vec<Finding>;

    /// Everything slow, beside the live revision.
    async fn stage(&self, step: &StepContext) -> Result<Done, Failure>;

    /// Throws away what `stage` made, for this rollback or an earlier one. Never fails because there is nothing.
    async fn discard(&self, step: &StepContext) -> Result<Done, Failure>;

    /// The cutover from `step.from` to `step.to`.
    async fn switch(&self, step: &StepContext) -> Result<Done, Failure>;

    /// Backup with proof; for files: pins the live revision (`step.from`) in the vault.
    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported(self.info().kind, step))
    }

    /// Users get a maintenance answer from here on. With `step.backend`: that backend gets no more requests, and has
    /// answered those that it had.
    async fn drain(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported(self.info().kind, step))
    }

    /// Reverses `drain`; without `step.backend`, of every backend, too. Succeeds when nothing is drained.
    async fn resume(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported(self.info().kind, step))
    }

    /// Stops the process. Succeeds when it is stopped already.
    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported(self.info().kind, step))
    }

    /// Starts the process and waits until it is healthy at `step.to`. Succeeds when it runs so already.
    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        Err(unsupported(self.info().kind, step))
    }

    /// Is the component at `step.to` and healthy, seen now? `observed` carries the revision that was seen; a different
    /// one is not a failure here, the coordinator compares. Unhealthy is a failure.
    async fn verify(&self, step: &StepContext) -> Result<Done, Failure>;

    /// The rollback is over (either way): remove what it left beside the live revision.
    async fn finish(&self, step: &StepContext) -> Result<Done, Failure>;

    /// The agent was killed inside `step.action`: what became of it? Reads only.
    async fn probe(&self, step: &StepContext) -> Probe;
}

/// The answer to a move that a kind does not have. The planner asks capabilities first, so this names a defect or a
/// coordinator that ignores them.
pub fn unsupported(kind: &str, step: &StepContext) -> Failure {
    Failure::Failed(Problem::new(
        Code::UnsupportedAction,
        format!("{kind} component {} does not offer {:?}", step.component, step.action),
    ))
}
