//! Where there is no way by migrations, the operator is told what the other one would cost, if there is a proven backup.

use rollback_agent::driver::Revision;
use rollback_proto::problem::{Code, Problem};

use crate::fixture::{blockers, failed};
use crate::restore::{Restored, WRITTEN};

/// v3.1.0, on top of v3.0.0: one migration more, whose row is lost by a restore, too.
async fn with_another_migration(r: &Restored, down: Option<&str>) -> Revision {
    r.f.write("003_more", "CREATE TABLE more (id int PRIMARY KEY)", down);
    r.f.apply("003").await;
    r.f.driver_retain("v3.1.0").await.revision
}

fn assert_names_a_restore(problem: &Problem, rows: u64) {
    for part in [
        "restore the backup of 20",
        "--database restore --accept-data-loss; ",
        &format!("lost would be {rows} rows (public.scores 40, public.users 31"),
        "--database keep",
    ] {
        assert!(problem.remedy.contains(part), "{part:?} is not in: {}", problem.remedy);
    }
    assert_eq!(problem.remedy.matches("--database restore").count(), 1, "{problem:?}");
}

async fn blocker(r: &Restored, from: &Revision, code: Code, part: &str) -> Problem {
    let findings = r.f.prepare(from, &r.old).await;
    let found = blockers(&findings).into_iter().find(|p| p.code == code);
    let problem = found
        .unwrap_or_else(|| panic!("{code:?} is not in {findings:?}"))
        .clone();
    assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
    problem
}

#[tokio::test]
async fn a_way_down_that_is_missing_or_cannot_be_run() {
    let r = Restored::new(false).await;
    let new = with_another_migration(&r, None).await;
    let problem = blocker(&r, &new, Code::NoDownMigration, "003_more.down.sql").await;
    assert_names_a_restore(&problem, WRITTEN + 1);
    // There, but none that could be rehearsed.
    r.f.write(
        "003_more",
        "CREATE TABLE more (id int PRIMARY KEY)",
        Some("DROP DATABASE shop"),
    );
    let problem = blocker(&r, &new, Code::NoDownMigration, "concerns the whole server").await;
    assert_names_a_restore(&problem, WRITTEN + 1);

    std::fs::remove_file(r.manifest()).expect("forget the backup");
    let problem = blocker(&r, &new, Code::NoDownMigration, "concerns the whole server").await;
    assert!(!problem.remedy.contains("--database"), "{problem:?}");
}

#[tokio::test]
async fn migrations_that_nobody_knows() {
    let r = Restored::new(false).await;
    r.f.sql("INSERT INTO schema_migrations VALUES ('007')").await;
    // Since the plan was made, and before.
    let problem = blocker(&r, &r.new, Code::MigrationsDiverged, "7").await;
    assert_names_a_restore(&problem, WRITTEN + 1);
    let seen = r.f.observe().await;
    let problem = blocker(&r, &seen, Code::MigrationsDiverged, "neither the vault").await;
    assert_names_a_restore(&problem, WRITTEN + 1);
}

#[tokio::test]
async fn a_rehearsal_that_fails() {
    let r = Restored::new(false).await;
    let new = with_another_migration(&r, Some("DROP TABLE no_such_table")).await;
    let problem = failed(r.f.stage(&new, &r.old).await);
    assert_eq!(problem.code, Code::RehearsalFailed, "{problem}");
    assert!(problem.message.contains("no_such_table"), "{problem}");
    assert!(
        problem.remedy.contains("the live database was not touched"),
        "{problem:?}"
    );
    assert_names_a_restore(&problem, WRITTEN + 1);

    // A dump that does not say what it could see: nobody can agree to a loss as shown.
    r.edit_manifest(|m| m["horizon"] = serde_json::Value::Null);
    let problem = failed(r.f.stage(&new, &r.old).await);
    assert!(
        problem
            .remedy
            .contains("--accept-data-loss=ROWS; lost would be an unknown number of rows"),
        "{problem:?}"
    );

    std::fs::remove_file(r.manifest()).expect("forget the backup");
    let problem = failed(r.f.stage(&new, &r.old).await);
    assert_eq!(problem.code, Code::RehearsalFailed, "{problem}");
    assert!(!problem.remedy.contains("--database"), "{problem:?}");
    assert_eq!(r.f.digest().await, new.digest);
    r.f.assert_clean().await;
}
