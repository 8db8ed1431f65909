//! Running the parts of a leg on a database, the live one or a scratch copy: the same code for both, so that what was
//! rehearsed is what runs.
//!
//! A part that is a transaction ([`Migrator::run`]) holds some migrations, their version rows, the copy of what they take
//! away or the return of it, and a comparison of the state that came out with the waypoint that is wanted. So it happens
//! whole or not at all, a failure in its second migration leaves no trace of the first, and a wrong end is never
//! committed. Most legs are one such part. A statement that no transaction takes runs by itself ([`alone`]), and the
//! project's own tool does so, too ([`by_tool`]).
//!
//! What a part takes away is kept in its own transaction, which holds the locks to its end: nothing is written between the
//! copy and the drop, also by writers that nobody stopped. Between two parts everybody may write; what is written then to
//! something that a later part takes away is kept by that later part.
//!
//! Locks: the transaction waits for each at most `lock_timeout`, then gives up everything it holds, lets the queries that
//! queued behind it pass, and tries again a few times. One waiting ALTER TABLE stalls every SELECT behind it. An autovacuum
//! that is in the way is waited for a little longer than `deadlock_timeout`: then the server sends it away, and not before.
//!
//! A server that restarts under it ends the transaction. Before COMMIT was sent nothing of it can have happened, and it
//! is begun again; after that the caller has to look ([`LegError::Unknown`]).

mod alone;
mod by_tool;
mod session;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use self::session::{InTheWay, Session, in_the_way};
use super::catalog::Schema;
use super::config::PostgresConfig;
use super::connect::{Sessions, Settings};
use super::forms::Forms;
use super::integrity;
use super::keep;
use super::kept::KeepError;
use super::loss::{Loss, Structure};
use super::privileges::Privileges;
use super::put_back::{Returned, Source};
use super::route::{Direction, Leg, Part, Step};
use super::sql_error::{server_error, sql_problem};
use super::travel::Waypoint;
use super::versions::Applied;

/// Times that a part is begun before a lock that is not to be had counts as a failure.
const ATTEMPTS: u32 = 5;

/// Times that a part is begun anew because its session was lost. A migration that brings the server down each time shall
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
    /// What is restored there prints some things otherwise: the two forms of the same schema.
    pub copy: Option<Copy<'a>>,
    pub component: &'a str,
    pub rollback_id: &'a str,
    /// The schema for what is kept.
    pub kept: String,
    pub deadline: Instant,
}

/// A schema where it came from, and as it was when it had been restored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy<'a> {
    pub live: &'a Schema,
    pub restored: &'a Schema,
}

/// One part of a leg, with what must hold before and after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    pub leg: &'a Leg,
    /// Its place in the leg.
    pub part: usize,
    /// Where the database must be when it begins, if that matters.
    pub from: Option<&'a Waypoint>,
    /// Where it must be when it ends; `None`: wherever the part leads, which is what a rehearsal finds out.
    pub to: Option<&'a Waypoint>,
    /// What it takes away.
    pub loss: &'a Loss,
}

impl<'a> Job<'a> {
    fn part(&self) -> Option<&'a Part> {
        self.leg.parts.get(self.part)
    }

    fn name(&self) -> String {
        self.part().map(|p| self.leg.describe(p)).unwrap_or_default()
    }

    fn is_last(&self) -> bool {
        self.part + 1 == self.leg.parts.len()
    }

    /// Whether an earlier part of the leg may have kept something already.
    fn may_follow_others(&self) -> bool {
        self.part > 0
    }
}

/// A part that came to its end.
#[derive(Debug, Default)]
pub(super) struct Ran {
    /// What was put back by it.
    pub returned: Option<Returned>,
    pub end: Waypoint,
}

/// An attempt that failed.
struct Ended {
    stop: Stop,
    /// The session ended with it: it could not even roll back.
    lost: bool,
}

/// Why a part did not come to its end.
#[derive(Debug)]
pub(super) enum LegError {
    /// Nothing of it took effect: everything is as it was before the part.
    RolledBack(Problem),
    /// The reply to COMMIT was lost, or a statement outside of a transaction failed: it may have happened or not.
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
    /// Runs one part of a leg.
    pub async fn run(&self, job: Job<'_>) -> Result<Ran, LegError> {
        if let Some(Part::Alone { step, statement }) = job.part()
            && let Some(step) = job.leg.steps.get(*step)
            && let Some(single) = step.alone.get(*statement)
            && single.autocommit
        {
            let checks: &[String] = if *statement == 0 { &step.checks_before } else { &[] };
            return self.run_alone(job, single, checks).await;
        }
        if job.part() == Some(&Part::Tool) {
            return self.run_tool(job).await;
        }
        let (mut attempt, mut losses, mut outlasting) = (1, 0, false);
        loop {
            let blockers = Mutex::default();
            let Ended { stop, lost } = match self.attempt(job, outlasting, &blockers).await {
                Ok(ran) => return Ok(ran),
                Err(ended) => ended,
            };
            let blockers = blockers.into_inner().unwrap_or_default();
            outlasting |= blockers.autovacuum;
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
                return Err(self.give_up(stop, lost, attempt, &blockers.who));
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
    async fn attempt(&self, job: Job<'_>, outlasting: bool, blockers: &Mutex<InTheWay>) -> Result<Ran, Ended> {
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
                result = self.transaction(&mut c, job, outlasting) => result,
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

    async fn transaction(&self, c: &mut PgConnection, job: Job<'_>, outlasting: bool) -> Result<Ran, Stop> {
        let leg = job.leg;
        let session = self.begin(c, outlasting).await?;
        let (schema, applied) = session.state(c).await?;
        if let Some(from) = job.from
            && self.waypoint(leg, schema, &applied)? != *from
        {
            let message = "the schema is not the one that the plan was made for; nothing was changed";
            return Err(Problem::new(Code::WrongRevision, message).into());
        }
        let privileges = Privileges::read(c).await.map_err(sql("read privileges"))?;
        let source = match leg.direction {
            Direction::Down => {
                let place = keep::Place {
                    schema: &self.kept,
                    rollback_id: self.rollback_id,
                    numbers: &leg.numbers(),
                    adds: job.may_follow_others(),
                };
                keep::keep(c, place, job.loss, &applied).await?;
                kill_point::pass(|| "migrate.kept".to_owned());
                Source::Nothing
            }
            Direction::Up => Source::find(c, &self.kept, &leg.numbers()).await?,
        };
        self.part(c, &session, job, &applied, &source).await?;
        let returned = source.put_back(c, self.rollback_id, &privileges, leg.parts.len() == 1, job.is_last());
        let returned = returned.await?;
        session.settle(c, &privileges).await?;
        if job.is_last() {
            integrity::ask_within(c, self.config).await?;
        }
        let (schema, applied) = session.state(c).await?;
        let end = self.waypoint(leg, schema, &applied)?;
        self.compare(job, &end)?;
        session.still_open(c).await?;
        kill_point::pass(|| "migrate.before_commit".to_owned());
        sqlx::raw_sql("COMMIT").execute(c).await.map_err(Stop::Commit)?;
        kill_point::pass(|| "migrate.after_commit".to_owned());
        Ok(Ran { returned, end })
    }

    /// What was seen, as the live database would show it.
    fn waypoint(&self, leg: &Leg, schema: Schema, applied: &Applied) -> Result<Waypoint, Problem> {
        let known = leg.applied_after.iter().copied().chain(leg.numbers());
        let schema = match self.copy {
            Some(copy) => schema.in_live_form(copy.live, copy.restored),
            None => schema,
        };
        Ok(Waypoint {
            applied: applied.set(known),
            schema: Forms::load(self.config)?.recorded(schema),
        })
    }

    fn compare(&self, job: Job<'_>, end: &Waypoint) -> Result<(), Problem> {
        let Some(wanted) = job.to else { return Ok(()) };
        let name = job.name();
        if end.applied != wanted.applied {
            let message = format!("after {name} other migrations are applied than there should be");
            return Err(Problem::new(Code::MigrationFailed, message));
        }
        match end.schema.differences(&wanted.schema) {
            None => Ok(()),
            Some(differences) => {
                let which = if job.is_last() { "recorded" } else { "rehearsed" };
                let message = format!("after {name} the schema is not the {which} one: {differences}");
                Err(Problem::new(Code::MigrationFailed, message))
            }
        }
    }

    /// Runs a part that goes down, notes what disappears, and rolls all of it back.
    pub async fn find_loss(&self, job: Job<'_>) -> Result<Loss, Problem> {
        let plain = |stop| match stop {
            Stop::Sql(what, error) => sql_problem(Code::RehearsalFailed, what, &error),
            Stop::Problem(problem) => problem,
            Stop::Commit(error) => sql_problem(Code::RehearsalFailed, "roll back", &error),
            Stop::Escaped => escaped(),
        };
        let mut c = self.sessions.migrator(self.database, self.settings).await?;
        let found = async {
            let session = self.begin(&mut c, false).await?;
            let before = Structure::read(&mut c).await.map_err(sql("read the catalogs"))?;
            let (_, applied) = session.state(&mut c).await?;
            self.part(&mut c, &session, job, &applied, &Source::Nothing).await?;
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

    /// What a part runs, inside the open transaction.
    async fn part(
        &self,
        c: &mut PgConnection,
        session: &Session<'_>,
        job: Job<'_>,
        applied: &Applied,
        source: &Source,
    ) -> Result<(), Stop> {
        let steps = &job.leg.steps;
        match job.part() {
            None | Some(Part::Tool) => Ok(()),
            Some(Part::Together(range)) => {
                for i in range.clone() {
                    let Some(step) = steps.get(i) else { continue };
                    let of = format!("migration {} {}", step.name, job.leg.direction.word());
                    session
                        .check(c, &step.checks_before, &format!("{of}, check-before"))
                        .await?;
                    self.send(c, session, &step.sql, of.clone()).await?;
                    kill_point::pass(|| format!("migrate.ran.{}", i + 1));
                    session
                        .check(c, &step.checks_after, &format!("{of}, check-after"))
                        .await?;
                    self.note(c, job.leg, i, step, applied, source).await?;
                }
                Ok(())
            }
            Some(Part::Alone { step, statement }) => {
                let Some(step) = steps.get(*step) else { return Ok(()) };
                let Some(single) = step.alone.get(*statement) else {
                    return Ok(());
                };
                let of = format!("migration {} {}", step.name, job.leg.direction.word());
                if *statement == 0 {
                    session
                        .check(c, &step.checks_before, &format!("{of}, check-before"))
                        .await?;
                }
                for setting in &single.prelude {
                    let sent = sqlx::raw_sql(AssertSqlSafe(setting.clone())).execute(&mut *c).await;
                    sent.map_err(sql(of.clone()))?;
                }
                session.limits(c).await?;
                self.send(c, session, &single.sql, of).await
            }
            Some(Part::Note(i)) => {
                let Some(step) = steps.get(*i) else { return Ok(()) };
                let of = format!("migration {} {}", step.name, job.leg.direction.word());
                session
                    .check(c, &step.checks_after, &format!("{of}, check-after"))
                    .await?;
                let noted = applied.set(job.leg.numbers().into_iter()).contains(&step.number);
                if noted == (job.leg.direction == Direction::Up) {
                    // The other leg was left in the midst of this migration, and never came to its note.
                    return Ok(());
                }
                self.note(c, job.leg, *i, step, applied, source).await
            }
        }
    }

    async fn send(&self, c: &mut PgConnection, session: &Session<'_>, text: &str, what: String) -> Result<(), Stop> {
        let ran = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&mut *c).await;
        ran.map_err(sql(what))?;
        session.still_open(c).await?;
        session.limits(c).await
    }

    /// The version row of a migration that was run.
    async fn note(
        &self,
        c: &mut PgConnection,
        leg: &Leg,
        place: usize,
        step: &Step,
        applied: &Applied,
        source: &Source,
    ) -> Result<(), Stop> {
        match leg.direction {
            Direction::Down => {
                let below = match leg.steps.get(place + 1) {
                    Some(next) => Some(next.number),
                    None => leg.applied_after.iter().next_back().copied(),
                };
                applied.unmark(c, step.number, below, step.notes_itself).await?;
            }
            Direction::Up => {
                if !source.version_row_back(c, applied, step.number).await? {
                    applied.mark(c, step.number, &step.digits).await?;
                }
            }
        }
        Ok(())
    }

    /// Never ends; notes who stands in the way of session `pid`.
    async fn watch(&self, pid: i32, blockers: &Mutex<InTheWay>) -> std::convert::Infallible {
        let interval = self.config.lock_timeout.mul_f64(0.4).max(Duration::from_millis(20));
        tokio::time::sleep(interval).await;
        if let Ok(mut c) = self.sessions.quick().migrator(self.database, &Settings::new()).await {
            while let Ok(found) = in_the_way(&mut c, pid).await {
                if !found.who.is_empty()
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

fn escaped() -> Problem {
    Problem::new(
        Code::DatabaseUnclear,
        "a migration ended the transaction that it ran in: part of it is committed",
    )
}
