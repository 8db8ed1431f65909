//! v3.0.0 was rolled back from, and a pipeline that knows nothing of it deploys it once more. The gate was closed for it;
//! it cannot be recorded, under its own name or as "v3.0.0-again", because that is the same content. Everything else may
//! pass. Somebody gives it free with a reason, and then it may.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ground::{Apps, FIRST_OPERATOR, NEW, OLD, ended, expect_refused, start};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

const WHY: &str = "error rate 12 %";
const AGAIN: &str = "v3.0.0-again";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1"]).await?;
    gate(control, NEW.name(), 0).await?;
    apps.host("app-1")?.hold_start(OLD)?;
    let id = start(&control.ctl, &["--to", OLD.name(), "--reason", WHY]).await?;
    apps.wait_started("app-1", OLD, 2).await?;
    // While the fleet goes back, nothing is deployed.
    let during = gate(control, "v2.9.1", 3).await?;
    ensure!(during.contains(&id), "the gate names the rollback that runs: {during}");
    apps.host("app-1")?.clear_faults()?;
    ended(&control.ctl, &id, 0).await?;
    apps.expect_all(OLD)?;

    options.say("v2.9.0 runs again. A pipeline wants to deploy v3.0.0, asks first, and then does it all the same …");
    let closed = gate(control, NEW.name(), 3).await?;
    for word in ["RB0209", WHY, &id, "unhold"] {
        ensure!(closed.contains(word), "the gate does not say {word:?}: {closed}");
    }
    gate(control, OLD.name(), 0).await?;
    gate(control, "v2.9.1", 0).await?;
    let status = ["fleet", "status", "-o", "json"];
    let status = control.ctl.run(&status).await?.expect_code(0)?.json()?;
    let hold = &status["holds"][0];
    ensure!(
        status["holds"].as_array().is_some_and(|holds| holds.len() == 1)
            && hold["release"] == NEW.name()
            && hold["by"] == FIRST_OPERATOR
            && hold["rollback_id"] == id.as_str(),
        "v3.0.0 alone is held, by the rollback: {status}"
    );

    apps.deploy(NEW).await?;
    let mut refused = Vec::new();
    for name in [NEW.name(), AGAIN] {
        let record = ["release", "record", name];
        let answer = expect_refused(&control.ctl, &record, "RB0209", &[NEW.name(), WHY]).await?;
        refused.push(answer.expect_code(3)?.code);
    }
    let known = releases(control).await?;
    ensure!(known == [NEW.name(), OLD.name()], "these are recorded: {known:?}");

    options.say("It is refused. v2.9.1 is not held, and v3.0.0 is given free …");
    apps.deploy(Version::V2_9_1).await?;
    control.ctl.record("v2.9.1").await?.expect_code(0)?;
    let second = control.operator("second")?;
    let bare = second.run(&["fleet", "unhold", NEW.name()]).await?;
    ensure!(bare.code == 1, "whoever gives a release free says why: {bare}");
    let unhold = ["fleet", "unhold", NEW.name(), "--reason", "the fault was in the proxy"];
    second.run(&unhold).await?.expect_code(0)?;
    gate(control, NEW.name(), 0).await?;
    apps.deploy(NEW).await?;
    control.ctl.record(AGAIN).await?.expect_code(0)?;

    // By hand, too.
    let hold = ["fleet", "hold", AGAIN, "--reason", "not on a Friday"];
    second.run(&hold).await?.expect_code(0)?;
    let by_hand = gate(control, AGAIN, 3).await?;
    ensure!(by_hand.contains("not on a Friday"), "the gate says why: {by_hand}");
    Ok(found(
        json!({ "gate": { "during": 3, "held": 3, "unheld": 0 }, "record_refused": refused }),
    ))
}

/// What the gate says of a release; it must end with this code.
async fn gate(control: &Control, release: &str, code: i32) -> Result<String> {
    let answer = control.ctl.run(&["fleet", "status", "--gate", release]).await?;
    Ok(answer.expect_code(code)?.text())
}

/// Names of all releases, the newest first.
async fn releases(control: &Control) -> Result<Vec<String>> {
    let list = control.ctl.run(&["release", "list", "-o", "json"]).await?;
    let list = list.expect_code(0)?.json()?;
    let all = list["releases"].as_array().context("the list of releases")?;
    Ok(all
        .iter()
        .filter_map(|release| release["name"].as_str())
        .map(str::to_owned)
        .collect())
}
