//! dbmate's layout: both ways in one file.

use rollback_agent::driver::{Driver as _, Revision, Severity};
use rollback_proto::problem::Code;

use crate::fixture::{CONTENT, DOWN_1, DOWN_2, Fixture, UP_1, UP_2, blockers};

/// As dbmate does: the part of the file, and a row.
async fn migrate(f: &Fixture, name: &str, up: &str, rest: &str) {
    let text = format!("-- migrate:up\n{up}\n{rest}");
    std::fs::write(f.migrations().join(format!("{name}.sql")), text).expect("write the migration");
    f.sql(up).await;
    let digits = name.split('_').next().unwrap_or_default();
    f.sql(&format!("INSERT INTO schema_migrations (version) VALUES ('{digits}')"))
        .await;
}

async fn two_releases(f: &Fixture, down_2: &str) -> (Revision, Revision) {
    migrate(f, "20240101_users", UP_1, &format!("-- migrate:down\n{DOWN_1}")).await;
    let old = f.driver.retain("v2.9.0").await.expect("record").revision;
    migrate(f, "20240115_scores", UP_2, down_2).await;
    f.sql(
        "INSERT INTO users (name, score) VALUES ('a', 1), ('b', 2); INSERT INTO scores (user_id, points) VALUES (1, 7)",
    )
    .await;
    (old, f.driver.retain("v3.0.0").await.expect("record").revision)
}

#[tokio::test]
async fn a_file_with_both_parts_goes_down_and_up_again() {
    let mut f = Fixture::with("version varchar PRIMARY KEY", |_| {}).await;
    let (old, new) = two_releases(&f, &format!("\n-- migrate:down\n{DOWN_2}\n")).await;
    assert_eq!(new.version, "20240115_scores");
    let before = f.text(CONTENT).await;
    // It goes with the newer release; the archive has it.
    std::fs::remove_file(f.migrations().join("20240115_scores.sql")).expect("remove");
    f.roll(&new, &old).await;
    assert_eq!(
        f.text("SELECT string_agg(version, ' ') FROM schema_migrations").await,
        "20240101"
    );
    f.next_rollback("up");
    f.roll(&old, &new).await;
    assert_eq!(f.text(CONTENT).await, before);
    let rows = "SELECT string_agg(version, ' ' ORDER BY version) FROM schema_migrations";
    assert_eq!(f.text(rows).await, "20240101 20240115");
}

#[tokio::test]
async fn a_file_without_a_way_down_and_an_edited_one_are_told() {
    let f = Fixture::with("version varchar PRIMARY KEY", |_| {}).await;
    let (old, new) = two_releases(&f, "-- migrate:down\n-- not yet\n").await;
    let findings = f.prepare(&new, &old).await;
    let found = blockers(&findings);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].code, Code::NoDownMigration);
    assert!(found[0].message.contains("20240115_scores"), "{}", found[0]);

    // Now it has one, which was not there when it was applied and recorded: nothing is overwritten, so nothing is told.
    let file = f.migrations().join("20240115_scores.sql");
    std::fs::write(&file, format!("-- migrate:up\n{UP_2}\n-- migrate:down\n{DOWN_2}")).expect("write");
    assert!(blockers(&f.prepare(&new, &old).await).is_empty());
    f.driver.retain("v3.0.0").await.expect("record again");
    // Only the way down is another one: the file is named once, and what was recorded is used.
    std::fs::write(
        &file,
        format!("-- migrate:up\n{UP_2}\n-- migrate:down\nDROP TABLE users CASCADE"),
    )
    .expect("edit");
    let findings = f.prepare(&new, &old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let edited: Vec<_> = findings
        .iter()
        .filter(|f| f.severity == Severity::Warning && f.problem.message.contains("was edited after it was recorded"))
        .collect();
    assert_eq!(edited.len(), 1, "{findings:?}");
    assert!(
        edited[0].problem.message.starts_with("20240115_scores.sql "),
        "{}",
        edited[0].problem
    );
    f.roll(&new, &old).await;
    assert_eq!(f.text("SELECT count(*)::text FROM users").await, "2");
}
