//! The JSON of every reading verb. One object on one line, with `schema` and `kind`; within one schema version fields are only added.
//!
//! Times are RFC 3339 in UTC, durations whole milliseconds, unknown values `null`. Enumerations are the words that the
//! tables use, in lower case.

mod releases;
mod rollbacks;
mod runbooks;

use rollback_proto::problem::Problem;
use rollback_proto::v1;
use rollback_proto::v1::get_server_info_response::Standing;
use serde_json::{Value, json};

use super::checks::Check;
use super::loss;
use super::text::{leader_name, millis, span, timestamp};
use super::words;
use crate::exit::ExitCode;

pub use releases::{checklist_item, difference, import_finding, release, removed_release};
use rollbacks::scope;
pub use rollbacks::{estimate, rollback, rollback_in_full, summary, trace, waits_for};
pub use runbooks::{runbook, runbook_finding};

/// The version of everything here.
pub const SCHEMA: &str = "rollbackctl/v1";

/// Adds schema and kind and writes one line. `body` is an object.
pub fn document(kind: &str, body: Value) -> String {
    let mut document = json!({"schema": SCHEMA, "kind": kind});
    if let (Value::Object(document), Value::Object(body)) = (&mut document, body) {
        document.extend(body);
    }
    document.to_string()
}

/// What stands on stdout when a verb failed before it had an answer.
pub fn failure(error: &anyhow::Error, exit: ExitCode) -> String {
    let told = match super::problem::find(error) {
        Some(problem) => of_problem(problem),
        None => json!({"code": null, "message": format!("{error:#}"), "remedy": null}),
    };
    document("error", json!({"error": told, "exit_code": exit.number()}))
}

fn of_problem(problem: &Problem) -> Value {
    json!({"code": problem.code.id(), "message": problem.message, "remedy": problem.remedy})
}

fn problem(problem: Option<&v1::Problem>) -> Value {
    problem.map_or(
        Value::Null,
        |p| json!({"code": p.code, "message": p.message, "remedy": p.remedy}),
    )
}

fn time(at: Option<&prost_types::Timestamp>) -> Value {
    timestamp(at).map_or(Value::Null, |t| Value::String(t.to_string()))
}

fn took(start: Option<&prost_types::Timestamp>, end: Option<&prost_types::Timestamp>) -> Value {
    timestamp(start)
        .zip(timestamp(end))
        .map_or(Value::Null, |(start, end)| json!(millis(start, end)))
}

fn revision(revision: Option<&v1::Revision>) -> Value {
    revision.map_or(Value::Null, |r| json!({"version": r.version, "digest": r.digest}))
}

/// proto's empty string stands for "not there".
fn text(value: &str) -> Value {
    if value.is_empty() {
        Value::Null
    } else {
        Value::String(value.to_owned())
    }
}

pub fn fleet(fleet: &v1::GetFleetResponse) -> Value {
    let host = |h: &v1::HostState| {
        let agent = h.agent.clone().unwrap_or_default();
        let role = |name: &str| agent.components.iter().find(|c| c.name == name).map_or(0, |c| c.role);
        let components = h.states.iter().map(|s| {
            json!({
                "name": s.component,
                "role": words::role(role(&s.component)),
                "revision": revision(s.revision.as_ref()),
                "health": words::health(s.health).0.to_lowercase(),
                "detail": s.detail,
                "problem": problem(s.problem.as_ref()),
            })
        });
        json!({
            "name": agent.name,
            "reachable": h.problem.is_none(),
            "problem": problem(h.problem.as_ref()),
            "components": components.collect::<Vec<_>>(),
        })
    };
    json!({
        "release": text(&fleet.matches_release),
        "not_serving": super::status::not_serving(fleet).count(),
        "hosts": fleet.hosts.iter().map(host).collect::<Vec<_>>(),
        "active": fleet.active.iter().map(summary).collect::<Vec<_>>(),
        "drift": fleet.drift.iter().map(drift).collect::<Vec<_>>(),
        "holds": fleet.holds.iter().map(hold).collect::<Vec<_>>(),
    })
}

/// `observed` is `null` where it could not be observed; `rollback_id` where the release was recorded so.
pub fn drift(d: &v1::Drift) -> Value {
    json!({
        "host": d.host,
        "component": d.component,
        "expected": revision(d.expected.as_ref()),
        "observed": revision(d.observed.as_ref()),
        "release": text(&d.release),
        "rollback_id": text(&d.rollback_id),
        "since": time(d.since.as_ref()),
        "missed": d.missed,
        "automatic": d.automatic,
    })
}

pub fn gate(release: &str, answer: &v1::CheckGateResponse, exit: ExitCode) -> Value {
    json!({
        "release": release,
        "open": answer.open,
        "problem": problem(answer.problem.as_ref()),
        "hold": answer.hold.as_ref().map(hold),
        "active": answer.active.iter().map(summary).collect::<Vec<_>>(),
        "exit_code": exit.number(),
    })
}

/// `rollback_id` is `null` where an operator held it.
pub fn hold(h: &v1::Hold) -> Value {
    json!({
        "release": h.release,
        "since": time(h.since.as_ref()),
        "by": text(&h.by),
        "reason": text(&h.reason),
        "rollback_id": text(&h.rollback_id),
    })
}

pub fn plan(plan: &v1::Plan) -> Value {
    let step = |s: &v1::PlanStep| {
        json!({
            "id": s.id,
            "host": s.host,
            "component": s.component,
            "action": words::action(s.action),
            "from": revision(s.from.as_ref()),
            "to": revision(s.to.as_ref()),
            "undo": (s.undo != 0).then(|| words::action(s.undo)),
            "irreversible": s.irreversible,
            "backend": text(&s.backend),
            "from_backup": s.from_backup,
        })
    };
    let batch = |b: &v1::PlanBatch| {
        let lanes = b.lanes.iter().map(|l| l.steps.iter().map(step).collect::<Vec<_>>());
        json!({"lanes": lanes.collect::<Vec<_>>()})
    };
    let phase = |p: &v1::PlanPhase| {
        json!({
            "name": p.name,
            "on_failure": text(&p.on_failure),
            "max_unavailable": (p.max_unavailable > 0).then_some(p.max_unavailable),
            "batches": p.batches.iter().map(batch).collect::<Vec<_>>(),
        })
    };
    let change = |c: &v1::PlanChange| {
        json!({
            "host": c.host,
            "component": c.component,
            "role": words::role(c.role),
            "from": revision(c.from.as_ref()),
            "to": revision(c.to.as_ref()),
            "changes": c.changes,
            "restores": c.restores,
            "from_backup": c.from_backup,
            "left": revision(c.left.as_ref()),
        })
    };
    json!({
        "digest": plan.digest,
        "release": plan.release,
        "runbook": plan.runbook,
        "database": words::database(plan.database),
        "schema_changes": plan.schema_changes,
        "scope": plan.scope.as_ref().map(scope),
        "outside": plan.outside,
        "approve_within_ms": plan.approve_within.as_ref().map(span),
        "undo_of": text(&plan.undo_of),
        "changes": plan.changes.iter().map(change).collect::<Vec<_>>(),
        "excused": plan.excused.iter().map(|e| json!({"host": e.host, "reason": e.reason})).collect::<Vec<_>>(),
        "phases": plan.phases.iter().map(phase).collect::<Vec<_>>(),
    })
}

fn severity(value: i32) -> &'static str {
    match words::severity(value) {
        v1::Severity::Ok => "ok",
        v1::Severity::Warning => "warning",
        v1::Severity::Blocker => "blocker",
        v1::Severity::Unspecified => "unknown",
    }
}

pub fn findings(findings: &[v1::Finding]) -> Value {
    let finding = |f: &v1::Finding| {
        json!({
            "severity": severity(f.severity),
            "code": text(&f.code),
            "message": f.message,
            "remedy": text(&f.remedy),
            "host": text(&f.host),
            "component": text(&f.component),
            "loss": data_loss(f.loss.as_ref()),
        })
    };
    Value::Array(findings.iter().map(finding).collect())
}

/// `rows` is `null` when nobody knows them all.
fn data_loss(loss: Option<&v1::DataLoss>) -> Value {
    let table = |t: &v1::TableLoss| json!({"table": t.table, "written": t.written, "replaced": t.replaced});
    loss.map_or(Value::Null, |l| {
        json!({
            "backup": l.backup,
            "taken_at": l.taken_at,
            "rows": loss::known(l),
            "tables": l.tables.iter().map(table).collect::<Vec<_>>(),
            "unknown": text(&l.unknown),
            "put_aside": text(&l.put_aside),
        })
    })
}

/// What a plan's restores would cost: one for each database.
pub fn expected_losses(plan: &v1::Plan, findings: &[v1::Finding]) -> Value {
    let one = |e: &loss::Expected<'_>| json!({"host": e.host, "component": e.component, "loss": data_loss(e.loss)});
    Value::Array(loss::expected(plan, findings).iter().map(one).collect())
}

pub fn agent(a: &v1::AgentInfo) -> Value {
    let component = |c: &v1::ComponentInfo| {
        json!({
            "name": c.name,
            "kind": c.kind,
            "role": words::role(c.role),
            "capabilities": c.capabilities.iter().map(|a| words::action(*a)).collect::<Vec<_>>(),
            "reads": c.reads,
            "restores": c.restores,
            "upstreams": c.upstreams.iter().map(|u| &u.backends).collect::<Vec<_>>(),
        })
    };
    json!({
        "name": a.name,
        "address": a.address,
        "version": a.version,
        "connected": a.connected,
        "last_seen": time(a.last_seen.as_ref()),
        "certificate_expires": time(a.certificate_expires.as_ref()),
        "labels": a.labels,
        "components": a.components.iter().map(component).collect::<Vec<_>>(),
    })
}

/// A coordinator about itself. `leader` is the name in `leader_id`, which is another one for every start of a process.
pub fn server(s: &v1::GetServerInfoResponse) -> Value {
    json!({
        "name": text(&s.name),
        "version": s.version,
        "standing": match s.standing() {
            Standing::Leading => Some("leading"),
            Standing::Following => Some("following"),
            Standing::Unspecified => None,
        },
        "leader": text(&leader_name(&s.leader_id)),
        "leader_id": text(&s.leader_id),
        "leader_endpoint": text(&s.leader_endpoint),
        "epoch": s.epoch,
        "note": text(&s.note),
        "now": time(s.now.as_ref()),
        "agents": s.agents,
        "agents_connected": s.agents_connected,
        "caller": text(&s.caller),
    })
}

pub fn check(c: &Check) -> Value {
    json!({"level": c.level.word(), "name": c.name, "message": c.message, "remedy": text(&c.remedy)})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::loss::Fate;
    use crate::output::samples::{self, golden};

    #[test]
    fn every_document_has_its_schema() {
        let details = samples::details(v1::RollbackState::Undone, true);
        let fleet = document("fleet_status", fleet(&samples::fleet()));
        let rollback = document("rollback", rollback(&details));
        let pretty = |text: &str| {
            let value: Value = serde_json::from_str(text).expect("is JSON");
            assert_eq!(value["schema"], SCHEMA);
            serde_json::to_string_pretty(&value).expect("is a value")
        };
        golden!("json", format!("{}\n{}", pretty(&fleet), pretty(&rollback)));
        let response = samples::restore::plan_response();
        let losses = expected_losses(response.plan.as_ref().expect("has a plan"), &response.findings);
        let report = rollback_in_full(&samples::restore::details(Fate::Lost));
        let parts = json!({
            "plan": {
                "database": report["plan"]["database"],
                "change": report["plan"]["changes"][4],
                "step": report["plan"]["phases"][2]["batches"][0]["lanes"][0][0],
                "losses": losses,
            },
            "report": {
                "consent": report["consent"],
                "losses": report["losses"],
                "loss_of_step": report["steps"][0]["loss"],
            },
        });
        golden!("json_databases", pretty(&document("parts", parts)));
    }

    /// Everything that a fake's few answers do not have.
    #[test]
    fn documents_are_as_documented() {
        let checked = |kind: &str, body: Value| {
            let document: Value = serde_json::from_str(&document(kind, body)).expect("is JSON");
            crate::strict::check(&document);
        };
        let mut fleet_now = samples::fleet();
        fleet_now.active = vec![
            samples::operators::standing_still(""),
            samples::operators::awaiting_approval(),
        ];
        fleet_now.drift = samples::operators::drift();
        fleet_now.holds = vec![samples::operators::hold()];
        checked("fleet_status", fleet(&fleet_now));
        for details in [
            samples::operators::steered(),
            samples::restore::details(Fate::Lost),
            samples::details(v1::RollbackState::Undone, true),
        ] {
            checked("rollback", rollback_in_full(&details));
            checked("rollback_trace", trace(&details));
        }
        let mut held = samples::release("v3.0.0");
        held.hold = Some(samples::operators::hold());
        held.pinned_by = vec!["the newest 10".to_owned()];
        held.marked_by = "ana".to_owned();
        checked("release", release(&held));
        for response in [
            samples::operators::scoped_plan(),
            samples::operators::plan_with_history(),
            samples::restore::plan_response(),
        ] {
            let of = response.plan.as_ref().expect("has a plan");
            let body = json!({
                "plan": plan(of),
                "findings": findings(&response.findings),
                "losses": expected_losses(of, &response.findings),
                "estimate": estimate(response.estimate.as_ref()),
                "changes": 1,
                "restores": 0,
                "blocked": false,
                "exit_code": 2,
            });
            checked("fleet_plan", body);
        }
    }
}
