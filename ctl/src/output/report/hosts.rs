//! Per host what changed, and what was checked.

use std::collections::{BTreeSet, HashMap};

use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{Action, GetRollbackResponse, Plan, PlanChange, Revision, StepReport};

use super::{md, md_or_none, table};
use crate::output::problem::brief;
use crate::output::text::{change, count, revision, stamp, timestamp};
use crate::output::words;

pub fn changing(plan: &Plan) -> usize {
    let hosts: BTreeSet<&str> = plan
        .changes
        .iter()
        .filter(|c| c.changes)
        .map(|c| c.host.as_str())
        .collect();
    hosts.len()
}

pub fn section(details: &GetRollbackResponse) -> String {
    let Some(plan) = &details.plan else {
        return String::new();
    };
    let mut seen: HashMap<(&str, &str), &StepReport> = HashMap::new();
    let mut begun: BTreeSet<(&str, &str)> = BTreeSet::new();
    for step in &details.steps {
        let place = (step.host.as_str(), step.component.as_str());
        if changes_something(step) {
            begun.insert(place);
        }
        let later = |known: &&StepReport| timestamp(step.ended_at.as_ref()) >= timestamp(known.ended_at.as_ref());
        if observed(step).is_some() && seen.get(&place).is_none_or(later) {
            seen.insert(place, step);
        }
    }
    let rows = plan.changes.iter().map(|c| {
        let place = (c.host.as_str(), c.component.as_str());
        let (from, to) = change(c.from.as_ref(), c.to.as_ref());
        let to = if c.from_backup {
            format!("{to}, from a backup")
        } else {
            to
        };
        let result = result(c, seen.get(&place).copied(), begun.contains(&place));
        vec![
            md(&c.host),
            md(&c.component),
            words::role(c.role).to_owned(),
            md(&from),
            md(&to),
            result,
        ]
    });
    format!(
        "## Hosts\n\n{}",
        table(&["host", "component", "role", "from", "to", "what was seen"], rows)
    )
}

fn changes_something(step: &StepReport) -> bool {
    match Action::try_from(step.action) {
        Ok(Action::Drain | Action::Resume | Action::Stop | Action::Start | Action::Switch) => true,
        Ok(
            Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Verify
            | Action::Finish
            | Action::Unspecified,
        )
        | Err(_) => false,
    }
}

fn observed(step: &StepReport) -> Option<&Revision> {
    step.outcome.as_ref()?.observed.as_ref()
}

/// What the last step that looked saw; words of a plan are no proof.
fn result(c: &PlanChange, seen: Option<&StepReport>, begun: bool) -> String {
    if let Some(left) = &c.left {
        return format!("stayed on purpose; the release has {}", md(&revision(Some(left))));
    }
    let Some((step, at)) = seen.and_then(|s| Some((s, observed(s)?))) else {
        return if begun {
            "not seen since: look at it".to_owned()
        } else {
            "not touched".to_owned()
        };
    };
    let same = |r: Option<&Revision>| r.is_some_and(|r| r.digest == at.digest);
    let word = match (same(c.to.as_ref()), same(c.from.as_ref())) {
        (true, _) => "at the target",
        (false, true) => "where it was",
        (false, false) => "**somewhere else**",
    };
    format!(
        "{word}: {}, {}",
        md(&revision(Some(at))),
        stamp(timestamp(step.ended_at.as_ref()))
    )
}

/// The last word of every component on its own health: starts and verifications.
pub fn checks(details: &GetRollbackResponse) -> String {
    let mut passed = 0;
    let mut rows = Vec::new();
    let asks = |s: &&StepReport| {
        [Action::Start, Action::Verify]
            .iter()
            .any(|a| s.action == i32::from(*a))
    };
    for step in details.steps.iter().filter(asks) {
        let Some(outcome) = &step.outcome else { continue };
        let is_verify = step.action == i32::from(Action::Verify);
        let (word, why) = match Status::try_from(outcome.status) {
            Ok(Status::Succeeded) => {
                passed += 1;
                if !is_verify {
                    continue;
                }
                ("passed", outcome.summary.clone())
            }
            Ok(Status::Failed) => ("**failed**", outcome.problem.as_ref().map(brief).unwrap_or_default()),
            Ok(Status::Indeterminate | Status::Unspecified) | Err(_) => {
                ("**unclear**", outcome.problem.as_ref().map(brief).unwrap_or_default())
            }
        };
        rows.push(vec![
            stamp(timestamp(step.ended_at.as_ref())),
            format!("{}/{}", md(&step.host), md(&step.component)),
            words::action(step.action).to_owned(),
            word.to_owned(),
            md_or_none(&why),
        ]);
    }
    let passed = count(passed, "check", "checks");
    if rows.is_empty() {
        return format!("## Checks\n\n{passed} passed.\n");
    }
    format!(
        "## Checks\n\n{passed} passed.\n\n{}",
        table(&["at", "component", "asked by", "result", "said"], rows)
    )
}
