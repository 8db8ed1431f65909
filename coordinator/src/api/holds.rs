//! Releases that must not be deployed, and the gate that deployments ask.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn hold(&self, _request: Request<v1::HoldReleaseRequest>) -> Result<v1::HoldReleaseResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn unhold(
        &self,
        _request: Request<v1::UnholdReleaseRequest>,
    ) -> Result<v1::UnholdReleaseResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn gate(&self, _request: Request<v1::CheckGateRequest>) -> Result<v1::CheckGateResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
