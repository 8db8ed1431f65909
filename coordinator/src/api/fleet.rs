//! The Fleet service: one line per RPC; the work is in the files beside this one.

use std::pin::Pin;

use rollback_proto::v1::fleet_server::Fleet;
use rollback_proto::{kill_point, v1};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::Api;

/// A span for a call, as a child of the caller's.
macro_rules! traced {
    ($name:literal, $request:ident, $work:expr) => {{
        let span = tracing::info_span!($name);
        rollback_proto::telemetry::continue_trace(&span, $request.metadata());
        kill_point::pass(|| concat!("rpc.", $name, ".received").to_owned());
        let answer = async move { $work.await.map(Response::new).map_err(Status::from) }
            .instrument(span)
            .await;
        kill_point::pass(|| concat!("rpc.", $name, ".answering").to_owned());
        answer
    }};
}

#[tonic::async_trait]
impl Fleet for Api {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(Response::new(self.server_info(&request).await?))
    }

    async fn get_fleet(&self, request: Request<v1::GetFleetRequest>) -> Result<Response<v1::GetFleetResponse>, Status> {
        traced!("get_fleet", request, self.fleet_state())
    }

    async fn plan_rollback(
        &self,
        request: Request<v1::PlanRollbackRequest>,
    ) -> Result<Response<v1::PlanRollbackResponse>, Status> {
        traced!("plan_rollback", request, self.plan(request.into_inner()))
    }

    async fn start_rollback(
        &self,
        request: Request<v1::StartRollbackRequest>,
    ) -> Result<Response<v1::StartRollbackResponse>, Status> {
        traced!("start_rollback", request, self.start(request))
    }

    async fn list_rollbacks(
        &self,
        request: Request<v1::ListRollbacksRequest>,
    ) -> Result<Response<v1::ListRollbacksResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn get_rollback(
        &self,
        request: Request<v1::GetRollbackRequest>,
    ) -> Result<Response<v1::GetRollbackResponse>, Status> {
        Ok(Response::new(self.report(request.into_inner()).await?))
    }

    type WatchRollbackStream = Pin<Box<dyn Stream<Item = Result<v1::RollbackEvent, Status>> + Send>>;

    async fn watch_rollback(
        &self,
        request: Request<v1::WatchRollbackRequest>,
    ) -> Result<Response<Self::WatchRollbackStream>, Status> {
        Ok(Response::new(self.watch(request.into_inner()).await?))
    }

    async fn record_release(
        &self,
        request: Request<v1::RecordReleaseRequest>,
    ) -> Result<Response<v1::RecordReleaseResponse>, Status> {
        traced!("record_release", request, self.record(request))
    }

    async fn import_release(
        &self,
        request: Request<v1::ImportReleaseRequest>,
    ) -> Result<Response<v1::ImportReleaseResponse>, Status> {
        traced!("import_release", request, self.import(request))
    }

    async fn list_releases(
        &self,
        _request: Request<v1::ListReleasesRequest>,
    ) -> Result<Response<v1::ListReleasesResponse>, Status> {
        Ok(Response::new(self.all_releases().await?))
    }

    async fn get_release(
        &self,
        request: Request<v1::GetReleaseRequest>,
    ) -> Result<Response<v1::GetReleaseResponse>, Status> {
        let release = self.release_in_full(&request.into_inner().name).await?;
        Ok(Response::new(v1::GetReleaseResponse { release: Some(release) }))
    }

    async fn list_agents(
        &self,
        _request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Ok(Response::new(self.all_agents().await?))
    }

    async fn steer_rollback(
        &self,
        request: Request<v1::SteerRollbackRequest>,
    ) -> Result<Response<v1::SteerRollbackResponse>, Status> {
        traced!("steer_rollback", request, self.steer(request))
    }

    async fn update_release(
        &self,
        request: Request<v1::UpdateReleaseRequest>,
    ) -> Result<Response<v1::UpdateReleaseResponse>, Status> {
        Ok(Response::new(self.update_release_mark(request).await?))
    }

    async fn remove_releases(
        &self,
        request: Request<v1::RemoveReleasesRequest>,
    ) -> Result<Response<v1::RemoveReleasesResponse>, Status> {
        traced!("remove_releases", request, self.remove_unpinned(request))
    }

    async fn preflight_release(
        &self,
        request: Request<v1::PreflightReleaseRequest>,
    ) -> Result<Response<v1::PreflightReleaseResponse>, Status> {
        traced!("preflight_release", request, self.preflight(request))
    }

    async fn hold_release(
        &self,
        request: Request<v1::HoldReleaseRequest>,
    ) -> Result<Response<v1::HoldReleaseResponse>, Status> {
        Ok(Response::new(self.hold(request).await?))
    }

    async fn unhold_release(
        &self,
        request: Request<v1::UnholdReleaseRequest>,
    ) -> Result<Response<v1::UnholdReleaseResponse>, Status> {
        Ok(Response::new(self.unhold(request).await?))
    }

    async fn check_gate(
        &self,
        request: Request<v1::CheckGateRequest>,
    ) -> Result<Response<v1::CheckGateResponse>, Status> {
        Ok(Response::new(self.gate(request).await?))
    }

    async fn get_readiness(
        &self,
        request: Request<v1::GetReadinessRequest>,
    ) -> Result<Response<v1::GetReadinessResponse>, Status> {
        Ok(Response::new(self.readiness(request).await?))
    }

    async fn lint_runbook(
        &self,
        request: Request<v1::LintRunbookRequest>,
    ) -> Result<Response<v1::LintRunbookResponse>, Status> {
        Ok(Response::new(self.lint_runbook_text(request).await?))
    }

    async fn apply_runbook(
        &self,
        request: Request<v1::ApplyRunbookRequest>,
    ) -> Result<Response<v1::ApplyRunbookResponse>, Status> {
        Ok(Response::new(self.apply_runbook_text(request).await?))
    }

    async fn list_runbooks(
        &self,
        request: Request<v1::ListRunbooksRequest>,
    ) -> Result<Response<v1::ListRunbooksResponse>, Status> {
        Ok(Response::new(self.all_runbooks(request).await?))
    }

    async fn get_runbook(
        &self,
        request: Request<v1::GetRunbookRequest>,
    ) -> Result<Response<v1::GetRunbookResponse>, Status> {
        Ok(Response::new(self.runbook_text(request).await?))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        Ok(Response::new(self.token(request).await?))
    }
}
