//! A database with two releases: `001_users` (v2.9.0) and, on top of it, `002_scores` (v3.0.0), and a driver for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rollback_agent::driver::postgres::{PostgresConfig, PostgresDriver};
use rollback_agent::driver::{Action, Done, Driver as _, Failure, Finding, Retained, Revision, Severity};
use rollback_agent::step::{NoProgress, ProgressSink, StepContext};
use rollback_agent::vault::Vault;
use rollback_proto::problem::{Code, Problem};

use crate::cluster::{Cluster, cluster};

pub const UP_1: &str = "CREATE TABLE users (id bigserial PRIMARY KEY, name text NOT NULL UNIQUE,
    status varchar(10) NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'old')), created timestamptz NOT NULL DEFAULT now());
    CREATE VIEW recent AS SELECT id, name FROM users WHERE status = 'new';";
pub const DOWN_1: &str = "DROP VIEW recent; DROP TABLE users;";
pub const UP_2: &str = "ALTER TABLE users ADD COLUMN score integer NOT NULL DEFAULT 0;
    CREATE TABLE scores (id serial PRIMARY KEY, user_id bigint NOT NULL REFERENCES users (id), points numeric,
                         at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX scores_user ON scores (user_id);";
pub const DOWN_2: &str = "DROP TABLE scores; ALTER TABLE users DROP COLUMN score;";

/// Everything in both tables, whatever the order of rows and columns.
pub const CONTENT: &str = "SELECT md5(concat(
    (SELECT string_agg(concat_ws('|', id, name, status, created, score), ';' ORDER BY id) FROM users),
    (SELECT string_agg(concat_ws('|', id, user_id, points, at), ';' ORDER BY id) FROM scores)))";

pub struct Fixture {
    pub cluster: &'static Cluster,
    pub database: String,
    pub dir: tempfile::TempDir,
    pub vault: Arc<Vault>,
    pub config: PostgresConfig,
    pub driver: PostgresDriver,
    pub rollback: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Fixture {
    /// An empty database with an empty version table.
    pub async fn empty() -> Self {
        Self::with("version text PRIMARY KEY", |_| {}).await
    }

    pub async fn with(version_columns: &str, adjust: impl FnOnce(&mut PostgresConfig)) -> Self {
        Self::on(cluster().await, version_columns, adjust).await
    }

    pub async fn on(
        cluster: &'static Cluster,
        version_columns: &str,
        adjust: impl FnOnce(&mut PostgresConfig),
    ) -> Self {
        let database = format!("shop_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        cluster.sql("postgres", &format!("CREATE DATABASE {database}")).await;
        cluster
            .sql(
                &database,
                &format!("CREATE TABLE schema_migrations ({version_columns})"),
            )
            .await;
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("migrations")).expect("make the migrations directory");
        let text = format!(
            "database = '{database}'\nhost = '{}'\nmigrations = '{1}/migrations'\nbackups = '{1}/backups'\n\
             bin_dir = '{2}'\nlock_timeout = '200ms'",
            cluster.socket.display(),
            dir.path().display(),
            cluster.bin.display()
        );
        let mut config: PostgresConfig = toml::from_str(&text).expect("configuration");
        adjust(&mut config);
        let vault = Arc::new(Vault::open(dir.path().join("vault")).expect("vault"));
        let driver = PostgresDriver::new("db", config.clone(), vault.clone()).expect("driver");
        let rollback = format!("rb-{database}");
        Self {
            cluster,
            database,
            dir,
            vault,
            config,
            driver,
            rollback,
        }
    }

    /// v2.9.0 recorded, v3.0.0 deployed with data and recorded. Answers with both revisions.
    pub async fn two_releases(&self) -> (Revision, Revision) {
        self.write("001_users", UP_1, Some(DOWN_1));
        self.apply("001").await;
        let old = self.driver.retain("v2.9.0").await.expect("record v2.9.0").revision;
        self.write("002_scores", UP_2, Some(DOWN_2));
        self.apply("002").await;
        self.sql(
            "INSERT INTO users (name, score) SELECT 'user ' || n, n * 7 FROM generate_series(1, 500) n;
             INSERT INTO scores (user_id, points) SELECT 1 + n % 500, n / 3.0 FROM generate_series(1, 1500) n;
             SELECT setval('scores_id_seq', 2000);",
        )
        .await;
        let new = self.driver.retain("v3.0.0").await.expect("record v3.0.0").revision;
        (old, new)
    }

    /// Everything belongs to a role that is no superuser, may create databases, and is what the driver connects as.
    pub async fn as_plain_role(&mut self) {
        self.cluster
            .sql(
                "postgres",
                "DO $$ BEGIN CREATE ROLE plain LOGIN CREATEDB; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            )
            .await;
        self.sql(&format!(
            "ALTER DATABASE {} OWNER TO plain; ALTER TABLE users OWNER TO plain; ALTER TABLE scores OWNER TO plain;
             ALTER VIEW recent OWNER TO plain; ALTER TABLE schema_migrations OWNER TO plain",
            self.database
        ))
        .await;
        self.config.user = "plain".to_owned();
        self.driver = PostgresDriver::new("db", self.config.clone(), self.vault.clone()).expect("driver");
    }

    /// Another rollback from here on.
    pub fn next_rollback(&mut self, name: &str) {
        self.rollback = format!("{name}-{}", self.database);
    }

    /// A whole rollback that stands: `stage`, `switch`, `finish`. Answers with what the switch said.
    pub async fn roll(&self, from: &Revision, to: &Revision) -> String {
        self.stage(from, to).await.expect("stage");
        let done = self.switch(from, to).await.expect("switch");
        assert_eq!(done.observed.as_ref(), Some(to));
        self.finish(from, to).await;
        self.assert_clean().await;
        done.summary
    }

    pub fn migrations(&self) -> PathBuf {
        self.dir.path().join("migrations")
    }

    pub fn backups(&self) -> PathBuf {
        self.config.backups.clone()
    }

    pub fn write(&self, name: &str, up: &str, down: Option<&str>) {
        std::fs::write(self.migrations().join(format!("{name}.up.sql")), up).expect("write the up migration");
        if let Some(down) = down {
            std::fs::write(self.migrations().join(format!("{name}.down.sql")), down).expect("write the down migration");
        }
    }

    /// As a migration tool would: the up file, and a row.
    pub async fn apply(&self, digits: &str) {
        let file = std::fs::read_dir(self.migrations())
            .expect("read the migrations directory")
            .flatten()
            .map(|e| e.path())
            .find(|p| {
                let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                name.starts_with(digits) && name.ends_with(".up.sql")
            })
            .expect("the up file");
        self.sql(&std::fs::read_to_string(file).expect("read the up file"))
            .await;
        self.sql(&format!("INSERT INTO schema_migrations (version) VALUES ('{digits}')"))
            .await;
    }

    pub async fn sql(&self, sql: &str) {
        self.cluster.sql(&self.database, sql).await;
    }

    pub async fn text(&self, sql: &str) -> String {
        self.cluster.text(&self.database, sql).await
    }

    pub async fn digest(&self) -> String {
        self.driver.observe().await.expect("observe").revision.digest
    }

    pub async fn driver_retain(&self, release: &str) -> Retained {
        self.driver.retain(release).await.expect("record")
    }

    pub async fn observe(&self) -> Revision {
        self.driver.observe().await.expect("observe").revision
    }

    pub fn step(&self, action: Action, from: &Revision, to: &Revision) -> StepContext {
        self.watched_step(action, from, to, Duration::from_secs(60), Arc::new(NoProgress))
    }

    pub fn watched_step(
        &self,
        action: Action,
        from: &Revision,
        to: &Revision,
        timeout: Duration,
        progress: Arc<dyn ProgressSink>,
    ) -> StepContext {
        StepContext::new(
            self.rollback.clone(),
            "db".to_owned(),
            action,
            from.clone(),
            to.clone(),
            timeout,
            self.vault.clone(),
            progress,
        )
    }

    pub async fn prepare(&self, from: &Revision, to: &Revision) -> Vec<Finding> {
        self.driver.prepare(&self.step(Action::Prepare, from, to)).await
    }

    pub async fn stage(&self, from: &Revision, to: &Revision) -> Result<Done, Failure> {
        self.driver.stage(&self.step(Action::Stage, from, to)).await
    }

    pub async fn snapshot(&self, from: &Revision, to: &Revision) -> Result<Done, Failure> {
        self.driver.snapshot(&self.step(Action::Snapshot, from, to)).await
    }

    pub async fn switch(&self, from: &Revision, to: &Revision) -> Result<Done, Failure> {
        self.driver.switch(&self.step(Action::Switch, from, to)).await
    }

    pub async fn finish(&self, from: &Revision, to: &Revision) {
        self.driver
            .finish(&self.step(Action::Finish, from, to))
            .await
            .expect("finish");
    }

    pub async fn kept_schemas(&self) -> String {
        self.text("SELECT count(*)::text FROM pg_namespace WHERE nspname LIKE 'rollbackctl_kept_%'")
            .await
    }

    /// Nothing of a rollback may be left beside the database, but sealed backups and the lock that keeps those who make
    /// copies apart.
    pub async fn assert_clean(&self) {
        let scratch = "SELECT string_agg(datname, ' ') FROM pg_database d
                       WHERE shobj_description(d.oid, 'pg_database') LIKE $$copy of ";
        let scratch = self
            .cluster
            .text("postgres", &format!("{scratch}{} %$$", self.database))
            .await;
        assert_eq!(scratch, "", "scratch databases are left");
        if let Ok(entries) = std::fs::read_dir(self.backups()) {
            let hidden: Vec<_> = entries
                .flatten()
                .map(|e| e.file_name())
                .filter(|n| n.to_string_lossy().starts_with('.') && !n.to_string_lossy().starts_with(".lock-"))
                .collect();
            assert!(hidden.is_empty(), "{hidden:?} are left");
        }
    }
}

pub fn blockers(findings: &[Finding]) -> Vec<&Problem> {
    findings
        .iter()
        .filter(|f| f.severity == Severity::Blocker)
        .map(|f| &f.problem)
        .collect()
}

/// The problem of a move that must have failed without taking effect.
pub fn failed(result: Result<Done, Failure>) -> Problem {
    match result {
        Err(Failure::Failed(problem)) => problem,
        other => panic!("expected a failure, got {other:?}"),
    }
}

pub fn assert_failed(result: Result<Done, Failure>, code: Code, part: &str) {
    let problem = failed(result);
    assert_eq!(problem.code, code, "{problem}");
    assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
}
