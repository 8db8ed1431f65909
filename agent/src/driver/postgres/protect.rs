//! `snapshot`: seals the backup that `stage` proved if it is young enough, and makes and proves a new one otherwise. And
//! the same without a rollback: a backup by hand, from cron, or whenever a release is recorded.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use super::alone::Alone;
use super::backup::{self, Backup};
use super::backups;
use super::config::Verify;
use super::connect::Sessions;
use super::manifest::Manifest;
use super::scratch::BY_HAND;
use super::staging::{self, Staging};
use super::tools::Tools;
use super::{PostgresDriver, scratch};
use crate::driver::{Action, Done, Failure, Revision};
use crate::step::{ProgressSink, StepContext};
use crate::words::{count, count_of};

/// How long a backup may last when a release is recorded; the agent gives it ten minutes for everything.
pub(super) const RETAINING: Duration = Duration::from_secs(570);

impl PostgresDriver {
    pub(super) async fn do_snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        let _alone = step
            .operation("wait_for_turn", Alone::for_step(&self.config, step))
            .await?;
        Ok(self.seal_one(step, &self.tag(step)).await?)
    }

    /// A sealed backup now, outside of any rollback. Refused while a step, or another one like this, makes copies of the
    /// same database.
    pub async fn back_up(&self, limit: Duration, progress: Arc<dyn ProgressSink>) -> Result<Done, Problem> {
        let _alone = Alone::now(&self.config, &self.component, "a backup by hand")?;
        let step = self.step_by_hand("backup", limit, progress);
        self.begin_by_hand(&step).await?;
        let tag = self.tag_by_hand(&step);
        let sealed = self.seal_one(&step, &tag).await;
        Staging::new(&self.config.backups, &tag).remove()?;
        sealed
    }

    /// A step that belongs to no rollback.
    pub(super) fn step_by_hand(&self, what: &str, limit: Duration, progress: Arc<dyn ProgressSink>) -> StepContext {
        // Nothing reads them: a backup shows whatever is live.
        let nowhere = || Revision {
            version: String::new(),
            digest: String::new(),
        };
        StepContext::new(
            format!("{what}-{}", uuid::Uuid::now_v7()),
            self.component.clone(),
            Action::Snapshot,
            nowhere(),
            nowhere(),
            limit,
            self.archive.vault(),
            progress,
        )
    }

    /// Like the tag of a rollback, and never taken for one: a rollback that is between two steps still needs its files.
    pub(super) fn tag_by_hand(&self, step: &StepContext) -> String {
        format!("{BY_HAND}{}", self.tag(step))
    }

    /// Removes what runs by hand left that were killed, and copies that nobody works on now; whoever calls is [`Alone`].
    pub(super) async fn begin_by_hand(&self, step: &StepContext) -> Result<(), Problem> {
        let sessions = self.connector.patient(step);
        let mut c = sessions.live().await?;
        let left = scratch::leftovers(&mut c, &self.config.database, &self.component).await?;
        let _ = sqlx::Connection::close(c).await;
        for name in &left {
            if let Err(problem) = step.operation("dropdb", scratch::drop(sessions, name)).await {
                step.progress(format!("{name} of an earlier run stays for now: {}", problem.message));
            }
        }
        self.clear_by_hand()?;
        Ok(())
    }

    /// Files that runs by hand left: how many.
    pub(super) fn clear_by_hand(&self) -> Result<usize, Problem> {
        let owner = format!("{BY_HAND}{}", scratch::short(&self.component));
        staging::remove_leftovers(self.config.backups_dir()?, &owner)
    }

    async fn seal_one(&self, step: &StepContext, tag: &str) -> Result<Done, Problem> {
        let staging = Staging::new(self.config.backups_dir()?, tag);
        let backup = self.backup(step, &staging, tag);
        let staged: Option<Manifest> = staging::read_json(&staging.manifest())?;
        let max_age = self.config.snapshot_max_age;
        let fresh = staged.filter(|m| m.rollback_id == step.rollback_id && m.proof.is_some() && age(m) <= max_age);
        let (manifest, made, mut warning) = match fresh {
            Some(manifest) => (manifest, "staged", String::new()),
            None => {
                let (manifest, warning) = self.make_backup(step, &backup, tag).await?;
                (manifest, "new", warning)
            }
        };
        for what in &manifest.broken {
            warning.push_str(&format!("; warning: {what}"));
        }
        let receipt = backup.seal(&manifest).await?;
        let recorded = |revision: &str| matches!(self.archive.recorded(revision), Ok(Some(_)));
        let retired = backups::retire(&self.config, &self.component, Path::new(&receipt.path), recorded)?;
        let summary = format!(
            "{made} backup, {}, {}, {}, verified by {}{}{warning}",
            backup::people_bytes(receipt.bytes),
            count(receipt.tables, "table", "tables"),
            count(receipt.rows, "row", "rows"),
            receipt.verified,
            if retired > 0 {
                format!("; {} removed", count_of(retired, "older one", "older ones"))
            } else {
                String::new()
            }
        );
        Ok(Done {
            summary,
            receipt: Some(receipt),
            ..Done::default()
        })
    }

    /// A backup of its own, and what a summary has to warn of.
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
            let proven = in_time(step, backup.prove(&tools, &mut manifest, &schema, &name)).await;
            let dropped = step.operation("dropdb", scratch::drop(backup.sessions, &name)).await;
            proven?;
            if let Err(problem) = dropped {
                warning = scratch::left_for_now(&name, &problem);
            }
        }
        manifest.proof = Some(self.config.verify.into());
        staging::write_json(&backup.staging.manifest(), &manifest)?;
        Ok((manifest, warning))
    }

    pub(super) fn backup<'a>(&'a self, step: &'a StepContext, staging: &'a Staging, tag: &'a str) -> Backup<'a> {
        Backup {
            sessions: self.connector.patient(step),
            config: &self.config,
            step,
            archive: &self.archive,
            staging,
            tag,
        }
    }

    pub(super) async fn tools(&self, sessions: Sessions<'_>) -> Result<(Tools, u32), Problem> {
        let version = self.server_version(sessions).await?;
        Ok((
            Tools::find(&self.config, &scratch::short(&self.component), version / 10_000).await?,
            version,
        ))
    }
}

/// Cuts work off at the step's deadline, while there is still somebody to clear up behind it.
pub(super) async fn in_time<T>(
    step: &StepContext,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
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
