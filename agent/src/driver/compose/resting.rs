//! Stopped stays stopped: with `restart: always`, an engine that comes up starts what was stopped.
//!
//! Compose cannot say this of a container, so the engine is told: `always` becomes `unless-stopped`, which means the same
//! in every other respect, and becomes `always` again when the container was started. Which containers had it is noted
//! before. What Compose makes anew has the file's policy by itself.

use std::collections::BTreeSet;

use bollard::models::{ContainerUpdateBody, RestartPolicy, RestartPolicyNameEnum};
use rollback_proto::problem::Problem;

use super::ComposeDriver;
use super::running::{self, Container};
use crate::engine::{REQUEST_LIMIT, within};
use crate::files::{blocking, vault_problem};

/// Ids of the containers that had `always`.
const KEY: &str = "restart-always";

impl ComposeDriver {
    /// Those of the containers that an engine that comes up would start although they are stopped.
    pub async fn reviving(&self, containers: &[Container]) -> Result<BTreeSet<String>, Problem> {
        let mut found = BTreeSet::new();
        for container in containers {
            let details = running::details(&self.engine, &container.id).await?;
            if details.is_some_and(|d| d.policy == RestartPolicyNameEnum::ALWAYS) {
                found.insert(container.id.clone());
            }
        }
        Ok(found)
    }

    /// Keeps the engine from starting them once they are stopped.
    pub async fn hold_back(&self, containers: &[Container]) -> Result<(), Problem> {
        let reviving = self.reviving(containers).await?;
        if reviving.is_empty() {
            return Ok(());
        }
        let mut noted = self.held_back().await?;
        noted.extend(reviving.iter().cloned());
        self.note(noted).await?;
        for id in &reviving {
            self.set_policy(id, RestartPolicyNameEnum::UNLESS_STOPPED).await?;
        }
        Ok(())
    }

    /// Gives back what `hold_back` took, where the container is still there.
    pub async fn let_go(&self, containers: &[Container]) -> Result<(), Problem> {
        let noted = self.held_back().await?;
        if noted.is_empty() {
            return Ok(());
        }
        for container in containers.iter().filter(|c| noted.contains(&c.id)) {
            self.set_policy(&container.id, RestartPolicyNameEnum::ALWAYS).await?;
        }
        if let Err(problem) = self.note(BTreeSet::new()).await {
            // The containers have their policy; the next start drops the note.
            tracing::warn!(%problem, "the note of restart policies was left behind");
        }
        Ok(())
    }

    async fn held_back(&self) -> Result<BTreeSet<String>, Problem> {
        let (vault, component) = (self.vault.clone(), self.component.clone());
        blocking(move || vault.pinned(&component, KEY).map_err(|e| vault_problem(&e)))
            .await
            .map(Option::unwrap_or_default)
    }

    async fn note(&self, ids: BTreeSet<String>) -> Result<(), Problem> {
        let (vault, component) = (self.vault.clone(), self.component.clone());
        blocking(move || vault.pin(&component, KEY, &ids).map_err(|e| vault_problem(&e))).await
    }

    async fn set_policy(&self, id: &str, name: RestartPolicyNameEnum) -> Result<(), Problem> {
        let client = self.engine.client().await?;
        let change = ContainerUpdateBody {
            restart_policy: Some(RestartPolicy {
                name: Some(name),
                maximum_retry_count: Some(0),
            }),
            ..ContainerUpdateBody::default()
        };
        let what = format!("set the restart policy of container {}", running::short(id));
        within(REQUEST_LIMIT, &what, client.update_container(id, change)).await
    }
}
