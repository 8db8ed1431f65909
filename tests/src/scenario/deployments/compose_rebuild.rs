//! "Full rollback, rebuild from git tag" of zakops: v2.9.0's image is gone. It is built from the tag while v3.0.0 still
//! serves, and the checkout from which people work is not touched: neither what they changed there, nor what git ignores.

use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::on_control;
use crate::control::Control;
use crate::deployed::rebuilt::RebuiltApp;
use crate::deployed::{Deployed, deploy};
use crate::docker::{AppImages, Docker};
use crate::prober::Prober;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

/// In every version; what it says here is nobody's release.
const CHANGED: &str = "release.json";
const IGNORED: &str = "infra/docker/local/.env";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building v2.9.0 and v3.0.0 from their tags …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let app = RebuiltApp::lay_out(&docker, &images, "app-1", &control.host_dir("app-1"))?;
    deploy(&app, Version::V2_9_0).await?;
    control.add_agent("app-1", "app", &app.component()).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    deploy(&app, Version::V3_0_0).await?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;

    // By its ID: every name goes, also one that was given to spare it.
    let first_build = app.image_id(Version::V2_9_0)?;
    docker.run(&["rmi", "--force", &first_build])?;
    ensure!(app.image_id(Version::V2_9_0).is_err(), "v2.9.0's image is still there");
    let changed = "{ \"version\": \"nobody's\", \"schema\": 9 }\n";
    let dir = &app.repository.dir;
    std::fs::write(dir.join(CHANGED), changed).context("change a file")?;
    std::fs::create_dir_all(dir.join("infra/docker/local")).context("make a directory")?;
    std::fs::write(dir.join(IGNORED), "LOCAL=1\n").context("write an ignored file")?;
    let before = checkout(&app)?;

    let prober = Prober::start(app.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling back to an image that is not there …");
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    app.served()?.expect(Version::V2_9_0)?;
    let (facts, built) = (app.facts()?, app.image_id(Version::V2_9_0)?);
    ensure!(
        facts.running && facts.image_id == built && built != first_build,
        "{} runs; {first_build} was built first, {built} then",
        facts.image_id
    );
    let built_at = instant(&docker.run(&["image", "inspect", "--format", "{{.Created}}", &built])?)?;
    let during = samples.before(built_at);
    ensure!(
        during.len() > ANSWERED && during.failed() == 0,
        "users went without while it was built: {}",
        during.figures()
    );

    ensure!(checkout(&app)? == before, "{:?} became {:?}", before, checkout(&app)?);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("read {name}"));
    ensure!(
        read(CHANGED)? == changed && read(IGNORED)? == "LOCAL=1\n",
        "what people changed is lost"
    );
    let env = std::fs::read_to_string(app.env_file()).context("read .env")?;
    ensure!(env.lines().any(|line| line == "VERSION=v2.9.0"), ".env says {env:?}");
    app.compose(&["up", "-d"])?;
    ensure!(app.facts()? == facts, "`up -d` by hand has changed something");

    let downtime = samples.downtime().context("users got answers")?;
    let mut all = found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "served_while_built": during.len(),
        "downtime_ms": downtime.longest.as_millis(),
    }));
    all.extend(found(samples.figures()));
    Ok(all)
}

/// What git says of the checkout. The ignored files are named, not read.
fn checkout(app: &RebuiltApp) -> Result<Vec<String>> {
    let git = |args: &[&str]| app.repository.git(args);
    Ok(vec![
        git(&["rev-parse", "HEAD"])?,
        git(&["status", "--porcelain", "--ignored"])?,
        git(&["ls-files", "--stage"])?,
        git(&["worktree", "list", "--porcelain"])?,
        git(&["for-each-ref"])?,
    ])
}

/// An earlier time of the wall clock as one of ours.
fn instant(rfc3339: &str) -> Result<Instant> {
    let at: Timestamp = rfc3339.trim().parse().context("read a time")?;
    let ago = SystemTime::now()
        .duration_since(SystemTime::from(at))
        .context("what is built lies behind us")?;
    Instant::now().checked_sub(ago).context("the machine was up by then")
}
