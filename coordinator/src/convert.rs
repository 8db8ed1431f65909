//! Between the wire's types and the engine's. Wire types stop here.

mod databases;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use prost_types::{Duration as WireDuration, Timestamp as WireTimestamp};
use rollback_engine::event::{Finding, Operation, Outcome, Problem, Receipt, Severity, StepResult};
use rollback_engine::ids::Target;
use rollback_engine::plan::{Change, Plan, Selection, Step, Undo};
use rollback_engine::release::{Action, Release, Revision, Role};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem as CodedProblem};
use rollback_proto::v1;

pub use databases::{choice_from_wire, choice_to_wire, consent_from_wire, consent_to_wire};
use databases::{loss_from_wire, loss_to_wire};

use crate::store::{AgentRecord, ComponentRecord};

pub fn timestamp(t: Timestamp) -> WireTimestamp {
    WireTimestamp {
        seconds: t.as_second(),
        nanos: t.subsec_nanosecond(),
    }
}

pub fn duration_millis(millis: u64) -> WireDuration {
    duration(Duration::from_millis(millis))
}

pub fn duration(d: Duration) -> WireDuration {
    // Durations here are timeouts of hours at most.
    d.try_into().unwrap_or_default()
}

pub fn action_to_wire(action: Action) -> v1::Action {
    match action {
        Action::Prepare => v1::Action::Prepare,
        Action::Stage => v1::Action::Stage,
        Action::Discard => v1::Action::Discard,
        Action::Snapshot => v1::Action::Snapshot,
        Action::Drain => v1::Action::Drain,
        Action::Resume => v1::Action::Resume,
        Action::Stop => v1::Action::Stop,
        Action::Start => v1::Action::Start,
        Action::Switch => v1::Action::Switch,
        Action::Verify => v1::Action::Verify,
        Action::Finish => v1::Action::Finish,
    }
}

/// `None`: an action that this version does not know.
pub fn action_from_wire(action: v1::Action) -> Option<Action> {
    Action::ALL.into_iter().find(|known| action_to_wire(*known) == action)
}

pub fn role_to_wire(role: Role) -> v1::Role {
    match role {
        Role::Database => v1::Role::Database,
        Role::Config => v1::Role::Config,
        Role::App => v1::Role::App,
        Role::Proxy => v1::Role::Proxy,
    }
}

fn role_from_wire(role: v1::Role) -> Option<Role> {
    match role {
        v1::Role::Unspecified => None,
        v1::Role::Database => Some(Role::Database),
        v1::Role::Config => Some(Role::Config),
        v1::Role::App => Some(Role::App),
        v1::Role::Proxy => Some(Role::Proxy),
    }
}

pub fn revision_to_wire(revision: &Revision) -> v1::Revision {
    v1::Revision {
        version: revision.version.clone(),
        digest: revision.digest.0.clone(),
    }
}

pub fn revision_from_wire(revision: v1::Revision) -> Revision {
    Revision {
        version: revision.version,
        digest: revision.digest.into(),
    }
}

pub fn problem_to_wire(problem: &Problem) -> v1::Problem {
    v1::Problem {
        code: problem.code.clone(),
        message: problem.message.clone(),
        remedy: problem.remedy.clone(),
    }
}

/// A coded problem as the engine keeps it.
pub fn problem(p: CodedProblem) -> Problem {
    Problem {
        code: p.code.id().to_owned(),
        message: p.message,
        remedy: p.remedy,
    }
}

fn problem_from_wire(p: v1::Problem) -> Problem {
    Problem {
        code: p.code,
        message: p.message,
        remedy: p.remedy,
    }
}

pub fn component_from_wire(c: v1::ComponentInfo) -> Result<ComponentRecord, CodedProblem> {
    let (role, capabilities) = (c.role(), c.capabilities().filter_map(action_from_wire).collect());
    let role = role_from_wire(role)
        .ok_or_else(|| CodedProblem::new(Code::BadRequest, format!("component {} has no known role", c.name)))?;
    // One that is written wrongly is left out and not the whole agent: it is only not drained, as before it was declared.
    let mut backends = BTreeSet::new();
    for upstream in c.upstreams {
        let mut of_upstream = BTreeSet::new();
        for backend in upstream.backends {
            match target(&backend) {
                Ok(backend) => _ = of_upstream.insert(backend),
                Err(problem) => tracing::warn!(component = c.name, %problem, "a backend of this component is ignored"),
            }
        }
        backends.insert(of_upstream);
    }
    Ok(ComponentRecord {
        name: c.name,
        kind: c.kind,
        role,
        capabilities,
        reads: c.reads.into_iter().collect(),
        backends,
        restores: c.restores,
    })
}

/// "app-1/api" as people and configurations write it.
pub fn target(name: &str) -> Result<Target, CodedProblem> {
    let (host, component) = name.split_once('/').ok_or_else(|| {
        let shown: String = name.chars().take(40).collect();
        CodedProblem::new(Code::BadName, format!("{shown:?} is not HOST/COMPONENT"))
    })?;
    check_name("host", host)?;
    check_name("component", component)?;
    Ok(Target::new(host, component))
}

/// Empty for most steps: they are about a component as a whole.
pub fn backend_to_wire(step: &Step) -> String {
    step.backend.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn upstream_to_wire(backends: &BTreeSet<Target>) -> v1::Upstream {
    v1::Upstream {
        backends: backends.iter().map(ToString::to_string).collect(),
    }
}

pub fn component_to_wire(c: &ComponentRecord) -> v1::ComponentInfo {
    v1::ComponentInfo {
        name: c.name.clone(),
        kind: c.kind.clone(),
        role: role_to_wire(c.role).into(),
        capabilities: c.capabilities.iter().map(|a| action_to_wire(*a).into()).collect(),
        reads: c.reads.iter().cloned().collect(),
        upstreams: c.backends.iter().map(upstream_to_wire).collect(),
        restores: c.restores,
    }
}

pub fn agent_to_wire(a: &AgentRecord, connected: bool, last_seen: Option<Timestamp>) -> v1::AgentInfo {
    v1::AgentInfo {
        name: a.name.clone(),
        address: a.address.clone(),
        version: a.version.clone(),
        connected,
        last_seen: last_seen.map(timestamp),
        components: a.components.iter().map(component_to_wire).collect(),
        labels: a.labels.clone().into_iter().collect(),
        certificate_expires: Some(timestamp(a.certificate_expires)),
    }
}

pub fn outcome_from_wire(o: v1::Outcome) -> Outcome {
    let unexplained = || Problem {
        code: Code::Internal.id().to_owned(),
        message: "the agent gave no reason".to_owned(),
        remedy: Code::Internal.remedy().to_owned(),
    };
    let why = |p: Option<v1::Problem>| p.map_or_else(unexplained, problem_from_wire);
    let result = match o.status() {
        v1::outcome::Status::Succeeded => StepResult::Succeeded,
        v1::outcome::Status::Failed => StepResult::Failed(why(o.problem)),
        // A status that we do not know is as good as none.
        v1::outcome::Status::Indeterminate | v1::outcome::Status::Unspecified => {
            StepResult::Indeterminate(why(o.problem))
        }
    };
    Outcome {
        result,
        findings: o.findings.into_iter().filter_map(finding_from_wire).collect(),
        observed: o.observed.map(revision_from_wire),
        receipt: o.receipt.map(|r| Receipt {
            path: r.path,
            sha256: r.sha256,
            bytes: r.bytes,
            verified: r.verified,
            tables: r.tables,
            rows: r.rows,
            taken_at: r.taken_at,
        }),
        operations: o
            .operations
            .into_iter()
            .map(|op| Operation {
                name: op.name,
                micros: op.duration.map_or(0, micros),
            })
            .collect(),
        summary: o.summary,
        loss: o.loss.map(loss_from_wire),
    }
}

fn micros(d: WireDuration) -> u64 {
    Duration::try_from(d)
        .ok()
        .and_then(|d| u64::try_from(d.as_micros()).ok())
        .unwrap_or(0)
}

fn finding_from_wire(f: v1::Finding) -> Option<Finding> {
    let severity = match f.severity() {
        v1::Severity::Unspecified => return None,
        v1::Severity::Ok => Severity::Ok,
        v1::Severity::Warning => Severity::Warning,
        v1::Severity::Blocker => Severity::Blocker,
    };
    Some(Finding {
        severity,
        code: f.code,
        message: f.message,
        remedy: f.remedy,
        loss: f.loss.map(loss_from_wire),
    })
}

pub fn finding_to_wire(step: &Step, f: &Finding) -> v1::Finding {
    finding_of(&step.target, f)
}

pub fn finding_of(target: &Target, f: &Finding) -> v1::Finding {
    let severity = match f.severity {
        Severity::Ok => v1::Severity::Ok,
        Severity::Warning => v1::Severity::Warning,
        Severity::Blocker => v1::Severity::Blocker,
    };
    v1::Finding {
        severity: severity.into(),
        code: f.code.clone(),
        message: f.message.clone(),
        remedy: f.remedy.clone(),
        host: target.host.0.clone(),
        component: target.component.0.clone(),
        loss: f.loss.as_ref().map(loss_to_wire),
    }
}

pub fn outcome_to_wire(step: &Step, o: &Outcome) -> v1::Outcome {
    let (status, problem) = match &o.result {
        StepResult::Succeeded => (v1::outcome::Status::Succeeded, None),
        StepResult::Failed(p) => (v1::outcome::Status::Failed, Some(problem_to_wire(p))),
        StepResult::Indeterminate(p) => (v1::outcome::Status::Indeterminate, Some(problem_to_wire(p))),
    };
    v1::Outcome {
        status: status.into(),
        problem,
        findings: o.findings.iter().map(|f| finding_to_wire(step, f)).collect(),
        observed: o.observed.as_ref().map(revision_to_wire),
        receipt: o.receipt.as_ref().map(|r| v1::Receipt {
            path: r.path.clone(),
            sha256: r.sha256.clone(),
            bytes: r.bytes,
            verified: r.verified.clone(),
            tables: r.tables,
            rows: r.rows,
            taken_at: r.taken_at.clone(),
        }),
        operations: o
            .operations
            .iter()
            .map(|op| v1::Operation {
                name: op.name.clone(),
                duration: Some(duration(Duration::from_micros(op.micros))),
            })
            .collect(),
        summary: o.summary.clone(),
        loss: o.loss.as_ref().map(loss_to_wire),
    }
}

pub fn plan_to_wire(plan: &Plan) -> v1::Plan {
    let body = &plan.body;
    v1::Plan {
        digest: plan.digest.0.clone(),
        release: body.release.0.clone(),
        runbook: body.runbook.clone(),
        schema_changes: body.schema_changes,
        phases: body
            .phases
            .iter()
            .map(|phase| v1::PlanPhase {
                name: phase.name.as_str().to_owned(),
                on_failure: format!("{:?}", phase.on_failure).to_lowercase(),
                max_unavailable: phase.max_unavailable.unwrap_or(0),
                batches: phase
                    .batches
                    .iter()
                    .map(|batch| v1::PlanBatch {
                        lanes: batch
                            .lanes
                            .iter()
                            .map(|lane| v1::PlanLane {
                                steps: lane.steps.iter().map(step_to_wire).collect(),
                            })
                            .collect(),
                    })
                    .collect(),
            })
            .collect(),
        changes: body.changes.iter().map(change_to_wire).collect(),
        excused: body
            .excused
            .iter()
            .map(|e| v1::PlanExcused {
                host: e.host.0.clone(),
                reason: e.reason.clone(),
            })
            .collect(),
        database: choice_to_wire(body.database).into(),
        scope: selection_to_wire(&body.selection),
        outside: u32::try_from(body.outside.len()).unwrap_or(u32::MAX),
        approve_within: body
            .approval
            .map(|rule| duration(Duration::from_millis(rule.within_ms))),
        undo_of: body.undo_of.as_ref().map(|id| id.0.clone()).unwrap_or_default(),
    }
}

/// Absent when everything is meant.
pub fn selection_to_wire(selection: &Selection) -> Option<v1::Scope> {
    fn texts<T: ToString>(set: &BTreeSet<T>) -> Vec<String> {
        set.iter().map(T::to_string).collect()
    }
    (!selection.is_everything()).then(|| v1::Scope {
        services: texts(&selection.services),
        hosts: texts(&selection.hosts),
        labels: texts(&selection.labels),
        exclude_services: texts(&selection.exclude_services),
        exclude_hosts: texts(&selection.exclude_hosts),
    })
}

fn step_to_wire(step: &Step) -> v1::PlanStep {
    let (undo, irreversible) = match step.undo {
        Undo::Nothing => (v1::Action::Unspecified, false),
        Undo::By(action) => (action_to_wire(action), false),
        Undo::Impossible => (v1::Action::Unspecified, true),
    };
    v1::PlanStep {
        id: step.id.0,
        host: step.target.host.0.clone(),
        component: step.target.component.0.clone(),
        action: action_to_wire(step.action).into(),
        from: Some(revision_to_wire(&step.from)),
        to: Some(revision_to_wire(&step.to)),
        timeout: Some(duration_millis(step.timeout_ms)),
        undo: undo.into(),
        irreversible,
        backend: backend_to_wire(step),
        from_backup: step.from_backup,
    }
}

fn change_to_wire(change: &Change) -> v1::PlanChange {
    v1::PlanChange {
        host: change.target.host.0.clone(),
        component: change.target.component.0.clone(),
        role: role_to_wire(change.role).into(),
        from: Some(revision_to_wire(&change.from)),
        to: Some(revision_to_wire(&change.to)),
        changes: change.is_needed(),
        restores: change.restore,
        from_backup: change.from_backup,
        left: change.left.as_ref().map(revision_to_wire),
    }
}

pub fn release_to_wire(release: &Release) -> v1::Release {
    let mark = release.mark.as_ref().filter(|mark| mark.stable == release.stable);
    v1::Release {
        name: release.name.0.clone(),
        commit: release.commit.clone(),
        notes: release.notes.clone(),
        recorded_at: Some(timestamp(release.recorded_at)),
        recorded_by: release.recorded_by.clone(),
        entries: release
            .entries
            .iter()
            .map(|e| v1::ReleaseEntry {
                host: e.target.host.0.clone(),
                component: e.target.component.0.clone(),
                role: role_to_wire(e.role).into(),
                revision: Some(revision_to_wire(&e.revision)),
                summary: e.summary.clone(),
            })
            .collect(),
        stable: release.stable,
        digest: release_digest(release),
        // One that a rollback has contradicted since says nothing of what the release is marked as now.
        mark_reason: mark.map(|m| m.reason.clone()).unwrap_or_default(),
        marked_by: mark.map(|m| m.by.clone()).unwrap_or_default(),
        marked_at: mark.map(|m| timestamp(m.at)),
        ..v1::Release::default()
    }
}

/// Identity of what a release names, for people to compare: over the targets and their digests alone.
pub fn release_digest(release: &Release) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for entry in &release.entries {
        hash.update(format!("{} {}\n", entry.target, entry.revision.digest));
    }
    hex::encode(hash.finalize())
}
