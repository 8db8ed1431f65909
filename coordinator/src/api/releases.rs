//! Recording and reading releases.

use futures::StreamExt as _;
use jiff::Timestamp;
use rollback_engine::ids::{ReleaseName, Target};
use rollback_engine::release::{Release, ReleaseEntry};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use std::time::Duration;
use tonic::Request;
use v1::agent_client::AgentClient;

use super::Api;
use crate::authority::caller;
use crate::convert;
use crate::inventory::AgentView;
use crate::store::ComponentRecord;
use crate::survey;

/// Copying a release directory into the vault may take a while.
const RETAIN_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How many failures an error message lists.
const LISTED: usize = 8;

/// The name that means "the newest stable release that is not what runs now".
const PREVIOUS: &str = "previous";

impl Api {
    pub async fn record(
        &self,
        request: Request<v1::RecordReleaseRequest>,
    ) -> Result<v1::RecordReleaseResponse, Problem> {
        let recorded_by = caller(&request)?.identity.name;
        let v1::RecordReleaseRequest { name, commit, notes } = request.into_inner();
        check_name("release", &name)?;
        if name == PREVIOUS || name == "now" {
            return Err(Problem::new(
                Code::BadName,
                format!("{name:?} has a meaning of its own; choose another name"),
            ));
        }
        if commit.len() > 256 || notes.len() > 16 * 1024 {
            return Err(Problem::new(
                Code::BadRequest,
                "commit is longer than 256 bytes, or notes than 16 KiB",
            ));
        }
        let agents = self.inventory.list();
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
        self.leader.check_free(&targets).await?;
        let entries = self.retain_everything(&agents, &name).await?;
        // Health as users would find it: what is recorded while it is broken is not a release that works.
        let survey = survey::observe(&self.inventory).await;
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
        };
        if !super::agents::matches(&release, &survey) {
            let message = "the fleet changed while it was being recorded";
            return Err(
                Problem::new(Code::RecordIncomplete, message).remedy("record again when nothing is being deployed")
            );
        }
        self.leader.check_free(&targets).await?;
        let store = &self.leader.shared().store;
        let release = if store.add_release(&release).await? {
            tracing::info!(release = name, stable, "release recorded");
            release
        } else {
            self.same_as_recorded(release).await?
        };
        Ok(v1::RecordReleaseResponse {
            release: Some(convert::release_to_wire(&release)),
        })
    }

    /// Recording the same thing twice is one recording; another thing under the same name is refused.
    async fn same_as_recorded(&self, new: Release) -> Result<Release, Problem> {
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
                jobs.push(self.retain(agent.record.name.clone(), component.clone(), release));
            }
        }
        let results: Vec<_> = futures::stream::iter(jobs).buffered(survey::AT_ONCE).collect().await;
        let (mut entries, mut failures) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(entry) => entries.push(entry),
                Err(problem) => failures.push(format!("{} ({})", problem.message, problem.code)),
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

    async fn retain(&self, host: String, component: ComponentRecord, release: &str) -> Result<ReleaseEntry, Problem> {
        let target = Target::new(host.as_str(), component.name.as_str());
        let ask = async {
            let channel = self.inventory.channel(&host, Duration::from_secs(5)).await?;
            let mut request = tonic::Request::new(v1::RetainRequest {
                component: component.name.clone(),
                release: release.to_owned(),
            });
            rollback_proto::telemetry::inject_current(request.metadata_mut());
            AgentClient::new(channel).retain(request).await.map_err(|status| {
                let problem = Problem::from_status(&status);
                Problem {
                    message: format!("{target}: {}", problem.message),
                    ..problem
                }
            })
        };
        let response = tokio::time::timeout(RETAIN_DEADLINE, ask)
            .await
            .map_err(|_| {
                Problem::new(
                    Code::StepTimeout,
                    format!("{target}: not retained within {RETAIN_DEADLINE:?}"),
                )
            })??
            .into_inner();
        let revision = response
            .revision
            .map(convert::revision_from_wire)
            .ok_or_else(|| Problem::new(Code::Internal, format!("{target}: the agent named no revision")))?;
        Ok(ReleaseEntry {
            target: target.clone(),
            role: component.role,
            revision,
            summary: response.summary,
        })
    }

    pub async fn all_releases(&self) -> Result<v1::ListReleasesResponse, Problem> {
        let releases = self.leader.shared().store.releases().await?;
        Ok(v1::ListReleasesResponse {
            releases: releases.iter().map(convert::release_to_wire).collect(),
        })
    }

    pub async fn release_called(&self, name: &str) -> Result<Release, Problem> {
        check_name("release", name)?;
        let store = &self.leader.shared().store;
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
        let releases = self.leader.shared().store.releases().await?;
        // Before what runs now, if that is known: after a rollback, the newest release is the one that did not work.
        let now = releases
            .iter()
            .find(|r| super::agents::matches(r, survey))
            .map(|r| r.recorded_at);
        let found = releases
            .into_iter()
            .filter(|r| now.is_none_or(|now| r.recorded_at < now))
            .find(|r| r.stable && !super::agents::matches(r, survey));
        found.ok_or_else(|| {
            Problem::new(
                Code::UnknownRelease,
                "no stable release before what runs now is recorded",
            )
        })
    }
}
