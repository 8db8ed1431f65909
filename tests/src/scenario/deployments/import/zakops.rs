//! zakops's fleet, as its runbook has it, with both of its methods:
//!
//! | host | how | what is left of v2.9.0 |
//! |---|---|---|
//! | app-1 | Compose in a git checkout, "rebuild from git tag" | the git tag; its image is gone |
//! | app-2 | a container, "previous image available" | the image's tag |
//! | db-1 | PostgreSQL, "no database changes needed" | left out |
//! | proxy-1 | nginx, whose site did not change | itself |
//!
//! The proxy belongs to the release although nothing changes there: a rollback leaves alone what is left out, and would
//! not take hosts out of it before they are stopped.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{RELEASE, expect_refused, expect_serving, import};
use crate::control::Control;
use crate::deployed::container::ContainerApp;
use crate::deployed::database::{self, Database};
use crate::deployed::rebuilt::RebuiltApp;
use crate::deployed::{Deployed, agents_behind, deploy, nginx_before};
use crate::docker::{AppImages, Docker};
use crate::facts::curl;
use crate::nginx::Nginx;
use crate::prober::Prober;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

const COMPONENTS: usize = 4;

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

struct Fleet {
    docker: Docker,
    images: AppImages,
    rebuilt: RebuiltApp,
    container: ContainerApp,
    database: Database,
    nginx: Nginx,
}

impl Fleet {
    /// v2.9.0 by hand, then v3.0.0. Agents come last: they never saw v2.9.0.
    async fn deploy(control: &mut Control) -> Result<Self> {
        let docker = Docker::of(control).await?;
        let images = AppImages::build(&docker, &control.binaries)?;
        let rebuilt = RebuiltApp::lay_out(&docker, &images, "app-1", &control.host_dir("app-1"))?;
        let container = ContainerApp::new(&docker, &images, "app-2")?;
        let database = Database::of(control).await?;
        database.install(Version::V2_9_0)?;
        for version in [Version::V2_9_0, Version::V3_0_0] {
            deploy(&rebuilt, version).await?;
            deploy(&container, version).await?;
        }
        let apps: [(&str, &dyn Deployed); 2] = [("app-1", &rebuilt), ("app-2", &container)];
        let nginx = nginx_before(control, &apps, Version::V3_0_0).await?;
        agents_behind(control, &nginx, &apps).await?;
        control.add_agent(database::HOST, "db", database.component()).await?;
        Ok(Self {
            docker,
            images,
            rebuilt,
            container,
            database,
            nginx,
        })
    }

    fn apps(&self) -> [(&str, &dyn Deployed); 2] {
        [("app-1", &self.rebuilt), ("app-2", &self.container)]
    }

    /// What shows when something was started anew.
    fn processes(&self) -> Result<[String; 2]> {
        let identity = |facts: crate::docker::ContainerFacts| facts.id + &facts.started_at;
        Ok([identity(self.rebuilt.facts()?), identity(self.container.facts()?)])
    }

    fn checkout(&self) -> Result<[String; 3]> {
        let git = |args: &[&str]| self.rebuilt.repository.git(args);
        Ok([
            git(&["rev-parse", "HEAD"])?,
            git(&["status", "--porcelain", "--ignored"])?,
            git(&["worktree", "list", "--porcelain"])?,
        ])
    }
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Deploying v2.9.0 and v3.0.0 with Compose from git, and as a container …");
    let fleet = Fleet::deploy(control).await?;
    let Fleet { docker, rebuilt, .. } = &fleet;
    expect_serving(&fleet.apps(), Version::V3_0_0)?;

    // Another image is built of it later: what is gone must not be taken for what is needed.
    let first_build = rebuilt.image_id(Version::V2_9_0)?;
    docker.run(&["rmi", &rebuilt.image(Version::V2_9_0)])?;
    let commit = rebuilt.repository.resolve(RELEASE)?;
    rebuilt.repository.git(&["tag", "--delete", RELEASE])?;
    let image = fleet.images.name(Version::V2_9_0);
    let archive = control.dir().join("image.tar").display().to_string();
    docker.run(&["save", "--output", &archive, &image])?;
    let saved = docker.image_id(&image)?;
    docker.run(&["rmi", &image])?;
    let before = (fleet.processes()?, fleet.database.facts()?, fleet.checkout()?);

    options.say("Importing while things are missing …");
    let args = ["--without", "db-1/db", "--as-is", "proxy-1/proxy"];
    let tag_place = format!("tag {RELEASE} in {}", rebuilt.repository.dir.display());
    let missing = [("app-1/api", tag_place.as_str()), ("app-2/api", image.as_str())];
    expect_refused(control, &args, &missing, COMPONENTS).await?;

    // A fetch brings the tag, and a registry or an archive the image.
    rebuilt.repository.git(&["tag", RELEASE, &commit])?;
    docker.run(&["load", "--input", &archive])?;
    std::fs::remove_file(Path::new(&archive)).context("remove the archive")?;
    let imported = import(control, &args).await?;
    let entries = imported["release"]["entries"].as_array().map_or(0, Vec::len);
    ensure!(entries == 3, "{entries} components are in it, not 3: {imported}");
    ensure!(
        before == (fleet.processes()?, fleet.database.facts()?, fleet.checkout()?),
        "looking for a release has changed something"
    );

    let prober = Prober::start(fleet.nginx.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling back to what was imported …");
    let answer = control.ctl.roll_back(RELEASE).await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    expect_serving(&fleet.apps(), Version::V2_9_0)?;
    let (live, good) = (fleet.container.facts()?.image_id, fleet.images.id(Version::V2_9_0)?);
    ensure!(live == good && good == saved, "app-2 runs {live}, v2.9.0 is {saved}");
    let (live, built) = (rebuilt.facts()?.image_id, rebuilt.image_id(Version::V2_9_0)?);
    ensure!(
        live == built && built != first_build,
        "app-1 runs {live}; {first_build} was built first, {built} then"
    );
    let (_, database, checkout) = before;
    ensure!(checkout == fleet.checkout()?, "the checkout is another one");
    ensure!(database == fleet.database.facts()?, "the database is another one");
    let site = curl(&fleet.nginx.url("/api/health"))?.header("x-zekka-site");
    ensure!(
        site == Version::V3_0_0.name(),
        "the proxy was to stay as it is, and serves the site {site}"
    );

    let downtime = samples.downtime().context("users got answers")?;
    let mut all = found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "missing_at_first": missing.len(),
        "entries": entries,
        "downtime_ms": downtime.longest.as_millis(),
    }));
    all.extend(found(samples.figures()));
    ensure!(samples.failed() == 0, "users noticed: {}", samples.figures());
    Ok(all)
}
