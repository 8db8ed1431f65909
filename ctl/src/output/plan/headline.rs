//! The first lines: from where to where, what users notice, how long it takes, and who has to agree.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::problem::Code;
use rollback_proto::v1::{
    DatabaseChoice, Estimate, Finding, Plan, PlanChange, PlanRollbackResponse, Role, Severity, Spread,
};

use super::{changing, irreversible, left, restoring, steps_of};
use crate::output::loss;
use crate::output::paint::{Paint, Tone};
use crate::output::scope;
use crate::output::text::{clean, count, duration, name_some, short, span};
use crate::output::words;

/// Of what is named in the headline: as many as fit on a line.
const NAMED: usize = 3;

pub fn render(response: &PlanRollbackResponse, plan: &Plan, paint: Paint) -> String {
    let mut text = title(plan, paint);
    let mut fact = |name: &str, tone: Tone, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<9} {}\n", paint.tone(tone, &value)));
        }
    };
    let estimate = response.estimate.as_ref();
    fact("changes", Tone::Plain, how_much(plan));
    fact("scope", Tone::Plain, scope_of(plan));
    fact("users", Tone::Plain, users(plan, estimate));
    if changing(plan) + restoring(plan) > 0 {
        fact("time", Tone::Plain, time(estimate));
        fact("undo", Tone::Bad, no_way_back(plan));
    }
    let (tone, lost) = data(plan, &response.findings);
    fact("data", tone, lost);
    for agreement in consent(plan, &response.findings) {
        fact("consent", Tone::Warn, agreement);
    }
    for held in response.findings.iter().filter(|f| is_hold(f)) {
        fact("held", Tone::Warn, clean(&held.message));
    }
    if !plan.excused.is_empty() {
        let hosts = name_some(plan.excused.iter().map(|e| e.host.as_str()), NAMED);
        let without = format!("{}: {hosts}", count(plan.excused.len(), "host", "hosts"));
        fact("left out", Tone::Warn, without);
    }
    text
}

/// A warning that the target, or what is left, is held.
fn is_hold(finding: &Finding) -> bool {
    finding.code == Code::ReleaseHeld.id() && words::severity(finding.severity) == Severity::Warning
}

/// "Rollback v3.0.0 → v2.9.0   runbook default@1   plan 77cc01bc04de".
fn title(plan: &Plan, paint: Paint) -> String {
    let release = clean(&plan.release);
    let what = match (plan.undo_of.as_str(), from(plan)) {
        ("", Some(from)) => format!("Rollback {from} → {release}"),
        ("", None) => format!("Rollback to {release}"),
        (undone, _) => format!("Undo of rollback {}: back to {release}", clean(undone)),
    };
    // What every runbook says unless somebody wants it otherwise needs no word.
    let database = match DatabaseChoice::try_from(plan.database) {
        Ok(DatabaseChoice::Auto | DatabaseChoice::Unspecified) => String::new(),
        Ok(DatabaseChoice::Keep | DatabaseChoice::Migrate | DatabaseChoice::Restore) | Err(_) => {
            format!("   database {}", words::database(plan.database))
        }
    };
    format!(
        "{}   runbook {}{database}   plan {}\n",
        paint.tone(Tone::Strong, &what),
        clean(&plan.runbook),
        short(&plan.digest)
    )
}

/// What runs now, where that can be said in one word: the version of the applications that change, or of all that changes.
fn from(plan: &Plan) -> Option<String> {
    let versions = |wanted: &dyn Fn(&PlanChange) -> bool| -> BTreeSet<String> {
        let changing = plan.changes.iter().filter(|c| c.changes && wanted(c));
        changing
            .map(|c| c.from.as_ref().map(|r| clean(&r.version)).unwrap_or_default())
            .collect()
    };
    let apps = versions(&|c| c.role == i32::from(Role::App));
    let all = if apps.is_empty() { versions(&|_| true) } else { apps };
    let mut all = all.into_iter();
    match (all.next(), all.next()) {
        (Some(one), None) if !one.is_empty() && one != clean(&plan.release) => Some(one),
        (Some(_), Some(_)) => Some("several releases".to_owned()),
        (Some(_) | None, None) | (None, Some(_)) => None,
    }
}

fn how_much(plan: &Plan) -> String {
    let hosts = |wanted: &dyn Fn(&PlanChange) -> bool| -> usize {
        plan.changes
            .iter()
            .filter(|c| wanted(c))
            .map(|c| c.host.as_str())
            .collect::<BTreeSet<_>>()
            .len()
    };
    let mut text = if changing(plan) == 0 {
        "none: what this plan takes back is at the target already".to_owned()
    } else {
        format!(
            "{} on {} of {}",
            count(changing(plan), "component", "components"),
            hosts(&|c| c.changes),
            count(hosts(&|_| true), "host", "hosts")
        )
    };
    match restoring(plan) {
        0 => {}
        down => text.push_str(&format!(
            "; {} not serving now and brought up",
            count(down, "is", "are")
        )),
    }
    match left(plan).count() {
        0 => {}
        left => text.push_str(&format!("; {} where it is on purpose", count(left, "stays", "stay"))),
    }
    text
}

fn scope_of(plan: &Plan) -> String {
    let words = scope::words(plan.scope.as_ref());
    match (words.is_empty(), plan.outside) {
        (true, 0) => words,
        (true, outside) => format!("{outside} of {} outside", clean(&plan.release)),
        (false, outside) => format!("{words} ({outside} of {} outside)", clean(&plan.release)),
    }
}

/// Do users notice it, and for how long?
fn users(plan: &Plan, estimate: Option<&Estimate>) -> String {
    let downtime = || match estimate.and_then(|e| e.downtime.as_ref()) {
        Some(spread) => format!(": {}", told(spread)),
        None => String::new(),
    };
    if plan.changes.iter().any(|c| c.from_backup) {
        format!(
            "get a maintenance answer while a database is exchanged with the restored one{}",
            downtime()
        )
    } else if plan.schema_changes {
        format!(
            "get a maintenance answer while the database schema changes{}",
            downtime()
        )
    } else if changing(plan) + restoring(plan) == 0 {
        "notice nothing: all is verified, nothing is touched".to_owned()
    } else if steps_of(plan).any(|s| !s.backend.is_empty()) {
        "notice nothing: each application is drained from its proxy while it restarts".to_owned()
    } else {
        "no maintenance answer: hosts are switched in batches, each is away while it restarts".to_owned()
    }
}

fn time(estimate: Option<&Estimate>) -> String {
    let Some(estimate) = estimate.filter(|e| e.samples > 0) else {
        return "not known: no rollback of this shape yet".to_owned();
    };
    let of = count(
        usize::try_from(estimate.samples).unwrap_or(usize::MAX),
        "rollback like this one",
        "rollbacks like this one",
    );
    match &estimate.total {
        Some(total) => format!("{}, of {of}", told(total)),
        None => format!("not known, after {of}"),
    }
}

/// "about 41.2 s (38.0 s to 52.1 s)".
fn told(spread: &Spread) -> String {
    let write = |d: Option<&prost_types::Duration>| d.map_or_else(|| "?".to_owned(), |d| duration(span(d)));
    let (least, most) = (write(spread.least.as_ref()), write(spread.most.as_ref()));
    let median = write(spread.median.as_ref());
    if least == most {
        format!("about {median}")
    } else {
        format!("about {median} ({least} to {most})")
    }
}

/// Empty: everything has one.
fn no_way_back(plan: &Plan) -> String {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for step in irreversible(plan) {
        *places.entry(words::action(step.action)).or_default() += 1;
    }
    if places.is_empty() {
        return String::new();
    }
    let kinds: Vec<String> = places.iter().map(|(action, n)| format!("{n} × {action}")).collect();
    format!("NOT EVERYTHING HAS A WAY BACK: {}", kinds.join(", "))
}

/// What is lost.
fn data(plan: &Plan, findings: &[Finding]) -> (Tone, String) {
    let restored = loss::expected(plan, findings);
    if restored.is_empty() {
        return (Tone::Plain, String::new());
    }
    let rows: Option<u64> = restored.iter().map(loss::Expected::rows).sum();
    let places = name_some(
        restored
            .iter()
            .map(loss::Expected::place)
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str),
        NAMED,
    );
    match rows {
        Some(0) => (
            Tone::Plain,
            format!("{places} from a backup; no rows were written since"),
        ),
        Some(rows) => (
            Tone::Bad,
            format!("{places} from a backup; {} LOST", loss::rows_of(rows)),
        ),
        None => (
            Tone::Bad,
            format!("{places} from a backup; HOW MUCH IS LOST IS NOT KNOWN"),
        ),
    }
}

/// Who must agree; one line each.
fn consent(plan: &Plan, findings: &[Finding]) -> Vec<String> {
    let mut needed = Vec::new();
    if !loss::expected(plan, findings).is_empty() {
        needed.push("to the loss of data: --accept-data-loss".to_owned());
    }
    if let Some(within) = &plan.approve_within {
        needed.push(format!(
            "a second operator, within {} of the start",
            duration(span(within))
        ));
    }
    needed
}
