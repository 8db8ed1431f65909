//! Releases that must not be deployed, and the gate that deployments ask.

use jiff::Timestamp;
use rollback_engine::ids::ReleaseName;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;
use crate::authority::caller;
use crate::convert;
use crate::hold::{self, Hold};

/// Longest reason, in bytes.
const REASON: usize = 4096;

fn check(release: &str, reason: &str) -> Result<ReleaseName, Problem> {
    check_name("release", release)?;
    if reason.is_empty() || reason.len() > REASON {
        let problem = Problem::new(Code::BadRequest, "a reason is needed, of at most 4 KiB");
        return Err(problem.remedy("say why: --reason TEXT"));
    }
    Ok(release.into())
}

impl Api {
    /// Holding what is held already changes the reason. The release need not be recorded: a bad one may be known by its name
    /// before anybody has deployed it.
    pub async fn hold(&self, request: Request<v1::HoldReleaseRequest>) -> Result<v1::HoldReleaseResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let v1::HoldReleaseRequest { release, reason } = request.into_inner();
        let name = check(&release, &reason)?;
        let leader = self.leader()?;
        let recorded = self.store().release(&name).await?;
        let hold = Hold {
            since: Timestamp::now(),
            by,
            reason,
            rollback_id: None,
            content: recorded.as_ref().map(convert::release_digest),
        };
        let fence = leader.shared().term.fence();
        self.store()
            .put_documents(fence, &[hold::document(&name, &hold)])
            .await?;
        tracing::info!(release = %name, by = hold.by, "release held");
        Ok(v1::HoldReleaseResponse {
            hold: Some(hold.to_wire(&name)),
        })
    }

    pub async fn unhold(
        &self,
        request: Request<v1::UnholdReleaseRequest>,
    ) -> Result<v1::UnholdReleaseResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let v1::UnholdReleaseRequest { release, reason } = request.into_inner();
        let name = check(&release, &reason)?;
        let leader = self.leader()?;
        let Some(hold) = hold::of(self.store(), &name).await? else {
            let problem = Problem::new(Code::UnknownRelease, format!("release {name} is not held"));
            return Err(problem.remedy("see what is: rollbackctl fleet status"));
        };
        let fence = leader.shared().term.fence();
        self.store().put_documents(fence, &[hold::given_free(&name)]).await?;
        tracing::info!(release = %name, by, reason, was = hold.told(), "release given free");
        Ok(v1::UnholdReleaseResponse {
            hold: Some(hold.to_wire(&name)),
        })
    }

    /// Any replica answers, from what the store has now.
    pub async fn gate(&self, request: Request<v1::CheckGateRequest>) -> Result<v1::CheckGateResponse, Problem> {
        let release = request.into_inner().release;
        check_name("release", &release)?;
        hold::gate(self.store(), &ReleaseName(release)).await
    }
}
