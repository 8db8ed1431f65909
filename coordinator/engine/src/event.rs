//! What goes in (commands), what is written down (events) and what comes out (effects).
//!
//! Events are the journal's content. Their JSON is a stored format: fields are only added, with defaults, and every
//! older shape stays readable (fixtures in `tests/journals/` are replayed for ever).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, HostName, StepId};
use crate::loss::{Consent, DataLoss};
use crate::plan::{PhaseName, Plan};
use crate::release::Revision;

/// Which way a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Forward,
    Undo,
}

/// An error with a stable code, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: String,
    pub message: String,
    pub remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Ok,
    Warning,
    Blocker,
}

/// One result of `prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    pub code: String,
    pub message: String,
    pub remedy: String,
    /// What a restore would cost, seen at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<DataLoss>,
}

/// Proof that a backup was made, and what was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub path: String,
    pub sha256: String,
    pub bytes: u64,
    /// "restore", "checksum" or "copy".
    pub verified: String,
    pub tables: u64,
    pub rows: u64,
    /// RFC 3339: the instant that the backup shows.
    pub taken_at: String,
}

/// One raw operation inside a step: where its time went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub name: String,
    pub micros: u64,
}

/// What an agent (or the dispatcher, for an agent that never answered) says of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub result: StepResult,
    #[serde(default)]
    pub findings: Vec<Finding>,
    #[serde(default)]
    pub observed: Option<Revision>,
    #[serde(default)]
    pub receipt: Option<Receipt>,
    #[serde(default)]
    pub operations: Vec<Operation>,
    #[serde(default)]
    pub summary: String,
    /// The switch of a database to a backup: what it cost, counted when writers had stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<DataLoss>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepResult {
    Succeeded,
    /// It did not take effect, or its driver put everything back.
    Failed(Problem),
    /// Nobody can tell. Never retried; a person must look.
    Indeterminate(Problem),
}

/// How a rollback ended. Exactly one of these, always with what a person needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The target was observed and found healthy everywhere in scope.
    Verified,
    /// Every step that was begun and has an undo was reversed. What was down before may be up: serving users is never
    /// taken back. `blocked`: nothing had been touched at all: preflight found blockers, or it was ended before it went
    /// further, or nobody approved it.
    Undone { blocked: bool, cause: Problem },
    /// The target was reached, but not on these hosts.
    Partial { hosts: Vec<HostName>, cause: Problem },
    /// Stopped, waiting for a person.
    Held { cause: Problem },
}

/// What an operator does to a rollback that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// Begin nothing new. What is in flight ends and is written down.
    Pause,
    /// Go on with whatever is due: also with an undo that a failure called for.
    Resume,
    /// The failed steps of these hosts again, each as its next attempt. Empty: of all hosts that failed in this batch.
    Retry { hosts: BTreeSet<HostName> },
    /// Go on without these hosts, as the policy "continue" would. Empty: without all that failed in this batch.
    Skip { hosts: BTreeSet<HostName> },
    /// End it, when what is in flight has ended.
    Abort { then: AbortThen },
    /// A second operator has looked at this plan.
    Approve { digest: Digest },
}

/// What an abort leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortThen {
    Undo,
    Hold,
}

/// A fact. Once written it is never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "one box for each outcome costs more than the room that others leave"
)]
pub enum Event {
    Created {
        at: Timestamp,
        plan: Box<Plan>,
        started_by: String,
        reason: String,
        incident: String,
        /// W3C trace id (32 hex digits) and the caller's span id (16), so that every leader continues one trace.
        trace_id: String,
        parent_span_id: String,
        /// What may be lost by restoring databases from backups; there when the plan does that, and only then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consent: Option<Consent>,
        /// The generation of every host's ledger at this moment. A leader that takes the rollback up asks for what is in
        /// flight under these: a ledger that was replaced since cannot vouch for it. No clock is needed to tell.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        ledgers: BTreeMap<HostName, String>,
    },
    PhaseStarted {
        at: Timestamp,
        phase: PhaseName,
    },
    BatchStarted {
        at: Timestamp,
        phase: PhaseName,
        batch: u32,
    },
    /// Durable before the step is dispatched.
    StepIntended {
        at: Timestamp,
        step: StepId,
        direction: Direction,
        attempt: u32,
    },
    /// Durable before anything depends on it.
    StepEnded {
        at: Timestamp,
        step: StepId,
        direction: Direction,
        attempt: u32,
        outcome: Outcome,
    },
    PhaseEnded {
        at: Timestamp,
        phase: PhaseName,
    },
    UndoStarted {
        at: Timestamp,
        cause: Problem,
    },
    /// An operator's act that fits.
    Steered {
        at: Timestamp,
        by: String,
        reason: String,
        #[serde(flatten)]
        act: Act,
    },
    /// The runbook's policy for a failure: nothing new begins until an operator acts.
    Paused {
        at: Timestamp,
        cause: Problem,
    },
    Ended {
        at: Timestamp,
        ending: Ending,
    },
}

/// A request to the state machine. Time and ids arrive inside: the engine has no clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one box for each outcome costs more than the room that others leave"
)]
pub enum Command {
    /// First command of every rollback.
    Create {
        at: Timestamp,
        plan: Box<Plan>,
        started_by: String,
        reason: String,
        incident: String,
        trace_id: String,
        parent_span_id: String,
        consent: Option<Consent>,
        ledgers: BTreeMap<HostName, String>,
    },
    /// A dispatched step came to an end.
    StepEnded {
        at: Timestamp,
        step: StepId,
        direction: Direction,
        attempt: u32,
        outcome: Outcome,
    },
    /// A leader goes on with a rollback that it read from the journal. Normally nothing is missing.
    TakeUp { at: Timestamp },
    /// An operator acts.
    Steer {
        at: Timestamp,
        by: String,
        reason: String,
        act: Act,
    },
    /// The time for something that was awaited from people may be over; `at` says whether it is.
    Expire { at: Timestamp },
    /// Ends here and now, for a person: what the journal says cannot be relied on any more. Nobody is asked what became of
    /// the steps in flight.
    Hold { at: Timestamp, cause: Problem },
}

/// Something for the runner to do. Only ever derived from events that are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the step's agent to execute it. Safe to repeat: the agent answers a known key from its ledger.
    Dispatch {
        step: StepId,
        direction: Direction,
        attempt: u32,
    },
    /// The rollback has ended; give the scope back.
    Close,
}
