//! What a driver is given for one step: revisions, time left, a place to report progress, a clock for its raw
//! operations, and the host's vault.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rollback_proto::kill_point;
use rollback_proto::v1::{Action, Consent};
use tracing::Instrument;

use crate::driver::Revision;
use crate::vault::Vault;

/// Receives progress of a running step. Calls never block: a slow watcher loses lines, not time.
pub trait ProgressSink: Send + Sync {
    /// `fraction` is 0 to 1, or `None` when unknown.
    fn progress(&self, message: &str, fraction: Option<f64>);
}

/// Progress that nobody watches.
#[derive(Debug)]
pub struct NoProgress;

impl ProgressSink for NoProgress {
    fn progress(&self, _message: &str, _fraction: Option<f64>) {}
}

/// A raw operation and how long it took.
#[derive(Clone, Debug)]
pub struct TimedOperation {
    pub name: &'static str,
    pub took: Duration,
}

/// One step, as a driver sees it.
pub struct StepContext {
    /// Checked against the allow-list of names: safe as a part of a file name.
    pub rollback_id: String,
    pub component: String,
    pub action: Action,
    /// The live revision when the step begins, as planned.
    pub from: Revision,
    /// The revision that shall be live when the step ends.
    pub to: Revision,
    /// `drain` and `resume` of a proxy: only what concerns this one of its backends, which the driver declares.
    pub backend: Option<String>,
    /// Databases: the change goes by restoring a backup beside the live database and exchanging the two.
    pub from_backup: bool,
    /// What may be lost for that; `None`: nothing.
    pub consent: Option<Consent>,
    /// It reverses an earlier step; `from` and `to` are exchanged already, and may be equal.
    pub undo: bool,
    /// The step is refused, or its current operation cut off, after this instant.
    pub deadline: Instant,
    pub vault: Arc<Vault>,
    progress: Arc<dyn ProgressSink>,
    operations: Mutex<Vec<TimedOperation>>,
}

impl std::fmt::Debug for StepContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepContext")
            .field("rollback_id", &self.rollback_id)
            .field("component", &self.component)
            .field("action", &self.action)
            .field("from", &self.from)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl StepContext {
    #[expect(
        clippy::too_many_arguments,
        reason = "one constructor, called in one place of the executor and in tests"
    )]
    pub fn new(
        rollback_id: String,
        component: String,
        action: Action,
        from: Revision,
        to: Revision,
        timeout: Duration,
        vault: Arc<Vault>,
        progress: Arc<dyn ProgressSink>,
    ) -> Self {
        Self {
            rollback_id,
            component,
            action,
            from,
            to,
            backend: None,
            from_backup: false,
            consent: None,
            undo: false,
            deadline: Instant::now() + timeout,
            vault,
            progress,
            operations: Mutex::new(Vec::new()),
        }
    }

    #[must_use]
    pub fn for_backend(mut self, backend: Option<String>) -> Self {
        self.backend = backend;
        self
    }

    #[must_use]
    pub fn from_backup(mut self, from_backup: bool, consent: Option<Consent>) -> Self {
        (self.from_backup, self.consent) = (from_backup, consent);
        self
    }

    #[must_use]
    pub fn reversing(mut self, undo: bool) -> Self {
        self.undo = undo;
        self
    }

    /// Time left until the deadline; zero when it has passed.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Says what is being done, to whoever watches the rollback.
    pub fn progress(&self, message: impl AsRef<str>) {
        self.progress.progress(message.as_ref(), None);
    }

    pub fn progress_fraction(&self, message: impl AsRef<str>, fraction: f64) {
        self.progress.progress(message.as_ref(), Some(fraction.clamp(0.0, 1.0)));
    }

    /// Runs one raw operation (`pg_dump`, `rename`, `nginx_reload` …) in a span of its own and remembers how long it
    /// took, so that the report can tell the fleet's own work from the program's overhead. Names are low-cardinality
    /// snake_case. Do not nest: the durations of a step are summed.
    pub async fn operation<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let span = tracing::info_span!("operation", otel.name = name, component = %self.component);
        let kill_point = |when| kill_point::pass(|| format!("{}.{name}.{when}", self.action.as_str_name()));
        kill_point("before");
        let begun = tokio::time::Instant::now();
        let result = work.instrument(span).await;
        kill_point("after");
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(TimedOperation {
                name,
                took: begun.elapsed(),
            });
        result
    }

    /// The operations so far, in the order in which they ended.
    pub fn operations(&self) -> Vec<TimedOperation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
