//! What the background checks found.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn readiness(
        &self,
        _request: Request<v1::GetReadinessRequest>,
    ) -> Result<v1::GetReadinessResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
