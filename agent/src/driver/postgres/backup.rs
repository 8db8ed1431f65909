//! Backups that are known to be good: made under one snapshot together with figures of every table, restored into a
//! scratch database, and the same figures read again there.
//!
//! `pg_restore --list` answers 0 for truncated and for damaged dumps; only a restore tells. A sealed backup is a dump
//! (0600) with its manifest beside it, `<database>-<UTC>-<tag>.dump` and `.manifest.json`. The manifest is there first: a
//! dump of such a name was sealed, even if its manifest was moved away since. Encryption at rest is the file system's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::archive::Archive;
use super::backups::{manifest_path, sealed_path};
use super::catalog::Schema;
use super::config::PostgresConfig;
use super::connect::{Sessions, Settings, database_settings};
use super::dump::{Dump, DumpFormat, Owners, Restoring, restore_dump, sha256_of};
use super::figures::Figures;
use super::forms::Forms;
use super::horizon::Horizon;
use super::manifest::{DatedBy, FORMAT};
pub(super) use super::manifest::{Manifest, Proof};
use super::sql_error::sql_problem;
use super::staging::{self, Staging, file_problem};
use super::tool;
use super::tools::Tools;
use super::versions::Applied;
use super::{integrity, scratch, version_of};
use crate::driver::Receipt;
use crate::step::StepContext;
use crate::vault::sync_dir;

/// How long `pg_dump` may wait for a table that somebody has locked.
const DUMP_LOCK_WAIT: &str = "--lock-wait-timeout=30000";

/// Of `pg_restore`. More would need more of the server than a host in use has to spare.
pub(super) const JOBS: u32 = 2;

/// What is needed to make one.
#[derive(Debug)]
pub(super) struct Backup<'a> {
    pub sessions: Sessions<'a>,
    pub config: &'a PostgresConfig,
    pub step: &'a StepContext,
    pub archive: &'a Archive,
    pub staging: &'a Staging,
    pub tag: &'a str,
}

impl Backup<'_> {
    /// Dumps into the staging directory. Answers with the manifest, which has no proof yet, and the
    /// schema that the dump shows.
    pub async fn take(&self, tools: &Tools, server_version: u32) -> Result<(Manifest, Schema), Problem> {
        self.staging.begin_dump()?;
        let dump = self.staging.dump();
        // Made by us with 0600: pg_dump would make it as the umask says.
        create_private(&dump)?;
        let failed = |e| sql_problem(Code::BackupUnproven, "read the database for the backup", &e);
        // The session stays open: the dump lives on its snapshot.
        let (mut c, seen) = self.step.operation("read_schema", self.look()).await?;
        let (snapshot_arg, file_arg) = (
            format!("--snapshot={}", seen.snapshot),
            format!("--file={}", dump.display()),
        );
        let args = [
            "--format=custom",
            "--compress=1",
            "--no-password",
            DUMP_LOCK_WAIT,
            &snapshot_arg,
            &file_arg,
        ];
        let figures = self
            .step
            .operation("pg_dump", async {
                let database = self.config.database.as_str();
                let dumping = tools.run(self.config, "pg_dump", database, &args, self.step.time_left());
                let dumping = async {
                    let what = format!("dump database {database}");
                    self.report_size(&dump, seen.database_bytes, dumping)
                        .await
                        .map_err(|e| e.problem(Code::BackupUnproven, what))
                };
                let counting = async {
                    let told = |name: &str, i: usize, of: usize| {
                        let message = format!("figures of {name} taken ({i} of {of} tables)");
                        self.step.progress_fraction(message, share(i as u64, of as u64));
                    };
                    Figures::read(&mut c, told).await.map_err(failed)
                };
                // The first failure ends the other one: dropping pg_dump's future kills it.
                tokio::try_join!(dumping, counting).map(|((), figures)| figures)
            })
            .await?;
        let _ = sqlx::Connection::close(c).await;
        let (sha256, bytes) = self.step.operation("sha256_dump", sha256_of(&dump, true)).await?;
        let manifest = Manifest {
            format: FORMAT,
            database: self.config.database.clone(),
            component: self.step.component.clone(),
            rollback_id: self.step.rollback_id.clone(),
            revision: seen.schema.digest(&seen.applied),
            version: version_of(self.archive, &seen.applied)?,
            restored_revision: None,
            server_version,
            taken_at: seen.taken_at,
            dated_by: DatedBy::Snapshot,
            sha256,
            bytes,
            dump_format: DumpFormat::Custom,
            external: None,
            figures,
            proof: None,
            horizon: Some(seen.horizon),
            database_bytes: seen.database_bytes,
            extensions: seen.needs.extensions,
            roles: seen.needs.roles,
            broken: Vec::new(),
            shown: None,
        };
        Ok((manifest, seen.schema))
    }

    /// Opens the snapshot that the backup is made of, and reads what belongs to it besides the rows.
    async fn look(&self) -> Result<(PgConnection, Seen), Problem> {
        let failed = |e| sql_problem(Code::BackupUnproven, "read the database for the backup", &e);
        let mut c = self.sessions.live().await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sqlx::raw_sql(begin).execute(&mut c).await.map_err(failed)?;
        let row = sqlx::query("SELECT pg_export_snapshot() AS snapshot, pg_database_size(current_database()) AS size")
            .fetch_one(&mut c)
            .await
            .map_err(failed)?;
        let taken_at = Timestamp::now();
        let horizon = Horizon::read(&mut c).await.map_err(failed)?;
        // As the live state is told elsewhere: a database that was restored once may print some things otherwise.
        let schema = Forms::load(self.config)?.recorded(Schema::read(&mut c).await.map_err(failed)?);
        let applied = tool::applied(self.config, &self.step.component, &mut c, &self.config.database).await?;
        let needs = Needs::read(&mut c).await.map_err(failed)?;
        let seen = Seen {
            snapshot: row.try_get("snapshot").map_err(failed)?,
            database_bytes: u64::try_from(row.try_get::<i64, _>("size").map_err(failed)?).unwrap_or_default(),
            taken_at,
            horizon,
            schema,
            applied,
            needs,
        };
        Ok((c, seen))
    }

    /// Restores the dump into a scratch database and compares every figure; the proof is noted in the manifest. Answers
    /// with the schema as the restore made it. The scratch database stays: the caller rehearses in it and drops it.
    ///
    /// Integrity checks that do not hold on the copy are noted and no failure: a backup of damaged data is worth keeping.
    pub async fn prove(
        &self,
        tools: &Tools,
        manifest: &mut Manifest,
        schema: &Schema,
        name: &str,
    ) -> Result<Schema, Problem> {
        let step = self.step;
        step.progress(format!("restoring the backup into {name}"));
        let mut live = self.sessions.live().await?;
        let settings = database_settings(&mut live)
            .await
            .map_err(|e| sql_problem(Code::BackupUnproven, "read the database's settings", &e))?;
        step.operation(
            "createdb",
            scratch::create(self.sessions, &mut live, name, &step.rollback_id),
        )
        .await?;
        let _ = sqlx::Connection::close(live).await;
        let with = Restoring {
            tools,
            config: self.config,
            sessions: self.sessions,
            step,
            expected_bytes: manifest.database_bytes,
        };
        let dump = Dump {
            path: self.staging.dump(),
            format: DumpFormat::Custom,
        };
        restore_dump(&with, &dump, name, Owners::Drop, JOBS)
            .await
            .map_err(as_unproven)?;
        let verify = async {
            let failed = |e| sql_problem(Code::BackupUnproven, format!("read {name}"), &e);
            let mut c = self.sessions.reader(name).await?;
            let restored = Schema::read(&mut c).await.map_err(failed)?;
            if let Some(thing) = schema.missing_from(&restored).first() {
                return Err(unproven(&format!("the restored copy has no {thing}")));
            }
            let applied = tool::applied(self.config, &self.step.component, &mut c, name).await?;
            let told = |name: &str, i: usize, of: usize| {
                let message = format!("figures of {name} verified ({i} of {of} tables)");
                step.progress_fraction(message, share(i as u64, of as u64));
            };
            let figures = Figures::read(&mut c, told).await.map_err(failed)?;
            let _ = sqlx::Connection::close(c).await;
            match figures.differences(&manifest.figures) {
                Some(differences) => Err(unproven(&format!("the restored copy differs: {differences}"))),
                None => Ok((restored.digest(&applied), restored)),
            }
        };
        let (digest, restored) = step.operation("verify_figures", verify).await?;
        manifest.restored_revision = Some(digest);
        // What this restore printed otherwise, a dump of somebody else's will, too.
        let mut forms = Forms::load(self.config)?;
        if forms.learn(schema, &restored) {
            forms.save(self.config)?;
        }
        manifest.broken = step
            .operation("integrity_checks", broken(self.sessions, self.config, name, &settings))
            .await?;
        for what in &manifest.broken {
            step.progress(format!("warning: in the backup, {what}"));
        }
        manifest.proof = Some(Proof::Restore);
        Ok(restored)
    }

    /// Turns the staged dump into a sealed backup: its checksum is taken again, its manifest is written, then it gets its
    /// name. Repeating after a kill finds it under either name.
    pub async fn seal(&self, manifest: &Manifest) -> Result<Receipt, Problem> {
        let backups = self.config.backups_dir()?;
        let sealed = sealed_path(backups, manifest, self.tag);
        let staged = self.staging.dump();
        let found = if staged.exists() { &staged } else { &sealed };
        let (sha256, bytes) = self.step.operation("sha256_dump", sha256_of(found, false)).await?;
        if sha256 != manifest.sha256 || bytes != manifest.bytes {
            return Err(unproven(&format!(
                "{} has changed since it was proven: {bytes} bytes, SHA-256 {sha256}, instead of {} bytes, {}",
                found.display(),
                manifest.bytes,
                manifest.sha256
            )));
        }
        self.step
            .operation("seal", async {
                staging::write_json(&manifest_path(&sealed), manifest)?;
                kill_point::pass(|| "backup.manifest_written".to_owned());
                if found == &staged {
                    std::fs::rename(&staged, &sealed)
                        .map_err(|e| file_problem(format!("rename to {}", sealed.display()), &e))?;
                }
                kill_point::pass(|| "backup.renamed".to_owned());
                sync_dir(backups).map_err(|e| Problem::from_error(Code::FileFailed, "seal the backup", &e))
            })
            .await?;
        Ok(manifest.receipt(&sealed))
    }

    /// Runs a dump to its end, telling its size every second. How far it is can only be guessed from the size of the
    /// database: the dump is compressed, and has no indexes.
    async fn report_size<T>(&self, dump: &Path, whole: u64, work: impl Future<Output = T>) -> T {
        let whole = people_bytes(whole);
        let tell = || {
            let bytes = std::fs::metadata(dump).map(|m| m.len()).unwrap_or_default();
            self.step
                .progress(format!("dump: {} (the database has {whole})", people_bytes(bytes)));
        };
        telling(tell, work).await
    }
}

/// What was read under the snapshot, besides the rows.
struct Seen {
    snapshot: String,
    database_bytes: u64,
    taken_at: Timestamp,
    horizon: Horizon,
    schema: Schema,
    applied: Applied,
    needs: Needs,
}

/// What a server must have before the dump can be restored with owners and grants.
struct Needs {
    extensions: BTreeMap<String, String>,
    roles: BTreeSet<String>,
}

impl Needs {
    async fn read(c: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let extensions = sqlx::query_as::<_, (String, String)>(
            "SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql'",
        )
        .fetch_all(&mut *c)
        .await?;
        // Owners, grantees and roles of policies are what the server itself would protect from DROP ROLE. The role that
        // initdb made is not among them: it is in every cluster.
        let roles: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT r.rolname::text FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
             WHERE s.refclassid = 'pg_authid'::regclass
               AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .fetch_all(c)
        .await?;
        Ok(Self {
            extensions: extensions.into_iter().collect(),
            roles: roles.into_iter().collect(),
        })
    }
}

/// What the integrity checks say of a copy, seen with the settings of the original, which do not follow a dump.
pub(super) async fn broken(
    sessions: Sessions<'_>,
    config: &PostgresConfig,
    name: &str,
    settings: &Settings,
) -> Result<Vec<String>, Problem> {
    if config.integrity.is_empty() {
        return Ok(Vec::new());
    }
    let mut c = sessions.migrator(name, settings).await?;
    let found = integrity::broken(&mut c, config).await?;
    let _ = sqlx::Connection::close(c).await;
    Ok(found.into_iter().map(|problem| problem.message).collect())
}

/// Runs work to its end, and `tell` every second meanwhile.
pub(super) async fn telling<T>(mut tell: impl FnMut(), work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.tick().await;
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tick.tick() => tell(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn share(done: u64, of: u64) -> f64 {
    done as f64 / of.max(1) as f64
}

/// A restore for a proof that failed says that the backup is not proven.
pub(super) fn as_unproven(mut problem: Problem) -> Problem {
    if problem.code == Code::RestoreFailed {
        let general = problem.remedy == problem.code.remedy();
        problem.code = Code::BackupUnproven;
        if general {
            problem.remedy = problem.code.remedy().to_owned();
        }
    }
    problem
}

fn unproven(message: &str) -> Problem {
    Problem::new(Code::BackupUnproven, message)
}

fn create_private(path: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    made.map(|_| ())
        .map_err(|e| file_problem(format!("create {}", path.display()), &e))
}

pub fn people_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        10_000_000_000.. => format!("{} GB", bytes / 1_000_000_000),
    }
}
