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

use crate::projection::Summary;
use crate::store::{Document, DocumentKind, Store, StoreError};
use crate::{convert, history};

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

    /// "held since 2026-11-21T03:13:21Z by ana: leaks file handles", for messages.
    pub fn told(&self) -> String {
        let who = match &self.rollback_id {
            Some(id) => format!("rollback {id} (started by {})", self.by),
            None => self.by.clone(),
        };
        let reason = if self.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", self.reason)
        };
        format!("held since {:.0} by {who}{reason}", self.since)
    }
}

pub async fn all(store: &dyn Store) -> Result<Holds, StoreError> {
    Ok(store.documents(DocumentKind::Hold).await?.iter().map(read).collect())
}

pub async fn of(store: &dyn Store, release: &ReleaseName) -> Result<Option<Hold>, StoreError> {
    let document = store.document(DocumentKind::Hold, release.as_str()).await?;
    Ok(document.map(|document| read(&document).1))
}

/// What cannot be read holds all the same: to let a bad release pass is worse than to ask a person.
fn read(document: &Document) -> (ReleaseName, Hold) {
    let hold = serde_json::from_str(document.body.as_deref().unwrap_or_default());
    let hold = hold.unwrap_or_else(|error| Hold {
        since: Timestamp::UNIX_EPOCH,
        by: "somebody".to_owned(),
        reason: format!("what is stored of it is damaged ({error})"),
        rollback_id: None,
        content: None,
    });
    (document.key.as_str().into(), hold)
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
    let message = if *name == release.name {
        format!("release {name} is {}", hold.told())
    } else {
        format!(
            "{} is the same as release {name}, which is {}",
            release.name,
            hold.told()
        )
    };
    Err(refusal(name, message))
}

/// May it be deployed now? Not while it is held, and nothing may while a rollback runs: nobody must deploy into one.
pub async fn gate(store: &dyn Store, release: &ReleaseName) -> Result<v1::CheckGateResponse, Problem> {
    // In this order: a rollback that ends in between has written its holds by then.
    let active = history::running(store).await?;
    let hold = of(store, release).await?;
    let problem = match (&hold, active.first()) {
        (Some(hold), _) => Some(refusal(release, format!("release {release} is {}", hold.told()))),
        (None, Some((id, running))) => {
            let told = running.as_ref().map_or_else(String::new, |s| {
                format!(
                    " (to {}, started by {} at {:.0})",
                    s.release, s.started_by, s.started_at
                )
            });
            let message = format!("rollback {id}{told} runs; nothing may be deployed into it");
            let watch = format!("when it has ended, ask again; watch it: rollbackctl rollback watch {id}");
            Some(Problem::new(Code::ScopeHeld, message).remedy(watch))
        }
        (None, None) => None,
    };
    Ok(v1::CheckGateResponse {
        open: problem.is_none(),
        problem: problem.map(Into::into),
        hold: hold.map(|hold| hold.to_wire(release)),
        active: active
            .iter()
            .filter_map(|(_, s)| s.as_ref())
            .map(Summary::to_wire)
            .collect(),
    })
}

/// With the command that gives it free.
pub fn refusal(release: &ReleaseName, message: String) -> Problem {
    Problem::new(Code::ReleaseHeld, message).remedy(format!(
        "when it is mended, or was not to blame: rollbackctl fleet unhold {release} --reason TEXT"
    ))
}

#[cfg(test)]
mod tests {
    use rollback_engine::ids::{Epoch, Target};
    use rollback_engine::release::{ReleaseEntry, Revision, Role};

    use super::*;
    use crate::store::memory::{MemoryDisk, MemoryStore};
    use crate::store::{Campaign, Candidate, Closing, Fence, NewRollback};

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
        for (refused, named) in [
            (&bad, "v3 is held"),
            (&release("v3", "d4"), "v3 is held"),
            (&release("v3b", "d3"), "v3b is the same as release v3"),
        ] {
            let problem = refuse(refused, &holds).expect_err("it is held");
            assert_eq!(problem.code, Code::ReleaseHeld);
            let told = problem.message;
            assert!(
                told.contains(named) && told.contains("rollback 0198") && told.contains("it loses sessions"),
                "{told}"
            );
        }
        refuse(&release("v4", "d4"), &holds).expect("it is another one");
        let empty = Release {
            entries: Vec::new(),
            ..release("v4", "")
        };
        let holds = Holds::from([(
            "v0".into(),
            Hold {
                content: Some(convert::release_digest(&empty)),
                ..holds[&bad.name].clone()
            },
        )]);
        refuse(&empty, &holds).expect("that it names nothing makes it like no other");
    }

    /// From the store alone: before, during and after a rollback, and when somebody has said that all is well.
    #[tokio::test(start_paused = true)]
    async fn gate_is_closed_while_a_rollback_runs_and_by_what_it_holds() {
        let store = MemoryStore::open(&MemoryDisk::new());
        let candidate = Candidate {
            id: "a".to_owned(),
            endpoint: String::new(),
        };
        let ttl = std::time::Duration::from_secs(60);
        let campaign = store.campaign(&candidate, ttl, Epoch(1)).await.expect("campaign");
        assert_eq!(campaign, Campaign::Won(Epoch(1)));
        let fence = Fence {
            epoch: Epoch(1),
            leader: candidate.id,
        };
        let (bad, other) = (ReleaseName::from("v3"), ReleaseName::from("v4"));
        let code = async |release: &ReleaseName| {
            let answer = gate(&store, release).await.expect("gate");
            assert_eq!(answer.open, answer.problem.is_none());
            answer.problem.map(|p| p.code)
        };
        assert_eq!(code(&bad).await, None, "nobody knows anything of it");

        let new = NewRollback {
            id: "r1".into(),
            request_id: "q1".to_owned(),
            scope: vec![Target::new("app-1", "api")],
            events: Vec::new(),
            // It cannot be read, and runs all the same.
            summary: "{".to_owned(),
        };
        store.create(&fence, &new).await.expect("create");
        for release in [&bad, &other] {
            assert_eq!(code(release).await.as_deref(), Some(Code::ScopeHeld.id()));
        }
        let hold = Hold {
            since: Timestamp::UNIX_EPOCH,
            by: "ana".to_owned(),
            reason: "it leaks".to_owned(),
            rollback_id: Some(new.id.clone()),
            content: None,
        };
        let closing = Closing {
            documents: vec![document(&bad, &hold)],
            ..Closing::default()
        };
        store
            .append(&fence, &new.id, 0, &[], "{", Some(&closing))
            .await
            .expect("end");
        assert_eq!(code(&bad).await.as_deref(), Some(Code::ReleaseHeld.id()));
        assert_eq!(code(&other).await, None);
        store.put_documents(&fence, &[given_free(&bad)]).await.expect("put");
        assert_eq!(code(&bad).await, None);

        let damaged = Document {
            body: Some("{".to_owned()),
            ..given_free(&bad)
        };
        store.put_documents(&fence, &[damaged]).await.expect("put");
        assert_eq!(
            code(&bad).await.as_deref(),
            Some(Code::ReleaseHeld.id()),
            "what cannot be read holds"
        );
    }
}
