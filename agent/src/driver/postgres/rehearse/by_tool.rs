//! The rehearsal of the project's own tool: how many runs each way takes, where each leads, and what goes.
//!
//! The tool commits as it likes, so what its way down takes away cannot be found in a transaction that is rolled back: it
//! runs on a copy of the copy first. Before all that it must have shown that it heeds the database that it is given, and
//! while it runs the live database is guarded ([`super::super::tool`]).

use rollback_proto::problem::{Code, Problem};

use super::{Seen, rehearsal_failed};
use crate::driver::postgres::connect::{Sessions, ident, run};
use crate::driver::postgres::loss::{Loss, Structure};
use crate::driver::postgres::migrate::{Copy, Job, LegError, Migrator};
use crate::driver::postgres::put_back::Returned;
use crate::driver::postgres::route::{Direction, Leg, Route};
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::postgres::tool::guard;
use crate::driver::postgres::travel::Waypoint;
use crate::driver::postgres::{PostgresDriver, scratch};
use crate::step::StepContext;

/// Runs of the tool in one direction that are still believed to lead somewhere.
const RUNS: usize = 200;

impl PostgresDriver {
    /// There and back by the tool, on the scratch copy `migrator` is for. Nobody else may be in the copy.
    pub(super) async fn rehearse_tool(
        &self,
        step: &StepContext,
        route: &Route,
        migrator: &Migrator<'_>,
        copy: Copy<'_>,
    ) -> Result<Seen, Problem> {
        let sessions = self.connector.patient(step);
        let tool = migrator.tool()?;
        step.operation("tool_status", async {
            let live = tool.status(&self.config.database, step.deadline).await?;
            tool.heeds_the_environment(sessions, &live, step.deadline).await
        })
        .await?;
        scratch::give_settings(sessions, migrator.database, migrator.settings).await?;
        let (begin, end) = (route.back.end(), route.there.end());
        let mut seen = Seen::default();
        for (leg, begin) in [(&route.there, &begin), (&route.back, &end)] {
            let loss = match leg.direction {
                Direction::Down => self.tool_loss(step, leg, begin, migrator, copy).await?,
                Direction::Up => Loss::default(),
            };
            let work = self.tool_leg(step, leg, begin, migrator, &loss);
            let (mut points, returned) = step
                .operation(
                    "rehearse_tool",
                    guard::while_running(sessions, tool.own_tables(), &[migrator.database], work),
                )
                .await?;
            // The last one is the leg's end.
            points.pop();
            match leg.direction {
                Direction::Down => seen.losses = vec![loss],
                Direction::Up => seen.returned = returned,
            }
            let list = if std::ptr::eq(leg, &raw const route.there) {
                &mut seen.there
            } else {
                &mut seen.back
            };
            *list = points;
        }
        Ok(seen)
    }

    /// Runs the tool until the leg has ended. Answers with the state after each run.
    pub(super) async fn tool_leg(
        &self,
        step: &StepContext,
        leg: &Leg,
        begin: &Waypoint,
        migrator: &Migrator<'_>,
        loss: &Loss,
    ) -> Result<(Vec<Waypoint>, Option<Returned>), Problem> {
        let direction = leg.direction.word();
        let end = leg.end();
        let mut points: Vec<Waypoint> = Vec::new();
        let mut returned: Option<Returned> = None;
        loop {
            let none = Loss::default();
            let job = Job {
                leg,
                part: 0,
                from: None,
                to: None,
                loss: if points.is_empty() { loss } else { &none },
            };
            // The second run and later ones follow a first that kept what there is to keep.
            let job = Job {
                part: points.len(),
                ..job
            };
            step.progress(format!(
                "rehearsing the migration tool {direction}, run {}",
                points.len() + 1
            ));
            let ran = migrator.run_tool(job).await;
            let ran = ran.map_err(|(LegError::RolledBack(p) | LegError::Unknown(p))| rehearsal_failed(&p))?;
            Returned::gather(&mut returned, ran.returned);
            let before = points.last().unwrap_or(begin).applied.clone();
            let now = &ran.end.applied;
            let (smaller, larger) = match leg.direction {
                Direction::Down => (now, &before),
                Direction::Up => (&before, now),
            };
            let run = points.len() + 1;
            let failed = |why: String| {
                let message = format!("run {run} of the migration tool {direction} {why}");
                Err(Problem::new(Code::MigrationToolFailed, message)
                    .remedy("see what the tool's command does for one migration; the live database was not touched"))
            };
            if *now == before {
                return failed("changed nothing of what its status says is applied".to_owned());
            }
            let within = match leg.direction {
                Direction::Down => end.applied.is_subset(now),
                Direction::Up => now.is_subset(&end.applied),
            };
            if !smaller.is_subset(larger) || !within {
                return failed(format!(
                    "went elsewhere: {} migrations are applied, {} were wanted",
                    now.len(),
                    end.applied.len()
                ));
            }
            let arrived = *now == end.applied;
            if arrived && let Some(differences) = ran.end.schema.differences(&end.schema) {
                return failed(format!("led to a schema that is not the recorded one: {differences}"));
            }
            points.push(ran.end);
            if arrived {
                if leg.direction == Direction::Up {
                    let last = migrator
                        .put_back_brought(true)
                        .await
                        .map_err(|p| rehearsal_failed(&p))?;
                    Returned::gather(&mut returned, last);
                }
                // On the live database nothing takes the last run back when they do not hold.
                migrator.ask().await?;
                return Ok((points, returned));
            }
            if points.len() >= RUNS {
                return failed("was not the last one, and no end is in sight".to_owned());
            }
        }
    }

    /// What the way down takes away, found on a copy of the copy.
    async fn tool_loss(
        &self,
        step: &StepContext,
        leg: &Leg,
        begin: &Waypoint,
        migrator: &Migrator<'_>,
        copy: Copy<'_>,
    ) -> Result<Loss, Problem> {
        let sessions = self.connector.patient(step);
        let tool = migrator.tool()?;
        let name = format!("{}_loss", migrator.database);
        let failed = |e| sql_problem(Code::RehearsalFailed, format!("read {name}"), &e);
        step.operation("createdb", duplicate(sessions, migrator.database, &name))
            .await?;
        scratch::give_settings(sessions, &name, migrator.settings).await?;
        let kept = format!("{}_loss", self.tag(step));
        let mut on_copy = self.migrator(step, &name, migrator.settings, &kept);
        on_copy.copy = Some(copy);
        let work = async {
            let mut c = sessions.reader(&name).await?;
            let before = Structure::read(&mut c).await.map_err(failed)?;
            let nothing = Loss::default();
            let work = self.tool_leg(step, leg, begin, &on_copy, &nothing);
            step.operation(
                "find_loss",
                guard::while_running(sessions, tool.own_tables(), &[&name], work),
            )
            .await?;
            let after = Structure::read(&mut c).await.map_err(failed)?;
            let _ = sqlx::Connection::close(c).await;
            before.lost_in(&after).map_err(|why| {
                let message = format!("an undo of the rollback would lose data: {why}");
                Problem::new(Code::RehearsalFailed, message)
                    .remedy("give the table a primary key, or take this migration down by hand")
            })
        };
        let found = work.await;
        let dropped = step.operation("dropdb", scratch::drop(sessions, &name)).await;
        let loss = found?;
        dropped?;
        Ok(loss)
    }
}

/// Makes a database from another in which nobody is.
async fn duplicate(sessions: Sessions<'_>, from: &str, name: &str) -> Result<(), Problem> {
    scratch::drop(sessions, name).await?;
    let failed = |e| sql_problem(Code::RehearsalFailed, format!("make {name} from {from}"), &e);
    let mut c = sessions.maintenance().await?;
    for sql in [
        format!("CREATE DATABASE {} TEMPLATE {}", ident(name), ident(from)),
        format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", ident(name)),
        format!(
            "COMMENT ON DATABASE {} IS 'made by rollbackctl to rehearse migrations; may be dropped'",
            ident(name)
        ),
    ] {
        run(&mut c, sql).await.map_err(failed)?;
    }
    let _ = sqlx::Connection::close(c).await;
    Ok(())
}
