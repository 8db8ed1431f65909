//! What changes where, what stays and why, and who is left out. A large fleet is told by kinds of change, not by hosts.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::v1::{DatabaseChoice, Plan, PlanChange, Role};

use super::{changing, left};
use crate::output::paint::{Paint, Tone};
use crate::output::table::{Table, cell, plain};
use crate::output::text::{change, clean, count, name_some, target};
use crate::output::words;

/// More changes than this are told together.
const ONE_BY_ONE: usize = 14;
/// Components that are left where they are and named, before they are only counted.
const NAMED_LEFT: usize = 10;
/// Hosts that a line names before it only counts.
const NAMED_HOSTS: usize = 6;

/// What changes, one line per component or per kind of change; what stays is only counted.
pub fn render(plan: &Plan, paint: Paint) -> String {
    let hosts: BTreeSet<&str> = plan
        .changes
        .iter()
        .filter(|c| c.changes)
        .map(|c| c.host.as_str())
        .collect();
    let title = paint.tone(Tone::Strong, "Changes:");
    let mut text = format!(
        "{title} {} on {}\n",
        count(changing(plan), "component", "components"),
        count(hosts.len(), "host", "hosts")
    );
    text.push_str(&changes(plan, paint));
    text.push_str(&restores(plan, paint));
    text.push_str(&stays(plan, paint));
    let already: Vec<String> = plan
        .changes
        .iter()
        .filter(|c| !c.changes && c.left.is_none())
        .map(|c| target(&c.host, &c.component))
        .collect();
    if !already.is_empty() {
        let names = name_some(already.iter().map(String::as_str), NAMED_HOSTS);
        text.push_str(&format!("  {} at the target already: {names}\n", already.len()));
    }
    if plan.outside > 0 {
        let outside = usize::try_from(plan.outside).unwrap_or(usize::MAX);
        let which = count(outside, "component", "components");
        text.push_str(&format!(
            "  {which} of {} outside the scope, not looked at\n",
            clean(&plan.release)
        ));
    }
    text.push_str(&excused(plan, paint));
    text
}

/// The components that make the same step, in the order in which the plan has them.
fn changes(plan: &Plan, paint: Paint) -> String {
    let mut kinds: Vec<(String, Vec<&PlanChange>)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let one_by_one = changing(plan) <= ONE_BY_ONE;
    for c in plan.changes.iter().filter(|c| c.changes) {
        let (from, to) = change(c.from.as_ref(), c.to.as_ref());
        let host = if one_by_one { c.host.as_str() } else { "" };
        let kind = format!("{host}\0{}\0{}\0{from}\0{to}\0{}", c.component, c.role, c.from_backup);
        let at = *known.entry(kind.clone()).or_insert_with(|| {
            kinds.push((kind, Vec::new()));
            kinds.len() - 1
        });
        kinds[at].1.push(c);
    }
    let mut table = Table::new(paint, &[]);
    for (_, same) in &kinds {
        let Some(c) = same.first() else { continue };
        let (from, mut to) = change(c.from.as_ref(), c.to.as_ref());
        if c.from_backup {
            to.push_str(", from a backup");
        }
        let hosts: BTreeSet<&str> = same.iter().map(|c| c.host.as_str()).collect();
        let (place, on) = if one_by_one {
            (target(&c.host, &c.component), String::new())
        } else {
            let n = count(hosts.len(), "host", "hosts");
            (clean(&c.component), format!("{n}: {}", name_some(hosts, NAMED_HOSTS)))
        };
        let mut row = vec![
            plain(place),
            plain(words::role(c.role)),
            plain(from),
            plain("→"),
            cell(Tone::Strong, to),
        ];
        if !one_by_one {
            row.push(plain(on));
        }
        table.row(row);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render(2)
    }
}

/// "db-1/db stays at 002_scores (v2.9.0 has 001_users): databases are kept", a line for each.
pub fn stays(plan: &Plan, paint: Paint) -> String {
    let mut text = String::new();
    for c in left(plan).take(NAMED_LEFT) {
        let (at, has) = change(c.from.as_ref(), c.left.as_ref());
        let stays = paint.tone(Tone::Warn, "stays");
        let (place, release) = (target(&c.host, &c.component), clean(&plan.release));
        let why = why_left(plan, c);
        text.push_str(&format!("  {place} {stays} at {at} ({release} has {has}): {why}\n"));
    }
    match left(plan).count().saturating_sub(NAMED_LEFT) {
        0 => {}
        more => text.push_str(&format!("  and {more} more stay where they are\n")),
    }
    text
}

fn why_left(plan: &Plan, change: &PlanChange) -> String {
    let is_database = change.role == i32::from(Role::Database);
    if is_database && plan.database() == DatabaseChoice::Keep {
        "databases are kept".to_owned()
    } else if plan.scope.is_some() {
        "it is not selected, only passed on the way".to_owned()
    } else {
        format!("runbook {} leaves it", clean(&plan.runbook))
    }
}

/// What does not serve now, and what will be done about it.
fn restores(plan: &Plan, paint: Paint) -> String {
    let mut table = Table::new(paint, &[]);
    let all: Vec<&PlanChange> = plan.changes.iter().filter(|c| c.restores).collect();
    for c in all.iter().take(ONE_BY_ONE) {
        let what = match Role::try_from(c.role) {
            Ok(Role::Proxy) => "drained, as a whole or some of its backends: will be resumed",
            Ok(Role::App | Role::Database | Role::Config | Role::Unspecified) | Err(_) => {
                "not serving: will be started"
            }
        };
        table.row([
            plain(target(&c.host, &c.component)),
            plain(words::role(c.role)),
            cell(Tone::Warn, what),
        ]);
    }
    let mut text = if table.is_empty() {
        String::new()
    } else {
        table.render(2)
    };
    match all.len().saturating_sub(ONE_BY_ONE) {
        0 => {}
        more => text.push_str(&format!("  and {more} more that do not serve and will be brought up\n")),
    }
    text
}

/// Hosts that are left out, by reason, and what becomes of them.
fn excused(plan: &Plan, paint: Paint) -> String {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for excused in &plan.excused {
        reasons.entry(clean(&excused.reason)).or_default().push(&excused.host);
    }
    let what = paint.tone(Tone::Warn, "left out:");
    let mut text: String = reasons
        .into_iter()
        .map(|(reason, hosts)| format!("  {what} {} ({reason})\n", name_some(hosts, NAMED_HOSTS)))
        .collect();
    if !text.is_empty() {
        text.push_str("    keep them away from users; when they are back: rollbackctl fleet converge\n");
    }
    text
}
