//! v2.9.0 is starting on app-1 when the operator, who has left with Ctrl-C, pauses it. What is in flight ends, and app-2
//! is not begun with. The coordinator is killed with -9, and comes back; or, of two, the other one takes over. Either way
//! the rollback stands still as before, and still says since when, by whom and why. Somebody else goes on with it, and it
//! is verified; every step took effect once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ground::{Apps, FIRST_OPERATOR, NEW, OLD, acts, ended, expect_refused, standstill, steer};
use crate::control::{Control, ControlOptions, StoreKind};
use crate::ctl::rollback_to;
use crate::scenario::deployments::{on_control, on_control_with};
use crate::scenario::{Found, Options, found};

const WHY_PAUSED: &str = "the error rate has gone down by itself";
const WHY_RESUMED: &str = "it has gone up again";

/// A change of leader shall not be waited for longer than it must.
const LEADERSHIP: [(&str, &str); 3] = [("ttl", "1200ms"), ("renew", "300ms"), ("step_down", "800ms")];

const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(20);

/// By the same coordinator, started again.
pub async fn restarted(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

/// By another one, which leads from then on.
pub async fn taken_over(options: Options) -> Result<Found> {
    let leadership = LEADERSHIP.map(|(key, value)| (key, value.to_owned()));
    let control = ControlOptions {
        store: StoreKind::Postgres,
        further_replicas: 1,
        leadership: leadership.into(),
        ..ControlOptions::default()
    };
    on_control_with(control, options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let second = control.operator("second")?;
    let before = apps.expect_all(NEW)?;
    apps.host("app-1")?.hold_start(OLD)?;
    let watching = control.ctl.start(&rollback_to(OLD.name()), false)?;
    apps.wait_started("app-1", OLD, 2).await?;
    watching.interrupt()?;
    let left = watching.answer().await?.expect_code(7)?;
    let id = left.json()?["rollback_id"].as_str().unwrap_or_default().to_owned();
    let way_back = format!("rollback watch {id}");
    ensure!(
        !id.is_empty() && left.text().contains(&way_back),
        "who leaves is told how to come back: {left}"
    );

    options.say("v2.9.0 is starting on app-1. The operator has left with Ctrl-C, and now pauses.");
    steer(&control.ctl, "pause", &id, &["--reason", WHY_PAUSED]).await?;
    let paused = standstill(&control.ctl, &id, 1).await?;
    ensure!(
        paused["by"] == FIRST_OPERATOR && paused["reason"] == WHY_PAUSED,
        "who paused and why: {paused}"
    );
    apps.host("app-1")?.clear_faults()?;
    standstill(&control.ctl, &id, 0).await?;
    apps.expect("app-1", OLD)?;
    apps.expect_not_begun("app-2", &before)?;

    options.say("app-1 is done, app-2 is not begun with: kill -9 of the coordinator.");
    let killed = control.leader().await.context("a coordinator leads")?;
    control.replica(&killed.name)?.kill()?;
    if control.further.is_empty() {
        control.coordinator.run().await?;
    }
    let leads = control.wait_leader_after(killed.epoch, TAKEN_OVER_WITHIN).await?;
    control.wait_connected(&["app-1", "app-2"]).await?;
    let still = standstill(&second, &id, 0).await?;
    for key in ["by", "reason", "since"] {
        ensure!(still[key] == paused[key], "{key} was {paused}, and is {still}");
    }
    apps.expect_not_begun("app-2", &before)?;
    let status = second.run(&["fleet", "status", "-o", "json"]).await?;
    let status = status.expect_code(0)?.json()?;
    ensure!(
        status["active"][0]["standstill"]["by"] == FIRST_OPERATOR && status["drift"] == json!([]),
        "what is on its way has not drifted, and the status says who stopped it: {status}"
    );
    ensure!(
        acts(control, &id).await? == [format!("{FIRST_OPERATOR} pause: {WHY_PAUSED}")],
        "a coordinator that comes back does nothing by itself"
    );

    options.say("A coordinator leads again, and the rollback stands still. Somebody else goes on with it …");
    steer(&second, "resume", &id, &["--reason", WHY_RESUMED]).await?;
    let result = ended(&control.ctl, &id, 0).await?;
    apps.expect_all(OLD)?;
    for host in ["app-1", "app-2"] {
        let starts = apps.starts(host, OLD)?;
        ensure!(
            starts == 2,
            "v2.9.0 was started {starts} times on {host}, with its deployment"
        );
    }
    let acts = acts(control, &id).await?;
    let wanted = [
        format!("{FIRST_OPERATOR} pause: {WHY_PAUSED}"),
        format!("second resume: {WHY_RESUMED}"),
    ];
    ensure!(acts == wanted, "the journal's acts are {acts:?}");
    // Too late for anything.
    let late = ["rollback", "pause", &id, "--reason", "too late"];
    expect_refused(&control.ctl, &late, "RB0210", &[]).await?;
    Ok(found(json!({
        "leaders": [killed.name, leads.name],
        "state": result["state"],
        "acts": acts,
        "rollback_ms": result["ms"],
    })))
}
