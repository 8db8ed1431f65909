//! What must survive a kill and cannot be written on a container, because labels are fixed when it is made: the restart
//! policy that was taken away, that it was this driver that set it aside, and which of its variables came from the env
//! file. One small document per component in the vault.
//!
//! Notes are written before the change that they are about. Those of containers that are gone are dropped at the end of
//! a rollback.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::RestartPolicy;
use rollback_proto::problem::Problem;
use serde::{Deserialize, Serialize};

use super::managed::Managed;
use super::seen::{LABEL_COMPONENT, LABEL_POLICY, Seen, is_never};
use crate::files::{blocking, vault_problem};

const KEY: &str = "containers";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// By container id, as are the others.
    pub policies: BTreeMap<String, RestartPolicy>,
    pub aside: BTreeSet<String>,
    pub env_names: BTreeMap<String, BTreeSet<String>>,
}

impl Notes {
    /// The policy that a container has when it is in use.
    pub fn policy_of(&self, container: &Seen) -> RestartPolicy {
        if let Some(policy) = self.policies.get(container.id()) {
            return policy.clone();
        }
        let current = container.policy();
        if !is_never(&current) {
            return current;
        }
        container
            .label(LABEL_POLICY)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(current)
    }

    /// Was it made or set aside by this driver, for this component?
    pub fn ours(&self, container: &Seen, component: &str) -> bool {
        container.label(LABEL_COMPONENT) == Some(component) || self.aside.contains(container.id())
    }

    pub fn keep_only(&mut self, ids: &BTreeSet<String>) {
        self.policies.retain(|id, _| ids.contains(id));
        self.env_names.retain(|id, _| ids.contains(id));
        self.aside.retain(|id| ids.contains(id));
    }
}

impl Managed {
    pub async fn notes(&self) -> Result<Notes, Problem> {
        let (vault, component) = (self.vault.clone(), self.component.clone());
        blocking(move || vault.pinned(&component, KEY).map_err(|e| vault_problem(&e)))
            .await
            .map(Option::unwrap_or_default)
    }

    /// Remembers that a container is set aside by this driver. One that it made says so by itself: no way back of such a
    /// one needs the vault to be writable.
    pub async fn note_aside(&self, container: &Seen) -> Result<(), Problem> {
        if self.notes().await?.ours(container, &self.component) {
            return Ok(());
        }
        self.note(|n| {
            n.aside.insert(container.id().to_owned());
        })
        .await
        .map(drop)
    }

    /// Changes the notes; durable when it returns. One step of a component runs at a time, so nobody else does.
    pub async fn note(&self, change: impl FnOnce(&mut Notes)) -> Result<Notes, Problem> {
        let before = self.notes().await?;
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            let (vault, component, document) = (self.vault.clone(), self.component.clone(), after.clone());
            blocking(move || vault.pin(&component, KEY, &document).map_err(|e| vault_problem(&e))).await?;
        }
        Ok(after)
    }
}
