//! What the end of a rollback says: which release was seen to work, which ones the fleet was taken back from and must not be
//! deployed again, and where every component shall be from now on.
//!
//! `previous`, the deployments' gate and `converge` go by this, so nothing is said that nobody has seen. A rollback that left
//! part of the fleet somewhere else on purpose has not seen its release as a whole; one that only exchanged data has not gone
//! anywhere; one that was undone or held says nothing at all.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rollback_engine::event::{Ending, StepResult};
use rollback_engine::ids::{HostName, ReleaseName, RollbackId, Target};
use rollback_engine::machine::State;
use rollback_engine::plan::{Change, PlanBody};
use rollback_engine::release::{Release, ReleaseEntry, Revision, Role};
use rollback_proto::problem::Code;

use crate::hold::{self, Hold};
use crate::objective::{self, Objective, Objectives};
use crate::store::{Closing, Document, DocumentKind, Store, StoreError};
use crate::{converge, convert, history};

/// Of this rollback as it is now; `None`: it has not ended. Only for a good end the store is read: a bad one must not fail
/// over that.
pub async fn of_end(store: &dyn Store, id: &RollbackId, state: &State) -> Result<Option<Closing>, StoreError> {
    let State::Ended { run, ending, at } = state else {
        return Ok(None);
    };
    let failed: BTreeSet<&HostName> = match ending {
        Ending::Verified => BTreeSet::new(),
        Ending::Partial { hosts, .. } => hosts.iter().collect(),
        Ending::Undone { .. } | Ending::Held { .. } => return Ok(Some(Closing::default())),
    };
    let plan = &run.plan().body;
    let releases = store.releases().await?;
    let holds = if plan.holds {
        store.documents(DocumentKind::Hold).await?
    } else {
        Vec::new()
    };
    let end = End {
        id,
        plan,
        verified: *ending == Ending::Verified,
        failed,
        lost: lost_hosts(state, run.skipped_hosts()),
        at: *at,
        started_by: &run.creation.started_by,
        reason: &run.creation.reason,
        before: way_back(store, plan).await?,
        awaited: awaited_by_undone(store, plan).await?,
        releases: &releases,
        held: holds.iter().map(|document| document.key.as_str()).collect(),
    };
    Ok(Some(end.closing()))
}

/// Hosts that stopped answering while it ran, and that no operator left out.
fn lost_hosts(state: &State, skipped: &BTreeSet<HostName>) -> BTreeSet<HostName> {
    let unreachable = Code::HostUnreachable.id();
    let lost = state
        .reports()
        .filter(|report| match report.outcome.map(|o| &o.result) {
            Some(StepResult::Failed(problem)) => problem.code == unreachable,
            Some(StepResult::Succeeded | StepResult::Indeterminate(_)) | None => false,
        });
    let hosts = lost.map(|report| &report.step.target.host);
    hosts.filter(|host| !skipped.contains(*host)).cloned().collect()
}

/// Of a rollback that takes another one back: where that one had come from. What its hosts shall be is in no release.
async fn way_back(store: &dyn Store, plan: &PlanBody) -> Result<BTreeMap<Target, (Role, Revision)>, StoreError> {
    let Some(undone) = plan.undo_of.as_ref().filter(|_| !plan.excused.is_empty()) else {
        return Ok(BTreeMap::new());
    };
    let state = match store.events(undone, 0).await {
        Ok(events) => State::replay(events.into_iter().map(|r| r.event)),
        Err(error @ (StoreError::Unavailable { .. } | StoreError::Fenced(_))) => return Err(error),
        Err(error @ (StoreError::Conflict | StoreError::Damaged { .. } | StoreError::OtherFleet(_))) => {
            tracing::error!(rollback = %undone, %error, "cannot read what is being undone");
            return Ok(BTreeMap::new());
        }
    };
    let state = state
        .inspect_err(|error| tracing::error!(problem = %history::unreadable(undone, error), "it is being undone"))
        .unwrap_or(State::New);
    let changes = state.plan().into_iter().flat_map(|plan| &plan.body.changes);
    let moved = changes.filter(|change| change.moves());
    Ok(moved.map(|c| (c.target.clone(), (c.role, c.from.clone()))).collect())
}

/// Of a rollback that takes another one back: what that one had gone on without and is awaited for it since.
async fn awaited_by_undone(store: &dyn Store, plan: &PlanBody) -> Result<Objectives, StoreError> {
    if plan.undo_of.is_none() {
        return Ok(Objectives::new());
    }
    let mut awaited = objective::all(store).await?;
    awaited.retain(|_, objective| objective.missed && objective.rollback_id == plan.undo_of);
    Ok(awaited)
}

/// A good end, with everything that is needed to say what it means.
struct End<'a> {
    id: &'a RollbackId,
    plan: &'a PlanBody,
    verified: bool,
    /// Hosts on which the target was not reached.
    failed: BTreeSet<&'a HostName>,
    /// Of those, the ones that were away when they were needed.
    lost: BTreeSet<HostName>,
    at: Timestamp,
    started_by: &'a str,
    reason: &'a str,
    /// As [`way_back`].
    before: BTreeMap<Target, (Role, Revision)>,
    /// As [`awaited_by_undone`].
    awaited: Objectives,
    /// All that are recorded, newest first.
    releases: &'a [Release],
    /// Releases that are held already: whoever did that has said why.
    held: BTreeSet<&'a str>,
}

impl End<'_> {
    fn closing(&self) -> Closing {
        let changes: BTreeMap<&Target, &Change> = self.plan.changes.iter().map(|c| (&c.target, c)).collect();
        let moved = self.plan.changes.iter().any(Change::moves);
        let target = self.releases.iter().find(|r| r.name == self.plan.release);
        let reached = |e: &ReleaseEntry| changes.get(&e.target).is_some_and(|c| c.to == e.revision);
        // Taking a rollback back goes to what it had come from, which is not to be recommended for that.
        let proves = self.verified && moved && self.plan.undo_of.is_none();
        let works = target.filter(|release| proves && release.entries.iter().all(reached));
        let abandoned: Vec<&Release> = if moved {
            self.abandoned(target, &changes)
        } else {
            Vec::new()
        };
        let mut documents = self.objectives(target);
        if self.plan.holds {
            let new = abandoned.iter().filter(|r| !self.held.contains(r.name.as_str()));
            documents.extend(new.map(|release| hold::document(&release.name, &self.hold(release))));
        }
        Closing {
            works: works.map(|r| r.name.clone()),
            abandoned: abandoned.into_iter().map(|r| r.name.clone()).collect(),
            documents,
        }
    }

    /// Releases that the fleet was taken back from. Only what is newer than the target: going forward says nothing against
    /// what was left behind. What nobody could look at (hosts that were away, services that were not asked for) speaks neither
    /// for nor against; a rollback of some hosts has not taken back the fleet.
    fn abandoned(&self, target: Option<&Release>, changes: &BTreeMap<&Target, &Change>) -> Vec<&Release> {
        let Some(rank) = target.map(Release::rank) else {
            return Vec::new();
        };
        let asked = &self.plan.selection;
        let every_host = asked.hosts.is_empty() && asked.labels.is_empty() && asked.exclude_hosts.is_empty();
        let outside: BTreeSet<&Target> = self.plan.outside.iter().filter(|_| every_host).collect();
        let away: BTreeSet<&HostName> = self.plan.excused.iter().map(|e| &e.host).collect();
        let fits = |e: &ReleaseEntry| match changes.get(&e.target) {
            Some(change) => change.from == e.revision,
            None => away.contains(&e.target.host) || outside.contains(&e.target),
        };
        let left = |e: &ReleaseEntry| changes.get(&e.target).is_some_and(|c| c.moves());
        let was = |r: &&Release| r.rank() > rank && r.entries.iter().all(fits) && r.entries.iter().any(left);
        self.releases.iter().filter(was).collect()
    }

    fn hold(&self, release: &Release) -> Hold {
        let reason = if self.reason.is_empty() {
            format!("the fleet was taken back from it to {}", self.plan.release)
        } else {
            self.reason.to_owned()
        };
        Hold {
            since: self.at,
            by: self.started_by.to_owned(),
            reason,
            rollback_id: Some(self.id.clone()),
            content: Some(convert::release_digest(release)),
        }
    }

    /// Where everything shall be that the rollback was about.
    fn objectives(&self, target: Option<&Release>) -> Vec<Document> {
        let whole = self.plan.selection.is_everything();
        let mut documents = Vec::with_capacity(self.plan.changes.len());
        for change in &self.plan.changes {
            // What a scoped plan has beside what was asked for shall be where it was to be before.
            if change.left.is_some() && !whole {
                continue;
            }
            let missed = change.moves() && self.failed.contains(&change.target.host);
            // It is awaited as before: a host that goes away whenever it is brought home would else be brought there for ever.
            if missed && self.started_by == converge::US {
                continue;
            }
            let automatic = missed && self.plan.converges && self.lost.contains(&change.target.host);
            let objective = self.objective(&change.target, change.role, &change.to, (missed, automatic));
            documents.push(objective::document(&change.target, &objective));
        }
        // Roles that this runbook leaves where they are, on every host.
        let changes = self.plan.changes.iter();
        let left: BTreeSet<Role> = changes.filter(|c| whole && c.left.is_some()).map(|c| c.role).collect();
        let away: BTreeSet<&HostName> = self.plan.excused.iter().map(|e| &e.host).collect();
        let outside: BTreeSet<&Target> = self.plan.outside.iter().collect();
        let recorded = target.into_iter().flat_map(|release| &release.entries);
        let recorded = recorded.map(|e| (&e.target, e.role, &e.revision));
        let before = self
            .before
            .iter()
            .map(|(target, (role, revision))| (target, *role, revision));
        for (target, role, revision) in recorded.chain(before) {
            if away.contains(&target.host) && !outside.contains(target) && !left.contains(&role) {
                let objective = self.objective(target, role, revision, (true, self.plan.converges));
                documents.push(objective::document(target, &objective));
            }
        }
        let said: BTreeSet<String> = documents.iter().map(|d| d.key.clone()).collect();
        let left = self.awaited.iter().filter(|(t, _)| !said.contains(&t.to_string()));
        documents.extend(left.map(|(t, awaited)| self.not_awaited(t, awaited, target.filter(|_| whole))));
        documents
    }

    /// It was to follow to where nobody is any more: bringing it there by itself would take it away from the others. It was
    /// never moved, so it shall be where the others are again; where that is not known as a whole, a person has to say.
    fn not_awaited(&self, target: &Target, awaited: &Objective, release: Option<&Release>) -> Document {
        let entry = release.and_then(|release| release.entries.iter().find(|e| e.target == *target));
        let objective = match entry {
            Some(entry) => self.objective(target, entry.role, &entry.revision, (false, false)),
            None => Objective {
                automatic: false,
                ..awaited.clone()
            },
        };
        objective::document(target, &objective)
    }

    fn objective(&self, target: &Target, role: Role, revision: &Revision, missed: (bool, bool)) -> Objective {
        Objective {
            role,
            revision: revision.clone(),
            release: self.release_of(target, revision),
            rollback_id: Some(self.id.clone()),
            since: self.at,
            missed: missed.0,
            automatic: missed.1,
        }
    }

    /// The plan's own release, if that is where the revision is from; what was left alone is a part of another one.
    fn release_of(&self, target: &Target, revision: &Revision) -> ReleaseName {
        let has = |release: &&Release| {
            let place = release.entries.binary_search_by(|e| e.target.cmp(target));
            place.is_ok_and(|i| release.entries.get(i).is_some_and(|e| e.revision == *revision))
        };
        let own = self.releases.iter().find(|r| r.name == self.plan.release).filter(has);
        let from = own.or_else(|| self.releases.iter().find(has));
        from.map_or_else(|| self.plan.release.clone(), |r| r.name.clone())
    }
}

#[cfg(test)]
mod tests;
