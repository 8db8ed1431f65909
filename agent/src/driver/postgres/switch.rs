//! `switch`: the migrations themselves, in either direction, and what became of them when nobody heard the end.

use rollback_proto::problem::{Code, Problem};

use super::connect::Settings;
use super::migrate::LegError;
use super::route::Direction;
use super::sql_error::{is_passing, sql_problem};
use super::stage::first;
use super::staging::{self, Rehearsed, Staging};
use super::{PostgresDriver, State, kept, tool_locks};
use crate::driver::{Done, Failure, Probe};
use crate::step::StepContext;

/// How long to wait for a transaction of ours whose client is gone.
const SETTLE_LIMIT: &str = "SET lock_timeout = '15s'; SET idle_session_timeout = '60s'";
const SETTLE_LIMIT_13: &str = "SET lock_timeout = '15s'";

/// Times that a leg is run when the reply to its COMMIT was lost and nothing had happened.
const UNHEARD: u32 = 2;

impl PostgresDriver {
    pub(super) async fn do_switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let sessions = self.connector.patient(step);
        let state = step.operation("read_schema", self.state(sessions)).await?;
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
        let mut unheard = 0;
        let returned = loop {
            let run = migrator.run(leg, Some(&step.from.digest), &rehearsed.loss);
            match step.operation(operation, run).await {
                Ok(returned) => break returned.map(|r| r.describe()),
                Err(LegError::RolledBack(problem)) => return Err(Failure::Failed(problem)),
                Err(LegError::Unknown(problem)) => {
                    step.progress(format!("{}; looking at what became of it", problem.message));
                    unheard += 1;
                    match self.settle(step).await {
                        Probe::Applied(_) => break self.account(step, leg.direction, &tag).await,
                        Probe::Repeatable(_) if unheard < UNHEARD && !step.time_left().is_zero() => {
                            step.progress("nothing was changed; trying again");
                        }
                        Probe::Repeatable(_) => {
                            let message = format!("{}; nothing was changed", problem.message);
                            return Err(Failure::Failed(Problem::new(Code::MigrationFailed, message)));
                        }
                        Probe::Indeterminate(problem) => return Err(Failure::Indeterminate(problem)),
                    }
                }
            }
        };
        let seen = step
            .operation("read_schema", self.state(sessions))
            .await
            .map_err(Failure::Indeterminate)?;
        if seen.digest != step.to.digest {
            // The transaction compared the schema before it committed: somebody changed it since.
            return Err(Failure::Indeterminate(self.moved(&seen, step)));
        }
        let direction = match leg.direction {
            Direction::Down => "down",
            Direction::Up => "up",
        };
        let summary = format!("{} {direction}{}", leg.names(), returned.unwrap_or_default());
        Ok(Done::at(seen.revision(), summary))
    }

    /// What was put back by a way up whose end nobody heard.
    async fn account(&self, step: &StepContext, direction: Direction, tag: &str) -> Option<String> {
        match direction {
            Direction::Down => None,
            Direction::Up => {
                let mut c = self.connector.patient(step).live().await.ok()?;
                let found = kept::account(&mut c, &kept::schema_name(tag), &step.rollback_id).await;
                let _ = sqlx::Connection::close(c).await;
                found.ok().flatten()
            }
        }
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

    /// What became of a switch? Waits for a transaction of ours that may still be running: an answer given before its
    /// end could be wrong a moment later.
    pub(super) async fn settle(&self, step: &StepContext) -> Probe {
        match self.settled_state(step).await {
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

    async fn settled_state(&self, step: &StepContext) -> Result<State, Problem> {
        let sessions = self.connector.settling(step);
        let limit = if self.server_version(sessions).await? >= 140_000 {
            SETTLE_LIMIT
        } else {
            SETTLE_LIMIT_13
        };
        let mut lost = 0;
        loop {
            let mut waiting = sessions.live().await?;
            let result = async {
                sqlx::raw_sql(limit).execute(&mut waiting).await?;
                sqlx::query("SELECT pg_advisory_lock($1)")
                    .bind(tool_locks::own_key(&self.config.database))
                    .execute(&mut waiting)
                    .await
            };
            match result.await {
                Ok(_) => {
                    let state = self.state(sessions).await;
                    // Ends the session, and the lock with it.
                    let _ = sqlx::Connection::close(waiting).await;
                    return state;
                }
                Err(e) if is_passing(&e) && lost < UNHEARD => lost += 1,
                Err(e) => {
                    return Err(sql_problem(
                        Code::DatabaseUnclear,
                        "wait for an earlier migration of ours to end",
                        &e,
                    ));
                }
            }
        }
    }
}
