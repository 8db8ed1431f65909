//! v2.9.0's backup is live already when v2.9.0 turns out never to get healthy on app-2. Everything is undone: the original
//! database is live again, with every row and every sequence as they were, and v3.0.0 runs on it. Exit code 5.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::judge::{StepTimes, restore_to};
use crate::facts::Rows;
use crate::fleet::Fleet;
use crate::postgres::DATABASE;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::zekka::Version;

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    fleet.deploy(Version::V2_9_0).await?;
    fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
    fleet.agent("db-1")?.tool(&["database", "backup", "db"])?;
    fleet.deploy(Version::V3_0_0).await?;
    fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
    fleet.app("app-2")?.set_fault(Version::V2_9_0, true, Duration::ZERO)?;
    let before = expect_running(fleet, Version::V3_0_0)?;
    let rows = Rows::read(&fleet.postgres, DATABASE)?;
    let oid = oid(fleet)?;

    options.say("v2.9.0 will never be healthy on app-2. Restoring its database …");
    let answer = restore_to(fleet, "v2.9.0", Some("all")).await?.expect_code(5)?;
    let result = answer.json()?;
    ensure!(
        result["state"] == "undone" && result["blocked"] == false && result["problem"]["code"] == "RB0500",
        "the state is {} with {}",
        result["state"],
        result["problem"]
    );
    let id = result["rollback_id"]
        .as_str()
        .context("the answer names the rollback")?;
    let report = fleet.ctl.show(id).await?;
    StepTimes::of_report(&report).context("the database was staged and switched")?;

    let after = expect_running(fleet, Version::V3_0_0)?;
    // Checksums of all tables, sequences, the schema, the list of databases.
    expect_nothing("not as before", &after.changes_since(&before, false))?;
    ensure!(Rows::read(&fleet.postgres, DATABASE)? == rows, "rows are not as before");
    ensure!(self::oid(fleet)? == oid, "it is a copy, not the original database");
    Ok(found(json!({
        "exit_code": answer.code,
        "state": result["state"],
        "problem": result["problem"],
        "tables": after.data.tables.len(),
        "rows": rows.total(),
    })))
}

/// Which database bears the name.
fn oid(fleet: &Fleet) -> Result<String> {
    let sql = format!("SELECT oid FROM pg_database WHERE datname = '{DATABASE}'");
    fleet.postgres.psql("postgres", &sql)
}
