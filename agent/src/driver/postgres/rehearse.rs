//! The rehearsal: there, back, and there once more on the restored copy of a backup, before anything is done to the live
//! database.

mod again;
mod by_tool;
mod untouched;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use self::untouched::Marks;
use super::backup::Proof;
use super::catalog::Schema;
use super::connect::{Settings, database_settings};
use super::figures::{Figures, sequences};
use super::loss::Loss;
use super::migrate::{Copy, Job, LegError, Migrator};
use super::put_back::Returned;
use super::route::{Direction, Leg, Route};
use super::sql_error::sql_problem;
use super::staging::{self, Rehearsed, Staging};
use super::travel::Waypoint;
use super::{PostgresDriver, kept};
use crate::step::StepContext;
use crate::words::{count, count_of};

impl PostgresDriver {
    pub(super) async fn prove_and_rehearse(
        &self,
        step: &StepContext,
        route: &Route,
        staging: &Staging,
        name: &str,
        tag: &str,
    ) -> Result<String, Problem> {
        let (tools, server_version) = step
            .operation("find_tools", self.tools(self.connector.patient(step)))
            .await?;
        let backup = self.backup(step, staging, tag);
        let (mut manifest, schema) = backup.take(&tools, server_version).await?;
        let restored = backup.prove(&tools, &mut manifest, &schema, name).await?;
        manifest.proof = Some(Proof::Restore);
        staging::write_json(&staging.manifest(), &manifest)?;
        let seen = self
            .rehearse(step, route, &schema, &restored, &manifest.figures, name, tag)
            .await?;
        let kept = match route.there.direction {
            Direction::Down => describe(&seen.losses),
            // As it went on the copy.
            Direction::Up => seen.returned.map(|r| r.describe()).unwrap_or_default(),
        };
        let rehearsed = Rehearsed {
            rollback_id: step.rollback_id.clone(),
            component: step.component.clone(),
            from: step.from.digest.clone(),
            to: step.to.digest.clone(),
            route: route.digest(),
            losses: seen.losses,
            there: seen.there,
            back: seen.back,
            ended_at: Timestamp::now(),
        };
        staging::write_json(&staging.rehearsed(), &rehearsed)?;
        Ok(format!(
            "{} rehearsed on a restored copy ({}, {}){kept}",
            route.there.names(),
            count_of(manifest.figures.tables.len(), "table", "tables"),
            count(manifest.figures.rows(), "row", "rows")
        ))
    }

    /// There and back on the scratch copy, where every difference to what was there before is a failure; and there once
    /// more.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two schemas and the figures are what is compared"
    )]
    async fn rehearse(
        &self,
        step: &StepContext,
        route: &Route,
        live: &Schema,
        restored: &Schema,
        figures: &Figures,
        name: &str,
        tag: &str,
    ) -> Result<Seen, Problem> {
        let failed = |e| sql_problem(Code::RehearsalFailed, format!("read {name}"), &e);
        let sessions = self.connector.patient(step);
        let look = async {
            let mut live = sessions.live().await?;
            let settings = database_settings(&mut live).await.map_err(failed)?;
            let _ = sqlx::Connection::close(live).await;
            let mut scratch = sessions.reader(name).await?;
            let sequences = sequences(&mut scratch).await.map_err(failed)?;
            let marks = Marks::read(&mut scratch).await.map_err(failed)?;
            Ok::<_, Problem>((settings, scratch, sequences, marks))
        };
        let (settings, mut scratch, sequences_before, marks) = step.operation("read_settings", look).await?;
        let mut migrator = self.migrator(step, name, &settings, tag);
        migrator.copy = Some(Copy { live, restored });
        let mut seen = Seen::default();
        if route.there.is_of_a_tool() {
            // It is copied once more, which nobody may be in for.
            let _ = sqlx::Connection::close(scratch).await;
            seen = self
                .rehearse_tool(step, route, &migrator, Copy { live, restored })
                .await?;
            scratch = sessions.reader(name).await?;
        } else {
            seen.there = self
                .rehearse_leg(step, &migrator, &route.there, &route.back.end(), &mut seen)
                .await?;
            seen.back = self
                .rehearse_leg(step, &migrator, &route.back, &route.there.end(), &mut seen)
                .await?;
        }
        step.operation("verify_rehearsal", async {
            let spared = marks.untouched(&mut scratch, figures).await.map_err(failed)?;
            let mut after = Figures::read_but(&mut scratch, &spared, |_, _, _| {}).await.map_err(failed)?;
            let mut before = figures.clone();
            let sequences_after = sequences(&mut scratch).await.map_err(failed)?;
            // What the project's tool notes for itself has dates in it.
            let of_the_tool = |name: &str| self.config.tool.as_ref().is_some_and(|tool| tool.keeps(name));
            for figures in [&mut before, &mut after] {
                figures.tables.retain(|name, _| !of_the_tool(name));
            }
            if let Some(differences) = after.differences(&before) {
                let problem = lossy(&differences);
                return Err(match &self.config.tool {
                    None => problem,
                    Some(_) => problem.remedy(
                        "if that is where the migration tool notes what it did, name it in tool.tables; else make the way \
                         down keep what it changes; the live database was not touched",
                    ),
                });
            }
            match sequences_before
                .iter()
                .filter(|(name, _)| !of_the_tool(name))
                .find(|(name, value)| sequences_after.get(*name) != Some(value))
            {
                Some((name, _)) => Err(lossy(&format!("sequence {name} has another value"))),
                None => Ok(()),
            }
        })
        .await?;
        let _ = sqlx::Connection::close(scratch).await;
        self.rehearse_again(step, route, &migrator, &seen).await?;
        Ok(seen)
    }

    /// One leg on the copy. Answers with the waypoints between its ends.
    async fn rehearse_leg(
        &self,
        step: &StepContext,
        migrator: &Migrator<'_>,
        leg: &Leg,
        begin: &Waypoint,
        seen: &mut Seen,
    ) -> Result<Vec<Waypoint>, Problem> {
        let direction = leg.direction.word();
        step.progress(format!("rehearsing {direction}: {}", leg.names()));
        let end = leg.end();
        let none = Loss::default();
        let mut points: Vec<Waypoint> = Vec::new();
        for (part, what) in leg.parts.iter().enumerate() {
            let last = part + 1 == leg.parts.len();
            if leg.parts.len() > 1 {
                step.progress(format!("rehearsing {}", leg.describe(what)));
            }
            let mut job = Job {
                leg,
                part,
                from: None,
                to: last.then_some(&end),
                loss: &none,
            };
            let (operation, loss) = match leg.direction {
                Direction::Down => {
                    let loss = match leg.is_transaction(what) {
                        true => step.operation("find_loss", migrator.find_loss(job)).await?,
                        false => Loss::default(),
                    };
                    ("rehearse_down", loss)
                }
                Direction::Up => ("rehearse_up", Loss::default()),
            };
            job.loss = &loss;
            let ran = step.operation(operation, migrator.run(job)).await;
            let ran = ran.map_err(|(LegError::RolledBack(p) | LegError::Unknown(p))| rehearsal_failed(&p))?;
            if leg.direction == Direction::Down {
                seen.losses.push(loss);
            }
            Returned::gather(&mut seen.returned, ran.returned);
            if last {
                break;
            }
            // Two parts that look alike afterwards could not be told apart when one was cut off.
            if leg.is_transaction(what) && (ran.end == *begin || points.contains(&ran.end)) {
                return Err(unrecognisable(&leg.describe(what)));
            }
            points.push(ran.end);
        }
        Ok(points)
    }

    pub(super) fn migrator<'a>(
        &'a self,
        step: &'a StepContext,
        database: &'a str,
        settings: &'a Settings,
        kept: &'a str,
    ) -> Migrator<'a> {
        Migrator {
            sessions: self.connector.patient(step),
            config: &self.config,
            database,
            settings,
            copy: None,
            component: &self.component,
            rollback_id: &step.rollback_id,
            kept: kept::schema_name(kept),
            deadline: step.deadline,
        }
    }
}

/// What a rehearsal found out.
#[derive(Debug, Default)]
struct Seen {
    losses: Vec<Loss>,
    there: Vec<Waypoint>,
    back: Vec<Waypoint>,
    returned: Option<Returned>,
}

fn unrecognisable(part: &str) -> Problem {
    let message = format!(
        "{part}: it runs in a transaction of its own and changes neither the schema nor the version table, so nobody could \
         tell after an interruption whether it happened"
    );
    Problem::new(Code::RehearsalFailed, message)
        .remedy("put it into a migration of its own that runs in one transaction; the live database was not touched")
}

fn rehearsal_failed(problem: &Problem) -> Problem {
    Problem::new(
        Code::RehearsalFailed,
        format!("on the restored copy: {}", problem.message),
    )
    .remedy("mend the migration file and record the running release again; the live database was not touched")
}

fn lossy(differences: &str) -> Problem {
    Problem::new(
        Code::RehearsalFailed,
        format!("going down and up again does not give the same data back: {differences}; an undo would lose data"),
    )
    .remedy("make the down migration keep what it changes, or take it down by hand; the live database was not touched")
}

fn describe(losses: &[Loss]) -> String {
    let parts: Vec<String> = losses
        .iter()
        .flat_map(|loss| &loss.parts)
        .map(|part| match &part.key {
            None => format!("table {}", part.table),
            Some(_) => format!("{} of {}", part.columns.join(", "), part.table),
        })
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("; will be kept for an undo: {}", parts.join(", "))
    }
}
