//! Where every component shall be, as the last one said who had the right to: a release that was recorded, or a rollback that
//! ended well. What is observed elsewhere has drifted; `converge` takes it where it shall be.
//!
//! Invariants:
//! - One document for each component, so that two rollbacks over parts of one host do not write over each other's words.
//! - A rollback that was undone or held says nothing: what was right before is right still, or for a person to say.
//! - Only hosts that were away are brought home without being asked ([`Objective::automatic`]). Where something failed, or an
//!   operator went on without a host, somebody has to look first.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rollback_engine::ids::{ComponentName, HostName, ReleaseName, RollbackId, Target};
use rollback_engine::release::{Release, ReleaseEntry, Revision, Role};
use rollback_proto::v1;
use serde::{Deserialize, Serialize};

use crate::convert;
use crate::store::{Document, DocumentKind, Store, StoreError};
use crate::survey::{HostSurvey, Seen, Sight};

/// Where a component shall be, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    pub role: Role,
    pub revision: Revision,
    /// Of which the revision is a part.
    pub release: ReleaseName,
    /// `None`: the release was recorded so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_id: Option<RollbackId>,
    pub since: Timestamp,
    /// The rollback ended without having brought the component there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// Missed because its host was away, and the runbook has it brought there as soon as it is back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

pub type Objectives = BTreeMap<Target, Objective>;

pub async fn all(store: &dyn Store) -> Result<Objectives, StoreError> {
    Ok(read(&store.documents(DocumentKind::Objective).await?))
}

pub async fn of_host(store: &dyn Store, host: &str) -> Result<Objectives, StoreError> {
    let documents = store
        .documents_under(DocumentKind::Objective, &format!("{host}/"))
        .await?;
    Ok(read(&documents))
}

/// One that cannot be read is left out: it must not keep the others from being known, and the next record or rollback
/// writes it anew.
pub fn read(documents: &[Document]) -> Objectives {
    let one = |document: &Document| {
        let target = convert::target(&document.key).ok()?;
        match serde_json::from_str(document.body.as_deref()?) {
            Ok(objective) => Some((target, objective)),
            Err(error) => {
                tracing::error!(%target, %error, "where it shall be is damaged in the store");
                None
            }
        }
    };
    documents.iter().filter_map(one).collect()
}

pub fn document(target: &Target, objective: &Objective) -> Document {
    let body = serde_json::to_string(objective).expect("names, digests and a time can always be written");
    Document {
        kind: DocumentKind::Objective,
        key: target.to_string(),
        body: Some(body),
    }
}

/// What recording a release says: everything is where it shall be. `before`: what was said until now. Components that the
/// release does not have shall be nowhere.
pub fn recorded(release: &Release, before: &Objectives) -> Vec<Document> {
    let said = |entry: &ReleaseEntry| {
        let objective = Objective {
            role: entry.role,
            revision: entry.revision.clone(),
            release: release.name.clone(),
            rollback_id: None,
            since: release.recorded_at,
            missed: false,
            automatic: false,
        };
        document(&entry.target, &objective)
    };
    let named: BTreeSet<&Target> = release.entries.iter().map(|e| &e.target).collect();
    let nowhere = |target: &Target| Document {
        kind: DocumentKind::Objective,
        key: target.to_string(),
        body: None,
    };
    let gone = before.keys().filter(|t| !named.contains(t)).map(nowhere);
    release.entries.iter().map(said).chain(gone).collect()
}

/// What is not where it shall be, by host and component. What does not answer is named when a rollback missed it, and only
/// then: that a host is away is said of the host itself.
pub fn drift(objectives: &Objectives, survey: &[HostSurvey]) -> Vec<v1::Drift> {
    let sight = Sight::of(survey);
    let drifted = |(target, objective): (&Target, &Objective)| {
        let observed = match sight.seen(target) {
            Seen::At(revision) if revision == objective.revision => return None,
            Seen::At(revision) => Some(revision),
            Seen::Unknown if objective.missed => None,
            Seen::Unknown | Seen::Nowhere => return None,
        };
        Some(v1::Drift {
            host: target.host.0.clone(),
            component: target.component.0.clone(),
            expected: Some(convert::revision_to_wire(&objective.revision)),
            observed: observed.as_ref().map(convert::revision_to_wire),
            release: objective.release.0.clone(),
            rollback_id: objective
                .rollback_id
                .as_ref()
                .map(|id| id.0.clone())
                .unwrap_or_default(),
            since: Some(convert::timestamp(objective.since)),
            missed: objective.missed,
            automatic: objective.automatic,
        })
    };
    objectives.iter().filter_map(drifted).collect()
}

/// What would take the fleet where it shall be.
#[derive(Clone, Debug)]
pub struct Convergence {
    /// Where everything shall be. It is recorded nowhere; its name is for people.
    pub release: Release,
    /// Where something is elsewhere, and can be reached. The others have to be left out of the plan.
    pub hosts: BTreeSet<HostName>,
}

/// Of a release whose parts come from several.
const SEVERAL: &str = rollback_engine::release::OBJECTIVES;

/// `None`: nothing that can be reached is elsewhere.
pub fn convergence(objectives: &Objectives, survey: &[HostSurvey]) -> Option<Convergence> {
    converging(objectives, survey, |_| true)
}

/// Only hosts on which `counts` is true of what is elsewhere.
pub fn converging(
    objectives: &Objectives,
    survey: &[HostSurvey],
    counts: impl Fn(&Objective) -> bool,
) -> Option<Convergence> {
    let sight = Sight::of(survey);
    let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut entries = Vec::with_capacity(objectives.len());
    for (target, objective) in objectives {
        match sight.seen(target) {
            Seen::Nowhere => continue,
            Seen::At(revision) if revision != objective.revision && counts(objective) => {
                hosts.insert(target.host.clone());
                names.insert(&objective.release);
            }
            Seen::At(_) | Seen::Unknown => {}
        }
        entries.push(ReleaseEntry {
            target: target.clone(),
            role: objective.role,
            revision: objective.revision.clone(),
            summary: String::new(),
        });
    }
    let name = match names.pop_first() {
        None => return None,
        Some(one) if names.is_empty() => one.clone(),
        Some(_) => SEVERAL.into(),
    };
    let release = Release {
        name,
        commit: String::new(),
        notes: String::new(),
        // Of no meaning: it is never stored, and stands before and after no other one.
        recorded_at: Timestamp::UNIX_EPOCH,
        recorded_by: String::new(),
        entries,
        stable: false,
        ranks_at: None,
        mark: None,
    };
    Some(Convergence { release, hosts })
}

/// A component that somebody has taken elsewhere since, and that this host has something to do with: what it has itself on
/// another host, or a database. By a rollback that left this host out, or by a deployment: while a host is away no release can
/// be recorded, so that shows only by where things are. Nobody may take a host away from the others without being asked.
pub fn gone_elsewhere<'o>(objectives: &'o Objectives, survey: &[HostSurvey], host: &HostName) -> Option<&'o Target> {
    let sight = Sight::of(survey);
    let of_host = objectives.keys().filter(|target| target.host == *host);
    let names: BTreeSet<&ComponentName> = of_host.map(|target| &target.component).collect();
    let automatic = objectives.iter().filter(|(t, o)| t.host == *host && o.automatic);
    let awaited = automatic.map(|(_, o)| o).max_by_key(|o| o.since);
    let sent = |o: &Objective| awaited.is_some_and(|awaited| o.since > awaited.since && o.release != awaited.release);
    let concerns = |target: &Target, o: &Objective| {
        target.host != *host && !o.missed && (o.role == Role::Database || names.contains(&target.component))
    };
    let gone = objectives
        .iter()
        .filter(|(target, o)| concerns(target, o))
        .find(|(target, o)| sent(o) || matches!(sight.seen(target), Seen::At(revision) if revision != o.revision));
    gone.map(|(target, _)| target)
}

/// What is awaited of these: where rollbacks went on without them.
pub fn awaited(objectives: &Objectives) -> Vec<v1::Awaited> {
    let missed = objectives.iter().filter(|(_, objective)| objective.missed);
    let awaited = missed.map(|(target, objective)| v1::Awaited {
        component: target.component.0.clone(),
        revision: Some(convert::revision_to_wire(&objective.revision)),
        release: objective.release.0.clone(),
        rollback_id: objective
            .rollback_id
            .as_ref()
            .map(|id| id.0.clone())
            .unwrap_or_default(),
        automatic: objective.automatic,
    });
    awaited.collect()
}

#[cfg(test)]
mod tests;
