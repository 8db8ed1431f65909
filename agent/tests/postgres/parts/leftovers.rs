//! Invalid indexes that interrupted statements leave.

use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::{Action, Driver as _, Failure, Probe};
use rollback_agent::step::NoProgress;
use rollback_proto::problem::Code;

use super::{DOWN_MORE, DOWN_SCORES, PARTS, after_down, after_up, seen, two_releases};
use crate::cluster::own_cluster;
use crate::fixture::{CONTENT, Fixture, UP_1};

const BREAK: &str = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_score'::regclass";

#[tokio::test]
async fn what_an_interrupted_statement_left_goes_before_it_is_run_again() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    let before = f.text(CONTENT).await;
    let half_way = async |from, to, name: &str| match f.driver.probe(&f.step(Action::Switch, from, to)).await {
        Probe::Repeatable(why) if why.contains(name) && why.contains("invalid") => {}
        other => panic!("{other:?}"),
    };
    // DROP INDEX CONCURRENTLY was cut off: on, and back.
    f.sql(BREAK).await;
    half_way(&new, &old, "users_score").await;
    f.switch(&new, &old).await.expect("on");
    f.switch(&old, &new).await.expect("up");
    f.sql(BREAK).await;
    f.switch(&old, &new).await.expect("back");
    assert_eq!(seen(&f).await, after_up(PARTS));
    assert_eq!(
        (f.digest().await, f.text(CONTENT).await),
        (new.digest.clone(), before.clone())
    );

    // CREATE INDEX CONCURRENTLY was cut off, at the beginning and half-way.
    f.switch(&new, &old).await.expect("down");
    f.sql(
        "CREATE INDEX users_created ON users (created);
         UPDATE pg_index SET indisvalid = false, indisready = false WHERE indexrelid = 'users_created'::regclass",
    )
    .await;
    half_way(&old, &new, "users_created").await;
    f.switch(&old, &new).await.expect("up over what was left");
    assert_eq!(
        (seen(&f).await.as_str(), f.text(CONTENT).await),
        (after_up(PARTS), before.clone())
    );

    // Somebody else's: nothing that the rehearsal saw.
    f.sql(
        "CREATE INDEX other ON users (name);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'other'::regclass",
    )
    .await;
    match f.driver.probe(&f.step(Action::Switch, &new, &old)).await {
        Probe::Indeterminate(problem) => assert!(problem.message.contains("index public.other"), "{problem}"),
        other => panic!("{other:?}"),
    }
    assert!(f.switch(&new, &old).await.is_err());
    assert!(seen(&f).await.starts_with(after_down(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_in_the_middle_of_create_index_concurrently() {
    let cluster = own_cluster("").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let slow = "CREATE FUNCTION slow(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql
                AS 'BEGIN PERFORM pg_sleep(0.004); RETURN $1; END'";
    f.write("001_users", &format!("{UP_1} {slow};"), None);
    f.apply("001").await;
    let old = f.driver_retain("v1").await.revision;
    let up = "CREATE INDEX CONCURRENTLY by_slow ON users (slow(id))";
    f.write("002_index", up, Some("DROP INDEX CONCURRENTLY by_slow"));
    f.apply("002").await;
    f.sql("INSERT INTO users (name) SELECT n::text FROM generate_series(1, 200) n")
        .await;
    let new = f.driver_retain("v2").await.revision;
    f.stage(&new, &old).await.expect("stage");
    f.switch(&new, &old).await.expect("down");
    let restarting = async {
        let at_work = "SELECT count(*)::text FROM pg_stat_activity
                       WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active' AND xact_start IS NOT NULL
                         AND EXISTS (SELECT 1 FROM pg_class WHERE relname = 'by_slow')";
        while f.text(at_work).await == "0" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        cluster.control(&["stop", "-m", "immediate"]).await;
        cluster.control(&["start"]).await;
    };
    let (switched, ()) = tokio::join!(f.switch(&old, &new), restarting);
    assert_eq!(switched.expect("up after all").observed, Some(new.clone()));
    let valid = "SELECT indisvalid::text FROM pg_index WHERE indexrelid = 'by_slow'::regclass";
    assert_eq!(f.text(valid).await, "true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_on_over_an_invalid_index_is_no_failure_at_the_origin() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    let mut holder = f.cluster.connect(&f.database).await;
    let stuck = async |from, to, name: &str| {
        let step = f.watched_step(Action::Switch, from, to, Duration::from_secs(3), Arc::new(NoProgress));
        match f.driver.switch(&step).await {
            Err(Failure::Indeterminate(problem)) => {
                assert_eq!(problem.code, Code::DatabaseLocked, "{problem}");
                assert!(problem.message.contains(name), "{problem}");
                assert!(problem.remedy.contains("run the step again"), "{problem:?}");
            }
            other => panic!("{name} is invalid: {other:?}"),
        }
    };
    // DROP INDEX CONCURRENTLY was cut off, and a long transaction does not let it go on.
    f.sql(BREAK).await;
    let hold = "BEGIN; SELECT count(*) FROM users";
    sqlx::raw_sql(hold).execute(&mut holder).await.expect("hold");
    stuck(&new, &old, "users_score").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("let go");
    f.switch(&new, &old).await.expect("on");

    // The same on the way up, where what is left has to go first.
    f.sql(
        "CREATE INDEX users_created ON users (created);
         UPDATE pg_index SET indisvalid = false, indisready = false WHERE indexrelid = 'users_created'::regclass",
    )
    .await;
    sqlx::raw_sql(hold).execute(&mut holder).await.expect("hold");
    stuck(&old, &new, "users_created").await;
    sqlx::Connection::close(holder).await.expect("let go");
    f.switch(&old, &new).await.expect("on");
    assert_eq!(f.digest().await, new.digest);
}
