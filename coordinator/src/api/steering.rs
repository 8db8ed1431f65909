//! What operators do to a rollback that runs.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn steer(
        &self,
        _request: Request<v1::SteerRollbackRequest>,
    ) -> Result<v1::SteerRollbackResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
