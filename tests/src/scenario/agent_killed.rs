//! kill -9 of db-1's agent inside a down migration, then of app-1's agent while the application starts. Both are started
//! again; the rollback goes on to its end by itself, and no step took effect twice.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::ctl::rollback_to;
use crate::fleet::Fleet;
use crate::postgres::DATABASE;
use crate::wait;
use crate::zekka::Version;

/// In front of v3.0.0's down migration: slow on the live database, not on the copy that the rehearsal uses.
const SLOW_DOWN: &str =
    "SELECT CASE WHEN current_database() = 'zekka_production' THEN pg_sleep(2) ELSE pg_sleep(0) END;\n";

const SLOW_START: Duration = Duration::from_secs(3);

pub async fn tell(options: Options) -> Result<Found> {
    let builder = Fleet::builder().down_extra(Version::V3_0_0, SLOW_DOWN);
    on_fleet(builder, options, async |fleet| {
        fleet.deploy_both().await?;
        for host in &fleet.zekka.hosts {
            host.set_fault(Version::V2_9_0, false, SLOW_START)?;
        }
        let marks = Marks::set(fleet)?;
        let running = fleet.ctl.start(&rollback_to("v2.9.0"), false)?;

        wait::until_true(
            "the down migration runs on the live database",
            Duration::from_secs(60),
            async || {
                let sleeping = format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND wait_event = 'PgSleep'"
                );
                fleet.postgres.psql("postgres", &sleeping).is_ok_and(|n| n != "0")
            },
        )
        .await?;
        options.say("The migration is running: kill -9 of db-1's agent.");
        fleet.agent("db-1")?.kill()?;
        fleet.agent("db-1")?.run().await?;

        marks.wait_started(fleet, "app-1").await?;
        options.say("v2.9.0 is starting on app-1: kill -9 of its agent.");
        fleet.agent("app-1")?.kill()?;
        fleet.agent("app-1")?.run().await?;

        let answer = running.answer().await?.expect_code(0)?;
        let after = expect_running(fleet, Version::V2_9_0)?;
        marks.expect_once(fleet)?;
        ensure!(
            after.databases == ["postgres", DATABASE],
            "databases left over: {:?}",
            after.databases
        );
        Ok(found(
            json!({ "exit_code": answer.code, "state": answer.json()?["state"] }),
        ))
    })
    .await
}
