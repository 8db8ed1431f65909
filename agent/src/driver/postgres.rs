//! PostgreSQL: a database's schema as a revision, moved by the project's own migrations, or by an exchange with a restored
//! backup.
//!
//! - The revision is a fingerprint of the schema and the applied migrations ([`catalog`], [`versions`]).
//! - `retain` archives the SQL of every applied migration, both ways, in the vault ([`archive`]).
//! - `stage` makes a backup, restores it into a scratch database, proves it there by figures of every table
//!   ([`backup`], [`figures`], [`scratch`]), and rehearses the way down and back up on it, comparing schema and data.
//! - `snapshot` seals that backup.
//! - `switch` runs the rehearsed SQL in one transaction that commits only at the recorded schema ([`migrate`]); what cannot
//!   run in one, or belongs to the project's own tool, part by part, each recognised after a kill ([`travel`]). What a down
//!   migration drops is kept ([`keep`], [`kept`]), and put back when the migration comes up again: in an undo, or in a
//!   later rollback to the newer release ([`put_back`]).
//! - Steps with `from_backup` go another way altogether: [`restore`]. Dumps of others are taken in by [`adopt`].
//!
//! Invariants: the live database is changed by `switch` only, after a backup was proven: by what was rehearsed for this
//! rollback on a restored copy of its data, or by an exchange with a restored and proven one. No password is ever in an argument vector, an
//! environment, a log or a message; no content of a row is in a message ([`sql_error`]). A server that restarts is waited
//! for ([`connect`]).
//!
//! Left out: physical backups, point-in-time recovery, encryption of dumps and of connections, clusters' roles and
//! tablespaces.

mod adopt;
mod alone;
mod archive;
mod backup;
mod backups;
mod catalog;
mod config;
mod connect;
mod dump;
mod figures;
mod forms;
mod horizon;
mod integrity;
mod keep;
mod kept;
mod lock_file;
mod loss;
mod manifest;
mod migrate;
mod prepare;
mod privileges;
mod protect;
mod put_back;
mod rehearse;
mod restore;
mod route;
mod scratch;
mod sql;
mod sql_error;
mod stage;
mod staging;
mod switch;
mod tool;
mod tool_locks;
mod tools;
mod travel;
mod versions;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use rollback_proto::problem::{Code, Problem};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

pub use self::adopt::Adopted;
use self::archive::{Archive, Hand, Prefer, Recorded};
pub use self::backup::people_bytes;
pub use self::backups::BackupLine;
use self::catalog::Schema;
pub use self::config::{IntegrityCheck, PostgresConfig, ToolConfig, Verify};
use self::connect::{Connector, Sessions};
use self::forms::Forms;
use self::kept::Inventory;
pub use self::restore::PutAside;
use self::route::{End, Route};
use self::sql_error::sql_problem;
use self::versions::Applied;
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision, Role};
use crate::files::{self, blocking};
use crate::step::{NoProgress, StepContext};
use crate::vault::Vault;

const KIND: &str = "postgres";

/// The version of a database to which no migration was applied.
const NO_MIGRATIONS: &str = "none";

/// Sessions that reading the schema may lose to restarts of the server before it gives up.
const MAX_LOSSES: u32 = 2;

/// One database.
#[derive(Debug)]
pub struct PostgresDriver {
    component: String,
    config: Arc<PostgresConfig>,
    connector: Connector,
    archive: Archive,
    /// Recording reads the library of migrations, adds to it and writes it: one at a time.
    recording: tokio::sync::Mutex<()>,
}

/// What was seen of a database at one moment.
#[derive(Debug)]
struct State {
    schema: Schema,
    applied: Applied,
    digest: String,
    version: String,
}

impl State {
    fn revision(&self) -> Revision {
        Revision {
            version: self.version.clone(),
            digest: self.digest.clone(),
        }
    }
}

/// What people call the state that these migrations lead to.
fn version_of(archive: &Archive, applied: &Applied) -> Result<String, Problem> {
    Ok(match applied.highest() {
        None => NO_MIGRATIONS.to_owned(),
        Some(number) => match archive.name(number)? {
            Some(name) => name,
            None => applied
                .text_of(number)
                .map_or_else(|| number.to_string(), str::to_owned),
        },
    })
}

impl PostgresDriver {
    /// Checks the configuration; does not connect.
    pub fn new(component: &str, config: PostgresConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        rollback_proto::names::check_name("component", component)?;
        config.validate()?;
        let config = Arc::new(config);
        Ok(Self {
            component: component.to_owned(),
            connector: Connector::new(config.clone(), component),
            archive: Archive::new(component, vault, &config),
            config,
            recording: tokio::sync::Mutex::new(()),
        })
    }

    /// Short name for what belongs to one rollback of this component: scratch database, kept schema, files. What belongs
    /// to the component begins alike, so that leftovers of earlier rollbacks are told from those of other components.
    fn tag(&self, step: &StepContext) -> String {
        format!(
            "{}{}",
            scratch::short(&self.component),
            scratch::short(&step.rollback_id)
        )
    }

    /// Reads in a session of its own. A session that is lost while it reads is replaced.
    async fn state(&self, sessions: Sessions<'_>) -> Result<State, Problem> {
        let mut losses = 0;
        loop {
            let mut c = sessions.live().await?;
            let state = self.state_on(&mut c).await;
            let lost = state.is_err() && sqlx::Connection::ping(&mut c).await.is_err();
            let _ = sqlx::Connection::close(c).await;
            if !lost || losses == MAX_LOSSES {
                return state;
            }
            losses += 1;
        }
    }

    async fn state_on(&self, c: &mut PgConnection) -> Result<State, Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "read the schema", &e);
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sqlx::raw_sql(begin).execute(&mut *c).await.map_err(failed)?;
        let schema = Forms::load(&self.config)?.recorded(Schema::read(c).await.map_err(failed)?);
        let applied = tool::applied(&self.config, &self.component, c, &self.config.database).await?;
        sqlx::raw_sql("COMMIT").execute(c).await.map_err(failed)?;
        self.state_with(schema, applied)
    }

    /// `schema` is in the forms that were recorded.
    fn state_with(&self, schema: Schema, applied: Applied) -> Result<State, Problem> {
        let digest = schema.digest(&applied);
        let version = version_of(&self.archive, &applied)?;
        Ok(State {
            schema,
            applied,
            digest,
            version,
        })
    }

    async fn server_version(&self, sessions: Sessions<'_>) -> Result<u32, Problem> {
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
            .fetch_one(&mut sessions.live().await?)
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, "ask for the server's version", &e))?;
        Ok(u32::try_from(version).unwrap_or_default())
    }

    async fn look(&self, sessions: Sessions<'_>) -> Result<Observation, Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "look at the server", &e);
        let mut c = sessions.live().await?;
        let state = self.state_on(&mut c).await?;
        let row = sqlx::query(
            "SELECT pg_database_size(current_database()) AS size, current_setting('max_connections') AS max,
                    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used",
        )
        .fetch_one(&mut c)
        .await
        .map_err(failed)?;
        let kept = Inventory::read(&mut c, &[]).await.map_err(failed)?;
        let _ = sqlx::Connection::close(c).await;
        let size = u64::try_from(row.try_get::<i64, _>("size").map_err(failed)?).unwrap_or_default();
        let (used, max): (i64, String) = (
            row.try_get("used").map_err(failed)?,
            row.try_get("max").map_err(failed)?,
        );
        let mut detail = format!("{}, {used} of {max} connections", backup::people_bytes(size));
        if let Some(kept) = kept.describe() {
            detail.push_str(&format!(", {kept}"));
        }
        Ok(Observation {
            revision: state.revision(),
            health: Health::Healthy,
            detail,
            out: BTreeSet::new(),
        })
    }

    fn applied_set(&self, state: &State) -> Result<BTreeSet<i64>, Problem> {
        Ok(state.applied.set(self.archive.numbers()?.into_iter()))
    }

    async fn record(&self, state: &State, prefer: Prefer) -> Result<Vec<String>, Problem> {
        let _one_at_a_time = self.recording.lock().await;
        let applied = self.applied_set(state)?;
        self.archive.record(
            &state.digest,
            &state.version,
            &applied,
            &state.applied,
            &state.schema,
            prefer,
        )
    }

    /// The way from the live schema to `step.to`.
    fn route(&self, state: &State, step: &StepContext) -> Result<Route, Vec<Problem>> {
        let one = |problem| vec![problem];
        let live = self.archive.recorded(&state.digest).map_err(one)?;
        let from = End {
            applied: self.applied_set(state).map_err(one)?,
            schema: state.schema.clone(),
        };
        self.route_from(from, live.as_ref(), step)
    }

    /// The way from `step.from` as it was recorded to `step.to`, wherever the live database is.
    fn planned_route(&self, step: &StepContext) -> Result<Route, Vec<Problem>> {
        let one = |problem| vec![problem];
        let recorded = self.archive.recorded(&step.from.digest).map_err(one)?;
        let Some(recorded) = recorded else {
            let message = format!(
                "revision {} ({}) was never recorded",
                step.from.version, step.from.digest
            );
            return Err(one(Problem::new(Code::RevisionMissing, message)));
        };
        let from = End {
            applied: recorded.applied.keys().copied().collect(),
            schema: self.archive.schema_of(&recorded).map_err(one)?,
        };
        self.route_from(from, Some(&recorded), step)
    }

    fn route_from(&self, from: End, live: Option<&Recorded>, step: &StepContext) -> Result<Route, Vec<Problem>> {
        let one = |problem| vec![problem];
        let Some(target) = self.archive.recorded(&step.to.digest).map_err(one)? else {
            let message = format!(
                "revision {} ({}) was never recorded on this host",
                step.to.version, step.to.digest
            );
            return Err(one(Problem::new(Code::RevisionMissing, message)));
        };
        let to = End {
            applied: target.applied.keys().copied().collect(),
            schema: self.archive.schema_of(&target).map_err(one)?,
        };
        let changing = from.applied.symmetric_difference(&to.applied).copied().collect();
        let known = self
            .archive
            .resolve(&[live, Some(&target)], &changing, Hand::of(step.action))
            .map_err(one)?;
        match &self.config.tool {
            Some(tool) => Route::by_tool(from, to, &known, tool),
            None => Route::find(from, to, &known),
        }
    }

    /// Why the live schema is not the one that the step begins with.
    fn moved(&self, state: &State, step: &StepContext) -> Problem {
        let database = &self.config.database;
        let recorded = self.archive.recorded(&step.from.digest).ok().flatten();
        let Some(expected) = recorded else {
            let message = format!(
                "database {database} is at {} ({}), not at {} as planned",
                state.version, state.digest, step.from.version
            );
            return Problem::new(Code::WrongRevision, message).remedy("plan the rollback anew");
        };
        let applied = self.applied_set(state).unwrap_or_default();
        let known: BTreeSet<i64> = expected.applied.keys().copied().collect();
        let list = |a: &BTreeSet<i64>, b: &BTreeSet<i64>| {
            a.difference(b).map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        if applied != known {
            let message = format!(
                "database {database}: applied but not expected: [{}]; expected but not applied: [{}]",
                list(&applied, &known),
                list(&known, &applied)
            );
            return Problem::new(Code::MigrationsDiverged, message)
                .remedy("find out who migrated the database since; bring it back by hand, or plan the rollback anew");
        }
        let differences = self
            .archive
            .schema_of(&expected)
            .ok()
            .and_then(|e| state.schema.differences(&e));
        let message = format!(
            "the schema of database {database} was changed without a migration: {}",
            differences.unwrap_or_else(|| "its version table differs".to_owned())
        );
        Problem::new(Code::WrongRevision, message).remedy("take the change back, or plan the rollback anew")
    }
}

#[async_trait]
impl Driver for PostgresDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            kind: KIND,
            role: Role::Database,
            capabilities: vec![
                Action::Prepare,
                Action::Stage,
                Action::Discard,
                Action::Snapshot,
                Action::Switch,
                Action::Verify,
                Action::Finish,
            ],
            reads: BTreeSet::new(),
            backends: BTreeSet::new(),
            restores: true,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        match self.look(self.connector.quick()).await {
            Ok(seen) => Ok(seen),
            Err(problem) => Err(self.closed().await.unwrap_or(problem)),
        }
    }

    async fn retain(&self, _release: &str) -> Result<Retained, Problem> {
        let state = self.state(self.connector.quick()).await?;
        let one_way = self.record(&state, Prefer::Files).await?;
        let mut summary = format!("vault, {} migrations", self.applied_set(&state)?.len());
        if !one_way.is_empty() {
            summary.push_str(&format!("; without a way down: {}", one_way.join(", ")));
        }
        if self.config.backup_on_record {
            let backup = self.back_up(protect::RETAINING, Arc::new(NoProgress)).await?;
            summary.push_str(&format!("; {}", backup.summary));
        }
        Ok(Retained {
            revision: state.revision(),
            summary,
        })
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        self.do_resolve(release).await
    }

    /// The recorded schema goes. The library of migrations stays whole: it is a few KiB, and the only way down from a
    /// schema that is deployed once more. Backups have a retention of their own.
    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        let (vault, digest) = (self.archive.vault(), revision.digest.clone());
        let component = self.component.clone();
        blocking(move || files::let_go(&vault, &component, &digest)).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        if step.from_backup {
            return self.restore_prepare(step).await;
        }
        let mut findings = self.do_prepare(step).await;
        self.tell_of_restores(step, &mut findings).await;
        findings
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            return self.restore_stage(step).await;
        }
        self.do_stage(step).await
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            return self.restore_clear(step).await;
        }
        self.do_clear(step).await
    }

    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            return self.restore_snapshot(step);
        }
        self.do_snapshot(step).await
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            return self.restore_switch(step).await;
        }
        self.do_switch(step).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            self.restore_verify(step).await?;
        }
        let seen = step
            .operation("read_schema", self.look(self.connector.patient(step)))
            .await
            .map_err(|p| Problem::new(Code::Unhealthy, p.message).remedy(p.remedy))?;
        let asking = self.ask_live(self.connector.patient(step));
        step.operation("integrity_checks", asking).await?;
        Ok(Done::at(seen.revision, seen.detail))
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        if step.from_backup {
            return self.restore_clear(step).await;
        }
        self.do_clear(step).await
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        if step.from_backup {
            return self.restore_probe(step).await;
        }
        match step.action {
            Action::Switch => self.settle(step).await,
            // Nothing of these touches the live database, and each begins by clearing what it finds.
            Action::Prepare | Action::Stage | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => {
                Probe::Repeatable(format!("{:?} may be repeated at any time", step.action))
            }
            Action::Unspecified | Action::Drain | Action::Resume | Action::Stop | Action::Start => {
                match super::unsupported(KIND, step) {
                    Failure::Failed(problem) | Failure::Indeterminate(problem) => Probe::Indeterminate(problem),
                }
            }
        }
    }
}
