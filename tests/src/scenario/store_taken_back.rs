//! The store loses what it had confirmed: in the middle of a rollback it is replaced by a backup that is some seconds old,
//! as after a failover to an asynchronous replica. It gives out an epoch that agents have seen already, and it does not know
//! the last steps. The agents do: the leader takes a higher epoch and holds the rollback with that reason, and nothing more
//! is done to any host. Asked again, the fleet goes where it was asked to go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::control::StoreKind;
use crate::ctl::rollback_to;
use crate::fleet::{Fleet, HOSTS};
use crate::process::run;
use crate::store_server::{DATABASE, ROLE};
use crate::wait;
use crate::zekka::Version;

/// Long enough for a kill, a restart and another kill inside the start of the application.
const SLOW_START: Duration = Duration::from_secs(6);

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(
        Fleet::builder().rows(500).store(StoreKind::Postgres),
        options,
        async |fleet| {
            fleet.deploy_both().await?;
            for host in &fleet.zekka.hosts {
                host.set_fault(Version::V2_9_0, false, SLOW_START)?;
            }
            let marks = Marks::set(fleet)?;
            let before = epoch(fleet)?;
            let running = fleet.ctl.start(&rollback_to("v2.9.0"), false)?;

            wait::until_true(
                "the backup of the database is sealed",
                Duration::from_secs(60),
                async || {
                    let sql = "SELECT count(*) FROM events WHERE payload LIKE '%phase_started%quiesce%'";
                    fleet.store_server().and_then(|s| s.psql(sql)).is_ok_and(|n| n == "1")
                },
            )
            .await?;
            let backup = fleet.dir().join("store.dump");
            let cluster = fleet.store_server()?.cluster();
            run(cluster
                .client("pg_dump", ROLE, DATABASE)
                .args(["-Fc", "-f"])
                .arg(&backup))?;
            options.say("The store was backed up when users were taken out.");

            marks.wait_started(fleet, "app-1").await?;
            options.say(
                "v2.9.0 is starting: the coordinator is killed and started again, and the agents know the new one.",
            );
            fleet.coordinator.kill()?;
            fleet.coordinator.run().await?;
            let seen = fleet.wait_leader_after(before, Duration::from_secs(10)).await?;
            wait::until_true("an agent obeys the new one", Duration::from_secs(10), async || {
                obeyed(fleet, "app-1").await.is_ok_and(|epoch| epoch == seen.epoch)
            })
            .await?;

            options.say("It is killed once more, and its store is taken back to the backup.");
            fleet.coordinator.kill()?;
            let server = fleet.store_server()?;
            let cluster = server.cluster();
            cluster.psql("postgres", &format!("DROP DATABASE {DATABASE} WITH (FORCE)"))?;
            cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
            run(cluster
                .client("pg_restore", ROLE, DATABASE)
                .args(["--exit-on-error", "--no-owner", "-d", DATABASE])
                .arg(&backup))?;
            ensure!(epoch(fleet)? == before, "the backup's epoch is the first one");
            fleet.coordinator.run().await?;
            let answer = running.answer().await?.expect_code(5)?;
            let result = answer.json()?;
            ensure!(result["state"] == "held", "it is to be held: {answer}");
            ensure!(result["problem"]["code"] == "RB0903", "it says why: {answer}");
            let obeyed_at_last = obeyed(fleet, "app-1").await?;
            ensure!(
                obeyed_at_last > seen.epoch,
                "the leader is above what agents had seen: {obeyed_at_last}, {}",
                seen.epoch
            );
            let doctor = fleet.ctl.run(&["doctor"]).await?;
            ensure!(doctor.stdout.contains("RB0903"), "doctor says it: {doctor}");
            ensure!(marks.duplicates(fleet)? == 0, "something took effect twice");

            options.say("HELD, with the reason. Asked again, when what runs on the hosts has ended …");
            wait::until_true(
                "v2.9.0 has started on both hosts or on none",
                Duration::from_secs(30),
                async || {
                    fleet
                        .ctl
                        .run(&["fleet", "status", "-o", "json"])
                        .await
                        .is_ok_and(|s| s.code == 0)
                },
            )
            .await?;
            fleet.wait_connected(&HOSTS).await?;
            fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
            expect_running(fleet, Version::V2_9_0)?;
            Ok(found(json!({
                "held": result["problem"]["message"],
                "epoch_of_the_backup": before,
                "epoch_that_agents_had_seen": seen.epoch,
                "epoch_taken": obeyed_at_last,
            })))
        },
    )
    .await
}

/// Of the lease, by psql.
fn epoch(fleet: &Fleet) -> Result<u64> {
    let epoch = fleet.store_server()?.psql("SELECT epoch FROM lease")?;
    epoch.parse().context("an epoch")
}

/// The epoch that an agent obeys, from its own disk.
async fn obeyed(fleet: &Fleet, host: &str) -> Result<u64> {
    let ledger = fleet.host_dir(host).join("agent/state/ledger.db");
    let options = SqliteConnectOptions::new().filename(ledger).read_only(true);
    let mut ledger = options.connect().await.context("open the agent's ledger")?;
    let epoch: i64 = sqlx::query_scalar("SELECT max_epoch FROM meta")
        .fetch_one(&mut ledger)
        .await
        .context("read the agent's ledger")?;
    Ok(epoch.cast_unsigned())
}
