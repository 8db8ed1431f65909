//! In which order, and what has no way back.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::v1::{Action, Plan, PlanBatch, PlanPhase, PlanStep};

use super::{irreversible, steps_of};
use crate::output::paint::{Paint, Tone};
use crate::output::text::{clean, count, name_some, target};
use crate::output::words;

/// Hosts that a line of a batch names before it only counts.
const NAMED_HOSTS: usize = 6;
/// Batches of a phase that have a line each; of more, the first ones and the last.
const BATCHES: usize = 4;

pub fn phases(plan: &Plan, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.tone(Tone::Strong, "Phases:"));
    for phase in &plan.phases {
        text.push_str(&phase_lines(phase));
    }
    text
}

fn phase_lines(phase: &PlanPhase) -> String {
    let mut text = String::new();
    let all = phase.batches.len();
    for (index, batch) in phase.batches.iter().enumerate() {
        // The first ones, which show how it begins, and the last.
        let is_folded = all > BATCHES && index >= BATCHES - 2 && index + 1 < all;
        if is_folded {
            if index == BATCHES - 2 {
                let batches = &phase.batches[index..all - 1];
                let hosts: BTreeSet<&str> = batches.iter().flat_map(own).map(|s| s.host.as_str()).collect();
                let hosts = count(hosts.len(), "host", "hosts");
                text.push_str(&format!(
                    "  {:<10} {:<5} the same on {hosts} in {} batches\n",
                    "",
                    "…",
                    batches.len()
                ));
            }
            continue;
        }
        let name = if index == 0 { clean(&phase.name) } else { String::new() };
        let place = if all > 1 {
            format!("{}/{all}", index + 1)
        } else {
            String::new()
        };
        let actions = actions(batch);
        let hosts = name_some(own(batch).map(|s| s.host.as_str()), NAMED_HOSTS);
        text.push_str(format!("  {name:<10} {place:<5} {actions:<24} {hosts}").trim_end());
        if index == 0 {
            text.push_str(&on_failure(phase));
        }
        text.push('\n');
    }
    text
}

fn on_failure(phase: &PlanPhase) -> String {
    let limit = match phase.max_unavailable {
        0 => String::new(),
        n => format!(
            ", {} behind at most",
            count(usize::try_from(n).unwrap_or(usize::MAX), "host", "hosts")
        ),
    };
    match clean(&phase.on_failure) {
        nothing if nothing.is_empty() => String::new(),
        word => format!("   (on failure: {word}{limit})"),
    }
}

fn steps(batch: &PlanBatch) -> impl Iterator<Item = &PlanStep> {
    batch.lanes.iter().flat_map(|lane| &lane.steps)
}

/// A proxy that is asked for one of its backends is no host of the batch: nothing changes on it.
fn own(batch: &PlanBatch) -> impl Iterator<Item = &PlanStep> {
    steps(batch).filter(|s| s.backend.is_empty())
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
pub fn no_way_back(plan: &Plan, paint: Paint) -> String {
    let title = paint.tone(Tone::Strong, "Cannot be undone:");
    let mut by_action: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for step in irreversible(plan) {
        by_action
            .entry(words::action(step.action))
            .or_default()
            .push(target(&step.host, &step.component));
    }
    if by_action.is_empty() {
        let undoable = steps_of(plan)
            .filter(|s| s.undo != i32::from(Action::Unspecified))
            .count();
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
