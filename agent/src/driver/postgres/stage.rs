//! `stage` and `snapshot`: a proven backup, and the rehearsal of the way down and back on the restored copy.
//!
//! `stage` makes the backup already, because the rehearsal needs a copy of the real data; `snapshot` seals it if it is
//! young enough, and makes a new one otherwise.

use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use super::archive::Prefer;
use super::backup::{self, Backup, Manifest, Proof};
use super::catalog::Schema;
use super::config::Verify;
use super::connect::{Sessions, Settings, database_settings};
use super::figures::{Figures, sequences};
use super::loss::Loss;
use super::migrate::{LegError, Migrator};
use super::put_back::Returned;
use super::route::{Direction, Leg, Route};
use super::sql_error::sql_problem;
use super::staging::{self, Rehearsed, Staging};
use super::tools::Tools;
use super::{PostgresDriver, kept, scratch};
use crate::driver::{Done, Failure};
use crate::step::StepContext;

impl PostgresDriver {
    pub(super) async fn do_stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let tag = self.tag(step);
        let backups = self.config.backups_dir()?;
        let sessions = self.connector.patient(step);
        let look = async {
            let state = self.state(sessions).await?;
            let mut c = sessions.live().await?;
            let left = scratch::leftovers(&mut c, &self.config.database).await?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>((left, state))
        };
        let (scratch_left, state) = step.operation("look_at_database", look).await?;
        for name in &scratch_left {
            if let Err(problem) = step.operation("dropdb", scratch::drop(sessions, name)).await {
                // The next stage tries again. If it is in our way, making the new one says so.
                step.progress(format!("{name} of an earlier run stays for now: {}", problem.message));
            }
        }
        let files_left = staging::remove_leftovers(backups, &scratch::short(&self.component))?;
        if scratch_left.len() + files_left > 0 {
            step.progress(format!(
                "removed {} scratch databases and {files_left} files of an earlier run",
                scratch_left.len()
            ));
        }
        if state.digest == step.to.digest {
            return Ok(Done::new("the schema stays as it is"));
        }
        if state.digest != step.from.digest {
            return Err(self.moved(&state, step).into());
        }
        // The way back needs the SQL and the schema of where we are, whether or not it was recorded as a release.
        self.record(&state, Prefer::Archive).await?;
        let route = self.route(&state, step).map_err(first)?;
        let staging = Staging::new(backups, &tag);
        let name = scratch::name(&self.config.database, &tag);
        let ended = in_time(step, self.prove_and_rehearse(step, &route, &staging, &name, &tag)).await;
        let dropped = step.operation("dropdb", scratch::drop(sessions, &name)).await;
        let mut summary = match ended {
            Ok(summary) => summary,
            Err(problem) => {
                // The dump is of no use any more; the failure that led here is what matters.
                let _ = staging.remove();
                return Err(problem.into());
            }
        };
        if let Err(problem) = dropped {
            summary.push_str(&scratch::left_for_now(&name, &problem));
        }
        Ok(Done::new(summary))
    }

    async fn prove_and_rehearse(
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

    pub(super) async fn do_snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        let tag = self.tag(step);
        let backups = self.config.backups_dir()?;
        let staging = Staging::new(backups, &tag);
        let backup = self.backup(step, &staging, &tag);
        let staged: Option<Manifest> = staging::read_json(&staging.manifest())?;
        let max_age = self.config.snapshot_max_age;
        let fresh = staged.filter(|m| m.rollback_id == step.rollback_id && m.proof.is_some() && age(m) <= max_age);
        let (manifest, made, warning) = match fresh {
            Some(manifest) => (manifest, "staged", String::new()),
            None => {
                let (manifest, warning) = self.make_backup(step, &backup, &tag).await?;
                (manifest, "new", warning)
            }
        };
        let receipt = backup.seal(&manifest).await?;
        let retired = backup::retire(
            backups,
            &self.config.database,
            self.config.retain_backups,
            &receipt.path,
        )?;
        let summary = format!(
            "{made} backup, {}, {} tables, {} rows, verified by {}{}{warning}",
            backup::people_bytes(receipt.bytes),
            receipt.tables,
            receipt.rows,
            receipt.verified,
            if retired > 0 {
                format!("; {retired} older ones removed")
            } else {
                String::new()
            }
        );
        Ok(Done {
            summary,
            observed: None,
            receipt: Some(receipt),
        })
    }

    /// A backup of its own for `snapshot`, and what a summary has to warn of.
    async fn make_backup(
        &self,
        step: &StepContext,
        backup: &Backup<'_>,
        tag: &str,
    ) -> Result<(Manifest, String), Problem> {
        let (tools, server_version) = step.operation("find_tools", self.tools(backup.sessions)).await?;
        let (mut manifest, schema) = backup.take(&tools, server_version).await?;
        let mut warning = String::new();
        if self.config.verify == Verify::Restore {
            let name = scratch::name(&self.config.database, tag);
            let proven = in_time(step, backup.prove(&tools, &manifest, &schema, &name)).await;
            let dropped = step.operation("dropdb", scratch::drop(backup.sessions, &name)).await;
            proven?;
            if let Err(problem) = dropped {
                warning = scratch::left_for_now(&name, &problem);
            }
        }
        manifest.proof = Some(backup::proof_of(self.config.verify));
        staging::write_json(&backup.staging.manifest(), &manifest)?;
        Ok((manifest, warning))
    }

    fn backup<'a>(&'a self, step: &'a StepContext, staging: &'a Staging, tag: &'a str) -> Backup<'a> {
        Backup {
            sessions: self.connector.patient(step),
            config: &self.config,
            step,
            staging,
            tag,
        }
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

    async fn tools(&self, sessions: Sessions<'_>) -> Result<(Tools, u32), Problem> {
        let version = self.server_version(sessions).await?;
        Ok((
            Tools::find(&self.config, &scratch::short(&self.component), version / 10_000).await?,
            version,
        ))
    }

    /// `finish` and `discard`: what a rollback leaves beside the live database goes. Rows that were kept stay, unless
    /// they were all put back.
    pub(super) async fn do_clear(&self, step: &StepContext) -> Result<Done, Failure> {
        let tag = self.tag(step);
        if self.config.backups.is_dir() {
            Staging::new(&self.config.backups, &tag).remove()?;
        }
        let scratch = scratch::name(&self.config.database, &tag);
        let sessions = self.connector.patient(step);
        let look = async {
            let mut c = sessions.live().await?;
            let left = scratch::leftovers(&mut c, &self.config.database).await?;
            let dropped = kept::drop_put_back(&mut c, &kept::schema_name(&tag)).await?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>((left.contains(&scratch), dropped))
        };
        let (scratch_left, dropped) = step.operation("look_at_database", look).await?;
        let mut summary = match dropped {
            0 => "removed".to_owned(),
            _ => "removed, with rows that had been put back".to_owned(),
        };
        if scratch_left && let Err(problem) = step.operation("dropdb", scratch::drop(sessions, &scratch)).await {
            summary.push_str(&scratch::left_for_now(&scratch, &problem));
        }
        Ok(Done::new(summary))
    }
}

/// Cuts work off at the step's deadline, while there is still somebody to clear up behind it.
async fn in_time<T>(step: &StepContext, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    match tokio::time::timeout(step.time_left(), Box::pin(work)).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(
            Code::StepTimeout,
            "the backup or its proof did not end in time; nothing was changed",
        )),
    }
}

fn age(manifest: &Manifest) -> Duration {
    // A clock that was set back must not make a backup young for ever: then its age counts as the longest.
    Timestamp::now()
        .duration_since(manifest.taken_at)
        .try_into()
        .unwrap_or(Duration::MAX)
}

pub(super) fn first(problems: Vec<Problem>) -> Problem {
    let more = problems.len().saturating_sub(1);
    match problems.into_iter().next() {
        Some(mut problem) => {
            if more > 0 {
                problem.message.push_str(&format!(" (and {more} more problems)"));
            }
            problem
        }
        None => Problem::new(Code::Internal, "no way was found, for no reason"),
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
