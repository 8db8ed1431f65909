//! A plan as people read it at 3 a.m.: what stands in the way, from where to where, what users notice and for how long, what
//! changes and what stays, what cannot be undone or is lost, who has to agree, and what to type next.
//!
//! One screen for a small fleet. A large one is told by kinds of change; `-o json` has every step.

mod changes;
mod headline;
mod order;

use rollback_proto::v1::{Plan, PlanChange, PlanRollbackResponse, PlanStep};

use super::paint::{Paint, Tone};
use super::text::clean;
use super::{findings, loss, summary};

pub use changes::{render as changes, stays};

/// Components that change.
pub fn changing(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| c.changes).count()
}

/// Components that do not serve and will be brought up.
pub fn restoring(plan: &Plan) -> usize {
    plan.changes.iter().filter(|c| c.restores).count()
}

/// What is left where it is on purpose, while the release has it elsewhere.
pub fn left(plan: &Plan) -> impl Iterator<Item = &PlanChange> {
    plan.changes.iter().filter(|c| c.left.is_some())
}

fn steps_of(plan: &Plan) -> impl Iterator<Item = &PlanStep> {
    let lanes = plan.phases.iter().flat_map(|p| &p.batches).flat_map(|b| &b.lanes);
    lanes.flat_map(|lane| &lane.steps)
}

fn irreversible(plan: &Plan) -> impl Iterator<Item = &PlanStep> {
    steps_of(plan).filter(|s| s.irreversible)
}

/// The whole page. `to_agree`: see [`findings::of_plan`]; empty for somebody who is asked right after it, and who needs no
/// word on what to type. `command` is what starts this very plan, where that is not `fleet rollback --to`.
pub fn page(response: &PlanRollbackResponse, to_agree: &str, command: Option<&str>, paint: Paint) -> String {
    let mut parts = vec![findings::in_the_way(&response.findings, to_agree, paint)];
    if let Some(plan) = &response.plan {
        parts.push(headline::render(response, plan, paint));
        parts.push(changes(plan, paint));
        if !plan.phases.is_empty() {
            parts.push(order::phases(plan, paint));
            parts.push(order::no_way_back(plan, paint));
        }
        parts.push(loss::of_plan(plan, &response.findings, paint));
    }
    parts.push(findings::of_plan(&response.findings, to_agree, paint));
    if let (Some(plan), false) = (&response.plan, to_agree.is_empty()) {
        parts.push(next(response, plan, command, paint));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// What to type next, by somebody who has only looked.
fn next(response: &PlanRollbackResponse, plan: &Plan, command: Option<&str>, paint: Paint) -> String {
    let options = || summary::options(&plan.runbook, Some(plan), true);
    let same = match command {
        Some(command) => command.to_owned(),
        None if !plan.undo_of.is_empty() => format!("rollbackctl rollback undo {}", clean(&plan.undo_of)),
        None => format!("rollbackctl fleet rollback --to {}{}", clean(&plan.release), options()),
    };
    let steps = if findings::blockers(&response.findings) > 0 {
        vec!["mend what stands in the way, then look again with the same command".to_owned()]
    } else if changing(plan) + restoring(plan) == 0 {
        vec![format!(
            "nothing is left to do; to verify all of it on the hosts: {same}"
        )]
    } else {
        let loses = !loss::expected(plan, &response.findings).is_empty();
        let agree = if loses { " --accept-data-loss" } else { "" };
        let start = format!("{same} --reason TEXT{agree}");
        if plan.approve_within.is_some() {
            let digest = super::text::short(&plan.digest);
            vec![
                start,
                format!("then a second operator, who has looked at plan {digest}: rollbackctl rollback approve ID"),
            ]
        } else {
            vec![start]
        }
    };
    let mut text = format!("{}\n", paint.tone(Tone::Strong, "Next:"));
    for step in steps {
        text.push_str(&format!("  - {step}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn plan_with_a_schema_change() {
        golden!("plan", told(&samples::plan_response()));
    }

    #[test]
    fn plan_without_changes() {
        golden!("plan_no_change", alone(samples::plan_without_changes()));
    }

    #[test]
    fn plan_with_backends() {
        golden!("plan_backends", alone(samples::rolling::plan()));
    }

    #[test]
    fn plan_with_a_restore() {
        let response = samples::restore::plan_response();
        golden!("plan_from_backup", told(&response));
    }

    fn alone(plan: Plan) -> String {
        told(&PlanRollbackResponse {
            plan: Some(plan),
            ..PlanRollbackResponse::default()
        })
    }

    fn told(response: &PlanRollbackResponse) -> String {
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
        golden!("plan_keep", alone(response.plan.expect("has a plan")));
    }

    #[test]
    fn plan_that_only_restores() {
        golden!("plan_restores", alone(samples::plan_that_restores()));
    }

    #[test]
    fn plan_with_scope_approval_and_a_hold() {
        golden!("plan_scoped", told(&samples::operators::scoped_plan()));
    }

    #[test]
    fn plan_with_history_and_no_way_back() {
        golden!("plan_with_history", told(&samples::operators::plan_with_history()));
    }

    #[test]
    fn plan_of_an_undo_says_how_to_undo() {
        let text = alone(samples::operators::plan_of_an_undo());
        assert!(text.starts_with("Undo of rollback 0193a5c2-7d10"), "{text}");
        assert!(
            text.contains("- rollbackctl rollback undo 0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f"),
            "{text}"
        );
        let saved = page(
            &samples::operators::scoped_plan(),
            "x",
            Some("rollbackctl fleet rollback --plan p.json"),
            Paint::PLAIN,
        );
        assert!(
            saved.contains("- rollbackctl fleet rollback --plan p.json --reason"),
            "{saved}"
        );
    }

    #[test]
    fn a_thousand_hosts_fit_on_one_screen() {
        let text = told(&samples::operators::a_thousand_hosts());
        assert!(text.lines().count() <= 40, "{text}");
        golden!("plan_thousand", text);
    }
}
