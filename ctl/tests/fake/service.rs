//! The RPCs.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{Stream, StreamExt as _, iter, once};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::{Request, Response, Status};

use super::messages::ID;
use super::{Shared, StartReply, State, WatchReply};

pub struct Service(pub Arc<Shared>);

type Events = Pin<Box<dyn Stream<Item = Result<v1::RollbackEvent, Status>> + Send>>;

impl Service {
    /// Notes the call and its trace; answers from memory.
    fn answer<Req, Res>(&self, request: &Request<Req>, answer: impl FnOnce(&mut State) -> Res) -> Response<Res> {
        let mut state = self.0.state();
        state.calls += 1;
        if let Some(parent) = request.metadata().get("traceparent").and_then(|v| v.to_str().ok()) {
            state.traceparents.push(parent.to_owned());
        }
        Response::new(answer(&mut state))
    }
}

#[tonic::async_trait]
impl v1::fleet_server::Fleet for Service {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(self.answer(&request, |state| v1::GetServerInfoResponse {
            now: Some(SystemTime::now().into()),
            ..state.info.clone()
        }))
    }

    async fn get_fleet(&self, request: Request<v1::GetFleetRequest>) -> Result<Response<v1::GetFleetResponse>, Status> {
        Ok(self.answer(&request, |state| state.fleet.clone()))
    }

    async fn plan_rollback(
        &self,
        request: Request<v1::PlanRollbackRequest>,
    ) -> Result<Response<v1::PlanRollbackResponse>, Status> {
        self.0.state().refuse()?;
        let asked = request.get_ref().clone();
        let refusal = {
            let mut state = self.0.state();
            state.plans.push(asked);
            state.plan_refusals.pop_front()
        };
        match refusal {
            Some(problem) => Err(problem.into()),
            None => Ok(self.answer(&request, |state| state.plan.clone())),
        }
    }

    async fn start_rollback(
        &self,
        request: Request<v1::StartRollbackRequest>,
    ) -> Result<Response<v1::StartRollbackResponse>, Status> {
        self.0.state().refuse()?;
        let asked = request.get_ref().clone();
        let reply = self.answer(&request, |state| {
            state.starts.push(asked);
            state.start_replies.pop_front().unwrap_or(StartReply::Started)
        });
        match reply.into_inner() {
            StartReply::Started => {
                let plan = self.0.state().plan.plan.clone();
                Ok(Response::new(v1::StartRollbackResponse {
                    rollback_id: ID.to_owned(),
                    plan,
                }))
            }
            StartReply::Refused(problem) => Err(problem.into()),
            StartReply::Never => {
                self.0.tell_hang();
                std::future::pending().await
            }
        }
    }

    async fn list_rollbacks(
        &self,
        request: Request<v1::ListRollbacksRequest>,
    ) -> Result<Response<v1::ListRollbacksResponse>, Status> {
        Ok(self.answer(&request, |state| v1::ListRollbacksResponse {
            rollbacks: state.rollbacks.clone(),
        }))
    }

    async fn get_rollback(
        &self,
        request: Request<v1::GetRollbackRequest>,
    ) -> Result<Response<v1::GetRollbackResponse>, Status> {
        let known = ["latest", ID].contains(&request.get_ref().id.as_str());
        let answer = self.answer(&request, |state| state.details.clone());
        if known {
            Ok(answer)
        } else {
            Err(Problem::new(Code::NotFound, "no such rollback").into())
        }
    }

    type WatchRollbackStream = Events;

    async fn watch_rollback(&self, request: Request<v1::WatchRollbackRequest>) -> Result<Response<Events>, Status> {
        let after = request.get_ref().after_seq;
        // What is in the store, and then who leads.
        let refused = self.0.state().refuse();
        if let Err(problem) = refused {
            let state = self.0.state();
            let recorded = state
                .journal
                .iter()
                .filter(|e| e.seq > after && e.seq <= state.recorded);
            let recorded: Vec<_> = recorded.cloned().map(Ok).chain([Err(problem.into())]).collect();
            return Ok(Response::new(Box::pin(iter(recorded))));
        }
        let (journal, reply) = self
            .answer(&request, |state| {
                state.watches.push(after);
                (state.journal.clone(), state.watch_replies.pop_front())
            })
            .into_inner();
        let until = match &reply {
            Some(WatchReply::EndsAfter(seq) | WatchReply::HangsAfter(seq) | WatchReply::Fails { after: seq, .. }) => {
                *seq
            }
            None => u64::MAX,
        };
        let wanted = journal
            .into_iter()
            .filter(move |e| e.seq == 0 || (e.seq > after && e.seq <= until));
        let events = iter(wanted.map(Ok).collect::<Vec<_>>());
        let shared = Arc::clone(&self.0);
        let events: Events = match reply {
            Some(WatchReply::HangsAfter(_)) => Box::pin(events.chain(once(async move {
                shared.tell_hang();
                std::future::pending().await
            }))),
            Some(WatchReply::Fails { problem, .. }) => Box::pin(events.chain(once(async { Err(problem.into()) }))),
            Some(WatchReply::EndsAfter(_)) | None => Box::pin(events),
        };
        Ok(Response::new(events))
    }

    async fn record_release(
        &self,
        request: Request<v1::RecordReleaseRequest>,
    ) -> Result<Response<v1::RecordReleaseResponse>, Status> {
        self.0.state().refuse()?;
        let name = request.get_ref().name.clone();
        if let Some(first) = request.get_ref().expected.first() {
            let message = format!("nothing was recorded: {} is not {}", first.component, first.version);
            return Err(Problem::new(Code::NotAsExpected, message).into());
        }
        Ok(self.answer(&request, |_| v1::RecordReleaseResponse {
            release: Some(release(&name)),
        }))
    }

    /// app-1 has every release, app-2 none.
    async fn import_release(
        &self,
        request: Request<v1::ImportReleaseRequest>,
    ) -> Result<Response<v1::ImportReleaseResponse>, Status> {
        self.0.state().refuse()?;
        let asked = request.get_ref().clone();
        let left_out = asked.without.contains(&"app-2/api".to_owned());
        let finding = |host: &str, problem: Option<Problem>| v1::ImportFinding {
            host: host.to_owned(),
            component: "api".to_owned(),
            kind: "release-dir".to_owned(),
            problem: problem.map(Into::into),
            ..v1::ImportFinding::default()
        };
        let missing = (!left_out).then(|| Problem::new(Code::Unresolved, "looked at /opt/zekka/backups"));
        Ok(self.answer(&request, |_| v1::ImportReleaseResponse {
            release: (left_out && !asked.dry_run).then(|| release(&asked.name)),
            findings: vec![finding("app-1", None), finding("app-2", missing)],
        }))
    }

    async fn list_releases(
        &self,
        request: Request<v1::ListReleasesRequest>,
    ) -> Result<Response<v1::ListReleasesResponse>, Status> {
        Ok(self.answer(&request, |_| v1::ListReleasesResponse {
            releases: vec![release("v2.9.0")],
        }))
    }

    async fn get_release(
        &self,
        request: Request<v1::GetReleaseRequest>,
    ) -> Result<Response<v1::GetReleaseResponse>, Status> {
        let name = request.get_ref().name.clone();
        if name != "v2.9.0" {
            return Err(Problem::new(Code::UnknownRelease, format!("no release {name}")).into());
        }
        Ok(self.answer(&request, |_| v1::GetReleaseResponse {
            release: Some(release(&name)),
        }))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Ok(self.answer(&request, |state| v1::ListAgentsResponse {
            agents: state.fleet.hosts.iter().filter_map(|h| h.agent.clone()).collect(),
        }))
    }

    async fn steer_rollback(
        &self,
        request: Request<v1::SteerRollbackRequest>,
    ) -> Result<Response<v1::SteerRollbackResponse>, Status> {
        self.0.state().refuse()?;
        let asked = request.get_ref().clone();
        let refusal = {
            let mut state = self.0.state();
            state.steers.push(asked);
            state.steer_refusals.pop_front()
        };
        match refusal {
            None => Ok(self.answer(&request, |state| v1::SteerRollbackResponse {
                summary: state.details.summary.clone(),
            })),
            Some(Some(problem)) => Err(problem.into()),
            Some(None) => {
                self.0.tell_hang();
                std::future::pending().await
            }
        }
    }

    async fn update_release(
        &self,
        request: Request<v1::UpdateReleaseRequest>,
    ) -> Result<Response<v1::UpdateReleaseResponse>, Status> {
        let asked = request.get_ref().clone();
        let updated = v1::Release {
            stable: asked.stable.unwrap_or_default(),
            notes: asked.notes.unwrap_or_default(),
            marked_by: asked.stable.map_or_else(String::new, |_| "ana".to_owned()),
            mark_reason: asked.reason,
            ..release(&asked.name)
        };
        Ok(self.answer(&request, |_| v1::UpdateReleaseResponse { release: Some(updated) }))
    }

    async fn remove_releases(
        &self,
        request: Request<v1::RemoveReleasesRequest>,
    ) -> Result<Response<v1::RemoveReleasesResponse>, Status> {
        let v1::RemoveReleasesRequest { mut names, dry_run } = request.get_ref().clone();
        if names.is_empty() {
            names = vec!["v2.7.0".to_owned()];
        }
        // v2.9.0 is needed, and something of v2.7.0 stays.
        let needed = |name: &str| name == "v2.9.0";
        if !dry_run && names.iter().any(|name| needed(name)) {
            let message = "nothing was removed; needed are v2.9.0: 3 components shall be there";
            return Err(Problem::new(Code::ReleasePinned, message).into());
        }
        let removed = |name: String| v1::RemovedRelease {
            pinned_by: needed(&name)
                .then(|| "3 components shall be there".to_owned())
                .into_iter()
                .collect(),
            leftovers: (!dry_run)
                .then(|| "app-2/api: it does not answer".to_owned())
                .into_iter()
                .collect(),
            name,
        };
        let releases = names.into_iter().map(removed).collect();
        Ok(self.answer(&request, |_| v1::RemoveReleasesResponse { releases }))
    }

    async fn preflight_release(
        &self,
        request: Request<v1::PreflightReleaseRequest>,
    ) -> Result<Response<v1::PreflightReleaseResponse>, Status> {
        // Only what was rehearsed works.
        let severity = match request.get_ref().rehearse {
            true => v1::Severity::Ok,
            false => v1::Severity::Blocker,
        };
        let item = v1::ChecklistItem {
            name: "migration".to_owned(),
            severity: severity.into(),
            evidence: "db-1/db".to_owned(),
            remedy: "mend it".to_owned(),
            findings: Vec::new(),
        };
        Ok(self.answer(&request, |_| v1::PreflightReleaseResponse { items: vec![item] }))
    }

    async fn hold_release(
        &self,
        request: Request<v1::HoldReleaseRequest>,
    ) -> Result<Response<v1::HoldReleaseResponse>, Status> {
        Ok(self.answer(&request, |_| v1::HoldReleaseResponse::default()))
    }

    async fn unhold_release(
        &self,
        request: Request<v1::UnholdReleaseRequest>,
    ) -> Result<Response<v1::UnholdReleaseResponse>, Status> {
        Ok(self.answer(&request, |_| v1::UnholdReleaseResponse::default()))
    }

    async fn check_gate(
        &self,
        request: Request<v1::CheckGateRequest>,
    ) -> Result<Response<v1::CheckGateResponse>, Status> {
        Ok(self.answer(&request, |_| v1::CheckGateResponse::default()))
    }

    async fn get_readiness(
        &self,
        request: Request<v1::GetReadinessRequest>,
    ) -> Result<Response<v1::GetReadinessResponse>, Status> {
        Ok(self.answer(&request, |_| v1::GetReadinessResponse::default()))
    }

    async fn lint_runbook(
        &self,
        request: Request<v1::LintRunbookRequest>,
    ) -> Result<Response<v1::LintRunbookResponse>, Status> {
        Ok(self.answer(&request, |_| v1::LintRunbookResponse::default()))
    }

    async fn apply_runbook(
        &self,
        request: Request<v1::ApplyRunbookRequest>,
    ) -> Result<Response<v1::ApplyRunbookResponse>, Status> {
        Ok(self.answer(&request, |_| v1::ApplyRunbookResponse::default()))
    }

    async fn list_runbooks(
        &self,
        request: Request<v1::ListRunbooksRequest>,
    ) -> Result<Response<v1::ListRunbooksResponse>, Status> {
        Ok(self.answer(&request, |_| v1::ListRunbooksResponse::default()))
    }

    async fn get_runbook(
        &self,
        request: Request<v1::GetRunbookRequest>,
    ) -> Result<Response<v1::GetRunbookResponse>, Status> {
        Ok(self.answer(&request, |_| v1::GetRunbookResponse::default()))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        self.0.state().refuse()?;
        let name = request.get_ref().name.clone();
        Ok(self.answer(&request, |_| v1::CreateTokenResponse {
            token: format!("rbt1.{name}.00ff.11ee"),
            ca_fingerprint: "11ee".to_owned(),
            expires_at: Some(SystemTime::now().into()),
        }))
    }
}

fn release(name: &str) -> v1::Release {
    let revision = v1::Revision {
        version: name.to_owned(),
        digest: format!("sha256:{name}"),
    };
    v1::Release {
        name: name.to_owned(),
        entries: vec![v1::ReleaseEntry {
            host: "app-1".to_owned(),
            component: "api".to_owned(),
            role: i32::from(v1::Role::App),
            revision: Some(revision),
            summary: String::new(),
        }],
        ..v1::Release::default()
    }
}
