//! Every rule of the second opinion, each shown to bite: a sound plan, spoilt in one way, and what is found.

use std::collections::BTreeSet;

use rollback_engine::event::Command;
use rollback_engine::ids::{StepId, Target};
use rollback_engine::lint::{LintError, lint};
use rollback_engine::machine::{Rejected, State, decide};
use rollback_engine::plan::{ApprovalRule, Excused, Lane, OnFailure, PhaseName, Plan, PlanBody, Selection, Step, Undo};
use rollback_engine::planner::{Request, plan};
use rollback_engine::release::{Action, Role};

use crate::fleets::{Fleet, create, default_runbook, demo, revision, rolling};

fn spoil(with: impl FnOnce(&mut PlanBody)) -> Vec<LintError> {
    spoil_plan(demo(true).plan(), with)
}

fn spoil_plan(plan: Plan, with: impl FnOnce(&mut PlanBody)) -> Vec<LintError> {
    let mut body = plan.body;
    with(&mut body);
    lint(&Plan::seal(body))
}

fn steps(body: &mut PlanBody) -> impl Iterator<Item = &mut Step> {
    body.phases
        .iter_mut()
        .flat_map(|p| &mut p.batches)
        .flat_map(|b| &mut b.lanes)
        .flat_map(|l| &mut l.steps)
}

fn first(body: &mut PlanBody, action: Action) -> &mut Step {
    steps(body).find(|s| s.action == action).expect("such a step")
}

fn remove(body: &mut PlanBody, gone: impl Fn(&Step) -> bool) {
    for phase in &mut body.phases {
        for batch in &mut phase.batches {
            batch.lanes.iter_mut().for_each(|lane| lane.steps.retain(|s| !gone(s)));
            batch.lanes.retain(|lane| !lane.steps.is_empty());
        }
        phase.batches.retain(|batch| !batch.lanes.is_empty());
    }
    body.phases.retain(|phase| !phase.batches.is_empty());
    (0..).zip(steps(body)).for_each(|(id, step)| step.id = StepId(id));
}

/// Asserts that something is found that matches.
macro_rules! found {
    ($errors:expr, $pattern:pat) => {
        let errors: Vec<LintError> = $errors;
        assert!(
            errors.iter().any(|e| matches!(e, $pattern)),
            "{} not in {errors:?}",
            stringify!($pattern)
        );
    };
}

#[test]
fn shape() {
    found!(spoil(|b| b.format = 9), LintError::UnknownFormat { found: 9 });
    found!(spoil(|b| b.changes.clear()), LintError::NothingInScope);
    found!(spoil(|b| b.changes.reverse()), LintError::ChangesUnsorted { .. });
    found!(
        spoil(|b| b.excused.push(Excused {
            host: "app-1".into(),
            reason: String::new()
        })),
        LintError::ExcusedInScope { .. }
    );
    found!(
        spoil(|b| b.schema_changes = false),
        LintError::SchemaFlagWrong { said: false }
    );
    found!(
        spoil(|b| b.phases.swap(0, 1)),
        LintError::PhaseOrder {
            phase: PhaseName::Preflight
        }
    );
    found!(
        spoil(|b| b.phases[0].batches[0].lanes.push(Lane { steps: Vec::new() })),
        LintError::EmptyPart {
            phase: PhaseName::Preflight
        }
    );
    found!(
        spoil(|b| b.phases[1].on_failure = OnFailure::Continue),
        LintError::MustNotContinue {
            phase: PhaseName::Stage
        }
    );
    found!(
        spoil(|b| b.phases.last_mut().expect("a phase").on_failure = OnFailure::Undo),
        LintError::MustContinue {
            phase: PhaseName::Finish
        }
    );
    found!(
        spoil(|b| first(b, Action::Switch).id = StepId(0)),
        LintError::Misnumbered { found: StepId(0), .. }
    );
    found!(
        spoil(|b| first(b, Action::Stage).target.host = "else".into()),
        LintError::NotInScope { .. }
    );
    found!(
        spoil(|b| first(b, Action::Prepare).action = Action::Switch),
        LintError::WrongPhase {
            action: Action::Switch,
            phase: PhaseName::Preflight,
            ..
        }
    );
    found!(
        spoil(|b| first(b, Action::Stop).timeout_ms = 0),
        LintError::NoTime { .. }
    );
    found!(
        spoil(|b| {
            let twin = b.phases[1].batches[0].lanes[0].clone();
            b.phases[1].batches[0].lanes.push(twin);
        }),
        LintError::TwoLanes { .. }
    );
}

#[test]
fn safety() {
    found!(
        spoil(|b| first(b, Action::Switch).undo = Undo::Nothing),
        LintError::WrongUndo { .. }
    );
    found!(
        spoil(|b| first(b, Action::Stage).undo = Undo::Impossible),
        LintError::WrongUndo { .. }
    );
    found!(spoil(|b| b.phases.swap(1, 3)), LintError::BeforeStaged { .. });
    found!(
        spoil(|b| first(b, Action::Stop).undo = Undo::Impossible),
        LintError::AfterIrreversible { .. }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Stage)),
        LintError::NotStaged { .. }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Snapshot)),
        LintError::NotProtected { .. }
    );
    found!(
        spoil(|b| first(b, Action::Switch).from = revision("v1", "db")),
        LintError::WrongRevisions { .. }
    );
    found!(
        spoil(|b| first(b, Action::Switch).to = revision("v1", "db")),
        LintError::NotReached { .. }
    );
    found!(
        spoil(|b| first(b, Action::Start).to = revision("v3.0.0", "api")),
        LintError::WrongRevisions { .. }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Stop)),
        LintError::NotPaused {
            action: Action::Start,
            ..
        }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Start)),
        LintError::NeverStarted { .. }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Resume)),
        LintError::NeverResumed { .. }
    );
    found!(
        spoil(|b| remove(b, |s| s.action == Action::Verify)),
        LintError::NotVerified { .. }
    );
}

/// A part of a release is that part and nothing else, and a limit of hosts is kept.
#[test]
fn scope() {
    let part = || {
        let fleet = rolling().with("app-3", "web", Role::App, true, &[]);
        let mut request = Request::default();
        request.selection.services.insert("api".into());
        plan(&fleet.observed, &fleet.release, &default_runbook(), &request).expect("a plan")
    };
    assert_eq!(spoil_plan(part(), |_| ()), vec![]);
    found!(
        spoil_plan(part(), |b| b.selection.services = BTreeSet::from(["web".into()])),
        LintError::NotSelected { .. }
    );
    found!(
        spoil_plan(part(), |b| _ = b.selection.hosts.insert("app-1".into())),
        LintError::NotSelected { .. }
    );
    found!(
        spoil_plan(part(), |b| _ = b.selection.exclude_hosts.insert("proxy-1".into())),
        LintError::ExcludedInScope { .. }
    );
    found!(
        spoil_plan(part(), |b| _ = b.selection.exclude_services.insert("env".into())),
        LintError::ExcludedInScope { .. }
    );
    found!(
        spoil_plan(part(), |b| b.outside.insert(0, b.changes[0].target.clone())),
        LintError::OutsideInScope { .. }
    );
    found!(spoil_plan(part(), |b| b.outside.reverse()), LintError::OutsideUnclear);
    found!(
        spoil_plan(part(), |b| b.selection = Selection::default()),
        LintError::OutsideUnclear
    );
    let app = |b: &mut PlanBody| {
        b.phases
            .iter()
            .position(|p| p.name == PhaseName::App)
            .expect("an app phase")
    };
    found!(
        spoil(|b| b.phases[0].max_unavailable = Some(1)),
        LintError::WrongLimit { .. }
    );
    found!(
        spoil_plan(part(), |b| {
            let app = app(b);
            b.phases[app].max_unavailable = Some(0);
        }),
        LintError::WrongLimit { .. }
    );
    found!(
        spoil_plan(demo(false).plan(), |b| {
            let app = app(b);
            let lanes = std::mem::take(&mut b.phases[app].batches[1].lanes);
            b.phases[app].batches[0].lanes.extend(lanes);
            b.phases[app].batches.truncate(1);
            b.phases[app].max_unavailable = Some(1);
        }),
        LintError::WrongLimit { .. }
    );
    found!(
        spoil(|b| b.approval = Some(ApprovalRule { within_ms: 0 })),
        LintError::NobodyCanApprove
    );
    // What was verified between batches says nothing of the end.
    found!(
        spoil(|b| {
            b.phases.retain(|p| p.name != PhaseName::Verify);
            (0..).zip(steps(b)).for_each(|(id, step)| step.id = StepId(id));
        }),
        LintError::NotVerified { .. }
    );
}

/// A plan knows what was down before it, and its way back does not bring that up at the wrong time.
#[test]
fn found_down() {
    let paused = || demo(true).down("app-1", "api").down("proxy-1", "proxy").plan();
    let untouched = || {
        let fleet = Fleet::empty().with("app-1", "api", Role::App, false, &[]);
        let fleet = fleet.with("proxy-1", "proxy", Role::Proxy, false, &[]);
        fleet.down("app-1", "api").down("proxy-1", "proxy").plan()
    };
    assert_eq!(spoil_plan(untouched(), |_| ()), vec![]);
    for (action, back) in [(Action::Stop, Action::Start), (Action::Drain, Action::Resume)] {
        found!(
            spoil_plan(paused(), |b| first(b, action).undo = Undo::By(back)),
            LintError::WrongUndo { .. }
        );
        found!(
            spoil_plan(paused(), |b| first(b, back).undo = Undo::Nothing),
            LintError::WrongUndo { .. }
        );
    }
    found!(
        spoil_plan(untouched(), |b| remove(b, |s| s.action == Action::Start)),
        LintError::NeverStarted { .. }
    );
    found!(
        spoil_plan(untouched(), |b| remove(b, |s| s.action == Action::Resume)),
        LintError::NeverResumed { .. }
    );
    found!(
        spoil_plan(untouched(), |b| b.changes[0].restore = false),
        LintError::NotPaused {
            action: Action::Start,
            ..
        }
    );
    found!(
        spoil(|b| b.changes.iter_mut().for_each(|c| c.restore = true)),
        LintError::NothingToRestore { .. }
    );
}

/// Of each lane with a drained backend: drain, stop, switch env, switch api, start, resume.
#[test]
fn backends() {
    let rolled = |with: &dyn Fn(&mut PlanBody)| spoil_plan(rolling().plan(), with);
    let moves = |b: &mut PlanBody, with: &dyn Fn(&mut Vec<Step>)| {
        let app = b
            .phases
            .iter_mut()
            .find(|p| p.name == PhaseName::App)
            .expect("an app phase");
        with(&mut app.batches[0].lanes[0].steps);
        (0..).zip(steps(b)).for_each(|(id, step)| step.id = StepId(id));
    };
    let target = |host: &str| Target::new(host, "api");
    assert_eq!(rolled(&|_| ()), vec![]);
    found!(
        rolled(&|b| b.changes[0].backends = [[target("app-2")].into()].into()),
        LintError::NoBackends { .. }
    );
    found!(
        rolled(&|b| first(b, Action::Stop).backend = Some(target("app-1"))),
        LintError::NotOfOneBackend {
            action: Action::Stop,
            ..
        }
    );
    found!(
        rolled(&|b| first(b, Action::Drain).backend = None),
        LintError::WrongPhase {
            action: Action::Drain,
            phase: PhaseName::App,
            ..
        }
    );
    found!(
        spoil(|b| first(b, Action::Drain).backend = Some(target("app-1"))),
        LintError::WrongPhase {
            phase: PhaseName::Quiesce,
            ..
        }
    );
    found!(
        rolled(&|b| first(b, Action::Drain).backend = Some(target("app-9"))),
        LintError::UnknownBackend { .. }
    );
    found!(
        rolled(&|b| first(b, Action::Drain).undo = Undo::Nothing),
        LintError::WrongUndo { .. }
    );
    found!(
        rolled(&|b| first(b, Action::Drain).to = revision("v2.9.0", "proxy")),
        LintError::WrongRevisions { .. }
    );
    found!(
        rolled(&|b| remove(b, |s| s.action == Action::Resume)),
        LintError::NotGivenBack { .. }
    );
    found!(
        rolled(&|b| remove(b, |s| s.action == Action::Drain)),
        LintError::NotSpared { .. }
    );
    // Drained after the stop, and given back before the start and its check.
    found!(
        rolled(&|b| moves(b, &|lane| lane.swap(0, 1))),
        LintError::NotSpared { .. }
    );
    found!(
        rolled(&|b| moves(b, &|lane| lane[4..].rotate_right(1))),
        LintError::NotSpared { .. }
    );
    // Drained in another lane than the one that restarts it.
    found!(
        rolled(&|b| moves(b, &|lane| {
            lane[0].backend = Some(target("app-2"));
            lane[5].backend = Some(target("app-2"));
        })),
        LintError::NotSpared { .. }
    );
    // Both at once: each lane is in order, and nobody serves.
    found!(
        rolled(&|b| {
            let app = b
                .phases
                .iter_mut()
                .find(|p| p.name == PhaseName::App)
                .expect("an app phase");
            let second = app.batches.remove(1);
            app.batches[0].lanes.extend(second.lanes);
        }),
        LintError::NobodyServes { .. }
    );
}

/// The first lane is app-2's: stop, switch env, switch api, start, resume.
#[test]
fn found_out() {
    let sound = || rolling().without("proxy-1", "proxy", &["app-2/api"]).plan();
    let spoilt = |with: &dyn Fn(&mut PlanBody)| spoil_plan(sound(), with);
    let proxy = |b: &mut PlanBody| -> usize {
        let found = b.changes.iter().position(|c| c.role == Role::Proxy);
        found.expect("a proxy")
    };
    assert_eq!(spoilt(&|_| ()), vec![]);
    // In maintenance, or serving: neither has lost single backends.
    found!(
        spoilt(&|b| {
            let proxy = proxy(b);
            b.changes[proxy].out.clear();
        }),
        LintError::NoBackends { .. }
    );
    found!(
        spoilt(&|b| {
            let proxy = proxy(b);
            b.changes[proxy].restore = false;
        }),
        LintError::NoBackends { .. }
    );
    // Another one was out than the one that is given back without a drain.
    found!(
        spoilt(&|b| {
            let proxy = proxy(b);
            b.changes[proxy].out = [Target::new("app-1", "api")].into();
        }),
        LintError::NotSpared { .. }
    );
    // app-1 goes while app-2 is out still.
    found!(
        spoilt(&|b| remove(b, |s| s.backend == Some(Target::new("app-2", "api")))),
        LintError::NobodyServes { .. }
    );
    found!(
        spoilt(&|b| first(b, Action::Resume).undo = Undo::Impossible),
        LintError::WrongUndo { .. }
    );
    found!(
        spoilt(&|b| remove(b, |s| s.action == Action::Resume && s.backend.is_none())),
        LintError::NeverResumed { .. }
    );
}

/// The last step of a plan may be without a way back, when nothing reversible follows it.
#[test]
fn irreversible_steps_may_stand_last() {
    let errors = spoil(|b| {
        steps(b)
            .filter(|s| s.action == Action::Resume)
            .for_each(|s| s.undo = Undo::Impossible)
    });
    assert_eq!(errors, vec![]);
}

#[test]
fn the_machine_takes_no_unsound_plan() {
    let mut body = demo(true).plan().body;
    remove(&mut body, |s| s.action == Action::Snapshot);
    let command: Command = create(&Plan::seal(body));
    assert!(matches!(decide(&State::New, &command), Err(Rejected::Unsound(_))));
}
