//! Prometheus metrics. What each means is in its help text, which `/metrics` shows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRelease {
    release: String,
}

/// Of one release that the leader checks in the background.
#[derive(Clone, Debug)]
pub struct ReadinessFigures {
    pub release: String,
    pub ready: bool,
    pub blockers: usize,
    pub checked_at: Timestamp,
}

#[derive(Debug, Default)]
struct Readiness {
    /// What is checked now; a release that is not leaves no series behind.
    known: Mutex<Vec<ReadinessFigures>>,
    ready: Family<OfRelease, Gauge>,
    blockers: Family<OfRelease, Gauge>,
    age_seconds: Family<OfRelease, Gauge>,
    interval_seconds: Gauge,
}

impl Readiness {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "readiness",
            "1 when the fleet could go back to this release, as its hosts said when they were last asked, else 0",
            self.ready.clone(),
        );
        registry.register(
            "readiness_blockers",
            "What stands in the way of going back to this release",
            self.blockers.clone(),
        );
        registry.register(
            "readiness_age_seconds",
            "Time since the hosts were last asked whether the fleet could go back to this release",
            self.age_seconds.clone(),
        );
        registry.register(
            "readiness_interval_seconds",
            "How often they are to be asked; 0: not in the background",
            self.interval_seconds.clone(),
        );
    }

    /// Ages are those of the moment that somebody looks.
    fn refresh(&self, now: Timestamp) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for family in [&self.ready, &self.blockers, &self.age_seconds] {
            family.clear();
        }
        for figures in known.iter() {
            let label = OfRelease {
                release: figures.release.clone(),
            };
            let age = now.duration_since(figures.checked_at).as_secs().max(0);
            self.ready.get_or_create(&label).set(i64::from(figures.ready));
            let blockers = i64::try_from(figures.blockers).unwrap_or(i64::MAX);
            self.blockers.get_or_create(&label).set(blockers);
            self.age_seconds.get_or_create(&label).set(age);
        }
    }
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    readiness: Readiness,
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
        let readiness = Readiness::default();
        readiness.register(&mut registry);
        Self {
            registry,
            readiness,
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

    /// What is known of the releases that are checked in the background; all of them. Only a leader knows.
    pub fn readiness(&self, known: Vec<ReadinessFigures>) {
        *self.readiness.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Zero: not at all.
    pub fn readiness_every(&self, every: Duration) {
        let seconds = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        self.readiness.interval_seconds.set(seconds);
    }

    /// The text that Prometheus scrapes.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.readiness.refresh(Timestamp::now());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    #[test]
    fn releases_that_are_not_checked_any_more_leave_no_series() {
        let metrics = Metrics::default();
        let figures = |release: &str, blockers: usize| ReadinessFigures {
            release: release.to_owned(),
            ready: blockers == 0,
            blockers,
            checked_at: Timestamp::now() - 90.seconds(),
        };
        metrics.readiness(vec![figures("v1", 0), figures("v2", 3)]);
        let text = metrics.encode().expect("text");
        for line in [
            "rollback_readiness{release=\"v1\"} 1",
            "rollback_readiness{release=\"v2\"} 0",
            "rollback_readiness_blockers{release=\"v2\"} 3",
            "rollback_readiness_age_seconds{release=\"v1\"} 9",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        metrics.readiness(vec![figures("v2", 0)]);
        let text = metrics.encode().expect("text");
        assert!(!text.contains("v1"), "{text}");
        assert!(text.contains("rollback_readiness{release=\"v2\"} 1"), "{text}");
    }

    const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus");

    /// An alert over a metric that nobody exports never fires.
    #[test]
    fn the_alert_rules_speak_of_what_is_exported() {
        let metrics = Metrics::default();
        metrics.readiness(vec![ReadinessFigures {
            release: "v1".to_owned(),
            ready: true,
            blockers: 0,
            checked_at: Timestamp::now(),
        }]);
        let text = metrics.encode().expect("text");
        let exported = |name: &str| text.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
        let rules = std::fs::read_to_string(format!("{RULES}/rollbackctl.rules.yml")).expect("the rules");
        let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: std::collections::BTreeSet<&str> = words.filter(|word| word.starts_with("rollback_")).collect();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            assert!(exported(name), "{name} in\n{text}");
        }
    }

    #[test]
    fn the_alerts_fire_when_they_should_and_not_before() {
        let tested = std::process::Command::new("promtool")
            .args(["test", "rules", "rollbackctl.rules.test.yml"])
            .current_dir(RULES)
            .output()
            .expect("promtool is there: tests/install-dependencies.sh");
        let said = [tested.stdout, tested.stderr].concat();
        assert!(tested.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
