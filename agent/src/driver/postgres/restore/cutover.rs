//! `switch`: the two databases exchange their names, in either direction.
//!
//! In this order, so that a kill leaves one of two standings behind, with connections disallowed or not:
//! sessions for counting are opened; connections are disallowed; everybody else is sent away; the loss is counted, while
//! nobody can write, and compared with what was agreed to (who agreed to any loss does not wait for that: `finish` counts it
//! in the database that was put aside, where nobody writes either); then two renames, the marks and the permission to connect come
//! in **one** transaction. Read-only mode would not do: every session can leave it.
//!
//! Whatever goes wrong before the transaction is committed, connections are allowed again. A server that restarts in
//! between is waited for, and the exchange is begun anew.

use std::time::{Duration, Instant};

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::carry::Properties;
use super::mark::{Mark, What};
use super::sessions::{obstacles, send_away, subscriptions};
use super::{Basis, Note, Place, Standing, cost};
use crate::driver::postgres::connect::{ident, run};
use crate::driver::postgres::restore::cost::Cost;
use crate::driver::postgres::sql_error::{is_passing, server_error, sql_problem};
use crate::driver::postgres::staging::Staging;
use crate::driver::postgres::{PostgresDriver, State, integrity};
use crate::driver::{Done, Failure};
use crate::step::StepContext;
use crate::words::count_of;

/// Sessions that count at the same time.
pub(super) const COUNTERS: usize = 4;

/// How long counting may keep everybody out. After that the loss is unknown.
pub(super) const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// How long to wait for the sessions of others to end.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// Attempts to rename while somebody holds a lock on one of the databases, or is half inside.
const RENAMES: u32 = 4;

/// Exchanges that are begun anew because the server ended the session.
const LOSSES: u32 = 2;

/// What the server says of a lock that was not to be had in time.
const LOCK_TIMEOUT: &str = "SQLSTATE 55P03";

/// Left of a step's time for allowing connections again.
const RESERVE: Duration = Duration::from_secs(5);

/// Why an exchange did not come to its end.
struct Stop {
    problem: Problem,
    /// The server went away: another attempt may succeed.
    passing: bool,
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            passing: false,
        }
    }
}

fn stop(what: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Stop {
    let what = what.into();
    move |error| Stop {
        passing: is_passing(&error),
        problem: sql_problem(Code::RestoreFailed, what, &error),
    }
}

fn point(step: &StepContext, name: &str) {
    kill_point::pass(|| format!("{}restore.{name}", if step.undo { "undo." } else { "" }));
}

impl PostgresDriver {
    pub(in crate::driver::postgres) async fn restore_switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let Some(mut note) = self.note(step)? else {
            return self.switch_without_note(step).await;
        };
        let want = if step.undo { Place::Before } else { Place::Exchanged };
        let staging = self.restore_staging(step);
        let mut losses = 0;
        loop {
            let standing = self.standing_of(step, &note).await?;
            if standing.place == want {
                return self.arrive(step, &mut note, &staging, &standing).await;
            }
            let limit = step.time_left().saturating_sub(RESERVE).max(Duration::from_secs(1));
            let exchange = Box::pin(self.exchange(step, &mut note, &staging, &standing));
            let stopped = match tokio::time::timeout(limit, exchange).await {
                Ok(Ok(())) => continue,
                Ok(Err(stopped)) => stopped,
                Err(_) => Problem::new(Code::StepTimeout, "the databases could not be exchanged in time").into(),
            };
            if stopped.passing && losses < LOSSES && !step.time_left().is_zero() {
                losses += 1;
                step.progress(format!("{}; trying again", stopped.problem.message));
                continue;
            }
            return self.take_back(step, &mut note, &staging, want, stopped.problem).await;
        }
    }

    async fn standing_of(&self, step: &StepContext, note: &Note) -> Result<Standing, Failure> {
        let look = async {
            let mut c = self.connector.patient(step).maintenance().await?;
            let standing = note.standing(&mut c).await;
            let _ = sqlx::Connection::close(c).await;
            standing
        };
        step.operation("look_at_databases", look).await.map_err(|problem| {
            if problem.code == Code::DatabaseUnclear {
                Failure::Indeterminate(problem)
            } else {
                Failure::Failed(problem)
            }
        })
    }

    /// From one standing to the other. An error leaves connections disallowed, or not.
    async fn exchange(
        &self,
        step: &StepContext,
        note: &mut Note,
        staging: &Staging,
        standing: &Standing,
    ) -> Result<(), Stop> {
        let database = self.config.database.clone();
        let sessions = self.connector.patient(step);
        let forward = standing.place == Place::Before;
        let Some(other) = standing.other.clone() else {
            let gone = if forward { &note.side_name } else { &note.before_name };
            return Err(Problem::new(Code::RestoreFailed, format!("database {gone} is gone")).into());
        };
        let expected = if forward { &note.side_name } else { &note.before_name };
        if &other != expected {
            let message = format!("{expected} is now called {other}: it was live for a while, or somebody renamed it");
            return Err(Problem::new(Code::RestoreFailed, message)
                .remedy("start a new rollback")
                .into());
        }
        let live = if forward { note.live } else { note.side };
        let mut c = sessions.maintenance().await?;
        if !standing.open {
            if !note.holding {
                let message = format!("database {database} accepts no connections: somebody disallowed them");
                return Err(Problem::new(Code::DatabaseLocked, message).into());
            }
            // An earlier attempt was cut off. Counting needs sessions; whoever slips in is sent away and counted.
            self.allow(&mut c).await?;
        }
        let decides = !forward || !cost::is_any(step.consent.as_ref());
        let wanted = if decides { COUNTERS } else { 1 };
        let (mut counters, pids) = step
            .operation("connect", self.counters(step, &database, wanted))
            .await?;
        let Some(first) = counters.first_mut() else {
            return Err(Problem::new(Code::Internal, "no session was opened for counting").into());
        };
        let check = step.operation("read_schema", self.may_exchange(step, first, forward));
        // Somebody who holds a lock on a table goes with the others, and then it is asked again.
        let checked = match check.await {
            Ok(()) => true,
            Err(problem) if problem.code == Code::DatabaseLocked && problem.message.contains(LOCK_TIMEOUT) => false,
            Err(problem) => return Err(problem.into()),
        };
        if forward {
            // They may have been changed since they were carried over. Nobody waits for it yet.
            note.properties = Properties::read(&mut c, live)
                .await
                .map_err(stop("read the settings of the live database"))?;
            note.properties.put_on(&mut c, &other).await?;
            // An earlier exchange that was taken back may have counted.
            note.cost = None;
        }
        note.holding = true;
        note.save(staging)?;
        point(step, "noted");
        let begun = Instant::now();
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", ident(&database));
        step.operation("disallow", run(&mut c, sql))
            .await
            .map_err(stop(format!("disallow connections to {database}")))?;
        point(step, "disallowed");
        let gone = send_away(&mut c, live, &pids, sessions.within(LEAVE_LIMIT));
        let ended = step.operation("terminate", gone).await?;
        point(step, "terminated");
        if !checked && let Some(first) = counters.first_mut() {
            step.operation("read_schema", self.may_exchange(step, first, forward))
                .await?;
        }
        step.progress(format!("{} ended", count_of(ended, "session", "sessions")));
        if decides {
            let counted = self.count_now(step, note, &mut counters, forward).await?;
            point(step, "counted");
            if forward {
                counted.allowed(step.consent.as_ref(), &database, &note.backup)?;
                note.cost = Some(counted);
            } else {
                note.undone = Some(counted);
            }
            note.save(staging)?;
        }
        for counter in counters {
            let _ = sqlx::Connection::close(counter).await;
        }
        // Ours end last; one that was cut off inside a query has to be sent away, too.
        let gone = send_away(&mut c, live, &[], sessions.within(LEAVE_LIMIT));
        step.operation("terminate", gone).await?;
        step.operation("rename", self.rename(&mut c, note, forward, &other))
            .await?;
        point(step, "renamed");
        step.progress(format!(
            "exchanged; {database} accepted no connections for {} ms",
            begun.elapsed().as_millis()
        ));
        let _ = sqlx::Connection::close(c).await;
        Ok(())
    }

    /// Counts while nobody but us is in the live database.
    async fn count_now(
        &self,
        step: &StepContext,
        note: &Note,
        counters: &mut [PgConnection],
        forward: bool,
    ) -> Result<Cost, Stop> {
        step.progress("counting what was written");
        let counting = async {
            let work = self.lost(note, counters, forward);
            match tokio::time::timeout(COUNT_LIMIT, work).await {
                Ok(counted) => counted,
                Err(_) => Ok(Cost::unknown(format!(
                    "counting took longer than {} s",
                    COUNT_LIMIT.as_secs()
                ))),
            }
        };
        match step.operation("count_loss", counting).await {
            Ok(counted) => Ok(counted),
            // Only a server that is still there can say that it cannot count.
            Err(e) if is_passing(&e) => Err(stop("count what was written")(e)),
            Err(e) => Ok(cost::or_unknown(Err(e))),
        }
    }

    /// Is the live database the one that the step begins with, and does nothing forbid to exchange it? Does not wait for
    /// long for somebody who holds a lock.
    async fn may_exchange(&self, step: &StepContext, c: &mut PgConnection, forward: bool) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, "look for what forbids an exchange", &e);
        run(c, "SET lock_timeout = '1s'".to_owned()).await.map_err(failed)?;
        if forward {
            let state = match self.state_on(c).await {
                Ok(state) => state,
                Err(problem) => {
                    // A reader that was stopped by a lock is asked again, and must not be inside a transaction then.
                    run(c, "ROLLBACK".to_owned()).await.map_err(failed)?;
                    return Err(problem);
                }
            };
            if state.digest != step.from.digest {
                return Err(self.moved(&state, step));
            }
        }
        let mut found = obstacles(c, &self.config.database).await.map_err(failed)?;
        found.extend(subscriptions(c, &self.config.database).await.map_err(failed)?);
        found.into_iter().next().map_or(Ok(()), Err)
    }

    /// Sessions for counting in a database, and their process ids. One there has to be.
    pub(super) async fn counters(
        &self,
        step: &StepContext,
        database: &str,
        wanted: usize,
    ) -> Result<(Vec<PgConnection>, Vec<i32>), Problem> {
        let mut counters = vec![self.connector.patient(step).reader(database).await?];
        let more = (1..wanted).map(|_| async { self.connector.quick().reader(database).await });
        counters.extend(futures::future::join_all(more).await.into_iter().flatten());
        let mut pids = Vec::new();
        for counter in &mut counters {
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                .fetch_one(counter)
                .await
                .map_err(|e| sql_problem(Code::DatabaseDown, "open sessions for counting", &e))?;
            pids.push(pid);
        }
        Ok((counters, pids))
    }

    /// Counts what the exchange takes away.
    pub(super) async fn lost(
        &self,
        note: &Note,
        counters: &mut [PgConnection],
        forward: bool,
    ) -> Result<Cost, sqlx::Error> {
        if !forward {
            return cost::count(counters, &note.restored, &note.backup_rows).await;
        }
        match &note.basis {
            Basis::Horizon(horizon) => cost::count(counters, horizon, &note.backup_rows).await,
            Basis::Compared { cost, since, rows } => {
                let later = cost::count(counters, since, rows).await?;
                Ok(cost.clone().plus(&later))
            }
            Basis::Unknown(why) => Ok(Cost::unknown(why.clone())),
        }
    }

    /// Everything that the exchange is, whole or not at all.
    async fn rename(&self, c: &mut PgConnection, note: &Note, forward: bool, other: &str) -> Result<(), Stop> {
        let database = &self.config.database;
        let mark = |what| Mark::new(what, &self.component, database, &note.rollback_id, &note.backup);
        let (aside, marked) = if forward {
            (&note.before_name, mark(What::Before))
        } else if note.undone.as_ref().is_some_and(Cost::is_nothing) {
            (&note.side_name, mark(What::Side))
        } else {
            (&note.undone_name, mark(What::Undone))
        };
        let statements = [
            "BEGIN".to_owned(),
            "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '15s'".to_owned(),
            format!("ALTER DATABASE {} RENAME TO {}", ident(database), ident(aside)),
            marked.statement(aside),
            format!("ALTER DATABASE {} RENAME TO {}", ident(other), ident(database)),
            note.properties.comment_statement(database),
            format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(database)),
            "COMMIT".to_owned(),
        ];
        let mut attempt = 1;
        loop {
            let mut result = Ok(());
            for statement in &statements {
                result = run(c, statement.clone()).await;
                if result.is_err() {
                    break;
                }
            }
            let Err(error) = result else { return Ok(()) };
            // The session may be gone, and the transaction with it.
            let _ = run(c, "ROLLBACK".to_owned()).await;
            let busy = server_error(&error).is_some_and(|e| matches!(e.code(), "55006" | "55P03" | "40P01"));
            if !busy || attempt == RENAMES {
                return Err(stop(format!("exchange {database} and {other}"))(error));
            }
            attempt += 1;
            let live = if forward { note.live } else { note.side };
            for oid in [live, if forward { note.side } else { note.live }] {
                send_away(c, oid, &[], Instant::now() + Duration::from_secs(1)).await?;
            }
        }
    }

    /// The standing that was wanted: opens the database if it is closed, and looks whether it is what it should be.
    async fn arrive(
        &self,
        step: &StepContext,
        note: &mut Note,
        staging: &Staging,
        standing: &Standing,
    ) -> Result<Done, Failure> {
        if !standing.open && note.holding {
            let mut c = self.connector.patient(step).maintenance().await?;
            step.operation("allow", self.allow(&mut c))
                .await
                .map_err(Failure::Indeterminate)?;
            let _ = sqlx::Connection::close(c).await;
        }
        if note.holding {
            note.holding = false;
            note.save(staging)?;
        }
        point(step, "allowed");
        if step.undo {
            let state = step
                .operation("smoke_test", self.state(self.connector.patient(step)))
                .await?;
            return Ok(Done::at(state.revision(), note.taken_back()));
        }
        let state = match step.operation("smoke_test", self.smoke(step)).await {
            Ok(state) => state,
            Err(problem) => return self.exchange_back(step, note, staging, problem).await,
        };
        Ok(Done {
            loss: Some(Box::new(note.loss())),
            ..Done::at(state.revision(), note.exchanged(standing))
        })
    }

    /// The database that has the name now: can be connected to, has the target's schema, and keeps what was asked of it.
    /// A session that is lost while it looks says nothing of the database: it is replaced.
    async fn smoke(&self, step: &StepContext) -> Result<State, Problem> {
        let mut losses = 0;
        loop {
            let mut c = self.connector.patient(step).live().await?;
            let seen = self.smoke_on(step, &mut c).await;
            let lost = seen.is_err() && sqlx::Connection::ping(&mut c).await.is_err();
            let _ = sqlx::Connection::close(c).await;
            if !lost || losses == LOSSES {
                return seen;
            }
            losses += 1;
        }
    }

    async fn smoke_on(&self, step: &StepContext, c: &mut PgConnection) -> Result<State, Problem> {
        let state = self.state_on(c).await?;
        if state.digest != step.to.digest {
            let message = format!(
                "after the exchange {} is at {} and not at {}",
                self.config.database, state.version, step.to.version
            );
            return Err(Problem::new(Code::RestoreFailed, message));
        }
        integrity::ask(c, &self.config).await?;
        Ok(state)
    }

    /// What was exchanged is not good: back at once.
    async fn exchange_back(
        &self,
        step: &StepContext,
        note: &mut Note,
        staging: &Staging,
        problem: Problem,
    ) -> Result<Done, Failure> {
        let unclear = |more: &Problem| {
            let message = format!(
                "{}; and the exchange could not be taken back: {}",
                problem.message, more.message
            );
            Failure::Indeterminate(Problem::new(Code::DatabaseUnclear, message))
        };
        let standing = self.standing_of(step, note).await?;
        if standing.place == Place::Exchanged
            && let Err(stopped) = Box::pin(self.exchange(step, note, staging, &standing)).await
        {
            return Err(unclear(&stopped.problem));
        }
        note.holding = false;
        note.save(staging)?;
        let message = format!("{}; the exchange was taken back", problem.message);
        Err(Failure::Failed(
            Problem::new(problem.code, message).remedy(problem.remedy),
        ))
    }

    /// After an exchange that did not happen: lets everybody in again.
    async fn take_back(
        &self,
        step: &StepContext,
        note: &mut Note,
        staging: &Staging,
        want: Place,
        problem: Problem,
    ) -> Result<Done, Failure> {
        let standing = self.standing_of(step, note).await.map_err(|failure| match failure {
            Failure::Failed(more) | Failure::Indeterminate(more) => {
                let message = format!(
                    "{}; and what became of it could not be seen: {}",
                    problem.message, more.message
                );
                Failure::Indeterminate(Problem::new(Code::DatabaseUnclear, message))
            }
        })?;
        if standing.place == want {
            return self.arrive(step, note, staging, &standing).await;
        }
        if !standing.open && note.holding {
            let opened = async {
                let mut c = self.connector.settling(step).maintenance().await?;
                self.allow(&mut c).await
            };
            if let Err(more) = step.operation("allow", opened).await {
                let message = format!("{}; {}", problem.message, more.message);
                return Err(Failure::Indeterminate(
                    Problem::new(Code::DatabaseUnclear, message).remedy(more.remedy),
                ));
            }
        }
        if note.holding {
            note.holding = false;
            note.save(staging)?;
        }
        Err(Failure::Failed(problem))
    }
}

impl Note {
    /// Of an exchange that stands.
    pub(super) fn loss(&self) -> crate::driver::DataLoss {
        let unknown = Cost::unknown("any loss was agreed to; it is counted when the rollback is finished");
        let cost = self.cost.as_ref().unwrap_or(&unknown);
        crate::driver::DataLoss {
            put_aside: self.before_name.clone(),
            ..cost.data_loss(&self.backup, &self.taken_at)
        }
    }

    /// Of a switch that stands.
    pub(super) fn exchanged(&self, standing: &Standing) -> String {
        let lost = self
            .cost
            .as_ref()
            .map_or("counted when the rollback is finished".to_owned(), Cost::describe);
        let before = match &standing.other {
            Some(name) => format!("as it was before it is {name}, until it is collected"),
            None => "as it was before it is gone".to_owned(),
        };
        format!(
            "{} is now backup {} of {}, lost: {lost}; {before}",
            self.database, self.backup, self.taken_at
        )
    }

    /// Of an undo that stands.
    pub(super) fn taken_back(&self) -> String {
        match &self.undone {
            None => format!("{} is as it was, nothing had been exchanged", self.database),
            Some(cost) if cost.is_nothing() => format!("{} is as it was before the restore", self.database),
            Some(cost) => format!(
                "{} is as it was before the restore; what was written since then is in {}: {}",
                self.database,
                self.undone_name,
                cost.describe()
            ),
        }
    }
}
