//! What a restore may find that nobody thought of: leftovers of replication, rights that are lacking, a full disk, an
//! agent that lost its notes, a clock or a server that was somewhere else.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rollback_agent::driver::postgres::{IntegrityCheck, PostgresDriver};
use rollback_agent::driver::{Action, Driver as _, Failure, Probe};
use rollback_proto::problem::{Code, Problem};

use super::{ANY, PLENTY, Restored, at_most, written};
use crate::cluster::{own_cluster, run};
use crate::fixture::{CONTENT, Fixture, assert_failed, blockers, failed};

#[derive(serde::Deserialize)]
struct Checks {
    integrity: Vec<IntegrityCheck>,
}

fn checks(text: &str) -> Vec<IntegrityCheck> {
    toml::from_str::<Checks>(text).expect("checks").integrity
}

fn driver_with(
    r: &Restored,
    adjust: impl FnOnce(&mut rollback_agent::driver::postgres::PostgresConfig),
) -> PostgresDriver {
    let mut config = r.f.config.clone();
    adjust(&mut config);
    PostgresDriver::new("db", config, r.f.vault.clone()).expect("driver")
}

fn indeterminate(result: Result<rollback_agent::driver::Done, Failure>) -> Problem {
    match result {
        Err(Failure::Indeterminate(problem)) => problem,
        other => panic!("expected that nobody can tell, got {other:?}"),
    }
}

/// It would hold on to the restored database: that could be neither exchanged back nor dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_does_not_come_back_with_a_backup() {
    let mut r = Restored::new(false).await;
    r.f.sql(
        "CREATE SUBSCRIPTION feed CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false, slot_name = NONE);
             COMMENT ON SUBSCRIPTION feed IS 'ours'",
    )
    .await;
    r.f.snapshot(&r.new, &r.new)
        .await
        .expect("a backup with a subscription");
    r.f.next_rollback("subscribed");
    r.old = r.new.clone();
    let findings = r.prepare().await;
    let found = blockers(&findings);
    assert!(
        found.len() == 1 && found[0].message.contains("subscriptions feed"),
        "{findings:?}"
    );
    r.f.sql("DROP SUBSCRIPTION feed").await;
    r.stage().await.expect("stage");
    r.switch(Some(ANY)).await.expect("switch");
    r.undo().await.expect("undo");
    r.assert_untouched().await;
    r.discard().await;
    assert!(r.databases("_").await.is_empty());
    r.f.assert_clean().await;
}

/// The directory of backups is gone with everything that was noted: what was exchanged is never denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notes_that_were_lost_are_made_up_for_by_the_databases() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    r.switch(Some(ANY)).await.expect("switch");
    std::fs::remove_dir_all(r.f.backups()).expect("lose everything");
    let before = r.databases("_before_").await;
    let Probe::Indeterminate(probed) = r.probe().await else {
        panic!("nobody knows what was lost")
    };
    let repeated = indeterminate(r.switch(Some(ANY)).await);
    let undone = indeterminate(r.undo().await);
    for problem in [&probed, &repeated, &undone] {
        assert_eq!(problem.code, Code::DatabaseUnclear, "{problem}");
        assert!(
            problem.message.contains("was exchanged") && problem.message.contains(&before[0]),
            "{problem}"
        );
    }
    // What it says is what helps.
    let commands = undone.remedy.split_once(": ").expect("commands").1;
    for command in commands.split("; ") {
        r.f.cluster.sql("postgres", command).await;
    }
    r.assert_untouched().await;
}

/// The same inside the exchange: the database is closed, and nobody but the server knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_left_closed_is_said_to_be_when_the_notes_are_lost() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    r.killed_at("switch", "restore.counted").await;
    std::fs::remove_dir_all(r.f.backups()).expect("lose everything");
    let problem = r.f.driver.observe().await.expect_err("closed");
    assert!(
        problem.message.contains(&r.f.rollback) && problem.remedy.contains("ALLOW_CONNECTIONS true"),
        "{problem:?}"
    );
    let problem = indeterminate(r.switch(Some(ANY)).await);
    assert!(problem.message.contains("accepts no connections"), "{problem}");
    assert!(problem.remedy.contains("ALLOW_CONNECTIONS true"), "{problem:?}");
    let command = format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", r.f.database);
    r.f.cluster.sql("postgres", &command).await;
    r.undo().await.expect("nothing was exchanged");
    r.assert_untouched().await;
}

/// It holds in every copy, and not under the name that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_integrity_check_that_fails_after_the_exchange_takes_it_back() {
    let mut r = Restored::new(false).await;
    let check = format!(
        "integrity = [{{ name = 'copy', sql = \"SELECT current_database() <> '{}'\" }}]",
        r.f.database
    );
    r.f.driver = driver_with(&r, |c| c.integrity = checks(&check));
    r.stage().await.expect("stage");
    let problem = failed(r.switch(Some(ANY)).await);
    assert_eq!(problem.code, Code::IntegrityFailed, "{problem}");
    assert!(
        problem.message.contains("\"copy\" does not hold") && problem.message.contains("taken back"),
        "{problem}"
    );
    r.assert_untouched().await;
    assert!(matches!(r.probe().await, Probe::Repeatable(_)));
    assert!(r.databases("_before_").await.is_empty());
    r.discard().await;
    r.f.assert_clean().await;
}

/// Whose session ends while it looks has seen nothing: that is no reason to go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_lost_after_the_exchange_does_not_take_it_back() {
    let mut r = Restored::new(false).await;
    let check = format!(
        "integrity = [\"SELECT CASE WHEN current_database() <> '{}' OR NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE \
         application_name = 'armed') THEN true ELSE (SELECT bool_and(pg_terminate_backend(pid, 5000)) FROM \
         pg_stat_activity WHERE application_name = 'armed') AND pg_terminate_backend(pg_backend_pid()) AND \
         pg_sleep(5) IS NULL END\"]",
        r.f.database
    );
    r.f.driver = driver_with(&r, |c| c.integrity = checks(&check));
    r.stage().await.expect("stage");
    let mut armed = r.f.cluster.connect("postgres").await;
    sqlx::raw_sql("SET application_name = 'armed'")
        .execute(&mut armed)
        .await
        .expect("arm");
    let done = r.switch(Some(ANY)).await.expect("switch");
    assert_eq!(done.observed.as_ref(), Some(&r.old));
    let disarmed = sqlx::raw_sql("SELECT 1").execute(&mut armed).await;
    assert!(disarmed.is_err(), "it was not asked");
    r.assert_restored().await;
    assert_eq!(r.databases("_before_").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_a_plain_role_lacks_are_found_before_anything_is_restored() {
    let r = Restored::new(true).await;
    let clerk = format!("keeper_{}", r.f.database);
    r.f.cluster
        .sql(
            "postgres",
            &format!(
                "CREATE ROLE {clerk}; ALTER DATABASE {} SET log_min_messages = 'error'",
                r.f.database
            ),
        )
        .await;
    r.f.sql(&format!(
        "ALTER TABLE users OWNER TO {clerk}; GRANT ALL ON users TO plain; GRANT USAGE ON SEQUENCE users_id_seq TO plain"
    ))
    .await;
    r.edit_manifest(|m| m["roles"] = serde_json::json!(["plain", clerk]));
    let findings = r.prepare().await;
    let found: Vec<_> = blockers(&findings)
        .iter()
        .map(|p| (p.message.clone(), p.remedy.clone()))
        .collect();
    assert!(
        found
            .iter()
            .any(|(m, f)| m.contains(&clerk) && f.contains(&format!("GRANT \"{clerk}\" TO \"plain\""))),
        "{found:?}"
    );
    r.f.cluster.sql("postgres", &format!("GRANT {clerk} TO plain")).await;
    let findings = r.prepare().await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    // Only a superuser may give this setting to the restored database.
    let step = r.step(Action::Stage, None);
    assert_failed(r.f.driver.stage(&step).await, Code::RestoreFailed, "log_min_messages");
    let restored = step.operations().iter().any(|o| o.name == "pg_restore");
    assert!(!restored, "it was known before hours of restoring");
    assert!(r.databases("rollbackctl_side").await.is_empty());
    let reset = format!("ALTER DATABASE {} RESET log_min_messages", r.f.database);
    r.f.cluster.sql("postgres", &reset).await;
    r.stage().await.expect("stage");
    r.switch(Some(ANY)).await.expect("switch");
    r.assert_restored().await;
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_while_a_backup_is_restored_beside() {
    let cluster = own_cluster("").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let mut r = Restored::of(f, false).await;
    let disk = r.f.dir.path().join("disk");
    std::fs::create_dir(&disk).expect("make the mount point");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=34m,mode=0777", "tmpfs"])
        .arg(&disk));
    let mounted = Mounted(disk.clone());
    let place = disk.join("space");
    std::fs::create_dir(&place).expect("make a directory");
    std::fs::set_permissions(r.f.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    run(Command::new("chown").arg("postgres:").arg(&place));
    let small = format!("CREATE TABLESPACE small LOCATION '{}'", place.display());
    cluster.sql("postgres", &small).await;
    // There is room for one of it, and not for two.
    r.f.sql("CREATE TABLE noise TABLESPACE small AS SELECT n, repeat(md5(n::text), 8) AS t FROM generate_series(1, 60000) n")
        .await;
    r.new = r.f.driver_retain("v3.0.1").await.revision;
    r.old = r.new.clone();
    let checked = driver_with(&r, |c| c.verify = rollback_agent::driver::postgres::Verify::Checksum);
    checked
        .snapshot(&r.f.step(Action::Snapshot, &r.new, &r.new))
        .await
        .expect("a backup");
    r.edit_manifest_of(&r.new.digest, |m| m["proof"] = serde_json::json!("restore"));
    r.f.next_rollback("full");
    let live = r.f.text(CONTENT).await;
    assert_failed(r.stage().await, Code::DiskFull, "No space left on device");
    assert!(r.databases("rollbackctl_side").await.is_empty());
    assert_eq!(r.f.text(CONTENT).await, live);
    assert_failed(r.switch(Some(ANY)).await, Code::RestoreFailed, "no backup was restored");
    r.f.assert_clean().await;
    cluster.control(&["stop", "-m", "immediate"]).await;
    drop(mounted);
}

/// A database that two components manage: neither takes the copies of the other one for leftovers of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_component_of_the_same_database_is_left_alone() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    let side = r.databases("rollbackctl_side").await;
    let other = PostgresDriver::new("other", r.f.config.clone(), r.f.vault.clone()).expect("driver");
    let digest = other.retain("v3.0.0").await.expect("record").revision;
    other
        .snapshot(&r.f.step(Action::Snapshot, &digest, &digest))
        .await
        .expect("a backup of its own");
    let step = rollback_agent::step::StepContext::new(
        r.f.rollback.clone(),
        "other".to_owned(),
        Action::Stage,
        digest.clone(),
        digest,
        std::time::Duration::from_secs(60),
        r.f.vault.clone(),
        std::sync::Arc::new(rollback_agent::step::NoProgress),
    )
    .from_backup(true, None);
    let _ = other.stage(&step).await;
    let sides = r.databases("rollbackctl_side").await;
    assert!(side.iter().all(|s| sides.contains(s)), "{sides:?}");
    other.discard(&step).await.expect("discard");
    r.switch(Some(ANY)).await.expect("switch");
    r.assert_restored().await;
}

/// Whether the clock was wrong then or is wrong now: what is dated in the future is not the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_the_future_is_not_the_newest() {
    let r = Restored::new(false).await;
    let first = r.manifest();
    r.edit_manifest(|m| m["taken_at"] = serde_json::json!("2099-01-01T00:00:00Z"));
    let findings = r.prepare().await;
    assert!(
        findings.iter().any(|f| f.problem.message.contains("in the future")),
        "{findings:?}"
    );
    let first = first.to_string_lossy().replace(".manifest.json", "");
    let name = first.rsplit('/').next().expect("a name");
    let newer =
        r.f.driver
            .back_up(
                std::time::Duration::from_secs(60),
                std::sync::Arc::new(rollback_agent::step::NoProgress),
            )
            .await;
    newer.expect("a backup");
    let all = r.f.driver.backups().expect("list");
    assert_eq!(all.last().map(|b| b.name.as_str()), Some(name));
}

/// After a failover the numbers of transactions that were lost with the old server are given out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_promoted_does_not_know_what_is_new() {
    let cluster = own_cluster("").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    let mut r = Restored::of(f, false).await;
    r.f.snapshot(&r.new, &r.new).await.expect("a backup of v3.0.0");
    cluster.promote().await;
    let findings = r.prepare().await;
    let loss = findings.into_iter().find_map(|f| f.loss).expect("a loss");
    assert!(loss.unknown.contains("another server took over"), "{loss:?}");
    // Comparing row by row still tells.
    r.old = r.new.clone();
    r.f.next_rollback("promoted");
    r.f.sql("INSERT INTO users (name) VALUES ('x'), ('y')").await;
    r.stage().await.expect("stage");
    assert_failed(r.switch(Some(at_most(1))).await, Code::LossTooGreat, "2 rows");
    let loss = r.switch(Some(at_most(2))).await.expect("switch").loss.expect("a loss");
    assert_eq!((written(&loss), loss.unknown.as_str()), (2, ""), "{loss:?}");
}

/// Somebody at night has to know which of them is damaged, and what there is instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_names_the_next_one() {
    let mut r = Restored::new(false).await;
    r.f.snapshot(&r.new, &r.new).await.expect("a backup of v3.0.0");
    r.f.next_rollback("second");
    r.f.sql("INSERT INTO users (name) VALUES ('x')").await;
    let second =
        r.f.snapshot(&r.new, &r.new)
            .await
            .expect("another")
            .receipt
            .expect("a receipt");
    r.f.next_rollback("third");
    r.old = r.new.clone();
    let mut bytes = std::fs::read(&second.path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&second.path, bytes).expect("damage");
    let problem = failed(r.stage().await);
    assert_eq!(problem.code, Code::BackupUnproven);
    let all = r.f.driver.backups().expect("list");
    assert!(problem.remedy.contains(&all[1].name), "{}", problem.remedy);
    let manifest = second.path.replace(".dump", ".manifest.json");
    assert!(problem.remedy.contains(&manifest), "{}", problem.remedy);
    std::fs::remove_file(manifest).expect("as it says");
    r.stage().await.expect("stage");
    let loss = r.switch(Some(PLENTY)).await.expect("switch").loss.expect("a loss");
    assert_eq!(written(&loss), 1, "{loss:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_are_said_to_be_what_nobody_knows() {
    let r = Restored::new(false).await;
    r.f.sql("SELECT lo_from_bytea(0, 'x')").await;
    let findings = r.prepare().await;
    let priced = findings.iter().find(|f| f.loss.is_some()).expect("a loss");
    let message = &priced.problem.message;
    assert!(
        message.contains("at least 72 rows") && message.contains("1 large object"),
        "{message}"
    );
    r.stage().await.expect("stage");
    assert_failed(r.switch(Some(at_most(1000))).await, Code::LossTooGreat, "large object");
    let done = r.switch(Some(ANY)).await.expect("switch");
    assert!(
        done.summary.contains("when the rollback is finished"),
        "{}",
        done.summary
    );
    let undone = r.undo().await.expect("undo");
    assert!(
        undone.summary.contains("as it was before the restore"),
        "{}",
        undone.summary
    );
}
