//! The rehearsal: there and back on the restored copy of a backup, before anything is done to the live database.

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use super::backup::Proof;
use super::catalog::Schema;
use super::connect::{Settings, database_settings};
use super::figures::{Figures, sequences};
use super::loss::Loss;
use super::migrate::{LegError, Migrator};
use super::put_back::Returned;
use super::route::{Direction, Leg, Route};
use super::sql_error::sql_problem;
use super::staging::{self, Rehearsed, Staging};
use super::{PostgresDriver, kept};
use crate::step::StepContext;

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
        let restored = backup.prove(&tools, &manifest, &schema, name).await?;
        manifest.proof = Some(Proof::Restore);
        staging::write_json(&staging.manifest(), &manifest)?;
        let (loss, returned) = self
            .rehearse(step, route, &schema, &restored, &manifest.figures, name, tag)
            .await?;
        let kept = match route.there.direction {
            Direction::Down => describe(&loss),
            // As it went on the copy.
            Direction::Up => returned.map(|r| r.describe()).unwrap_or_default(),
        };
        let rehearsed = Rehearsed {
            rollback_id: step.rollback_id.clone(),
            component: step.component.clone(),
            from: step.from.digest.clone(),
            to: step.to.digest.clone(),
            route: route.digest(),
            loss,
            ended_at: Timestamp::now(),
        };
        staging::write_json(&staging.rehearsed(), &rehearsed)?;
        Ok(format!(
            "{} rehearsed on a restored copy ({} tables, {} rows){kept}",
            route.there.names(),
            manifest.figures.tables.len(),
            manifest.figures.rows()
        ))
    }

    /// There and back on the scratch copy. Every difference to what was there before is a failure.
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
    ) -> Result<(Loss, Option<Returned>), Problem> {
        let failed = |e| sql_problem(Code::RehearsalFailed, format!("read {name}"), &e);
        let sessions = self.connector.patient(step);
        let look = async {
            let mut live = sessions.live().await?;
            let settings = database_settings(&mut live).await.map_err(failed)?;
            let _ = sqlx::Connection::close(live).await;
            let mut scratch = sessions.reader(name).await?;
            let sequences = sequences(&mut scratch).await.map_err(failed)?;
            Ok::<_, Problem>((settings, scratch, sequences))
        };
        let (settings, mut scratch, sequences_before) = step.operation("read_settings", look).await?;
        let migrator = self.migrator(step, name, &settings, tag);
        let there = Leg {
            schema_after: route.there.schema_after.as_restored(live, restored),
            ..route.there.clone()
        };
        let back = Leg {
            schema_after: restored.clone(),
            ..route.back.clone()
        };
        let (mut loss, mut returned) = (Loss::default(), None);
        for leg in [&there, &back] {
            let operation = match leg.direction {
                Direction::Down => {
                    step.progress(format!("rehearsing down: {}", leg.names()));
                    loss = step.operation("find_loss", migrator.find_loss(leg)).await?;
                    "rehearse_down"
                }
                Direction::Up => {
                    step.progress(format!("rehearsing up: {}", leg.names()));
                    "rehearse_up"
                }
            };
            let ran = step.operation(operation, migrator.run(leg, None, &loss)).await;
            let there = ran.map_err(|(LegError::RolledBack(p) | LegError::Unknown(p))| rehearsal_failed(&p))?;
            returned = returned.or(there);
        }
        step.operation("verify_rehearsal", async {
            let after = Figures::read(&mut scratch, |_, _, _| {}).await.map_err(failed)?;
            let sequences_after = sequences(&mut scratch).await.map_err(failed)?;
            if let Some(differences) = after.differences(figures) {
                return Err(lossy(&differences));
            }
            match sequences_before
                .iter()
                .find(|(name, value)| sequences_after.get(*name) != Some(value))
            {
                Some((name, _)) => Err(lossy(&format!("sequence {name} has another value"))),
                None => Ok(()),
            }
        })
        .await?;
        let _ = sqlx::Connection::close(scratch).await;
        Ok((loss, returned))
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
            rollback_id: &step.rollback_id,
            kept: kept::schema_name(kept),
            deadline: step.deadline,
        }
    }
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

fn describe(loss: &Loss) -> String {
    let parts: Vec<String> = loss
        .parts
        .iter()
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
