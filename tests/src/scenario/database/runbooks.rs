//! The runbooks' scenarios, each by the runbook that is made for it, one after the other on the demo's fleet:
//!
//! | the runbook says | typed here | what must be so afterwards |
//! |---|---|---|
//! | "API Breaking Changes", "Performance Regression": previous version, no database changes | `app-only` | v3.0.0 on v3.1.0's schema, the database untouched |
//! | "Schema-Only Rollback" | `schema-only` | the schema is v3.0.0's, the applications are what they were, started anew |
//! | "Security Vulnerability": immediately to the last secure version; "Total System Failure" | `emergency` | v2.9.0 everywhere |
//! | "Database Migration Failure": data is corrupted, restore from backup | `restore` | every row of the backup, the damaged database put aside |

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::judge::put_aside;
use crate::ctl::Answer;
use crate::facts::{Data, Facts, Rows, curl};
use crate::fleet::Fleet;
use crate::postgres::DATABASE;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::zekka::{AppHost, Version};

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    let mut data = Vec::new();
    for version in [Version::V2_9_0, Version::V3_0_0, Version::V3_1_0] {
        options.say(format!("Deploying and recording {} …", version.name()));
        fleet.deploy(version).await?;
        fleet.ctl.record(version.name()).await?.expect_code(0)?;
        data.push(of_the_application(&expect_running(fleet, version)?));
    }
    let states = json!({
        "app-only": app_only(fleet, options).await?,
        "schema-only": schema_only(fleet, options).await?,
        "emergency": emergency(fleet, &data[0], options).await?,
        "restore": restore(fleet, options).await?,
    });
    Ok(found(states))
}

async fn run(fleet: &Fleet, runbook: &str, to: Version, more: &[&str], options: Options) -> Result<Answer> {
    let args = [
        "fleet",
        "rollback",
        "--to",
        to.name(),
        "--runbook",
        runbook,
        "--yes",
        "-o",
        "json",
    ];
    let args = [&args[..], more].concat();
    options.say(format!("$ rollbackctl {}", args.join(" ")));
    fleet.ctl.run(&args).await
}

/// v3.0.0 works with v3.1.0's schema, too.
async fn app_only(fleet: &mut Fleet, options: Options) -> Result<Value> {
    let before = Facts::gather(fleet)?;
    let result = run(fleet, "app-only", Version::V3_0_0, &[], options)
        .await?
        .expect_code(0)?
        .json()?;
    let after = Facts::gather(fleet)?;
    // Everything else is v3.0.0's.
    let migrations = format!("schema_migrations is {:?}", before.migrations);
    let mut misfits = after.misfits(Version::V3_0_0);
    misfits.retain(|misfit| *misfit != migrations);
    expect_nothing("v3.0.0 does not run everywhere", &misfits)?;
    expect_database_untouched(&before, &after).context("app-only")?;
    Ok(result["state"].clone())
}

/// The schema that v3.1.0 left goes; v3.0.0 is stopped for it and started again.
async fn schema_only(fleet: &mut Fleet, options: Options) -> Result<Value> {
    let before = Facts::gather(fleet)?;
    let result = run(fleet, "schema-only", Version::V3_0_0, &[], options)
        .await?
        .expect_code(0)?
        .json()?;
    let after = expect_running(fleet, Version::V3_0_0)?;
    for (host, app) in &after.apps {
        let was = before.apps.get(host).context("the host was there before")?;
        ensure!(
            app.release_sha256 == was.release_sha256 && app.env_sha256 == was.env_sha256 && app.link == was.link,
            "{host} is not what it was: {was:?}, and now {app:?}"
        );
        ensure!(
            app.pid.is_some() && app.pid != was.pid,
            "{host}'s application was not stopped while the schema changed"
        );
    }
    ensure!(
        after.site_sha256 == before.site_sha256,
        "the site was changed by a rollback of the schema"
    );
    Ok(result["state"].clone())
}

/// Nobody is served any more when somebody types it.
async fn emergency(fleet: &mut Fleet, data: &Data, options: Options) -> Result<Value> {
    fleet.zekka.hosts.iter().for_each(AppHost::end);
    let served = curl(&fleet.nginx.url("/api/health"))?.status;
    ensure!(served >= 500, "the whole system is down, and the answer is {served}");
    let result = run(fleet, "emergency", Version::V2_9_0, &[], options)
        .await?
        .expect_code(0)?
        .json()?;
    let after = of_the_application(&expect_running(fleet, Version::V2_9_0)?);
    ensure!(after == *data, "v2.9.0 held {data:?}, and holds {after:?}");
    Ok(result["state"].clone())
}

/// Amounts are zeroed and deals are gone; the schema is that of the release all the time. The backup is the runbook's:
/// `backups/last-stable.sql`, which the agent takes in.
async fn restore(fleet: &mut Fleet, options: Options) -> Result<Value> {
    let stable = fleet.host_dir("db-1").join("last-stable.sql");
    fleet.postgres.dump_sql(&stable)?;
    let stable = stable.display().to_string();
    fleet
        .agent("db-1")?
        .tool(&["database", "adopt", "db", &stable, "--quiet"])?;
    let good = expect_running(fleet, Version::V2_9_0)?;
    fleet
        .postgres
        .migrate("UPDATE deals SET amount = 0 WHERE id % 3 = 0; DELETE FROM deals WHERE id % 7 = 0")?;
    let damaged = Rows::read(&fleet.postgres, DATABASE)?;

    let refused = run(fleet, "restore", Version::V2_9_0, &[], options).await?;
    ensure!(
        refused.code == 3 && refused.text().contains("accept-data-loss"),
        "a restore begins only when somebody agrees to the loss: {refused}"
    );
    let untouched = Rows::read(&fleet.postgres, DATABASE)?;
    ensure!(untouched == damaged, "a refused restore changed the database");

    let consent = ["--accept-data-loss=all"];
    let result = run(fleet, "restore", Version::V2_9_0, &consent, options)
        .await?
        .expect_code(0)?
        .json()?;
    let after = expect_running(fleet, Version::V2_9_0)?;
    ensure!(
        after.data == good.data && after.schema_sha256 == good.schema_sha256,
        "the backup held {:?}, and live is {:?}",
        good.data,
        after.data
    );
    let aside = put_aside(&fleet.postgres)?;
    ensure!(
        Rows::read(&fleet.postgres, &aside)? == damaged,
        "{aside} is not the database that was live before"
    );
    Ok(result["state"].clone())
}

fn of_the_application(facts: &Facts) -> Data {
    facts.data.clone().of_the_application()
}

fn expect_database_untouched(before: &Facts, after: &Facts) -> Result<()> {
    ensure!(
        after.schema_sha256 == before.schema_sha256
            && after.migrations == before.migrations
            && after.data == before.data
            && after.databases == before.databases
            && after.kept_schemas == before.kept_schemas,
        "the database is not what it was: {:?} with {}, and now {:?} with {}",
        before.data,
        before.migrations,
        after.data,
        after.migrations
    );
    Ok(())
}
