//! The planner: (what was observed, where it shall be, the policy) → a sealed plan, or every reason why there is none.
//!
//! Pure and near linear in the number of components. The same input gives the same plan, digest included.
//!
//! Why an app is switched in three steps. A host's lane in the app phase is: stop the apps → switch the configs →
//! switch the apps → start the apps. An app reads its config when it starts, so the config must be in place before the
//! start *in both directions*. Each step's undo is its mirror (stop ↔ start, switch ↔ switch), so a lane walked
//! backwards is: stop → switch the apps back → switch the configs back → start, and the app again starts after its
//! config. One step "switch and restart" could not have this symmetry: its undo would start the old app with the new
//! config. An app that cannot be stopped and started is therefore refused when it reads a config that changes.
//!
//! While an application restarts and others serve, the proxies in scope that declare it as a backend send it nothing: its
//! lane begins with a drain and ends with a resume of that one backend, and backwards it does so, too.
//!
//! What the runbook leaves alone stays in scope, with its own revision as its target: it is backed up, paused and verified
//! like all others, because what changes around it concerns it.
//!
//! Of a release, the whole or a part: see `selection` for what joins a part for its sake.
//!
//! Deliberately left out: findings (that is `prepare`, on the hosts), consent, and any knowledge of kinds of components.

mod batches;
mod phases;
mod refusal;
mod rotation;
mod scope;
mod selection;

pub use refusal::{PlanRefused, Refusal};
pub use selection::{Purpose, Request};

use crate::plan::{Change, FORMAT, Phase, Plan, PlanBody};
use crate::release::{ObservedFleet, Release};
use crate::runbook::{Converge, Runbook};

use phases::Drafter;
use scope::Scope;

/// Plans a rollback of what the release names, the request asks for and the runbook changes. Components that the release does
/// not know are left alone.
///
/// A fleet that is at its target already is no reason to refuse: such a plan only verifies.
pub fn plan(
    observed: &ObservedFleet,
    release: &Release,
    runbook: &Runbook,
    request: &Request,
) -> Result<Plan, PlanRefused> {
    let scope = Scope::of(observed, release, runbook, request)?;
    let drafter = Drafter::new(&scope, runbook);
    let mut phases: Vec<Phase> = drafter.draft();
    number(&mut phases);
    let changes: Vec<Change> = scope.members.iter().map(|m| m.change.clone()).collect();
    let (undo_of, holds) = match &request.purpose {
        Purpose::Rollback => (None, runbook.hold),
        // Neither says that a release is bad.
        Purpose::Undo(id) => (Some(id.clone()), false),
        Purpose::Converge => (None, false),
    };
    Ok(Plan::seal(PlanBody {
        format: FORMAT,
        release: release.name.clone(),
        runbook: runbook.label(),
        database: runbook.database,
        selection: scope.selection,
        outside: scope.outside,
        approval: runbook.approval(changes.iter().any(|c| c.from_backup)),
        undo_of,
        converges: runbook.converge == Converge::Automatic,
        holds,
        schema_changes: scope.schema_changes,
        changes,
        excused: scope.excused,
        phases,
    }))
}

/// Steps get their numbers last: omitted phases and batches must not leave gaps.
fn number(phases: &mut [Phase]) {
    let steps = phases
        .iter_mut()
        .flat_map(|p| &mut p.batches)
        .flat_map(|b| &mut b.lanes)
        .flat_map(|l| &mut l.steps);
    for (id, step) in (0..).zip(steps) {
        step.id.0 = id;
    }
}
