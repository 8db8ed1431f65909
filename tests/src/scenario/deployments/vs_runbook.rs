//! Zekka's runbook, "Method 1: Docker Rollback", run as it is written, against ours, on one fleet in one run: two app
//! hosts behind nginx with its default settings, each one a Compose project of the application and its redis.
//!
//! The runbook's way: one person goes from host to host, and on to the next one when curl has got an answer. Ours: one
//! command. The deployment is the same for both, Compose with the image's tag in a variable; both begin with v3.0.0 and
//! end with v2.9.0, and the same users ask all the while.
//!
//! Downtime is the longest time between two successful answers, also where no request failed: then it is the time from
//! one request to the next, plus what nginx and this machine had them wait for. Single-host figures are of users who ask
//! the published port of a host directly: what a fleet of one host without a proxy would see. The worse host counts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::on_control;
use crate::control::Control;
use crate::deployed::compose::ComposeApp;
use crate::deployed::{Deployed, behind_nginx, wait_served};
use crate::docker::{AppImages, Docker};
use crate::nginx::Nginx;
use crate::prober::{Prober, Samples};
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// Requests per second through nginx.
const RATE: u32 = 100;
/// Requests per second to each host.
const DIRECT_RATE: u32 = 50;

/// Answers that are seen before and after.
const ANSWERED: usize = 50;

/// How many times longer users must be without an answer by the runbook than by ours.
const TARGET: f64 = 10.0;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building images of v2.9.0 and v3.0.0 …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let redis = docker.redis_image()?;
    let host = |name: &str| ComposeApp::lay_out(&docker, &images, &redis, name, &control.host_dir(name));
    let apps = [host("app-1")?, host("app-2")?];
    deploy_all(&apps, Version::V2_9_0).await?;
    let hosts: [(&str, &dyn Deployed); 2] = [("app-1", &apps[0]), ("app-2", &apps[1])];
    let nginx = behind_nginx(control, &hosts, Version::V2_9_0).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;

    deploy_all(&apps, Version::V3_0_0).await?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    options.say("By the runbook, host after host: docker-compose down, IMAGE_TAG, docker-compose up -d, curl …");
    let runbook = Users::ask(&nginx, &apps)
        .await?
        .during(async || {
            for app in &apps {
                app.follow_runbook(Version::V2_9_0)?;
                wait_served(app, Version::V2_9_0).await?;
            }
            Ok(())
        })
        .await?;

    deploy_all(&apps, Version::V3_0_0).await?;
    options.say("By rollbackctl …");
    let caches = [apps[0].facts("cache")?, apps[1].facts("cache")?];
    let ours = Users::ask(&nginx, &apps)
        .await?
        .during(async || control.ctl.roll_back("v2.9.0").await?.expect_code(0).map(drop))
        .await?;
    for (app, cache) in apps.iter().zip(&caches) {
        app.served()?.expect(Version::V2_9_0)?;
        let (now, wanted) = (app.facts("app")?.image_id, images.id(Version::V2_9_0)?);
        ensure!(now == wanted, "{} runs image {now}, not {wanted}", app.address());
        ensure!(app.facts("cache")? == *cache, "redis of {} was touched", app.address());
    }

    let ratio = runbook.downtime.as_secs_f64() / ours.downtime.as_secs_f64();
    let (ours_ms, runbook_ms) = (ours.downtime.as_millis(), runbook.downtime.as_millis());
    let (single_ours_ms, single_runbook_ms) = (ours.single_host.as_millis(), runbook.single_host.as_millis());
    options.say(format!(
        "nobody was served for        runbook {runbook_ms} ms, rollbackctl {ours_ms} ms: {ratio:.0} times less\n\
         one host's own port was out  runbook {single_runbook_ms} ms, rollbackctl {single_ours_ms} ms"
    ));
    let figures = json!({
        "downtime_ours_ms": ours_ms,
        "downtime_runbook_ms": runbook_ms,
        "downtime_ratio": (ratio * 10.0).round() / 10.0,
        "single_host_ours_ms": single_ours_ms,
        "single_host_runbook_ms": single_runbook_ms,
        "failed_requests_ours": ours.failed,
        "failed_requests_runbook": runbook.failed,
        "took_ours_ms": ours.took.as_millis(),
        "took_runbook_ms": runbook.took.as_millis(),
    });
    ensure!(
        ours.failed == 0 && ratio >= TARGET,
        "ours must cost no request, and {TARGET} times less than the runbook: {figures}"
    );
    Ok(found(figures))
}

/// On both hosts at once: nobody measures this.
async fn deploy_all(apps: &[ComposeApp], version: Version) -> Result<()> {
    std::thread::scope(|scope| {
        let installs: Vec<_> = apps.iter().map(|app| scope.spawn(|| app.install(version))).collect();
        installs
            .into_iter()
            .map(|install| install.join())
            .try_for_each(|done| done.map_err(|_| anyhow!("a deployment panicked"))?)
    })?;
    for app in apps {
        wait_served(app, version).await?;
    }
    Ok(())
}

/// Those who ask through nginx, and those who ask each host.
#[derive(Debug)]
struct Users {
    proxy: Prober,
    direct: Vec<Prober>,
}

/// What they went through.
#[derive(Debug)]
struct Lived {
    downtime: Duration,
    single_host: Duration,
    /// Of the requests through nginx.
    failed: usize,
    /// From the first command to the end of the last.
    took: Duration,
}

impl Users {
    /// nginx's workers are new: what the last way taught them of dead servers counts for neither.
    async fn ask(nginx: &Nginx, apps: &[ComposeApp]) -> Result<Self> {
        nginx.reload().await?;
        let proxy = Prober::at_rate(nginx.url("/api/version"), RATE)?;
        let direct = apps
            .iter()
            .map(|app| Prober::at_rate(app.url("/api/version"), DIRECT_RATE));
        let users = Self {
            proxy,
            direct: direct.collect::<Result<_>>()?,
        };
        users.are_served().await?;
        Ok(users)
    }

    async fn are_served(&self) -> Result<()> {
        for prober in self.direct.iter().chain([&self.proxy]) {
            prober.until_served(ANSWERED).await?;
        }
        Ok(())
    }

    async fn during(self, way: impl AsyncFnOnce() -> Result<()>) -> Result<Lived> {
        let begun = Instant::now();
        way().await?;
        let took = begun.elapsed();
        self.are_served().await?;
        let mut single_host = Duration::ZERO;
        for prober in self.direct {
            single_host = single_host.max(downtime(&prober.stop().await?)?);
        }
        let samples = self.proxy.stop().await?;
        Ok(Lived {
            downtime: downtime(&samples)?,
            single_host,
            failed: samples.failed(),
            took,
        })
    }
}

fn downtime(samples: &Samples) -> Result<Duration> {
    Ok(samples.downtime().context("users got answers")?.longest)
}
