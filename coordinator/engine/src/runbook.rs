//! Runbooks: the policy that shapes plans, as TOML.
//!
//! A runbook decides how many hosts go at once, how long a step may take and what a failure leads to. It does not
//! decide the order of things: that is the planner's, because the invariants hang on it.
//!
//! Invariants, checked when a runbook is read:
//! - every key is there and no other (a misspelt key must not silently mean the default);
//! - databases that the runbook does not change are also said to be kept;
//! - "continue" stands only where going on cannot break a promise: never before everything is staged and backed up.

mod faults;
mod reading;
mod units;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Severity;
use crate::ids::ComponentName;
use crate::plan::{ApprovalRule, DatabaseChoice, OnFailure, PhaseName};
use crate::release::{Action, Role};

pub use reading::Reading;
pub use units::{BatchSize, Span};

/// The first is the example that has every key.
const BUILTIN: [(&str, &str); 5] = [
    ("default", include_str!("../runbooks/default.toml")),
    ("emergency", include_str!("../runbooks/emergency.toml")),
    ("schema-only", include_str!("../runbooks/schema-only.toml")),
    ("app-only", include_str!("../runbooks/app-only.toml")),
    ("restore", include_str!("../runbooks/restore.toml")),
];

/// A checked runbook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runbook {
    pub name: String,
    /// Not in the text: whoever keeps it counts. 1 for a text that nobody keeps.
    #[serde(skip, default = "first_version")]
    pub version: u32,
    pub unreachable: Unreachable,
    /// How databases go back.
    pub database: DatabaseChoice,
    /// What the rollback changes. Everything else that the release names stays where it is; it is paused where that is
    /// needed, and verified.
    pub roles: BTreeSet<Role>,
    /// The same by name: components that are called so. Empty: all.
    pub services: BTreeSet<ComponentName>,
    /// Batches of the app phase.
    pub batches: Vec<BatchSize>,
    /// The same when all apps are stopped for a schema change.
    pub batches_when_quiesced: Vec<BatchSize>,
    /// No more hosts than this are worked on at once in the app phase, or may be left behind.
    pub max_unavailable: BatchSize,
    /// What becomes of hosts that were left out, when they are back.
    pub converge: Converge,
    /// Releases that a fleet was taken back from are held.
    pub hold: bool,
    pub checks: Checks,
    pub consent: ConsentPolicy,
    pub timeouts: Timeouts,
    pub on_failure: FailurePolicy,
}

/// What hosts lead to that do not answer when the plan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unreachable {
    /// No plan.
    Block,
    /// A plan without them, as long as they are no more than this.
    Skip(usize),
    /// A plan without them, however many they are.
    SkipAll,
}

/// What becomes of hosts that were left out, when they are back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Converge {
    /// They stay as they are until an operator asks for it.
    Manual,
    /// They are brought to where they shall be as soon as they are connected.
    Automatic,
}

/// When components are checked besides the verification at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// Each batch of the app phase is verified before the next begins.
    pub after_batch: bool,
}

/// Who has to agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsentPolicy {
    pub second_person: SecondPerson,
    /// How long a second person is waited for.
    pub approve_within: Span,
}

/// What another operator than the one who starts has to approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondPerson {
    Never,
    /// Plans that restore a database from a backup.
    DataLoss,
    Always,
}

/// How long each action may take, from dispatch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    pub prepare: Span,
    pub stage: Span,
    pub discard: Span,
    pub snapshot: Span,
    pub drain: Span,
    pub resume: Span,
    pub stop: Span,
    pub start: Span,
    pub switch: Span,
    pub verify: Span,
    pub finish: Span,
    pub database: DatabaseTimeouts,
}

/// What takes longer the more a database holds. Apart from the others, because this is also how long a lost host is
/// waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseTimeouts {
    pub stage: Span,
    pub snapshot: Span,
}

/// What a failed step leads to, by phase. The finish phase is absent on purpose: when it runs, the rollback is decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailurePolicy {
    pub preflight: OnFailure,
    pub stage: OnFailure,
    pub protect: OnFailure,
    pub quiesce: OnFailure,
    pub database: OnFailure,
    pub app: OnFailure,
    pub proxy: OnFailure,
    pub verify: OnFailure,
}

/// One thing to say about a runbook's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunbookFinding {
    /// A blocker is an error: there is no runbook. Never `Ok`.
    pub severity: Severity,
    /// From 1; 0: the whole.
    pub line: u32,
    /// From 1, in characters; 0 with line 0.
    pub column: u32,
    /// "on_failure.stage"; empty where the text is no TOML.
    pub key: String,
    pub message: String,
    /// What to write instead. May be empty.
    pub hint: String,
}

impl fmt::Display for RunbookFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// A runbook cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunbookError {
    #[error("{}", first_of(errors))]
    Invalid {
        /// Never empty.
        errors: Vec<RunbookFinding>,
    },
    #[error("there is no built-in runbook `{name}`; there are: {}", Runbook::builtin_names().collect::<Vec<_>>().join(", "))]
    UnknownBuiltin { name: String },
}

fn first_of(errors: &[RunbookFinding]) -> String {
    match errors {
        [] => "cannot be read".to_owned(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first}; and {} more", others.len()),
    }
}

impl Runbook {
    /// Of all built-ins. It grows with every change to one of them: plans say what they were made with.
    pub const BUILTIN_VERSION: u32 = 3;

    pub fn builtin(name: &str) -> Result<Self, RunbookError> {
        Ok(Self::parse(Self::builtin_text(name)?)?.at_version(Self::BUILTIN_VERSION))
    }

    /// The built-in's file, comments and all, as an example to start from.
    pub fn builtin_text(name: &str) -> Result<&'static str, RunbookError> {
        BUILTIN
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, text)| *text)
            .ok_or_else(|| RunbookError::UnknownBuiltin { name: name.to_owned() })
    }

    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    pub fn parse(text: &str) -> Result<Self, RunbookError> {
        let Reading {
            runbook, mut findings, ..
        } = Self::lint(text);
        findings.retain(|f| f.severity == Severity::Blocker);
        runbook.ok_or(RunbookError::Invalid { errors: findings })
    }

    /// Everything that there is to say about a text, and the runbook that it is, if it is one.
    pub fn lint(text: &str) -> Reading {
        reading::read(text)
    }

    /// As it is kept.
    #[must_use]
    pub fn at_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// "default@1": how plans and reports name it.
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Whoever asks for a single batch wants speed and takes the gap: applications then restart all at once, and draining
    /// them first would only delay that.
    pub fn all_at_once(&self) -> bool {
        match self.batches.as_slice() {
            _ if self.max_unavailable != BatchSize::Percent(100) => false,
            [_] | [BatchSize::Percent(100), ..] => true,
            [] | [BatchSize::Count(_) | BatchSize::Percent(_), ..] => false,
        }
    }

    /// The same with this choice. Whoever says how databases go back wants them to, whatever the runbook leaves alone.
    #[must_use]
    pub fn with_database(mut self, choice: DatabaseChoice) -> Self {
        match choice {
            DatabaseChoice::Keep => {}
            DatabaseChoice::Auto | DatabaseChoice::Migrate | DatabaseChoice::Restore => {
                self.roles.insert(Role::Database);
            }
        }
        self.database = choice;
        self
    }

    /// The same with this for every phase in which something can have been done. Preflight changes nothing: there is nothing to
    /// hold, or to go on from.
    #[must_use]
    pub fn with_on_failure(mut self, choice: OnFailure) -> Self {
        let FailurePolicy {
            preflight: _,
            stage,
            protect,
            quiesce,
            database,
            app,
            proxy,
            verify,
        } = &mut self.on_failure;
        for phase in [stage, protect, quiesce, database, app, proxy, verify] {
            *phase = choice;
        }
        self
    }

    /// Who has to approve a plan that loses data, or one that does not.
    pub fn approval(&self, loses_data: bool) -> Option<ApprovalRule> {
        let needed = match self.consent.second_person {
            SecondPerson::Never => false,
            SecondPerson::DataLoss => loses_data,
            SecondPerson::Always => true,
        };
        needed.then_some(ApprovalRule {
            within_ms: self.consent.approve_within.millis,
        })
    }

    /// Does it change components of this role?
    pub fn changes(&self, role: Role) -> bool {
        self.roles.contains(&role) && (role != Role::Database || self.database != DatabaseChoice::Keep)
    }

    /// Milliseconds.
    pub fn timeout_ms(&self, action: Action, role: Role) -> u64 {
        self.timeouts.of(action, role).millis
    }

    pub fn on_failure(&self, phase: PhaseName) -> OnFailure {
        match phase {
            PhaseName::Preflight => self.on_failure.preflight,
            PhaseName::Stage => self.on_failure.stage,
            PhaseName::Protect => self.on_failure.protect,
            PhaseName::Quiesce => self.on_failure.quiesce,
            PhaseName::Database => self.on_failure.database,
            PhaseName::App => self.on_failure.app,
            PhaseName::Proxy => self.on_failure.proxy,
            PhaseName::Verify => self.on_failure.verify,
            PhaseName::Finish => OnFailure::Continue,
        }
    }
}

fn first_version() -> u32 {
    1
}

/// Before the app phase every later step leans on every earlier one.
fn may_continue(phase: PhaseName) -> bool {
    match phase {
        PhaseName::Preflight | PhaseName::Stage | PhaseName::Protect | PhaseName::Quiesce | PhaseName::Database => {
            false
        }
        PhaseName::App | PhaseName::Proxy | PhaseName::Verify | PhaseName::Finish => true,
    }
}

impl Timeouts {
    fn of(&self, action: Action, role: Role) -> Span {
        match action {
            Action::Stage if role == Role::Database => self.database.stage,
            Action::Snapshot if role == Role::Database => self.database.snapshot,
            Action::Prepare => self.prepare,
            Action::Stage => self.stage,
            Action::Discard => self.discard,
            Action::Snapshot => self.snapshot,
            Action::Drain => self.drain,
            Action::Resume => self.resume,
            Action::Stop => self.stop,
            Action::Start => self.start,
            Action::Switch => self.switch,
            Action::Verify => self.verify,
            Action::Finish => self.finish,
        }
    }
}
