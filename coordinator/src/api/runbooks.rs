//! Runbooks: linted, applied, listed, shown.

use rollback_engine::event::Severity;
use rollback_engine::runbook::{Runbook, RunbookFinding};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;
use crate::authority::caller;
use crate::shelf::{self, Kept};

/// Some hundred lines. What is larger is no runbook.
const LARGEST: usize = 64 * 1024;
/// How many mistakes a refusal lists.
const LISTED: usize = 8;

impl Api {
    pub async fn lint_runbook_text(
        &self,
        request: Request<v1::LintRunbookRequest>,
    ) -> Result<v1::LintRunbookResponse, Problem> {
        let text = request.into_inner().text;
        check_size(&text)?;
        let reading = shelf::lint(&text);
        let runbook = match &reading.runbook {
            None => None,
            Some(runbook) => Some(shelf::would_be(self.store(), &runbook.name, &text).await?.0.to_wire()),
        };
        Ok(v1::LintRunbookResponse {
            findings: reading.findings.into_iter().map(finding_to_wire).collect(),
            // It is nobody's yet.
            runbook: runbook.map(|info| v1::RunbookInfo { builtin: false, ..info }),
        })
    }

    pub async fn apply_runbook_text(
        &self,
        request: Request<v1::ApplyRunbookRequest>,
    ) -> Result<v1::ApplyRunbookResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let text = request.into_inner().text;
        check_size(&text)?;
        let reading = shelf::lint(&text);
        let Some(runbook) = reading.runbook else {
            return Err(refused(&reading.findings));
        };
        let leader = self.leader()?;
        let fence = leader.shared().term.fence();
        let (kept, changed) = shelf::keep(self.store(), fence, &runbook.name, &text, &by).await?;
        Ok(v1::ApplyRunbookResponse {
            runbook: Some(kept.to_wire()),
            changed,
        })
    }

    pub async fn all_runbooks(
        &self,
        request: Request<v1::ListRunbooksRequest>,
    ) -> Result<v1::ListRunbooksResponse, Problem> {
        let name = request.into_inner().name;
        let kept = if name.is_empty() {
            shelf::newest(self.store()).await?
        } else {
            check_name("runbook", &name)?;
            // Says what there is when there is none.
            shelf::called(self.store(), &name).await?;
            shelf::versions(self.store(), &name).await?
        };
        Ok(v1::ListRunbooksResponse {
            runbooks: kept.iter().map(Kept::to_wire).collect(),
        })
    }

    pub async fn runbook_text(
        &self,
        request: Request<v1::GetRunbookRequest>,
    ) -> Result<v1::GetRunbookResponse, Problem> {
        let kept = shelf::called(self.store(), &request.into_inner().name).await?;
        Ok(v1::GetRunbookResponse {
            runbook: Some(kept.to_wire()),
            text: kept.text,
        })
    }

    /// "web", "web@2" or a built-in one, ready to plan with. Empty: the default.
    pub(super) async fn runbook_called(&self, asked: &str) -> Result<Runbook, Problem> {
        let asked = if asked.is_empty() { "default" } else { asked };
        shelf::called(self.store(), asked).await?.runbook()
    }
}

fn check_size(text: &str) -> Result<(), Problem> {
    if text.len() > LARGEST {
        let message = format!("the text has {} bytes; a runbook has at most {LARGEST}", text.len());
        return Err(Problem::new(Code::BadRunbook, message));
    }
    Ok(())
}

fn refused(findings: &[RunbookFinding]) -> Problem {
    let errors: Vec<String> = findings
        .iter()
        .filter(|f| f.severity == Severity::Blocker)
        .map(ToString::to_string)
        .collect();
    let mut message = errors.iter().take(LISTED).cloned().collect::<Vec<_>>().join("; ");
    if let more @ 1.. = errors.len().saturating_sub(LISTED) {
        message.push_str(&format!("; and {more} more"));
    }
    Problem::new(Code::BadRunbook, message)
}

fn finding_to_wire(finding: RunbookFinding) -> v1::RunbookFinding {
    let severity = match finding.severity {
        Severity::Ok => v1::Severity::Ok,
        Severity::Warning => v1::Severity::Warning,
        Severity::Blocker => v1::Severity::Blocker,
    };
    v1::RunbookFinding {
        severity: severity.into(),
        line: finding.line,
        column: finding.column,
        key: finding.key,
        message: finding.message,
        hint: finding.hint,
    }
}
