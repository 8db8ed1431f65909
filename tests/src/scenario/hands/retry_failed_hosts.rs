//! With `--on-failure pause`, a host that fails stops the rollback and undoes nothing: v2.9.0 never gets healthy on app-2,
//! while app-3, in the same batch, is done. To go on as if nothing had been is refused. app-2 is mended and tried again,
//! it alone: app-1 and app-3 started v2.9.0 once.

use anyhow::{Result, ensure};
use serde_json::json;

use super::ground::{Apps, FIRST_OPERATOR, OLD, acts, ended, expect_refused, steer};
use super::skip_a_host::{HEALTHY_WITHIN, HOSTS, paused_by_app_2};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

const WHY: &str = "the disk of app-2 was full";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed_within(control, &HOSTS, HEALTHY_WITHIN).await?;
    let id = paused_by_app_2(control, &apps).await?;
    let resume = ["rollback", "resume", &id, "--reason", "hope"];
    expect_refused(&control.ctl, &resume, "RB0210", &["app-2", "retry"]).await?;
    let other = ["rollback", "retry", &id, "--host", "app-1", "--reason", WHY];
    expect_refused(&control.ctl, &other, "RB0210", &["app-1"]).await?;

    options.say("app-2 has failed, and is mended. Again …");
    apps.host("app-2")?.clear_faults()?;
    steer(&control.ctl, "retry", &id, &["--reason", WHY]).await?;
    let result = ended(&control.ctl, &id, 0).await?;
    apps.expect_all(OLD)?;
    // Once by the deployment, and then by the rollback.
    let starts = HOSTS.map(|host| apps.starts(host, OLD).unwrap_or_default());
    ensure!(starts == [2, 3, 2], "v2.9.0 was started {starts:?} times on {HOSTS:?}");
    let acts = acts(control, &id).await?;
    ensure!(
        acts == [format!("{FIRST_OPERATOR} retry: {WHY}")],
        "the journal's acts are {acts:?}"
    );
    let report = control.ctl.show(&id).await?;
    let steps = report["steps"].as_array().into_iter().flatten();
    let mut again: Vec<&str> = steps
        .filter(|step| step["attempt"].as_u64().is_some_and(|attempt| attempt > 1))
        .filter_map(|step| step["host"].as_str())
        .collect();
    again.dedup();
    ensure!(
        again == ["app-2"],
        "the report says that these were tried again: {again:?}"
    );
    Ok(found(
        json!({ "state": result["state"], "tried_again": again, "acts": acts }),
    ))
}
