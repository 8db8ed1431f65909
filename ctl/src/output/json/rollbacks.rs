//! Rollbacks: what they came to, what they wait for, what operators did to them, every step.

use rollback_proto::v1;
use serde_json::{Value, json};

use super::{data_loss, findings, plan, problem, revision, text, time, took};
use crate::output::loss::{self, Fate};
use crate::output::text::span;
use crate::output::words::{self, Waits};

/// What was counted when databases were exchanged. `lost`: is the restored one live? `null` when nobody can tell.
fn losses(details: &v1::GetRollbackResponse) -> Value {
    let one = |c: loss::Counted<'_>| {
        let lost = match c.fate {
            Fate::Lost => Some(true),
            Fate::TakenBack | Fate::NotExchanged => Some(false),
            Fate::Unclear => None,
        };
        json!({
            "host": c.step.host,
            "component": c.step.component,
            "lost": lost,
            "loss": data_loss(Some(c.loss)),
        })
    };
    Value::Array(loss::counted(details).map(one).collect())
}

pub fn summary(r: &v1::RollbackSummary) -> Value {
    let state = v1::RollbackState::try_from(r.state).unwrap_or(v1::RollbackState::Unspecified);
    json!({
        "rollback_id": r.id,
        "release": r.release,
        "runbook": r.runbook,
        "state": words::state(state),
        "blocked": r.blocked,
        "phase": text(&r.phase),
        "started_by": r.started_by,
        "reason": text(&r.reason),
        "incident": text(&r.incident),
        "started_at": time(r.started_at.as_ref()),
        "ended_at": time(r.ended_at.as_ref()),
        "ms": took(r.started_at.as_ref(), r.ended_at.as_ref()),
        "trace_id": text(&r.trace_id),
        "steps_total": r.steps_total,
        "steps_done": r.steps_done,
        "problem": problem(r.problem.as_ref()),
        "failed_hosts": r.failed_hosts,
        "consent": r.consent.map(|c| json!({"max_rows": c.max_rows})),
        "waits_for": waits_for(words::waits(r)),
        "standstill": r.standstill.as_ref().map(standstill),
        "approval": r.approval.as_ref().map(approval),
        "scope": r.scope.as_ref().map(scope),
        "undo_of": text(&r.undo_of),
        "skipped_hosts": r.skipped_hosts,
    })
}

/// `by` is `null` where the runbook paused it.
fn standstill(s: &v1::Standstill) -> Value {
    json!({
        "since": time(s.since.as_ref()),
        "by": text(&s.by),
        "reason": text(&s.reason),
        "problem": problem(s.problem.as_ref()),
        "failed_hosts": s.failed_hosts,
        "in_flight": s.in_flight,
    })
}

/// `approved_by` is `null` until somebody has.
fn approval(a: &v1::Approval) -> Value {
    json!({
        "expires_at": time(a.expires_at.as_ref()),
        "approved_by": text(&a.approved_by),
        "approved_at": time(a.approved_at.as_ref()),
        "plan_digest": text(&a.plan_digest),
    })
}

pub(super) fn scope(s: &v1::Scope) -> Value {
    json!({
        "services": s.services,
        "hosts": s.hosts,
        "labels": s.labels,
        "exclude_services": s.exclude_services,
        "exclude_hosts": s.exclude_hosts,
    })
}

/// Milliseconds; `null` where history has nothing like it.
pub fn estimate(estimate: Option<&v1::Estimate>) -> Value {
    let ms = |d: Option<&prost_types::Duration>| d.map(span);
    let spread = |s: Option<&v1::Spread>| {
        s.map(|s| {
            json!({
                "least_ms": ms(s.least.as_ref()),
                "median_ms": ms(s.median.as_ref()),
                "most_ms": ms(s.most.as_ref()),
            })
        })
    };
    estimate.map_or(Value::Null, |e| {
        json!({
            "samples": e.samples,
            "total": spread(e.total.as_ref()),
            "downtime": spread(e.downtime.as_ref()),
        })
    })
}

/// What was done to it, by operators and by its runbook.
fn acts(events: &[v1::RollbackEvent]) -> Value {
    let one = |e: &v1::RollbackEvent| {
        let kind = v1::rollback_event::Kind::try_from(e.kind).ok()?;
        crate::output::acts::told(e)?;
        Some(json!({
            "seq": e.seq,
            "at": time(e.at.as_ref()),
            "act": kind.as_str_name().to_lowercase(),
            "by": text(&e.by),
            "reason": text(&e.reason),
            "hosts": e.hosts,
            "problem": problem(e.problem.as_ref()),
            "message": text(&e.message),
        }))
    };
    Value::Array(events.iter().filter_map(one).collect())
}

/// [`rollback_in_full`] with the steps that the end waited for.
pub fn trace(details: &v1::GetRollbackResponse) -> Value {
    let mut body = rollback_in_full(details);
    let path = crate::output::trace::critical(details);
    body["critical_path"] = path
        .into_iter()
        .map(|step| json!({"id": step.id, "undo": step.undo, "attempt": step.attempt}))
        .collect();
    body
}

/// Whose turn it is; `null`: the rollback's own.
pub fn waits_for(waits: Option<Waits>) -> Option<&'static str> {
    match waits {
        Some(Waits::ForApproval) => Some("approval"),
        Some(Waits::Paused) => Some("operator"),
        None => None,
    }
}

/// A rollback with its phases and findings: what `fleet rollback` and `rollback watch` end with.
pub fn rollback(details: &v1::GetRollbackResponse) -> Value {
    let phase = |p: &v1::PhaseTiming| {
        json!({
            "name": p.name,
            "ms": took(p.started_at.as_ref(), p.ended_at.as_ref()),
            "started_at": time(p.started_at.as_ref()),
            "ended_at": time(p.ended_at.as_ref()),
        })
    };
    let mut body = summary(&details.summary.clone().unwrap_or_default());
    body["phases"] = Value::Array(details.phases.iter().map(phase).collect());
    body["findings"] = findings(&details.findings);
    body["losses"] = losses(details);
    body
}

/// [`rollback`] with every step and the plan.
pub fn rollback_in_full(details: &v1::GetRollbackResponse) -> Value {
    let step = |s: &v1::StepReport| {
        let outcome = s.outcome.clone().unwrap_or_default();
        let result = match v1::outcome::Status::try_from(outcome.status) {
            Ok(v1::outcome::Status::Succeeded) => Some("succeeded"),
            Ok(v1::outcome::Status::Failed) => Some("failed"),
            Ok(v1::outcome::Status::Indeterminate) => Some("indeterminate"),
            Ok(v1::outcome::Status::Unspecified) | Err(_) => None,
        };
        let operation = |o: &v1::Operation| {
            let ms = o.duration.map(|d| d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6);
            json!({"name": o.name, "ms": ms})
        };
        json!({
            "id": s.id,
            "undo": s.undo,
            "attempt": s.attempt,
            "phase": text(&s.phase),
            "host": s.host,
            "component": s.component,
            "action": words::action(s.action),
            "backend": text(&s.backend),
            "started_at": time(s.started_at.as_ref()),
            "ended_at": time(s.ended_at.as_ref()),
            "ms": took(s.started_at.as_ref(), s.ended_at.as_ref()),
            "result": result,
            "problem": problem(outcome.problem.as_ref()),
            "observed": revision(outcome.observed.as_ref()),
            "summary": text(&outcome.summary),
            "operations": outcome.operations.iter().map(operation).collect::<Vec<_>>(),
            "loss": data_loss(outcome.loss.as_ref()),
            "receipt": outcome.receipt.as_ref().map(receipt),
        })
    };
    let mut body = rollback(details);
    body["steps"] = Value::Array(details.steps.iter().map(step).collect());
    body["plan"] = details.plan.as_ref().map_or(Value::Null, plan);
    body["acts"] = acts(&details.events);
    body
}

/// A backup that was made, and what proved it.
fn receipt(r: &v1::Receipt) -> Value {
    json!({
        "path": r.path,
        "sha256": r.sha256,
        "bytes": r.bytes,
        "verified": text(&r.verified),
        "tables": r.tables,
        "rows": r.rows,
        "taken_at": text(&r.taken_at),
    })
}
