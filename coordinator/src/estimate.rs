//! How long will it take? As long as comparable rollbacks took: verified ones, by the same runbook, with the same kind of
//! change to the database, and about as many hosts.
//!
//! What a rollback took is measured once, at its end ([`Timing`]), and kept in its summary: an estimate reads a page of
//! summaries and no journal. Counted is the time in which some step was at work; while a rollback is paused, or awaits an
//! approval, nobody waits for hosts.
//!
//! Leaves out guesses: where there was no such rollback, there is no estimate.

use std::time::Duration;

use jiff::Timestamp;
use rollback_engine::event::{Direction, Ending};
use rollback_engine::machine::State;
use rollback_engine::plan::{PhaseName, Plan, PlanBody};
use rollback_engine::release::Action;
use rollback_proto::v1;
use serde::{Deserialize, Serialize};

use crate::projection::{Summary, SummaryState};
use crate::store::Store;
use crate::{convert, history};

/// Summaries that are looked through.
const LOOKED_THROUGH: u32 = 200;
/// The newest comparable ones: fleets change.
const SAMPLES: usize = 20;
/// Up to so many times as many hosts, or as few, are about as many.
const ABOUT: u32 = 2;

/// What makes two rollbacks comparable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Without its version.
    pub runbook: String,
    pub schema_changes: bool,
    /// A database is restored from a backup.
    pub from_backup: bool,
    /// Users get the maintenance answer meanwhile.
    pub quiesces: bool,
    /// Hosts on which something is switched, stopped or started.
    pub hosts: u32,
}

impl Shape {
    pub fn of(body: &PlanBody) -> Self {
        let name = body.runbook.split('@').next().unwrap_or(&body.runbook);
        let mut hosts: Vec<&str> = body
            .steps()
            .filter(|step| step.action.changes_service())
            .map(|step| step.target.host.as_str())
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        Self {
            runbook: name.to_owned(),
            schema_changes: body.schema_changes,
            from_backup: body.restored_databases().next().is_some(),
            quiesces: body.phases.iter().any(|phase| phase.name == PhaseName::Quiesce),
            hosts: u32::try_from(hosts.len()).unwrap_or(u32::MAX),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        let (few, many) = (self.hosts.min(other.hosts), self.hosts.max(other.hosts));
        let same = |shape: &Self| Self {
            hosts: 0,
            ..shape.clone()
        };
        few > 0 && many <= few.saturating_mul(ABOUT) && same(self) == same(other)
    }
}

/// What a rollback took, that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub shape: Shape,
    pub total_ms: u64,
    /// From the first drain or stop of `quiesce` until the proxies (or, without any, the applications) had users back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// In order: name and milliseconds.
    pub phases: Vec<(String, u64)>,
}

impl Timing {
    /// `None` unless it has ended verified.
    pub fn of(state: &State) -> Option<Self> {
        if !matches!(state.ending(), Some(Ending::Verified)) {
            return None;
        }
        let shape = Shape::of(&state.plan()?.body);
        let worked: Vec<Worked> = state
            .reports()
            .filter(|report| report.direction == Direction::Forward)
            .filter_map(|report| {
                Some(Worked {
                    phase: report.phase,
                    action: report.step.action,
                    from: report.started_at,
                    to: report.ended_at?,
                })
            })
            .collect();
        let phases = PhaseName::ALL
            .into_iter()
            .filter(|name| worked.iter().any(|w| w.phase == *name))
            .map(|name| {
                let of_phase = worked.iter().filter(|w| w.phase == name);
                (name.as_str().to_owned(), at_work(of_phase.map(|w| (w.from, w.to))))
            })
            .collect();
        Some(Self {
            total_ms: at_work(worked.iter().map(|w| (w.from, w.to))),
            downtime_ms: shape.quiesces.then(|| downtime(&worked)).flatten(),
            shape,
            phases,
        })
    }
}

#[derive(Clone, Copy)]
struct Worked {
    phase: PhaseName,
    action: Action,
    from: Timestamp,
    to: Timestamp,
}

fn downtime(worked: &[Worked]) -> Option<u64> {
    let takes_down = |w: &&Worked| w.phase == PhaseName::Quiesce && matches!(w.action, Action::Drain | Action::Stop);
    let begun = worked.iter().filter(takes_down).map(|w| w.from).min()?;
    let given_back = |phase: PhaseName, action: Action| {
        let those = worked.iter().filter(move |w| w.phase == phase && w.action == action);
        those.map(|w| w.to).max()
    };
    let ended = given_back(PhaseName::Proxy, Action::Resume).or_else(|| given_back(PhaseName::App, Action::Start))?;
    let within = worked.iter().map(|w| (w.from.max(begun), w.to.min(ended)));
    Some(at_work(within.filter(|(from, to)| from < to)))
}

/// Milliseconds that at least one of these spans covers.
fn at_work(spans: impl Iterator<Item = (Timestamp, Timestamp)>) -> u64 {
    let mut spans: Vec<(i64, i64)> = spans
        .map(|(from, to)| (from.as_millisecond(), to.as_millisecond()))
        .collect();
    spans.sort_unstable();
    let mut covered: u64 = 0;
    let mut until = i64::MIN;
    for (from, to) in spans {
        let new = to.saturating_sub(from.max(until));
        covered = covered.saturating_add(u64::try_from(new).unwrap_or(0));
        until = until.max(to);
    }
    covered
}

/// What comparable rollbacks took. `None`: there were none, or the store does not say; a plan is shown all the same.
pub async fn estimate(store: &dyn Store, plan: &Plan) -> Option<v1::Estimate> {
    let summaries = history::newest(store, LOOKED_THROUGH)
        .await
        .inspect_err(|problem| tracing::warn!(%problem, "read what comparable rollbacks took"))
        .ok()?;
    of_history(&Shape::of(&plan.body), &summaries)
}

fn of_history(shape: &Shape, summaries: &[Summary]) -> Option<v1::Estimate> {
    let like: Vec<&Timing> = summaries
        .iter()
        .filter(|summary| summary.state == SummaryState::Verified)
        .filter_map(|summary| summary.timing.as_ref())
        .filter(|timing| timing.shape.is_like(shape))
        .take(SAMPLES)
        .collect();
    let total = spread(like.iter().map(|timing| timing.total_ms))?;
    Some(v1::Estimate {
        samples: u32::try_from(like.len()).unwrap_or(u32::MAX),
        total: Some(total),
        downtime: spread(like.iter().filter_map(|timing| timing.downtime_ms)),
    })
}

fn spread(figures: impl Iterator<Item = u64>) -> Option<v1::Spread> {
    let mut figures: Vec<u64> = figures.collect();
    figures.sort_unstable();
    let (least, most) = (*figures.first()?, *figures.last()?);
    let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
    let wire = |ms: u64| Some(convert::duration(Duration::from_millis(ms)));
    Some(v1::Spread {
        least: wire(least),
        median: wire(low.midpoint(high)),
        most: wire(most),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).expect("in range")
    }

    fn worked(phase: PhaseName, action: Action, from: i64, to: i64) -> Worked {
        Worked {
            phase,
            action,
            from: at(from),
            to: at(to),
        }
    }

    fn shape(runbook: &str, schema_changes: bool, hosts: u32) -> Shape {
        Shape {
            runbook: runbook.to_owned(),
            schema_changes,
            from_backup: false,
            quiesces: schema_changes,
            hosts,
        }
    }

    fn summary(state: SummaryState, shape: Shape, total_ms: u64) -> Summary {
        let timing = Timing {
            downtime_ms: shape.quiesces.then_some(total_ms / 10),
            shape,
            total_ms,
            phases: Vec::new(),
        };
        let mut summary: Summary = serde_json::from_value(serde_json::json!({
            "id": "r", "release": "v1", "runbook": "default", "state": "verified", "blocked": false, "phase": "finish",
            "started_by": "ana", "reason": "", "incident": "", "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:01:00Z", "trace_id": "", "steps_total": 1, "steps_done": 1, "problem": null,
            "failed_hosts": [],
        }))
        .expect("a summary from before there were timings");
        assert_eq!(summary.timing, None);
        summary.state = state;
        summary.timing = Some(timing);
        summary
    }

    #[test]
    fn users_are_away_from_the_first_drain_until_the_proxies_have_them_back() {
        let history = [
            worked(PhaseName::Stage, Action::Stage, 0, 9_000),
            worked(PhaseName::Quiesce, Action::Drain, 10_000, 10_200),
            worked(PhaseName::Quiesce, Action::Stop, 10_200, 11_000),
            worked(PhaseName::Database, Action::Switch, 11_000, 14_000),
            // Somebody paused it here, for a minute.
            worked(PhaseName::App, Action::Switch, 74_000, 75_000),
            worked(PhaseName::App, Action::Start, 75_000, 76_000),
            worked(PhaseName::Proxy, Action::Switch, 76_000, 76_100),
            worked(PhaseName::Proxy, Action::Resume, 76_100, 76_300),
            worked(PhaseName::Verify, Action::Verify, 76_300, 77_000),
        ];
        assert_eq!(downtime(&history), Some(4_000 + 2_300));
        assert_eq!(at_work(history.iter().map(|w| (w.from, w.to))), 9_000 + 4_000 + 3_000);
        // Without a proxy the applications have them back.
        assert_eq!(downtime(&history[..6]), Some(4_000 + 2_000));
        assert_eq!(downtime(&history[..1]), None);
    }

    #[test]
    fn only_what_is_like_it_counts() {
        use SummaryState::{Undone, Verified};
        let history = [
            summary(Verified, shape("default", true, 4), 60_000),
            summary(Undone, shape("default", true, 4), 1),
            summary(Verified, shape("emergency", true, 4), 2),
            summary(Verified, shape("default", false, 4), 3),
            summary(Verified, shape("default", true, 9), 4),
            summary(Verified, shape("default", true, 2), 40_000),
            summary(Verified, shape("default", true, 8), 90_000),
            summary(Verified, shape("default", true, 4), 70_000),
        ];
        let estimate = of_history(&shape("default", true, 4), &history).expect("four of them");
        let seconds = |spread: Option<v1::Spread>| {
            let spread = spread.expect("a spread");
            [spread.least, spread.median, spread.most].map(|d| d.expect("a duration").seconds)
        };
        assert_eq!(estimate.samples, 4);
        assert_eq!(seconds(estimate.total), [40, 65, 90]);
        assert_eq!(seconds(estimate.downtime), [4, 6, 9]);
        let rolling = of_history(&shape("default", false, 4), &history).expect("one of them");
        assert_eq!((rolling.samples, rolling.downtime), (1, None));
        assert_eq!(of_history(&shape("app-only", false, 4), &history), None);
        // Nothing is switched anywhere: nothing to wait for.
        assert_eq!(of_history(&shape("default", true, 0), &history), None);
    }
}
