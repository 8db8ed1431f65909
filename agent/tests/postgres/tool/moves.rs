//! Down and up by the tool.

use rollback_agent::driver::Driver as _;
use rollback_proto::problem::Code;

use super::{NAMES, file, filled, migrate, tooled, two_releases};
use crate::fixture::{CONTENT, blockers, failed};

const NOTES: &str = "SELECT md5(string_agg(concat(id, text), ';' ORDER BY id)) FROM notes";

#[tokio::test]
async fn two_runs_down_and_two_up_again() {
    let mut f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    assert_eq!(
        (old.version.as_str(), new.version.as_str()),
        ("2024-users", "2024-notes")
    );
    let before = (f.text(CONTENT).await, f.text(NOTES).await);
    let findings = f.prepare(&new, &old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    assert_eq!(f.text(NAMES).await, "2024-users");
    f.switch(&old, &new).await.expect("the undo");
    assert_eq!((f.text(CONTENT).await, f.text(NOTES).await), before);
    f.finish(&new, &old).await;

    // A rollback that stands, and another that takes it back.
    f.next_rollback("down");
    f.roll(&new, &old).await;
    f.next_rollback("up");
    f.roll(&old, &new).await;
    assert_eq!((f.text(CONTENT).await, f.text(NOTES).await), before);
    // The tool brings up what is missing in the order of the names.
    assert_eq!(f.text(NAMES).await, "2024-users 2024-notes 2024-scores");
}

#[tokio::test]
async fn migrations_that_change_no_schema_are_told_apart() {
    let f = tooled(&[]).await;
    let (_, new) = two_releases(&f).await;
    let filled = filled(&f).await;
    assert_ne!(filled.digest, new.digest);
    f.roll(&filled, &new).await;
    assert_eq!(f.text("SELECT max(text) FROM notes WHERE id = 1").await, "note 1");
}

#[tokio::test]
async fn runs_that_do_nothing_too_much_or_fail_end_the_rehearsal() {
    for (batch, down, part) in [
        ("0", "DROP TABLE notes", "nothing"),
        ("3", "DROP TABLE notes", "elsewhere"),
        ("1", "DROP TABLE no_such_table", "no_such_table"),
        ("1", "SELECT 1", "not the recorded"),
    ] {
        let f = tooled(&[("BATCH", batch)]).await;
        let (old, new) = two_releases(&f).await;
        std::fs::write(file(&f, "2024-notes.down.sql"), down).expect("write");
        let problem = failed(f.stage(&new, &old).await);
        assert!(
            matches!(problem.code, Code::MigrationToolFailed | Code::RehearsalFailed),
            "{batch} {down}: {problem}"
        );
        assert!(
            problem.message.contains(part),
            "{batch} {down}: {part:?} is not in {problem}"
        );
        assert_eq!(f.observe().await, new);
        f.assert_clean().await;
    }
}

#[tokio::test]
async fn its_complaints_hold_no_rows() {
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let down = "DROP TABLE notes; CREATE TABLE numbers AS SELECT name::int FROM users";
    std::fs::write(file(&f, "2024-notes.down.sql"), down).expect("write");
    let problem = failed(f.stage(&new, &old).await);
    assert!(
        problem.message.contains("invalid input syntax for type integer"),
        "{problem}"
    );
    assert!(!problem.message.contains("user 1"), "{problem}");
}

#[tokio::test]
async fn rows_that_only_a_later_run_takes_away_are_kept_through_the_first() {
    let f = tooled(&[]).await;
    let (old, _) = two_releases(&f).await;
    migrate(
        &f,
        "2024-zz-index",
        "CREATE INDEX notes_text ON notes (text)",
        "DROP INDEX notes_text",
    )
    .await;
    let new = f.driver.retain("v3.0.1").await.expect("record").revision;
    let before = (f.text(CONTENT).await, f.text(NOTES).await);
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    let up = f.switch(&old, &new).await.expect("the undo").summary;
    assert_eq!((f.text(CONTENT).await, f.text(NOTES).await), before, "{up}");
    f.finish(&new, &new).await;
    assert_eq!(f.kept_schemas().await, "0");
}

#[tokio::test]
async fn a_run_that_fails_half_way_is_taken_back_and_can_be_tried_again() {
    let f = tooled(&[]).await;
    let (_, old) = two_releases(&f).await;
    migrate(&f, "2025-1", "CREATE TABLE a (id int PRIMARY KEY)", "DROP TABLE a").await;
    migrate(&f, "2025-2", "CREATE TABLE b (id int PRIMARY KEY)", "DROP TABLE b").await;
    f.sql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)").await;
    // The second run fails, on the live database only.
    let down =
        "DROP TABLE a; DO $$ BEGIN IF current_database() NOT LIKE 'rollbackctl%' THEN RAISE 'not here'; END IF; END $$";
    std::fs::write(file(&f, "2025-1.down.sql"), down).expect("write");
    let new = f.driver.retain("v3.1.0").await.expect("record").revision;
    f.stage(&new, &old).await.expect("stage");
    for _ in 0..2 {
        let problem = failed(f.switch(&new, &old).await);
        assert_eq!(problem.code, Code::MigrationToolFailed, "{problem}");
        assert!(problem.message.contains("not here"), "{problem}");
        assert_eq!(f.observe().await.digest, new.digest);
        assert_eq!(f.text("SELECT concat(a.id, b.id) FROM a, b").await, "12");
    }
    // The first run fails: what was kept before it is in its place.
    std::fs::write(file(&f, "2025-2.down.sql"), down.replace("TABLE a", "TABLE b")).expect("write");
    let problem = failed(f.switch(&new, &old).await);
    assert!(problem.message.contains("nothing was changed"), "{problem}");
    f.finish(&new, &new).await;
    assert_eq!(f.kept_schemas().await, "0", "all of it is in its place");
}
