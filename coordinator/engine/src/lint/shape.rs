//! Is it built as a plan is built? Order of phases, numbering, nothing empty, every action where it belongs.

use std::collections::{HashMap, HashSet};

use super::LintError;
use crate::ids::{HostName, StepId, Target};
use crate::plan::{Batch, Change, DatabaseChoice, OnFailure, Phase, PhaseName, PlanBody};
use crate::release::{Action, Role};

const KNOWN_FORMAT: u32 = 1;

pub(super) fn check(body: &PlanBody, errors: &mut Vec<LintError>) {
    head(body, errors);
    let in_scope: HashSet<&Target> = body.changes.iter().map(|c| &c.target).collect();
    let mut expected = 0;
    let mut before: Option<PhaseName> = None;
    for phase in &body.phases {
        if before.is_some_and(|b| b >= phase.name) {
            errors.push(LintError::PhaseOrder { phase: phase.name });
        }
        before = Some(phase.name);
        policy(phase, errors);
        if phase.batches.is_empty() {
            errors.push(LintError::EmptyPart { phase: phase.name });
        }
        for batch in &phase.batches {
            check_batch(phase.name, batch, &in_scope, &mut expected, errors);
        }
    }
}

fn head(body: &PlanBody, errors: &mut Vec<LintError>) {
    if body.format != KNOWN_FORMAT {
        errors.push(LintError::UnknownFormat { found: body.format });
    }
    if body.changes.is_empty() {
        errors.push(LintError::NothingInScope);
    }
    for pair in body.changes.windows(2) {
        if let [a, b] = pair
            && a.target >= b.target
        {
            errors.push(LintError::ChangesUnsorted {
                target: b.target.clone(),
            });
        }
    }
    let excused: HashSet<&HostName> = body.excused.iter().map(|e| &e.host).collect();
    for change in body.changes.iter().filter(|c| excused.contains(&c.target.host)) {
        errors.push(LintError::ExcusedInScope {
            target: change.target.clone(),
        });
    }
    let restorable = |role: Role| match role {
        Role::App | Role::Proxy => true,
        Role::Database | Role::Config => false,
    };
    for change in body.changes.iter().filter(|c| c.restore && !restorable(c.role)) {
        errors.push(LintError::NothingToRestore {
            target: change.target.clone(),
        });
    }
    for change in &body.changes {
        let target = || change.target.clone();
        if !choice_kept(body.database, change) {
            errors.push(LintError::ChoiceBroken { target: target() });
        }
        let stays = change.from == change.to && !change.from_backup;
        if change.left.as_ref().is_some_and(|left| !stays || left == &change.to) {
            errors.push(LintError::NothingLeft { target: target() });
        }
    }
    let schema_changes = body
        .changes
        .iter()
        .any(|c| c.role == Role::Database && (c.from != c.to || c.from_backup));
    if schema_changes != body.schema_changes {
        errors.push(LintError::SchemaFlagWrong {
            said: body.schema_changes,
        });
    }
}

/// Only databases go to backups, and each of them goes the plan's one way, unless it is left out of it.
fn choice_kept(choice: DatabaseChoice, change: &Change) -> bool {
    match (change.role, choice) {
        (Role::Config | Role::App | Role::Proxy, _) => !change.from_backup,
        (Role::Database, DatabaseChoice::Auto | DatabaseChoice::Migrate) => !change.from_backup,
        (Role::Database, DatabaseChoice::Keep) => !change.from_backup && change.from == change.to,
        (Role::Database, DatabaseChoice::Restore) => change.from_backup,
    }
}

/// Going on after a failure is for phases on which no later one leans; finishing never turns a rollback around.
fn policy(phase: &Phase, errors: &mut Vec<LintError>) {
    let name = phase.name;
    match (name, phase.on_failure) {
        (PhaseName::App | PhaseName::Proxy | PhaseName::Verify, _) | (PhaseName::Finish, OnFailure::Continue) => {}
        (PhaseName::Finish, OnFailure::Undo | OnFailure::Hold | OnFailure::Pause) => {
            errors.push(LintError::MustContinue { phase: name })
        }
        (
            PhaseName::Preflight | PhaseName::Stage | PhaseName::Protect | PhaseName::Quiesce | PhaseName::Database,
            OnFailure::Continue,
        ) => errors.push(LintError::MustNotContinue { phase: name }),
        (
            PhaseName::Preflight | PhaseName::Stage | PhaseName::Protect | PhaseName::Quiesce | PhaseName::Database,
            OnFailure::Undo | OnFailure::Hold | OnFailure::Pause,
        ) => {}
    }
}

fn check_batch(
    phase: PhaseName,
    batch: &Batch,
    in_scope: &HashSet<&Target>,
    expected: &mut u32,
    errors: &mut Vec<LintError>,
) {
    if batch.lanes.is_empty() || batch.lanes.iter().any(|lane| lane.steps.is_empty()) {
        errors.push(LintError::EmptyPart { phase });
    }
    let mut lane_of: HashMap<(&Target, Option<&Target>), usize> = HashMap::new();
    for (lane, step) in batch
        .lanes
        .iter()
        .enumerate()
        .flat_map(|(i, lane)| lane.steps.iter().map(move |s| (i, s)))
    {
        if step.id != StepId(*expected) {
            errors.push(LintError::Misnumbered {
                expected: StepId(*expected),
                found: step.id,
            });
        }
        *expected += 1;
        if !in_scope.contains(&step.target) {
            errors.push(LintError::NotInScope {
                step: step.id,
                target: step.target.clone(),
            });
        }
        if !belongs(phase, step.backend.is_some()).contains(&step.action) {
            errors.push(LintError::WrongPhase {
                step: step.id,
                action: step.action,
                phase,
            });
        }
        if step.timeout_ms == 0 {
            errors.push(LintError::NoTime { step: step.id });
        }
        // Lanes run side by side, and two moves of one component at a time would race. Moves that concern one backend of a
        // proxy each do not: its agent does them one after the other, in any order.
        if *lane_of.entry((&step.target, step.backend.as_ref())).or_insert(lane) != lane {
            errors.push(LintError::TwoLanes {
                step: step.id,
                target: step.target.clone(),
            });
        }
    }
}

fn belongs(phase: PhaseName, of_one_backend: bool) -> &'static [Action] {
    match phase {
        PhaseName::App if of_one_backend => &[Action::Drain, Action::Resume],
        PhaseName::Preflight
        | PhaseName::Stage
        | PhaseName::Protect
        | PhaseName::Quiesce
        | PhaseName::Database
        | PhaseName::Proxy
        | PhaseName::Verify
        | PhaseName::Finish
            if of_one_backend =>
        {
            &[]
        }
        PhaseName::Preflight => &[Action::Prepare],
        PhaseName::Stage => &[Action::Stage],
        PhaseName::Protect => &[Action::Snapshot],
        PhaseName::Quiesce => &[Action::Drain, Action::Stop],
        PhaseName::Database => &[Action::Switch],
        PhaseName::App => &[Action::Stop, Action::Switch, Action::Start, Action::Verify],
        PhaseName::Proxy => &[Action::Switch, Action::Resume],
        PhaseName::Verify => &[Action::Verify],
        PhaseName::Finish => &[Action::Finish],
    }
}
