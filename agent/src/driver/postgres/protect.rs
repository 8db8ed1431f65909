//! `snapshot`: seals the backup that `stage` proved if it is young enough, and makes and proves a new one otherwise.

use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use super::backup::{self, Backup, Manifest};
use super::config::Verify;
use super::connect::Sessions;
use super::staging::{self, Staging};
use super::tools::Tools;
use super::{PostgresDriver, scratch};
use crate::driver::{Done, Failure};
use crate::step::StepContext;

impl PostgresDriver {
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
            receipt: Some(receipt),
            ..Done::default()
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

    pub(super) fn backup<'a>(&'a self, step: &'a StepContext, staging: &'a Staging, tag: &'a str) -> Backup<'a> {
        Backup {
            sessions: self.connector.patient(step),
            config: &self.config,
            step,
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
