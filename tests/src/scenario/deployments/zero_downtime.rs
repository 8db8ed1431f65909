//! Two app hosts behind nginx with its default settings, the schema unchanged, 200 requests per second during the whole
//! rollback: not one fails. Told of containers first and then of release directories, each on a fleet of its own.
//!
//! Two users ask at once: one has a connection for each request, the other one keeps its connections, some of which the
//! reloads of nginx close under it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::on_control;
use crate::control::Control;
use crate::deployed::container::ContainerApp;
use crate::deployed::release::ReleaseApp;
use crate::deployed::{Deployed, behind_nginx, deploy, served};
use crate::docker::{AppImages, Docker};
use crate::prober::{Prober, Samples};
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// Requests per second, each on a connection of its own.
const RATE: u32 = 200;
/// Requests per second on connections that are kept.
const KEPT_RATE: u32 = 50;

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 200;

pub async fn tell(options: Options) -> Result<Found> {
    let containers = on_control(options, async |control| containers(control, options).await).await?;
    let releases = on_control(options, async |control| releases(control, options).await).await?;
    let both = [&containers, &releases];
    let sum = |key: &str| -> u64 { both.iter().filter_map(|kind| kind[key].as_u64()).sum() };
    let worst = both
        .iter()
        .filter_map(|kind| kind["p99_ms"].as_f64())
        .fold(0.0, f64::max);
    Ok(found(json!({
        "requests": sum("requests"),
        "failed_requests": sum("failed_requests"),
        "p99_ms": worst,
        "containers": containers,
        "release_directories": releases,
    })))
}

async fn containers(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building images of v2.9.0 and v3.0.0 …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let (first, second) = (
        ContainerApp::new(&docker, &images, "app-1")?,
        ContainerApp::new(&docker, &images, "app-2")?,
    );
    under_load(control, &[("app-1", &first), ("app-2", &second)], options).await
}

async fn releases(control: &mut Control, options: Options) -> Result<Found> {
    let (first, second) = (ReleaseApp::of(control, "app-1")?, ReleaseApp::of(control, "app-2")?);
    under_load(control, &[("app-1", &first), ("app-2", &second)], options).await
}

/// From v3.0.0 back to v2.9.0 while users ask.
async fn under_load(control: &mut Control, hosts: &[(&str, &dyn Deployed)], options: Options) -> Result<Found> {
    for (_, app) in hosts {
        deploy(*app, Version::V2_9_0).await?;
    }
    let nginx = behind_nginx(control, hosts, Version::V2_9_0).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    for (_, app) in hosts {
        deploy(*app, Version::V3_0_0).await?;
    }
    control.ctl.record("v3.0.0").await?.expect_code(0)?;

    let url = nginx.url("/api/version");
    let prober = Prober::at_rate(url.clone(), RATE)?;
    let keeper = Prober::keep_alive(url.clone(), KEPT_RATE)?;
    prober.until_served(ANSWERED).await?;
    options.say(format!("Rolling back at {RATE} requests per second …"));
    let begun = Instant::now();
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    let ended = Instant::now();
    prober.until_served(ANSWERED).await?;
    let (samples, kept) = (prober.stop().await?, keeper.stop().await?);

    for (_, app) in hosts {
        app.served()?.expect(Version::V2_9_0)?;
        // Servers take turns.
        served(&url)?.expect(Version::V2_9_0)?;
    }
    expect_rate(&samples, begun, ended)?;
    let mut figures = figures(&samples, &kept);
    figures["state"] = answer.json()?["state"].clone();
    figures["rollback_ms"] = json!((ended - begun).as_millis());
    ensure!(samples.failed() + kept.failed() == 0, "users noticed: {figures}");
    Ok(found(figures))
}

/// Of both users together; what the one with kept connections went through is said apart as well.
fn figures(samples: &Samples, kept: &Samples) -> Value {
    let (mut all, own) = (samples.figures(), kept.figures());
    all["requests"] = json!(samples.len() + kept.len());
    all["failed_requests"] = json!(samples.failed() + kept.failed());
    all["kept_connections"] = own;
    all["kept_connections"]["sent_again"] = json!(kept.sent_again());
    all
}

/// A prober that had been held up would have asked less while it mattered.
fn expect_rate(samples: &Samples, begun: Instant, ended: Instant) -> Result<()> {
    let sent = samples.since(begun).before(ended).len();
    let wanted = f64::from(RATE) * (ended - begun).saturating_sub(Duration::from_millis(100)).as_secs_f64();
    ensure!(
        sent as f64 >= 0.9 * wanted,
        "{sent} requests were sent in {:?}, which are not {RATE} per second",
        ended - begun
    );
    Ok(())
}
