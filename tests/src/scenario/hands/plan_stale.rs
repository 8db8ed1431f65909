//! A plan is saved to a file and agreed to. Before it is used, somebody deploys v2.9.1 on app-2 by hand: it is refused, with
//! the component that moved, and nothing is touched. So is a copy of the file in which one host was exchanged for another.
//! When app-2 has v3.0.0 again, the file starts exactly the plan that was looked at; and a second time it is stale, by its own doing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Apps, NEW, OLD, expect_refused, shown};
use crate::control::Control;
use crate::deployed::deploy;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let (file, changed) = (control.dir().join("back.plan"), control.dir().join("changed.plan"));
    let plan = [
        "fleet",
        "plan",
        "--to",
        OLD.name(),
        "--out",
        shown(&file)?,
        "-o",
        "json",
    ];
    let plan = control.ctl.run(&plan).await?.expect_code(2)?.json()?;
    let digest = plan["plan"]["digest"].as_str().context("the plan has a digest")?;
    ensure!(
        std::fs::metadata(&file).context("look at the saved plan")?.len() > 0,
        "the plan was not saved"
    );

    options.say("The plan is saved. Somebody deploys v2.9.1 on app-2 by hand …");
    deploy(apps.app("app-2")?, Version::V2_9_1).await?;
    let before = apps.facts()?;
    let use_it = ["fleet", "rollback", "--plan", shown(&file)?, "--yes", "-o", "json"];
    let stale = expect_refused(&control.ctl, &use_it, "RB0206", &["app-2"]).await?;
    let stale_code = stale.expect_code(3)?.code;
    apps.expect_all_untouched(&before)?;

    options.say("app-2 has v3.0.0 again. A copy of the plan with another host in it, and then the plan itself …");
    deploy(apps.app("app-2")?, NEW).await?;
    let before = apps.expect_all(NEW)?;
    forge(&file, &changed)?;
    let forged = ["fleet", "rollback", "--plan", shown(&changed)?, "--yes", "-o", "json"];
    let forged = expect_refused(&control.ctl, &forged, "RB0", &[]).await?;
    ensure!(matches!(forged.code, 1 | 3), "a changed plan is refused: {forged}");
    apps.expect_all_untouched(&before)?;
    let list = ["rollback", "list", "-o", "json"];
    let list = control.ctl.run(&list).await?.expect_code(0)?.json()?;
    ensure!(list["rollbacks"] == json!([]), "what was refused has begun: {list}");

    let done = control.ctl.run(&use_it).await?.expect_code(0)?;
    apps.expect_all(OLD)?;
    let report = control.ctl.report_of(&done.json()?).await?;
    ensure!(
        report["plan"]["digest"] == digest,
        "{digest} was agreed to, and what ran is {}",
        report["plan"]["digest"]
    );
    let after = apps.facts()?;
    expect_refused(&control.ctl, &use_it, "RB0206", &["app-1"])
        .await?
        .expect_code(3)?;
    apps.expect_all_untouched(&after)?;
    Ok(found(json!({
        "exit_codes": { "stale": stale_code, "changed": forged.code, "as_agreed": done.code, "again": 3 },
        "plan_digest": digest,
        "rollback_ms": report["ms"],
    })))
}

/// What the coordinator sealed, for app-1 where it was for app-2.
fn forge(file: &Path, forged: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).context("read the saved plan")?;
    let mut plan: Value = serde_json::from_str(&text).context("the saved plan is JSON")?;
    let sealed = plan["sealed"].as_str().context("the plan is sealed")?;
    ensure!(sealed.contains("app-2"), "what is sealed names the hosts: {sealed}");
    plan["sealed"] = sealed.replacen("app-2", "app-1", 1).into();
    std::fs::write(forged, plan.to_string()).context("save the forged plan")
}
