//! Backups that are known to be good: made under one snapshot together with figures of every table, restored into a
//! scratch database, and the same figures read again there.
//!
//! `pg_restore --list` answers 0 for truncated and for damaged dumps; only a restore tells. A sealed backup is a dump
//! (0600) with its manifest beside it, `<database>-<UTC>-<tag>.dump` and `.manifest.json`; a dump without manifest was
//! never sealed. Encryption at rest is the file system's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::catalog::Schema;
use super::config::{PostgresConfig, Verify};
use super::connect::Sessions;
use super::figures::Figures;
use super::scratch;
use super::sql_error::sql_problem;
use super::staging::{self, Staging, file_problem};
use super::tools::Tools;
use super::versions::Applied;
use crate::driver::Receipt;
use crate::step::StepContext;
use crate::vault::sync_dir;

/// How long `pg_dump` may wait for a table that somebody has locked.
const DUMP_LOCK_WAIT: &str = "--lock-wait-timeout=30000";

const FORMAT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Proof {
    Restore,
    Checksum,
}

/// What lies beside a dump.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub database: String,
    component: String,
    pub rollback_id: String,
    /// The revision that the backup shows: its digest.
    revision: String,
    server_version: u32,
    pub taken_at: Timestamp,
    pub sha256: String,
    bytes: u64,
    pub figures: Figures,
    pub proof: Option<Proof>,
}

impl Manifest {
    fn receipt(&self, path: &Path) -> Receipt {
        Receipt {
            path: path.display().to_string(),
            sha256: self.sha256.clone(),
            bytes: self.bytes,
            verified: match self.proof {
                Some(Proof::Restore) => "restore".to_owned(),
                Some(Proof::Checksum) => "checksum".to_owned(),
                None => String::new(),
            },
            tables: self.figures.tables.len() as u64,
            rows: self.figures.rows(),
            taken_at: self.taken_at.to_string(),
        }
    }
}

/// What is needed to make one.
#[derive(Debug)]
pub(super) struct Backup<'a> {
    pub sessions: Sessions<'a>,
    pub config: &'a PostgresConfig,
    pub step: &'a StepContext,
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
        let look = async {
            let mut c = self.sessions.live().await?;
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            sqlx::raw_sql(begin).execute(&mut c).await.map_err(failed)?;
            let snapshot: String = sqlx::query_scalar("SELECT pg_export_snapshot()")
                .fetch_one(&mut c)
                .await
                .map_err(failed)?;
            let taken_at = Timestamp::now();
            let schema = Schema::read(&mut c).await.map_err(failed)?;
            let applied = Applied::read(&mut c, &self.config.version_table).await?;
            Ok::<_, Problem>((c, snapshot, taken_at, schema, applied))
        };
        // The session stays open: the dump lives on its snapshot.
        let (mut c, snapshot, taken_at, schema, applied) = self.step.operation("read_schema", look).await?;
        let (snapshot_arg, file_arg) = (format!("--snapshot={snapshot}"), format!("--file={}", dump.display()));
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
                    self.report_size(&dump, dumping)
                        .await
                        .map_err(|e| e.problem(Code::BackupUnproven, what))
                };
                let counting = async {
                    let seen = |name: &str, i: usize, of: usize| {
                        self.step
                            .progress(format!("figures of {name} taken ({i} of {of} tables)"));
                    };
                    Figures::read(&mut c, seen).await.map_err(failed)
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
            revision: schema.digest(&applied),
            server_version,
            taken_at,
            sha256,
            bytes,
            figures,
            proof: None,
        };
        Ok((manifest, schema))
    }

    /// Restores the dump into a scratch database and compares every figure. Answers with the schema as the restore made
    /// it. The scratch database stays: the caller rehearses in it and drops it.
    pub async fn prove(
        &self,
        tools: &Tools,
        manifest: &Manifest,
        schema: &Schema,
        name: &str,
    ) -> Result<Schema, Problem> {
        let dump = self.staging.dump();
        let step = self.step;
        step.progress(format!("restoring the backup into {name}"));
        let mut live = self.sessions.live().await?;
        step.operation(
            "createdb",
            scratch::create(self.sessions, &mut live, name, &step.rollback_id),
        )
        .await?;
        let _ = sqlx::Connection::close(live).await;
        restore(self, tools, &dump, name).await?;
        step.operation("verify_figures", async {
            let failed = |e| sql_problem(Code::BackupUnproven, format!("read {name}"), &e);
            let mut c = self.sessions.reader(name).await?;
            let restored = Schema::read(&mut c).await.map_err(failed)?;
            if let Some(thing) = schema.missing_from(&restored).first() {
                return Err(unproven(&format!("the restored copy has no {thing}")));
            }
            let figures = Figures::read(&mut c, |_, _, _| {}).await.map_err(failed)?;
            match figures.differences(&manifest.figures) {
                Some(differences) => Err(unproven(&format!("the restored copy differs: {differences}"))),
                None => Ok(restored),
            }
        })
        .await
    }

    /// Turns the staged dump into a sealed backup: its checksum is taken again, then it gets its name. Repeating after a
    /// kill finds it under either name.
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
                if found == &staged {
                    std::fs::rename(&staged, &sealed)
                        .map_err(|e| file_problem(format!("rename to {}", sealed.display()), &e))?;
                }
                staging::write_json(&manifest_path(&sealed), manifest)?;
                sync_dir(backups).map_err(|e| Problem::from_error(Code::FileFailed, "seal the backup", &e))
            })
            .await?;
        Ok(manifest.receipt(&sealed))
    }

    /// Runs a dump to its end, telling its size every second.
    async fn report_size<T>(&self, dump: &Path, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.tick().await;
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = tick.tick() => {
                    let bytes = std::fs::metadata(dump).map(|m| m.len()).unwrap_or_default();
                    self.step.progress(format!("dump: {}", people_bytes(bytes)));
                }
            }
        }
    }
}

/// Restores a dump into an existing empty database. Anything that goes wrong makes the backup unproven.
async fn restore(backup: &Backup<'_>, tools: &Tools, dump: &Path, name: &str) -> Result<(), Problem> {
    let (into, file) = (format!("--dbname={name}"), dump.display().to_string());
    // Owners and grants belong to the cluster; what is proven here is the content.
    let args = [
        "--jobs=2",
        "--exit-on-error",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        into.as_str(),
        file.as_str(),
    ];
    let limit = backup.step.time_left();
    backup
        .step
        .operation("pg_restore", tools.run(backup.config, "pg_restore", name, &args, limit))
        .await
        .map_err(|e| e.problem(Code::BackupUnproven, format!("restore the backup into {name}")))
}

fn unproven(message: &str) -> Problem {
    Problem::new(Code::BackupUnproven, message)
}

fn sealed_path(backups: &Path, manifest: &Manifest, tag: &str) -> PathBuf {
    let stamp = manifest.taken_at.strftime("%Y%m%dT%H%M%SZ");
    backups.join(format!("{}-{stamp}-{tag}.dump", manifest.database))
}

fn manifest_path(dump: &Path) -> PathBuf {
    dump.with_extension("manifest.json")
}

pub(super) fn proof_of(verify: Verify) -> Proof {
    match verify {
        Verify::Restore => Proof::Restore,
        Verify::Checksum => Proof::Checksum,
    }
}

/// Deletes all but the newest sealed backups of the database, never `keep`. Only files that have our manifest.
pub(super) fn retire(backups: &Path, database: &str, retain: u32, keep: &str) -> Result<usize, Problem> {
    let failed = |e: std::io::Error| file_problem(format!("read {}", backups.display()), &e);
    let mut sealed = Vec::new();
    for entry in std::fs::read_dir(backups).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(stem) = path.to_str().and_then(|p| p.strip_suffix(".manifest.json")) else {
            continue;
        };
        // A file that is not ours, or not readable as ours, is left alone.
        let Ok(Some(manifest)) = staging::read_json::<Manifest>(&path) else {
            continue;
        };
        let dump = PathBuf::from(format!("{stem}.dump"));
        if manifest.database == database && dump.is_file() {
            sealed.push((manifest.taken_at, dump, path));
        }
    }
    sealed.sort();
    sealed.reverse();
    let mut retired = 0;
    for (_, dump, manifest) in sealed.into_iter().skip(retain as usize) {
        if dump.to_str() == Some(keep) {
            continue;
        }
        for file in [&dump, &manifest] {
            std::fs::remove_file(file).map_err(|e| file_problem(format!("remove {}", file.display()), &e))?;
        }
        retired += 1;
    }
    Ok(retired)
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

/// SHA-256 and length. `sync` makes the content durable first.
async fn sha256_of(path: &Path, sync: bool) -> Result<(String, u64), Problem> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    let work = move || -> std::io::Result<(String, u64)> {
        let mut file = std::fs::File::open(&path)?;
        if sync {
            file.sync_all()?;
        }
        let mut hash = Sha256::new();
        let mut chunk = vec![0u8; 256 * 1024];
        let mut bytes = 0;
        loop {
            let n = std::io::Read::read(&mut file, &mut chunk)?;
            if n == 0 {
                return Ok((hex::encode(hash.finalize()), bytes));
            }
            hash.update(&chunk[..n]);
            bytes += n as u64;
        }
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => Err(unproven(&format!("the backup {shown} is gone"))),
        Ok(Err(e)) => Err(file_problem(format!("read {shown}"), &e)),
        Err(e) => Err(Problem::from_error(Code::Internal, "hash a backup", &e)),
    }
}

pub(super) fn people_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        10_000_000_000.. => format!("{} GB", bytes / 1_000_000_000),
    }
}
