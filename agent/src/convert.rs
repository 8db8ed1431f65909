//! Between what drivers say and what goes over the wire. Nothing else in the agent builds wire messages out of a
//! driver's types.

use std::collections::BTreeSet;

use rollback_proto::problem::Problem;
use rollback_proto::v1;
use rollback_proto::v1::outcome::Status;

use crate::driver::{Done, DriverInfo, Failure, Finding, Observation, Retained, Revision, Severity};
use crate::ledger::{Recalled, StepState};
use crate::step::TimedOperation;

impl From<Revision> for v1::Revision {
    fn from(r: Revision) -> Self {
        Self {
            version: r.version,
            digest: r.digest,
        }
    }
}

impl From<v1::Revision> for Revision {
    fn from(r: v1::Revision) -> Self {
        Self {
            version: r.version,
            digest: r.digest,
        }
    }
}

impl From<Finding> for v1::Finding {
    fn from(finding: Finding) -> Self {
        let Finding {
            severity,
            problem,
            loss,
        } = finding;
        let severity = match severity {
            Severity::Ok => v1::Severity::Ok,
            Severity::Warning => v1::Severity::Warning,
            Severity::Blocker => v1::Severity::Blocker,
        };
        Self {
            severity: severity.into(),
            code: problem.code.id().to_owned(),
            message: problem.message,
            remedy: problem.remedy,
            // The coordinator fills these: it knows whom it asked.
            host: String::new(),
            component: String::new(),
            loss,
        }
    }
}

impl From<TimedOperation> for v1::Operation {
    fn from(operation: TimedOperation) -> Self {
        Self {
            name: operation.name.to_owned(),
            duration: prost_types::Duration::try_from(operation.took).ok(),
        }
    }
}

impl From<Retained> for v1::RetainResponse {
    fn from(retained: Retained) -> Self {
        Self {
            revision: Some(retained.revision.into()),
            summary: retained.summary,
        }
    }
}

impl From<Retained> for v1::ResolveResponse {
    fn from(retained: Retained) -> Self {
        Self {
            revision: Some(retained.revision.into()),
            summary: retained.summary,
        }
    }
}

/// A component as the coordinator sees it.
pub fn component_info(name: &str, info: &DriverInfo) -> v1::ComponentInfo {
    v1::ComponentInfo {
        name: name.to_owned(),
        kind: info.kind.to_owned(),
        role: info.role.into(),
        capabilities: info.capabilities.iter().map(|action| (*action).into()).collect(),
        reads: info.reads.iter().cloned().collect(),
        upstreams: info.backends.iter().map(upstream).collect(),
        restores: info.restores,
    }
}

fn upstream(backends: &BTreeSet<String>) -> v1::Upstream {
    v1::Upstream {
        backends: backends.iter().cloned().collect(),
    }
}

/// What was seen of a component, or why nothing could be.
pub fn component_state(name: &str, observed: Result<Observation, Problem>) -> v1::ComponentState {
    let component = name.to_owned();
    match observed {
        Ok(Observation {
            revision,
            health,
            detail,
            out,
        }) => v1::ComponentState {
            component,
            revision: Some(revision.into()),
            health: health.into(),
            detail,
            problem: None,
            backends_out: out.into_iter().collect(),
        },
        Err(problem) => v1::ComponentState {
            component,
            revision: None,
            health: v1::Health::Unknown.into(),
            detail: String::new(),
            problem: Some(problem.into()),
            backends_out: Vec::new(),
        },
    }
}

/// What a ledger knows.
pub fn recalled(ledger_generation: &str, recalled: Recalled) -> v1::RecallResponse {
    use v1::recalled_step::State;
    let steps = recalled.steps.into_iter().map(|(key, state)| v1::RecalledStep {
        key: Some(v1::StepKey {
            rollback_id: key.rollback_id,
            step_id: key.step_id,
            attempt: key.attempt,
        }),
        state: match state {
            StepState::Unfinished => State::Unfinished,
            StepState::Ended => State::Ended,
            StepState::Interrupted => State::Interrupted,
        }
        .into(),
    });
    v1::RecallResponse {
        ledger_generation: ledger_generation.to_owned(),
        steps: steps.collect(),
        other_rollbacks: recalled.others,
    }
}

/// A move that ended well.
pub fn succeeded(done: Done) -> v1::Outcome {
    v1::Outcome {
        status: Status::Succeeded.into(),
        observed: done.observed.map(Into::into),
        receipt: done.receipt,
        loss: done.loss.map(|loss| *loss),
        summary: done.summary,
        ..v1::Outcome::default()
    }
}

/// A move that did not.
pub fn ended_badly(failure: Failure) -> v1::Outcome {
    let (status, problem) = match failure {
        Failure::Failed(problem) => (Status::Failed, problem),
        Failure::Indeterminate(problem) => (Status::Indeterminate, problem),
    };
    v1::Outcome {
        status: status.into(),
        summary: problem.message.clone(),
        problem: Some(problem.into()),
        ..v1::Outcome::default()
    }
}

/// What `prepare` found. Looking succeeded, also where a blocker was found: what findings mean is the coordinator's
/// judgement.
pub fn prepared(findings: Vec<Finding>) -> v1::Outcome {
    let blockers = findings.iter().filter(|f| f.severity == Severity::Blocker).count();
    let warnings = findings.iter().filter(|f| f.severity == Severity::Warning).count();
    let summary = match (blockers, warnings) {
        (0, 0) => "ready".to_owned(),
        (0, warnings) => format!("ready, warnings: {warnings}"),
        (blockers, _) => format!("blockers: {blockers}"),
    };
    v1::Outcome {
        status: Status::Succeeded.into(),
        findings: findings.into_iter().map(Into::into).collect(),
        summary,
        ..v1::Outcome::default()
    }
}
