//! The loss that is reported is the loss that happens.

use rollback_agent::driver::{Action, Driver as _, Severity};
use rollback_proto::problem::{Code, Problem};

use super::{ANY, Restored, WRITTEN, at_most, table, written};
use crate::fixture::{Fixture, UP_1, assert_failed, blockers, failed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_beyond_the_consent_changes_nothing() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    assert_failed(r.switch(None).await, Code::LossTooGreat, "no loss was agreed to");
    r.assert_untouched().await;
    let problem = failed(r.switch(Some(at_most(WRITTEN - 1))).await);
    assert_eq!(problem.code, Code::LossTooGreat, "{problem}");
    for part in [
        "72 rows (public.scores 40, public.users 31",
        ") would be lost, 71 were agreed to; 3 rows that were changed or deleted since come back as they were; nothing",
    ] {
        assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
    }
    assert!(problem.remedy.contains("=ROWS"), "{}", problem.remedy);
    r.assert_untouched().await;
    assert!(r.databases("_before_").await.is_empty());
    r.switch(Some(at_most(WRITTEN))).await.expect("switch");
    r.assert_restored().await;
}

/// To stop at the cutover costs an outage; what is known before shall not get that far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_beyond_the_consent_is_said_as_soon_as_it_is_known() {
    let r = Restored::new(false).await;
    let prepare = async |rows| {
        let step = r.step(Action::Prepare, Some(at_most(rows)));
        r.f.driver.prepare(&step).await
    };
    let findings = prepare(WRITTEN - 1).await;
    assert_eq!(
        blockers(&findings).iter().map(|p| p.code).collect::<Vec<_>>(),
        [Code::LossTooGreat]
    );
    assert_eq!(blockers(&prepare(WRITTEN).await), Vec::<&Problem>::new());
    r.f.sql("INSERT INTO users (name) VALUES ('written after the plan was made')")
        .await;
    let staged = r.f.driver.stage(&r.step(Action::Stage, Some(at_most(WRITTEN)))).await;
    assert_failed(staged, Code::LossTooGreat, "73 rows");
    assert!(r.databases("rollbackctl_side_").await.is_empty());
    assert!(
        r.f.driver
            .stage(&r.step(Action::Stage, Some(at_most(WRITTEN + 1))))
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_reset_and_frozen_rows_do_not_change_the_count() {
    let r = Restored::new(false).await;
    r.f.sql("SELECT pg_stat_reset()").await;
    r.f.sql("VACUUM FREEZE").await;
    r.f.sql("VACUUM FULL users").await;
    let findings = r.prepare().await;
    let loss = findings.into_iter().find_map(|f| f.loss).expect("a loss");
    assert_eq!((written(&loss), loss.unknown.as_str()), (WRITTEN, ""), "{loss:?}");
    assert_eq!(table(&loss, "public.users").replaced, 3);
    r.stage().await.expect("stage");
    r.f.sql("SELECT pg_stat_reset()").await;
    let done = r.switch(Some(at_most(WRITTEN))).await.expect("switch");
    assert_eq!(written(&done.loss.expect("a loss")), WRITTEN);
}

/// Savepoints have transaction numbers of their own, which the server leaves out of its account of a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_savepoint_that_was_open_during_the_backup_are_newer_than_it() {
    let mut f = Fixture::empty().await;
    f.write("001_users", UP_1, None);
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('before')").await;
    let old = f.driver_retain("v2.9.0").await.revision;
    let mut open = f.cluster.connect(&f.database).await;
    sqlx::raw_sql(
        "BEGIN; INSERT INTO users (name) VALUES ('a'); SAVEPOINT s; INSERT INTO users (name) VALUES ('b');
         RELEASE s; SAVEPOINT t; INSERT INTO users (name) VALUES ('c')",
    )
    .execute(&mut open)
    .await
    .expect("write");
    // A number after theirs, so that theirs are below the end of the snapshot.
    f.sql("INSERT INTO users (name) VALUES ('committed')").await;
    f.snapshot(&old, &old).await.expect("a backup");
    sqlx::raw_sql("COMMIT").execute(&mut open).await.expect("commit");
    f.next_rollback("restore");
    let r = Restored {
        new: old.clone(),
        old,
        backup: String::new(),
        live: String::new(),
        f,
    };
    let loss = r.prepare().await.into_iter().find_map(|f| f.loss).expect("a loss");
    assert_eq!(
        (written(&loss), table(&loss, "public.users").replaced),
        (3, 0),
        "{loss:?}"
    );
    r.stage().await.expect("stage");
    r.switch(Some(at_most(3))).await.expect("switch");
    assert_eq!(
        r.f.text("SELECT string_agg(name, ',' ORDER BY id) FROM users").await,
        "before,committed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_nobody_knows_needs_consent_to_any() {
    // As the manifest of a dump that somebody else made.
    let r = Restored::new(false).await;
    r.edit_manifest(|m| m["horizon"] = serde_json::Value::Null);
    let findings = r.prepare().await;
    let priced = findings.iter().find(|f| f.loss.is_some()).expect("a loss");
    assert_eq!(priced.severity, Severity::Warning);
    assert!(!priced.loss.as_ref().expect("a loss").unknown.is_empty());
    r.stage().await.expect("stage");
    // `users` has a column that the backup has not: what is in it cannot be compared.
    let problem = failed(r.switch(Some(at_most(1_000_000))).await);
    assert_eq!(problem.code, Code::LossTooGreat, "{problem}");
    assert!(problem.message.contains("public.users has other columns"), "{problem}");
    assert!(
        problem.remedy.contains("--accept-data-loss=all") && !problem.remedy.contains("=ROWS"),
        "{}",
        problem.remedy
    );
    r.assert_untouched().await;
    r.switch(Some(ANY)).await.expect("switch");
    r.assert_restored().await;
    let loss = r.finish().await.loss.expect("a loss");
    assert!(!loss.unknown.is_empty());
    assert_eq!(table(&loss, "public.scores").written, 40);
}

/// Nobody has to know the figures to decide, so nobody waits for them; they are the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_loss_is_counted_when_nobody_waits_for_it() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    let done = r.switch(Some(ANY)).await.expect("switch");
    let not_yet = done.loss.expect("a loss");
    assert!(not_yet.unknown.contains("when the rollback is finished"), "{not_yet:?}");
    let loss = r.finish().await.loss.expect("a loss");
    assert_eq!((written(&loss), loss.unknown.as_str()), (WRITTEN, ""), "{loss:?}");
    let closed = "SELECT string_agg(datallowconn::text, ',') FROM pg_database WHERE datname LIKE '%_before_%'";
    let open =
        r.f.cluster
            .text("postgres", &format!("{closed} AND datname LIKE '{}%'", r.f.database))
            .await;
    assert_eq!(open, "false", "what was put aside is open to nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_without_a_horizon_is_compared_row_by_row() {
    let mut r = Restored::new(false).await;
    r.f.snapshot(&r.new, &r.new).await.expect("a backup of v3.0.0");
    r.old = r.new.clone();
    std::fs::remove_file(r.manifest_of("002")).expect("forget the older backup");
    r.edit_manifest(|m| m["horizon"] = serde_json::Value::Null);
    r.f.next_rollback("compare");
    r.f.sql("UPDATE users SET status = 'old' WHERE id <= 5; DELETE FROM scores WHERE id <= 4; INSERT INTO users (name) VALUES ('x')")
        .await;
    r.stage().await.expect("stage");
    r.f.sql("INSERT INTO scores (user_id, points) VALUES (2, 2), (2, 2)")
        .await;
    assert_failed(r.switch(Some(at_most(7))).await, Code::LossTooGreat, "8 rows");
    let loss = r.switch(Some(at_most(8))).await.expect("switch").loss.expect("a loss");
    let (users, scores) = (table(&loss, "public.users"), table(&loss, "public.scores"));
    assert_eq!(
        (users.written, users.replaced, scores.written, scores.replaced),
        (6, 5, 2, 4),
        "{loss:?}"
    );
}

impl Restored {
    /// The manifest of the backup whose version is not this one.
    fn manifest_of(&self, not: &str) -> std::path::PathBuf {
        let entries = std::fs::read_dir(self.f.backups()).expect("read the backups");
        let mut paths = entries.flatten().map(|e| e.path());
        paths
            .find(|p| {
                p.to_str().is_some_and(|p| p.ends_with(".manifest.json"))
                    && !std::fs::read_to_string(p)
                        .expect("read")
                        .contains(&format!("\"version\": \"{not}"))
            })
            .expect("a manifest")
    }
}
