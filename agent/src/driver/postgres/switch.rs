//! `switch`: the migrations themselves, in either direction, and what became of them when nobody heard the end.

use rollback_proto::problem::{Code, Problem};

use super::connect::{Settings, sql_problem};
use super::migrate::LegError;
use super::route::Direction;
use super::stage::first;
use super::staging::{self, Rehearsed, Staging};
use super::{PostgresDriver, State, tool_locks};
use crate::driver::{Done, Failure, Probe};
use crate::step::StepContext;

/// How long to wait for a transaction of ours whose client is gone.
const SETTLE_LIMIT: &str = "SET lock_timeout = '15s'; SET idle_session_timeout = '60s'";
const SETTLE_LIMIT_13: &str = "SET lock_timeout = '15s'";

impl PostgresDriver {
    pub(super) async fn do_switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let state = step.operation("read_schema", self.state()).await?;
        if state.digest == step.to.digest {
            return Ok(Done::at(state.revision(), "the schema is there already"));
        }
        if state.digest != step.from.digest {
            return Err(self.moved(&state, step).into());
        }
        let route = self.route(&state, step).map_err(first)?;
        let rehearsed = self.rehearsed(step, &route.digest())?;
        let settings = Settings::new();
        let tag = self.tag(step);
        let migrator = self.migrator(step, &self.config.database, &settings, &tag);
        let leg = &route.there;
        let operation = match leg.direction {
            Direction::Down => "migrate_down",
            Direction::Up => "migrate_up",
        };
        step.progress(format!("migrating: {}", leg.names()));
        match step
            .operation(operation, migrator.run(leg, Some(&step.from.digest), &rehearsed.loss))
            .await
        {
            Ok(()) => {}
            Err(LegError::RolledBack(problem)) => return Err(Failure::Failed(problem)),
            Err(LegError::Unknown(problem)) => {
                step.progress(format!("{}; looking at what became of it", problem.message));
                self.settle_failed(step, problem).await?;
            }
        }
        let seen = step
            .operation("read_schema", self.state())
            .await
            .map_err(Failure::Indeterminate)?;
        if seen.digest != step.to.digest {
            // The transaction compared the schema before it committed: somebody changed it since.
            return Err(Failure::Indeterminate(self.moved(&seen, step)));
        }
        let direction = match leg.direction {
            Direction::Down => "down",
            Direction::Up => "up, with what had been kept",
        };
        Ok(Done::at(seen.revision(), format!("{} {direction}", leg.names())))
    }

    /// `stage` of this very rollback must have ended well, with this very SQL; for either direction.
    fn rehearsed(&self, step: &StepContext, route: &str) -> Result<Rehearsed, Problem> {
        let refused = |why: &str| {
            Problem::new(
                Code::RehearsalFailed,
                format!("refusing to migrate {}: {why}", self.config.database),
            )
            .remedy("start the rollback anew; the live database was not touched")
        };
        let staging = Staging::new(&self.config.backups, &self.tag(step));
        let found: Option<Rehearsed> = staging::read_json(&staging.rehearsed())?;
        let rehearsed = found.ok_or_else(|| refused("it was not rehearsed for this rollback"))?;
        let (ends, asked) = ([&rehearsed.from, &rehearsed.to], [&step.from.digest, &step.to.digest]);
        if rehearsed.rollback_id != step.rollback_id || rehearsed.component != self.component {
            return Err(refused("what was rehearsed belongs to another rollback"));
        }
        if ends != asked && ends != [asked[1], asked[0]] {
            return Err(refused("the rehearsal was between other revisions"));
        }
        if rehearsed.route != route {
            return Err(refused("the SQL of the migrations is not what was rehearsed"));
        }
        Ok(rehearsed)
    }

    /// After a lost reply: success if it happened after all, else the reason why not.
    async fn settle_failed(&self, step: &StepContext, problem: Problem) -> Result<(), Failure> {
        match self.settle(step).await {
            Probe::Applied(_) => Ok(()),
            Probe::Repeatable(_) => {
                let message = format!("{}; nothing was changed", problem.message);
                Err(Failure::Failed(Problem::new(Code::MigrationFailed, message)))
            }
            Probe::Indeterminate(problem) => Err(Failure::Indeterminate(problem)),
        }
    }

    /// What became of a switch? Waits for a transaction of ours that may still be running: an answer given before its
    /// end could be wrong a moment later.
    pub(super) async fn settle(&self, step: &StepContext) -> Probe {
        match self.settled_state().await {
            Err(problem) => Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, problem.message)),
            Ok(state) if state.digest == step.to.digest => {
                Probe::Applied(Done::at(state.revision(), "found applied after an interruption"))
            }
            Ok(state) if state.digest == step.from.digest => {
                Probe::Repeatable("the schema is where it was before the step".to_owned())
            }
            Ok(state) => {
                let moved = self.moved(&state, step);
                Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, moved.message))
            }
        }
    }

    async fn settled_state(&self) -> Result<State, Problem> {
        let waited = |e| {
            sql_problem(
                Code::DatabaseUnclear,
                "wait for an earlier migration of ours to end",
                &e,
            )
        };
        let mut waiting = self.connector.live().await?;
        let limit = if self.server_version().await? >= 140_000 {
            SETTLE_LIMIT
        } else {
            SETTLE_LIMIT_13
        };
        sqlx::raw_sql(limit).execute(&mut waiting).await.map_err(waited)?;
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(tool_locks::own_key(&self.config.database))
            .execute(&mut waiting)
            .await
            .map_err(waited)?;
        let state = self.state().await;
        // Ends the session, and the lock with it.
        let _ = sqlx::Connection::close(waiting).await;
        state
    }
}
