//! Releases: what they are made of, how they differ, what is looked at before a deployment.

use rollback_proto::v1;
use serde_json::{Value, json};

use super::{findings, hold, problem, revision, severity, text, time};
use crate::output::releases::Difference;
use crate::output::words;

pub fn release(r: &v1::Release) -> Value {
    let entry = |e: &v1::ReleaseEntry| {
        json!({
            "host": e.host,
            "component": e.component,
            "role": words::role(e.role),
            "revision": revision(e.revision.as_ref()),
            "summary": text(&e.summary),
        })
    };
    json!({
        "name": r.name,
        "commit": text(&r.commit),
        "notes": text(&r.notes),
        "recorded_at": time(r.recorded_at.as_ref()),
        "recorded_by": r.recorded_by,
        "stable": r.stable,
        "mark": (!r.marked_by.is_empty()).then(|| json!({
            "by": r.marked_by,
            "at": time(r.marked_at.as_ref()),
            "reason": text(&r.mark_reason),
        })),
        "pinned_by": r.pinned_by,
        "hold": r.hold.as_ref().map(hold),
        "digest": r.digest,
        "entries": r.entries.iter().map(entry).collect::<Vec<_>>(),
    })
}

/// One release that was forgotten, or would be.
pub fn removed_release(r: &v1::RemovedRelease, dry_run: bool) -> Value {
    json!({
        "name": r.name,
        "removed": r.pinned_by.is_empty() && !dry_run,
        "pinned_by": r.pinned_by,
        "leftovers": r.leftovers,
    })
}

/// One line of the checklist before a deployment.
pub fn checklist_item(i: &v1::ChecklistItem) -> Value {
    json!({
        "name": i.name,
        "severity": severity(i.severity),
        "evidence": i.evidence,
        "remedy": text(&i.remedy),
        "findings": findings(&i.findings),
    })
}

/// One component of a release that is imported.
pub fn import_finding(f: &v1::ImportFinding) -> Value {
    json!({
        "host": f.host,
        "component": f.component,
        "kind": f.kind,
        "revision": revision(f.revision.as_ref()),
        "summary": text(&f.summary),
        "problem": problem(f.problem.as_ref()),
    })
}

pub fn difference(d: &Difference) -> Value {
    json!({
        "host": d.host,
        "component": d.component,
        "a": revision(d.a.as_ref()),
        "b": revision(d.b.as_ref()),
    })
}
