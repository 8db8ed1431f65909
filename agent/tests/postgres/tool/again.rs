//! A tool whose way down works once for each database.

use rollback_proto::problem::Code;

use super::{NAMES, file, tooled, two_releases};
use crate::fixture::{CONTENT, failed};

#[tokio::test]
async fn one_that_counts_its_runs_down_in_a_file_fails_in_the_rehearsal() {
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let before = f.text(CONTENT).await;
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    // Two runs lead down; what it notes is neither in the database nor undone by its way up.
    let counting = "case $1 in down)
        echo run >>\"down.$PGDATABASE\"
        if [ \"$(wc -l <\"down.$PGDATABASE\")\" -gt 2 ]; then echo 'was taken down before' >&2; exit 1; fi ;;
        esac";
    std::fs::write(file(&f, "tool.sh"), format!("{counting}\n{script}")).expect("write");
    let problem = failed(f.stage(&new, &old).await);
    assert_eq!(problem.code, Code::RehearsalFailed, "{problem}");
    for part in ["going down a second time fails", "was taken down before"] {
        assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
    }
    assert_eq!(f.observe().await, new);
    assert_eq!(f.text(NAMES).await, "2024-users 2024-scores 2024-notes");
    assert_eq!(f.text(CONTENT).await, before);
    assert_eq!(f.kept_schemas().await, "0");
    f.assert_clean().await;
}

#[tokio::test]
async fn a_restore_is_named_when_a_run_leads_nowhere() {
    let f = tooled(&[("BATCH", "0")]).await;
    super::migrate(&f, "2024-users", crate::fixture::UP_1, crate::fixture::DOWN_1).await;
    let old = f.driver_retain("v2.9.0").await.revision;
    f.snapshot(&old, &old).await.expect("a backup of v2.9.0");
    f.finish(&old, &old).await;
    super::migrate(
        &f,
        "2024-notes",
        "CREATE TABLE notes (id int PRIMARY KEY, text text)",
        "DROP TABLE notes",
    )
    .await;
    f.sql("INSERT INTO notes SELECT n, 'note ' || n FROM generate_series(1, 20) n")
        .await;
    let new = f.driver_retain("v3.0.0").await.revision;
    let problem = failed(f.stage(&new, &old).await);
    assert_eq!(problem.code, Code::MigrationToolFailed, "{problem}");
    for part in [
        "--database restore --accept-data-loss; lost would be 21 rows",
        "public.notes 20",
        "--database keep",
    ] {
        assert!(problem.remedy.contains(part), "{part:?} is not in: {}", problem.remedy);
    }
}
