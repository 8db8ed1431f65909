//! Running migrations on a database, the live one or a scratch copy: the same code for both, so that what was
//! rehearsed is what runs.
//!
//! All migrations of a leg run in **one** transaction, together with their version rows, the copy of what they take away
//! and a comparison of the schema that came out with the one that is wanted. So a leg happens whole or not at all, a
//! failure in the second migration leaves no trace of the first, and a wrong end is never committed. The price is that
//! migrations that cannot run in a transaction are refused beforehand (see [`super::sql`]).
//!
//! Locks: the transaction waits for each at most `lock_timeout`, then gives up everything it holds, lets the queries that
//! queued behind it pass, and tries again a few times. One waiting ALTER TABLE stalls every SELECT behind it.
//!
//! A server that restarts under it ends the transaction. Before COMMIT was sent nothing of it can have happened, and it
//! is begun again; after that the caller has to look ([`LegError::Unknown`]).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::catalog::Schema;
use super::config::PostgresConfig;
use super::connect::{Sessions, Settings};
use super::keep;
use super::kept::KeepError;
use super::loss::{Loss, Structure};
use super::privileges::Privileges;
use super::put_back::{Returned, Source};
use super::route::{Direction, Leg};
use super::sql_error::{server_error, sql_problem};
use super::tool_locks;
use super::versions::{Applied, Layout};

/// Times that a leg is begun before a lock that is not to be had counts as a failure.
const ATTEMPTS: u32 = 5;

/// Times that a leg is begun anew because its session was lost. A migration that brings the server down each time shall
/// not do so often.
const LOSSES: u32 = 2;

/// Longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(400);

/// Where and how to run.
#[derive(Debug)]
pub(super) struct Migrator<'a> {
    pub sessions: Sessions<'a>,
    pub config: &'a PostgresConfig,
    pub database: &'a str,
    /// Settings that the database itself does not have (a scratch copy).
    pub settings: &'a Settings,
    pub rollback_id: &'a str,
    /// The schema for what is kept.
    pub kept: String,
    pub deadline: Instant,
}

/// An attempt that failed.
struct Ended {
    stop: Stop,
    /// The session ended with it: it could not even roll back.
    lost: bool,
}

/// Why a leg did not come to its end.
#[derive(Debug)]
pub(super) enum LegError {
    /// The transaction was rolled back: everything is as before.
    RolledBack(Problem),
    /// The reply to COMMIT was lost: it may have happened or not.
    Unknown(Problem),
}

enum Stop {
    Sql(String, sqlx::Error),
    Problem(Problem),
    Commit(sqlx::Error),
    /// A migration ended our transaction: part of it may be committed.
    Escaped,
}

impl From<KeepError> for Stop {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Sql(error) => Self::Sql("keep what the migrations take away".into(), error),
            KeepError::Problem(problem) => Self::Problem(problem),
        }
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

fn sql(what: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Stop {
    let what = what.into();
    move |error| Stop::Sql(what, error)
}

impl Stop {
    /// Nothing can have been committed.
    fn is_before_commit(&self) -> bool {
        match self {
            Self::Sql(..) | Self::Problem(_) => true,
            Self::Commit(_) | Self::Escaped => false,
        }
    }

    /// Worth another attempt: the lock may be free then.
    fn is_contention(&self) -> bool {
        match self {
            Self::Sql(_, error) => server_error(error).is_some_and(|e| matches!(e.code(), "55P03" | "40P01" | "40001")),
            Self::Problem(problem) => problem.code == Code::DatabaseLocked,
            Self::Commit(_) | Self::Escaped => false,
        }
    }
}

impl Migrator<'_> {
    /// Runs a leg. `from` is the digest that the database must have when the transaction begins, if that matters. Answers
    /// with what was put back on the way up.
    pub async fn run(&self, leg: &Leg, from: Option<&str>, loss: &Loss) -> Result<Option<Returned>, LegError> {
        let (mut attempt, mut losses) = (1, 0);
        loop {
            let blockers = Mutex::new(Vec::new());
            let Ended { stop, lost } = match self.attempt(leg, from, loss, &blockers).await {
                Ok(returned) => return Ok(returned),
                Err(ended) => ended,
            };
            let pause = PAUSE.mul_f64(rand::rng().random_range(0.25..1.0));
            let in_time = Instant::now() + pause < self.deadline;
            if lost && stop.is_before_commit() && losses < LOSSES && in_time {
                losses += 1;
                tracing::info!(losses, database = self.database, "the session of a migration was lost");
                self.sessions
                    .tell("the server ended the migration's session before it was committed; trying again");
            } else if stop.is_contention() && attempt < ATTEMPTS && in_time {
                tracing::info!(
                    attempt,
                    database = self.database,
                    "migration waits for a lock; trying again"
                );
                attempt += 1;
            } else {
                let blockers = blockers.into_inner().unwrap_or_default();
                return Err(self.give_up(stop, lost, attempt, &blockers));
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn give_up(&self, stop: Stop, lost: bool, attempts: u32, blockers: &[String]) -> LegError {
        let contention = stop.is_contention();
        let problem = match stop {
            Stop::Escaped => return LegError::Unknown(escaped()),
            Stop::Problem(problem) => problem,
            Stop::Sql(what, error) => sql_problem(Code::MigrationFailed, what, &error),
            // A server that is going down may have committed before it said so.
            Stop::Commit(error) if server_error(&error).is_some() && !lost => {
                sql_problem(Code::MigrationFailed, "commit", &error)
            }
            Stop::Commit(error) => {
                return LegError::Unknown(sql_problem(
                    Code::DatabaseUnclear,
                    "the reply to COMMIT was lost",
                    &error,
                ));
            }
        };
        if !contention {
            return LegError::RolledBack(problem);
        }
        let who = if blockers.is_empty() {
            "a session that has ended since".to_owned()
        } else {
            blockers.join("; ")
        };
        let message = format!("{} ({attempts} attempts); the lock is held by {who}", problem.message);
        LegError::RolledBack(Problem::new(Code::DatabaseLocked, message))
    }

    /// One transaction from BEGIN to COMMIT. While it waits, a second session looks who holds the lock: afterwards
    /// nobody can tell any more.
    async fn attempt(
        &self,
        leg: &Leg,
        from: Option<&str>,
        loss: &Loss,
        blockers: &Mutex<Vec<String>>,
    ) -> Result<Option<Returned>, Ended> {
        let connected = self.sessions.migrator(self.database, self.settings).await;
        let mut c = connected.map_err(|problem| Ended {
            stop: problem.into(),
            // It was waited for already.
            lost: false,
        })?;
        let work = async {
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                .fetch_one(&mut c)
                .await
                .map_err(sql("begin"))?;
            tokio::select! {
                result = self.transaction(&mut c, leg, from, loss) => result,
                never = self.watch(pid, blockers) => match never {},
            }
        };
        let result = work.await;
        let mut lost = false;
        if result.is_err() {
            // Closing would roll back as well; this does so before the next attempt begins. The error is known already.
            lost = sqlx::raw_sql("ROLLBACK").execute(&mut c).await.is_err();
        }
        let _ = sqlx::Connection::close(c).await;
        result.map_err(|stop| Ended { stop, lost })
    }

    async fn transaction(
        &self,
        c: &mut PgConnection,
        leg: &Leg,
        from: Option<&str>,
        loss: &Loss,
    ) -> Result<Option<Returned>, Stop> {
        let session = self.begin(c).await?;
        let (schema, applied) = session.state(c).await?;
        if let Some(from) = from
            && schema.digest(&applied) != from
        {
            let message = "the schema is not the one that the plan was made for; nothing was changed";
            return Err(Problem::new(Code::WrongRevision, message).into());
        }
        let privileges = Privileges::read(c).await.map_err(sql("read privileges"))?;
        let source = match leg.direction {
            Direction::Down => {
                keep::keep(c, &self.kept, self.rollback_id, loss, &applied, &leg.numbers()).await?;
                Source::Nothing
            }
            Direction::Up => Source::find(c, &self.kept, &leg.numbers()).await?,
        };
        self.steps(c, &session, leg, &applied, &source).await?;
        let returned = source.put_back(c, self.rollback_id, &privileges).await?;
        privileges.give_back(c).await.map_err(sql("give back privileges"))?;
        // What a deferred constraint has to say shall not come as an answer to COMMIT.
        sqlx::raw_sql("SET CONSTRAINTS ALL IMMEDIATE")
            .execute(&mut *c)
            .await
            .map_err(sql("check constraints"))?;
        let (schema, applied) = session.state(c).await?;
        let known = leg.applied_after.iter().copied();
        if applied.set(known) != leg.applied_after {
            let message = format!(
                "after {} other migrations are applied than there should be",
                leg.names()
            );
            return Err(Problem::new(Code::MigrationFailed, message).into());
        }
        if let Some(differences) = schema.differences(&leg.schema_after) {
            let message = format!(
                "after {} the schema is not the recorded one: {differences}",
                leg.names()
            );
            return Err(Problem::new(Code::MigrationFailed, message).into());
        }
        session.still_open(c).await?;
        sqlx::raw_sql("COMMIT")
            .execute(c)
            .await
            .map(|_| returned)
            .map_err(Stop::Commit)
    }

    /// Goes down, notes what disappears, and rolls all of it back.
    pub async fn find_loss(&self, leg: &Leg) -> Result<Loss, Problem> {
        let plain = |stop| match stop {
            Stop::Sql(what, error) => sql_problem(Code::RehearsalFailed, what, &error),
            Stop::Problem(problem) => problem,
            Stop::Commit(error) => sql_problem(Code::RehearsalFailed, "roll back", &error),
            Stop::Escaped => escaped(),
        };
        let mut c = self.sessions.migrator(self.database, self.settings).await?;
        let found = async {
            let session = self.begin(&mut c).await?;
            let before = Structure::read(&mut c).await.map_err(sql("read the catalogs"))?;
            let (_, applied) = session.state(&mut c).await?;
            self.steps(&mut c, &session, leg, &applied, &Source::Nothing).await?;
            let after = Structure::read(&mut c).await.map_err(sql("read the catalogs"))?;
            session.still_open(&mut c).await?;
            sqlx::raw_sql("ROLLBACK")
                .execute(&mut c)
                .await
                .map_err(sql("roll back"))?;
            before.lost_in(&after).map_err(|why| {
                Stop::Problem(
                    Problem::new(
                        Code::RehearsalFailed,
                        format!("an undo of the rollback would lose data: {why}"),
                    )
                    .remedy("give the table a primary key, or take this migration down by hand"),
                )
            })
        }
        .await
        .map_err(plain);
        let _ = sqlx::Connection::close(c).await;
        found
    }

    async fn steps(
        &self,
        c: &mut PgConnection,
        session: &Session<'_>,
        leg: &Leg,
        applied: &Applied,
        source: &Source,
    ) -> Result<(), Stop> {
        for (i, step) in leg.steps.iter().enumerate() {
            let what = match leg.direction {
                Direction::Down => format!("migration {} down", step.name),
                Direction::Up => format!("migration {} up", step.name),
            };
            let ran = sqlx::raw_sql(AssertSqlSafe(step.sql.clone())).execute(&mut *c).await;
            ran.map_err(sql(what))?;
            session.still_open(c).await?;
            session.limits(c).await?;
            match leg.direction {
                Direction::Down => {
                    let below = match leg.steps.get(i + 1) {
                        Some(next) => Some(next.number),
                        None => leg.applied_after.iter().next_back().copied(),
                    };
                    applied.unmark(c, step.number, below).await?;
                }
                Direction::Up => {
                    if !source.version_row_back(c, applied, step.number).await? {
                        applied.mark(c, step.number, &step.digits).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn begin(&self, c: &mut PgConnection) -> Result<Session<'_>, Stop> {
        sqlx::raw_sql("BEGIN").execute(&mut *c).await.map_err(sql("begin"))?;
        let row = sqlx::query("SELECT current_setting('search_path') AS path, txid_current() AS xid")
            .fetch_one(&mut *c)
            .await
            .map_err(sql("begin"))?;
        // What COMMIT answers must outlive a crash of the server, whatever the database is content with.
        let durable = "SELECT set_config('synchronous_commit', 'local', true) \
                       WHERE current_setting('synchronous_commit') = 'off'";
        sqlx::raw_sql(durable).execute(&mut *c).await.map_err(sql("begin"))?;
        let session = Session {
            config: self.config,
            search_path: row.try_get("path").map_err(sql("begin"))?,
            transaction: row.try_get("xid").map_err(sql("begin"))?,
            statement_timeout: self
                .config
                .statement_timeout
                .min(self.deadline.saturating_duration_since(Instant::now())),
        };
        session.limits(c).await?;
        let applied = Applied::read(c, &self.config.version_table).await?;
        let (schema, table) = match &applied.layout {
            Layout::Rows(t) | Layout::Head(t) => (t.schema.as_str(), t.table.as_str()),
            Layout::Absent => ("public", self.config.version_table.as_str()),
        };
        let locked = tool_locks::take(c, self.database, schema, table).await;
        locked.map_err(sql("take the migration tools' lock"))?;
        Ok(session)
    }

    /// Never ends; notes who stands in the way of session `pid`.
    async fn watch(&self, pid: i32, blockers: &Mutex<Vec<String>>) -> std::convert::Infallible {
        let interval = self.config.lock_timeout.mul_f64(0.4).max(Duration::from_millis(20));
        tokio::time::sleep(interval).await;
        if let Ok(mut c) = self.sessions.quick().migrator(self.database, &Settings::new()).await {
            while let Ok(found) = blocking(&mut c, pid).await {
                if !found.is_empty()
                    && let Ok(mut known) = blockers.lock()
                {
                    *known = found;
                }
                tokio::time::sleep(interval).await;
            }
        }
        std::future::pending().await
    }
}

/// Sessions that hold what `pid` waits for. Their queries are not shown: they may hold data.
async fn blocking(c: &mut PgConnection, pid: i32) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT concat('pid ', a.pid, ' (', nullif(a.application_name, ''), ', user ', a.usename, ', ', a.state,
                       ' since ', to_char(coalesce(a.state_change, a.query_start), 'YYYY-MM-DD HH24:MI:SS TZ'), ')')
         FROM unnest(pg_blocking_pids($1)) AS b(pid) JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.pid",
    )
    .bind(pid)
    .fetch_all(c)
    .await
}

/// An open transaction.
struct Session<'a> {
    config: &'a PostgresConfig,
    search_path: String,
    transaction: i64,
    statement_timeout: Duration,
}

impl Session<'_> {
    /// Sets what a migration may have changed back to what it should be.
    async fn limits(&self, c: &mut PgConnection) -> Result<(), Stop> {
        sqlx::query(
            "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
                    set_config('idle_in_transaction_session_timeout', '60s', true), set_config('search_path', $3, true)",
        )
        .bind(format!("{}ms", self.config.lock_timeout.as_millis().max(1)))
        .bind(format!("{}ms", self.statement_timeout.as_millis().max(1)))
        .bind(&self.search_path)
        .execute(c)
        .await
        .map(|_| ())
        .map_err(sql("set limits"))
    }

    /// The schema and the applied migrations as this transaction sees them.
    async fn state(&self, c: &mut PgConnection) -> Result<(Schema, Applied), Stop> {
        let empty = "SELECT set_config('search_path', '', true)";
        sqlx::raw_sql(empty)
            .execute(&mut *c)
            .await
            .map_err(sql("read the schema"))?;
        let schema = Schema::read(c).await.map_err(sql("read the schema"))?;
        let applied = Applied::read(c, &self.config.version_table).await?;
        self.limits(c).await?;
        Ok((schema, applied))
    }

    /// A migration that ends our transaction (from inside a procedure, say) is found before anything builds on it.
    async fn still_open(&self, c: &mut PgConnection) -> Result<(), Stop> {
        let now: i64 = sqlx::query_scalar("SELECT txid_current()")
            .fetch_one(c)
            .await
            .map_err(sql("look at the transaction"))?;
        if now == self.transaction {
            return Ok(());
        }
        Err(Stop::Escaped)
    }
}

fn escaped() -> Problem {
    Problem::new(
        Code::DatabaseUnclear,
        "a migration ended the transaction that it ran in: part of it is committed",
    )
}
