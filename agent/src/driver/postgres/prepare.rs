//! `prepare`: can this database reach the target, and come back? Reads only.

use rollback_proto::problem::{Code, Problem};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::archive::Hand;
use super::connect::{Sessions, ident};
use super::kept::{self, Expected, Inventory};
use super::route::{Direction, Leg};
use super::sql_error::sql_problem;
use super::tools::Tools;
use super::{PostgresDriver, State, backup, scratch, tool};
use crate::driver::Finding;
use crate::step::StepContext;

/// A scratch copy needs a little more room than the database it is made from.
const SCRATCH_FACTOR: f64 = 1.2;

/// Kept schemas that a message names.
const SHOWN: usize = 5;

impl PostgresDriver {
    pub(super) async fn do_prepare(&self, step: &StepContext) -> Vec<Finding> {
        let mut findings = Vec::new();
        // Side by side: the one reads catalogs, the other mostly waits for pg_dump to say its version.
        let sessions = self.connector.patient(step);
        let both = async { tokio::join!(self.state(sessions), self.look_around(sessions, &mut findings)) };
        let (state, around) = step.operation("look_at_database", both).await;
        let state = match state {
            Ok(state) => state,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        if let Err(problem) = around {
            findings.push(Finding::blocker(problem));
        }
        if let Some(number) = state.applied.dirty {
            findings.push(Finding::blocker(
                Problem::new(
                    Code::MigrationsDiverged,
                    format!(
                        "migration {number} is marked as unfinished in {}",
                        self.config.version_table
                    ),
                )
                .remedy("find out how far it came, finish it or take it back by hand, and clear the mark"),
            ));
        }
        if state.digest != step.from.digest {
            findings.push(Finding::blocker(self.moved(&state, step)));
            return findings;
        }
        let mut way_up = None;
        if step.from.digest != step.to.digest {
            match self.route(&state, step) {
                Ok(route) if route.there.direction == Direction::Up => way_up = Some(route.there),
                Ok(_) => {}
                Err(problems) => {
                    let other_way = self.what_a_restore_would_cost(step).await;
                    findings.extend(problems.into_iter().map(|problem| {
                        Finding::blocker(match &other_way {
                            Some(other) => or_else(problem, other),
                            None => problem,
                        })
                    }));
                }
            }
        }
        let kept = self.kept(step, sessions, &state, way_up.as_ref());
        match step.operation("look_at_kept_rows", kept).await {
            Ok(found) => findings.extend(found),
            Err(problem) => findings.push(Finding::blocker(problem)),
        }
        if step.from.digest == step.to.digest {
            return findings;
        }
        if let Err(problem) = step
            .operation(
                "ask_tool",
                tool::is_obedient(&self.config, &self.component, sessions, step),
            )
            .await
        {
            findings.push(Finding::blocker(problem));
        }
        match self.edited(&state, step) {
            Ok(edited) => findings.extend(edited.into_iter().map(Finding::warning)),
            Err(problem) => findings.push(Finding::blocker(problem)),
        }
        findings
    }

    /// What earlier rollbacks kept: what of it a way up is going to put back, and what only grows old.
    async fn kept(
        &self,
        step: &StepContext,
        sessions: Sessions<'_>,
        state: &State,
        way_up: Option<&Leg>,
    ) -> Result<Vec<Finding>, Problem> {
        let own = kept::schema_name(&self.tag(step));
        let mut findings = Vec::new();
        let mut c = sessions.live().await?;
        let expected = match way_up {
            Some(leg) => Expected::find(&mut c, &own, &leg.numbers(), &state.schema, &leg.schema_after).await?,
            None => None,
        };
        let mut served: Vec<String> = kept::of_component(&mut c, &own)
            .await?
            .into_iter()
            .filter(|(_, kept)| kept.is_spent())
            .map(|(schema, _)| schema)
            .collect();
        if let Some(expected) = expected {
            let mut message = format!(
                "rows in {} ({}) will be put back: {}",
                expected.schema,
                expected.kept.origin(),
                expected.contents()
            );
            let finding = match expected.older.as_slice() {
                [] => Finding::ok,
                older => {
                    message.push_str(&format!("; older ones stay as they are: {}", older.join(", ")));
                    Finding::warning
                }
            };
            findings.push(finding(
                Problem::new(Code::DatabaseUnclear, message)
                    .remedy("nothing; if these rows are not wanted, drop the schema first"),
            ));
            served.push(expected.schema);
        }
        let inventory = Inventory::read(&mut c, &served)
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, "look at kept schemas", &e))?;
        let _ = sqlx::Connection::close(c).await;
        if let Some(count) = inventory.describe() {
            let shown: Vec<&str> = inventory.names.iter().take(SHOWN).map(String::as_str).collect();
            let more = if inventory.names.len() > SHOWN { ", …" } else { "" };
            let message = format!(
                "database {} has {count}, with rows that earlier rollbacks took away and nobody put back: {}{more}; every \
                 backup and restore carries them",
                self.config.database,
                shown.join(", ")
            );
            let drops: Vec<String> = shown
                .iter()
                .map(|name| format!("DROP SCHEMA {} CASCADE;", ident(name)))
                .collect();
            let remedy = format!("when nobody needs these rows any more: {}", drops.join(" "));
            findings.push(Finding::warning(
                Problem::new(Code::DatabaseUnclear, message).remedy(remedy),
            ));
        }
        Ok(findings)
    }

    /// Migration files that are not what was recorded: the recorded ones are used.
    fn edited(&self, state: &State, step: &StepContext) -> Result<Vec<Problem>, Problem> {
        let Some(target) = self.archive.recorded(&step.to.digest)? else {
            return Ok(Vec::new());
        };
        let live = self.archive.recorded(&state.digest)?;
        let applied = self.applied_set(state)?;
        let changing = applied
            .iter()
            .filter(|n| !target.applied.contains_key(n))
            .copied()
            .collect();
        let known = self
            .archive
            .resolve(&[live.as_ref(), Some(&target)], &changing, Hand::Now)?;
        let files = known.into_values().flat_map(|k| k.edited);
        Ok(files
            .map(|file| {
                Problem::new(
                    Code::MigrationsDiverged,
                    format!("{file} was edited after it was recorded; what was recorded is used"),
                )
                .remedy("to use the edited file, record the running release again under another name")
            })
            .collect())
    }

    /// Programs, rights, room, other sessions: what has nothing to do with the target.
    async fn look_around(&self, sessions: Sessions<'_>, findings: &mut Vec<Finding>) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "look at the server", &e);
        let mut c = sessions.live().await?;
        let row = sqlx::query(
            "SELECT current_setting('server_version_num')::int AS version, pg_database_size(current_database()) AS size,
                    (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_create,
                    has_database_privilege(current_database(), 'CREATE') AS may_keep",
        )
        .fetch_one(&mut c)
        .await
        .map_err(failed)?;
        let version = u32::try_from(row.try_get::<i32, _>("version").map_err(failed)?).unwrap_or_default();
        let size = u64::try_from(row.try_get::<i64, _>("size").map_err(failed)?).unwrap_or_default();
        if let Err(problem) = Tools::find(&self.config, &scratch::short(&self.component), version / 10_000).await {
            findings.push(Finding::blocker(problem));
        }
        let user = &self.config.user;
        if !row
            .try_get::<Option<bool>, _>("may_create")
            .map_err(failed)?
            .unwrap_or(false)
        {
            findings.push(Finding::blocker(lacking(
                &format!("user {user} may not create databases, which a proof needs"),
                &format!("ALTER ROLE {user} CREATEDB"),
            )));
        }
        if !row.try_get::<bool, _>("may_keep").map_err(failed)? {
            let database = &self.config.database;
            findings.push(Finding::blocker(lacking(
                &format!("user {user} may not create a schema in {database} for rows that an undo needs"),
                &format!("GRANT CREATE ON DATABASE {database} TO {user}"),
            )));
        }
        if let Err(problem) = self.config.check_backups_mode() {
            findings.push(Finding::blocker(problem));
        }
        self.room(size, &mut c, findings).await?;
        self.foreign_tables(&mut c, findings).await?;
        let leftovers = scratch::leftovers(&mut c, &self.config.database, &self.component).await?;
        if !leftovers.is_empty() {
            let message = format!(
                "scratch databases of an earlier run will be removed: {}",
                leftovers.join(", ")
            );
            findings.push(Finding::warning(
                Problem::new(Code::DatabaseUnclear, message).remedy("nothing"),
            ));
        }
        let idle: Vec<String> = sqlx::query_scalar(
            "SELECT concat('pid ', pid, ' (', nullif(application_name, ''), ', user ', usename, ')') FROM pg_stat_activity
             WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()
               AND clock_timestamp() - state_change > interval '5 s' ORDER BY state_change LIMIT 5",
        )
        .fetch_all(&mut c)
        .await
        .map_err(failed)?;
        if !idle.is_empty() {
            let message = format!(
                "sessions that are idle in a transaction may hold locks: {}",
                idle.join("; ")
            );
            findings.push(Finding::warning(Problem::new(Code::DatabaseLocked, message)));
        }
        Ok(())
    }

    /// The rehearsal's copy belongs to us as a whole; the live tables may not.
    async fn foreign_tables(&self, c: &mut PgConnection, findings: &mut Vec<Finding>) -> Result<(), Problem> {
        let foreign: Vec<String> = sqlx::query_scalar(
            "SELECT format('%I.%I (%I)', n.nspname, c.relname, c.relowner::regrole)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
               AND n.nspname !~ '^rollbackctl_' AND NOT pg_has_role(current_user, c.relowner, 'USAGE') ORDER BY 1 LIMIT 5",
        )
        .fetch_all(c)
        .await
        .map_err(|e| sql_problem(Code::DatabaseDown, "look at the tables' owners", &e))?;
        if !foreign.is_empty() {
            let user = &self.config.user;
            let message = format!(
                "user {user} could not migrate what belongs to others: {}",
                foreign.join(", ")
            );
            findings.push(Finding::warning(lacking(
                &message,
                &format!("make {user} a member of the owning roles"),
            )));
        }
        Ok(())
    }

    /// Room for the dump, which compression makes smaller, and for the scratch copy where the server's disk can be seen.
    async fn room(&self, size: u64, c: &mut PgConnection, findings: &mut Vec<Finding>) -> Result<(), Problem> {
        let existing = self.config.backups.ancestors().find(|p| p.is_dir());
        if let Some(free) = existing.and_then(free_bytes)
            && free < size
        {
            let message = format!(
                "{} has {} free; a backup of {} may need {}",
                self.config.backups.display(),
                backup::people_bytes(free),
                self.config.database,
                backup::people_bytes(size)
            );
            findings.push(Finding::blocker(Problem::new(Code::DiskFull, message)));
        }
        // Shown to superusers and members of pg_read_all_settings only; and only a local directory can be looked at.
        let directory: Option<String> =
            sqlx::query_scalar("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
                .fetch_optional(c)
                .await
                .map_err(|e| sql_problem(Code::DatabaseDown, "look at the server", &e))?;
        let local = self.config.host.starts_with('/') || matches!(self.config.host.as_str(), "localhost" | "127.0.0.1");
        let free = directory
            .filter(|_| local)
            .and_then(|dir| free_bytes(std::path::Path::new(&dir)));
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "an estimate"
        )]
        let needed = (size as f64 * SCRATCH_FACTOR) as u64;
        match free {
            Some(free) if free < needed => {
                let message = format!(
                    "the server's disk has {} free; a scratch copy of {} needs {}",
                    backup::people_bytes(free),
                    self.config.database,
                    backup::people_bytes(needed)
                );
                findings.push(Finding::blocker(Problem::new(Code::DiskFull, message)));
            }
            Some(_) => {}
            None => {
                let message = format!(
                    "cannot see the server's disk; a scratch copy of {} needs {} there",
                    self.config.database,
                    backup::people_bytes(needed)
                );
                findings.push(Finding::warning(
                    Problem::new(Code::DiskFull, message).remedy("look at the server's disk"),
                ));
            }
        }
        Ok(())
    }
}

fn lacking(message: &str, remedy: &str) -> Problem {
    Problem::new(Code::DatabaseDown, message).remedy(remedy)
}

/// A problem with another way out.
pub(super) fn or_else(problem: Problem, other: &str) -> Problem {
    let remedy = match problem.remedy.as_str() {
        "" => other.to_owned(),
        own => format!("{own}; or {other}"),
    };
    problem.remedy(remedy)
}

pub(super) fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
