//! zekka's fleet, as its runbook has it, with a way of deploying on each host:
//!
//! | host | how | what is left of v2.9.0 |
//! |---|---|---|
//! | app-1 | Compose, IMAGE_TAG | the image's tag |
//! | app-2 | git, npm, pm2 | the git tag, `.env.backup` |
//! | app-3 | artifacts | `backups/v2.9.0`, `.env.production.backup` |
//! | db-1 | PostgreSQL, the same schema in both | itself |
//! | proxy-1 | nginx, Debian's layout | `sites-available/zekka.backup` |

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{RELEASE, expect_refused, expect_serving, import};
use crate::control::Control;
use crate::deployed::compose::ComposeApp;
use crate::deployed::database::{self, Database};
use crate::deployed::git::GitApp;
use crate::deployed::release::ReleaseApp;
use crate::deployed::{Deployed, agents_behind, deploy, nginx_before};
use crate::docker::{AppImages, Docker};
use crate::facts::curl;
use crate::nginx::Nginx;
use crate::pm2::Pm2;
use crate::prober::Prober;
use crate::process::{self, run};
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// On app-2, app-3 and proxy-1, the environment and the site besides the applications; and the database.
const COMPONENTS: usize = 7;

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

struct Fleet {
    compose: ComposeApp,
    git: GitApp,
    release: ReleaseApp,
    database: Database,
    nginx: Nginx,
    images: AppImages,
}

impl Fleet {
    /// v2.9.0 by hand, then what the runbook does before a deployment, then v3.0.0. Agents come last: they never saw
    /// v2.9.0.
    async fn deploy(control: &mut Control) -> Result<Self> {
        let docker = Docker::of(control).await?;
        let images = AppImages::build(&docker, &control.binaries)?;
        let redis = docker.redis_image()?;
        let pm2 = Pm2::of(control, "app-2")?;
        let compose = ComposeApp::lay_out(&docker, &images, &redis, "app-1", &control.host_dir("app-1"))?;
        let git = GitApp::lay_out(&pm2, &control.host_dir("app-2").join("opt/zekka"))?;
        let release = ReleaseApp::of(control, "app-3")?;
        let database = Database::of(control).await?;

        database.install(Version::V2_9_0)?;
        let apps: [(&str, &dyn Deployed); 3] = [("app-1", &compose), ("app-2", &git), ("app-3", &release)];
        for (_, app) in apps {
            deploy(app, Version::V2_9_0).await?;
        }
        let nginx = nginx_before(control, &apps, Version::V2_9_0).await?;
        nginx.link_site()?;

        let root = &release.host.root;
        std::fs::create_dir_all(root.join("backups")).context("make the directory of backups")?;
        copy(&root.join("current/."), &backup_of(&release))?;
        copy(&release.host.env_file(), &beside(&release.host.env_file()))?;
        copy(&git.env_file(), &beside(&git.env_file()))?;
        copy(&nginx.available(), &beside(&nginx.available()))?;

        for (_, app) in apps {
            deploy(app, Version::V3_0_0).await?;
        }
        // The runbook knows one directory that is live and copies of others.
        std::fs::remove_dir_all(release.host.release_dir(Version::V2_9_0)).context("remove v2.9.0")?;
        nginx.write_site(Version::V3_0_0.name())?;
        nginx.reload().await?;

        agents_behind(control, &nginx, &apps).await?;
        control.add_agent(database::HOST, "db", database.component()).await?;
        Ok(Self {
            compose,
            git,
            release,
            database,
            nginx,
            images,
        })
    }

    fn apps(&self) -> [(&str, &dyn Deployed); 3] {
        [("app-1", &self.compose), ("app-2", &self.git), ("app-3", &self.release)]
    }

    /// What shows when something was started anew.
    fn processes(&self) -> Result<Vec<String>> {
        let (app, cache) = (self.compose.facts("app")?, self.compose.facts("cache")?);
        Ok(vec![
            app.id + &app.started_at,
            cache.id + &cache.started_at,
            self.git.process()?.pid.to_string(),
            self.release.host.pid().context("app-3 runs")?.to_string(),
            format!("{:?}", self.nginx.workers()),
        ])
    }
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Deploying v2.9.0 and v3.0.0 with Compose, git and pm2, and artifacts …");
    let fleet = Fleet::deploy(control).await?;
    expect_serving(&fleet.apps(), Version::V3_0_0)?;
    let before = (fleet.processes()?, fleet.database.facts()?);

    options.say("Importing while things are missing …");
    let backup = backup_of(&fleet.release);
    let site_backup = beside(&fleet.nginx.available());
    let elsewhere = [
        (&backup, control.dir().join("backup-elsewhere")),
        (&site_backup, control.dir().join("site-elsewhere")),
    ];
    for (here, there) in &elsewhere {
        std::fs::rename(here, there).with_context(|| format!("hide {}", here.display()))?;
    }
    let backups = backup
        .parent()
        .context("a backup is in a directory")?
        .display()
        .to_string();
    let site_place = site_backup.display().to_string();
    let missing = [
        ("app-3/api", backups.as_str()),
        ("db-1/db", "no dump of v2.9.0 is at any of"),
        ("proxy-1/proxy", site_place.as_str()),
    ];
    expect_refused(control, &[], &missing, COMPONENTS).await?;
    expect_refused(control, &["--as-is", "db-1/db"], &[missing[0], missing[2]], COMPONENTS).await?;
    for (here, there) in &elsewhere {
        std::fs::rename(there, here).with_context(|| format!("put {} in place", here.display()))?;
    }

    let imported = import(control, &["--as-is", "db-1/db"]).await?;
    let entries = imported["release"]["entries"].as_array().map_or(0, Vec::len);
    ensure!(entries == COMPONENTS, "{entries} of {COMPONENTS} are in it: {imported}");
    expect_serving(&fleet.apps(), Version::V3_0_0)?;
    ensure!(
        before == (fleet.processes()?, fleet.database.facts()?),
        "looking for a release has changed something"
    );

    let prober = Prober::start(fleet.nginx.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling back to what was imported …");
    let answer = control.ctl.roll_back(RELEASE).await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    expect_serving(&fleet.apps(), Version::V2_9_0)?;
    expect_compose(&fleet).context("app-1")?;
    expect_git(&fleet.git).context("app-2")?;
    expect_release(&fleet.release).context("app-3")?;
    expect_site(&fleet.nginx).context("proxy-1")?;
    ensure!(before.1 == fleet.database.facts()?, "the database is another one");

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

fn expect_compose(fleet: &Fleet) -> Result<()> {
    let (app, good) = (fleet.compose.facts("app")?, fleet.images.id(Version::V2_9_0)?);
    ensure!(
        app.running && app.image_id == good,
        "{} runs, not {good}: {app:?}",
        app.image_id
    );
    let env = std::fs::read_to_string(fleet.compose.env_file()).context("read .env")?;
    ensure!(env.lines().any(|line| line == "IMAGE_TAG=v2.9.0"), "{env}");
    Ok(())
}

fn expect_git(git: &GitApp) -> Result<()> {
    let (live, tag) = (git.live_commit()?, git.repository.resolve("v2.9.0")?);
    ensure!(live == tag, "{live} is live, v2.9.0 is {tag}");
    let process = git.process()?;
    ensure!(process.status == "online", "{process:?}");
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid)).context("read the process's directory")?;
    let current = std::fs::canonicalize(git.current()).context("follow the link")?;
    ensure!(
        cwd == current,
        "it runs in {}, not {}",
        cwd.display(),
        current.display()
    );
    expect_greeting(process.pid)?;
    same(&git.env_file(), &beside(&git.env_file()))
}

fn expect_release(release: &ReleaseApp) -> Result<()> {
    let host = &release.host;
    same(&host.current(), &backup_of(release))?;
    same(&host.env_file(), &beside(&host.env_file()))?;
    expect_greeting(host.pid().context("the application runs")?)
}

fn expect_site(nginx: &Nginx) -> Result<()> {
    same(&nginx.available(), &beside(&nginx.available()))?;
    let link = std::fs::read_link(nginx.site()).context("the site is a link still")?;
    ensure!(link == Path::new("../sites-available/zekka"), "{}", link.display());
    let served = curl(&nginx.url("/api/health"))?;
    let site = served.header("x-zekka-site");
    ensure!(served.status == 200 && site == RELEASE, "{} by {site:?}", served.status);
    Ok(())
}

fn expect_greeting(pid: u32) -> Result<()> {
    let greeting = process::environ(pid)?.remove("GREETING");
    ensure!(
        greeting.as_deref() == Some(Version::V2_9_0.greeting()),
        "the process has the greeting {greeting:?}"
    );
    Ok(())
}

/// `<root>/backups/v2.9.0`
fn backup_of(release: &ReleaseApp) -> PathBuf {
    release.host.root.join("backups").join(RELEASE)
}

/// `<path>.backup`
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".backup");
    name.into()
}

/// As the runbook does it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-r").arg(from).arg(to)).map(drop)
}

/// Two files, or two trees, that do not differ.
fn same(a: &Path, b: &Path) -> Result<()> {
    let mut diff = Command::new("diff");
    // A value that differs is nobody's business.
    diff.args(["--recursive", "--brief"]).arg(a).arg(b);
    run(&mut diff).map(drop)
}
