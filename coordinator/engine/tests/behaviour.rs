//! What happens when: one test for each thing that can go wrong, on the demo fleet.

use rollback_engine::event::{Direction, Ending, Event, Finding, Outcome, Severity, StepResult};
use rollback_engine::machine::State;
use rollback_engine::plan::{OnFailure, PhaseName, Plan};
use rollback_engine::planner::{Request, plan};
use rollback_engine::release::{Action, Role};
use rollback_engine::runbook::{Runbook, Unreachable};
use rollback_engine::view::Kind;

use crate::fleets::{
    Fleet, carry_out, carry_out_but, default_runbook, demo, failed, good, intents, outcome, revision, rolling, unknown,
};

fn succeeded_at(version: &str, component: &str) -> Outcome {
    outcome(StepResult::Succeeded, Some(revision(version, component)))
}

fn blocker(code: &str) -> Outcome {
    let finding = |severity, code: &str| Finding {
        severity,
        code: code.to_owned(),
        message: "not there".to_owned(),
        remedy: "put it there".to_owned(),
        loss: None,
    };
    let findings = vec![finding(Severity::Warning, "RB0000"), finding(Severity::Blocker, code)];
    Outcome {
        findings,
        ..outcome(StepResult::Succeeded, None)
    }
}

fn ending(state: &State) -> &Ending {
    state.ending().expect("it has ended")
}

fn planned(fleet: &Fleet, change: impl FnOnce(&mut Runbook)) -> Plan {
    let mut runbook = default_runbook();
    change(&mut runbook);
    plan(&fleet.observed, &fleet.release, &runbook, &Request::default()).expect("a plan")
}

fn undos(state: &State, journal: &[Event]) -> Vec<String> {
    intents(state, journal)
        .into_iter()
        .filter_map(|i| i.strip_prefix("undo: ").map(ToOwned::to_owned))
        .collect()
}

#[test]
fn all_well_is_verified() {
    let (state, journal) = carry_out(&demo(true).plan(), good);
    assert_eq!(ending(&state), &Ending::Verified);
    let summary = state.summary().expect("it was created");
    assert_eq!(
        (summary.kind, summary.steps_done, summary.undone_steps),
        (Kind::Ended, 42, 0)
    );
    assert_eq!(summary.phase, Some(PhaseName::Finish));
    assert!(
        summary
            .phases
            .iter()
            .all(|p| p.started_at.is_some() && p.ended_at.is_some())
    );
    assert_eq!(state.reports().count(), 42);
    assert_eq!(State::replay(journal).expect("its own journal"), state);
}

#[test]
fn blockers_are_all_collected_and_nothing_is_touched() {
    let (state, journal) = carry_out_but(
        &demo(true).plan(),
        &[
            ("prepare db-1/db", blocker("RB0704")),
            ("prepare app-2/api", blocker("RB0501")),
        ],
    );
    let Ending::Undone { blocked: true, cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.code, "RB0501", "the first in plan order");
    assert_eq!(cause.message, "2 blockers; the first: app-2/api: not there");
    assert_eq!(cause.remedy, "put it there");
    assert!(intents(&state, &journal).iter().all(|i| i.starts_with("prepare ")));
    assert_eq!(
        state
            .findings()
            .filter(|(_, f)| f.severity == Severity::Blocker)
            .count(),
        2
    );
}

#[test]
fn preparation_that_nobody_can_tell_of_blocks_and_does_not_hold() {
    let (state, _) = carry_out_but(&demo(true).plan(), &[("prepare db-1/db", unknown())]);
    assert!(matches!(ending(&state), Ending::Undone { blocked: true, .. }));
}

#[test]
fn failed_stage_discards_what_was_staged() {
    let (state, journal) = carry_out_but(&demo(true).plan(), &[("stage db-1/db", failed())]);
    assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
    assert_eq!(
        undos(&state, &journal),
        [
            "discard app-1/api",
            "discard app-1/env",
            "discard app-2/api",
            "discard app-2/env",
            "discard db-1/db",
            "discard proxy-1/proxy"
        ],
        "the one that failed too: it may have left something"
    );
}

/// The mirror image: the app stops, both files go back, and only then does it start again, after its config.
#[test]
fn failed_start_is_undone_in_reverse_order() {
    let (state, journal) = carry_out_but(&demo(false).plan(), &[("start app-1/api", failed())]);
    let Ending::Undone { blocked: false, cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.message, "start of app-1/api: exit status 1");
    let undone = undos(&state, &journal);
    assert_eq!(
        undone[..4],
        [
            "stop app-1/api",
            "switch app-1/api",
            "switch app-1/env",
            "start app-1/api"
        ]
    );
    assert!(undone[4..].iter().all(|u| u.starts_with("discard ")));
    assert!(
        !intents(&state, &journal).contains(&"stop app-2/api".to_owned()),
        "the next batch was never begun"
    );
    assert_eq!(
        state
            .summary()
            .expect("it was created")
            .failed_hosts
            .iter()
            .next()
            .map(|h| h.as_str()),
        Some("app-1")
    );
}

#[test]
fn answers_in_flight_are_awaited_before_the_undo() {
    // Two lanes in one batch: the first step of one fails, the other is in flight and has more steps to come.
    let fleet = demo(true);
    let (state, journal) = carry_out_but(&fleet.plan(), &[("switch app-1/env", failed())]);
    let undo = journal
        .iter()
        .position(|e| matches!(e, Event::UndoStarted { .. }))
        .expect("an undo");
    let open = journal[..undo].iter().fold(0i32, |n, e| match e {
        Event::StepIntended { .. } => n + 1,
        Event::StepEnded { .. } => n - 1,
        Event::Created { .. }
        | Event::PhaseStarted { .. }
        | Event::BatchStarted { .. }
        | Event::PhaseEnded { .. }
        | Event::UndoStarted { .. }
        | Event::Steered { .. }
        | Event::Paused { .. }
        | Event::Ended { .. } => n,
    });
    assert_eq!(open, 0);
    let intents = intents(&state, &journal);
    assert!(intents.contains(&"switch app-2/env".to_owned()));
    assert!(
        !intents.contains(&"switch app-2/api".to_owned()),
        "nothing new was begun: {intents:?}"
    );
    assert!(intents.contains(&"undo: switch app-2/env".to_owned()));
}

#[test]
fn success_without_the_target_observed_is_a_failure() {
    for wrong in [succeeded_at("v3.0.0", "db"), outcome(StepResult::Succeeded, None)] {
        let (state, journal) = carry_out_but(&demo(true).plan(), &[("switch db-1/db", wrong)]);
        let Ending::Undone { blocked: false, cause } = ending(&state) else {
            panic!("{:?}", state.ending())
        };
        assert_eq!(cause.code, "RB0400");
        assert!(cause.message.contains("instead of v2.9.0"), "{}", cause.message);
        assert_eq!(
            undos(&state, &journal)[..3],
            ["switch db-1/db", "start app-1/api", "start app-2/api"]
        );
    }
    let (state, _) = carry_out_but(
        &demo(true).plan(),
        &[("start app-1/api", succeeded_at("v3.0.0", "api"))],
    );
    assert!(
        matches!(ending(&state), Ending::Undone { blocked: false, .. }),
        "a start that says what came up"
    );
}

#[test]
fn failed_verification_undoes_everything() {
    let plan = planned(&demo(true), |runbook| runbook.checks.after_batch = false);
    let (state, journal) = carry_out_but(&plan, &[("verify app-2/api", succeeded_at("v3.0.0", "api"))]);
    assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
    let undone = undos(&state, &journal);
    assert_eq!(undone.first().map(String::as_str), Some("drain proxy-1/proxy"));
    assert_eq!(
        undone.iter().filter(|u| !u.starts_with("discard ")).count(),
        12,
        "{undone:?}"
    );
}

/// The second host is never touched: what does not work is seen on the first.
#[test]
fn batch_that_does_not_serve_keeps_the_next_from_beginning() {
    let (state, journal) = carry_out_but(&demo(false).plan(), &[("verify app-1/api", failed())]);
    assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
    let touched = ["stop app-2/api", "switch app-2/env", "switch app-2/api"];
    let intents = intents(&state, &journal);
    assert!(!intents.iter().any(|i| touched.contains(&i.as_str())), "{intents:?}");
}

#[test]
fn unknown_outcome_holds_and_undoes_nothing() {
    let (state, journal) = carry_out_but(&demo(true).plan(), &[("switch db-1/db", unknown())]);
    let Ending::Held { cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert!(cause.message.contains("switch of db-1/db"), "{}", cause.message);
    assert!(
        cause.remedy.contains("rollbackctl fleet rollback --to v2.9.0"),
        "{}",
        cause.remedy
    );
    assert!(!cause.remedy.is_empty());
    assert_eq!(undos(&state, &journal), Vec::<String>::new());
}

#[test]
fn unknown_outweighs_failed_in_one_batch() {
    let exceptions = [("stage app-1/api", failed()), ("stage db-1/db", unknown())];
    let (state, _) = carry_out_but(&demo(true).plan(), &exceptions);
    assert!(matches!(ending(&state), Ending::Held { .. }));
}

#[test]
fn undo_that_fails_is_held_after_the_other_lanes() {
    let exceptions = [("switch db-1/db", failed()), ("undo: start app-1/api", failed())];
    let (state, journal) = carry_out_but(&demo(true).plan(), &exceptions);
    let Ending::Held { cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.code, "RB0404");
    assert!(
        cause.remedy.contains("rollbackctl fleet rollback --to v2.9.0"),
        "{}",
        cause.remedy
    );
    assert!(
        cause.message.contains("app-1/api") && cause.message.contains("switch of db-1/db"),
        "{}",
        cause.message
    );
    let undone = undos(&state, &journal);
    assert_eq!(
        undone,
        ["switch db-1/db", "start app-1/api", "start app-2/api"],
        "the proxy stays drained"
    );
}

#[test]
fn discard_that_fails_holds_nothing() {
    for wrong in [failed(), unknown()] {
        let exceptions = [("stage db-1/db", failed()), ("undo: discard app-1/api", wrong)];
        let (state, _) = carry_out_but(&demo(true).plan(), &exceptions);
        assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
    }
}

#[test]
fn finish_that_fails_matters_to_nobody() {
    for wrong in [failed(), unknown()] {
        let (state, _) = carry_out_but(&demo(true).plan(), &[("finish db-1/db", wrong)]);
        assert_eq!(ending(&state), &Ending::Verified);
    }
}

#[test]
fn hold_policy_holds() {
    let plan = planned(&demo(true), |runbook| runbook.on_failure.database = OnFailure::Hold);
    let (state, journal) = carry_out_but(&plan, &[("switch db-1/db", failed())]);
    assert!(matches!(ending(&state), Ending::Held { .. }));
    assert_eq!(undos(&state, &journal), Vec::<String>::new());
}

#[test]
fn continue_policy_goes_on_and_names_the_hosts() {
    let plan = planned(&demo(false), |runbook| runbook.on_failure.app = OnFailure::Continue);
    let exceptions = [("switch app-1/api", failed()), ("verify app-1/api", failed())];
    let (state, journal) = carry_out_but(&plan, &exceptions);
    let Ending::Partial { hosts, cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(hosts, &["app-1".into()]);
    assert!(cause.message.contains("switch of app-1/api"), "{}", cause.message);
    let intents = intents(&state, &journal);
    assert!(
        intents.contains(&"start app-2/api".to_owned()),
        "the other host was reached"
    );
    assert!(
        !intents.contains(&"start app-1/api".to_owned()),
        "the lane that failed went no further"
    );

    // A host that nobody knew to be bad still condemns the rollback when its verification at the end fails.
    let plan = planned(&demo(false), |runbook| {
        runbook.on_failure.app = OnFailure::Continue;
        runbook.checks.after_batch = false;
    });
    let exceptions = [("switch app-1/api", failed()), ("verify app-2/api", failed())];
    let (state, _) = carry_out_but(&plan, &exceptions);
    assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
}

/// The mirror image again: out of the proxy before it stops, back in after it has started.
#[test]
fn backend_is_out_of_the_proxy_while_its_application_goes_back() {
    let (state, journal) = carry_out_but(&rolling().plan(), &[("switch app-2/api", failed())]);
    assert!(matches!(ending(&state), Ending::Undone { blocked: false, .. }));
    let undone = undos(&state, &journal);
    assert_eq!(
        undone[..10],
        [
            "switch app-2/api",
            "switch app-2/env",
            "start app-2/api",
            "resume proxy-1/proxy (app-2/api)",
            "drain proxy-1/proxy (app-1/api)",
            "stop app-1/api",
            "switch app-1/api",
            "switch app-1/env",
            "start app-1/api",
            "resume proxy-1/proxy (app-1/api)",
        ]
    );
}

/// Its application stays out of a proxy that keeps serving, and neither condemns the rest; both are named.
#[test]
fn continue_policy_leaves_a_failed_backend_out_of_the_proxy() {
    let plan = planned(&rolling(), |runbook| runbook.on_failure.app = OnFailure::Continue);
    let exceptions = [
        ("start app-2/api", failed()),
        ("verify app-2/api", failed()),
        ("verify proxy-1/proxy", failed()),
    ];
    let (state, journal) = carry_out_but(&plan, &exceptions);
    let Ending::Partial { hosts, .. } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(hosts, &["app-2".into(), "proxy-1".into()]);
    assert!(!intents(&state, &journal).contains(&"resume proxy-1/proxy (app-2/api)".to_owned()));
}

#[test]
fn failure_to_drain_names_the_backend_and_its_host() {
    let (state, journal) = carry_out_but(&rolling().plan(), &[("drain proxy-1/proxy (app-1/api)", failed())]);
    let Ending::Undone { cause, .. } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.message, "drain of proxy-1/proxy (app-1/api): exit status 1");
    let failed: Vec<&str> = state
        .summary()
        .expect("created")
        .failed_hosts
        .iter()
        .map(|h| h.as_str())
        .collect();
    assert_eq!(failed, ["app-1", "proxy-1"]);
    assert_eq!(undos(&state, &journal)[0], "resume proxy-1/proxy (app-1/api)");
    assert!(
        !intents(&state, &journal).contains(&"stop app-1/api".to_owned()),
        "nothing restarted"
    );
}

#[test]
fn excused_hosts_are_never_reported_as_verified() {
    let fleet = demo(false).unreachable("app-2");
    let plan = planned(&fleet, |runbook| runbook.unreachable = Unreachable::Skip(1));
    let (state, _) = carry_out(&plan, good);
    let Ending::Partial { hosts, cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(hosts, &["app-2".into()]);
    assert!(
        cause.message.contains("app-2 (connection refused)"),
        "{}",
        cause.message
    );
}

#[test]
fn after_an_irreversible_step_nothing_is_undone_by_itself() {
    let fleet = Fleet::empty().with("proxy-1", "proxy", Role::Proxy, true, &[]);
    let mut body = fleet.plan().body;
    let steps = body
        .phases
        .iter_mut()
        .flat_map(|p| &mut p.batches)
        .flat_map(|b| &mut b.lanes);
    for step in steps.flat_map(|l| &mut l.steps).filter(|s| s.action == Action::Switch) {
        step.undo = rollback_engine::plan::Undo::Impossible;
    }
    let (state, journal) = carry_out_but(&Plan::seal(body), &[("verify proxy-1/proxy", failed())]);
    let Ending::Held { cause } = ending(&state) else {
        panic!("{:?}", state.ending())
    };
    assert!(cause.message.contains("cannot be reversed"), "{}", cause.message);
    assert!(
        cause.remedy.contains("rollbackctl fleet rollback --to v2.9.0"),
        "{}",
        cause.remedy
    );
    assert!(!intents(&state, &journal).iter().any(|i| i.starts_with("undo")));
}

#[test]
fn reports_show_both_directions() {
    let (state, _) = carry_out_but(&demo(false).plan(), &[("start app-1/api", failed())]);
    let of = |direction| state.reports().filter(|r| r.direction == direction).count();
    let summary = state.summary().expect("it was created");
    assert_eq!(
        of(Direction::Forward),
        usize::try_from(summary.steps_done).expect("a small number")
    );
    assert_eq!(of(Direction::Undo), 9);
    assert_eq!(summary.phase, Some(PhaseName::App));
    assert_eq!(
        state.run().and_then(|r| r.undo_start()).map(|u| u.cause.code.as_str()),
        Some("RB0504")
    );
}
