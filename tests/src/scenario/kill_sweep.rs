//! One fleet swings from v3.0.0 to v2.9.0 and back. In every round the coordinator or an agent is killed with -9 when
//! the operator sees a step of the round's phase begin, and started again. Every round ends verified, with exit code 0,
//! with the facts of its release, and no application was started or stopped twice.
//!
//! 16 rounds go through all phases with both victims; from the 17th on each phase is met in the other direction.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::ctl::{Answer, rollback_to};
use crate::facts::Facts;
use crate::fleet::{Fleet, HOSTS};
use crate::zekka::Version;

const ROUNDS: usize = 8;

const DEALS: u64 = 1_000;

/// Until the step is seen to begin.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// A step at whose beginning somebody is killed.
#[derive(Clone, Copy, Debug)]
struct Point {
    phase: &'static str,
    host: &'static str,
    component: &'static str,
    action: &'static str,
}

const fn point(phase: &'static str, host: &'static str, component: &'static str, action: &'static str) -> Point {
    Point {
        phase,
        host,
        component,
        action,
    }
}

const POINTS: [Point; 8] = [
    point("preflight", "app-1", "api", "prepare"),
    point("stage", "db-1", "db", "stage"),
    point("protect", "db-1", "db", "snapshot"),
    point("quiesce", "app-1", "api", "stop"),
    point("database", "db-1", "db", "switch"),
    point("app", "app-2", "api", "start"),
    point("proxy", "proxy-1", "proxy", "switch"),
    point("verify", "app-1", "api", "verify"),
];

/// Point, and whether it is the coordinator that is killed.
fn of_round(round: usize) -> (Point, bool) {
    let all = POINTS.len();
    (
        POINTS[(round + round / (2 * all)) % all],
        (round + round / all).is_multiple_of(2),
    )
}

impl Point {
    /// Is this rollbackctl's line about the step's beginning? `time  phase  host/component  action …`
    fn begins_in(&self, line: &str) -> bool {
        let words: Vec<&str> = line.split_whitespace().skip(1).take(4).collect();
        let target = format!("{}/{}", self.host, self.component);
        words == [self.phase, &target, self.action, "…"]
    }
}

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    on_fleet(Fleet::builder().rows(DEALS), options, async |fleet| {
        fleet.deploy_both().await?;
        // What each release was like when it was first seen.
        let begun = comparable(expect_running(fleet, Version::V3_0_0)?);
        let mut expected = BTreeMap::from([(Version::V3_0_0, begun)]);
        let (mut verified, mut duplicates, mut kills) = (0, 0, Vec::new());
        for round in 0..rounds {
            let (point, coordinator) = of_round(round);
            let killed = if coordinator { "coordinator" } else { point.host };
            let (from, to) = if round.is_multiple_of(2) {
                (Version::V3_0_0, Version::V2_9_0)
            } else {
                (Version::V2_9_0, Version::V3_0_0)
            };
            let what = format!(
                "round {} to {}: {killed} killed at {} of {}",
                round + 1,
                to.name(),
                point.action,
                point.phase
            );
            options.say(&what);
            let marks = Marks::set(fleet)?;
            let answer = swing(fleet, to, point, coordinator)
                .await
                .with_context(|| what.clone())?;
            let result = answer.json()?;
            verified += usize::from(result["state"] == "verified");
            duplicates += marks.duplicates(fleet)?;
            marks.expect_switched(fleet, from, to).with_context(|| what.clone())?;
            let facts = expect_running(fleet, to).with_context(|| what.clone())?;
            same_as_ever(&mut expected, to, facts).with_context(|| what.clone())?;
            kills.push(json!({
                "phase": point.phase, "killed": killed, "to": to.name(), "ms": result["ms"],
            }));
        }
        ensure!(verified == rounds, "{verified} of {rounds} rounds were verified");
        ensure!(duplicates == 0, "{duplicates} effects happened twice");
        Ok(found(json!({
            "rounds": rounds, "verified": verified, "duplicate_effects": duplicates, "kills": Value::Array(kills),
        })))
    })
    .await
}

async fn swing(fleet: &mut Fleet, to: Version, point: Point, coordinator: bool) -> Result<Answer> {
    let mut running = fleet.ctl.start(&rollback_to(to.name()), false)?;
    let what = format!("{} of {}/{} begins", point.action, point.host, point.component);
    running
        .until_line(&what, SEEN_WITHIN, |line| point.begins_in(line))
        .await?;
    if coordinator {
        fleet.coordinator.kill()?;
        fleet.coordinator.run().await?;
    } else {
        fleet.agent(point.host)?.kill()?;
        fleet.agent(point.host)?.run().await?;
    }
    let answer = running.answer().await?.expect_code(0)?;
    // The next rollback is planned from what all agents say.
    fleet.wait_connected(&HOSTS).await?;
    Ok(answer)
}

/// A release is the same whenever it is reached; what was not seen before is remembered.
fn same_as_ever(expected: &mut BTreeMap<Version, Facts>, version: Version, facts: Facts) -> Result<()> {
    let facts = comparable(facts);
    let Some(before) = expected.get(&version) else {
        expected.insert(version, facts);
        return Ok(());
    };
    expect_nothing(
        &format!("{} is not what it was", version.name()),
        &facts.changes_since(before, false),
    )
}

/// Without what rollbacks keep, and without when a migration was applied.
fn comparable(mut facts: Facts) -> Facts {
    facts.kept_schemas.clear();
    facts.data = facts.data.of_the_application();
    facts
}
