//! Others at work while the databases are exchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rollback_agent::driver::Probe;
use rollback_proto::problem::Code;
use sqlx::Connection as _;

use super::{ANY, PLENTY, Restored, WRITTEN, written};
use crate::cluster::own_cluster;
use crate::fixture::{Fixture, assert_failed, blockers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_reconnect_at_once_and_a_long_transaction_with_a_lock() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    let mut holder = r.f.cluster.connect(&r.f.database).await;
    let done = Arc::new(AtomicBool::new(false));
    let written_rows = Arc::new(AtomicU32::new(0));
    let refused = Arc::new(AtomicU32::new(0));
    let longest = Arc::new(std::sync::Mutex::new(Duration::ZERO));
    let client = |n: u32| {
        let (done, rows, refused, longest) = (done.clone(), written_rows.clone(), refused.clone(), longest.clone());
        let (cluster, database) = (r.f.cluster, r.f.database.clone());
        async move {
            let mut last = Instant::now();
            while !done.load(Ordering::Relaxed) {
                match cluster.try_connect(&database).await {
                    Ok(mut c) => {
                        let gap = last.elapsed();
                        {
                            let mut longest = longest.lock().expect("the longest");
                            *longest = (*longest).max(gap);
                        }
                        let insert = "INSERT INTO scores (user_id, points) VALUES (1, 1)";
                        if n == 0 && sqlx::raw_sql(insert).execute(&mut c).await.is_ok() {
                            rows.fetch_add(1, Ordering::Relaxed);
                        }
                        last = Instant::now();
                        let _ = c.close().await;
                    }
                    Err(_) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    };
    let switching = async {
        while written_rows.load(Ordering::Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Not even the schema can be read now: a view is made of this table.
        sqlx::raw_sql("BEGIN; LOCK TABLE users; INSERT INTO scores (user_id, points) VALUES (1, 1)")
            .execute(&mut holder)
            .await
            .expect("hold a lock");
        let switched = r.switch(Some(PLENTY)).await;
        done.store(true, Ordering::Relaxed);
        switched
    };
    let (switched, ..) = tokio::join!(switching, client(0), client(1), client(2), client(3));
    let loss = switched.expect("switch").loss.expect("a loss");
    // Writes that the server acknowledged, and no other.
    let acknowledged = u64::from(written_rows.load(Ordering::Relaxed));
    let counted = written(&loss) - WRITTEN;
    assert!(
        counted == acknowledged || counted == acknowledged + 1,
        "{counted} counted, {acknowledged} acknowledged"
    );
    assert!(
        acknowledged > 0 && refused.load(Ordering::Relaxed) > 0,
        "nobody was at work"
    );
    assert!(*longest.lock().expect("the longest") < Duration::from_secs(3));
    r.assert_restored().await;
    assert!(
        sqlx::raw_sql("COMMIT").execute(&mut holder).await.is_err(),
        "its session was ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_the_agent_may_not_end_is_named() {
    let r = Restored::new(true).await;
    r.stage().await.expect("stage");
    // The test connects as a superuser.
    let mut admin = r.f.cluster.connect(&r.f.database).await;
    let findings = r.prepare().await;
    assert!(
        findings
            .iter()
            .any(|f| f.problem.message.contains("sessions of postgres")),
        "{findings:?}"
    );
    assert_failed(
        r.switch(Some(ANY)).await,
        Code::DatabaseLocked,
        "the test, user postgres",
    );
    sqlx::raw_sql("SELECT 1")
        .execute(&mut admin)
        .await
        .expect("it is still there");
    admin.close().await.expect("close");
    r.assert_untouched().await;
    r.switch(Some(ANY)).await.expect("switch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_in_the_middle_of_the_exchange() {
    let cluster = own_cluster("max_prepared_transactions = 4\nwal_level = logical").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let r = Restored::of(f, false).await;
    // What would be left behind is refused.
    r.f.sql("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
        .await;
    r.f.sql("BEGIN; INSERT INTO scores (user_id, points) VALUES (1, 9); PREPARE TRANSACTION 'pending'")
        .await;
    let findings = r.prepare().await;
    let found: Vec<_> = blockers(&findings).iter().map(|p| p.message.clone()).collect();
    assert!(
        found.iter().any(|m| m.contains("pending")) && found.iter().any(|m| m.contains("feed")),
        "{found:?}"
    );
    r.stage().await.expect("stage");
    assert_failed(r.switch(Some(ANY)).await, Code::DatabaseLocked, "pending");
    r.f.sql("ROLLBACK PREPARED 'pending'").await;
    r.f.sql("SELECT pg_drop_replication_slot('feed')").await;
    r.assert_untouched().await;

    for (undo, stop) in [(false, "fast"), (true, "immediate"), (false, "immediate")] {
        let args: &'static [&'static str] = if stop == "fast" {
            &["stop", "-m", "fast"]
        } else {
            &["stop", "-m", "immediate"]
        };
        let restart = async {
            // Until it is closed, or the exchange was quicker.
            let closed = format!(
                "SELECT datallowconn::text FROM pg_database WHERE datname = '{}'",
                r.f.database
            );
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(400) && cluster.text("postgres", &closed).await == "true" {}
            cluster.control(args).await;
            cluster.control(&["start"]).await;
        };
        let exchange = async {
            if undo {
                r.undo().await
            } else {
                r.switch(Some(ANY)).await
            }
        };
        let (exchanged, ()) = tokio::join!(exchange, restart);
        if exchanged.is_err() {
            // The server went away after the exchange, when it was looked at: repeating it is enough.
            let again = if undo {
                r.undo().await
            } else {
                r.switch(Some(ANY)).await
            };
            again.unwrap_or_else(|e| panic!("{stop}: {exchanged:?}, then {e:?}"));
        }
        if undo {
            r.assert_untouched().await;
        } else {
            r.assert_restored().await;
        }
    }
    assert!(matches!(r.probe().await, Probe::Applied(_)));
}
