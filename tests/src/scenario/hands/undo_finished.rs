//! The rollback was verified, and was the mistake: `rollback undo` takes every host to what it was before, by a rollback of
//! its own, with a plan, exit code and journal of its own. A second undo of the same one is refused or has nothing to do;
//! the first rollback stays in the list as what it was.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Apps, NEW, OLD, roll_back};
use crate::control::Control;
use crate::facts::AppFacts;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let before = apps.expect_all(NEW)?;
    let first = roll_back(&control.ctl, &["--to", OLD.name()])
        .await?
        .expect_code(0)?
        .json()?;
    let id = first["rollback_id"].as_str().context("the answer names the rollback")?;
    apps.expect_all(OLD)?;

    options.say("v2.9.0 runs, and it was not v3.0.0's fault. Undone …");
    let undo = [
        "rollback",
        "undo",
        id,
        "--reason",
        "the supplier was down",
        "--yes",
        "-o",
        "json",
    ];
    let second = control.ctl.run(&undo).await?.expect_code(0)?.json()?;
    let after = apps.expect_all(NEW)?;
    for (host, was) in before {
        let is = after.get(&host).cloned();
        let without_pid = |facts: AppFacts| AppFacts { pid: None, ..facts };
        ensure!(
            is.clone().map(without_pid) == Some(without_pid(was.clone())),
            "{host} was {was:?}, and now it is {is:?}"
        );
    }
    ensure!(
        second["state"] == "verified" && second["undo_of"] == id && second["rollback_id"] != id,
        "it is a rollback of its own: {second}"
    );
    let list = ["rollback", "list", "-o", "json"];
    let list = control.ctl.run(&list).await?.expect_code(0)?.json()?;
    let rollbacks = list["rollbacks"].as_array().context("the list of rollbacks")?;
    let states: Vec<&Value> = rollbacks.iter().map(|rollback| &rollback["state"]).collect();
    ensure!(states == ["verified", "verified"], "both have ended: {list}");
    Ok(found(json!({
        "states": states,
        "release": second["release"],
        "rollback_ms": first["ms"],
        "undo_ms": second["ms"],
    })))
}
