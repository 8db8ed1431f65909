//! A Compose project whose tag is in `.env`: v3.0.0 is live and goes back to v2.9.0's image. The redis beside it is not
//! touched, and Compose itself finds nothing to do afterwards.
//!
//! The agent has IMAGE_TAG in its own environment, where Compose would believe it more than `.env`.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::on_control;
use crate::control::Control;
use crate::deployed::compose::ComposeApp;
use crate::deployed::{Deployed, deploy};
use crate::docker::{AppImages, Docker};
use crate::prober::Prober;
use crate::process;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

const VARIABLE: &str = "IMAGE_TAG";
const HASH: &str = "com.docker.compose.config-hash";

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building images of v2.9.0 and v3.0.0 …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let redis = docker.redis_image()?;
    let app = ComposeApp::lay_out(&docker, &images, &redis, "app-1", &control.host_dir("app-1"))?;

    deploy(&app, Version::V2_9_0).await?;
    control.agent_env.insert(VARIABLE.into(), Version::V3_0_0.name().into());
    control.add_agent("app-1", "app", &app.component()).await?;
    let pid = control.agent("app-1")?.pid().context("the agent runs")?;
    let exported = process::environ(pid)?.remove(VARIABLE);
    ensure!(
        exported.as_deref() == Some(Version::V3_0_0.name()),
        "the agent has {VARIABLE}={exported:?}"
    );
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    deploy(&app, Version::V3_0_0).await?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let (before, cache) = (app.facts("app")?, app.facts("cache")?);
    let env = std::fs::read_to_string(app.env_file()).context("read .env")?;
    ensure!(before.image_id == images.id(Version::V3_0_0)?, "{before:?}");

    let prober = Prober::start(app.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling back …");
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    app.served()?.expect(Version::V2_9_0)?;
    let after = app.facts("app")?;
    ensure!(
        after.running && after.image_id == images.id(Version::V2_9_0)? && after.image == images.name(Version::V2_9_0),
        "{after:?}"
    );
    ensure!(
        after.restart_policy == before.restart_policy && after.networks.keys().eq(before.networks.keys()),
        "{before:?} became {after:?}"
    );
    ensure!(app.facts("cache")? == cache, "redis was touched");
    let expected = env.replace(Version::V3_0_0.name(), Version::V2_9_0.name());
    let found_env = std::fs::read_to_string(app.env_file()).context("read .env")?;
    ensure!(found_env == expected, ".env says {found_env:?}, not {expected:?}");

    options.say("Asking Compose …");
    let hash = app.compose(&["config", "--hash", "app"])?;
    let label = after.labels.get(HASH).cloned().unwrap_or_default();
    ensure!(
        !label.is_empty() && hash.trim() == format!("app {label}"),
        "the container has the hash {label:?}, Compose says {hash:?}"
    );
    let containers = docker.containers()?;
    app.compose(&["up", "-d"])?;
    ensure!(
        docker.containers()? == containers && app.facts("app")? == after && app.facts("cache")? == cache,
        "`up -d` by hand has changed something"
    );

    let downtime = samples.downtime().context("users got answers")?;
    let mut all = found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "downtime_ms": downtime.longest.as_millis(),
        "failed_after_it": downtime.failed_after,
    }));
    all.extend(found(samples.figures()));
    ensure!(downtime.failed_after == 0, "users noticed twice: {}", samples.figures());
    Ok(all)
}
