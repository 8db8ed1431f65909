//! `prepare` for a restore: is there a backup, can it be restored and exchanged here, and what would it cost? Reads only.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::cost::{self, Cost};
use super::mark::Marked;
use super::sessions::{obstacles, subscriptions};
use super::stage::{ago, newer_server, rows_of};
use crate::driver::postgres::PostgresDriver;
use crate::driver::postgres::backup::people_bytes;
use crate::driver::postgres::backups::{self, Sealed};
use crate::driver::postgres::connect::{Sessions, ident, run};
use crate::driver::postgres::prepare::{free_bytes, or_else};
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::{Finding, Severity};
use crate::step::StepContext;

/// The side database, with indexes and sorting, while the live one and the backup stay.
const ROOM_FACTOR: f64 = 2.5;

/// How long counting may take before a plan is shown without it.
const COUNT_LIMIT: Duration = Duration::from_secs(10);

/// Sessions that count for a plan: the application is running.
const COUNTERS: usize = 2;

/// Databases that were put aside that a message names.
const SHOWN: usize = 4;

impl PostgresDriver {
    pub(in crate::driver::postgres) async fn restore_prepare(&self, step: &StepContext) -> Vec<Finding> {
        let sessions = self.connector.patient(step);
        let state = match step.operation("look_at_database", self.state(sessions)).await {
            Ok(state) => state,
            Err(problem) => return vec![Finding::blocker(self.closed().await.unwrap_or(problem))],
        };
        if state.digest != step.from.digest {
            return vec![Finding::blocker(self.moved(&state, step))];
        }
        let mut findings = Vec::new();
        let sealed = match backups::newest_of(&self.config, &self.component, &step.to.digest) {
            Ok(sealed) => sealed,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        if sealed.is_none() {
            findings.push(Finding::blocker(self.no_backup(step)));
        }
        let looked = self.can_restore(sessions, sealed.as_ref());
        match step.operation("look_around", looked).await {
            Ok(found) => findings.extend(found),
            Err(problem) => findings.push(Finding::blocker(problem)),
        }
        let Some(sealed) = sealed else { return findings };
        if findings.iter().any(|f| f.severity == Severity::Blocker) {
            return findings;
        }
        let cost = step.operation("count_loss", self.price(&sealed, COUNT_LIMIT)).await;
        let taken_at = sealed.manifest.taken_at.to_string();
        let problem = Problem::new(
            Code::ConsentNeeded,
            format!(
                "{} is restored from backup {} of {taken_at} ({}); lost: {}",
                self.config.database,
                sealed.name,
                ago(sealed.manifest.taken_at),
                cost.describe()
            ),
        );
        // A plan asks without a consent. A rollback that is known to be stopped at the cutover shall not get as far as to
        // stop the applications; what is not known yet may be by then.
        let too_much = step.consent.as_ref().filter(|_| cost.unknown.is_none());
        let finding = match too_much.map(|consent| cost.allowed(Some(consent), &self.config.database, &sealed.name)) {
            Some(Err(problem)) => Finding::blocker(problem),
            Some(Ok(())) | None if cost.is_nothing() => Finding::ok(problem),
            Some(Ok(())) | None => Finding::warning(problem),
        };
        findings.push(finding.with_loss(cost.data_loss(&sealed.name, &taken_at)));
        findings.extend(self.too_old(&sealed).map(|problem| match step.consent {
            // Whoever agreed has seen of when it is, and what that costs.
            Some(_) => Finding::warning(problem),
            None => Finding::blocker(problem),
        }));
        findings
    }

    /// What a restore of this backup would lose grows with every day, and a plan that counts on it is no plan any more.
    fn too_old(&self, sealed: &Sealed) -> Option<Problem> {
        let age = Timestamp::now().duration_since(sealed.manifest.taken_at);
        let allowed = self.config.backup_max_age;
        Duration::try_from(age).is_ok_and(|age| age > allowed).then(|| {
            let component = &self.component;
            Problem::new(
                Code::BackupTooOld,
                format!(
                    "the newest backup of the schema to go back to, {}, was taken {}; backup_max_age is {} hours",
                    sealed.name,
                    ago(sealed.manifest.taken_at),
                    allowed.as_secs() / 3600
                ),
            )
            .remedy(format!(
                "take in a newer one: rollback-agent database adopt {component} DUMP; or raise backup_max_age; or agree to \
                 what is lost: rollbackctl fleet rollback --accept-data-loss=ROWS, or =all; from now on, make one of each \
                 release while it runs: backup_on_record"
            ))
        })
    }

    /// What `prepare` for migrations has to say of restores: what the other way would cost where there is no way by
    /// migrations, and what earlier restores put aside.
    pub(in crate::driver::postgres) async fn tell_of_restores(&self, step: &StepContext, findings: &mut Vec<Finding>) {
        let no_way = |f: &&mut Finding| {
            f.severity == Severity::Blocker
                && matches!(f.problem.code, Code::NoDownMigration | Code::MigrationsDiverged)
        };
        if findings.iter_mut().any(|f| no_way(&f))
            && let Some(cost) = self.what_a_restore_would_cost(step).await
        {
            for finding in findings.iter_mut().filter(no_way) {
                if !finding.problem.remedy.contains("--database restore") {
                    finding.problem = or_else(finding.problem.clone(), &cost);
                }
            }
            // It is the only way there is, and not a good one.
            let newest = backups::newest_of(&self.config, &self.component, &step.to.digest);
            let too_old = newest.ok().flatten().and_then(|sealed| self.too_old(&sealed));
            findings.extend(too_old.map(Finding::blocker));
        }
        if let Ok(mut c) = self.connector.patient(step).maintenance().await {
            let aside = self.put_aside(&mut c).await.unwrap_or_default();
            findings.extend(grown_old(&aside, &self.component));
        }
    }

    /// For the remedy of a blocker: what the other way would cost. `None` when there is no backup to restore.
    pub(in crate::driver::postgres) async fn what_a_restore_would_cost(&self, step: &StepContext) -> Option<String> {
        let sealed = backups::newest_of(&self.config, &self.component, &step.to.digest).ok()??;
        let cost = self.price(&sealed, COUNT_LIMIT.min(step.time_left())).await;
        let taken = sealed.manifest.taken_at.strftime("%Y-%m-%d %H:%MZ");
        // Nobody can agree to "as shown" where nothing is shown.
        let consent = match &cost.unknown {
            Some(_) => "--accept-data-loss=ROWS",
            None => "--accept-data-loss",
        };
        Some(format!(
            "restore the backup of {taken}: --database restore {consent}; lost would be {}; or leave the schema as it is: \
             --database keep",
            cost.describe()
        ))
    }

    /// A failure of `stage`, with what the other way would cost if it is the migrations that do not work and there is a
    /// backup. Counts for as long as a plan may, and never beyond the step's deadline.
    pub(in crate::driver::postgres) async fn or_by_a_restore(&self, step: &StepContext, problem: Problem) -> Problem {
        if !matches!(problem.code, Code::RehearsalFailed | Code::MigrationToolFailed) {
            return problem;
        }
        match step.operation("count_loss", self.what_a_restore_would_cost(step)).await {
            Some(other) => or_else(problem, &other),
            None => problem,
        }
    }

    /// What a restore would lose if it were now, as far as that can be counted in so short a time.
    async fn price(&self, sealed: &Sealed, limit: Duration) -> Cost {
        let Some(horizon) = &sealed.manifest.horizon else {
            return Cost::unknown("the dump does not say what it could see; it is compared when it was restored");
        };
        let counting = async {
            let mut counters = Vec::new();
            for _ in 0..COUNTERS {
                let mut c = self.connector.quick().live().await?;
                let limit = format!("SET statement_timeout = {}", limit.as_millis().max(1));
                run(&mut c, limit)
                    .await
                    .map_err(|e| sql_problem(Code::DatabaseDown, "count", &e))?;
                counters.push(c);
            }
            let counted = cost::or_unknown(cost::count(&mut counters, horizon, &rows_of(sealed)).await);
            for c in counters {
                let _ = sqlx::Connection::close(c).await;
            }
            Ok::<_, Problem>(counted)
        };
        match tokio::time::timeout(limit, counting).await {
            Ok(Ok(cost)) => cost,
            Ok(Err(problem)) => Cost::unknown(problem.message),
            Err(_) => Cost::unknown(format!("counting takes longer than {} s", limit.as_secs())),
        }
    }

    async fn can_restore(&self, sessions: Sessions<'_>, sealed: Option<&Sealed>) -> Result<Vec<Finding>, Problem> {
        let database = &self.config.database;
        let failed = |e| sql_problem(Code::DatabaseDown, "look at the server", &e);
        let mut findings = Vec::new();
        if let Err(problem) = self.config.check_backups_mode() {
            findings.push(Finding::blocker(problem));
        }
        let (_, version) = match self.tools(sessions).await {
            Ok(found) => found,
            Err(problem) => return Ok(vec![Finding::blocker(problem)]),
        };
        let mut c = sessions.live().await?;
        findings.extend(self.rights(&mut c).await?);
        let mut forbidding = obstacles(&mut c, database).await.map_err(failed)?;
        forbidding.extend(subscriptions(&mut c, database).await.map_err(failed)?);
        findings.extend(forbidding.into_iter().map(Finding::blocker));
        let size: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
            .fetch_one(&mut c)
            .await
            .map_err(failed)?;
        if let Some(sealed) = sealed {
            if version / 10_000 < sealed.manifest.server_version / 10_000 {
                findings.push(Finding::blocker(newer_server(sealed, version)));
            }
            findings.extend(missing(&mut c, sealed).await.map_err(failed)?);
            findings.extend(self.owners(&mut c, sealed).await.map_err(failed)?);
            let size = match sealed.manifest.database_bytes {
                0 => u64::try_from(size).unwrap_or_default(),
                bytes => bytes,
            };
            findings.extend(self.side_room(&mut c, size).await.map_err(failed)?);
            findings.extend(sealed.manifest.broken.iter().map(|broken| {
                Finding::blocker(
                    Problem::new(
                        Code::IntegrityFailed,
                        format!(
                            "backup {} of {} does not keep what is asked of it: {broken}",
                            sealed.name, sealed.manifest.taken_at
                        ),
                    )
                    .remedy(
                        "correct the check if it is wrong; or take in another backup: rollback-agent database adopt",
                    ),
                )
            }));
        }
        let aside = self.put_aside(&mut c).await?;
        let _ = sqlx::Connection::close(c).await;
        findings.extend(grown_old(&aside, &self.component));
        Ok(findings)
    }

    /// Renaming needs the ownership and CREATEDB; sending others away needs rights over them.
    async fn rights(&self, c: &mut PgConnection) -> Result<Vec<Finding>, Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "look at the rights of the agent's user", &e);
        let row = sqlx::query(
            "SELECT r.rolsuper AS super, r.rolcreatedb AS creates, pg_has_role(current_user, d.datdba, 'USAGE') AS owns,
                    pg_get_userbyid(d.datdba)::text AS owner,
                    pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AS signals,
                    (SELECT string_agg(DISTINCT a.usename::text, ', ') FROM pg_stat_activity a JOIN pg_roles o ON o.oid = a.usesysid
                     WHERE a.datid = d.oid AND NOT pg_has_role(current_user, a.usesysid, 'MEMBER') AND NOT o.rolsuper) AS others,
                    (SELECT string_agg(DISTINCT a.usename::text, ', ') FROM pg_stat_activity a JOIN pg_roles o ON o.oid = a.usesysid
                     WHERE a.datid = d.oid AND o.rolsuper) AS supers
             FROM pg_database d JOIN pg_roles r ON r.rolname = current_user WHERE d.datname = current_database()",
        )
        .fetch_one(c)
        .await
        .map_err(failed)?;
        let flag = |column: &str| row.try_get::<bool, _>(column).map_err(failed);
        let names = |column: &str| row.try_get::<Option<String>, _>(column).map_err(failed);
        let (user, database) = (&self.config.user, &self.config.database);
        let mut findings = Vec::new();
        if flag("super")? {
            return Ok(findings);
        }
        let mut lacking = |message: String, remedy: String| {
            findings.push(Finding::blocker(
                Problem::new(Code::DatabaseDown, message).remedy(remedy),
            ));
        };
        if !flag("creates")? {
            lacking(
                format!("user {user} may not create databases, which a restore needs"),
                format!("ALTER ROLE {} CREATEDB", ident(user)),
            );
        }
        if !flag("owns")? {
            let owner: String = row.try_get("owner").map_err(failed)?;
            lacking(
                format!("user {user} may not rename {database}, which belongs to {owner}"),
                format!("GRANT {} TO {}", ident(&owner), ident(user)),
            );
        }
        if !flag("signals")?
            && let Some(others) = names("others")?
        {
            lacking(
                format!("user {user} may not end the sessions of {others} in {database}"),
                format!("GRANT pg_signal_backend TO {}", ident(user)),
            );
        }
        if let Some(supers) = names("supers")? {
            let message =
                format!("sessions of {supers} in {database} can only be ended by a superuser: they must leave first");
            findings.push(Finding::warning(Problem::new(Code::DatabaseLocked, message)));
        }
        Ok(findings)
    }

    /// Who may not become the owner of a table cannot give it to him either. A dump does not tell owners from grantees, so
    /// those are asked for who own its tables now.
    async fn owners(&self, c: &mut PgConnection, sealed: &Sealed) -> Result<Option<Finding>, sqlx::Error> {
        let tables: Vec<&str> = sealed.manifest.figures.tables.keys().map(String::as_str).collect();
        let owners: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') AND concat(n.nspname, '.', c.relname) = ANY ($1)
               AND NOT pg_has_role(current_user, c.relowner, 'MEMBER') ORDER BY 1",
        )
        .bind(&tables)
        .fetch_all(c)
        .await?;
        if owners.is_empty() {
            return Ok(None);
        }
        let (user, database) = (&self.config.user, &self.config.database);
        let message = format!(
            "user {user} may not restore tables of {database} that belong to {}",
            owners.join(", ")
        );
        let grants: Vec<String> = owners
            .iter()
            .map(|owner| format!("GRANT {} TO {}", ident(owner), ident(user)))
            .collect();
        Ok(Some(Finding::blocker(
            Problem::new(Code::RestoreFailed, message).remedy(grants.join("; ")),
        )))
    }

    /// Only a local server's disk can be seen, and its place only by those whom the server tells.
    async fn side_room(&self, c: &mut PgConnection, size: u64) -> Result<Vec<Finding>, sqlx::Error> {
        let directory: Option<String> =
            sqlx::query_scalar("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
                .fetch_optional(c)
                .await?;
        let local = self.config.host.starts_with('/') || matches!(self.config.host.as_str(), "localhost" | "127.0.0.1");
        let free = directory.filter(|_| local).and_then(|dir| free_bytes(Path::new(&dir)));
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "an estimate"
        )]
        let needed = (size as f64 * ROOM_FACTOR) as u64;
        let needs = format!(
            "restoring beside {} needs {}",
            self.config.database,
            people_bytes(needed)
        );
        Ok(match free {
            Some(free) if free < needed => {
                let message = format!("the server's disk has {} free; {needs}", people_bytes(free));
                vec![Finding::blocker(Problem::new(Code::DiskFull, message))]
            }
            Some(_) => Vec::new(),
            None => {
                let message = format!("cannot see the server's disk; {needs} there");
                vec![Finding::warning(
                    Problem::new(Code::DiskFull, message).remedy("look at the server's disk"),
                )]
            }
        })
    }
}

/// Roles and extensions that the dump names and the server has not.
async fn missing(c: &mut PgConnection, sealed: &Sealed) -> Result<Vec<Finding>, sqlx::Error> {
    let roles: Vec<&str> = sealed.manifest.roles.iter().map(String::as_str).collect();
    let extensions: Vec<&str> = sealed.manifest.extensions.keys().map(String::as_str).collect();
    let row = sqlx::query(
        "SELECT (SELECT string_agg(r, ', ') FROM unnest($1::text[]) r WHERE r NOT IN (SELECT rolname FROM pg_roles)) AS roles,
                (SELECT string_agg(e, ', ') FROM unnest($2::text[]) e
                 WHERE e NOT IN (SELECT name FROM pg_available_extensions)) AS extensions",
    )
    .bind(&roles)
    .bind(&extensions)
    .fetch_one(c)
    .await?;
    let mut findings = Vec::new();
    if let Some(roles) = row.try_get::<Option<String>, _>("roles")? {
        let message = format!(
            "backup {} needs roles that the server does not have: {roles}",
            sealed.name
        );
        let remedy = "create them: CREATE ROLE …; a restore gives them what is theirs";
        findings.push(Finding::blocker(
            Problem::new(Code::RestoreFailed, message).remedy(remedy),
        ));
    }
    if let Some(extensions) = row.try_get::<Option<String>, _>("extensions")? {
        let message = format!(
            "backup {} needs extensions that the server does not have: {extensions}",
            sealed.name
        );
        findings.push(Finding::blocker(
            Problem::new(Code::RestoreFailed, message).remedy("install their packages on the server"),
        ));
    }
    Ok(findings)
}

/// Each of them is as big as a database, and nobody else removes them.
fn grown_old(aside: &[Marked], component: &str) -> Option<Finding> {
    let first = aside.first()?;
    let shown: Vec<String> = aside.iter().take(SHOWN).map(Marked::describe).collect();
    let more = if aside.len() > SHOWN { ", …" } else { "" };
    let message = format!(
        "earlier restores put databases aside that are still there: {}{more}",
        shown.join(", ")
    );
    let remedy = format!(
        "when nobody needs it: rollback-agent database collect {component} {}",
        first.name
    );
    Some(Finding::warning(
        Problem::new(Code::DatabaseUnclear, message).remedy(remedy),
    ))
}
