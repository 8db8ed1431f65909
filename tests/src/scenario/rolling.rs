//! v2.9.1 and v2.9.0 have the same schema, so nothing has to stand still: the hosts go back in batches, "1" and then the
//! rest, and a batch begins only when the one before it is healthy. A user never stops asking meanwhile, and no request
//! fails: a host is taken out of nginx, which has its default settings, before it stops.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::fleet::Fleet;
use crate::prober::Prober;
use crate::wait;
use crate::zekka::{AppHost, Version};

/// Until a host can be healthy: long enough that a second batch which does not wait for it shows.
const SLOW_START: Duration = Duration::from_secs(1);

const LONGEST_DOWNTIME: Duration = Duration::from_millis(500);

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    for version in [Version::V2_9_0, Version::V2_9_1] {
        fleet.deploy(version).await?;
        fleet.ctl.record(version.name()).await?.expect_code(0)?;
    }
    let before = expect_running(fleet, Version::V2_9_1)?;
    for host in &fleet.zekka.hosts {
        host.set_fault(Version::V2_9_0, false, SLOW_START)?;
    }
    // It ends with 2: there is something to do.
    let plan = fleet
        .ctl
        .run(&["fleet", "plan", "--to", "v2.9.0", "-o", "json"])
        .await?;
    expect_rolling(&plan.expect_code(2)?.json()?["plan"])?;

    let marks = Marks::set(fleet)?;
    let prober = Prober::start(fleet.nginx.url("/api/version"))?;
    users_are_served(fleet).await?;
    options.say("Rolling back while users ask …");
    let answer = fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    users_are_served(fleet).await?;
    let samples = prober.stop().await?;
    let after = expect_running(fleet, Version::V2_9_0)?;
    marks.expect_switched(fleet, Version::V2_9_1, Version::V2_9_0)?;
    ensure!(
        after.data == before.data && after.schema_sha256 == before.schema_sha256,
        "the database was touched"
    );

    let (first, second) = (fleet.app("app-1")?, fleet.app("app-2")?);
    let (begun, next) = (last(first, "start", "v2.9.0")?, last(second, "stop", "v2.9.1")?);
    let waited = Duration::try_from(next.duration_since(begun)).unwrap_or_default();
    ensure!(
        waited >= SLOW_START,
        "app-2 was stopped {waited:?} after app-1 began to start, which takes {SLOW_START:?}"
    );
    let downtime = samples.downtime().context("users got answers")?;
    ensure!(
        samples.failed() == 0,
        "{} of {} requests failed",
        samples.failed(),
        samples.len()
    );
    ensure!(
        downtime.longest <= LONGEST_DOWNTIME,
        "nobody was served for {:?}",
        downtime.longest
    );
    Ok(found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "requests": samples.len(),
        "failed_requests": samples.failed(),
        "downtime_ms": downtime.longest.as_millis(),
        "second_batch_after_ms": waited.as_millis(),
    })))
}

/// Apps go in batches of one and the rest, each one out of nginx meanwhile, and nothing stands still for a database.
fn expect_rolling(plan: &Value) -> Result<()> {
    let phases = plan["phases"].as_array().context("the plan has phases")?;
    let names: Vec<&str> = phases.iter().filter_map(|p| p["name"].as_str()).collect();
    ensure!(
        !names.contains(&"quiesce") && !names.contains(&"database"),
        "the plan has the phases {names:?}"
    );
    let app = phases
        .iter()
        .find(|p| p["name"] == "app")
        .context("the plan has an app phase")?;
    let steps_of = |batch: &Value| {
        let steps = batch["lanes"].as_array().into_iter().flatten();
        let steps = steps.flat_map(|lane| lane.as_array().into_iter().flatten());
        let shown = |step: &Value| match step["backend"].as_str() {
            Some(backend) => format!("{} {backend}", step["action"].as_str().unwrap_or_default()),
            None => step["host"].as_str().unwrap_or_default().to_owned(),
        };
        let mut shown: Vec<String> = steps.map(shown).collect();
        shown.dedup();
        shown
    };
    let batches: Vec<Vec<String>> = app["batches"]
        .as_array()
        .context("the app phase has batches")?
        .iter()
        .map(steps_of)
        .collect();
    let wanted = ["app-1", "app-2"].map(|host| {
        let backend = format!("{host}/api");
        vec![format!("drain {backend}"), host.to_owned(), format!("resume {backend}")]
    });
    ensure!(batches == wanted, "the batches of the app phase are {batches:?}");
    Ok(())
}

async fn users_are_served(fleet: &Fleet) -> Result<()> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    let url = fleet.nginx.url("/api/version");
    let mut left = ANSWERED;
    wait::until_true("users are served", Duration::from_secs(30), async || {
        let answered = client.get(&url).send().await.is_ok_and(|a| a.status().is_success());
        left = left.saturating_sub(usize::from(answered));
        left == 0
    })
    .await
}

/// When the application last noted this.
fn last(host: &AppHost, event: &str, version: &str) -> Result<Timestamp> {
    let effects = host.timed_effects()?;
    let found = effects.iter().rev().find(|(_, e, v)| e == event && v == version);
    found
        .map(|(at, _, _)| *at)
        .with_context(|| format!("{} noted no {event} of {version}", host.name))
}
