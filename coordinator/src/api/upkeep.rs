//! Notes, marks and the removal of releases, and what pins them.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn update_release_mark(
        &self,
        _request: Request<v1::UpdateReleaseRequest>,
    ) -> Result<v1::UpdateReleaseResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn remove_unpinned(
        &self,
        _request: Request<v1::RemoveReleasesRequest>,
    ) -> Result<v1::RemoveReleasesResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
