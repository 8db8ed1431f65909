//! Tools that do not use the database that they are given: on a copy they would move the live one.

use rollback_proto::problem::Code;

use super::{NAMES, file, filled, tooled, two_releases};
use crate::fixture::{CONTENT, blockers, failed};

#[tokio::test]
async fn one_with_a_database_of_its_own_is_found_out_before_it_runs() {
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let before = f.text(CONTENT).await;
    // As if its settings came from a file.
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    std::fs::write(file(&f, "tool.sh"), format!("PGDATABASE={}\n{script}", f.database)).expect("write");
    let findings = f.prepare(&new, &old).await;
    let refused = blockers(&findings);
    assert!(
        refused.len() == 1
            && refused[0].code == Code::MigrationToolFailed
            && refused[0].message.contains("does not use"),
        "{findings:?}"
    );
    let problem = failed(f.stage(&new, &old).await);
    assert_eq!(problem.code, Code::MigrationToolFailed, "{problem}");
    assert!(
        problem.message.contains("does not use the database that it is given"),
        "{problem}"
    );
    assert_eq!(f.observe().await, new);
    assert_eq!(f.text(CONTENT).await, before);
    f.assert_clean().await;
}

#[tokio::test]
async fn one_whose_way_down_goes_astray_is_stopped_before_it_changes_anything() {
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let before = f.text(CONTENT).await;
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    for name in ["", "PGAPPNAME=other\n"] {
        // Its status heeds the environment, its way down does not: under the run's own name, and under another.
        std::fs::write(file(&f, "tool.sh"), format!("{name}LIVE={}\n{script}", f.database)).expect("write");
        assert!(blockers(&f.prepare(&new, &old).await).is_empty());
        let problem = failed(f.stage(&new, &old).await);
        assert_eq!(problem.code, Code::MigrationToolFailed, "{problem}");
        assert!(problem.message.contains("at work on the live database"), "{problem}");
        assert_eq!(f.observe().await, new);
        assert_eq!(f.text(NAMES).await, "2024-users 2024-scores 2024-notes");
        assert_eq!(f.text(CONTENT).await, before);
        f.assert_clean().await;
    }
}

#[tokio::test]
async fn one_that_would_change_rows_only_is_stopped_at_its_own_notes() {
    let f = tooled(&[]).await;
    two_releases(&f).await;
    let old = f.observe().await;
    let new = filled(&f).await;
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    std::fs::write(
        file(&f, "tool.sh"),
        format!("PGAPPNAME=other\nLIVE={}\n{script}", f.database),
    )
    .expect("write");
    let problem = failed(f.stage(&new, &old).await);
    assert_eq!(problem.code, Code::MigrationToolFailed, "{problem}");
    assert!(problem.message.contains("at work on the live database"), "{problem}");
    assert_eq!(f.observe().await, new);
    assert_eq!(f.text("SELECT text FROM notes WHERE id = 1").await, "NOTE 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_gives_way_to_the_application() {
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    let slow = format!("case $1 in down) touch begun; sleep 4 ;; esac\n{script}");
    std::fs::write(file(&f, "tool.sh"), slow).expect("write");
    // From a pool: it was there before.
    let mut pooled = f.cluster.connect(&f.database).await;
    let emptying = async {
        while !file(&f, "begun").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let begun = std::time::Instant::now();
        let emptied = sqlx::raw_sql("TRUNCATE scores").execute(&mut pooled).await;
        (emptied.map(|_| ()), begun.elapsed())
    };
    let (staged, (emptied, took)) = tokio::join!(f.stage(&new, &old), emptying);
    emptied.expect("TRUNCATE");
    assert!(
        took < std::time::Duration::from_secs(2),
        "the application waited for {took:?}"
    );
    let problem = failed(staged);
    assert_eq!(problem.code, Code::DatabaseLocked, "{problem}");
    assert!(
        problem.message.contains("the test, user postgres") && problem.message.contains("gave way"),
        "{problem}"
    );
    f.assert_clean().await;
}
