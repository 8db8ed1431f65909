//! Is a plan that somebody has looked at still the plan? And if not, what moved: whoever is refused must not have to compare
//! two plans by eye in the middle of an incident.
//!
//! Pure. A plan is compared with the plan of now for the same target (a saved plan that shall start), or with what is
//! observed (a plan that shall be approved: its rollback holds the scope, so no other plan can be made).

use std::collections::{BTreeMap, BTreeSet};

use rollback_engine::ids::Target;
use rollback_engine::plan::{Change, PlanBody};
use rollback_engine::release::{ObservedFleet, ObservedHost, Revision};
use rollback_proto::problem::{Code, Problem};

/// Differences that a refusal names before it only counts them.
const NAMED: usize = 8;

/// Says what moved; `intro` says what that means.
pub fn refusal(intro: &str, moved: &[String]) -> Problem {
    let mut text = moved.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if let more @ 1.. = moved.len().saturating_sub(NAMED) {
        text.push_str(&format!("; and {more} more"));
    }
    Problem::new(Code::PlanStale, format!("{intro}: {text}"))
}

/// What is not where the plan has found it.
pub fn moved(plan: &PlanBody, fleet: &ObservedFleet) -> Vec<String> {
    let mut moved = Vec::new();
    let mut away = BTreeSet::new();
    for change in &plan.changes {
        let target = &change.target;
        match fleet.get(&target.host) {
            None => {
                if away.insert(&target.host) {
                    moved.push(format!("{}: it is not registered any more", target.host));
                }
            }
            Some(ObservedHost::Unreachable { reason }) => {
                if away.insert(&target.host) {
                    moved.push(format!("{}: it cannot be asked ({reason})", target.host));
                }
            }
            Some(ObservedHost::Reachable(components)) => {
                match components.get(&target.component).map(|found| &found.revision) {
                    None => moved.push(format!("{target}: its agent does not have it any more")),
                    Some(Err(reason)) => moved.push(format!("{target}: it cannot be observed ({reason})")),
                    Some(Ok(is)) if *is != change.from => {
                        moved.push(format!("{target}: was {}, is {}", told(&change.from), told(is)));
                    }
                    Some(Ok(_)) => {}
                }
            }
        }
    }
    moved
}

/// What makes `now` another plan than `saved`. Never empty for two plans with different digests.
pub fn changed(saved: &PlanBody, now: &PlanBody) -> Vec<String> {
    let mut changed = Vec::new();
    if saved.release != now.release {
        changed.push(format!("it goes to {} now, not to {}", now.release, saved.release));
    }
    if saved.runbook != now.runbook {
        changed.push(format!("the runbook is {} now, not {}", now.runbook, saved.runbook));
    }
    if saved.selection != now.selection {
        changed.push("another part of the fleet is selected".to_owned());
    }
    let before: BTreeMap<&Target, &Change> = saved.changes.iter().map(|c| (&c.target, c)).collect();
    let after: BTreeMap<&Target, &Change> = now.changes.iter().map(|c| (&c.target, c)).collect();
    let excused = |plan: &PlanBody| -> BTreeMap<String, String> {
        let excused = plan.excused.iter();
        excused.map(|e| (e.host.0.clone(), e.reason.clone())).collect()
    };
    let (left_out, left_out_now) = (excused(saved), excused(now));
    for (host, reason) in &left_out_now {
        if !left_out.contains_key(host) {
            changed.push(format!("{host}: it is left out now ({reason})"));
        }
    }
    for host in left_out.keys().filter(|host| !left_out_now.contains_key(*host)) {
        changed.push(format!("{host}: it was to be left out, and is not any more"));
    }
    for (target, was) in &before {
        match after.get(target) {
            Some(is) => changed.extend(of_component(was, is)),
            None if left_out_now.contains_key(target.host.as_str()) => {}
            None => changed.push(format!("{target}: it is not part of it any more")),
        }
    }
    for target in after.keys().filter(|target| !before.contains_key(*target)) {
        if !left_out.contains_key(target.host.as_str()) {
            changed.push(format!("{target}: it is part of it now"));
        }
    }
    if changed.is_empty() && saved.phases != now.phases {
        changed.push(format!("the steps of {} are others now", now.runbook));
    }
    if changed.is_empty() {
        // How it is done, consented to, or what follows from it: rare enough to be named as a whole.
        changed.push("what the runbook asks for (approval, databases, holds) is not what it was".to_owned());
    }
    changed
}

fn of_component(was: &Change, is: &Change) -> Vec<String> {
    let target = &was.target;
    let mut changed = Vec::new();
    if was.from != is.from {
        changed.push(format!("{target}: was {}, is {}", told(&was.from), told(&is.from)));
    }
    if was.to != is.to {
        changed.push(format!(
            "{target}: it would go to {} now, not to {} (the release, or what is left alone, has changed)",
            told(&is.to),
            told(&was.to)
        ));
    }
    if was.restore != is.restore || was.out != is.out {
        let now = if is.restore {
            "does not serve now"
        } else {
            "serves again"
        };
        changed.push(format!("{target}: it {now}"));
    }
    if was.backends != is.backends {
        changed.push(format!("{target}: its backends are others"));
    }
    if was.from_backup != is.from_backup {
        let now = if is.from_backup { "would be" } else { "would not be" };
        changed.push(format!("{target}: it {now} restored from a backup now"));
    }
    changed
}

/// "v3.0.0 (9f2a01bc04de)": versions may be the same where digests are not.
fn told(revision: &Revision) -> String {
    let digest = revision.digest.0.rsplit(':').next().unwrap_or_default();
    let digest: String = digest.chars().take(12).collect();
    format!("{} ({digest})", revision.version)
}

#[cfg(test)]
mod tests {
    use rollback_engine::event::Event;
    use rollback_engine::plan::Plan;

    use super::*;

    fn demo() -> PlanBody {
        const JOURNAL: &str = include_str!("../engine/tests/journals/v1-demo.jsonl");
        match serde_json::from_str(JOURNAL.lines().next().expect("a line")).expect("an event") {
            Event::Created { plan, .. } => plan.body,
            other => panic!("a journal begins otherwise: {other:?}"),
        }
    }

    fn elsewhere() -> Revision {
        Revision {
            version: "v3.0.1".to_owned(),
            digest: "sha256:0123456789abcdef".into(),
        }
    }

    #[test]
    fn whatever_moved_is_named_with_where_it_was_and_where_it_is() {
        let saved = demo();
        let mut now = saved.clone();
        now.changes[0].from = elsewhere();
        let (target, was) = (saved.changes[0].target.clone(), told(&saved.changes[0].from));
        assert_eq!(
            changed(&saved, &now),
            [format!("{target}: was {was}, is v3.0.1 (0123456789ab)")]
        );

        let mut now = saved.clone();
        now.changes[0].to = elsewhere();
        assert!(
            changed(&saved, &now)[0].contains("the release"),
            "{:?}",
            changed(&saved, &now)
        );

        let mut now = saved.clone();
        let gone = now.changes.remove(0).target;
        assert_eq!(
            changed(&saved, &now),
            [format!("{gone}: it is not part of it any more")]
        );
        assert_eq!(changed(&now, &saved), [format!("{gone}: it is part of it now")]);

        let mut now = saved.clone();
        now.runbook = "default@9".to_owned();
        now.phases.clear();
        assert_eq!(changed(&saved, &now).len(), 1, "{:?}", changed(&saved, &now));
    }

    /// A refusal that does not say why is worth nothing, whatever field is added to plans later.
    #[test]
    fn plans_that_differ_never_differ_in_nothing() {
        let saved = demo();
        let mut changes: Vec<PlanBody> = Vec::new();
        let mut with = |change: &dyn Fn(&mut PlanBody)| {
            let mut body = saved.clone();
            change(&mut body);
            changes.push(body);
        };
        with(&|b| b.holds = !b.holds);
        with(&|b| b.schema_changes = !b.schema_changes);
        with(&|b| b.phases.truncate(1));
        with(&|b| b.changes[0].restore = !b.changes[0].restore);
        with(&|b| b.excused.clear());
        with(&|b| b.release = "v1".into());
        for now in changes.into_iter().filter(|now| *now != saved) {
            assert!(!changed(&saved, &now).is_empty());
            assert_ne!(Plan::seal(now).digest, Plan::seal(saved.clone()).digest);
        }
    }

    #[test]
    fn long_lists_are_counted() {
        let moved: Vec<String> = (0..20).map(|n| format!("app-{n}: gone")).collect();
        let refusal = refusal("the saved plan is stale", &moved);
        assert_eq!(refusal.code, Code::PlanStale);
        assert!(
            refusal.message.ends_with("app-7: gone; and 12 more"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_host_that_is_away_has_moved_as_far_as_anybody_knows() {
        let plan = demo();
        let mut fleet = ObservedFleet::new();
        let hosts: BTreeSet<_> = plan.changes.iter().map(|c| c.target.host.clone()).collect();
        assert_eq!(moved(&plan, &fleet).len(), hosts.len(), "each host once");
        for host in &hosts {
            let reason = "no route".to_owned();
            fleet.insert(host.clone(), ObservedHost::Unreachable { reason });
        }
        assert!(moved(&plan, &fleet).iter().all(|m| m.contains("no route")));
    }
}
