//! app-2 is away when the fleet goes back: the plan names it, the rollback is partial and names it, too. It comes back
//! with v3.0.0, and `fleet status` shows that as drift. `fleet converge` brings it to v2.9.0 and touches nothing else. Told
//! once more with a runbook that says `converge = "automatic"`: there, nobody types anything.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Apps, NEW, OLD, apply_runbook, roll_back};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::wait;

const RUNBOOK: &str = "without-who-is-away";
const AUTOMATIC: &str = "and-catch-up";

const SOON: Duration = Duration::from_secs(30);

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    for (name, converge) in [(RUNBOOK, "manual"), (AUTOMATIC, "automatic")] {
        apply_runbook(control, name, |runbook| {
            runbook.insert("unreachable".to_owned(), "skip_all".into());
            runbook.insert("converge".to_owned(), converge.into());
        })
        .await?;
    }

    control.agent("app-2")?.stop().await?;
    options.say("app-2 is away. Rolling back without it …");
    let before = apps.expect_all(NEW)?;
    let plan = ["fleet", "plan", "--to", OLD.name(), "--runbook", RUNBOOK, "-o", "json"];
    let plan = control.ctl.run(&plan).await?.expect_code(2)?.json()?;
    ensure!(
        plan["plan"]["excused"][0]["host"] == "app-2",
        "the plan names who is left out: {plan}"
    );
    let partial = without_app_2(control, OLD.name(), RUNBOOK).await?;
    apps.expect("app-1", OLD)?;
    apps.expect_untouched("app-2", &before)?;

    control.agent("app-2")?.run().await?;
    control.wait_connected(&["app-2"]).await?;
    let drift = drift(control).await?;
    let what: Vec<&str> = drift.iter().filter_map(|drift| drift["component"].as_str()).collect();
    ensure!(
        what == ["api", "env"]
            && drift.iter().all(|drift| {
                drift["host"] == "app-2"
                    && drift["expected"]["version"] != drift["observed"]["version"]
                    && drift["release"] == OLD.name()
                    && drift["missed"] == true
                    && drift["rollback_id"] == partial["rollback_id"]
            }),
        "app-2 is not where the rollback wanted it: {drift:?}"
    );
    apps.expect_untouched("app-2", &before)?;
    options.say("app-2 is back, and drifts. Converging …");
    let before = apps.facts()?;
    let converge = ["fleet", "converge", "--yes", "-o", "json"];
    let converged = control.ctl.run(&converge).await?.expect_code(0)?.json()?;
    apps.expect("app-2", OLD)?;
    apps.expect_untouched("app-1", &before)?;
    expect_no_drift(control).await?;

    control.agent("app-2")?.stop().await?;
    options.say("app-2 is away again. Forward without it, by a runbook that converges by itself …");
    without_app_2(control, NEW.name(), AUTOMATIC).await?;
    apps.expect("app-1", NEW)?;
    apps.expect("app-2", OLD)?;
    let before = apps.facts()?;
    control.agent("app-2")?.run().await?;
    apps.wait_running("app-2", NEW).await?;
    apps.expect_untouched("app-1", &before)?;
    let ended = wait::until("the rollback that nobody asked for has ended", SOON, async || {
        let newest = control.ctl.show("latest").await.ok()?;
        (newest["state"] != "running").then_some(newest)
    })
    .await?;
    ensure!(ended["state"] == "verified", "it has brought app-2 there: {ended}");
    expect_no_drift(control).await?;
    Ok(found(json!({
        "states": [partial["state"], converged["state"], ended["state"]],
        "left_out": partial["failed_hosts"],
        "drift": what,
        "converged_by_hand_ms": converged["ms"],
        "converged_by_itself_ms": ended["ms"],
        "started_by": ended["started_by"],
    })))
}

/// A rollback that is partial, and says that it is app-2 which it is without.
async fn without_app_2(control: &Control, release: &str, runbook: &str) -> Result<Value> {
    let args = ["--to", release, "--runbook", runbook];
    let answer = roll_back(&control.ctl, &args).await?.expect_code(4)?;
    let result = answer.json()?;
    ensure!(
        result["state"] == "partial" && result["failed_hosts"] == json!(["app-2"]),
        "it is partial, without app-2: {answer}"
    );
    Ok(result)
}

async fn drift(control: &Control) -> Result<Vec<Value>> {
    let status = control.ctl.run(&["fleet", "status", "-o", "json"]).await?;
    let status = status.expect_code(0)?.json()?;
    let mut drift = status["drift"]
        .as_array()
        .cloned()
        .context("the status knows of drift")?;
    drift.sort_by_key(|drift| drift["component"].as_str().map(str::to_owned));
    Ok(drift)
}

async fn expect_no_drift(control: &Control) -> Result<()> {
    let drift = drift(control).await?;
    ensure!(drift.is_empty(), "everything is where it shall be, but for {drift:?}");
    Ok(())
}
