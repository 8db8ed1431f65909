//! v2.9.0's backup comes back over v3.0.0, after a day of writes. Nobody agreed to a loss: refused. Too few rows agreed
//! to: refused. Agreed to what the plan showed, and users went on writing: the loss is counted again when nobody can
//! write any more, it is too great, and everything is undone. Agreed to what is lost: the backup is live, the loss was
//! told exactly, and the old database is kept until somebody drops it on purpose.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::judge::{Counted, Loss, put_aside, restore_to};
use crate::ctl::{Answer, rollback_to};
use crate::facts::{Facts, Rows};
use crate::fleet::Fleet;
use crate::postgres::DATABASE;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::wait;
use crate::writers::{Writers, Written};
use crate::zekka::Version;

const STAGED_WITHIN: Duration = Duration::from_secs(30);

/// What belongs to a database and not to what is in it: owner, rights, limits, settings, comment.
const SETTINGS: &str = "\
    SELECT pg_get_userbyid(d.datdba), d.datacl, d.datconnlimit, d.datallowconn, shobj_description(d.oid, 'pg_database'), \
           (SELECT string_agg(concat(s.setrole::regrole, s.setconfig), ';' ORDER BY s.setrole) \
            FROM pg_db_role_setting s WHERE s.setdatabase = d.oid) \
    FROM pg_database d WHERE d.datname = 'zekka_production'";

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    options.say("Deploying v2.9.0, recording it and making a backup …");
    fleet.deploy(Version::V2_9_0).await?;
    fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
    fleet.agent("db-1")?.tool(&["database", "backup", "db"])?;
    let good = expect_running(fleet, Version::V2_9_0)?;
    let backup = Rows::read(&fleet.postgres, DATABASE)?;
    options.say("Deploying v3.0.0. Rows come, change and go, and somebody sets the database up in another way …");
    fleet.deploy(Version::V3_0_0).await?;
    fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
    write_and_set(fleet)?;
    let settings = fleet.postgres.psql("postgres", SETTINGS)?;
    let before = expect_running(fleet, Version::V3_0_0)?;

    let expected = Counted::between(&Rows::read(&fleet.postgres, DATABASE)?, &backup);
    options.say(format!(
        "A restore would lose {} rows. Trying without consent …",
        expected.rows_lost()
    ));
    let shown = planned_loss(fleet).await?;
    expected.expect(&shown).context("the plan")?;
    let without = refused(fleet, &before, None, (3, "RB0208")).await?;
    options.say("… and with consent to 10 rows …");
    let too_few = refused(fleet, &before, Some("10"), (3, "RB0710")).await?;

    options.say(format!(
        "… and to {} rows, while users go on writing …",
        expected.rows_lost()
    ));
    let outrun = outrun_by_writers(fleet, expected.rows_lost()).await?;
    ensure!(
        fleet.postgres.databases()? == before.databases,
        "databases are left over: {:?}",
        fleet.postgres.databases()?
    );

    let last = Rows::read(&fleet.postgres, DATABASE)?;
    let expected = Counted::between(&last, &backup);
    let agreed = expected.rows_lost().to_string();
    options.say(format!(
        "$ rollbackctl fleet rollback --to v2.9.0 --database restore --accept-data-loss={agreed}"
    ));
    let result = restore_to(fleet, "v2.9.0", Some(&agreed))
        .await?
        .expect_code(0)?
        .json()?;
    let after = expect_running(fleet, Version::V2_9_0)?;
    let report = fleet.ctl.report_of(&result).await?;
    let aside = put_aside(&fleet.postgres)?;
    let told = Loss::of_report(&report)?;
    expected
        .expect(&told)
        .context("against what the database had in the end")?;
    Counted::now(&fleet.postgres, &aside, &backup)?
        .expect(&told)
        .context("against what was put aside")?;
    ensure!(
        report["losses"][0]["loss"]["put_aside"] == aside.as_str(),
        "the report shall name {aside}: {}",
        report["losses"]
    );
    ensure!(
        Rows::read(&fleet.postgres, &aside)? == last,
        "{aside} is not what the database was"
    );
    expect_restored(fleet, &good, &after, &settings)?;

    fleet.agent("db-1")?.tool(&["database", "collect", "db", &aside])?;
    ensure!(
        fleet.postgres.databases()? == before.databases,
        "collecting {aside} left {:?}",
        fleet.postgres.databases()?
    );
    Ok(found(json!({
        "state": result["state"],
        "rows_lost_planned": shown.rows_written(),
        "rows_lost_reported": told.rows_written(),
        "rows_lost_actual": expected.rows_lost(),
        "rows_replaced": told.rows_replaced(),
        "exit_code_without_consent": without.code,
        "exit_code_too_few_rows": too_few.code,
        "exit_code_outrun": outrun.code,
    })))
}

fn write_and_set(fleet: &Fleet) -> Result<()> {
    fleet.postgres.migrate(
        "INSERT INTO users (email) SELECT 'late' || n || '@zekka.example' FROM generate_series(1, 30) n;\
         UPDATE deals SET amount = amount + 1 WHERE id BETWEEN 1101 AND 1120;\
         UPDATE deals SET amount = amount + 1 WHERE id BETWEEN 1111 AND 1130;\
         DELETE FROM deals WHERE id BETWEEN 1901 AND 1905;",
    )?;
    fleet.postgres.psql(
        "postgres",
        "ALTER DATABASE zekka_production CONNECTION LIMIT 50;\
         ALTER DATABASE zekka_production SET work_mem = '5MB';\
         ALTER ROLE zekka IN DATABASE zekka_production SET statement_timeout = '61s';\
         REVOKE TEMPORARY ON DATABASE zekka_production FROM PUBLIC;\
         COMMENT ON DATABASE zekka_production IS 'all deals';",
    )?;
    Ok(())
}

/// What `fleet plan` says that a restore would cost.
async fn planned_loss(fleet: &Fleet) -> Result<Loss> {
    let args = ["fleet", "plan", "--to", "v2.9.0", "--database", "restore", "-o", "json"];
    let answer = fleet.ctl.run(&args).await?;
    let plan = answer.json()?;
    let findings = plan["findings"]
        .as_array()
        .with_context(|| format!("the plan lists findings: {answer}"))?;
    let loss = findings
        .iter()
        .find(|f| f["component"] == "db" && f["loss"].is_object());
    Loss::of_json(&loss.with_context(|| format!("a finding tells the loss: {answer}"))?["loss"])
}

/// Tries. What is refused before it starts (exit code 3) touches nothing, not even a process; what is undone (5) leaves
/// everything as it was.
async fn refused(fleet: &Fleet, before: &Facts, consent: Option<&str>, expected: (i32, &str)) -> Result<Answer> {
    let (exit_code, code) = expected;
    let answer = restore_to(fleet, "v2.9.0", consent).await?.expect_code(exit_code)?;
    ensure!(answer.text().contains(code), "the answer says {code}: {answer}");
    let after = Facts::gather(fleet)?;
    let changes = after.changes_since(before, exit_code == 3);
    expect_nothing("what was refused has changed something", &changes)?;
    Ok(answer)
}

/// Users begin to write when the backup is being restored already, beside the live database: more is lost then than the
/// plan showed and was agreed to, by a hair at least.
async fn outrun_by_writers(fleet: &Fleet, agreed: u64) -> Result<Answer> {
    let databases = fleet.postgres.databases()?;
    let agreed = agreed.to_string();
    let consent = format!("--accept-data-loss={agreed}");
    let mut args = rollback_to("v2.9.0").to_vec();
    args.extend(["--database", "restore", &consent]);
    let running = fleet.ctl.start(&args, false)?;
    wait::until_true("the backup is being restored", STAGED_WITHIN, async || {
        fleet.postgres.databases().is_ok_and(|now| now != databases)
    })
    .await?;
    fleet
        .postgres
        .migrate("INSERT INTO users (email) VALUES ('hair@zekka.example')")?;
    let mut writers = Writers::new();
    writers.through_the_application("outrun", fleet.nginx.url("/api/deals"))?;
    writers.past_the_application("job", &fleet.postgres);
    let answer = running.answer().await;
    let written = writers.stop().await;
    let answer = answer?.expect_code(5)?;
    let result = answer.json()?;
    ensure!(
        result["state"] == "undone" && result["problem"]["code"] == "RB0710",
        "the loss shall be too great: {answer}"
    );
    expect_running(fleet, Version::V3_0_0)?;
    let broken = written.in_none_of(&[Written::found_in(&fleet.postgres, DATABASE)?]);
    ensure!(broken.is_empty(), "acknowledged and not in the database: {broken:?}");
    Ok(answer)
}

/// v2.9.0's schema, rows and sequences; the live database's owner, rights and settings.
fn expect_restored(fleet: &Fleet, good: &Facts, after: &Facts, settings: &str) -> Result<()> {
    let now = fleet.postgres.psql("postgres", SETTINGS)?;
    let mut misfits = Vec::new();
    for (what, right) in [
        ("the schema", after.schema_sha256 == good.schema_sha256),
        ("what tables hold", after.data.tables == good.data.tables),
        ("where sequences are", after.data.sequences == good.data.sequences),
        ("what is set for the database", now == settings),
        (
            "the databases, one of which is new",
            after.databases.len() == good.databases.len() + 1,
        ),
    ] {
        if !right {
            misfits.push(what.to_owned());
        }
    }
    expect_nothing("not as it must be after the restore", &misfits)
        .with_context(|| format!("databases {:?}, settings {now}, before {settings}", after.databases))
}
