//! Does it keep the promises? The plan is walked once with a model of every component in scope beside it.
//!
//! Lanes of a batch run side by side, and the walk takes them one after the other. That is sound because a component
//! stands in one lane of a batch only, which the shape's check has seen to. Backends that are drained one by one are left
//! to a check of their own.

use std::collections::{HashMap, HashSet};

use super::LintError;
use crate::ids::Target;
use crate::plan::{Change, PhaseName, PlanBody, Step, Undo};
use crate::release::{Action, Revision, Role};

/// What the walk knows of a component.
struct Model<'a> {
    change: &'a Change,
    live: &'a Revision,
    staged: bool,
    snapshot: bool,
    stopped: bool,
    drained: bool,
    /// A proxy that serves, but some of its backends were found out: one resume of the whole has to follow.
    lacking: bool,
    /// Down since before the plan: nothing of the plan has paused it yet.
    found_down: bool,
    /// The plan has stopped or drained it.
    paused: bool,
    switched: bool,
}

impl<'a> Model<'a> {
    fn of(change: &'a Change) -> Self {
        let lacking = change.restore && !change.out.is_empty();
        Self {
            change,
            live: &change.from,
            staged: false,
            snapshot: false,
            stopped: change.restore && change.role == Role::App,
            drained: change.restore && change.role == Role::Proxy && !lacking,
            lacking,
            found_down: change.restore && !lacking,
            paused: false,
            switched: false,
        }
    }
}

pub(super) fn check(body: &PlanBody, errors: &mut Vec<LintError>) {
    let mut models: HashMap<&Target, Model<'_>> = body.changes.iter().map(|c| (&c.target, Model::of(c))).collect();

    let last_stage = body
        .steps()
        .enumerate()
        .filter(|(_, s)| s.action == Action::Stage)
        .map(|(i, _)| i)
        .last();
    // Which components can be paused is not in a plan; those that it pauses at all, it has to pause for a database.
    let pauses = |s: &&Step| s.backend.is_none() && matches!(s.action, Action::Stop | Action::Drain);
    let paused: HashSet<&Target> = body.steps().filter(pauses).map(|s| &s.target).collect();
    let mut irreversible = false;
    for (position, step) in body.steps().enumerate() {
        // What concerns one backend has rules of its own: the proxy as a whole serves all the time.
        if step.backend.is_none() && !undo_fits(step, models.get(&step.target)) {
            errors.push(LintError::WrongUndo {
                step: step.id,
                action: step.action,
            });
        }
        if step.action.changes_service() {
            if last_stage.is_some_and(|last| position < last) {
                errors.push(LintError::BeforeStaged { step: step.id });
            }
            if irreversible && step.undo != Undo::Impossible {
                errors.push(LintError::AfterIrreversible { step: step.id });
            }
        }
        irreversible |= step.undo == Undo::Impossible;
        let change = models.get(&step.target).map(|m| m.change);
        if change.is_some_and(|c| step.from_backup != c.from_backup) {
            errors.push(LintError::BackupUnclear {
                step: step.id,
                target: step.target.clone(),
            });
        }
        if step.action == Action::Switch && change.is_some_and(|c| c.role == Role::Database) {
            let up = |c: &&Change| {
                let model = models.get(&c.target);
                paused.contains(&c.target) && model.is_some_and(|m| !m.stopped && !m.drained)
            };
            // Nobody may write, or the figures of the loss are wrong and applications meet a schema that is not theirs.
            if let Some(busy) = body.changes.iter().find(up) {
                errors.push(LintError::NotQuiet {
                    step: step.id,
                    target: step.target.clone(),
                    busy: busy.target.clone(),
                });
            }
        }
        if let Some(model) = models.get_mut(&step.target) {
            walk(step, model, errors);
        }
    }

    // What was verified between two batches has to be verified once more, when everything else is where it shall be.
    let verify = body.phases.iter().filter(|p| p.name == PhaseName::Verify);
    let steps = verify
        .flat_map(|p| &p.batches)
        .flat_map(|b| &b.lanes)
        .flat_map(|l| &l.steps);
    let at_the_end: HashSet<&Target> = steps
        .filter(|s| s.action == Action::Verify)
        .map(|s| &s.target)
        .collect();
    for model in body.changes.iter().filter_map(|c| models.get(&c.target)) {
        let target = || model.change.target.clone();
        let lacks = [
            (
                model.live != &model.change.to,
                LintError::NotReached { target: target() },
            ),
            (
                model.change.from_backup && !model.switched,
                LintError::NeverRestored { target: target() },
            ),
            (model.stopped, LintError::NeverStarted { target: target() }),
            (
                model.drained || model.lacking,
                LintError::NeverResumed { target: target() },
            ),
            (
                !at_the_end.contains(&model.change.target),
                LintError::NotVerified { target: target() },
            ),
        ];
        errors.extend(
            lacks
                .into_iter()
                .filter_map(|(lacking, error)| lacking.then_some(error)),
        );
    }
}

/// The way back must leave a component as the plan found it: what the plan paused comes up again, what was down before
/// does not, and what came up without ever having been paused by the plan may stay up.
fn undo_fits(step: &Step, model: Option<&Model<'_>>) -> bool {
    let back = match step.action {
        Action::Prepare | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => {
            return step.undo == Undo::Nothing;
        }
        Action::Drain | Action::Stop if model.is_some_and(|m| m.found_down) => return step.undo == Undo::Nothing,
        Action::Resume | Action::Start if model.is_some_and(|m| (m.found_down || m.lacking) && !m.paused) => {
            return step.undo == Undo::Nothing;
        }
        Action::Stage => Action::Discard,
        Action::Drain => Action::Resume,
        Action::Resume => Action::Drain,
        Action::Stop => Action::Start,
        Action::Start => Action::Stop,
        Action::Switch => Action::Switch,
    };
    // A restore keeps the database that was live, so there is always a way back to it.
    let may_be_final = step.action.changes_service() && !step.from_backup;
    step.undo == Undo::By(back) || (may_be_final && step.undo == Undo::Impossible)
}

/// One step on its component: is the component in the state for it, and in which state is it afterwards?
fn walk<'a>(step: &'a Step, model: &mut Model<'a>, errors: &mut Vec<LintError>) {
    let id = step.id;
    let target = || step.target.clone();
    let revisions_fit = match step.action {
        Action::Switch => &step.from == model.live && step.to == model.change.to,
        Action::Drain | Action::Resume | Action::Stop | Action::Start => {
            &step.from == model.live && &step.to == model.live
        }
        Action::Prepare | Action::Stage | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => {
            step.from == model.change.from && step.to == model.change.to
        }
    };
    if !revisions_fit {
        errors.push(LintError::WrongRevisions {
            step: id,
            target: target(),
        });
    }
    if step.backend.is_some() {
        if model.drained {
            errors.push(LintError::NotPaused {
                step: id,
                action: step.action,
                target: target(),
            });
        }
        return;
    }
    let in_state = match step.action {
        // Pausing what was found down makes sure of it, once.
        Action::Stop => {
            let down = std::mem::replace(&mut model.stopped, true);
            !std::mem::replace(&mut model.paused, true) && (!down || model.found_down)
        }
        Action::Start => std::mem::replace(&mut model.stopped, false),
        Action::Drain => {
            let down = std::mem::replace(&mut model.drained, true);
            !std::mem::replace(&mut model.paused, true) && (!down || model.found_down)
        }
        Action::Resume => {
            let drained = std::mem::replace(&mut model.drained, false);
            std::mem::replace(&mut model.lacking, false) || drained
        }
        Action::Verify => !model.stopped && !model.drained && !model.lacking,
        Action::Stage => {
            model.staged = true;
            true
        }
        Action::Snapshot => {
            model.snapshot = true;
            true
        }
        Action::Switch => {
            if !model.staged {
                errors.push(LintError::NotStaged {
                    step: id,
                    target: target(),
                });
            }
            if model.change.role == Role::Database && !model.snapshot {
                errors.push(LintError::NotProtected {
                    step: id,
                    target: target(),
                });
            }
            model.live = &step.to;
            // A restore at its own schema twice would exchange the two databases once more, and nobody would see it.
            !std::mem::replace(&mut model.switched, true)
        }
        Action::Prepare | Action::Discard | Action::Finish => true,
    };
    if !in_state {
        errors.push(LintError::NotPaused {
            step: id,
            action: step.action,
            target: target(),
        });
    }
}
