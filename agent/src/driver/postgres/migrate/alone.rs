//! A statement that no transaction takes: `CREATE INDEX CONCURRENTLY` and its like.
//!
//! Such a statement waits for every transaction that is open when it begins, and one that is given up half-way leaves an
//! invalid index. So it is begun only when the transactions that were open a moment ago have ended: what cannot be had in
//! time fails before anything is changed, and says whose transaction it is. What is interrupted all the same is
//! recognised ([`crate::driver::postgres::travel`]), and [`Migrator::clear`] takes a leftover away before the statement is run
//! again.
//!
//! It holds the migration tools' locks for its session, by asking and not by waiting: a session that waits for a lock would
//! itself be one of those that the statement waits for. Leaves out: poolers in transaction mode, which cannot carry a
//! session.

use std::time::{Duration, Instant};

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::session::WHO;
use super::{Job, LegError, Migrator, Ran};
use crate::driver::postgres::catalog::Schema;
use crate::driver::postgres::connect::run;
use crate::driver::postgres::integrity;
use crate::driver::postgres::route::Single;
use crate::driver::postgres::sql_error::{is_passing, server_error, sql_problem};
use crate::driver::postgres::tool;
use crate::driver::postgres::tool_locks;
use crate::driver::postgres::travel::Waypoint;
use crate::driver::postgres::versions::{Applied, Layout};

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Of the time that a step has left, what waiting for other transactions may take.
const WAITING: f64 = 0.5;

/// Of the time that a step has left, what the statement may take. The rest is for clearing up.
const RUNNING: f64 = 0.8;

/// How long taking an invalid index away may take.
const CLEARING: Duration = Duration::from_secs(10);

impl Migrator<'_> {
    pub(super) async fn run_alone(&self, job: Job<'_>, single: &Single, checks: &[String]) -> Result<Ran, LegError> {
        let mut c = self
            .sessions
            .migrator(self.database, self.settings)
            .await
            .map_err(LegError::RolledBack)?;
        let prepared = self.prepare(&mut c, job, single, checks).await;
        if let Err(problem) = prepared {
            let _ = sqlx::Connection::close(c).await;
            return Err(LegError::RolledBack(problem));
        }
        kill_point::pass(|| format!("migrate.alone.{}", job.part + 1));
        let ran = sqlx::raw_sql(AssertSqlSafe(single.sql.clone())).execute(&mut c).await;
        kill_point::pass(|| format!("migrate.ran.{}", job.part + 1));
        let _ = sqlx::Connection::close(c).await;
        if let Err(error) = ran {
            let heard = server_error(&error).is_some() && !is_passing(&error);
            let code = if heard {
                Code::MigrationFailed
            } else {
                Code::DatabaseUnclear
            };
            let problem = sql_problem(code, job.name(), &error);
            let timed_out = server_error(&error).is_some_and(|e| e.code() == "57014");
            return Err(LegError::Unknown(if timed_out {
                Problem::new(
                    Code::DatabaseLocked,
                    format!("{}; it was not done in time", problem.message),
                )
            } else {
                problem
            }));
        }
        let end = self.look(job).await.map_err(LegError::Unknown)?;
        match self.compare(job, &end) {
            Ok(()) => Ok(Ran { returned: None, end }),
            Err(problem) => Err(LegError::Unknown(problem)),
        }
    }

    /// Everything that can be in the way of the statement is looked at while nothing has been changed.
    async fn prepare(
        &self,
        c: &mut PgConnection,
        job: Job<'_>,
        single: &Single,
        checks: &[String],
    ) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::MigrationFailed, "begin", &e);
        if let Some(from) = job.from
            && self.look(job).await? != *from
        {
            let message = "the schema is not the one that the plan was made for; nothing was changed";
            return Err(Problem::new(Code::WrongRevision, message));
        }
        for (i, question) in checks.iter().enumerate() {
            run(c, "BEGIN READ ONLY".to_owned()).await.map_err(failed)?;
            integrity::one(c, &format!("{}, check-before {}", job.name(), i + 1), question).await?;
            run(c, "ROLLBACK".to_owned()).await.map_err(failed)?;
        }
        let until = Instant::now() + self.time_left().mul_f64(WAITING);
        self.take_locks(c, until).await?;
        self.wait_for_others(c, until).await?;
        for setting in &single.prelude {
            run(c, setting.clone()).await.map_err(failed)?;
        }
        // Its locks stall nobody: it may wait for them. Without CONCURRENTLY they may stall everybody.
        let lock_timeout = if single.sql.to_ascii_uppercase().contains("CONCURRENTLY") {
            Duration::ZERO
        } else {
            self.lock_timeout()
        };
        self.limit(c, lock_timeout, self.time_left().mul_f64(RUNNING))
            .await
            .map_err(failed)
    }

    fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    async fn limit(&self, c: &mut PgConnection, lock: Duration, statement: Duration) -> Result<(), sqlx::Error> {
        let limit = format!(
            "SET lock_timeout = {}; SET statement_timeout = {}",
            lock.as_millis(),
            statement.as_millis().max(1)
        );
        run(c, limit).await
    }

    /// The locks of the migration tools, for the session.
    async fn take_locks(&self, c: &mut PgConnection, until: Instant) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::MigrationFailed, "take the migration tools' lock", &e);
        let applied = Applied::read(c, &self.config.version_table).await?;
        let (schema, table) = match &applied.layout {
            Layout::Rows(t) | Layout::Head(t) => (t.schema.as_str(), t.table.as_str()),
            Layout::Absent | Layout::Named => ("public", self.config.version_table.as_str()),
        };
        loop {
            if tool_locks::try_for_session(c, self.database, schema, table)
                .await
                .map_err(failed)?
            {
                return Ok(());
            }
            if Instant::now() >= until {
                let message = format!("another migration of {} is running; nothing was changed", self.database);
                return Err(Problem::new(Code::DatabaseLocked, message));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for the end of every transaction of this database that is open now.
    async fn wait_for_others(&self, c: &mut PgConnection, until: Instant) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::MigrationFailed, "look for open transactions", &e);
        // Locks are shown to everybody; when a transaction began is shown of one's own roles only.
        let query = format!(
            "SELECT l.virtualtransaction AS transaction, {WHO} AS who
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid()
               AND a.datname = current_database() AND a.usesysid IS NOT NULL
               AND coalesce(a.backend_type, 'client backend') = 'client backend'
             ORDER BY a.pid"
        );
        let mut first: Option<Vec<String>> = None;
        let mut told = false;
        loop {
            let rows = sqlx::query(AssertSqlSafe(query.clone()))
                .fetch_all(&mut *c)
                .await
                .map_err(failed)?;
            let mut open: Vec<(String, String)> = Vec::new();
            for row in &rows {
                open.push((
                    row.try_get("transaction").map_err(failed)?,
                    row.try_get("who").map_err(failed)?,
                ));
            }
            let first = first.get_or_insert_with(|| open.iter().map(|(t, _)| t.clone()).collect());
            open.retain(|(transaction, _)| first.contains(transaction));
            if open.is_empty() {
                return Ok(());
            }
            let who: Vec<String> = open.into_iter().map(|(_, who)| who).take(5).collect();
            if Instant::now() >= until {
                let message = format!(
                    "a statement that cannot run in a transaction has to wait for those that are open, and these did not \
                     end in time: {}; nothing was changed by it",
                    who.join("; ")
                );
                return Err(Problem::new(Code::DatabaseLocked, message)
                    .remedy("end these sessions (pg_terminate_backend), or wait for them, and try again"));
            }
            if !told {
                self.sessions
                    .tell(format!("waiting for open transactions to end: {}", who.join("; ")));
                told = true;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where the database is, read in a session of its own.
    pub async fn look(&self, job: Job<'_>) -> Result<Waypoint, Problem> {
        let failed = |e| sql_problem(Code::DatabaseUnclear, "read the schema", &e);
        let mut c = self.sessions.reader(self.database).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned();
        run(&mut c, begin).await.map_err(failed)?;
        let schema = Schema::read(&mut c).await.map_err(failed)?;
        let applied = tool::applied(self.config, self.component, &mut c, self.database).await?;
        let _ = sqlx::Connection::close(c).await;
        self.waypoint(job.leg, schema, &applied)
    }

    /// Takes invalid indexes away that an interrupted statement was making. Names are quoted already.
    pub async fn clear(&self, indexes: &[String]) -> Result<(), Problem> {
        let what = || format!("take the invalid index {} away", indexes.join(", "));
        let failed = |e| sql_problem(Code::DatabaseLocked, what(), &e);
        let mut c = self.sessions.migrator(self.database, self.settings).await?;
        let limit = self.time_left().min(CLEARING);
        let cleared = async {
            self.limit(&mut c, Duration::ZERO, limit).await.map_err(failed)?;
            for index in indexes {
                run(&mut c, format!("DROP INDEX CONCURRENTLY IF EXISTS {index}"))
                    .await
                    .map_err(failed)?;
            }
            Ok(())
        }
        .await;
        let _ = sqlx::Connection::close(c).await;
        cleared
    }
}
