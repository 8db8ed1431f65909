//! Runbooks, and what is wrong with one.

use rollback_proto::v1;
use serde_json::{Value, json};

use super::{text, time};
use crate::output::words;

pub fn runbook(r: &v1::RunbookInfo) -> Value {
    json!({
        "name": r.name,
        "version": r.version,
        "builtin": r.builtin,
        "applied_by": text(&r.applied_by),
        "applied_at": time(r.applied_at.as_ref()),
        "about": text(&r.about),
        "digest": r.digest,
    })
}

/// `line` is `null` for what concerns the whole file.
pub fn runbook_finding(f: &v1::RunbookFinding) -> Value {
    let severity = match words::severity(f.severity) {
        v1::Severity::Ok => "ok",
        v1::Severity::Warning => "warning",
        v1::Severity::Blocker => "error",
        v1::Severity::Unspecified => "unknown",
    };
    let place = |n: u32| (f.line > 0).then_some(n);
    json!({
        "severity": severity,
        "line": place(f.line),
        "column": place(f.column),
        "key": text(&f.key),
        "message": f.message,
        "hint": text(&f.hint),
    })
}
