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
        policy_on(container).unwrap_or(current)
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

/// The policy that is written on a container that this driver made.
fn policy_on(container: &Seen) -> Option<RestartPolicy> {
    serde_json::from_str(container.label(LABEL_POLICY)?).ok()
}

impl Managed {
    /// Writes down the policy that is about to be taken away. One that was taken already is not overwritten, and one that
    /// is written on the container needs no note: a full disk must not bar the way back from what this driver made.
    pub async fn note_policy(&self, container: &Seen) -> Result<(), Problem> {
        let (policy, made_with) = (container.policy(), policy_on(container));
        self.note(|n| {
            if !is_never(&policy) {
                if made_with.as_ref() == Some(&policy) {
                    n.policies.remove(container.id());
                } else {
                    n.policies.insert(container.id().to_owned(), policy);
                }
            } else if container.running() && made_with.is_none() {
                n.policies.entry(container.id().to_owned()).or_insert(policy);
            }
        })
        .await
        .map(drop)
    }

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
