//! The server itself at work: autovacuum in the scratch copy, restarts in the middle of a switch, row values in errors.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rollback_agent::driver::{Action, Driver as _};
use rollback_agent::step::ProgressSink;
use rollback_proto::problem::Code;

use crate::cluster::own_cluster;
use crate::fixture::{CONTENT, DOWN_2, Fixture, UP_2, failed};

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl ProgressSink for Lines {
    fn progress(&self, message: &str, _fraction: Option<f64>) {
        self.0.lock().expect("lines").push(message.to_owned());
    }
}

impl Lines {
    fn text(&self) -> String {
        self.0.lock().expect("lines").join("\n")
    }
}

/// Workers come at once and take their time.
const BUSY_AUTOVACUUM: &str = "autovacuum = on\nautovacuum_naptime = 1s\nautovacuum_max_workers = 8\n\
     autovacuum_vacuum_threshold = 0\nautovacuum_vacuum_scale_factor = 0\nautovacuum_analyze_threshold = 0\n\
     autovacuum_analyze_scale_factor = 0\nautovacuum_vacuum_insert_threshold = 0\nautovacuum_vacuum_cost_delay = 100ms\n\
     autovacuum_vacuum_cost_limit = 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_outlasts_an_autovacuum_that_holds_its_table() {
    let mut f = Fixture::on(own_cluster(BUSY_AUTOVACUUM).await, "version text PRIMARY KEY", |_| {}).await;
    let (old, new) = f.two_releases().await;
    f.as_plain_role().await;
    f.stage(&new, &old).await.expect("stage");
    // Some hundred pages at ten or fewer a second.
    f.sql("INSERT INTO users (name) SELECT 'more ' || n FROM generate_series(1, 30000) n")
        .await;
    let begun = Instant::now();
    let at_work = "SELECT count(*)::text FROM pg_locks JOIN pg_stat_activity a USING (pid)
                   WHERE a.backend_type = 'autovacuum worker' AND relation = 'users'::regclass
                     AND mode = 'ShareUpdateExclusiveLock'";
    while f.text(at_work).await == "0" {
        assert!(begun.elapsed() < Duration::from_secs(30), "autovacuum never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let done = f.switch(&new, &old).await.expect("switch");
    assert_eq!(done.observed.as_ref(), Some(&old));
    f.finish(&new, &old).await;
    f.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scratch_database_with_autovacuum_in_it_is_dropped_by_a_plain_role() {
    let cluster = own_cluster(BUSY_AUTOVACUUM).await;
    let mut f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let (old, _) = f.two_releases().await;
    let slow = format!("{DOWN_2} SELECT pg_sleep(1.2);");
    f.write("002_scores", UP_2, Some(&slow));
    let new = f.driver_retain("slow").await.revision;
    f.as_plain_role().await;
    let mut seen = 0;
    for _ in 0..2 {
        let done = std::sync::atomic::AtomicBool::new(false);
        let looking = async {
            let mut most = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let workers = "SELECT count(*)::text FROM pg_stat_activity
                               WHERE backend_type = 'autovacuum worker' AND datname LIKE 'rollbackctl_scratch_%'";
                most = most.max(cluster.text("postgres", workers).await.parse().expect("a number"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            most
        };
        let staging = async {
            let staged = f.stage(&new, &old).await;
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            staged
        };
        let (staged, workers): (_, u32) = tokio::join!(staging, looking);
        seen += workers;
        let summary = staged.expect("stage").summary;
        assert!(!summary.contains("warning"), "{summary}");
        let left = "SELECT count(*)::text FROM pg_database WHERE datname LIKE 'rollbackctl_scratch_%'";
        assert_eq!(cluster.text("postgres", left).await, "0");
    }
    assert!(seen > 0, "autovacuum never came: this test proved nothing");
    f.finish(&new, &old).await;
    f.assert_clean().await;
}

#[tokio::test]
async fn a_scratch_database_that_somebody_holds_is_no_failure_of_a_good_proof() {
    let mut f = Fixture::empty().await;
    let (old, _) = f.two_releases().await;
    f.write("002_scores", UP_2, Some(&format!("{DOWN_2} SELECT pg_sleep(0.5);")));
    let new = f.driver_retain("slow").await.revision;
    f.as_plain_role().await;
    let holding = async {
        let scratch = "SELECT datname::text FROM pg_database WHERE datname LIKE 'rollbackctl_scratch_%'";
        loop {
            let name = f
                .cluster
                .text("postgres", &format!("SELECT coalesce(({scratch}), '')"))
                .await;
            if !name.is_empty() {
                // A superuser's: a plain role cannot end it.
                return f.cluster.connect(&name).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (staged, holder) = tokio::join!(f.stage(&new, &old), holding);
    let summary = staged.expect("the proof was good").summary;
    assert!(
        summary.contains("warning: rollbackctl_scratch_") && summary.contains("drop scratch database"),
        "{summary}"
    );
    sqlx::Connection::close(holder).await.expect("let go");
    f.switch(&new, &old).await.expect("switch");
    f.finish(&new, &old).await;
    f.assert_clean().await;
}

/// Stops the server when the migration is at its slow statement, and starts it again 1.5 s later.
async fn restart_in_the_middle(f: &Fixture, stop: &'static [&'static str]) {
    let at_work = "SELECT count(*)::text FROM pg_stat_activity
                   WHERE datname NOT LIKE 'rollbackctl%' AND application_name = 'rollbackctl db' AND query LIKE '%pg_sleep(0.7)%'
                     AND state = 'active'";
    while f.cluster.text("postgres", at_work).await == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    f.cluster.control(stop).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    f.cluster.control(&["start"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_of_a_switch_is_waited_for() {
    let cluster = own_cluster("").await;
    let mut f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let (old, _) = f.two_releases().await;
    let slow = |sql: &str| format!("{sql} SELECT pg_sleep(0.7);");
    f.write("002_scores", &slow(UP_2), Some(&slow(DOWN_2)));
    let new = f.driver_retain("slow").await.revision;
    f.as_plain_role().await;
    let before = f.text(CONTENT).await;
    f.stage(&new, &old).await.expect("stage");
    let (fast, immediate): (&[&str], &[&str]) = (&["stop", "-m", "fast"], &["stop", "-m", "immediate"]);
    for (from, to, stop) in [
        (&new, &old, fast),
        (&old, &new, immediate),
        (&new, &old, immediate),
        (&old, &new, fast),
    ] {
        let lines = Arc::new(Lines::default());
        let step = f.watched_step(Action::Switch, from, to, Duration::from_secs(60), lines.clone());
        let (switched, ()) = tokio::join!(f.driver.switch(&step), restart_in_the_middle(&f, stop));
        let done = switched.unwrap_or_else(|e| panic!("{stop:?}: {e:?}\n{}", lines.text()));
        assert_eq!(done.observed.as_ref(), Some(to), "{stop:?}");
        let said = lines.text();
        assert!(
            said.contains("before it was committed; trying again")
                && said.contains("the server does not accept connections (")
                && said.contains(", trying until "),
            "{said}"
        );
    }
    assert_eq!(f.text(CONTENT).await, before);

    // Down when the step begins, and not coming up before its deadline.
    cluster.control(fast).await;
    let begun = Instant::now();
    assert_eq!(f.driver.observe().await.expect_err("down").code, Code::DatabaseDown);
    let lines = Arc::new(Lines::default());
    let step = f.watched_step(Action::Switch, &new, &old, Duration::from_secs(2), lines.clone());
    let problem = failed(f.driver.switch(&step).await);
    assert_eq!(problem.code, Code::DatabaseDown, "{problem}");
    assert!(problem.message.contains("(tried for "), "{problem}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let (finished, ()) = tokio::join!(f.finish(&new, &new), async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.control(&["start"]).await;
    });
    let () = finished;
    assert_eq!(f.digest().await, new.digest);
}

#[tokio::test]
async fn errors_about_rows_do_not_show_them() {
    for (failing, parts) in [
        (
            "PERFORM 'alice@example.org'::int",
            vec!["SQLSTATE 22P02", "PL/pgSQL function"],
        ),
        (
            "EXECUTE 'INSERT INTO users (name) VALUES (''user 1'')'",
            vec!["SQLSTATE 23505", "unique violation", "public.users", "users_name_key"],
        ),
        (
            "EXECUTE 'UPDATE users SET status = ''alice'' WHERE id = 1'",
            vec!["SQLSTATE 23514", "users_status_check"],
        ),
        (
            "EXECUTE 'INSERT INTO users (name) VALUES (NULL)'",
            vec!["SQLSTATE 23502", "column: name"],
        ),
        (
            "EXECUTE 'UPDATE users SET status = ''alice@example.org'''",
            vec!["SQLSTATE 22001"],
        ),
    ] {
        let f = Fixture::empty().await;
        let (old, _) = f.two_releases().await;
        let down = format!(
            "{DOWN_2} DO $$ BEGIN IF current_database() NOT LIKE 'rollbackctl%' THEN {failing}; END IF; END $$;"
        );
        f.write("002_scores", UP_2, Some(&down));
        let new = f.driver_retain("failing").await.revision;
        f.stage(&new, &old).await.expect("stage");
        let problem = failed(f.switch(&new, &old).await);
        assert_eq!(problem.code, Code::MigrationFailed, "{problem}");
        for part in parts {
            assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
        }
        for value in ["alice", "user 1"] {
            assert!(!problem.message.contains(value), "{problem}");
        }
        assert_eq!(f.digest().await, new.digest);
    }
}
