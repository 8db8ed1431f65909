//! Parts that fail: the database is where it was before, or it is said where it stands.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::postgres::PostgresDriver;
use rollback_agent::driver::{Action, Driver as _, Failure, Probe};
use rollback_agent::step::NoProgress;
use rollback_proto::problem::Code;

use super::{DOWN_MORE, DOWN_SCORES, after_down, seen, two_releases};
use crate::fixture::{CONTENT, Fixture, failed};

/// Fails on the live database only: the rehearsal ends well.
fn fails_live(otherwise: &str) -> String {
    format!(
        "DO $$ BEGIN IF current_database() NOT LIKE 'rollbackctl%' THEN RAISE 'not here'; END IF; {otherwise} END $$;"
    )
}

#[tokio::test]
async fn after_a_failure_the_database_is_where_it_was_before() {
    for (down_scores, down_more, where_it_failed) in [
        // The fourth part, a transaction.
        (
            format!("{DOWN_SCORES} {}", fails_live("")),
            DOWN_MORE.to_owned(),
            "003_scores down",
        ),
        // The second statement of a migration: its version row is still there.
        (
            DOWN_SCORES.to_owned(),
            format!(
                "-- no-transaction\nDROP INDEX CONCURRENTLY users_score;\n{}",
                fails_live("DROP INDEX scores_points;")
            ),
            "004_more down",
        ),
    ] {
        let f = Fixture::empty().await;
        let (old, new) = two_releases(&f, &down_scores, &down_more).await;
        f.stage(&new, &old).await.expect("stage");
        let before = f.text(CONTENT).await;
        let problem = failed(f.switch(&new, &old).await);
        assert_eq!(problem.code, Code::MigrationFailed, "{problem}");
        assert!(
            problem.message.contains(where_it_failed)
                && problem.message.contains("not here")
                && problem.message.ends_with("what had been run before it was taken back"),
            "{problem}"
        );
        assert_eq!(seen(&f).await, after_down(0));
        assert_eq!((f.digest().await, f.text(CONTENT).await), (new.digest.clone(), before));
        f.finish(&new, &new).await;
        assert_eq!(f.kept_schemas().await, "0");
    }
}

#[tokio::test]
async fn from_where_nothing_leads_back_it_is_said_where_it_stands() {
    let f = Fixture::empty().await;
    // Taken down in the order in which they were made: what is left half-way is on no way up.
    let down = format!(
        "-- no-transaction\nDROP INDEX CONCURRENTLY scores_points;\n{}",
        fails_live("DROP INDEX users_score;")
    );
    let (old, new) = two_releases(&f, DOWN_SCORES, &down).await;
    f.stage(&new, &old).await.expect("stage");
    let Err(Failure::Indeterminate(problem)) = f.switch(&new, &old).await else {
        panic!("neither end was reached");
    };
    assert!(
        problem.message.contains("not here") && problem.message.contains("stands after 1 of 6 parts of the way down"),
        "{problem}"
    );
    assert!(problem.remedy.contains("run the step again"), "{problem:?}");
    let probe = f.driver.probe(&f.step(Action::Switch, &new, &old)).await;
    assert!(
        matches!(&probe, Probe::Repeatable(why) if why.contains("after 1 of 6")),
        "{probe:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_in_the_way_of_concurrently_is_named_before_anything_is_changed() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    let before = (seen(&f).await, f.text(CONTENT).await);
    let mut holder = f.cluster.connect(&f.database).await;
    sqlx::raw_sql("SET application_name = 'report'; BEGIN; SELECT count(*) FROM users")
        .execute(&mut holder)
        .await
        .expect("hold");
    let step = f.watched_step(Action::Switch, &new, &old, Duration::from_secs(3), Arc::new(NoProgress));
    let problem = failed(f.driver.switch(&step).await);
    assert_eq!(problem.code, Code::DatabaseLocked, "{problem}");
    assert!(
        problem
            .message
            .contains("report, user postgres, idle in transaction since"),
        "{problem}"
    );
    assert_eq!((seen(&f).await, f.text(CONTENT).await), before);
    // It ends while it is waited for.
    let step = f.step(Action::Switch, &new, &old);
    let ending = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        sqlx::Connection::close(holder).await.expect("let go");
    };
    let (switched, ()) = tokio::join!(f.driver.switch(&step), ending);
    assert_eq!(switched.expect("down").observed, Some(old));
}

#[tokio::test]
async fn a_wrong_password_is_a_failure_only_where_nothing_was_begun() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    f.sql("CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'right'")
        .await;
    let file = f.dir.path().join("password");
    std::fs::write(&file, "wrong").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let mut config = f.config.clone();
    (config.user, config.password_file) = ("with_password".to_owned(), Some(file.clone()));
    let driver = PostgresDriver::new("db", config, f.vault.clone()).expect("driver");
    let step = f.step(Action::Switch, &new, &old);
    let problem = failed(driver.switch(&step).await);
    assert!(problem.message.contains("password authentication failed"), "{problem}");
    assert_eq!(seen(&f).await, after_down(0));

    super::cut_off::at_part(&f, &new, &old, 4).await;
    let Err(Failure::Indeterminate(problem)) = driver.switch(&step).await else {
        panic!("the database is half-way, and nobody could look");
    };
    assert!(
        problem.message.contains("password authentication failed") && problem.message.contains("cut off"),
        "{problem}"
    );
    assert!(problem.remedy.contains("run the step again"), "{problem:?}");
    assert!(matches!(driver.probe(&step).await, Probe::Indeterminate(_)));
    assert_eq!(seen(&f).await, after_down(3));
    std::fs::write(&file, "right").expect("write");
    driver.switch(&step).await.expect("on");
    f.switch(&old, &new).await.expect("undo");
    assert_eq!(f.digest().await, new.digest);
}
