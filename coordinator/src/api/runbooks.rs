//! Runbooks: linted, applied, listed, shown.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;

impl Api {
    pub async fn lint_runbook_text(
        &self,
        _request: Request<v1::LintRunbookRequest>,
    ) -> Result<v1::LintRunbookResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn apply_runbook_text(
        &self,
        _request: Request<v1::ApplyRunbookRequest>,
    ) -> Result<v1::ApplyRunbookResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn all_runbooks(
        &self,
        _request: Request<v1::ListRunbooksRequest>,
    ) -> Result<v1::ListRunbooksResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }

    pub async fn runbook_text(
        &self,
        _request: Request<v1::GetRunbookRequest>,
    ) -> Result<v1::GetRunbookResponse, Problem> {
        Err(Problem::new(Code::Internal, "not built yet"))
    }
}
