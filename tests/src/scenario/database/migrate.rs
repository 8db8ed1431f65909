//! The demo's fleet with three migrations between its releases: a pair of files, one file with both ways, and an index that
//! is made and dropped while others write, which no transaction takes. All go down in one rollback; what they drop is kept,
//! and is back when they come up again.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::facts::{Facts, StageData};
use crate::fleet::Fleet;
use crate::postgres::{DATABASE, Postgres};
use crate::scenario::{Found, Options, expect_running, found, on_fleet};
use crate::zekka::Version;

const OLD: Version = Version::V2_9_0;
const NEW: Version = Version::V3_1_0;

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    let mut as_it_was = Vec::new();
    for version in [OLD, NEW] {
        options.say(format!("Deploying and recording {} …", version.name()));
        fleet.deploy(version).await?;
        fleet.ctl.record(version.name()).await?.expect_code(0)?;
        as_it_was.push(expect_running(fleet, version)?);
        expect_indexes(&fleet.postgres, version)?;
    }
    let (old, new) = (as_it_was.remove(0), as_it_was.remove(0));
    let stages = StageData::live(&fleet.postgres)?;
    let names = "SELECT count(*) FROM users WHERE display_name IS NOT NULL";
    let named = fleet.postgres.psql(DATABASE, names)?;
    ensure!(named != "0", "v3.1.0 shall have names of its own");

    options.say("Rolling back to v2.9.0: three migrations down …");
    let back = fleet.ctl.roll_back(OLD.name()).await?.expect_code(0)?.json()?;
    let between = expect_running(fleet, OLD)?;
    expect_indexes(&fleet.postgres, OLD)?;
    expect_same(&between, &old).context("v2.9.0 is not what it was")?;
    let [schema] = between.kept_schemas.as_slice() else {
        anyhow::bail!("one schema keeps v3.1.0's data: {:?}", between.kept_schemas);
    };
    let kept = fleet.postgres.psql(
        DATABASE,
        &format!("SELECT count(*) FROM information_schema.columns WHERE table_schema = '{schema}' AND column_name = 'display_name'"),
    )?;
    ensure!(kept == "1", "the names are kept in {schema}");

    options.say("… and forward to v3.1.0 again: three migrations up …");
    let forth = fleet.ctl.roll_back(NEW.name()).await?.expect_code(0)?.json()?;
    let after = expect_running(fleet, NEW)?;
    expect_indexes(&fleet.postgres, NEW)?;
    expect_same(&after, &new).context("v3.1.0 is not what it was")?;
    let again = StageData::live(&fleet.postgres)?;
    ensure!(again == stages, "v3.1.0 had {stages:?}, and has {again:?}");
    let again = fleet.postgres.psql(DATABASE, names)?;
    ensure!(again == named, "{named} users had names, and {again} have");
    Ok(found(json!({
        "back": back["state"],
        "forth": forth["state"],
        "migrations": NEW.schema() - OLD.schema(),
        "rows_back": stages.staged_deals.rows + stages.events.rows,
        "names_back": named,
        "kept_schemas_left": after.kept_schemas.len(),
    })))
}

/// None is invalid, and the one that is made concurrently is there with the release that has it.
fn expect_indexes(postgres: &Postgres, version: Version) -> Result<()> {
    let invalid = postgres.psql(
        DATABASE,
        "SELECT indexrelid::regclass FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)",
    )?;
    ensure!(invalid.is_empty(), "indexes that are not valid: {invalid}");
    let there = postgres.psql(DATABASE, "SELECT to_regclass('public.deals_stage') IS NOT NULL")?;
    let wanted = if version == NEW { "t" } else { "f" };
    ensure!(there == wanted, "the index of {}: {there}", version.name());
    Ok(())
}

fn expect_same(is: &Facts, was: &Facts) -> Result<()> {
    ensure!(is.schema_sha256 == was.schema_sha256, "the schema is not as it was");
    ensure!(
        is.databases == was.databases,
        "the databases were {:?}, and are {:?}",
        was.databases,
        is.databases
    );
    let (was, is) = (
        was.data.clone().of_the_application(),
        is.data.clone().of_the_application(),
    );
    ensure!(was == is, "the database held {was:?}, and holds {is:?}");
    Ok(())
}
