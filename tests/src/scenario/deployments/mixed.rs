//! One fleet with an application deployed in every way, in one rollback with a schema change:
//!
//! | host | how | asked besides its health |
//! |---|---|---|
//! | app-1 | container | its log, its process |
//! | app-2 | Compose | the redis beside it |
//! | app-3 | git, npm, pm2 | a command |
//! | app-4 | archive, systemd (a host of its own) | the journal, the unit |
//! | app-5 | release directory, env file, with the database | its log, its process |
//! | db-1 | PostgreSQL; v3.0.0 has migrated it | a query |
//! | proxy-1 | nginx before all of them | the application through it |
//!
//! app-4 runs v3.0.0 before all others do, and has v2.9.0 as an archive only: the release is imported while v2.9.0 runs
//! everywhere else, `--as-is`. Then v3.0.0 goes everywhere, with its migration, and all of it comes back: first for nothing,
//! because a single check does not pass at the end and everything is undone, then for good.

mod fleet;
mod judge;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use self::fleet::Fleet;
use super::on_control;
use crate::control::Control;
use crate::facts::StageData;
use crate::prober::Prober;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// Of all hosts: the application on each of five, the env files of three, the database and the proxy.
const COMPONENTS: usize = 10;

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 25;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Deploying v2.9.0 in every way …");
    let mut fleet = Fleet::deploy(control).await?;
    let good = fleet.database.facts()?;
    let mut import = vec!["release", "import", "v2.9.0", "-o", "json"];
    for target in fleet::AS_IS {
        import.extend(["--as-is", target]);
    }
    let imported = control.ctl.run(&import).await?.expect_code(0)?.json()?;
    let entries = imported["release"]["entries"]
        .as_array()
        .context("a release is stored")?;
    ensure!(entries.len() == COMPONENTS, "{} components: {imported}", entries.len());
    let from_archive = entries.iter().any(|entry| {
        let summary = entry["summary"].as_str().unwrap_or_default();
        entry["host"] == "app-4" && summary.contains("backups/v2.9.0.tar.gz") && summary.contains("SHA-256 checked")
    });
    ensure!(from_archive, "app-4's archive was not taken: {imported}");

    options.say("Deploying v3.0.0 everywhere …");
    fleet.upgrade().await?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let staged = StageData::live(&fleet.database.postgres)?;
    let (bad, bystanders) = (fleet.database.facts()?, fleet.bystanders()?);
    judge::everything(&fleet, Version::V3_0_0).await?;

    options.say("Rolling all of it back, while redis does not answer …");
    let cache = fleet.compose.facts("cache")?.id;
    fleet.docker.run(&["pause", &cache])?;
    let undone = control.ctl.roll_back("v2.9.0").await?.expect_code(5)?;
    fleet.docker.run(&["unpause", &cache])?;
    let reason = undone.json()?["problem"].to_string();
    ensure!(reason.contains("check cache"), "it was undone because of {reason}");
    judge::everything(&fleet, Version::V3_0_0).await.context("undone")?;
    judge::database_undone(&fleet.database, &bad).context("undone")?;
    ensure!(fleet.bystanders()? == bystanders, "what is no part of it was touched");
    fleet.forget_command()?;

    let prober = Prober::start(fleet.nginx.url("/api/version"))?;
    prober.until_served(ANSWERED).await?;
    options.say("Rolling all of it back …");
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;

    options.say("Looking at every host …");
    judge::everything(&fleet, Version::V2_9_0).await?;
    judge::unpacked(&fleet.unit, Version::V2_9_0)?;
    judge::database(&fleet.database, &good, &staged)?;
    ensure!(fleet.bystanders()? == bystanders, "what is no part of it was touched");
    let result = answer.json()?;
    let id = result["rollback_id"]
        .as_str()
        .context("the answer names the rollback")?;
    let asked = judge::checks(&fleet, &control.ctl.show(id).await?)?;

    let downtime = samples.downtime().context("users got answers")?;
    judge::served_since(&fleet.nginx)?;
    let mut all = found(json!({
        "undone_exit_code": undone.code,
        "exit_code": answer.code,
        "state": result["state"],
        "hosts": 7,
        "components": entries.len(),
        "checks": asked,
        "downtime_ms": downtime.longest.as_millis(),
    }));
    all.extend(found(samples.figures()));
    Ok(all)
}
