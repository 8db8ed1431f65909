//! What must work: down and up again with nothing lost, whatever the layout of the version table.

use std::os::unix::fs::PermissionsExt as _;

use rollback_agent::driver::postgres::{PostgresDriver, Verify};
use rollback_agent::driver::{Action, Driver as _, Probe};
use rollback_proto::problem::Code;

use crate::fixture::{CONTENT, DOWN_2, Fixture, UP_2, assert_failed, blockers};

#[tokio::test]
async fn down_and_up_again_loses_nothing() {
    let f = Fixture::empty().await;
    f.cluster
        .sql(
            "postgres",
            "DO $$ BEGIN CREATE ROLE reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )
        .await;
    let (old, new) = f.two_releases().await;
    f.sql("GRANT SELECT, UPDATE (points) ON scores TO reader; GRANT SELECT ON scores TO PUBLIC; GRANT USAGE ON SEQUENCE scores_id_seq TO reader").await;
    assert_eq!(
        (old.version.as_str(), new.version.as_str()),
        ("001_users", "002_scores")
    );
    assert_eq!(f.digest().await, new.digest, "grants do not belong to a revision");
    let before = f.text(CONTENT).await;
    // The newer release's files vanish with it: the archive must do.
    for file in ["002_scores.up.sql", "002_scores.down.sql"] {
        std::fs::remove_file(f.migrations().join(file)).expect("remove");
    }

    assert_eq!(
        blockers(&f.prepare(&new, &old).await),
        Vec::<&rollback_proto::problem::Problem>::new()
    );
    assert_failed(f.switch(&new, &old).await, Code::RehearsalFailed, "not rehearsed");
    let done = f.stage(&new, &old).await.expect("stage");
    assert!(
        done.summary.contains("table public.scores") && done.summary.contains("score of public.users"),
        "{}",
        done.summary
    );
    assert_eq!(f.digest().await, new.digest, "stage must not touch the live database");
    assert_eq!(f.kept_schemas().await, "0");

    let receipt = f
        .snapshot(&new, &old)
        .await
        .expect("snapshot")
        .receipt
        .expect("receipt");
    assert_eq!(
        (receipt.verified.as_str(), receipt.tables, receipt.rows),
        ("restore", 3, 2002)
    );
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("stat").permissions().mode() & 0o777;
    assert_eq!(mode(receipt.path.as_ref()), 0o600);
    assert_eq!(mode(&f.backups()), 0o700);
    let again = f
        .snapshot(&new, &old)
        .await
        .expect("a repeated snapshot finds the sealed one")
        .receipt
        .expect("receipt");
    assert_eq!(
        (again.path, again.sha256),
        (receipt.path.clone(), receipt.sha256.clone())
    );

    let done = f.switch(&new, &old).await.expect("switch down");
    assert_eq!(done.observed.as_ref(), Some(&old));
    let columns = "SELECT string_agg(column_name, ',' ORDER BY column_name) FROM information_schema.columns WHERE table_name = 'users'";
    assert_eq!(f.text(columns).await, "created,id,name,status");
    assert_eq!(
        f.text("SELECT coalesce(to_regclass('scores')::text, 'gone')").await,
        "gone"
    );
    assert_eq!(
        f.text("SELECT string_agg(version, ',') FROM schema_migrations").await,
        "001"
    );
    let probe = f.driver.probe(&f.step(Action::Switch, &new, &old)).await;
    assert!(matches!(probe, Probe::Applied(_)), "{probe:?}");
    f.switch(&new, &old).await.expect("a repeated switch finds it done");
    // The old release works meanwhile.
    f.sql("INSERT INTO users (name) VALUES ('between')").await;

    let done = f.switch(&old, &new).await.expect("undo");
    assert_eq!(done.observed.as_ref(), Some(&new));
    assert_eq!(
        f.text("SELECT score::text FROM users WHERE name = 'between'").await,
        "0"
    );
    f.sql("DELETE FROM users WHERE name = 'between'").await;
    assert_eq!(f.text(CONTENT).await, before, "everything came back");
    assert_eq!(f.text("SELECT nextval('scores_id_seq')::text").await, "2001");
    for (what, right) in [("scores", "SELECT"), ("scores_id_seq", "USAGE")] {
        let call = if right == "USAGE" {
            "has_sequence_privilege"
        } else {
            "has_table_privilege"
        };
        assert_eq!(
            f.text(&format!("SELECT {call}('reader', '{what}', '{right}')::text"))
                .await,
            "true",
            "{what}"
        );
    }
    f.finish(&old, &new).await;
    assert_eq!(f.kept_schemas().await, "0", "what was put back is not kept twice");
    f.assert_clean().await;
    assert!(std::path::Path::new(&receipt.path).is_file());
}

#[tokio::test]
async fn what_was_taken_away_is_kept_when_the_rollback_stands() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("switch");
    f.finish(&new, &old).await;
    f.assert_clean().await;
    assert_eq!(f.kept_schemas().await, "1");
    assert_eq!(f.digest().await, old.digest, "kept rows do not belong to the schema");
    // After `finish` there is no rehearsal to rely on.
    assert_failed(f.switch(&old, &new).await, Code::RehearsalFailed, "not rehearsed");
}

#[tokio::test]
async fn the_revision_depends_on_the_schema_and_nothing_else() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.sql("ALTER TABLE users DROP COLUMN score; ALTER TABLE users ADD COLUMN score integer NOT NULL DEFAULT 0")
        .await;
    f.sql("ANALYZE; REINDEX TABLE users; COMMENT ON TABLE users IS 'x'; CREATE SCHEMA rollbackctl_x; CREATE TABLE rollbackctl_x.y (z int)").await;
    f.sql("DELETE FROM scores; SELECT nextval('users_id_seq')").await;
    assert_eq!(f.digest().await, new.digest);
    for (change, back) in [
        ("CREATE INDEX extra ON users (created)", "DROP INDEX extra"),
        (
            "ALTER TABLE users ALTER name DROP NOT NULL",
            "ALTER TABLE users ALTER name SET NOT NULL",
        ),
        (
            "ALTER TABLE users ALTER score SET DEFAULT 1",
            "ALTER TABLE users ALTER score SET DEFAULT 0",
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION f()",
        ),
        ("CREATE TYPE mood AS ENUM ('good', 'bad')", "DROP TYPE mood"),
        (
            "DELETE FROM schema_migrations WHERE version = '001'",
            "INSERT INTO schema_migrations VALUES ('001')",
        ),
        (
            "CREATE OR REPLACE VIEW recent AS SELECT id, name FROM users",
            "CREATE OR REPLACE VIEW recent AS SELECT id, name FROM users WHERE status = 'new'",
        ),
        (
            "CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int)",
            "DROP AGGREGATE total(int)",
        ),
        (
            "ALTER SEQUENCE users_id_seq INCREMENT 2",
            "ALTER SEQUENCE users_id_seq INCREMENT 1",
        ),
        ("CREATE DOMAIN d AS int CHECK (VALUE > 0)", "DROP DOMAIN d"),
        (
            "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
        ),
    ] {
        f.sql(change).await;
        let changed = f.digest().await;
        assert!(changed != new.digest && changed != old.digest, "{change}");
        f.sql(back).await;
        assert_eq!(f.digest().await, new.digest, "{back}");
    }
}

#[tokio::test]
async fn several_migrations_go_in_one_transaction_with_rows_of_the_tool_kept_whole() {
    // As sqlx keeps them, in a table that others could not fill in again.
    let columns = "version bigint PRIMARY KEY, checksum text NOT NULL DEFAULT md5(random()::text), success boolean NOT NULL DEFAULT true";
    let f = Fixture::with(columns, |_| {}).await;
    f.write(
        "001_a",
        "CREATE TABLE a (id int PRIMARY KEY, note text)",
        Some("DROP TABLE a"),
    );
    f.apply("001").await;
    f.sql("INSERT INTO a SELECT n, 'note ' || n FROM generate_series(1, 100) n")
        .await;
    let old = f.driver.retain("v1").await.expect("record").revision;
    // A circle of references through an altered table, a trigger that must not fire again, an identity, a generated
    // column, quoted names, a BEGIN of its own.
    f.write(
        "002_b",
        "BEGIN; CREATE TABLE \"B b\" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int REFERENCES a, twice int GENERATED ALWAYS AS (a * 2) STORED,
                parent int REFERENCES \"B b\");
         CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN NEW.note := 'touched'; RETURN NEW; END; $f$;
         CREATE TRIGGER stamp BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION stamp(); COMMIT;",
        Some("BEGIN; DROP TRIGGER stamp ON a; DROP FUNCTION stamp(); DROP TABLE \"B b\"; COMMIT;"),
    );
    f.write(
        "003_c",
        "ALTER TABLE a ADD COLUMN b int REFERENCES \"B b\", ADD COLUMN \"Odd name\" jsonb; CREATE TABLE no_columns ()",
        Some("ALTER TABLE a DROP COLUMN b, DROP COLUMN \"Odd name\"; DROP TABLE no_columns"),
    );
    f.apply("002").await;
    f.apply("003").await;
    f.sql(
        "INSERT INTO \"B b\" (a, parent) SELECT n, nullif(n - 1, 0) FROM generate_series(1, 50) n;
         ALTER TABLE a DISABLE TRIGGER stamp; UPDATE a SET b = id, \"Odd name\" = '{\"k\": [1]}' WHERE id <= 50;
         ALTER TABLE a ENABLE TRIGGER stamp; INSERT INTO no_columns DEFAULT VALUES",
    )
    .await;
    let new = f.driver.retain("v3").await.expect("record").revision;
    let content = "SELECT md5(concat((SELECT string_agg(concat_ws('|', id, note, b, \"Odd name\"), ';' ORDER BY id) FROM a),
        (SELECT string_agg(concat_ws('|', id, a, twice, parent), ';' ORDER BY id) FROM \"B b\"),
        (SELECT string_agg(m::text, ';' ORDER BY version) FROM schema_migrations m), (SELECT count(*) FROM no_columns)))";
    let before = f.text(content).await;
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    assert_eq!(f.digest().await, old.digest);
    f.switch(&old, &new).await.expect("up");
    assert_eq!(f.text(content).await, before);
    f.finish(&old, &new).await;
    f.assert_clean().await;
}

#[tokio::test]
async fn golang_migrate_keeps_one_row() {
    let f = Fixture::with("version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL", |_| {}).await;
    let mark = |version: i32| {
        format!("DELETE FROM schema_migrations; INSERT INTO schema_migrations VALUES ({version}, false)")
    };
    for (name, table) in [("1_a", "a"), ("2_b", "b"), ("3_c", "c")] {
        f.write(
            name,
            &format!("CREATE TABLE {table} (id int PRIMARY KEY)"),
            Some(&format!("DROP TABLE {table}")),
        );
    }
    f.sql(&format!("CREATE TABLE a (id int PRIMARY KEY); {}", mark(1)))
        .await;
    let old = f.driver.retain("v1").await.expect("record").revision;
    f.sql(&format!(
        "CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1); {}",
        mark(3)
    ))
    .await;
    let new = f.driver.retain("v3").await.expect("record").revision;
    assert_eq!(new.version, "3_c");
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    assert_eq!(
        f.text("SELECT string_agg(concat(version, dirty), ' ') FROM schema_migrations")
            .await,
        "1f"
    );
    f.switch(&old, &new).await.expect("up");
    assert_eq!(
        f.text("SELECT string_agg(concat(version, dirty), ' ') FROM schema_migrations")
            .await,
        "3f"
    );
    assert_eq!(f.text("SELECT count(*)::text FROM c").await, "1");
    f.sql("UPDATE schema_migrations SET dirty = true").await;
    let findings = f.prepare(&new, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::MigrationsDiverged && p.message.contains("unfinished")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_password_reaches_the_server_and_nothing_else() {
    let f = Fixture::with("version text PRIMARY KEY", |_| {}).await;
    f.cluster
        .sql("postgres", "DO $$ BEGIN CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'pa:ss\\word'; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        .await;
    let (old, new) = f.two_releases().await;
    let file = f.dir.path().join("password");
    std::fs::write(&file, "pa:ss\\word\n").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut config = f.config.clone();
    (config.user, config.password_file) = ("with_password".to_owned(), Some(file.clone()));
    // Programs that are run by this driver say what they were given.
    let bin = f.dir.path().join("bin");
    std::fs::create_dir(&bin).expect("make a directory");
    let seen = f.dir.path().join("seen");
    for name in ["pg_dump", "pg_restore"] {
        let real = f.cluster.bin.join(name);
        let text = format!(
            "#!/bin/sh\necho \"$0 $@\" >>{0}; env >>{0}\nexec {1} \"$@\"\n",
            seen.display(),
            real.display()
        );
        crate::cluster::script(&bin.join(name), &text);
    }
    config.bin_dir = Some(bin);
    let driver = PostgresDriver::new("db", config.clone(), f.vault.clone()).expect("driver");
    driver
        .stage(&f.step(Action::Stage, &new, &old))
        .await
        .expect("stage with a password");
    let seen = std::fs::read_to_string(&seen).expect("read");
    assert!(seen.contains("--snapshot=") && seen.contains("PGPASSFILE="), "{seen}");
    assert!(!seen.contains("ss\\word"), "the password leaked: {seen}");
    std::fs::write(&file, "wrong\n").expect("write");
    let problem = driver.observe().await.expect_err("a wrong password");
    assert_eq!(problem.code, Code::DatabaseDown);
    assert!(
        !problem.message.contains("wrong") || problem.message.contains("authentication"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_backup_is_made_when_the_schema_stays_and_old_ones_are_retired() {
    let mut f = Fixture::with("version text PRIMARY KEY", |c| c.retain_backups = 2).await;
    f.write("002_scores", UP_2, Some(DOWN_2));
    let (old, new) = f.two_releases().await;
    assert!(
        f.stage(&new, &new)
            .await
            .expect("nothing to do")
            .summary
            .contains("stays")
    );
    let mut paths = Vec::new();
    for i in 0..3 {
        f.rollback = format!("rb-{i}-{}", f.database);
        let receipt = f
            .snapshot(&new, &new)
            .await
            .expect("snapshot")
            .receipt
            .expect("receipt");
        assert_eq!(receipt.verified, "restore");
        f.finish(&new, &new).await;
        paths.push(receipt.path);
        if i == 0 {
            std::fs::write(f.backups().join("by-hand.dump"), "x").expect("write");
        }
    }
    let there: Vec<bool> = paths.iter().map(|p| std::path::Path::new(p).is_file()).collect();
    assert_eq!(there, [false, true, true]);
    assert!(f.backups().join("by-hand.dump").is_file(), "what is not ours stays");
    assert_ne!(old, new);
    f.assert_clean().await;
}

#[tokio::test]
async fn a_plain_role_that_owns_the_database_is_enough() {
    let mut f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.as_plain_role().await;
    let driver = &f.driver;
    let before = f.text(CONTENT).await;
    let findings = driver.prepare(&f.step(Action::Prepare, &new, &old)).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    driver.stage(&f.step(Action::Stage, &new, &old)).await.expect("stage");
    driver
        .snapshot(&f.step(Action::Snapshot, &new, &old))
        .await
        .expect("snapshot");
    driver.switch(&f.step(Action::Switch, &new, &old)).await.expect("down");
    driver.switch(&f.step(Action::Switch, &old, &new)).await.expect("up");
    assert_eq!(f.text(CONTENT).await, before);
    f.sql("ALTER TABLE users OWNER TO postgres").await;
    let findings = driver.prepare(&f.step(Action::Prepare, &new, &old)).await;
    assert!(
        findings
            .iter()
            .any(|f| f.problem.message.contains("public.users (postgres)")),
        "{findings:?}"
    );
    driver
        .finish(&f.step(Action::Finish, &old, &new))
        .await
        .expect("finish");
    f.assert_clean().await;
}

#[tokio::test]
async fn a_checksum_only_backup_says_so() {
    let f = Fixture::with("version text PRIMARY KEY", |c| c.verify = Verify::Checksum).await;
    let (_, new) = f.two_releases().await;
    let receipt = f
        .snapshot(&new, &new)
        .await
        .expect("snapshot")
        .receipt
        .expect("receipt");
    assert_eq!(receipt.verified, "checksum");
}

#[tokio::test]
async fn a_schema_that_is_forgotten_is_no_target_any_more() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    let said = f.driver.forget(&old, &[]).await.expect("forget");
    assert!(said.starts_with("1 objects, "), "its schema, and nothing else: {said}");
    assert_eq!(
        f.driver.forget(&old, &[]).await.expect("again"),
        "nothing was kept for it"
    );
    let found = f.prepare(&new, &old).await;
    assert!(
        blockers(&found).iter().any(|p| p.code == Code::RevisionMissing),
        "{found:?}"
    );
}
