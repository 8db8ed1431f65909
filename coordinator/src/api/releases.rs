//! Recording and reading releases; importing is in the file beside this one.

use futures::StreamExt as _;
use jiff::Timestamp;
use rollback_engine::ids::{ReleaseName, Target};
use rollback_engine::release::{Release, ReleaseEntry, Revision};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use std::time::Duration;
use tonic::Request;
use v1::agent_client::AgentClient;

use super::{Api, expected};
use crate::authority::caller;
use crate::convert;
use crate::inventory::AgentView;
use crate::store::ComponentRecord;
use crate::{hold, objective, survey};

/// Copying a release directory into the vault may take a while.
const RETAIN_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How many failures an error message lists.
const LISTED: usize = 8;

/// The name that means "the newest stable release that is not what runs now".
pub(super) const PREVIOUS: &str = "previous";

/// Which revision of a component is pinned for a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// What is live now.
    Live,
    /// What goes by the release's name on its host.
    Named,
}

/// Is this a name that a release may have, with words of a reasonable length?
pub(super) fn check_new(name: &str, commit: &str, notes: &str) -> Result<(), Problem> {
    check_name("release", name)?;
    if name == PREVIOUS || name == "now" {
        return Err(Problem::new(
            Code::BadName,
            format!("{name:?} has a meaning of its own; choose another name"),
        ));
    }
    check_words(commit, notes)
}

pub(super) fn check_words(commit: &str, notes: &str) -> Result<(), Problem> {
    if commit.len() > 256 || notes.len() > 16 * 1024 {
        return Err(Problem::new(
            Code::BadRequest,
            "commit is longer than 256 bytes, or what is said than 16 KiB",
        ));
    }
    Ok(())
}

pub(super) fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    rollback_proto::telemetry::inject_current(request.metadata_mut());
    request
}

fn observed(survey: &[survey::HostSurvey]) -> Vec<(Target, Revision)> {
    let hosts = survey
        .iter()
        .filter_map(|host| Some((host, host.states.as_ref().ok()?)));
    let all = hosts.flat_map(|(host, states)| {
        states.iter().filter_map(|state| {
            let target = Target::new(host.agent.record.name.as_str(), state.component.as_str());
            Some((target, convert::revision_from_wire(state.revision.clone()?)))
        })
    });
    all.collect()
}

/// An agent from before the call says "unimplemented"; a driver that cannot do something says so with a code of ours.
pub(super) fn is_unknown_call(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::Unimplemented && Problem::from_status(status).code == Code::Internal
}

impl Api {
    pub async fn record(
        &self,
        request: Request<v1::RecordReleaseRequest>,
    ) -> Result<v1::RecordReleaseResponse, Problem> {
        let recorded_by = caller(&request)?.identity.name;
        let v1::RecordReleaseRequest {
            name,
            commit,
            notes,
            expected,
        } = request.into_inner();
        check_new(&name, &commit, &notes)?;
        let leader = self.leader()?;
        // A held name is refused before the hosts copy anything.
        if let Some(hold) = hold::of(self.store(), &name.as_str().into()).await? {
            let message = format!("release {name} is {}", hold.told());
            return Err(hold::refusal(&name.as_str().into(), message));
        }
        // Nothing is forgotten while something is recorded: it might be the same.
        let _recording = self.upkeep.read().await;
        let agents = self.inventory().list();
        if agents.iter().all(|a| a.record.components.is_empty()) {
            return Err(
                Problem::new(Code::RecordIncomplete, "no agent with components has registered")
                    .remedy("enroll the hosts first: rollbackctl agent token NAME"),
            );
        }
        let targets: Vec<Target> = agents
            .iter()
            .flat_map(|a| {
                a.record
                    .components
                    .iter()
                    .map(|c| Target::new(a.record.name.as_str(), c.name.as_str()))
            })
            .collect();
        // A fleet in the middle of a rollback is nothing that anybody would want back.
        leader.check_free(&targets).await?;
        if !expected.is_empty() {
            let seen = observed(&survey::observe(self.inventory()).await);
            expected::check(&expected, seen.iter().map(|(t, r)| (t, r)), false)?;
        }
        let entries = self.retain_everything(&agents, &name).await?;
        expected::check(&expected, entries.iter().map(|e| (&e.target, &e.revision)), true)?;
        // Health as users would find it: what is recorded while it is broken is not a release that works.
        let survey = survey::observe(self.inventory()).await;
        let stable = survey
            .iter()
            .filter_map(|h| h.states.as_ref().ok())
            .flatten()
            .all(|state| match state.health() {
                v1::Health::Healthy | v1::Health::Unknown => true,
                v1::Health::Unhealthy | v1::Health::Stopped | v1::Health::Drained | v1::Health::Unspecified => false,
            });
        let release = Release {
            name: name.as_str().into(),
            commit,
            notes,
            recorded_at: Timestamp::now(),
            recorded_by,
            entries,
            stable,
            ranks_at: None,
            mark: None,
        };
        hold::refuse(&release, &hold::all(self.store()).await?)?;
        if !super::agents::matches(&release, &survey) {
            let message = "the fleet changed while it was being recorded";
            return Err(
                Problem::new(Code::RecordIncomplete, message).remedy("record again when nothing is being deployed")
            );
        }
        leader.check_free(&targets).await?;
        let store = self.store();
        let release = if store.add_release(&release).await? {
            tracing::info!(release = name, stable, "release recorded");
            leader.release_recorded();
            release
        } else {
            self.same_as_recorded(release).await?
        };
        let objectives = objective::recorded(&release, &objective::all(store).await?);
        store.put_documents(leader.shared().term.fence(), &objectives).await?;
        Ok(v1::RecordReleaseResponse {
            release: Some(convert::release_to_wire(&release)),
        })
    }

    /// Recording the same thing twice is one recording; another thing under the same name is refused.
    pub(super) async fn same_as_recorded(&self, new: Release) -> Result<Release, Problem> {
        let known = self.release_called(new.name.as_str()).await?;
        let same = |a: &ReleaseEntry, b: &ReleaseEntry| a.target == b.target && a.revision == b.revision;
        if known.entries.len() == new.entries.len() && known.entries.iter().zip(&new.entries).all(|(a, b)| same(a, b)) {
            return Ok(known);
        }
        let message = format!(
            "release {} was recorded at {} with other content",
            known.name, known.recorded_at
        );
        Err(Problem::new(Code::ReleaseExists, message))
    }

    async fn retain_everything(&self, agents: &[AgentView], release: &str) -> Result<Vec<ReleaseEntry>, Problem> {
        let mut jobs = Vec::new();
        for agent in agents {
            for component in &agent.record.components {
                let target = Target::new(agent.record.name.as_str(), component.name.as_str());
                jobs.push(async move {
                    let kept = self.pin(&target, component, release, Pin::Live).await;
                    kept.map_err(|problem| format!("{target}: {} ({})", problem.message, problem.code))
                });
            }
        }
        let results: Vec<_> = futures::stream::iter(jobs).buffered(survey::AT_ONCE).collect().await;
        let (mut entries, mut failures) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(entry) => entries.push(entry),
                Err(failure) => failures.push(failure),
            }
        }
        if failures.is_empty() {
            entries.sort_by(|a, b| a.target.cmp(&b.target));
            return Ok(entries);
        }
        let more = failures.len().saturating_sub(LISTED);
        failures.truncate(LISTED);
        let tail = if more == 0 {
            String::new()
        } else {
            format!("; and {more} more")
        };
        Err(Problem::new(
            Code::RecordIncomplete,
            format!("not recorded: {}{tail}", failures.join("; ")),
        ))
    }

    /// Has a component's agent pin a revision for a release.
    pub(super) async fn pin(
        &self,
        target: &Target,
        component: &ComponentRecord,
        release: &str,
        pin: Pin,
    ) -> Result<ReleaseEntry, Problem> {
        let (component_name, release) = (component.name.clone(), release.to_owned());
        let ask = async {
            let channel = self
                .inventory()
                .channel(target.host.as_str(), Duration::from_secs(5))
                .await?;
            let mut agent = AgentClient::new(channel);
            let answer = match pin {
                Pin::Live => {
                    let request = traced(v1::RetainRequest {
                        component: component_name,
                        release,
                    });
                    let answer = agent.retain(request).await;
                    answer.map(|r| r.into_inner()).map(|r| (r.revision, r.summary))
                }
                Pin::Named => {
                    let request = traced(v1::ResolveRequest {
                        component: component_name,
                        release,
                    });
                    let answer = agent.resolve(request).await;
                    answer.map(|r| r.into_inner()).map(|r| (r.revision, r.summary))
                }
            };
            answer.map_err(|status| match pin {
                Pin::Named if is_unknown_call(&status) => {
                    let message = format!("the agent of {} cannot look for releases: it is too old", target.host);
                    Problem::new(Code::UnsupportedAction, message)
                        .remedy(format!("update rollback-agent on {}, then import again", target.host))
                }
                Pin::Live | Pin::Named => Problem::from_status(&status),
            })
        };
        let (revision, summary) = tokio::time::timeout(RETAIN_DEADLINE, ask).await.map_err(|_| {
            let message = format!("no answer within {} minutes", RETAIN_DEADLINE.as_secs() / 60);
            Problem::new(Code::StepTimeout, message)
        })??;
        let revision = revision
            .map(convert::revision_from_wire)
            .ok_or_else(|| Problem::new(Code::Internal, "the agent named no revision"))?;
        Ok(ReleaseEntry {
            target: target.clone(),
            role: component.role,
            revision,
            summary,
        })
    }

    pub async fn release_called(&self, name: &str) -> Result<Release, Problem> {
        check_name("release", name)?;
        let store = self.store();
        if let Some(release) = store.release(&ReleaseName::from(name)).await? {
            return Ok(release);
        }
        let known: Vec<String> = store
            .releases()
            .await?
            .iter()
            .take(LISTED)
            .map(|r| r.name.0.clone())
            .collect();
        let known = if known.is_empty() {
            "none is recorded".to_owned()
        } else {
            format!("recorded: {}", known.join(", "))
        };
        Err(Problem::new(
            Code::UnknownRelease,
            format!("no release {name}; {known}"),
        ))
    }

    /// A release by name, or "previous".
    pub async fn target_release(&self, name: &str, survey: &[survey::HostSurvey]) -> Result<Release, Problem> {
        if name != PREVIOUS {
            return self.release_called(name).await;
        }
        let releases = self.store().releases().await?;
        // What somebody has held is gone back to by name, by who knows why; never because it was the last one.
        let holds = hold::all(self.store()).await?;
        // Before what runs now, if that is known: after a rollback, the newest release is the one that did not work.
        let now = releases
            .iter()
            .find(|r| super::agents::matches(r, survey))
            .map(Release::rank);
        let found = releases
            .into_iter()
            .filter(|r| now.is_none_or(|now| r.rank() < now))
            .find(|r| r.stable && !holds.contains_key(&r.name) && !super::agents::matches(r, survey));
        found.ok_or_else(|| {
            Problem::new(
                Code::UnknownRelease,
                "no stable release before what runs now is recorded, or all of them are held",
            )
            .remedy("choose one by its name: rollbackctl release list")
        })
    }
}
