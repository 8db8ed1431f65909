//! A part of a release: nothing moves that was not asked for, nothing is touched that was excluded, and how many hosts may be
//! away at once is kept to.
//!
//! Which hosts have a label is not in a plan, so labels are taken on trust.

use std::collections::{BTreeSet, HashSet};

use super::LintError;
use crate::ids::{HostName, Target};
use crate::plan::{Batch, Change, Phase, PhaseName, PlanBody};
use crate::release::{Action, Role};

pub(super) fn check(body: &PlanBody, errors: &mut Vec<LintError>) {
    outside(body, errors);
    for change in &body.changes {
        selected(body, change, errors);
    }
    for phase in &body.phases {
        limit(body, phase, errors);
    }
    if body.approval.is_some_and(|rule| rule.within_ms == 0) {
        errors.push(LintError::NobodyCanApprove);
    }
}

fn outside(body: &PlanBody, errors: &mut Vec<LintError>) {
    let in_scope: HashSet<&Target> = body.changes.iter().map(|c| &c.target).collect();
    let sorted = body.outside.is_sorted_by(|a, b| a < b);
    let nothing_asked = body.selection.is_everything() && !body.outside.is_empty();
    if !sorted || nothing_asked {
        errors.push(LintError::OutsideUnclear);
    }
    for target in body.outside.iter().filter(|t| in_scope.contains(t)) {
        errors.push(LintError::OutsideInScope { target: target.clone() });
    }
}

/// What only joins, stays where it is.
fn selected(body: &PlanBody, change: &Change, errors: &mut Vec<LintError>) {
    let selection = &body.selection;
    let Target { host, component } = &change.target;
    if selection.exclude_hosts.contains(host) || selection.exclude_services.contains(component) {
        errors.push(LintError::ExcludedInScope {
            target: change.target.clone(),
        });
    }
    // An application brings the configuration that it reads, which a plan does not name.
    let of_service = selection.services.is_empty()
        || selection.services.contains(component)
        || (change.role == Role::Config && brought(body, host));
    let of_host = selection.hosts.is_empty() || selection.hosts.contains(host);
    if change.is_needed() && !(of_service && of_host) {
        errors.push(LintError::NotSelected {
            target: change.target.clone(),
        });
    }
}

/// Is there an application on this host that was asked for?
fn brought(body: &PlanBody, host: &HostName) -> bool {
    let mut apps = body.changes.iter().filter(|c| c.role == Role::App);
    apps.any(|c| c.target.host == *host && body.selection.services.contains(&c.target.component))
}

fn limit(body: &PlanBody, phase: &Phase, errors: &mut Vec<LintError>) {
    let Some(most) = phase.max_unavailable else {
        return;
    };
    let has_limit = match phase.name {
        PhaseName::App | PhaseName::Proxy | PhaseName::Verify => true,
        PhaseName::Preflight
        | PhaseName::Stage
        | PhaseName::Protect
        | PhaseName::Quiesce
        | PhaseName::Database
        | PhaseName::Finish => false,
    };
    if !has_limit || most == 0 {
        errors.push(LintError::WrongLimit { phase: phase.name });
    }
    // With everybody stopped, nobody is kept up by small batches.
    if phase.name == PhaseName::App && !body.schema_changes {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if phase.batches.iter().any(|batch| worked_on(batch).len() > most) {
            errors.push(LintError::WrongLimit { phase: phase.name });
        }
    }
}

/// The hosts of a batch, without those of the proxies that only make room.
fn worked_on(batch: &Batch) -> BTreeSet<&HostName> {
    let steps = batch.lanes.iter().flat_map(|lane| &lane.steps);
    let moves = steps.filter(|s| s.backend.is_none() && s.action != Action::Verify);
    moves.map(|s| &s.target.host).collect()
}
