//! What the fleet is afterwards, without asking the programs under test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::fleet::{CHECKS, Fleet};
use crate::deployed::database::{Database, DatabaseFacts};
use crate::deployed::git::GitApp;
use crate::deployed::release::ReleaseApp;
use crate::deployed::unit::{UNIT, UnitApp};
use crate::facts::{StageData, curl};
use crate::nginx::Nginx;
use crate::process::{self, run};
use crate::wait;
use crate::zekka::Version;

const HEALTHY_WITHIN: Duration = Duration::from_secs(15);

/// Every application, every env file and the site are of this version, and everything runs.
pub async fn everything(fleet: &Fleet, version: Version) -> Result<()> {
    for (host, app) in fleet.apps() {
        app.served()?.expect(version).context(host)?;
        let health = curl(&app.url("/api/health"))?;
        ensure!(
            health.status == 200,
            "{host} answers {}: {}",
            health.status,
            health.body
        );
    }
    container(fleet, version).await.context("app-1")?;
    compose(fleet, version).context("app-2")?;
    git(&fleet.git, version).context("app-3")?;
    unit(&fleet.unit, version).context("app-4")?;
    release(&fleet.release, version).context("app-5")?;
    site(&fleet.nginx, version).context("proxy-1")
}

async fn container(fleet: &Fleet, version: Version) -> Result<()> {
    let (facts, image) = (fleet.container.facts()?, fleet.images.id(version)?);
    ensure!(
        facts.running && facts.image_id == image && facts.restart_policy == "unless-stopped",
        "{facts:?}"
    );
    expect_greeting(facts.env.get("GREETING"), version)?;
    // The engine asks a second after the agent.
    wait::until_true("the engine holds it for healthy", HEALTHY_WITHIN, async || {
        fleet
            .container
            .facts()
            .is_ok_and(|facts| facts.health.as_deref() == Some("healthy"))
    })
    .await
}

fn compose(fleet: &Fleet, version: Version) -> Result<()> {
    let facts = fleet.compose.facts("app")?;
    ensure!(
        facts.running && facts.image_id == fleet.images.id(version)?,
        "{facts:?}"
    );
    let env = std::fs::read_to_string(fleet.compose.env_file()).context("read .env")?;
    let line = format!("IMAGE_TAG={}", version.name());
    ensure!(env.lines().any(|l| l == line), ".env says {env:?}");
    fleet.compose.compose(&["up", "-d"])?;
    let after = fleet.compose.facts("app")?;
    ensure!(after == facts, "`up -d` by hand made {after:?} of {facts:?}");
    Ok(())
}

fn git(app: &GitApp, version: Version) -> Result<()> {
    let (live, tag) = (app.live_commit()?, app.repository.resolve(version.name())?);
    ensure!(live == tag, "{live} is live, {} is {tag}", version.name());
    let process = app.process()?;
    ensure!(process.status == "online", "{process:?}");
    expect_cwd(
        &std::fs::read_link(format!("/proc/{}/cwd", process.pid))?,
        &app.current(),
    )?;
    expect_greeting(process::environ(process.pid)?.get("GREETING"), version)?;
    expect_in_file(&app.env_file(), version)
}

fn unit(app: &UnitApp, version: Version) -> Result<()> {
    let unit = app.facts()?;
    ensure!(
        unit.state == "active (running)" && unit.automatic_restarts == 0,
        "systemd says {unit:?}"
    );
    expect_cwd(&app.cwd(unit.pid)?, &app.host.current())?;
    expect_greeting(app.variable(unit.pid, "GREETING")?.as_ref(), version)?;
    expect_in_file(&app.host.env_file(), version)
}

/// What is live on app-4 is what tar makes of the archive.
pub fn unpacked(app: &UnitApp, version: Version) -> Result<()> {
    let packed = app.host.root.join("backups").join(format!("{}.tar.gz", version.name()));
    let temp = tempfile::tempdir().context("make a directory to unpack")?;
    run(Command::new("tar").arg("-xzf").arg(packed).arg("-C").arg(temp.path()))?;
    let (packed, live) = (temp.path().join(version.name()), app.host.current());
    run(Command::new("diff").arg("-r").arg(packed).arg(live))
        .map(drop)
        .with_context(|| format!("{UNIT} runs what was packed"))
}

fn release(app: &ReleaseApp, version: Version) -> Result<()> {
    let pid = app.host.pid().context("the application runs")?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).context("read the process's program")?;
    ensure!(
        program.starts_with(app.host.release_dir(version)),
        "{} runs",
        program.display()
    );
    let link = std::fs::read_link(app.host.current()).context("read the link")?;
    ensure!(
        link == Path::new("releases").join(version.name()),
        "current is {}",
        link.display()
    );
    expect_greeting(process::environ(pid)?.get("GREETING"), version)?;
    expect_in_file(&app.host.env_file(), version)
}

fn site(nginx: &Nginx, version: Version) -> Result<()> {
    let answer = curl(&nginx.url("/api/health"))?;
    let site = answer.header("x-zekka-site");
    ensure!(
        answer.status == 200 && site == version.name(),
        "{} by the site {site:?}",
        answer.status
    );
    let upstream = std::fs::read_to_string(nginx.upstream_include()).context("read the upstream")?;
    ensure!(
        !upstream.contains("down") && upstream.matches("server ").count() == 5,
        "the upstream is {upstream:?}"
    );
    Ok(())
}

/// nginx's workers of today have served every user. For some milliseconds of the reload, those of before still answer with
/// the maintenance page besides them.
pub fn served_since(nginx: &Nginx) -> Result<()> {
    let workers = nginx.workers();
    let of_users = nginx.requests()?.into_iter().filter(|r| r.path.starts_with("/api/"));
    let (served, refused): (Vec<_>, Vec<_>) = of_users
        .filter(|request| workers.contains(&request.worker))
        .partition(|request| request.status == 200);
    ensure!(
        !served.is_empty() && refused.is_empty(),
        "after {} answers users were told {refused:?}",
        served.len()
    );
    Ok(())
}

/// The schema and the data are those that v2.9.0 had, and what v3.0.0 alone knew is kept.
pub fn database(database: &Database, good: &DatabaseFacts, staged: &StageData) -> Result<()> {
    let now = database.facts()?;
    ensure!(
        now.migrations == good.migrations,
        "these are applied: {}",
        now.migrations
    );
    ensure!(now.schema == good.schema, "the schema is another one: {}", now.schema);
    ensure!(now.databases == good.databases, "there is {:?}", now.databases);
    let (data, before) = (now.data.of_the_application(), good.data.clone().of_the_application());
    ensure!(data == before, "{before:?} became {data:?}");
    let kept = database.postgres.kept_schemas()?;
    let [kept] = kept.as_slice() else {
        anyhow::bail!("what v3.0.0 alone knew is in {kept:?}")
    };
    let kept = StageData::kept(&database.postgres, kept)?;
    ensure!(kept == *staged, "{staged:?} was kept as {kept:?}");
    Ok(())
}

/// The schema and all data are those that v3.0.0 had, after they were taken back for a while.
pub fn database_undone(database: &Database, bad: &DatabaseFacts) -> Result<()> {
    let now = database.facts()?;
    ensure!(
        (&now.migrations, &now.schema, &now.databases) == (&bad.migrations, &bad.schema, &bad.databases),
        "{bad:?} became {now:?}"
    );
    let (data, before) = (now.data.of_the_application(), bad.data.clone().of_the_application());
    ensure!(data == before, "{before:?} became {data:?}");
    let kept = database.postgres.kept_schemas()?;
    ensure!(kept.is_empty(), "{kept:?} is left over");
    Ok(())
}

/// Every check was asked; the two that leave traces have left them. How many there are.
pub fn checks(fleet: &Fleet, report: &Value) -> Result<usize> {
    ensure!(fleet.touched.exists(), "the command was not run");
    let statistics = run(Command::new("redis-cli").args(["-h", &fleet.cache()?, "INFO", "commandstats"]))?;
    for command in ["cmdstat_ping", "cmdstat_set", "cmdstat_del"] {
        ensure!(statistics.contains(command), "redis was not asked: {statistics}");
    }
    let keys = run(Command::new("redis-cli").args(["-h", &fleet.cache()?, "DBSIZE"]))?;
    ensure!(keys.trim().ends_with('0'), "keys are left behind: {keys}");
    let steps = report["steps"].as_array().context("a report has steps")?;
    // Applications are verified once before, when their batch is done.
    let verified = steps
        .iter()
        .filter(|step| step["action"] == "verify" && step["phase"] == "verify");
    let said: Vec<&str> = verified.filter_map(|step| step["summary"].as_str()).collect();
    // More words would say which of them could not be judged.
    let counts = said
        .iter()
        .filter_map(|s| s.split_once("checks passed: ")?.1.parse::<usize>().ok());
    let passed = counts.sum();
    ensure!(
        passed == CHECKS,
        "{passed} of {CHECKS} checks are said to have passed: {said:?}"
    );
    Ok(passed)
}

fn expect_greeting(greeting: Option<&String>, version: Version) -> Result<()> {
    ensure!(
        greeting.is_some_and(|found| found == version.greeting()),
        "the process has the greeting {greeting:?}"
    );
    Ok(())
}

fn expect_in_file(env: &Path, version: Version) -> Result<()> {
    let text = std::fs::read_to_string(env).with_context(|| format!("read {}", env.display()))?;
    let line = format!("GREETING={}", version.greeting());
    ensure!(text.lines().any(|l| l == line), "{} lacks {line}", env.display());
    Ok(())
}

fn expect_cwd(cwd: &Path, current: &Path) -> Result<()> {
    let live = std::fs::canonicalize(current).context("follow the link")?;
    ensure!(
        cwd == live,
        "the process works in {}, not in {}",
        cwd.display(),
        live.display()
    );
    Ok(())
}
