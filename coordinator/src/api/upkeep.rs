//! What becomes of releases after they were recorded: notes, commit and mark; what pins them; and forgetting them.
//!
//! Forgetting goes from the store to the hosts. A release that the store does not have any more is no promise to anybody,
//! so a host that could not be asked costs room and nothing else. The other way round, a crash in between would leave a
//! release that `fleet rollback` offers and that is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use rollback_engine::ids::{ReleaseName, RollbackId, Target};
use rollback_engine::plan::PlanBody;
use rollback_engine::release::{Mark, Release, Revision};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;
use v1::agent_client::AgentClient;

use super::Api;
use super::releases::{check_words, is_unknown_call, traced};
use crate::authority::caller;
use crate::converge;
use crate::convert;
use crate::history;
use crate::hold::{self, Holds};
use crate::leader::Leader;
use crate::objective;
use crate::projection::Summary;
use crate::retention::{self, Grounds, Reason};
use crate::store::{Document, DocumentKind};
use crate::survey;

/// An agent gives itself ten minutes, and its component's turn and a look at it some seconds.
const FORGET_DEADLINE: Duration = Duration::from_secs(11 * 60);
/// So far back is looked for the last rollback that has ended.
const LOOKED_BACK: u32 = 20;

type Reasons = BTreeMap<ReleaseName, Vec<Reason>>;

impl Api {
    pub async fn update_release_mark(
        &self,
        request: Request<v1::UpdateReleaseRequest>,
    ) -> Result<v1::UpdateReleaseResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let v1::UpdateReleaseRequest {
            name,
            notes,
            commit,
            stable,
            reason,
        } = request.into_inner();
        check_name("release", &name)?;
        check_words(
            commit.as_deref().unwrap_or_default(),
            notes.as_deref().unwrap_or_default(),
        )?;
        check_words("", &reason)?;
        if notes.is_none() && commit.is_none() && stable.is_none() {
            return Err(Problem::new(
                Code::BadRequest,
                "nothing is said that could be written down",
            ));
        }
        // Whoever reads the mark in an incident has to know whether to believe it.
        if stable.is_some() && reason.trim().is_empty() {
            return Err(Problem::new(Code::BadRequest, "a mark needs a reason").remedy("say why: --reason TEXT"));
        }
        let leader = self.leader()?;
        let mut release = self.release_called(&name).await?;
        if let Some(notes) = notes {
            release.notes = notes;
        }
        if let Some(commit) = commit {
            release.commit = commit;
        }
        if let Some(stable) = stable {
            tracing::info!(release = name, stable, by, reason, "release marked");
            release.stable = stable;
            release.mark = Some(Mark {
                stable,
                by,
                at: Timestamp::now(),
                reason,
            });
        }
        let fence = leader.shared().term.fence();
        if !self.store().update_release(fence, &release).await? {
            return Err(Problem::new(
                Code::UnknownRelease,
                format!("release {name} was removed meanwhile"),
            ));
        }
        Ok(v1::UpdateReleaseResponse {
            release: Some(self.release_in_full(&name).await?),
        })
    }

    /// With what pins each, and what is held.
    pub async fn all_releases(&self) -> Result<v1::ListReleasesResponse, Problem> {
        let releases = self.store().releases().await?;
        let (reasons, holds) = (self.reasons(&releases).await?, hold::all(self.store()).await?);
        Ok(v1::ListReleasesResponse {
            releases: releases.iter().map(|r| in_full(r, &reasons, &holds)).collect(),
        })
    }

    pub(super) async fn release_in_full(&self, name: &str) -> Result<v1::Release, Problem> {
        let release = self.release_called(name).await?;
        let releases = self.store().releases().await?;
        let (reasons, holds) = (self.reasons(&releases).await?, hold::all(self.store()).await?);
        Ok(in_full(&release, &reasons, &holds))
    }

    /// `releases`: all, newest first.
    async fn reasons(&self, releases: &[Release]) -> Result<Reasons, Problem> {
        let store = self.store();
        let mut running = Vec::new();
        for id in store.running().await? {
            // One that cannot be read is noticed where something would be removed.
            let summary = store.summary(&id).await?;
            if let Some(summary) = summary.and_then(|s| serde_json::from_str::<Summary>(&s).ok()) {
                running.push((id, ReleaseName::from(summary.release.as_str())));
            }
        }
        let grounds = Grounds {
            releases,
            objectives: &objective::all(store).await?,
            running: &running,
            holds: &hold::all(store).await?,
            keep: self.keep,
            checked: self.checked,
        };
        Ok(grounds.reasons())
    }

    pub async fn remove_unpinned(
        &self,
        request: Request<v1::RemoveReleasesRequest>,
    ) -> Result<v1::RemoveReleasesResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let v1::RemoveReleasesRequest { names, dry_run } = request.into_inner();
        for name in &names {
            check_name("release", name)?;
        }
        let leader = self.leader()?;
        if dry_run {
            let releases = self.store().releases().await?;
            let (doomed, pinned) = self.doomed(&releases, &names).await?;
            let removed = doomed.into_iter().map(|release| (release.name.0.clone(), Vec::new()));
            let stay = pinned.into_iter().map(|(name, why)| (name.0, why));
            return Ok(v1::RemoveReleasesResponse {
                releases: removed
                    .chain(stay)
                    .map(|(name, why)| removal(name, why, Vec::new()))
                    .collect(),
            });
        }
        // In a task of its own: what was begun is not left half done because somebody went away.
        let this = self.clone();
        let tasks = leader.shared().tasks.clone();
        let work = tasks.spawn(async move { this.remove_owned(&leader, &names, &by).await });
        work.await
            .map_err(|_| Problem::new(Code::NotLeader, "the term ended while releases were being removed"))?
    }

    async fn remove_owned(
        &self,
        leader: &Leader,
        names: &[String],
        by: &str,
    ) -> Result<v1::RemoveReleasesResponse, Problem> {
        let Ok(_alone) = self.upkeep.try_write() else {
            let message = "a release is being recorded, imported or removed at this moment";
            return Err(Problem::new(Code::ComponentBusy, message).remedy("ask again when that is over"));
        };
        let store = self.store();
        let releases = store.releases().await?;
        let (doomed, pinned) = self.doomed(&releases, names).await?;
        if !pinned.is_empty() {
            let told = pinned.iter().map(|(name, why)| format!("{name}: {}", why.join(", ")));
            let message = format!(
                "nothing was removed; needed are {}",
                told.collect::<Vec<_>>().join("; ")
            );
            return Err(Problem::new(Code::ReleasePinned, message));
        }
        // Read before anything is removed: a journal that cannot be read may need anything.
        let plans = self.plans_that_need().await?;
        let fence = leader.shared().term.fence();
        for release in &doomed {
            store.remove_release(fence, &release.name).await?;
            tracing::info!(release = %release.name, by, "release removed");
        }
        let checks = doomed.iter().map(|release| Document {
            kind: DocumentKind::Readiness,
            key: release.name.0.clone(),
            body: None,
        });
        store.put_documents(fence, &checks.collect::<Vec<_>>()).await?;
        // Also of rollbacks that began meanwhile: from here on none can be planned to what was removed.
        let plans = [plans, self.plans_that_need().await?].concat();
        let stay = releases.iter().filter(|r| doomed.iter().all(|d| d.name != r.name));
        let needed = retention::revisions_needed(stay, &objective::all(store).await?, &plans);
        let mut leftovers = self.forget(&doomed, &needed).await;
        Ok(v1::RemoveReleasesResponse {
            releases: doomed
                .into_iter()
                .map(|release| {
                    let left = leftovers.remove(&release.name).unwrap_or_default();
                    removal(release.name.0.clone(), Vec::new(), left)
                })
                .collect(),
        })
    }

    /// Which of these releases go, and why the others stay. By name, only what is needed stays; without names, whatever has
    /// a reason, and of that nothing is said.
    async fn doomed(
        &self,
        releases: &[Release],
        names: &[String],
    ) -> Result<(Vec<Release>, Vec<(ReleaseName, Vec<String>)>), Problem> {
        let mut reasons = self.reasons(releases).await?;
        if names.is_empty() {
            let unpinned = releases.iter().filter(|r| !reasons.contains_key(&r.name));
            return Ok((unpinned.cloned().collect(), Vec::new()));
        }
        let (mut doomed, mut pinned) = (Vec::new(), Vec::new());
        for name in names {
            let Some(release) = releases.iter().find(|r| r.name.as_str() == name) else {
                // With the names that there are.
                self.release_called(name).await?;
                continue;
            };
            let why = reasons.remove(&release.name).unwrap_or_default();
            let needed: Vec<String> = why.into_iter().filter(|r| r.needed).map(|r| r.why).collect();
            if needed.is_empty() {
                doomed.push(release.clone());
            } else {
                pinned.push((release.name.clone(), needed));
            }
        }
        Ok((doomed, pinned))
    }

    /// The plans of rollbacks that run, and of the last one that has ended: that one may be taken back.
    async fn plans_that_need(&self) -> Result<Vec<PlanBody>, Problem> {
        let store = self.store();
        let mut ids = store.running().await?;
        let newest = history::newest(store, LOOKED_BACK).await?;
        for summary in newest.iter().filter(|summary| summary.ended_at.is_some()) {
            ids.push(RollbackId(summary.id.clone()));
            // Hosts that follow by themselves do not make another one of it.
            if summary.started_by != converge::US {
                break;
            }
        }
        let mut plans = Vec::with_capacity(ids.len());
        for id in ids {
            let state = history::state(store, &id).await?;
            plans.extend(state.run().map(|run| run.plan().body.clone()));
        }
        Ok(plans)
    }

    /// Has the hosts let go of what was only kept for these releases. What they could not, by release.
    async fn forget(
        &self,
        doomed: &[Release],
        needed: &BTreeMap<Target, Vec<Revision>>,
    ) -> BTreeMap<ReleaseName, Vec<String>> {
        // A component does one thing at a time.
        let mut of_target: BTreeMap<&Target, Vec<(&ReleaseName, &Revision)>> = BTreeMap::new();
        for release in doomed {
            for entry in &release.entries {
                of_target
                    .entry(&entry.target)
                    .or_default()
                    .push((&release.name, &entry.revision));
            }
        }
        let mut jobs = Vec::with_capacity(of_target.len());
        for (target, gone) in of_target {
            let kept: &[Revision] = needed.get(target).map_or(&[], Vec::as_slice);
            jobs.push(async move {
                let mut left = Vec::new();
                for (release, revision) in gone {
                    if kept.contains(revision) {
                        continue;
                    }
                    if let Err(problem) = self.forget_one(target, release, revision, kept).await {
                        left.push((
                            release.clone(),
                            format!("{target}: {} ({})", problem.message, problem.code),
                        ));
                    }
                }
                left
            });
        }
        let left: Vec<_> = futures::stream::iter(jobs).buffered(survey::AT_ONCE).collect().await;
        let mut leftovers: BTreeMap<ReleaseName, Vec<String>> = BTreeMap::new();
        for (release, what) in left.into_iter().flatten() {
            leftovers.entry(release).or_default().push(what);
        }
        leftovers
    }

    async fn forget_one(
        &self,
        target: &Target,
        release: &ReleaseName,
        revision: &Revision,
        kept: &[Revision],
    ) -> Result<(), Problem> {
        let ask = async {
            let host = target.host.as_str();
            let channel = self.inventory().channel(host, Duration::from_secs(5)).await?;
            let request = traced(v1::ForgetRequest {
                component: target.component.0.clone(),
                release: release.0.clone(),
                revision: Some(convert::revision_to_wire(revision)),
                kept: kept.iter().map(convert::revision_to_wire).collect(),
            });
            let forgotten = AgentClient::new(channel).forget(request).await;
            forgotten.map_err(|status| {
                if is_unknown_call(&status) {
                    Problem::new(Code::UnsupportedAction, "the agent is too old to forget releases")
                } else {
                    Problem::from_status(&status)
                }
            })
        };
        let answer = tokio::time::timeout(FORGET_DEADLINE, ask).await.map_err(|_| {
            let minutes = FORGET_DEADLINE.as_secs() / 60;
            Problem::new(Code::StepTimeout, format!("no answer within {minutes} minutes"))
        })??;
        tracing::info!(%target, %release, summary = answer.into_inner().summary, "a host let go of a release");
        Ok(())
    }
}

fn removal(name: String, pinned_by: Vec<String>, leftovers: Vec<String>) -> v1::RemovedRelease {
    v1::RemovedRelease {
        name,
        pinned_by,
        leftovers,
    }
}

fn in_full(release: &Release, reasons: &Reasons, holds: &Holds) -> v1::Release {
    let why = reasons.get(&release.name).into_iter().flatten();
    v1::Release {
        pinned_by: why.map(|reason| reason.why.clone()).collect(),
        hold: holds.get(&release.name).map(|hold| hold.to_wire(&release.name)),
        ..convert::release_to_wire(release)
    }
}
