//! A runbook that wants a second person. The rollback is started, its hosts are taken, and nothing happens: whoever
//! started it cannot approve of it, and nobody can approve of another plan than this one, nor of this one while the fleet
//! is not where it was made. A second operator can, and then it runs. Before that it is told with a second operator who
//! does not come in time, and a coordinator that is killed while it waits: it ends blocked, and nothing was touched.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ground::{
    Apps, FIRST_OPERATOR, NEW, OLD, acts, apply_runbook, ended, expect_refused, roll_back, start, steer,
};
use crate::control::Control;
use crate::deployed::deploy;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

const PATIENT: &str = "four-eyes";
const IMPATIENT: &str = "four-eyes-at-once";

const WHY: &str = "read it with care";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let before = apps.expect_all(NEW)?;
    for (name, within) in [(PATIENT, "10m"), (IMPATIENT, "2s")] {
        apply_runbook(control, name, |runbook| {
            let rule = [("second_person", "always"), ("approve_within", within)];
            let rule = rule.map(|(key, value)| (key.to_owned(), value.into()));
            runbook.insert("consent".to_owned(), toml::Table::from_iter(rule).into());
        })
        .await?;
    }
    let second = control.operator("second")?;

    options.say("Nobody comes in time. The coordinator is killed with -9 meanwhile …");
    let late = start(&control.ctl, &["--to", OLD.name(), "--runbook", IMPATIENT]).await?;
    control.coordinator.kill()?;
    control.coordinator.run().await?;
    let late = ended(&control.ctl, &late, 3).await?;
    control.wait_connected(&["app-1", "app-2"]).await?;
    ensure!(
        late["state"] == "undone" && late["blocked"] == true && late["problem"]["code"] == "RB0212",
        "it is blocked, because nobody approved of it: {late}"
    );
    apps.expect_all_untouched(&before)?;

    options.say("It is started again, and waits for a second operator, who is to know that its target is held …");
    let hold = ["fleet", "hold", OLD.name(), "--reason", "somebody doubts it"];
    control.ctl.run(&hold).await?.expect_code(0)?;
    let id = start(&control.ctl, &["--to", OLD.name(), "--runbook", PATIENT]).await?;
    let report = control.ctl.show(&id).await?;
    let told = report["findings"].as_array().into_iter().flatten();
    ensure!(
        told.filter(|finding| finding["code"] == "RB0209").count() == 1,
        "who approves is told of the hold: {report}"
    );
    let approval = &report["approval"];
    let digest = approval["plan_digest"].as_str().context("what is to be approved of")?;
    ensure!(
        approval["approved_by"].as_str().unwrap_or_default().is_empty()
            && report["plan"]["digest"] == digest
            && report["state"] == "running",
        "it waits for an approval: {report}"
    );
    let other = format!("sha256:{}", "0".repeat(64));
    for (ctl, looked_at, words) in [
        (&control.ctl, digest, FIRST_OPERATOR),
        (&second, other.as_str(), digest),
    ] {
        let args = approve(&id, looked_at);
        expect_refused(ctl, &args, "RB0211", &[words]).await?;
    }
    apps.expect_all_untouched(&before)?;
    // What was looked at is not what would happen any more.
    deploy(apps.app("app-2")?, Version::V2_9_1).await?;
    expect_refused(&second, &approve(&id, digest), "RB0206", &["app-2"]).await?;
    deploy(apps.app("app-2")?, NEW).await?;
    let taken = roll_back(&second, &["--to", OLD.name()]).await?.expect_code(6)?;
    ensure!(taken.text().contains(&id), "its hosts are taken meanwhile: {taken}");

    steer(&second, "approve", &id, &["--yes", "--digest", digest, "--reason", WHY]).await?;
    let result = ended(&control.ctl, &id, 0).await?;
    apps.expect_all(OLD)?;
    let acts = acts(control, &id).await?;
    ensure!(
        acts == [format!("second approve: {WHY}")],
        "the journal's acts are {acts:?}"
    );
    let report = control.ctl.show(&id).await?;
    ensure!(
        report["approval"]["approved_by"] == "second" && report["started_by"] == FIRST_OPERATOR,
        "both are named: {report}"
    );
    Ok(found(json!({
        "states": [late["state"], result["state"]],
        "exit_code_when_nobody_came": 3,
        "acts": acts,
    })))
}

fn approve<'a>(id: &'a str, digest: &'a str) -> [&'a str; 8] {
    ["rollback", "approve", id, "--yes", "--digest", digest, "--reason", WHY]
}
