//! Prometheus metrics. What each means is in its help text, which `/metrics` shows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rollback_engine::event::{Ending, Event, StepResult};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub rollbacks_started: Counter,
    rollbacks_ended: Family<Outcome, Counter>,
    steps_ended: Family<Outcome, Counter>,
    pub append_seconds: Histogram,
    pub agents_registered: Gauge,
    pub agents_connected: Gauge,
    pub rollbacks_running: Gauge,
    pub epoch: Gauge,
    pub leading: Gauge,
    pub terms: Counter,
    pub stepped_down: Counter,
    pub fatal: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("rollback");
        let metrics = (
            Counter::default(),
            Family::<Outcome, Counter>::default(),
            Family::<Outcome, Counter>::default(),
            Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
        );
        let gauges: [Gauge; 5] = std::array::from_fn(|_| Gauge::default());
        let [agents_registered, agents_connected, rollbacks_running, epoch, leading] = gauges;
        let [fatal, terms, stepped_down]: [Counter; 3] = std::array::from_fn(|_| Counter::default());
        let (rollbacks_started, rollbacks_ended, steps_ended, append_seconds) = metrics;
        registry.register("rollbacks_started", "Rollbacks started here", rollbacks_started.clone());
        registry.register(
            "rollbacks_ended",
            "Rollbacks ended here, by how",
            rollbacks_ended.clone(),
        );
        registry.register(
            "steps_ended",
            "Steps ended, by what their agents said",
            steps_ended.clone(),
        );
        registry.register(
            "journal_append_seconds",
            "Time to make events durable",
            append_seconds.clone(),
        );
        registry.register(
            "agents_registered",
            "Agents that have ever registered",
            agents_registered.clone(),
        );
        registry.register(
            "agents_connected",
            "Agents that are connected and heard of",
            agents_connected.clone(),
        );
        registry.register("rollbacks_running", "Rollbacks that run now", rollbacks_running.clone());
        registry.register(
            "leader_epoch",
            "The fencing number of the leader, as far as it is known",
            epoch.clone(),
        );
        registry.register("leading", "1 on the replica that leads, else 0", leading.clone());
        registry.register("terms", "Times that this replica won the lease", terms.clone());
        registry.register(
            "stepped_down",
            "Times that this replica lost the lease, or gave it up because it could not go on",
            stepped_down.clone(),
        );
        registry.register(
            "fatal",
            "Times that a journal could not be gone on with, or turned out to be incomplete",
            fatal.clone(),
        );
        Self {
            registry,
            rollbacks_started,
            rollbacks_ended,
            steps_ended,
            append_seconds,
            agents_registered,
            agents_connected,
            rollbacks_running,
            epoch,
            leading,
            terms,
            stepped_down,
            fatal,
        }
    }
}

impl Metrics {
    /// Counts a durable event.
    pub fn event(&self, event: &Event) {
        match event {
            Event::StepEnded { outcome, .. } => {
                let outcome = match outcome.result {
                    StepResult::Succeeded => "succeeded",
                    StepResult::Failed(_) => "failed",
                    StepResult::Indeterminate(_) => "indeterminate",
                };
                self.steps_ended.get_or_create(&Outcome { outcome }).inc();
            }
            Event::Ended { ending, .. } => {
                let outcome = match ending {
                    Ending::Verified => "verified",
                    Ending::Undone { blocked: true, .. } => "blocked",
                    Ending::Undone { blocked: false, .. } => "undone",
                    Ending::Partial { .. } => "partial",
                    Ending::Held { .. } => "held",
                };
                self.rollbacks_ended.get_or_create(&Outcome { outcome }).inc();
            }
            Event::Created { .. }
            | Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Steered { .. }
            | Event::Paused { .. } => {}
        }
    }

    /// The text that Prometheus scrapes.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
