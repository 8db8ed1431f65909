//! `stage`: the backup is restored into a database beside the live one, made ready in everything, and proven.
//!
//! Everything slow is here, and nothing of it touches the live database. What an earlier run left is removed first. The
//! note for `switch` is written last: who finds it finds a database that only waits for its name.

use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::carry::Properties;
use super::cutover::{COUNT_LIMIT, COUNTERS};
use super::mark::{self, Mark, What};
use super::{Basis, Note, NotedReceipt, Place, compare, cost};
use crate::driver::postgres::alone::Alone;
use crate::driver::postgres::backup::people_bytes;
use crate::driver::postgres::backups::{self, Sealed};
use crate::driver::postgres::catalog::Schema;
use crate::driver::postgres::connect::run;
use crate::driver::postgres::dump::{Owners, Restoring, restore_dump};
use crate::driver::postgres::figures::Figures;
use crate::driver::postgres::forms::Forms;
use crate::driver::postgres::horizon::Horizon;
use crate::driver::postgres::protect::in_time;
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::postgres::staging::{self, Staging};
use crate::driver::postgres::{PostgresDriver, integrity, scratch, tool};
use crate::driver::{Consent, Done, Failure};
use crate::step::StepContext;
use crate::words::{count, count_of};

const JOBS: u32 = 2;

/// How long counting may take while the database is in use. What takes longer would take too long at the cutover, too.
const STAGE_COUNT_LIMIT: Duration = COUNT_LIMIT.saturating_mul(2);

impl PostgresDriver {
    pub(in crate::driver::postgres) async fn restore_stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let _alone = Alone::for_step(&self.config, step).await?;
        let tag = self.tag(step);
        let backups = self.config.backups_dir()?;
        let sessions = self.connector.patient(step);
        let note = self.note(step)?;
        let look = async {
            let mut c = sessions.maintenance().await?;
            if let Some(note) = &note
                && note.standing(&mut c).await?.place == Place::Exchanged
            {
                return Ok(None);
            }
            if self.reopen(&mut c).await? {
                step.progress("a switch that was cut off had left connections disallowed; they are allowed again");
            }
            let failed = |e| sql_problem(Code::DatabaseDown, "look for leftovers", &e);
            let mut left = mark::sides(&mut c, &self.config.database, &scratch::short(&self.component))
                .await
                .map_err(failed)?;
            left.extend(scratch::leftovers(&mut c, &self.config.database, &self.component).await?);
            let _ = sqlx::Connection::close(c).await;
            let state = self.state(sessions).await?;
            Ok::<_, Problem>(Some((left, state)))
        };
        let Some((left, state)) = step.operation("look_at_database", look).await? else {
            return Ok(Done::new("the restored database is live already"));
        };
        if state.digest != step.from.digest {
            return Err(self.moved(&state, step).into());
        }
        for name in &left {
            if let Err(problem) = step.operation("dropdb", scratch::drop(sessions, name)).await {
                // If it is in our way, making the new one says so.
                step.progress(format!("{name} of an earlier run stays for now: {}", problem.message));
            }
        }
        let files = staging::remove_leftovers(backups, &scratch::short(&self.component))?;
        if left.len() + files > 0 {
            step.progress(format!(
                "removed {} and {} of an earlier run",
                count_of(left.len(), "database", "databases"),
                count_of(files, "file", "files")
            ));
        }
        let Some(sealed) = backups::newest_of(&self.config, &self.component, &step.to.digest)? else {
            return Err(self.no_backup(step).into());
        };
        step.operation("sha256_dump", sealed.check()).await.map_err(|problem| {
            let instead = backups::instead_of(&sealed, &self.config, &self.component, &step.to.digest);
            Problem::new(problem.code, problem.message).remedy(instead)
        })?;
        let staging = Staging::new(backups, &tag);
        let side = mark::side_name(&self.config.database, &tag);
        let ended = in_time(step, self.restore_beside(step, &sealed, &staging, &side, &tag)).await;
        match ended {
            Ok(summary) => Ok(Done::new(summary)),
            Err(problem) => {
                // The failure that led here is what matters; the next stage removes what this cannot.
                let _ = staging.remove();
                let _ = step.operation("dropdb", scratch::drop(sessions, &side)).await;
                Err(problem.into())
            }
        }
    }

    async fn restore_beside(
        &self,
        step: &StepContext,
        sealed: &Sealed,
        staging: &Staging,
        side: &str,
        tag: &str,
    ) -> Result<String, Problem> {
        let sessions = self.connector.patient(step);
        let database = &self.config.database;
        let manifest = &sealed.manifest;
        let failed = |e| sql_problem(Code::RestoreFailed, format!("restore beside {database}"), &e);
        let (tools, server) = step.operation("find_tools", self.tools(sessions)).await?;
        if server / 10_000 < manifest.server_version / 10_000 {
            return Err(newer_server(sealed, server));
        }
        let (live, properties) = step
            .operation("createdb", async {
                let mut c = sessions.live().await?;
                scratch::create(sessions, &mut c, side, &step.rollback_id)
                    .await
                    .map_err(as_restore)?;
                let _ = sqlx::Connection::close(c).await;
                let mut c = sessions.maintenance().await?;
                let mark = Mark::new(What::Side, &self.component, database, &step.rollback_id, &sealed.name);
                run(&mut c, mark.statement(side)).await.map_err(failed)?;
                let live = oid_of(&mut c, database).await.map_err(failed)?;
                let properties = Properties::read(&mut c, live).await.map_err(failed)?;
                properties.found(&mut c, side).await?;
                properties.try_on(&mut c, side).await?;
                let _ = sqlx::Connection::close(c).await;
                Ok::<_, Problem>((live, properties))
            })
            .await?;
        step.progress(format!(
            "restoring backup {} ({}) into {side}",
            sealed.name,
            people_bytes(manifest.bytes)
        ));
        let restoring = Restoring {
            tools: &tools,
            config: &self.config,
            sessions,
            step,
            expected_bytes: manifest.database_bytes,
        };
        restore_dump(&restoring, &sealed.dump, side, Owners::Keep, JOBS)
            .await
            .map_err(as_restore)?;
        let proven = self.prove_side(step, sealed, side);
        let analyzed = async {
            let mut c = sessions.reader(side).await?;
            run(&mut c, "ANALYZE".to_owned()).await.map_err(failed)?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>(())
        };
        step.operation("verify_figures", async {
            tokio::try_join!(proven, analyzed).map(|_| ())
        })
        .await?;
        let (side_oid, restored) = step
            .operation("carry", async {
                let mut c = sessions.maintenance().await?;
                properties.put_on(&mut c, side).await?;
                let oid = oid_of(&mut c, side).await.map_err(failed)?;
                let _ = sqlx::Connection::close(c).await;
                let mut c = sessions.reader(side).await?;
                let horizon = horizon_of(&mut c).await.map_err(failed)?;
                let _ = sqlx::Connection::close(c).await;
                Ok::<_, Problem>((oid, horizon))
            })
            .await?;
        let basis = step.operation("find_basis", self.basis(step, sealed, side)).await?;
        let receipt = manifest.receipt(&sealed.dump.path);
        let note = Note {
            rollback_id: step.rollback_id.clone(),
            component: self.component.clone(),
            database: database.clone(),
            backup: sealed.name.clone(),
            taken_at: manifest.taken_at.to_string(),
            receipt: NotedReceipt {
                path: receipt.path,
                sha256: receipt.sha256,
                bytes: receipt.bytes,
                verified: receipt.verified,
                tables: receipt.tables,
                rows: receipt.rows,
            },
            live,
            side: side_oid,
            side_name: side.to_owned(),
            before_name: mark::before_name(database, tag),
            undone_name: mark::undone_name(database, tag),
            properties,
            basis,
            backup_rows: rows_of(sealed),
            restored,
            holding: false,
            cost: None,
            undone: None,
        };
        step.operation("count_loss", self.still_agreed(step, &note)).await?;
        staging.make()?;
        note.save(staging)?;
        kill_point::pass(|| "restore.staged".to_owned());
        Ok(format!(
            "backup {} of {} restored as {side} and proven: {}, {}",
            sealed.name,
            manifest.taken_at,
            count_of(manifest.figures.tables.len(), "table", "tables"),
            count(manifest.figures.rows(), "row", "rows")
        ))
    }

    /// Writers go on writing while a backup is restored, and may have written more than was agreed to already. It can only
    /// grow until the cutover, and to stop here costs nobody anything. What cannot be counted now is counted there.
    async fn still_agreed(&self, step: &StepContext, note: &Note) -> Result<(), Problem> {
        let Some(Consent { max_rows: Some(_) }) = step.consent else {
            return Ok(());
        };
        let (mut counters, _) = self.counters(step, &self.config.database, COUNTERS).await?;
        let counted = tokio::time::timeout(STAGE_COUNT_LIMIT, self.lost(note, &mut counters, true)).await;
        for counter in counters {
            let _ = sqlx::Connection::close(counter).await;
        }
        match counted {
            Ok(Ok(cost)) => cost
                .allowed(step.consent.as_ref(), &self.config.database, &note.backup),
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(cost::too_much(
                &self.config.database,
                &note.backup,
                &format!(
                    "counting what would be lost takes longer than {} s, and at the cutover everybody would wait for it",
                    STAGE_COUNT_LIMIT.as_secs()
                ),
            )
            .remedy("agree to any loss: --accept-data-loss=all, or restore when less is going on")),
        }
    }

    /// The restored database has the figures of the backup and the schema of the target, and keeps what is asked of it.
    async fn prove_side(&self, step: &StepContext, sealed: &Sealed, side: &str) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::RestoreFailed, format!("read {side}"), &e);
        let mut c = self.connector.patient(step).reader(side).await?;
        self.prove_schema(step, sealed, &mut c, side).await?;
        let seen = |name: &str, i: usize, of: usize| {
            step.progress(format!("{name} verified ({i} of {of} tables)"));
        };
        let figures = Figures::read(&mut c, seen).await.map_err(failed)?;
        if let Some(differences) = figures.differences(&sealed.manifest.figures) {
            let message = format!("the restored copy of backup {} differs: {differences}", sealed.name);
            return Err(Problem::new(Code::RestoreFailed, message));
        }
        integrity::ask(&mut c, &self.config).await?;
        let _ = sqlx::Connection::close(c).await;
        Ok(())
    }

    async fn prove_schema(
        &self,
        step: &StepContext,
        sealed: &Sealed,
        c: &mut PgConnection,
        side: &str,
    ) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::RestoreFailed, format!("read {side}"), &e);
        let mut forms = Forms::load(&self.config)?;
        let applied = tool::applied(&self.config, &self.component, c, side).await?;
        let recorded = match self.archive.recorded(&step.to.digest)? {
            Some(recorded) => Some(self.archive.schema_of(&recorded)?),
            None => None,
        };
        let mut schema = Schema::read(c).await.map_err(failed)?;
        // A fresh database has one; the target may have dropped its own.
        if recorded.as_ref().is_some_and(|r| !r.0.contains_key(PUBLIC)) && schema.0.contains_key(PUBLIC) {
            run(c, "DROP SCHEMA public RESTRICT".to_owned()).await.map_err(failed)?;
            schema = Schema::read(c).await.map_err(failed)?;
        }
        let fits = |schema: &Schema| schema.digest(&applied) == step.to.digest;
        if fits(&schema) || fits(&forms.recorded(schema.clone())) {
            return Ok(());
        }
        let other = |why: String| {
            Problem::new(
                Code::RestoreFailed,
                format!("backup {} is not of {}: {why}", sealed.name, step.to.version),
            )
            .remedy("it is a dump of another database or release; take in the right one")
        };
        let Some(recorded) = recorded else {
            return Err(other(format!("{} was never recorded on this host", step.to.version)));
        };
        let manifest = &sealed.manifest;
        let as_proven = manifest
            .restored_revision
            .as_ref()
            .is_none_or(|r| *r == schema.digest(&applied));
        let same_things = recorded.missing_from(&schema).is_empty() && schema.missing_from(&recorded).is_empty();
        // The backup was made of that very schema, and its content is what it was: what differs is how it is printed.
        if manifest.revision == step.to.digest && as_proven && same_things && forms.learn(&recorded, &schema) {
            let read = forms.recorded(schema.clone());
            if fits(&read) {
                forms.save(&self.config)?;
                return Ok(());
            }
        }
        Err(other(
            schema
                .differences(&recorded)
                .unwrap_or_else(|| "other migrations are applied".to_owned()),
        ))
    }

    /// By what the loss can be told. A dump without a horizon is compared with the live database row by row.
    async fn basis(&self, step: &StepContext, sealed: &Sealed, side: &str) -> Result<Basis, Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "find out what a restore would lose", &e);
        let sessions = self.connector.patient(step);
        let mut c = sessions.live().await?;
        if let Some(horizon) = &sealed.manifest.horizon
            && horizon.blind(&mut c).await.map_err(failed)?.is_none()
        {
            return Ok(Basis::Horizon(horizon.clone()));
        }
        step.progress("comparing the backup with the live database, row by row");
        let mut other = sessions.reader(side).await?;
        compare::compare(&mut c, &mut other, sessions.within(compare::LIMIT))
            .await
            .map_err(failed)
    }

    pub(super) fn no_backup(&self, step: &StepContext) -> Problem {
        let there = match backups::list(&self.config, &self.component) {
            Err(problem) => problem.message,
            Ok(all) if all.is_empty() => "there is none at all".to_owned(),
            Ok(all) => {
                let shown: Vec<String> = all
                    .iter()
                    .take(SHOWN)
                    .map(|b| {
                        let whole = if b.is_whole() {
                            ""
                        } else {
                            ", its dump is gone or has another size"
                        };
                        let version = match b.manifest.version.as_str() {
                            "" => "an earlier schema",
                            version => version,
                        };
                        format!("{} (of {version}, {}{whole})", b.name, b.manifest.taken_at)
                    })
                    .collect();
                let more = if all.len() > SHOWN { ", …" } else { "" };
                format!("there are {}{more}", shown.join(", "))
            }
        };
        Problem::new(
            Code::NoBackup,
            format!(
                "{} has no proven backup with the schema of {} ({}); {there}",
                self.config.database, step.to.version, step.to.digest
            ),
        )
    }
}

const PUBLIC: &str = "schema public";

/// Backups that a message names.
const SHOWN: usize = 4;

pub(super) fn newer_server(sealed: &Sealed, server: u32) -> Problem {
    Problem::new(
        Code::RestoreFailed,
        format!(
            "backup {} was made of a server of version {}; this one is version {}",
            sealed.name,
            sealed.manifest.server_version / 10_000,
            server / 10_000
        ),
    )
    .remedy("restore it on a server of that version or newer; a dump cannot go to an older one")
}

pub(super) fn rows_of(sealed: &Sealed) -> std::collections::BTreeMap<String, u64> {
    let tables = &sealed.manifest.figures.tables;
    tables
        .iter()
        .map(|(name, figures)| (name.clone(), figures.rows))
        .collect()
}

async fn oid_of(c: &mut PgConnection, database: &str) -> Result<u32, sqlx::Error> {
    let oid: i64 = sqlx::query_scalar("SELECT oid::bigint FROM pg_database WHERE datname = $1")
        .bind(database)
        .fetch_one(c)
        .await?;
    Ok(u32::try_from(oid).unwrap_or_default())
}

/// In a transaction of its own.
pub(super) async fn horizon_of(c: &mut PgConnection) -> Result<Horizon, sqlx::Error> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::raw_sql(begin).execute(&mut *c).await?;
    let horizon = Horizon::read(c).await?;
    sqlx::raw_sql("COMMIT").execute(c).await?;
    Ok(horizon)
}

/// What others call a backup that is not proven is a restore that failed here.
fn as_restore(mut problem: Problem) -> Problem {
    if problem.code == Code::BackupUnproven {
        problem = Problem::new(Code::RestoreFailed, problem.message).remedy(problem.remedy);
    }
    problem
}

/// For people: how long ago a backup was made.
pub(super) fn ago(taken_at: Timestamp) -> String {
    let minutes = Timestamp::now().duration_since(taken_at).as_secs() / 60;
    match minutes {
        ..-60 => "which is in the future: a clock was wrong".to_owned(),
        -60..1 => "just now".to_owned(),
        1 => "1 minute ago".to_owned(),
        2..120 => format!("{minutes} minutes ago"),
        120..2880 => format!("{} hours ago", minutes / 60),
        2880.. => format!("{} days ago", minutes / 1440),
    }
}
