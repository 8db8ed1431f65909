//! Every way an application is deployed: the scenarios of each as tests, and the harness's own part of them, which is
//! deploying by hand.

use anyhow::{Context, Result, ensure};
use fleet_tests::control::{Control, ControlOptions};
use fleet_tests::deployed::compose::ComposeApp;
use fleet_tests::deployed::container::ContainerApp;
use fleet_tests::deployed::git::GitApp;
use fleet_tests::deployed::rebuilt::RebuiltApp;
use fleet_tests::deployed::release::ReleaseApp;
use fleet_tests::deployed::{Deployed, deploy};
use fleet_tests::docker::{AppImages, Docker};
use fleet_tests::nginx::Nginx;
use fleet_tests::pm2::Pm2;
use fleet_tests::prober::Prober;
use fleet_tests::process::is_alive;
use fleet_tests::scenario::Scenario;
use fleet_tests::scenario::deployments::ALL;
use fleet_tests::zekka::Version;

macro_rules! scenarios {
    ($($test:ident = $name:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            Scenario::expect($name).await;
        })*

        #[test]
        fn no_scenario_is_forgotten() {
            // `make bench` tells the other one: it measures, and walks through a runbook by hand at a person's pace.
            let told = [$($name,)* "vs-runbook"];
            let forgotten: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !told.contains(name)).collect();
            assert!(forgotten.is_empty(), "{forgotten:?}");
        }
    };
}

scenarios! {
    artifact_systemd = "artifact-systemd",
    docker = "docker",
    compose = "compose",
    compose_rebuild = "compose-rebuild",
    import_zekka = "import-zekka",
    import_zakops = "import-zakops",
    mixed = "mixed",
    env = "env",
    git_pm2 = "git-pm2",
    nginx_drain = "nginx-drain",
    zero_downtime = "zero-downtime",
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_every_form_changes_its_version_and_nothing_is_left_behind() {
    if let Err(error) = by_hand().await {
        panic!("{error:#}");
    }
}

async fn by_hand() -> Result<()> {
    let mut control = Control::start(ControlOptions::default()).await?;
    let docker = Docker::of(&mut control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let redis = docker.redis_image()?;
    let pm2 = Pm2::of(&mut control, "app-4")?;

    let container = ContainerApp::new(&docker, &images, "app-1")?;
    let compose = ComposeApp::lay_out(&docker, &images, &redis, "app-2", &control.host_dir("app-2"))?;
    let rebuilt = RebuiltApp::lay_out(&docker, &images, "app-3", &control.host_dir("app-3"))?;
    let git = GitApp::lay_out(&pm2, &control.host_dir("app-4").join("opt/zekka"))?;
    let release = ReleaseApp::of(&mut control, "app-5")?;
    let apps: [&dyn Deployed; 5] = [&container, &compose, &rebuilt, &git, &release];
    for version in [Version::V2_9_0, Version::V3_0_0] {
        for app in apps {
            deploy(app, version).await?;
            app.served()?.expect(version)?;
        }
    }

    let facts = container.facts()?;
    ensure!(
        facts.running && facts.image_id == images.id(Version::V3_0_0)?,
        "{facts:?}"
    );
    ensure!(
        facts.labels.get(fleet_tests::docker::LABEL).map(String::as_str) == Some(docker.run_id()),
        "{facts:?}"
    );
    let (app, cache) = (compose.facts("app")?, compose.facts("cache")?);
    ensure!(
        app.image_id == images.id(Version::V3_0_0)? && cache.running,
        "{app:?}, {cache:?}"
    );
    ensure!(
        cache.mounts.contains_key("/data") && app.networks.len() == 1,
        "{app:?}, {cache:?}"
    );
    ensure!(
        rebuilt.facts()?.image_id == rebuilt.image_id(Version::V3_0_0)?,
        "rebuilt"
    );
    let process = git.process()?;
    ensure!(
        process.status == "online" && process.cwd.ends_with("releases/v3.0.0"),
        "{process:?}"
    );
    ensure!(git.live_commit()? == git.repository.resolve("v3.0.0")?, "{process:?}");
    let archive = release.archive(Version::V2_9_0)?;
    ensure!(archive.with_extension("gz.sha256").is_file(), "{}", archive.display());

    let addresses: Vec<String> = apps.iter().map(|app| app.address()).collect();
    let nginx = Nginx::in_front_of(&mut control, "proxy-1", &addresses, "max_fails=0", "v3.0.0").await?;
    let prober = Prober::at_rate(nginx.url("/api/version"), 200)?;
    prober.until_served(200).await?;
    let samples = prober.stop().await?;
    ensure!(samples.failed() == 0, "{}", samples.figures());

    let pids = [
        process.pid,
        release.host.pid().context("release runs")?,
        nginx.pid().context("nginx runs")?,
    ];
    let containers = docker.containers()?;
    ensure!(containers.len() == 4, "{containers:?}");
    let label = docker.label();
    let dir = control.dir().to_owned();
    control.stop().await?;
    drop((container, compose, rebuilt, git, release, images, pm2, docker));
    drop(control);
    ensure!(!pids.into_iter().any(is_alive), "these live on: {pids:?}");
    ensure!(!dir.exists(), "{} is left over", dir.display());
    let docker = Docker::ready().await?;
    for list in [
        &["ps", "-aq"][..],
        &["network", "ls", "-q"],
        &["volume", "ls", "-q"],
        &["image", "ls", "-aq"],
    ] {
        let left = docker.run(&[list, &["--filter", &format!("label={label}")]].concat())?;
        ensure!(left.is_empty(), "{list:?} has {left}");
    }
    Ok(())
}
