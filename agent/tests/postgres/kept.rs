//! What a rollback that stands has kept: put back by a later rollback to the newer release, counted, reported, dropped.

use rollback_agent::driver::{Finding, Severity};

use crate::fixture::{CONTENT, DOWN_2, Fixture, UP_2, blockers};

/// The messages of findings of one severity.
fn said(findings: &[Finding], severity: Severity) -> String {
    let of_it = findings.iter().filter(|f| f.severity == severity);
    of_it
        .map(|f| format!("{} ({})", f.problem, f.problem.remedy))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test]
async fn another_rollback_to_the_newer_release_brings_everything_back() {
    let columns = "version text PRIMARY KEY, checksum text NOT NULL DEFAULT md5(random()::text)";
    let mut f = Fixture::with(columns, |_| {}).await;
    let (old, new) = f.two_releases().await;
    f.as_plain_role().await;
    f.sql("GRANT SELECT ON scores TO PUBLIC; GRANT SELECT ON users TO PUBLIC")
        .await;
    let versions = "SELECT string_agg(concat(version, checksum), ' ' ORDER BY version) FROM schema_migrations";
    let before = (f.text(CONTENT).await, f.text(versions).await);
    assert_eq!(f.roll(&new, &old).await, "002_scores down");
    f.sql("REVOKE SELECT ON users FROM PUBLIC").await;

    f.next_rollback("up");
    let findings = f.prepare(&old, &new).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let fine = said(&findings, Severity::Ok);
    assert!(
        fine.contains("public.scores 1500 rows, score of public.users 500 rows"),
        "{fine}"
    );
    assert!(
        !said(&findings, Severity::Warning).contains("kept schema"),
        "{findings:?}"
    );
    let counts = "public.scores 1500 rows, score of public.users 500 rows";
    let staged = f.stage(&old, &new).await.expect("stage").summary;
    assert!(staged.contains(counts), "{staged}");
    assert_eq!(
        f.kept_schemas().await,
        "1",
        "the rehearsal took nothing from the live database"
    );
    let done = f.switch(&old, &new).await.expect("switch").summary;
    assert!(
        done.starts_with("002_scores up; put back from rollbackctl_kept_"),
        "{done}"
    );
    assert!(done.ends_with(counts), "{done}");
    assert_eq!((f.text(CONTENT).await, f.text(versions).await), before);
    assert_eq!(f.text("SELECT nextval('scores_id_seq')::text").await, "2001");
    for (table, expected) in [("scores", "true"), ("users", "false")] {
        let granted = format!("SELECT (relacl::text ~ '[{{,]=r/')::text FROM pg_class WHERE oid = '{table}'::regclass");
        assert_eq!(f.text(&granted).await, expected, "{table}");
    }

    // Undone: what was put back is kept again, and put back again if it is redone.
    f.switch(&new, &old).await.expect("undo");
    let redone = f.switch(&old, &new).await.expect("redo").summary;
    assert!(redone.starts_with("002_scores up; put back: "), "{redone}");
    assert_eq!(f.text(CONTENT).await, before.0);
    f.finish(&old, &new).await;
    assert_eq!(f.kept_schemas().await, "0", "what was put back is not kept twice");

    // Nothing is kept: nothing is said.
    f.next_rollback("down-again");
    f.roll(&new, &old).await;
    f.sql(
        "DO $$ DECLARE s text; BEGIN SELECT nspname INTO s FROM pg_namespace WHERE nspname LIKE 'rollbackctl_kept_%';
           EXECUTE format('DROP SCHEMA %I CASCADE', s); END $$",
    )
    .await;
    f.next_rollback("up-again");
    assert!(said(&f.prepare(&old, &new).await, Severity::Ok).is_empty());
}

#[tokio::test]
async fn rows_that_were_deleted_meanwhile_stay_deleted_and_are_counted() {
    let mut f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.roll(&new, &old).await;
    f.sql("DELETE FROM users WHERE id <= 10; INSERT INTO users (name) VALUES ('later')")
        .await;
    f.next_rollback("up");
    let done = f.roll(&old, &new).await;
    assert!(
        done.contains("public.scores 1470 of 1500 rows (30 refer to rows that are gone, still kept)")
            && done.contains("score of public.users 490 of 500 rows (10 deleted since)"),
        "{done}"
    );
    let figures = "SELECT concat((SELECT count(*) FROM scores), ' ', (SELECT count(*) FROM users), ' ',
                   (SELECT count(*) FROM users WHERE score = id * 7), ' ', (SELECT score FROM users WHERE name = 'later'))";
    assert_eq!(f.text(figures).await, "1470 491 490 0");
    // The 30 rows have no place, but are not thrown away, and somebody is told.
    assert_eq!(f.kept_schemas().await, "1");
    let detail = rollback_agent::driver::Driver::observe(&f.driver)
        .await
        .expect("observe")
        .detail;
    assert!(detail.contains(", 1 kept schema, "), "{detail}");
    f.next_rollback("down");
    let warnings = said(&f.prepare(&new, &old).await, Severity::Warning);
    assert!(
        warnings.contains("1 kept schema, ") && warnings.contains("DROP SCHEMA \"rollbackctl_kept_"),
        "{warnings}"
    );
    // An undo within one rollback meets deleted rows as well.
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    f.sql("DELETE FROM users WHERE id = 11").await;
    let undone = f.switch(&old, &new).await.expect("undo").summary;
    assert!(
        undone.contains("public.scores 1467 of 1470 rows (3 refer") && undone.contains("490 of 491 rows (1 deleted"),
        "{undone}"
    );
    // And going down once more does not throw the three away.
    f.switch(&new, &old).await.expect("down again");
    assert_eq!(f.kept_schemas().await, "3");
}

#[tokio::test]
async fn of_several_the_newest_is_put_back_and_the_others_are_named() {
    let mut f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.roll(&new, &old).await;
    // Deployed again by the project's own tool, which knows nothing of what was kept.
    f.apply("002").await;
    f.sql("UPDATE users SET score = 1; INSERT INTO scores (user_id, points) VALUES (1, 1)")
        .await;
    f.next_rollback("second");
    f.roll(&new, &old).await;
    assert_eq!(f.kept_schemas().await, "2");
    f.next_rollback("up");
    let findings = f.prepare(&old, &new).await;
    let warned = said(&findings, Severity::Warning);
    assert!(
        warned.contains("score of public.users 500 rows; older ones stay as they are"),
        "{warned}"
    );
    let done = f.roll(&old, &new).await;
    assert!(
        done.contains("public.scores 1 row, score of public.users 500 rows; older kept rows stay where they are: rollbackctl_kept_"),
        "{done}"
    );
    assert_eq!(
        f.text("SELECT concat(sum(score), ' ', (SELECT count(*) FROM scores)) FROM users")
            .await,
        "500 1"
    );
    assert_eq!(f.kept_schemas().await, "1");
    // Forth and back: one, and the same again.
    for name in ["third", "fourth"] {
        f.next_rollback(&format!("down-{name}"));
        f.roll(&new, &old).await;
        assert_eq!(f.kept_schemas().await, "2");
        f.next_rollback(&format!("up-{name}"));
        f.roll(&old, &new).await;
        assert_eq!(f.kept_schemas().await, "1");
        assert_eq!(f.text("SELECT sum(score)::text FROM users").await, "500");
    }
}

#[tokio::test]
async fn what_does_not_fit_any_more_is_left_alone_and_named() {
    let mut f = Fixture::empty().await;
    let (old, _) = f.two_releases().await;
    // A migration that fills its table itself.
    let seeded = format!("{UP_2} INSERT INTO scores (user_id, points) SELECT min(id), 0 FROM users;");
    f.write("002_scores", &seeded, Some(DOWN_2));
    let new = f.driver_retain("seeded").await.revision;
    f.roll(&new, &old).await;
    f.next_rollback("up");
    let done = f.roll(&old, &new).await;
    assert!(
        done.contains("public.scores 0 of 1500 rows (1500 not put back, because the migration filled the table itself, still kept)")
            && done.contains("score of public.users 500 rows"),
        "{done}"
    );
    assert_eq!(f.kept_schemas().await, "1");
    assert_eq!(
        f.text("SELECT concat(count(*), ' ', (SELECT sum(score) FROM users)) FROM scores")
            .await,
        "1 876750"
    );

    // The same column, but of another type by now.
    f.next_rollback("down");
    f.roll(&new, &old).await;
    assert_eq!(f.kept_schemas().await, "2");
    let other = UP_2.replace("score integer NOT NULL DEFAULT 0", "score text NOT NULL DEFAULT 'none'");
    f.write("002_scores", &other, Some(DOWN_2));
    f.apply("002").await;
    let other = f.driver_retain("other").await.revision;
    f.sql(&format!("{DOWN_2} DELETE FROM schema_migrations WHERE version = '002'"))
        .await;
    f.next_rollback("up-other");
    let done = f.roll(&old, &other).await;
    assert!(
        done.contains("warning: kept rows in rollbackctl_kept_") && done.contains("other types"),
        "{done}"
    );
    assert_eq!(f.text("SELECT min(score) FROM users").await, "none");
    assert_eq!(f.kept_schemas().await, "2");
}

#[tokio::test]
async fn values_find_their_rows_by_the_key_and_not_by_what_its_index_includes() {
    let f = Fixture::empty().await;
    let users = "CREATE TABLE people (id int, name text, PRIMARY KEY (id) INCLUDE (name))";
    f.write("001_people", users, Some("DROP TABLE people"));
    f.apply("001").await;
    let old = f.driver_retain("v1").await.revision;
    f.write(
        "002_score",
        "ALTER TABLE people ADD COLUMN score int",
        Some("ALTER TABLE people DROP COLUMN score"),
    );
    f.apply("002").await;
    f.sql("INSERT INTO people VALUES (1, 'a', 7), (2, 'b', 8)").await;
    let new = f.driver_retain("v2").await.revision;
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    f.sql("UPDATE people SET name = 'c' WHERE id = 1").await;
    f.switch(&old, &new).await.expect("up");
    assert_eq!(
        f.text("SELECT string_agg(concat(id, name, score), ' ' ORDER BY id) FROM people")
            .await,
        "1c7 2b8"
    );
}
