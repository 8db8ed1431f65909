//! Hand-written ways down, with their checks: the runbook's "Manual Migration Rollback".

use rollback_agent::driver::{Driver as _, Revision};
use rollback_proto::problem::Code;

use crate::fixture::{CONTENT, Fixture, UP_1, UP_2, blockers, failed};

const ROWS: &str = "SELECT string_agg(version, ' ' ORDER BY version) FROM schema_migrations";

/// As in the runbook: it opens a transaction, looks, goes down, takes its row away, and commits.
const BY_HAND: &str = "-- taken down by hand
BEGIN;
-- rollbackctl:check-before SELECT count(*) = 1 FROM schema_migrations WHERE version = '002'
SELECT * FROM schema_migrations ORDER BY version DESC LIMIT 5;
DROP TABLE IF EXISTS scores;
ALTER TABLE users DROP COLUMN IF EXISTS score;
DELETE FROM schema_migrations WHERE version = '002';
-- rollbackctl:check-after SELECT to_regclass('public.scores') IS NULL
-- rollbackctl:check-after SELECT count(*) = 500 FROM users;
COMMIT;
";

struct Hand {
    f: Fixture,
    dir: tempfile::TempDir,
    old: Revision,
    new: Revision,
}

impl Hand {
    /// `002_scores` has no way down of its own.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let manual = dir.path().to_owned();
        let f = Fixture::with("version text PRIMARY KEY", |config| config.manual = Some(manual)).await;
        f.write("001_users", UP_1, None);
        f.apply("001").await;
        let old = f.driver.retain("v2.9.0").await.expect("record").revision;
        f.write("002_scores", UP_2, None);
        f.apply("002").await;
        f.sql("INSERT INTO users (name, score) SELECT 'user ' || n, n * 7 FROM generate_series(1, 500) n")
            .await;
        let new = f.driver.retain("v3.0.0").await.expect("record").revision;
        Self { f, dir, old, new }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.dir.path().join("002_scores.sql"), text).expect("write the way down");
    }
}

#[tokio::test]
async fn the_runbooks_file_goes_down_when_its_checks_hold() {
    let Hand { mut f, dir, old, new } = Hand::new().await;
    let findings = f.prepare(&new, &old).await;
    assert_eq!(blockers(&findings)[0].code, Code::NoDownMigration, "{findings:?}");
    let file = dir.path().join("002_scores.sql");
    std::fs::write(&file, BY_HAND).expect("write");
    let findings = f.prepare(&new, &old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let before = f.text(CONTENT).await;
    f.stage(&new, &old).await.expect("stage");
    // What was rehearsed is what runs, whatever becomes of the file.
    std::fs::write(&file, "DROP TABLE users CASCADE").expect("edit");
    f.switch(&new, &old).await.expect("down");
    assert_eq!(f.text(ROWS).await, "001");
    std::fs::remove_file(&file).expect("remove");
    f.switch(&old, &new).await.expect("the undo");
    assert_eq!(f.text(CONTENT).await, before);
    f.finish(&new, &old).await;

    // Left to us: the row goes all the same.
    f.next_rollback("second");
    std::fs::write(&file, "DROP TABLE scores; ALTER TABLE users DROP COLUMN score;").expect("write");
    f.roll(&new, &old).await;
    assert_eq!(f.text(ROWS).await, "001");
}

#[tokio::test]
async fn a_check_that_does_not_hold_changes_nothing() {
    let hand = Hand::new().await;
    let Hand { f, old, new, .. } = &hand;
    for (check, part) in [
        ("-- rollbackctl:check-before SELECT count(*) = 0 FROM users\n", "before"),
        ("-- rollbackctl:check-after SELECT count(*) = 0 FROM users\n", "after"),
        // Neither no row nor a null is an answer.
        (
            "-- rollbackctl:check-after SELECT true FROM users WHERE false\n",
            "after",
        ),
        ("-- rollbackctl:check-after SELECT NULL::boolean\n", "after"),
    ] {
        hand.write(&format!("{check}{BY_HAND}"));
        let problem = failed(f.stage(new, old).await);
        assert_eq!(problem.code, Code::IntegrityFailed, "{check}: {problem}");
        assert!(
            problem.message.contains("002_scores") && problem.message.contains(part),
            "{problem}"
        );
        assert_eq!(f.digest().await, new.digest);
        f.assert_clean().await;
    }
    // It held on the copy, and does not any more: the live database keeps everything.
    hand.write(BY_HAND);
    f.stage(new, old).await.expect("stage");
    f.sql("DELETE FROM users WHERE id = 1").await;
    let problem = failed(f.switch(new, old).await);
    assert_eq!(problem.code, Code::IntegrityFailed, "{problem}");
    assert_eq!(f.digest().await, new.digest);
    assert_eq!(
        f.text("SELECT concat(count(*), ' ', sum(score)) FROM users").await,
        "499 876743"
    );
    assert_eq!(f.text(ROWS).await, "001 002");
}

#[tokio::test]
async fn files_that_cannot_be_meant_are_refused_with_what_to_do() {
    let hand = Hand::new().await;
    let Hand { f, dir, old, new } = &hand;
    hand.write("BEGIN;\nDROP TABLE scores;\n\\dt\n\\d users\nCOMMIT;\n");
    let findings = f.prepare(new, old).await;
    let refused = blockers(&findings)[0];
    assert_eq!(refused.code, Code::NoDownMigration);
    assert!(
        refused.message.contains("\\\\dt") && refused.message.contains("rollbackctl:check-after"),
        "{refused}"
    );
    // Another migration's, by its name.
    std::fs::rename(dir.path().join("002_scores.sql"), dir.path().join("002_other.sql")).expect("rename");
    let findings = f.prepare(new, old).await;
    let refused = blockers(&findings)[0];
    assert_eq!(refused.code, Code::MigrationsDiverged);
    assert!(
        refused.message.contains("002_other.sql") && refused.message.contains("002_scores"),
        "{refused}"
    );
    assert_eq!(f.digest().await, new.digest);
}
