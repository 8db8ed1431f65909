//! A plan as people read it at 3 a.m.: what changes where, in which order, and what cannot be undone.

use std::collections::BTreeMap;

use rollback_proto::v1::{Action, DatabaseChoice, Plan, PlanBatch, PlanChange, PlanPhase, PlanStep, Role};

use super::paint::{Paint, Tone};
use super::table::{Table, cell, plain};
use super::text::{change, clean, count, name_some, short, target};
use super::words;

/// Components that are left where they are and named, before they are only counted.
const NAMED_LEFT: usize = 10;

/// Hosts that a line of a batch names before it only counts.
const NAMED_HOSTS: usize = 6;

/// Components that change.
pub fn changing(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| c.changes).count()
}

/// Components that do not serve and will be brought up.
pub fn restoring(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| c.restores).count()
}

/// The whole plan.
pub fn render(plan: &Plan, paint: Paint) -> String {
    let mut text = heading(plan, paint);
    text.push('\n');
    text.push_str(&changes(plan, paint));
    if !plan.phases.is_empty() {
        text.push('\n');
        text.push_str(&phases(plan, paint));
        text.push('\n');
        text.push_str(&no_way_back(plan, paint));
    }
    text
}

/// Release, runbook, digest and what it means for users.
fn heading(plan: &Plan, paint: Paint) -> String {
    let title = format!("Rollback to {}", clean(&plan.release));
    // What every runbook says unless somebody wants it otherwise needs no word.
    let database = match DatabaseChoice::try_from(plan.database) {
        Ok(DatabaseChoice::Auto | DatabaseChoice::Unspecified) => String::new(),
        Ok(DatabaseChoice::Keep | DatabaseChoice::Migrate | DatabaseChoice::Restore) | Err(_) => {
            format!("   database {}", words::database(plan.database))
        }
    };
    let mut text = format!(
        "{}   runbook {}{database}   plan {}\n",
        paint.tone(Tone::Strong, &title),
        clean(&plan.runbook),
        short(&plan.digest)
    );
    text.push_str(if plan.changes.iter().any(|c| c.from_backup) {
        "Databases go back to a backup: users get a maintenance answer while each is exchanged with the restored one.\n"
    } else if plan.schema_changes {
        "The database schema changes: users get a maintenance answer while it does.\n"
    } else if changing(plan) > 0 {
        if plan.phases.iter().flat_map(|p| &p.batches).flat_map(steps).any(|s| !s.backend.is_empty()) {
            "The database schema stays: hosts are switched in batches, each application drained from its proxy while it \
             restarts.\n"
        } else {
            "The database schema stays: hosts are switched in batches, without a maintenance window.\n"
        }
    } else if restoring(plan) > 0 {
        "Every component is at the target already: what does not serve is brought up, and all is verified.\n"
    } else if left(plan).next().is_some() {
        "Nothing changes: what this plan takes back is at the target already and is only verified.\n"
    } else {
        "Nothing changes: every component is at the target already and is only verified.\n"
    });
    text
}

/// What changes, one line per component; what stays is only counted.
pub fn changes(plan: &Plan, paint: Paint) -> String {
    let hosts: std::collections::BTreeSet<&str> = plan
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
    let mut table = Table::new(paint, &[]);
    for c in plan.changes.iter().filter(|c| c.changes) {
        let (from, mut to) = change(c.from.as_ref(), c.to.as_ref());
        if c.from_backup {
            to.push_str(", from a backup");
        }
        table.row([
            plain(target(&c.host, &c.component)),
            plain(words::role(c.role)),
            plain(from),
            plain("→"),
            cell(Tone::Strong, to),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&table.render(2));
    }
    text.push_str(&restores(plan, paint));
    text.push_str(&stays(plan, paint));
    let stays: Vec<&PlanChange> = plan.changes.iter().filter(|c| !c.changes && c.left.is_none()).collect();
    if !stays.is_empty() {
        let names: Vec<String> = stays.iter().map(|c| target(&c.host, &c.component)).collect();
        let names = name_some(names.iter().map(String::as_str), NAMED_HOSTS);
        text.push_str(&format!("  {} at the target already: {names}\n", stays.len()));
    }
    for excused in &plan.excused {
        let what = paint.tone(Tone::Warn, "left out:");
        text.push_str(&format!(
            "  {what} {} ({})\n",
            clean(&excused.host),
            clean(&excused.reason)
        ));
    }
    text
}

/// What is left where it is on purpose, while the release has it elsewhere.
pub fn left(plan: &Plan) -> impl Iterator<Item = &PlanChange> {
    plan.changes.iter().filter(|c| c.left.is_some())
}

/// "db-1/db stays at 002_scores (v2.9.0 has 001_users)", a line for each.
pub fn stays(plan: &Plan, paint: Paint) -> String {
    let mut text = String::new();
    for c in left(plan).take(NAMED_LEFT) {
        let (at, has) = change(c.from.as_ref(), c.left.as_ref());
        let stays = paint.tone(Tone::Warn, "stays");
        let (place, release) = (target(&c.host, &c.component), clean(&plan.release));
        text.push_str(&format!("  {place} {stays} at {at} ({release} has {has})\n"));
    }
    match left(plan).count().saturating_sub(NAMED_LEFT) {
        0 => {}
        more => text.push_str(&format!("  and {more} more stay where they are\n")),
    }
    text
}

/// What does not serve now, and what will be done about it.
fn restores(plan: &Plan, paint: Paint) -> String {
    let mut table = Table::new(paint, &[]);
    for c in plan.changes.iter().filter(|c| c.restores) {
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
    if table.is_empty() {
        String::new()
    } else {
        table.render(2)
    }
}

fn phases(plan: &Plan, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.tone(Tone::Strong, "Phases:"));
    for phase in &plan.phases {
        text.push_str(&phase_lines(phase));
    }
    text
}

fn phase_lines(phase: &PlanPhase) -> String {
    let mut text = String::new();
    let many = phase.batches.len() > 1;
    for (index, batch) in phase.batches.iter().enumerate() {
        let name = if index == 0 { clean(&phase.name) } else { String::new() };
        let place = if many {
            format!("{}/{}", index + 1, phase.batches.len())
        } else {
            String::new()
        };
        let actions = actions(batch);
        // A proxy that is asked for one of its backends is no host of the batch: nothing changes on it.
        let own = steps(batch).filter(|s| s.backend.is_empty());
        let hosts = name_some(own.map(|s| s.host.as_str()), NAMED_HOSTS);
        text.push_str(format!("  {name:<10} {place:<5} {actions:<24} {hosts}").trim_end());
        if index == 0 && !phase.on_failure.is_empty() {
            text.push_str(&format!("   (on failure: {})", clean(&phase.on_failure)));
        }
        text.push('\n');
    }
    text
}

fn steps(batch: &PlanBatch) -> impl Iterator<Item = &PlanStep> {
    batch.lanes.iter().flat_map(|lane| &lane.steps)
}

/// "stop, switch, start": in the order of the first lane that has them.
fn actions(batch: &PlanBatch) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for step in steps(batch) {
        let word = words::action(step.action);
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    seen.join(", ")
}

/// Steps with no way back, and what happens when something fails.
fn no_way_back(plan: &Plan, paint: Paint) -> String {
    let title = paint.tone(Tone::Strong, "Cannot be undone:");
    let all = || plan.phases.iter().flat_map(|p| &p.batches).flat_map(steps);
    let mut by_action: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for step in all().filter(|s| s.irreversible) {
        by_action
            .entry(words::action(step.action))
            .or_default()
            .push(target(&step.host, &step.component));
    }
    if by_action.is_empty() {
        let undoable = all().filter(|s| s.undo != i32::from(Action::Unspecified)).count();
        if undoable == 0 {
            return format!("{title} nothing\n");
        }
        let steps = count(
            undoable,
            "step that changes anything has",
            "steps that change anything have",
        );
        return format!("{title} nothing; {steps} a way back\n");
    }
    let mut text = format!("{title}\n");
    for (action, targets) in by_action {
        let targets = name_some(targets.iter().map(String::as_str), NAMED_HOSTS);
        text.push_str(&format!("  {} {targets}\n", paint.tone(Tone::Bad, action)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::findings;
    use crate::output::samples::{self, golden};

    #[test]
    fn plan_with_a_schema_change() {
        let response = samples::plan_response();
        let plan = response.plan.expect("has a plan");
        let text = format!(
            "{}\n{}",
            render(&plan, Paint::PLAIN),
            findings::of_plan(&response.findings, "", Paint::PLAIN)
        );
        golden!("plan", text);
    }

    #[test]
    fn plan_without_changes() {
        golden!("plan_no_change", render(&samples::plan_without_changes(), Paint::PLAIN));
    }

    #[test]
    fn plan_with_backends() {
        golden!("plan_backends", render(&samples::rolling::plan(), Paint::PLAIN));
    }

    #[test]
    fn plan_with_a_restore() {
        let response = samples::restore::plan_response();
        golden!("plan_from_backup", told(&response));
    }

    fn told(response: &rollback_proto::v1::PlanRollbackResponse) -> String {
        let to_agree = crate::fleet::plan::to_agree(response);
        crate::fleet::plan::text(response, &to_agree, Paint::PLAIN)
    }

    /// Whoever has asked for the plan is not told to ask for the plan.
    #[test]
    fn plan_says_how_to_agree() {
        let mut response = samples::restore::plan_response();
        response.findings = vec![samples::restore::needs_consent()];
        let text = told(&response);
        let how = "rollbackctl fleet rollback --to v2.9.0 --database restore --accept-data-loss\n";
        assert!(text.contains(how) && !text.contains("fleet plan"), "{text}");
        response.findings[0].loss.as_mut().expect("a loss").unknown = "it took too long".to_owned();
        let text = told(&response);
        assert!(text.contains(" --accept-data-loss=ROWS (or =all)\n"), "{text}");
        let asked = crate::fleet::plan::text(&response, "", Paint::PLAIN);
        assert!(asked.contains("RB0208") && !asked.contains("what to do"), "{asked}");
    }

    #[test]
    fn plan_that_leaves_a_database() {
        let response = samples::restore::plan_that_leaves();
        golden!("plan_keep", render(&response.plan.expect("has a plan"), Paint::PLAIN));
    }

    #[test]
    fn plan_that_only_restores() {
        golden!("plan_restores", render(&samples::plan_that_restores(), Paint::PLAIN));
    }
}
