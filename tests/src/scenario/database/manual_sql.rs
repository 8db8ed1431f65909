//! The runbook's "Manual Migration Rollback": the migration has no way down, so a person writes one, with what the runbook has
//! a person look at as checks. First with a check that does not hold anywhere, then with one that holds on the copy and not
//! on the live database: nothing is committed either time. Then with checks that hold.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::seen::{Seen, rows};
use crate::control::Control;
use crate::ctl::Answer;
use crate::postgres::{DATABASE, Postgres};
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

const HOST: &str = "db-1";

const FIRST: &str = "20240101_session1_users";
const SECOND: &str = "20240115_session2_security";

const USERS: &str = "300";

/// The runbook's statements, and in place of `\dt` and `\d users` what a person would look for there.
const BY_HAND: &str = "-- Begin transaction
BEGIN;

-- Verify current schema version
-- rollbackctl:check-before SELECT max(version) = '20240115_session2_security' FROM schema_migrations
SELECT * FROM schema_migrations ORDER BY version DESC LIMIT 5;

-- Apply down migration (example)
DROP TABLE IF EXISTS new_feature_table;
ALTER TABLE users DROP COLUMN IF EXISTS new_column;

-- Update schema version
DELETE FROM schema_migrations WHERE version = '20240115_session2_security';

-- Verify changes
-- rollbackctl:check-after SELECT to_regclass('new_feature_table') IS NULL
-- rollbackctl:check-after SELECT count(*) = 300 FROM users

-- Commit if everything looks good
COMMIT;
";

const NEVER: &str = "-- rollbackctl:check-after SELECT count(*) > 300 FROM users\n";

const ON_A_COPY_ONLY: &str = "-- rollbackctl:check-after SELECT current_database() <> 'zekka_production'\n";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let postgres = Postgres::of(control, HOST).await?;
    let dir = control.host_dir(HOST);
    let (migrations, manual) = (dir.join("migrations"), dir.join("db-manual"));
    for made in [&migrations, &manual] {
        std::fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
    }
    postgres.migrate("CREATE TABLE schema_migrations (version text PRIMARY KEY)")?;
    up(
        &postgres,
        &migrations,
        FIRST,
        include_str!("../../../zekka/tool/migrations/20240101_session1_users.up.sql"),
    )?;
    postgres.migrate(&format!(
        "INSERT INTO users (email) SELECT 'user' || n || '@zekka.example' FROM generate_series(1, {USERS}) n"
    ))?;
    let component = postgres.component(&dir, &migrations, postgres.bin())?;
    let component = format!("{component}manual = \"{}\"\n", manual.display());
    control.add_agent(HOST, "db", &component).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    let good = Seen::of(&postgres)?;

    let second = include_str!("../../../zekka/tool/migrations/20240115_session2_security.up.sql");
    up(&postgres, &migrations, SECOND, second)?;
    postgres.migrate(
        "UPDATE users SET new_column = 'hardened ' || id WHERE id % 3 = 0;\
         INSERT INTO new_feature_table (owner, secret) SELECT id, md5(email) FROM users;",
    )?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let before = Seen::of(&postgres)?;
    let by_hand = manual.join(format!("{SECOND}.sql"));

    options.say("There is no way down …");
    refused(control, "RB0702").await?;
    for (what, check) in [("never holds", NEVER), ("holds on the copy only", ON_A_COPY_ONLY)] {
        options.say(format!("A check {what} …"));
        std::fs::write(&by_hand, BY_HAND.replace("\nCOMMIT;", &format!("\n{check}COMMIT;")))
            .context("write the file")?;
        let answer = refused(control, "RB0711").await?;
        let result = answer.json()?;
        ensure!(result["state"] == "undone", "it ended {}: {answer}", result["state"]);
        let now = Seen::of(&postgres)?;
        now.expect_untouched(&before)
            .with_context(|| format!("a check that {what}"))?;
    }

    options.say("All checks hold. Rolling back to v2.9.0 …");
    std::fs::write(&by_hand, BY_HAND).context("write the file")?;
    let back = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?.json()?;
    let versions = postgres.psql(DATABASE, "SELECT string_agg(version, ',') FROM schema_migrations")?;
    ensure!(versions == FIRST, "schema_migrations has {versions}");
    ensure!(rows(&postgres, "users")? == USERS, "there are {USERS} users");
    let between = Seen::of(&postgres)?;
    between
        .expect_same_but(&good, "")
        .context("v2.9.0 is not what it was")?;

    options.say("… and forward again …");
    let forth = control.ctl.roll_back("v3.0.0").await?.expect_code(0)?.json()?;
    Seen::of(&postgres)?
        .expect_same_but(&before, "")
        .context("v3.0.0 is not what it was")?;
    Ok(found(json!({
        "back": back["state"],
        "forth": forth["state"],
        "checks_that_did_not_hold": 2,
        "kept_schemas": between.kept.len(),
    })))
}

/// A migration without a way down, applied by hand as a tool would.
fn up(postgres: &Postgres, migrations: &Path, name: &str, sql: &str) -> Result<()> {
    std::fs::write(migrations.join(format!("{name}.up.sql")), sql).context("write a migration")?;
    postgres.migrate(&format!("{sql}; INSERT INTO schema_migrations VALUES ('{name}')"))
}

async fn refused(control: &Control, code: &str) -> Result<Answer> {
    let answer = control.ctl.roll_back("v2.9.0").await?;
    ensure!(
        answer.code != 0 && answer.text().contains(code),
        "it shall be refused with {code}: {answer}"
    );
    Ok(answer)
}
