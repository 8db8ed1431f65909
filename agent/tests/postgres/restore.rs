//! Restoring a backup beside the live database, exchanging the two, and taking that back.

mod cost;
mod kills;
mod refusals;
mod round_trip;
mod sessions;
mod surprises;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::postgres::PostgresConfig;
use rollback_agent::driver::{Action, Consent, DataLoss, Done, Driver as _, Failure, Finding, Probe, Revision};
use rollback_agent::step::{NoProgress, StepContext};
use rollback_agent::vault::Vault;

use crate::fixture::{DOWN_1, DOWN_2, Fixture, UP_1, UP_2};

/// Everything in the one table of v2.9.0.
pub const OLD_CONTENT: &str =
    "SELECT md5(string_agg(concat_ws('|', id, name, status, created), ';' ORDER BY id)) FROM users";

pub const ANY: Consent = Consent { max_rows: None };
/// Known, and never too much: the loss is counted before the exchange.
pub const PLENTY: Consent = Consent {
    max_rows: Some(1_000_000),
};

pub fn at_most(rows: u64) -> Consent {
    Consent { max_rows: Some(rows) }
}

/// v2.9.0 with 500 users in a proven backup; then v3.0.0, with 30 more users, one changed, two deleted, and 40 scores.
pub struct Restored {
    pub f: Fixture,
    pub old: Revision,
    pub new: Revision,
    /// Checksums of the content: of the backup, and of the live database after it.
    pub backup: String,
    pub live: String,
}

/// Rows that a restore of it loses: 30 new users and the changed one, 40 scores, and the row that says v3.0.0.
pub const WRITTEN: u64 = 72;

impl Restored {
    pub async fn new(plain: bool) -> Self {
        let f = Fixture::empty().await;
        Self::of(f, plain).await
    }

    pub async fn of(f: Fixture, plain: bool) -> Self {
        let mut f = f;
        f.write("001_users", UP_1, Some(DOWN_1));
        f.apply("001").await;
        f.sql("INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, 500) n")
            .await;
        // The plain role's view of the world needs the tables of the second release, too.
        f.write("002_scores", UP_2, Some(DOWN_2));
        let old = f.driver_retain("v2.9.0").await.revision;
        if plain {
            f.apply("002").await;
            f.as_plain_role().await;
            f.sql("DROP TABLE scores; ALTER TABLE users DROP COLUMN score; DELETE FROM schema_migrations WHERE version = '002'")
                .await;
        }
        f.snapshot(&old, &old).await.expect("a backup of v2.9.0");
        f.finish(&old, &old).await;
        let backup = f.text(OLD_CONTENT).await;
        f.apply("002").await;
        f.sql(
            "INSERT INTO users (name, score) SELECT 'late ' || n, n FROM generate_series(1, 30) n;
             UPDATE users SET status = 'old' WHERE name = 'user 7';
             DELETE FROM users WHERE name IN ('user 8', 'user 9');
             INSERT INTO scores (user_id, points) SELECT 1, n FROM generate_series(1, 40) n;",
        )
        .await;
        if plain {
            f.sql("ALTER TABLE scores OWNER TO plain").await;
        }
        let new = f.driver_retain("v3.0.0").await.revision;
        let live = f.text(crate::fixture::CONTENT).await;
        f.next_rollback("restore");
        Self {
            f,
            old,
            new,
            backup,
            live,
        }
    }

    pub fn step(&self, action: Action, consent: Option<Consent>) -> StepContext {
        self.f.step(action, &self.new, &self.old).from_backup(true, consent)
    }

    pub fn undo_step(&self, action: Action) -> StepContext {
        self.f
            .step(action, &self.old, &self.new)
            .from_backup(true, None)
            .reversing(true)
    }

    pub async fn prepare(&self) -> Vec<Finding> {
        self.f.driver.prepare(&self.step(Action::Prepare, None)).await
    }

    pub async fn stage(&self) -> Result<Done, Failure> {
        self.f.driver.stage(&self.step(Action::Stage, None)).await
    }

    pub async fn switch(&self, consent: Option<Consent>) -> Result<Done, Failure> {
        self.f.driver.switch(&self.step(Action::Switch, consent)).await
    }

    pub async fn probe(&self) -> Probe {
        self.f.driver.probe(&self.step(Action::Switch, Some(ANY))).await
    }

    pub async fn undo(&self) -> Result<Done, Failure> {
        self.f.driver.switch(&self.undo_step(Action::Switch)).await
    }

    pub async fn finish(&self) -> Done {
        self.f
            .driver
            .finish(&self.step(Action::Finish, None))
            .await
            .expect("finish")
    }

    pub async fn discard(&self) -> Done {
        self.f
            .driver
            .discard(&self.step(Action::Discard, None))
            .await
            .expect("discard")
    }

    pub async fn assert_restored(&self) {
        assert_eq!(self.f.digest().await, self.old.digest);
        assert_eq!(self.f.text(OLD_CONTENT).await, self.backup);
    }

    pub async fn assert_untouched(&self) {
        assert_eq!(self.f.digest().await, self.new.digest);
        assert_eq!(self.f.text(crate::fixture::CONTENT).await, self.live);
    }

    /// Databases of ours whose names have this in them.
    pub async fn databases(&self, part: &str) -> Vec<String> {
        let sql = format!(
            "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database
             WHERE datname LIKE '%{part}%' AND shobj_description(oid, 'pg_database') LIKE '%\"{}\"%'",
            self.f.database
        );
        let names = self.f.cluster.text("postgres", &sql).await;
        names.split_whitespace().map(str::to_owned).collect()
    }

    pub fn manifest(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.f.backups()).expect("read the backups");
        let mut paths = entries.flatten().map(|e| e.path());
        paths
            .find(|p| p.to_str().is_some_and(|p| p.ends_with(".manifest.json")))
            .expect("a manifest")
    }

    /// Changes what is written beside the backup.
    pub fn edit_manifest(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        edit_json(&self.manifest(), edit);
    }

    /// The same, of the backup that shows a revision.
    pub fn edit_manifest_of(&self, revision: &str, edit: impl FnOnce(&mut serde_json::Value)) {
        let found = self
            .f
            .driver
            .backups()
            .expect("list")
            .into_iter()
            .find(|b| b.revision == revision);
        let path = found
            .expect("a backup of the revision")
            .path
            .replace(".dump", ".manifest.json");
        edit_json(std::path::Path::new(&path), edit);
    }
}

fn edit_json(path: &std::path::Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let bytes = std::fs::read(path).expect("read the manifest");
    let mut manifest = serde_json::from_slice(&bytes).expect("JSON");
    edit(&mut manifest);
    std::fs::write(path, manifest.to_string()).expect("write the manifest");
}

/// A driver in another process: what it needs to make the same one.
pub fn driver_of(config: &str, vault: &str) -> rollback_agent::driver::postgres::PostgresDriver {
    let config: PostgresConfig = toml::from_str(config).expect("configuration");
    let vault = Arc::new(Vault::open(vault).expect("vault"));
    rollback_agent::driver::postgres::PostgresDriver::new("db", config, vault).expect("driver")
}

pub fn bare_step(rollback: &str, action: Action, from: &str, to: &str, vault: &str) -> StepContext {
    let revision = |digest: &str| Revision {
        version: "a release".to_owned(),
        digest: digest.to_owned(),
    };
    StepContext::new(
        rollback.to_owned(),
        "db".to_owned(),
        action,
        revision(from),
        revision(to),
        Duration::from_secs(60),
        Arc::new(Vault::open(vault).expect("vault")),
        Arc::new(NoProgress),
    )
}

pub fn written(loss: &DataLoss) -> u64 {
    loss.tables.iter().map(|t| t.written).sum()
}

pub fn table<'a>(loss: &'a DataLoss, name: &str) -> &'a rollback_agent::driver::TableLoss {
    loss.tables.iter().find(|t| t.table == name).expect("the table")
}
