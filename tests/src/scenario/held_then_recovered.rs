//! Twice a rollback is held for a person, with the application stopped on app-1 and users in maintenance. Both times the
//! cause is mended by hand, and the command that the message names brings users back: to v3.0.0, where nothing has moved
//! but a process is missing, and to v2.9.0, where the schema is at its target already.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::ctl::{Answer, rollback_to};
use crate::facts::curl;
use crate::fleet::Fleet;
use crate::zekka::Version;

/// Long enough for nginx to end inside the start of the application.
const SLOW_START: Duration = Duration::from_secs(3);

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy_both().await?;

        options.say("On app-1 neither v2.9.0 nor v3.0.0 will get healthy any more. Rolling back …");
        let sick = json!({ "v2.9.0": { "unhealthy": true }, "v3.0.0": { "unhealthy": true } });
        let faults = fleet.app("app-1")?.root.join("faults.json");
        std::fs::write(faults, sick.to_string()).context("write faults.json")?;
        let first = expect_held(fleet, &fleet.ctl.roll_back("v2.9.0").await?, "v2.9.0").await?;
        ensure!(
            fleet.app("app-1")?.pid().is_none() && fleet.app("app-2")?.pid().is_some(),
            "the application is to be stopped on app-1 alone"
        );
        options.say("HELD: app-1 is stopped, users get the maintenance answer. app-1 is mended: to v3.0.0 …");
        fleet.app("app-1")?.clear_faults()?;
        let back = recover(fleet, Version::V3_0_0, 0, 2).await?;

        for host in &fleet.zekka.hosts {
            host.set_fault(Version::V2_9_0, false, SLOW_START)?;
        }
        let marks = Marks::set(fleet)?;
        let running = fleet.ctl.start(&rollback_to("v2.9.0"), false)?;
        marks.wait_started(fleet, "app-1").await?;
        options.say("v2.9.0 is starting on app-1: nginx ends.");
        fleet.nginx.stop().await?;
        let answer = running.answer().await?;
        options.say("nginx is started again, and app-1's process is killed.");
        fleet.nginx.start().await?;
        fleet.app("app-1")?.end();
        let second = expect_held(fleet, &answer, "v2.9.0").await?;
        options.say("HELD: the schema is v2.9.0's, app-1 is stopped, users get the maintenance answer. To v2.9.0 …");
        let on = recover(fleet, Version::V2_9_0, 1, 2).await?;

        Ok(found(json!({
            "held": [first, second],
            "recovered": [back, on],
        })))
    })
    .await
}

/// The rollback was held, says how to go on, and nobody claims that all is well.
async fn expect_held(fleet: &Fleet, answer: &Answer, release: &str) -> Result<Value> {
    let result = answer.clone().expect_code(5)?.json()?;
    ensure!(result["state"] == "held", "it is to be held: {answer}");
    let remedy = result["problem"]["remedy"].as_str().unwrap_or_default();
    let command = format!("rollbackctl fleet rollback --to {release}");
    ensure!(remedy.contains(&command), "the remedy names the way on: {remedy}");

    let users = curl(&fleet.nginx.url("/api/version"))?;
    ensure!(users.status == 503, "users are to be in maintenance: {users:?}");
    let status = fleet.ctl.run(&["fleet", "status", "-o", "json"]).await?;
    let status = status.expect_code(0)?.json()?;
    ensure!(status["not_serving"] == 2, "app-1/api and proxy-1/proxy: {status}");
    let doctor = fleet.ctl.run(&["doctor"]).await?.expect_code(0)?;
    let id = result["rollback_id"].as_str().context("the answer has an id")?;
    let warned = |check: &str, text: &str| {
        let line = format!("warn  {check}");
        doctor.stdout.lines().any(|l| l.starts_with(&line) && l.contains(text))
    };
    ensure!(
        warned("last rollback", id) && warned("components", "app-1/api stopped, proxy-1/proxy drained"),
        "doctor warns: {doctor}"
    );
    Ok(result["problem"]["code"].clone())
}

/// Plans what is expected (so many components that change, and that are brought up), does it, and asks as users do.
async fn recover(fleet: &Fleet, version: Version, changes: u64, restores: u64) -> Result<Value> {
    let plan = ["fleet", "plan", "--to", version.name(), "-o", "json"];
    let plan = fleet.ctl.run(&plan).await?.expect_code(2)?.json()?;
    ensure!(
        plan["changes"] == changes && plan["restores"] == restores,
        "{changes} change and {restores} are brought up: {plan}"
    );
    let answer = fleet.ctl.roll_back(version.name()).await?.expect_code(0)?;
    let result = answer.json()?;
    ensure!(result["state"] == "verified", "it is to be verified: {answer}");
    let after = expect_running(fleet, version)?;
    let status = fleet.ctl.run(&["fleet", "status", "-o", "json"]).await?;
    let status = status.expect_code(0)?.json()?;
    ensure!(
        status["not_serving"] == 0 && status["release"] == version.name(),
        "all is well: {status}"
    );
    Ok(json!({ "release": version.name(), "served": after.served_site, "ms": result["ms"] }))
}
