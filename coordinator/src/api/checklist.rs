//! The checklist before a deployment.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn preflight(
        &self,
        _request: Request<v1::PreflightReleaseRequest>,
    ) -> Result<v1::PreflightReleaseResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
