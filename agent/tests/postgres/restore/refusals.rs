//! What must not be restored, or cannot be.

use jiff::{Timestamp, ToSpan as _};
use rollback_agent::driver::{Action, Driver as _, Revision};
use rollback_proto::problem::{Code, Problem};

use super::{ANY, Restored};
use crate::fixture::{assert_failed, blockers, failed};

/// The one blocker.
async fn blocker(r: &Restored) -> Problem {
    let findings = r.prepare().await;
    let found = blockers(&findings);
    assert_eq!(found.len(), 1, "{findings:?}");
    found[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_extensions_and_server_versions_that_are_missing() {
    let r = Restored::new(false).await;
    for (edit, part) in [
        (("roles", serde_json::json!(["postgres", "gone_clerk"])), "gone_clerk"),
        (
            ("extensions", serde_json::json!({"plpgsql": "1.0", "gone_gis": "3"})),
            "gone_gis",
        ),
        (("server_version", serde_json::json!(990_001)), "version 99"),
    ] {
        let mut before = serde_json::Value::Null;
        r.edit_manifest(|m| before = std::mem::replace(&mut m[edit.0], edit.1.clone()));
        let problem = blocker(&r).await;
        assert_eq!(problem.code, Code::RestoreFailed, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
        r.edit_manifest(|m| m[edit.0] = before);
    }
    // A role that went after prepare looked: nothing of the restore is left.
    r.f.sql("SELECT 1").await;
    r.edit_manifest(|m| m["server_version"] = serde_json::json!(990_001));
    assert_failed(r.stage().await, Code::RestoreFailed, "version 99");
    assert!(r.databases("rollbackctl_side").await.is_empty());
    r.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_the_dump_needs_is_gone() {
    let r = Restored::new(false).await;
    let clerk = format!("clerk_{}", r.f.database);
    let admin = r.f.cluster;
    admin.sql("postgres", &format!("CREATE ROLE {clerk}")).await;
    r.f.sql(&format!(
        "ALTER TABLE scores OWNER TO {clerk}; GRANT SELECT ON users TO {clerk}"
    ))
    .await;
    let mut r = r;
    r.f.snapshot(&r.new, &r.new).await.expect("a backup");
    r.old = r.new.clone();
    r.f.sql(&format!(
        "REASSIGN OWNED BY {clerk} TO postgres; DROP OWNED BY {clerk}; DROP ROLE {clerk}"
    ))
    .await;
    let problem = blocker(&r).await;
    assert!(problem.message.contains(&clerk), "{problem}");
    assert_failed(r.stage().await, Code::RestoreFailed, &clerk);
    assert!(r.databases("rollbackctl_side").await.is_empty());
    r.f.assert_clean().await;
}

/// In a plan, and in a check that nobody asked for. Who has agreed to the loss may have it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_older_than_its_host_allows() {
    let r = Restored::new(false).await;
    let taken = |days: i64| serde_json::json!((Timestamp::now() - (days * 24).hours()).to_string());
    r.edit_manifest(|m| m["taken_at"] = taken(29));
    let findings = r.prepare().await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    r.edit_manifest(|m| m["taken_at"] = taken(31));
    let problem = blocker(&r).await;
    assert_eq!(problem.code, Code::BackupTooOld, "{problem}");
    assert!(problem.message.contains("31 days ago"), "{problem}");
    let agreed = r.f.driver.prepare(&r.step(Action::Prepare, Some(ANY))).await;
    assert!(blockers(&agreed).is_empty(), "{agreed:?}");
    assert!(
        agreed.iter().any(|f| f.problem.code == Code::BackupTooOld),
        "{agreed:?}"
    );
    // Where migrations lead there, nobody needs a backup of then; where they do not, it is all that there is.
    let findings = r.f.prepare(&r.new, &r.old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let new = without_way_down(&r).await;
    let findings = r.f.prepare(&new, &r.old).await;
    let codes: Vec<Code> = blockers(&findings).iter().map(|p| p.code).collect();
    assert_eq!(codes, [Code::NoDownMigration, Code::BackupTooOld], "{findings:?}");
}

/// A third release that cannot be migrated down from.
async fn without_way_down(r: &Restored) -> Revision {
    r.f.write("003_more", "CREATE TABLE more (id int)", None);
    r.f.apply("003").await;
    r.f.driver_retain("v3.1.0").await.revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_backup_and_a_damaged_one() {
    let r = Restored::new(false).await;
    let dump = r.manifest().to_string_lossy().replace(".manifest.json", ".dump");
    let whole = std::fs::read(&dump).expect("read the dump");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&dump, &flipped).expect("damage");
    assert_failed(r.stage().await, Code::BackupUnproven, "has changed since it was proven");
    // Another length is seen without reading it.
    std::fs::write(&dump, &whole[1..]).expect("truncate");
    let problem = blocker(&r).await;
    assert_eq!(problem.code, Code::NoBackup);
    assert!(problem.message.contains("another size"), "{problem}");
    std::fs::remove_file(r.manifest()).expect("forget it");
    let problem = blocker(&r).await;
    assert!(problem.message.contains("there is none at all"), "{problem}");
    assert_failed(r.stage().await, Code::NoBackup, "001_users");
    assert_failed(r.switch(Some(ANY)).await, Code::RestoreFailed, "no backup was restored");
    r.assert_untouched().await;
    r.undo().await.expect("there is nothing to take back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_of_another_database_is_never_exchanged() {
    let r = Restored::new(false).await;
    // It says that it is of v2.9.0, and is not.
    let newer =
        r.f.snapshot(&r.new, &r.new)
            .await
            .expect("a backup of v3.0.0")
            .receipt
            .expect("a receipt");
    let real = r.manifest_with(&newer.sha256);
    let text = std::fs::read_to_string(&real).expect("read");
    let mut manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    manifest["revision"] = serde_json::json!(r.old.digest);
    std::fs::write(&real, manifest.to_string()).expect("lie");
    let problem = failed(r.stage().await);
    assert_eq!(problem.code, Code::RestoreFailed, "{problem}");
    assert!(
        problem.message.contains("not expected: ") && problem.message.contains("score"),
        "{problem}"
    );
    assert!(r.databases("rollbackctl_side").await.is_empty());
    r.assert_untouched().await;
}

impl Restored {
    fn manifest_with(&self, sha256: &str) -> std::path::PathBuf {
        let entries = std::fs::read_dir(self.f.backups()).expect("read the backups");
        let mut paths = entries.flatten().map(|e| e.path());
        paths
            .find(|p| {
                p.to_str().is_some_and(|p| p.ends_with(".manifest.json"))
                    && std::fs::read_to_string(p).expect("read").contains(sha256)
            })
            .expect("the manifest")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_and_a_closed_database_are_told_apart() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    let side = r.databases("rollbackctl_side").await;
    // The next rollback removes what this one left.
    let mut r = r;
    r.f.next_rollback("later");
    r.stage().await.expect("stage");
    let sides = r.databases("rollbackctl_side").await;
    assert!(sides.len() == 1 && sides != side, "{sides:?}, {side:?}");
    let close = format!("ALTER DATABASE {} ALLOW_CONNECTIONS", r.f.database);
    r.f.cluster.sql("postgres", &format!("{close} false")).await;
    let problem = r.f.driver.observe().await.expect_err("closed");
    assert_eq!(problem.code, Code::DatabaseDown);
    assert!(problem.message.contains("somebody disallowed them"), "{problem}");
    assert_failed(
        r.switch(Some(ANY)).await,
        Code::DatabaseLocked,
        "somebody disallowed them",
    );
    let still = format!(
        "SELECT datallowconn::text FROM pg_database WHERE datname = '{}'",
        r.f.database
    );
    assert_eq!(
        r.f.cluster.text("postgres", &still).await,
        "false",
        "what somebody else did is left alone"
    );
    r.f.cluster.sql("postgres", &format!("{close} true")).await;
    r.discard().await;
    assert!(r.databases("rollbackctl_side").await.is_empty());
    r.f.assert_clean().await;
}
