//! As `retry-failed-hosts`, but app-2 cannot be mended now: it is left out, with a reason. The rollback is partial and
//! names the host. Later `rollback retry` of the ended one starts another, which reaches app-2 and touches nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Apps, FIRST_OPERATOR, OLD, acts, ended, standstill, start, steer};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

pub const HOSTS: [&str; 3] = ["app-1", "app-2", "app-3"];

/// A host that never gets healthy is known for it soon.
pub const HEALTHY_WITHIN: &str = "3s";

const WHY: &str = "its disk is being replaced";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

/// A rollback in which app-1 and app-3 are done and app-2 has failed. It waits for a person.
pub async fn paused_by_app_2(control: &Control, apps: &Apps) -> Result<String> {
    apps.host("app-2")?.set_fault(OLD, true, Duration::ZERO)?;
    let id = start(&control.ctl, &["--to", OLD.name(), "--on-failure", "pause"]).await?;
    let paused = standstill(&control.ctl, &id, 0).await?;
    ensure!(
        paused["by"].as_str().unwrap_or_default().is_empty()
            && paused["failed_hosts"] == json!(["app-2"])
            && paused["problem"]["code"] == "RB0500",
        "nobody paused it but the failure of app-2: {paused}"
    );
    for host in ["app-1", "app-3"] {
        apps.expect(host, OLD)?;
    }
    let failed = apps.facts()?.remove("app-2").context("app-2 has the application")?;
    ensure!(!failed.healthy, "app-2 has not failed: {failed:?}");
    Ok(id)
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed_within(control, &HOSTS, HEALTHY_WITHIN).await?;
    let id = paused_by_app_2(control, &apps).await?;
    let unexplained = control.ctl.run(&["rollback", "skip", &id, "--host", "app-2"]).await?;
    ensure!(
        unexplained.code == 1,
        "whoever leaves a host out says why: {unexplained}"
    );

    options.say("app-2 has failed, and is left out …");
    steer(&control.ctl, "skip", &id, &["--host", "app-2", "--reason", WHY]).await?;
    let partial = ended(&control.ctl, &id, 4).await?;
    ensure!(
        partial["state"] == "partial" && names(&partial, "failed_hosts") == ["app-2"],
        "it is partial, without app-2: {partial}"
    );
    let acts = acts(control, &id).await?;
    ensure!(
        acts == [format!("{FIRST_OPERATOR} skip: {WHY}")],
        "the journal's acts are {acts:?}"
    );

    options.say("app-2 is mended. What was not reached, again …");
    apps.host("app-2")?.clear_faults()?;
    let before = apps.facts()?;
    let retry = [
        "rollback",
        "retry",
        &id,
        "--reason",
        "app-2 is back",
        "--yes",
        "-o",
        "json",
    ];
    let again = control.ctl.run(&retry).await?.expect_code(0)?.json()?;
    let second = again["rollback_id"].as_str().context("the answer names the rollback")?;
    ensure!(second != id, "what has ended does not begin again: {again}");
    apps.expect_all(OLD)?;
    for host in ["app-1", "app-3"] {
        apps.expect_untouched(host, &before)?;
    }
    Ok(found(json!({
        "states": [partial["state"], again["state"]],
        "left_out": partial["failed_hosts"],
        "acts": acts,
    })))
}

fn names<'a>(result: &'a Value, key: &str) -> Vec<&'a str> {
    result[key]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}
