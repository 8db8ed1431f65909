//! Aborted between app-1, which is done, and app-2, which is not begun with. With `--undo` everything goes back: app-1 has
//! v3.0.0 again, and app-2 was never touched. With `--hold`, asked for while v2.9.0 is starting on app-1, that start ends
//! and nothing else happens. Both times the hosts are free again for whoever comes next.

use anyhow::{Result, ensure};
use serde_json::json;

use super::ground::{Apps, FIRST_OPERATOR, NEW, OLD, acts, ended, roll_back, standstill, start, steer};
use crate::control::Control;
use crate::facts::AppFacts;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

const WHY: &str = "it was the network all the time";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let before = apps.expect_all(NEW)?;

    let undone = begin(control, &apps, 2).await?;
    steer(&control.ctl, "pause", &undone, &["--reason", "what is that?"]).await?;
    apps.host("app-1")?.clear_faults()?;
    standstill(&control.ctl, &undone, 0).await?;
    let halfway = apps.facts()?;
    // Half of an abort is none.
    for args in [
        &["--yes", "--reason", WHY][..],
        &["--yes", "--undo"],
        &["--yes", "--undo", "--hold", "--reason", WHY],
    ] {
        let answer = control
            .ctl
            .run(&[&["rollback", "abort", &undone], args].concat())
            .await?;
        ensure!(
            answer.code == 1,
            "an abort wants one way to end, and a reason: {answer}"
        );
    }
    apps.expect_all_untouched(&halfway)?;
    options.say("app-1 has v2.9.0. Aborted: everything back …");
    steer(&control.ctl, "abort", &undone, &["--undo", "--reason", WHY, "--yes"]).await?;
    let first = ended(&control.ctl, &undone, 5).await?;
    ensure!(
        first["state"] == "undone" && first["problem"]["code"] == "RB0218" && first["blocked"] == false,
        "it is undone, because somebody wanted that: {first}"
    );
    apps.expect_untouched("app-2", &before)?;
    let (was, is) = (before.get("app-1").cloned(), apps.expect("app-1", NEW)?);
    let without_pid = |facts: AppFacts| AppFacts { pid: None, ..facts };
    ensure!(
        was.clone().map(without_pid) == Some(without_pid(is.clone())),
        "app-1 was {was:?}, and now it is {is:?}"
    );

    let before = apps.facts()?;
    let held = begin(control, &apps, 3).await?;
    options.say("v2.9.0 is starting on app-1. Aborted: as it is …");
    steer(&control.ctl, "abort", &held, &["--hold", "--reason", WHY, "--yes"]).await?;
    apps.host("app-1")?.clear_faults()?;
    let second = ended(&control.ctl, &held, 5).await?;
    ensure!(
        second["state"] == "held" && second["problem"]["code"] == "RB0218",
        "it is held, because somebody wanted that: {second}"
    );
    apps.expect("app-1", OLD)?;
    apps.expect_not_begun("app-2", &before)?;

    options.say("Nothing is locked: to v2.9.0 once more.");
    let third = roll_back(&control.ctl, &["--to", OLD.name()])
        .await?
        .expect_code(0)?
        .json()?;
    apps.expect_all(OLD)?;
    ensure!(
        apps.starts("app-1", OLD)? == 3,
        "app-1 had v2.9.0 already, and was started again"
    );
    let acts = [acts(control, &undone).await?, acts(control, &held).await?].concat();
    let wanted = [
        "pause: what is that?".to_owned(),
        format!("abort: {WHY}"),
        format!("abort: {WHY}"),
    ];
    let wanted = wanted.map(|act| format!("{FIRST_OPERATOR} {act}"));
    ensure!(acts == wanted, "the journal's acts are {acts:?}");
    Ok(found(json!({
        "states": [first["state"], second["state"], third["state"]],
        "problem": first["problem"]["code"],
        "acts": acts,
    })))
}

/// Starts a rollback, and waits until v2.9.0 is starting on app-1 for the nth time. It goes on starting.
async fn begin(control: &Control, apps: &Apps, nth: usize) -> Result<String> {
    apps.host("app-1")?.hold_start(OLD)?;
    let id = start(&control.ctl, &["--to", OLD.name()]).await?;
    apps.wait_started("app-1", OLD, nth).await?;
    Ok(id)
}
