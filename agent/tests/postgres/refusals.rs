//! What must be refused before anything is touched, each with a reason that names the culprit.

use rollback_agent::driver::Severity;
use rollback_proto::problem::Code;

use crate::fixture::{CONTENT, DOWN_1, DOWN_2, Fixture, UP_1, UP_2, assert_failed, blockers};

#[tokio::test]
async fn a_migration_without_a_way_down() {
    let f = Fixture::empty().await;
    let (old, _) = f.two_releases().await;
    f.write("003_more", "CREATE TABLE more (id int PRIMARY KEY)", None);
    f.apply("003").await;
    let retained = f.driver_retain("v3.1.0").await;
    assert!(
        retained.summary.contains("without a way down: 003_more"),
        "{}",
        retained.summary
    );
    let findings = f.prepare(&retained.revision, &old).await;
    let found = blockers(&findings);
    assert_eq!(found.len(), 1, "{findings:?}");
    assert_eq!(found[0].code, Code::NoDownMigration);
    assert!(found[0].message.contains("003_more.down.sql"), "{}", found[0]);
    assert_failed(
        f.stage(&retained.revision, &old).await,
        Code::NoDownMigration,
        "003_more.down.sql",
    );
    f.assert_clean().await;
    // Written at last: nothing needs to be recorded again.
    std::fs::write(f.migrations().join("003_more.down.sql"), "DROP TABLE more").expect("write");
    f.stage(&retained.revision, &old).await.expect("stage");
}

#[tokio::test]
async fn an_applied_set_that_nobody_knows() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.sql("INSERT INTO schema_migrations VALUES ('007')").await;
    let findings = f.prepare(&new, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::MigrationsDiverged && p.message.contains('7')),
        "{findings:?}"
    );
    assert_failed(
        f.stage(&new, &old).await,
        Code::MigrationsDiverged,
        "applied but not expected: [7]",
    );
    // Planned from what is there now: still nobody knows migration 7.
    let seen = f.observe().await;
    let findings = f.prepare(&seen, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::MigrationsDiverged && p.message.contains("neither the vault")),
        "{findings:?}"
    );
    // A gap below what would stay.
    f.sql("DELETE FROM schema_migrations WHERE version <> '002'").await;
    let seen = f.observe().await;
    let findings = f.prepare(&seen, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::MigrationsDiverged && p.message.contains("on the way")),
        "{findings:?}"
    );
    f.sql("UPDATE schema_migrations SET version = 'v2-final'").await;
    let findings = f.prepare(&seen, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::MigrationsDiverged && p.message.contains("not a number")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_schema_that_was_changed_by_hand() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.stage(&new, &old).await.expect("stage");
    f.sql("CREATE INDEX by_hand ON users (created)").await;
    let findings = f.prepare(&new, &old).await;
    assert!(
        blockers(&findings)
            .iter()
            .any(|p| p.code == Code::WrongRevision && p.message.contains("index public.by_hand")),
        "{findings:?}"
    );
    assert_failed(f.switch(&new, &old).await, Code::WrongRevision, "by_hand");
    // Planned with it: the way down does not end at what was recorded, and the live database is not touched.
    let seen = f.observe().await;
    assert_failed(
        f.stage(&seen, &old).await,
        Code::RehearsalFailed,
        "not expected: index public.by_hand",
    );
    assert_eq!(f.digest().await, seen.digest);
    f.assert_clean().await;
}

#[tokio::test]
async fn an_edited_file_is_reported_and_the_archive_used() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    std::fs::write(f.migrations().join("002_scores.down.sql"), "DROP TABLE users CASCADE").expect("edit");
    let findings = f.prepare(&new, &old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    assert!(
        findings
            .iter()
            .any(|f| f.severity == Severity::Warning && f.problem.message.contains("002_scores.down.sql was edited")),
        "{findings:?}"
    );
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("switch");
}

#[tokio::test]
async fn down_migrations_that_fail_or_lose_data() {
    for (up, down, part) in [
        // Halfway: the first statement works.
        (
            UP_2,
            "DROP TABLE scores; ALTER TABLE users DROP COLUMN no_such_column;",
            "no_such_column",
        ),
        (UP_2, "DROP TABLE scores;", "not expected: column public.users.score"),
        (
            "UPDATE users SET name = 'x' || name",
            "UPDATE users SET name = lower(substr(name, 2))",
            "other content",
        ),
        (
            "CREATE TABLE log (line text); INSERT INTO log SELECT name FROM users",
            "DROP TABLE log; DROP SEQUENCE users_id_seq CASCADE",
            "users_id_seq",
        ),
        (
            "SELECT 1",
            "DROP TABLE users CASCADE; CREATE TABLE users (id int)",
            "users",
        ),
    ] {
        let f = Fixture::empty().await;
        f.write("001_users", UP_1, Some(DOWN_1));
        f.apply("001").await;
        f.sql("INSERT INTO users (name) SELECT 'User ' || n FROM generate_series(1, 20) n")
            .await;
        let old = f.driver_retain("v1").await.revision;
        f.write("002_x", up, Some(down));
        f.apply("002").await;
        let new = f.driver_retain("v2").await.revision;
        let users = f
            .text("SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM users u")
            .await;
        assert_failed(f.stage(&new, &old).await, Code::RehearsalFailed, part);
        assert_failed(f.switch(&new, &old).await, Code::RehearsalFailed, "not rehearsed");
        assert_eq!(f.digest().await, new.digest);
        assert_eq!(
            f.text("SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM users u")
                .await,
            users
        );
        f.assert_clean().await;
    }
}

#[tokio::test]
async fn a_dropped_column_whose_table_has_no_key() {
    let f = Fixture::empty().await;
    f.write("001_a", "CREATE TABLE a (x int)", Some("DROP TABLE a"));
    f.apply("001").await;
    let old = f.driver_retain("v1").await.revision;
    f.write(
        "002_b",
        "ALTER TABLE a ADD COLUMN y int",
        Some("ALTER TABLE a DROP COLUMN y"),
    );
    f.apply("002").await;
    let new = f.driver_retain("v2").await.revision;
    assert_failed(f.stage(&new, &old).await, Code::RehearsalFailed, "no primary key");
}

#[tokio::test]
async fn what_the_driver_cannot_run_for_a_migration() {
    for (down, part) in [
        ("DROP INDEX i; COMMIT; SELECT 1", "COMMIT"),
        ("-- no-transaction\nDROP DATABASE shop", "concerns the whole server"),
        (
            "DROP INDEX i; ALTER SYSTEM SET work_mem = '1GB'",
            "concerns the whole server",
        ),
    ] {
        let f = Fixture::empty().await;
        f.write("001_users", UP_1, Some(DOWN_1));
        f.apply("001").await;
        let old = f.driver_retain("v1").await.revision;
        f.write("002_index", "CREATE INDEX i ON users (created)", Some(down));
        f.apply("002").await;
        let new = f.driver_retain("v2").await.revision;
        let findings = f.prepare(&new, &old).await;
        let found = blockers(&findings);
        assert!(found.len() == 1 && found[0].message.contains(part), "{findings:?}");
    }
}

#[tokio::test]
async fn a_revision_that_was_never_recorded_and_sql_that_was_not_rehearsed() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    let nowhere = rollback_agent::driver::Revision {
        version: "v0".into(),
        digest: "sha256:00".into(),
    };
    let findings = f.prepare(&new, &nowhere).await;
    assert!(
        blockers(&findings).iter().any(|p| p.code == Code::RevisionMissing),
        "{findings:?}"
    );
    f.stage(&new, &old).await.expect("stage");
    // Recorded again with another down file between stage and switch.
    f.write("002_scores", UP_2, Some(&format!("{DOWN_2} SELECT 1;")));
    f.driver_retain("again").await;
    let before = f.text(CONTENT).await;
    assert_failed(
        f.switch(&new, &old).await,
        Code::RehearsalFailed,
        "not what was rehearsed",
    );
    assert_eq!(f.text(CONTENT).await, before);
}
