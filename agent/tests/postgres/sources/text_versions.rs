//! Version rows that hold the migration's whole name, as in `DELETE … WHERE version = '20240115_session2_security'`.

use rollback_agent::driver::{Driver as _, Revision};
use rollback_proto::problem::Code;

use crate::fixture::{CONTENT, DOWN_1, DOWN_2, Fixture, UP_1, UP_2};

const ROWS: &str = "SELECT string_agg(version, ' ' ORDER BY version) FROM schema_migrations";

async fn two_releases(f: &Fixture) -> (Revision, Revision) {
    let row = |name: &str| format!("INSERT INTO schema_migrations (version) VALUES ('{name}')");
    f.write("20240101_users", UP_1, Some(DOWN_1));
    f.sql(UP_1).await;
    f.sql(&row("20240101_users")).await;
    let old = f.driver.retain("v2.9.0").await.expect("record").revision;
    f.write("20240115_session2_security", UP_2, Some(DOWN_2));
    f.sql(UP_2).await;
    f.sql(&row("20240115_session2_security")).await;
    f.sql("INSERT INTO users (name, score) VALUES ('a', 1), ('b', 2)").await;
    (old, f.driver.retain("v3.0.0").await.expect("record").revision)
}

#[tokio::test]
async fn the_rows_keep_their_text() {
    let mut f = Fixture::empty().await;
    let (old, new) = two_releases(&f).await;
    assert_eq!(new.version, "20240115_session2_security");
    let before = f.text(CONTENT).await;
    f.roll(&new, &old).await;
    assert_eq!(f.text(ROWS).await, "20240101_users");
    f.next_rollback("up");
    f.roll(&old, &new).await;
    assert_eq!(f.text(CONTENT).await, before);
    assert_eq!(f.text(ROWS).await, "20240101_users 20240115_session2_security");

    // Taken down by hand: no copy of the row was kept, and it is written as the tool would.
    f.sql(&format!(
        "{DOWN_2} DELETE FROM schema_migrations WHERE version LIKE '20240115%'"
    ))
    .await;
    f.next_rollback("up-again");
    f.roll(&old, &new).await;
    assert_eq!(f.text(ROWS).await, "20240101_users 20240115_session2_security");
}

#[tokio::test]
async fn two_rows_of_one_number_and_rows_without_one_are_refused() {
    let f = Fixture::empty().await;
    two_releases(&f).await;
    f.sql("INSERT INTO schema_migrations VALUES ('20240115_other')").await;
    let problem = f.driver.observe().await.expect_err("two of one number");
    assert_eq!(problem.code, Code::MigrationsDiverged);
    assert!(
        problem.message.contains("\"20240115_other\"") && problem.message.contains("\"20240115_session2_security\""),
        "{problem}"
    );
    f.sql("UPDATE schema_migrations SET version = 'security' WHERE version = '20240115_other'")
        .await;
    let problem = f.driver.observe().await.expect_err("no number");
    assert_eq!(problem.code, Code::MigrationsDiverged);
    assert!(problem.message.contains("\"security\""), "{problem}");
}
