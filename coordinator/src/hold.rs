//! Releases that must not be deployed. A rollback holds those that it took the fleet back from; operators hold and give free.
//!
//! Holding forbids recording a release again and closes the gate that deployments ask. It does not forbid going back to one:
//! whoever does that in an incident knows why.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rollback_engine::ids::{ReleaseName, RollbackId};
use rollback_engine::release::Release;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use serde::{Deserialize, Serialize};

use crate::convert;
use crate::store::{Document, DocumentKind, Store, StoreError};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub since: Timestamp,
    /// Operator, or whoever started the rollback.
    pub by: String,
    pub reason: String,
    /// `None`: an operator held it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_id: Option<RollbackId>,
    /// Digest of what the release names, so that it is known under another name. `None`: it was not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

pub type Holds = BTreeMap<ReleaseName, Hold>;

impl Hold {
    pub fn to_wire(&self, release: &ReleaseName) -> v1::Hold {
        v1::Hold {
            release: release.0.clone(),
            since: Some(convert::timestamp(self.since)),
            by: self.by.clone(),
            reason: self.reason.clone(),
            rollback_id: self.rollback_id.as_ref().map(|id| id.0.clone()).unwrap_or_default(),
        }
    }

    /// Who holds it, since when and why, for messages.
    pub fn told(&self) -> String {
        let reason = if self.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", self.reason)
        };
        let who = match &self.rollback_id {
            Some(id) => format!("rollback {id}, started by {},", self.by),
            None => self.by.clone(),
        };
        format!("{who} holds it since {:.0}{reason}", self.since)
    }
}

pub async fn all(store: &dyn Store) -> Result<Holds, StoreError> {
    store.documents(DocumentKind::Hold).await?.iter().map(read).collect()
}

pub async fn of(store: &dyn Store, release: &ReleaseName) -> Result<Option<Hold>, StoreError> {
    let document = store.document(DocumentKind::Hold, release.as_str()).await?;
    let read = document.as_ref().map(read).transpose()?;
    Ok(read.map(|(_, hold)| hold))
}

/// What cannot be read closes the gate: to let a bad release pass is worse than to ask a person.
fn read(document: &Document) -> Result<(ReleaseName, Hold), StoreError> {
    let hold = serde_json::from_str(document.body.as_deref().unwrap_or_default());
    let hold = hold.map_err(|e| StoreError::Damaged {
        what: "the hold of a release",
        why: format!("{}: {e}", document.key),
    })?;
    Ok((document.key.as_str().into(), hold))
}

pub fn document(release: &ReleaseName, hold: &Hold) -> Document {
    let body = serde_json::to_string(hold).expect("words and a time can always be written");
    Document {
        kind: DocumentKind::Hold,
        key: release.0.clone(),
        body: Some(body),
    }
}

pub fn given_free(release: &ReleaseName) -> Document {
    Document {
        kind: DocumentKind::Hold,
        key: release.0.clone(),
        body: None,
    }
}

/// Refuses what must not be recorded: a release that is held, and the same content by another name.
pub fn refuse(release: &Release, holds: &Holds) -> Result<(), Problem> {
    let content = convert::release_digest(release);
    let same = |hold: &Hold| !release.entries.is_empty() && hold.content.as_ref() == Some(&content);
    // By its own name first, whatever else it is like.
    let by_name = holds.get_key_value(&release.name);
    let Some((name, hold)) = by_name.or_else(|| holds.iter().find(|(_, hold)| same(hold))) else {
        return Ok(());
    };
    let what = if *name == release.name {
        format!("release {name} is held")
    } else {
        format!("{} is the same as release {name}, which is held", release.name)
    };
    Err(refusal(name, format!("{what}: {}", hold.told())))
}

/// With the command that gives it free.
pub fn refusal(release: &ReleaseName, message: String) -> Problem {
    Problem::new(Code::ReleaseHeld, message).remedy(format!(
        "when it is mended, or was not to blame: rollbackctl fleet unhold {release} --reason TEXT"
    ))
}

#[cfg(test)]
mod tests {
    use rollback_engine::ids::Target;
    use rollback_engine::release::{ReleaseEntry, Revision, Role};

    use super::*;

    fn release(name: &str, digest: &str) -> Release {
        Release {
            name: name.into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: Timestamp::UNIX_EPOCH,
            recorded_by: "ana".to_owned(),
            entries: vec![ReleaseEntry {
                target: Target::new("app-1", "api"),
                role: Role::App,
                revision: Revision {
                    version: name.to_owned(),
                    digest: digest.into(),
                },
                summary: String::new(),
            }],
            stable: false,
            ranks_at: None,
            mark: None,
        }
    }

    /// A pipeline that runs again gives the same content another name.
    #[test]
    fn what_is_held_is_recorded_by_no_name() {
        let bad = release("v3", "d3");
        let hold = Hold {
            since: Timestamp::UNIX_EPOCH,
            by: "ana".to_owned(),
            reason: "it loses sessions".to_owned(),
            rollback_id: Some("0198".into()),
            content: Some(convert::release_digest(&bad)),
        };
        let holds = Holds::from([(bad.name.clone(), hold)]);
        for (refused, named) in [(&bad, "v3 is held"), (&release("v3", "d4"), "v3 is held"), (&release("v3b", "d3"), "v3b is the same as release v3")] {
            let problem = refuse(refused, &holds).expect_err("it is held");
            assert_eq!(problem.code, Code::ReleaseHeld);
            let told = problem.message;
            assert!(told.contains(named) && told.contains("rollback 0198") && told.contains("it loses sessions"), "{told}");
        }
        refuse(&release("v4", "d4"), &holds).expect("it is another one");
        let empty = Release { entries: Vec::new(), ..release("v4", "") };
        let holds = Holds::from([("v0".into(), Hold { content: Some(convert::release_digest(&empty)), ..holds[&bad.name].clone() })]);
        refuse(&empty, &holds).expect("that it names nothing makes it like no other");
    }
}
