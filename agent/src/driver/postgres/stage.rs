//! `stage`, and clearing up: a proven backup, the rehearsal on its restored copy, and what of both goes when a rollback is
//! over.
//!
//! `stage` makes the backup already, because the rehearsal needs a copy of the real data; `snapshot` seals it
//! ([`super::protect`]).

use rollback_proto::problem::{Code, Problem};

use super::alone::Alone;
use super::archive::Prefer;
use super::kept::KeepError;
use super::protect::in_time;
use super::put_back::forget_what_never_went;
use super::sql_error::sql_problem;
use super::staging::{self, Staging};
use super::{PostgresDriver, kept, scratch};
use crate::driver::{Done, Failure};
use crate::step::StepContext;
use crate::words::count_of;

impl PostgresDriver {
    pub(super) async fn do_stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let tag = self.tag(step);
        let backups = self.config.backups_dir()?;
        let _alone = step
            .operation("wait_for_turn", Alone::for_step(&self.config, step))
            .await?;
        let sessions = self.connector.patient(step);
        let look = async {
            let state = self.state(sessions).await?;
            let mut c = sessions.live().await?;
            let left = scratch::leftovers(&mut c, &self.config.database, &self.component).await?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>((left, state))
        };
        let (scratch_left, state) = step.operation("look_at_database", look).await?;
        self.clear_leftovers(step, &scratch_left).await?;
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
                return Err(self.or_by_a_restore(step, problem).await.into());
            }
        };
        if let Err(problem) = dropped {
            summary.push_str(&scratch::left_for_now(&name, &problem));
        }
        Ok(Done::new(summary))
    }

    /// Removes what earlier runs left: these scratch databases, and files. Only for whoever is [`Alone`].
    pub(super) async fn clear_leftovers(&self, step: &StepContext, scratch_left: &[String]) -> Result<(), Problem> {
        let sessions = self.connector.patient(step);
        for name in scratch_left {
            if let Err(problem) = step.operation("dropdb", scratch::drop(sessions, name)).await {
                // The next stage tries again. If it is in our way, making the new one says so.
                step.progress(format!("{name} of an earlier run stays for now: {}", problem.message));
            }
        }
        let files_left = staging::remove_leftovers(self.config.backups_dir()?, &scratch::short(&self.component))?
            + self.clear_by_hand()?;
        if scratch_left.len() + files_left > 0 {
            step.progress(format!(
                "removed {} and {} of an earlier run",
                count_of(scratch_left.len(), "scratch database", "scratch databases"),
                count_of(files_left, "file", "files")
            ));
        }
        Ok(())
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
            let left = scratch::leftovers(&mut c, &self.config.database, &self.component).await?;
            if self.config.tool.is_some() {
                forget_what_never_went(&mut c, &kept::schema_name(&tag))
                    .await
                    .map_err(|error| match error {
                        KeepError::Problem(problem) => problem,
                        KeepError::Sql(error) => sql_problem(Code::DatabaseDown, "drop kept rows", &error),
                    })?;
            }
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
