//! Containers on two hosts behind nginx: v3.0.0 is live, both go back to v2.9.0, one after the other, and nobody notices.
//!
//! What the engine says afterwards is compared with what it said before: the image is the other version's, and so is what
//! came from the image (GREETING); all that came from whoever ran the container is as it was, the data in its anonymous
//! volume above all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::on_control;
use crate::control::Control;
use crate::deployed::container::ContainerApp;
use crate::deployed::{Deployed, behind_nginx, deploy, served};
use crate::docker::{AppImages, ContainerFacts, Docker};
use crate::nginx::Nginx;
use crate::prober::Prober;
use crate::scenario::{Found, Options, found};
use crate::wait;
use crate::zekka::Version;

const HEALTHY_WITHIN: Duration = Duration::from_secs(15);

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Building images of v2.9.0 and v3.0.0 …");
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let network = docker.network("backend", &[])?;
    let container = |host: &str| -> Result<ContainerApp> {
        let mut app = ContainerApp::new(&docker, &images, host)?;
        let args = ["--volume", "/data", "--env", "REGION=eu", "--network", &network];
        app.run_args = args.map(str::to_owned).to_vec();
        app.run_args
            .extend(["--network-alias".to_owned(), format!("api-{host}")]);
        Ok(app)
    };
    let (first, second) = (container("app-1")?, container("app-2")?);
    let apps = [&first, &second];

    for app in apps {
        deploy(app, Version::V2_9_0).await?;
    }
    let hosts: [(&str, &dyn Deployed); 2] = [("app-1", &first), ("app-2", &second)];
    let nginx = behind_nginx(control, &hosts, Version::V2_9_0).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    for app in apps {
        deploy(app, Version::V3_0_0).await?;
    }
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let before = [first.facts()?, second.facts()?];
    expect_served(&nginx, Version::V3_0_0)?;

    let prober = Prober::start(nginx.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling back while users ask …");
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    for (app, before) in apps.into_iter().zip(&before) {
        app.served()?.expect(Version::V2_9_0)?;
        // The agent asks the application itself; the engine's own healthcheck comes a second later.
        wait::until_true("the engine holds it for healthy", HEALTHY_WITHIN, async || {
            app.facts()
                .is_ok_and(|facts| facts.health.as_deref() == Some("healthy"))
        })
        .await?;
        expect_carried_over(before, &app.facts()?, &images).with_context(|| app.name.clone())?;
    }
    expect_served(&nginx, Version::V2_9_0)?;
    let downtime = samples.downtime().context("users got answers")?;
    let mut all = found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "downtime_ms": downtime.longest.as_millis(),
    }));
    all.extend(found(samples.figures()));
    ensure!(samples.failed() == 0, "users noticed: {}", samples.figures());
    Ok(all)
}

/// Every answer through nginx is of this version.
fn expect_served(nginx: &Nginx, version: Version) -> Result<()> {
    // Two servers take turns.
    for _ in 0..4 {
        served(&nginx.url("/api/version"))?.expect(version)?;
    }
    Ok(())
}

/// v2.9.0's image, with everything that was v3.0.0's container's own.
fn expect_carried_over(before: &ContainerFacts, after: &ContainerFacts, images: &AppImages) -> Result<()> {
    let (bad, good) = (images.id(Version::V3_0_0)?, images.id(Version::V2_9_0)?);
    ensure!(
        before.image_id == bad,
        "{} was made of {}",
        before.name,
        before.image_id
    );
    ensure!(after.image_id == good, "{} is made of {}", after.name, after.image_id);
    ensure!(
        after.running && after.id != before.id,
        "{} is {} and running: {}",
        after.name,
        after.id,
        after.running
    );
    let greeting = Version::V2_9_0.greeting();
    let mut env = before.env.clone();
    env.insert("GREETING".into(), greeting.into());
    ensure!(after.env == env, "the environment is {:?}, not {env:?}", after.env);
    ensure!(
        after.mounts == before.mounts,
        "{:?} were mounted, and now {:?}",
        before.mounts,
        after.mounts
    );
    ensure!(
        after.restart_policy == "unless-stopped",
        "the restart policy is {:?}",
        after.restart_policy
    );
    let aliases = |facts: &ContainerFacts| -> Vec<_> {
        let networks = facts.networks.iter();
        networks
            .map(|(name, network)| (name.clone(), network.aliases.clone()))
            .collect()
    };
    ensure!(
        aliases(after) == aliases(before),
        "{:?} were {:?}",
        after.networks,
        before.networks
    );
    Ok(())
}
