//! Zekka's runbook, "Database Restore from Backup", run as it is written, against `--database restore`, on one fleet in one
//! run, with users who go on asking and writing all the while: how long is nobody served?
//!
//! Both ways begin with v3.0.0 live and a backup of v2.9.0's database, and end with v2.9.0 healthy behind nginx. The
//! runbook's way: stop the application, empty the database, `psql < dump.sql`, count the users, start v2.9.0. Nobody waits
//! or thinks in between: a real person takes longer. Ours: one command. Downtime is the longest time between two
//! successful answers to `/api/health` through nginx, which wants the database.
//!
//! Ours comes first, and with one writer more: a job past the application, which nobody stops and which connects again
//! whenever it is cut off. By the runbook it would write into the half restored database, and break it; so there it is
//! left out. What is lost is counted here row by row: in the database that was put aside, and not in the live one. And
//! every write that was acknowledged must be in one of the two.
//!
//! That restore agrees to any loss, so that nobody waits for the figures. One that agrees to a number of rows counts while
//! nobody is served: it comes next, from a backup of its own.
//!
//! After them, the same way back by migrations, and right before it its raw work by hand: a dump, a restore over two
//! sessions, sums of all tables of both. All that ours does to the database is held against that, and the restore, too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::judge::{Counted, Loss, StepTimes, operations_of_switch, put_aside};
use super::users::{Lived, Users};
use crate::ballast;
use crate::ctl::rollback_to;
use crate::facts::{Rows, curl};
use crate::fleet::Fleet;
use crate::postgres::{ByHand, DATABASE};
use crate::scenario::{Found, Options, found, on_fleet};
use crate::writers::Written;
use crate::zekka::Version;

/// Of the whole database, unless told otherwise; the targets below are of this size.
const FULL_MIB: u64 = 1024;

const DEALS: u64 = 20_000;

/// For a command that dumps, restores and reads a whole database.
const ROLLED_BACK_WITHIN: Duration = Duration::from_secs(1800);

/// How many times longer users must be without an answer by the runbook than by ours.
const LESS_DOWNTIME: f64 = 20.0;
/// The switch of the database, with everything in it.
const CUTOVER_MS: f64 = 3_000.0;
/// All that ours does to the database, against a dump, a restore and sums of all tables by hand.
const OF_BY_HAND: f64 = 1.3;

pub async fn tell(options: Options) -> Result<Found> {
    let builder = Fleet::builder().rows(DEALS).durable();
    on_fleet(builder, options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    let mib = options.size_mib.unwrap_or(FULL_MIB);
    options.say(format!("Deploying v2.9.0 with {mib} MiB of data, and recording it …"));
    fleet.deploy(Version::V2_9_0).await?;
    ballast::fill(&fleet.postgres, mib)?;
    fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
    let dump = dump_as_in_the_runbook(fleet, options)?;
    let before = back_up(fleet)?;

    options.say("Deploying v3.0.0, and recording it. Things change, and users write …");
    fleet.deploy(Version::V3_0_0).await?;
    fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
    change_things(fleet)?;
    let users = Users::at_work(fleet, "restore")?.and_a_job(fleet);
    let restored = by_command(fleet, users, &RESTORE_AT_ANY_COST, options).await?;
    let loss = Lost::judge(fleet, &before, &restored)?;

    options.say("Dropping what was put aside, and deploying v3.0.0 again, after another backup …");
    let aside = put_aside(&fleet.postgres)?;
    fleet.agent("db-1")?.tool(&["database", "collect", "db", &aside])?;
    let before = back_up(fleet)?;
    fleet.deploy(Version::V3_0_0).await?;
    change_things(fleet)?;
    let users = Users::at_work(fleet, "counted")?;
    let counted = by_command(fleet, users, &RESTORE_COUNTED, options).await?;
    Lost::judge(fleet, &before, &counted)?;

    options.say("Deploying v3.0.0 again. By hand: pg_dump, pg_restore -j 2, and sums of all tables of both …");
    fleet.deploy(Version::V3_0_0).await?;
    let users = Users::at_work(fleet, "migrate")?;
    let by_hand = fleet.postgres.copy_by_hand(&fleet.dir().join("by-hand.dump"))?;
    let migrated = by_command(fleet, users, &[], options).await?;

    options.say("Deploying v3.0.0 again. By the runbook: stop the application, psql < dump.sql, start v2.9.0 …");
    fleet.deploy(Version::V3_0_0).await?;
    let users = Users::at_work(fleet, "runbook")?;
    let runbook = users
        .during(fleet, async |fleet| by_runbook(fleet, &dump).await)
        .await?;
    expect_serving(fleet, Version::V2_9_0)?;

    let measured = Measured {
        mib,
        restored,
        counted,
        migrated,
        runbook,
        by_hand,
        loss,
    };
    options.say(measured.to_string());
    measured.judge().map(found)
}

fn dump_as_in_the_runbook(fleet: &Fleet, options: Options) -> Result<PathBuf> {
    let size = format!("SELECT pg_size_pretty(pg_database_size('{DATABASE}'))");
    let size = fleet.postgres.psql("postgres", &size)?;
    options.say(format!("Backups of {size}: pg_dump > v2.9.0.sql, and by the agent …"));
    let sql = fleet.dir().join("v2.9.0.sql");
    fleet.postgres.dump_sql(&sql)?;
    Ok(sql)
}

/// A backup by the agent, and what there is in it.
fn back_up(fleet: &mut Fleet) -> Result<Rows> {
    fleet.agent("db-1")?.tool(&["database", "backup", "db"])?;
    Rows::read(&fleet.postgres, DATABASE)
}

/// What happens to a database in a day: rows change, go and come.
fn change_things(fleet: &Fleet) -> Result<()> {
    fleet.postgres.migrate(
        "UPDATE documents SET title = 'Changed ' || id WHERE id % 500 = 7;\
         DELETE FROM messages WHERE id % 1000 = 3;\
         INSERT INTO users (email) SELECT 'late' || n || '@zekka.example' FROM generate_series(1, 250) n;",
    )
}

fn expect_serving(fleet: &Fleet, version: Version) -> Result<()> {
    for path in ["/api/health", "/api/version"] {
        let answer = curl(&fleet.nginx.url(path))?;
        ensure!(
            answer.status == 200 && answer.body.contains(version.name()),
            "{path} answers with {}, not of {}: {}",
            answer.status,
            version.name(),
            answer.body
        );
    }
    Ok(())
}

/// What came of our way.
struct Ours {
    lived: Lived,
    report: serde_json::Value,
    times: StepTimes,
}

const RESTORE_AT_ANY_COST: [&str; 3] = ["--database", "restore", "--accept-data-loss=all"];
const RESTORE_COUNTED: [&str; 3] = ["--database", "restore", "--accept-data-loss=1000000"];

async fn by_command(fleet: &mut Fleet, users: Users, how: &[&str], options: Options) -> Result<Ours> {
    options.say(format!("$ rollbackctl fleet rollback --to v2.9.0 {}", how.join(" ")));
    let mut id = String::new();
    let lived = users
        .during(fleet, async |fleet| {
            let args = [&rollback_to("v2.9.0"), how].concat();
            let running = fleet.ctl.start(&args, false)?;
            let answer = running.answer_within(ROLLED_BACK_WITHIN).await?;
            let result = answer.expect_code(0)?.json()?;
            id = result["rollback_id"]
                .as_str()
                .context("the answer names the rollback")?
                .to_owned();
            Ok(())
        })
        .await?;
    expect_serving(fleet, Version::V2_9_0)?;
    let report = fleet.ctl.show(&id).await?;
    let times = StepTimes::of_report(&report)?;
    Ok(Ours { lived, report, times })
}

async fn by_runbook(fleet: &Fleet, dump: &Path) -> Result<()> {
    for host in &fleet.zekka.hosts {
        host.stop()?;
    }
    fleet.postgres.restore_sql(dump)?;
    let users = fleet.postgres.psql(DATABASE, "SELECT count(*) FROM users")?;
    ensure!(users != "0", "there are no users");
    fleet.zekka.replace_all(&fleet.postgres, Version::V2_9_0)?;
    fleet.zekka.wait_healthy(Version::V2_9_0).await?;
    let site = fleet.zekka.render_site(&fleet.nginx, Version::V2_9_0);
    std::fs::write(fleet.nginx.site(), site).context("write the site")?;
    fleet.nginx.reload().await
}

/// What the restore has cost: as it was told, and as it is.
struct Lost {
    told: Loss,
    counted: Counted,
}

impl Lost {
    fn judge(fleet: &Fleet, before: &Rows, restored: &Ours) -> Result<Self> {
        let aside = put_aside(&fleet.postgres)?;
        let told = Loss::of_report(&restored.report)?;
        let counted = Counted::now(&fleet.postgres, &aside, before)?;
        counted.expect(&told)?;
        let found = [&aside, DATABASE].map(|name| Written::found_in(&fleet.postgres, name));
        let found = found.into_iter().collect::<Result<Vec<_>>>()?;
        let broken = restored.lived.written.in_none_of(&found);
        ensure!(
            broken.is_empty(),
            "{} writes were acknowledged and are in neither database, {:?} among them",
            broken.len(),
            broken.first()
        );
        Ok(Self { told, counted })
    }
}

struct Measured {
    mib: u64,
    restored: Ours,
    counted: Ours,
    migrated: Ours,
    runbook: Lived,
    by_hand: ByHand,
    loss: Lost,
}

impl Measured {
    fn downtime_ratio(&self) -> f64 {
        self.runbook.downtime.as_secs_f64() / self.restored.lived.downtime.as_secs_f64()
    }

    fn of_by_hand(&self, times: &StepTimes) -> f64 {
        times.total() / millis(self.by_hand.total())
    }

    /// The figures, if they are what they must be.
    fn judge(self) -> Result<serde_json::Value> {
        let (restored, migrated, by_hand) = (&self.restored.times, &self.migrated.times, &self.by_hand);
        let cutover = restored.switch;
        let ratio = self.downtime_ratio();
        let (of_restore, of_migrate) = (self.of_by_hand(restored), self.of_by_hand(migrated));
        let figures = json!({
            "size_mib": self.mib,
            "downtime_ours_ms": rounded(millis(self.restored.lived.downtime)),
            "downtime_runbook_ms": rounded(millis(self.runbook.downtime)),
            "downtime_ratio": rounded(ratio),
            "downtime_counted_ms": rounded(millis(self.counted.lived.downtime)),
            "cutover_counted_ms": rounded(self.counted.times.switch),
            "downtime_migrate_ms": rounded(millis(self.migrated.lived.downtime)),
            "cutover_ms": rounded(cutover),
            "cutover_operations": operations_of_switch(&self.restored.report)?,
            "stage_ms": rounded(restored.stage),
            "snapshot_ms": rounded(restored.snapshot),
            "stage_switch_ms": rounded(restored.total()),
            "stage_switch_ratio": rounded(of_restore),
            "migrate_stage_switch_ms": rounded(migrated.total()),
            "migrate_stage_switch_ratio": rounded(of_migrate),
            "by_hand_ms": rounded(millis(by_hand.total())),
            "by_hand_dump_ms": rounded(millis(by_hand.dump)),
            "by_hand_restore_ms": rounded(millis(by_hand.restore)),
            "by_hand_reads_ms": rounded(millis(by_hand.reads)),
            "rows_lost_reported": self.loss.told.rows_written(),
            "rows_lost_actual": self.loss.counted.rows_lost(),
            "rows_replaced": self.loss.told.rows_replaced(),
            "writes_acknowledged": self.restored.lived.written.len(),
            "took_ours_ms": rounded(millis(self.restored.lived.took)),
            "took_runbook_ms": rounded(millis(self.runbook.took)),
        });
        // Of a small database both take about a second, and which one is quicker is chance.
        if self.mib >= FULL_MIB {
            ensure!(
                ratio >= LESS_DOWNTIME
                    && cutover.max(self.counted.times.switch) < CUTOVER_MS
                    && of_restore.max(of_migrate) <= OF_BY_HAND,
                "the targets are {LESS_DOWNTIME} times less downtime, a cutover below {CUTOVER_MS} ms and {OF_BY_HAND} \
                 times the work by hand: {figures}"
            );
        }
        Ok(figures)
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (restored, migrated, by_hand) = (&self.restored, &self.migrated, &self.by_hand);
        writeln!(
            f,
            "nobody was served for   runbook {:.0} ms, restore {:.0} ms: {:.1} times less; restore that counts first {:.0} ms; \
             migrations {:.0} ms",
            millis(self.runbook.downtime),
            millis(restored.lived.downtime),
            self.downtime_ratio(),
            millis(self.counted.lived.downtime),
            millis(migrated.lived.downtime),
        )?;
        writeln!(
            f,
            "by hand                 {:.0} ms: dump {:.0}, restore {:.0}, sums {:.0}",
            millis(by_hand.total()),
            millis(by_hand.dump),
            millis(by_hand.restore),
            millis(by_hand.reads),
        )?;
        for (name, times) in [("restore   ", &restored.times), ("migrations", &migrated.times)] {
            writeln!(
                f,
                "{name}              {:.0} ms: stage {:.0}, snapshot {:.0}, switch {:.0}: {:.2} of by hand",
                times.total(),
                times.stage,
                times.snapshot,
                times.switch,
                self.of_by_hand(times),
            )?;
        }
        write!(
            f,
            "rows lost               {} told, {} counted",
            self.loss.told.rows_written(),
            self.loss.counted.rows_lost(),
        )
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// To hundredths.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
