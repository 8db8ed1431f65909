//! Could the fleet go back? Asked all the time by the leader, and by nobody else.
//!
//! v3.0.0 runs, and everything is there to go back to v2.9.0: readiness says so, and how long ago it looked. Then somebody
//! cleans up images that no container uses. Nobody asks for a plan; readiness and its metric say within a round or two
//! which host cannot go back and why, with the code that preflight would block with. The image is put back, and so is
//! readiness. The same with release directories: one of two hosts loses v2.9.0 and the copy of it in its vault.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Apps, NEW, OLD, shown};
use crate::control::{Control, ControlOptions};
use crate::deployed::container::ContainerApp;
use crate::deployed::{Deployed, deploy};
use crate::docker::{AppImages, Docker};
use crate::facts::curl;
use crate::scenario::blocked_preflight::forget_release;
use crate::scenario::deployments::on_control_with;
use crate::scenario::{Found, Options, found};
use crate::wait;

const EVERY: &str = "1s";

/// Several rounds, on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

pub async fn pruned_image(options: Options) -> Result<Found> {
    on_control_with(control(), options, async |control| image(control, options).await).await
}

pub async fn lost_release(options: Options) -> Result<Found> {
    on_control_with(control(), options, async |control| release(control, options).await).await
}

fn control() -> ControlOptions {
    ControlOptions {
        readiness: Some(EVERY.to_owned()),
        ..ControlOptions::default()
    }
}

async fn release(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2"]).await?;
    let before = apps.expect_all(NEW)?;
    let (_, ready) = until(control, true).await?;
    options.say("Ready. app-2 loses v2.9.0's directory, and its copy …");
    forget_release(control, apps.host("app-2")?)?;
    let (checked, noticed) = until(control, false).await?;
    expect_missing(&checked, "app-2")?;
    // Whoever only looks restarts nothing.
    let (was, is) = (&before["app-1"], apps.expect("app-1", NEW)?);
    ensure!(*was == is, "app-1 was {was:?}, and now it is {is:?}");
    apps.expect("app-2", NEW)?;
    Ok(found(json!({
        "ready_after_ms": ready.as_millis(),
        "noticed_after_ms": noticed.as_millis(),
        "check_ms": checked["took_ms"],
    })))
}

/// The one blocker is that this host has lost v2.9.0's application.
fn expect_missing(checked: &Value, host: &str) -> Result<()> {
    let findings = checked["findings"].as_array().context("the findings")?;
    let blockers: Vec<&Value> = findings.iter().filter(|f| f["severity"] == "blocker").collect();
    ensure!(
        blockers.len() == 1
            && blockers[0]["host"] == host
            && blockers[0]["component"] == "api"
            && blockers[0]["code"] == "RB0501",
        "{host}/api has lost it, and nobody else: {checked}"
    );
    Ok(())
}

async fn image(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building images of v2.9.0 and v3.0.0 …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let app = ContainerApp::new(&docker, &images, "app-1")?;
    deploy(&app, OLD).await?;
    control.add_agent("app-1", "app", &app.component()).await?;
    control.ctl.record(OLD.name()).await?.expect_code(0)?;
    deploy(&app, NEW).await?;
    control.ctl.record(NEW.name()).await?.expect_code(0)?;
    let (first, ready) = until(control, true).await?;
    ensure!(first["stale"] == false, "it was checked just now: {first}");

    options.say("Ready. Somebody removes the image of v2.9.0, under all of its names …");
    let (id, saved) = (images.id(OLD)?, control.dir().join("image.tar"));
    docker.run(&["save", "--output", shown(&saved)?, &images.name(OLD)])?;
    docker.run(&["rmi", "--force", &id])?;
    let (second, noticed) = until(control, false).await?;
    expect_missing(&second, "app-1")?;
    let plan = ["fleet", "plan", "--to", OLD.name(), "-o", "json"];
    let plan = control.ctl.run(&plan).await?.expect_code(3)?.json()?;
    ensure!(plan["blocked"] == true, "a plan finds the same: {plan}");
    app.served()?.expect(NEW)?;

    options.say("It is named. The image is put back …");
    docker.run(&["load", "--quiet", "--input", shown(&saved)?])?;
    let (_, back) = until(control, true).await?;
    Ok(found(json!({
        "ready_after_ms": ready.as_millis(),
        "noticed_after_ms": noticed.as_millis(),
        "ready_again_after_ms": back.as_millis(),
        "check_ms": second["took_ms"],
        "finding": second["findings"][0]["message"],
    })))
}

/// Waits until `fleet readiness --to v2.9.0` and the metric say this, and hands out what the former says and how long that
/// took.
async fn until(control: &Control, ready: bool) -> Result<(Value, Duration)> {
    let (begun, code) = (Instant::now(), if ready { 0 } else { 3 });
    let metric = format!("rollback_readiness{{release=\"{}\"}} {}", OLD.name(), u8::from(ready));
    let what = format!("readiness ends with {code}, and /metrics says: {metric}");
    let said = wait::until(&what, NOTICED_WITHIN, async || {
        let readiness = ["fleet", "readiness", "--to", OLD.name(), "-o", "json"];
        let answer = control
            .ctl
            .run(&readiness)
            .await
            .ok()?
            .expect_code(code)
            .ok()?
            .json()
            .ok()?;
        let metrics = curl(&control.coordinator.page("/metrics")).ok()?.body;
        metrics.contains(&metric).then_some(answer)
    })
    .await?;
    let release = &said["releases"][0];
    ensure!(
        release["release"] == OLD.name() && release["ready"] == ready && !release["checked_at"].is_null(),
        "what it says of v2.9.0: {said}"
    );
    Ok((release.clone(), begun.elapsed()))
}
