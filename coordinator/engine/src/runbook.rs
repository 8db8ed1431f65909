//! Runbooks: the policy that shapes plans, as TOML.
//!
//! A runbook decides how many hosts go at once, how long a step may take and what a failure leads to. It does not
//! decide the order of things: that is the planner's, because the invariants hang on it.
//!
//! Invariants, checked when a runbook is read:
//! - every key is there and no other (a misspelt key must not silently mean the default);
//! - databases that the runbook does not change are also said to be kept;
//! - "continue" stands only where going on cannot break a promise: never before everything is staged and backed up.

use std::collections::BTreeSet;
use std::fmt;

use jiff::fmt::friendly::SpanParser;
use serde::{Deserialize, Serialize};

use crate::plan::{DatabaseChoice, OnFailure, PhaseName};
use crate::release::{Action, Role};

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
    pub version: u32,
    pub unreachable: Unreachable,
    /// How databases go back.
    pub database: DatabaseChoice,
    /// What the rollback changes. Everything else that the release names stays where it is; it is paused where that is
    /// needed, and verified.
    pub roles: BTreeSet<Role>,
    /// Batches of the app phase.
    pub batches: Vec<BatchSize>,
    /// The same when all apps are stopped for a schema change.
    pub batches_when_quiesced: Vec<BatchSize>,
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

/// How many hosts a batch takes: `"3"`, or `"25%"` of all hosts of the phase (rounded up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BatchSize {
    Count(usize),
    Percent(u8),
}

/// A length of time in a runbook: `"500ms"`, `"30s"`, `"15m"`, `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    pub millis: u64,
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

/// A runbook cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunbookError {
    #[error("read runbook")]
    Toml(#[from] toml::de::Error),
    #[error("runbook key `{key}`: {problem}")]
    Invalid { key: String, problem: String },
    #[error("there is no built-in runbook `{name}`; there are: {}", Runbook::builtin_names().collect::<Vec<_>>().join(", "))]
    UnknownBuiltin { name: String },
}

impl Runbook {
    pub fn builtin(name: &str) -> Result<Self, RunbookError> {
        Self::parse(Self::builtin_text(name)?)
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
        let runbook: Self = toml::from_str(text)?;
        runbook.check()?;
        Ok(runbook)
    }

    /// "default@1": how plans and reports name it.
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Whoever asks for a single batch wants speed and takes the gap: applications then restart all at once, and draining
    /// them first would only delay that.
    pub fn all_at_once(&self) -> bool {
        match self.batches.as_slice() {
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

    fn check(&self) -> Result<(), RunbookError> {
        let name_fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > 128 || !self.name.chars().all(name_fits) {
            return Err(invalid("name", "use 1 to 128 of A-Z a-z 0-9 . _ -"));
        }
        for (key, sizes) in [
            ("batches", &self.batches),
            ("batches_when_quiesced", &self.batches_when_quiesced),
        ] {
            if sizes.is_empty() {
                return Err(invalid(key, "give at least one batch; [\"100%\"] is all hosts at once"));
            }
        }
        if self.roles.is_empty() {
            return Err(invalid("roles", "name at least one of database, config, app, proxy"));
        }
        if !self.roles.contains(&Role::Database) && self.database != DatabaseChoice::Keep {
            return Err(invalid(
                "database",
                "`roles` does not name databases, so they are kept: write \"keep\"",
            ));
        }
        for action in Action::ALL {
            for (role, table) in [(Role::App, "timeouts"), (Role::Database, "timeouts.database")] {
                if self.timeout_ms(action, role) == 0 {
                    return Err(invalid(
                        &format!("{table}.{action}"),
                        "a step needs some time; give at least 1ms",
                    ));
                }
            }
        }
        for phase in PhaseName::ALL {
            if self.on_failure(phase) == OnFailure::Continue && !may_continue(phase) {
                return Err(invalid(
                    &format!("on_failure.{phase}"),
                    "\"continue\" would switch hosts that are not ready or not backed up; use \"undo\" or \"hold\"",
                ));
            }
        }
        Ok(())
    }
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

fn invalid(key: &str, problem: &str) -> RunbookError {
    RunbookError::Invalid {
        key: key.to_owned(),
        problem: problem.to_owned(),
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

impl BatchSize {
    /// How many of `total` hosts; at least one, so that every batch makes progress.
    pub fn of(self, total: usize) -> usize {
        match self {
            BatchSize::Count(n) => n,
            BatchSize::Percent(p) => (total * usize::from(p)).div_ceil(100).max(1),
        }
    }
}

impl TryFrom<String> for BatchSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a batch size; write a count (\"3\") or a share (\"25%\")");
        let size = match text.strip_suffix('%') {
            Some(share) => BatchSize::Percent(share.parse().ok().filter(|p| *p <= 100).ok_or_else(wrong)?),
            None => BatchSize::Count(text.parse().map_err(|_| wrong())?),
        };
        match size {
            BatchSize::Count(0) | BatchSize::Percent(0) => Err(format!("`{text}` would be a batch of no hosts")),
            BatchSize::Count(_) | BatchSize::Percent(_) => Ok(size),
        }
    }
}

impl From<BatchSize> for String {
    fn from(size: BatchSize) -> Self {
        match size {
            BatchSize::Count(n) => n.to_string(),
            BatchSize::Percent(p) => format!("{p}%"),
        }
    }
}

/// Longest first, so that printing picks the largest unit that fits exactly.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let length = SpanParser::new().parse_unsigned_duration(&text);
        match length.map(|length| u64::try_from(length.as_millis())) {
            Ok(Ok(millis)) => Ok(Span { millis }),
            Ok(Err(_)) | Err(_) => Err(format!("`{text}` is not a duration; write 500ms, 30s, 15m or 1h")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, factor)| self.millis.is_multiple_of(*factor))
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", self.millis / factor)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}
