//! The answer to every event and every command in every kind of state, as one table each.

use std::collections::BTreeSet;

use rollback_engine::event::{AbortThen, Act, Command, Direction, Effect, Ending, Event};
use rollback_engine::ids::{Digest, HostName, StepId};
use rollback_engine::machine::{self, Rejected, State, apply, decide};
use rollback_engine::plan::{ApprovalRule, OnFailure, PhaseName, Plan, PlanBody};
use rollback_engine::release::Role;

use crate::fleets::{Fleet, at, carry_out, carry_out_but, create, failed, good, outcome, problem};

/// One env file: 0 prepare, 1 stage, 2 snapshot, 3 switch, 4 verify, 5 finish.
fn small() -> Plan {
    Fleet::empty().with("app-1", "env", Role::Config, true, &[]).plan()
}

const SWITCH: StepId = StepId(3);

/// Every kind of state, by the shortest journal that leads there.
fn states() -> Vec<(&'static str, State)> {
    let plan = small();
    let (_, well) = carry_out(&plan, good);
    let (_, badly) = carry_out_but(&plan, &[("switch app-1/env", failed())]);
    let after = |journal: &[Event], last: &dyn Fn(&Event) -> bool| {
        let length = journal.iter().position(last).expect("such an event") + 1;
        State::replay(journal[..length].iter().cloned()).expect("a journal of the machine")
    };
    let intended = |step: StepId, way: Direction| move |e: &Event| matches!(e, Event::StepIntended { step: s, direction: d, .. } if *s == step && *d == way);
    let ended = |step: StepId, way: Direction| move |e: &Event| matches!(e, Event::StepEnded { step: s, direction: d, .. } if *s == step && *d == way);
    let finish_phase = |e: &Event| {
        matches!(
            e,
            Event::PhaseEnded {
                phase: PhaseName::Finish,
                ..
            }
        )
    };
    vec![
        ("new", State::New),
        ("before a phase", after(&well, &|e| matches!(e, Event::Created { .. }))),
        (
            "before a batch",
            after(&well, &|e| matches!(e, Event::PhaseStarted { .. })),
        ),
        ("step due", after(&well, &|e| matches!(e, Event::BatchStarted { .. }))),
        ("step in flight", after(&well, &intended(StepId(0), Direction::Forward))),
        ("batch behind", after(&well, &ended(StepId(0), Direction::Forward))),
        ("all phases behind", after(&well, &finish_phase)),
        (
            "stopped by a failure",
            after(&badly, &ended(SWITCH, Direction::Forward)),
        ),
        ("undo due", after(&badly, &|e| matches!(e, Event::UndoStarted { .. }))),
        ("undo in flight", after(&badly, &intended(SWITCH, Direction::Undo))),
        ("all undone", after(&badly, &ended(StepId(1), Direction::Undo))),
        ("ended", after(&well, &|e| matches!(e, Event::Ended { .. }))),
    ]
}

fn steered(act: Act) -> Event {
    Event::Steered {
        at: at(1),
        by: "bob".to_owned(),
        reason: "looks odd".to_owned(),
        act,
    }
}

fn on(act: fn(BTreeSet<HostName>) -> Act) -> Act {
    act(["app-1".into()].into())
}

/// One act of every kind, with the letter of its event.
fn acts(digest: Digest) -> [(&'static str, Act); 7] {
    let abort = |then| Act::Abort { then };
    [
        ("S", Act::Pause),
        ("G", Act::Resume),
        ("R", on(|hosts| Act::Retry { hosts })),
        ("X", on(|hosts| Act::Skip { hosts })),
        ("A", abort(AbortThen::Undo)),
        ("Z", abort(AbortThen::Hold)),
        ("O", Act::Approve { digest }),
    ]
}

/// The states that operators bring about, and policies that wait for them.
fn steered_states() -> Vec<(&'static str, State)> {
    let from = |name: &str, events: &[Event]| {
        let (_, mut state) = states().into_iter().find(|(n, _)| *n == name).expect("such a state");
        events
            .iter()
            .for_each(|event| apply(&mut state, event).expect("it fits"));
        state
    };
    let changed = |change: &dyn Fn(&mut PlanBody)| {
        let mut body = small().body;
        change(&mut body);
        Plan::seal(body)
    };
    let pausing = changed(&|body| {
        body.phases
            .iter_mut()
            .filter(|phase| phase.name == PhaseName::App)
            .for_each(|phase| phase.on_failure = OnFailure::Pause);
    });
    let asking = changed(&|body| body.approval = Some(ApprovalRule { within_ms: 5000 }));
    let (by_policy, journal) = carry_out_but(&pausing, &[("switch app-1/env", failed())]);
    let failed_before = State::replay(journal[..journal.len() - 1].iter().cloned()).expect("its own journal");
    let (awaiting, _) = carry_out(&asking, good);
    let pause = || steered(Act::Pause);
    let abort = |then| steered(Act::Abort { then });
    vec![
        ("paused before a phase", from("before a phase", &[pause()])),
        ("paused with a step due", from("step due", &[pause()])),
        ("paused with a step in flight", from("step in flight", &[pause()])),
        ("paused at the end", from("all phases behind", &[pause()])),
        ("paused with a failure", from("stopped by a failure", &[pause()])),
        ("failure to pause for", failed_before),
        ("paused by the runbook", by_policy),
        ("to be undone", from("step in flight", &[abort(AbortThen::Undo)])),
        ("to be held", from("step in flight", &[abort(AbortThen::Hold)])),
        ("paused with undo due", from("undo due", &[pause()])),
        ("paused with all undone", from("all undone", &[pause()])),
        ("undo to be held", from("undo in flight", &[abort(AbortThen::Hold)])),
        ("awaiting approval", awaiting),
    ]
}

fn every_state() -> Vec<(&'static str, State)> {
    states().into_iter().chain(steered_states()).collect()
}

/// One event of every kind, as it would fit the state that it belongs to.
fn events() -> Vec<(&'static str, Event)> {
    let phase = PhaseName::Preflight;
    let cause = || problem("a cause");
    let intended = |step, direction| Event::StepIntended {
        at: at(1),
        step,
        direction,
        attempt: 1,
    };
    let ended = |step, direction| Event::StepEnded {
        at: at(1),
        step,
        direction,
        attempt: 1,
        outcome: failed(),
    };
    let ending = |ending| Event::Ended { at: at(1), ending };
    let Command::Create {
        at: now,
        plan,
        started_by,
        reason,
        incident,
        trace_id,
        parent_span_id,
        consent,
        ledgers,
    } = create(&small())
    else {
        panic!("create makes a Create")
    };
    vec![
        (
            "C",
            Event::Created {
                at: now,
                plan,
                started_by,
                reason,
                incident,
                trace_id,
                parent_span_id,
                consent,
                ledgers,
            },
        ),
        ("P", Event::PhaseStarted { at: at(1), phase }),
        (
            "B",
            Event::BatchStarted {
                at: at(1),
                phase,
                batch: 0,
            },
        ),
        ("i", intended(StepId(0), Direction::Forward)),
        ("e", ended(StepId(0), Direction::Forward)),
        ("p", Event::PhaseEnded { at: at(1), phase }),
        (
            "U",
            Event::UndoStarted {
                at: at(1),
                cause: cause(),
            },
        ),
        ("j", intended(SWITCH, Direction::Undo)),
        ("f", ended(SWITCH, Direction::Undo)),
        (
            "Q",
            Event::Paused {
                at: at(1),
                cause: cause(),
            },
        ),
        ("H", ending(Ending::Held { cause: cause() })),
        ("V", ending(Ending::Verified)),
        (
            "T",
            ending(Ending::Partial {
                hosts: vec!["app-1".into()],
                cause: cause(),
            }),
        ),
        (
            "K",
            ending(Ending::Undone {
                blocked: true,
                cause: cause(),
            }),
        ),
        (
            "N",
            ending(Ending::Undone {
                blocked: false,
                cause: cause(),
            }),
        ),
    ]
    .into_iter()
    .chain(acts(small().digest).map(|(letter, act)| (letter, steered(act))))
    .collect()
}

/// The letters of the events that fit; every other one is refused as corrupt, and none panics.
#[test]
fn every_event_in_every_state() {
    let expected = [
        ("new", "C"),
        ("before a phase", "PUHKSAZ"),
        ("before a batch", "BUHKSAZ"),
        ("step due", "iUHKSAZ"),
        ("step in flight", "eSAZ"),
        ("batch behind", "pUHKSAZ"),
        ("all phases behind", "UHVTKSAZ"),
        ("stopped by a failure", "UHKSAZ"),
        ("undo due", "jHSZ"),
        ("undo in flight", "fSZ"),
        ("all undone", "HNSZ"),
        ("ended", ""),
        ("paused before a phase", "HGAZ"),
        ("paused with a step due", "HGAZ"),
        ("paused with a step in flight", "eGAZ"),
        ("paused at the end", "HGAZ"),
        ("paused with a failure", "HGRXAZ"),
        ("failure to pause for", "UQHKSAZ"),
        ("paused by the runbook", "HGRXAZ"),
        ("to be undone", "eZ"),
        ("to be held", "e"),
        ("paused with undo due", "HGZ"),
        ("paused with all undone", "HGZ"),
        ("undo to be held", "f"),
        ("awaiting approval", "HKAZO"),
    ];
    let found: Vec<(&str, String)> = every_state()
        .into_iter()
        .map(|(name, state)| {
            let fits = |event: &Event| apply(&mut state.clone(), event).is_ok();
            (
                name,
                events()
                    .iter()
                    .filter(|(_, event)| fits(event))
                    .map(|(letter, _)| *letter)
                    .collect(),
            )
        })
        .collect();
    let expected: Vec<(&str, String)> = expected.into_iter().map(|(n, e)| (n, e.to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_command_in_every_state() {
    let answer = |state: &State, command: Command| match decide(state, &command) {
        Ok(events) => format!("{} events", events.len()),
        Err(Rejected::NotCreated) => "not created".to_owned(),
        Err(Rejected::AlreadyCreated) => "already created".to_owned(),
        Err(Rejected::NotInFlight { .. }) => "not in flight".to_owned(),
        Err(Rejected::Unfit(_)) => "unfit".to_owned(),
        Err(Rejected::NotApproved(_)) => "not approved".to_owned(),
        Err(error @ (Rejected::Unsound(_) | Rejected::NoConsent(_) | Rejected::Corrupt(_))) => error.to_string(),
    };
    let ended = |step, direction, attempt| Command::StepEnded {
        at: at(9),
        step,
        direction,
        attempt,
        outcome: failed(),
    };
    for (name, state) in every_state() {
        let is_new = name == "new";
        let create_answer = if is_new { "1 events" } else { "already created" };
        assert_eq!(answer(&state, create(&small())), create_answer, "create when {name}");
        let resume_answer = if is_new { "not created" } else { "0 events" };
        assert_eq!(
            answer(&state, Command::TakeUp { at: at(9) }),
            resume_answer,
            "resume when {name}"
        );
        let expire_answer = match name {
            "new" => "not created",
            "awaiting approval" => "1 events",
            _ => "0 events",
        };
        assert_eq!(
            answer(&state, Command::Expire { at: at(9) }),
            expire_answer,
            "expire when {name}"
        );
        let hold = Command::Hold {
            at: at(9),
            cause: problem("lost"),
        };
        let in_flight = machine::outstanding(&state)
            .into_iter()
            .filter(|effect| *effect != Effect::Close)
            .count();
        let hold_answer = match name {
            "new" => "not created".to_owned(),
            "ended" => "0 events".to_owned(),
            _ => format!("{} events", in_flight + 1),
        };
        assert_eq!(answer(&state, hold.clone()), hold_answer, "hold when {name}");
        if !["new", "ended"].contains(&name) {
            let mut held = state.clone();
            let events = machine::transition(&mut held, hold).expect("held from everywhere");
            assert!(matches!(held.ending(), Some(Ending::Held { .. })), "hold when {name}");
            assert_eq!(
                machine::effects_of(&held, &events),
                [Effect::Close],
                "nothing more is asked for: {name}"
            );
        }
        for (awaited_in, step, direction, attempt) in [
            (
                &[
                    "step in flight",
                    "paused with a step in flight",
                    "to be undone",
                    "to be held",
                ][..],
                StepId(0),
                Direction::Forward,
                1,
            ),
            (&["undo in flight", "undo to be held"], SWITCH, Direction::Undo, 1),
            (&[], StepId(0), Direction::Forward, 2),
            (&[], StepId(0), Direction::Undo, 1),
            (&[], StepId(999), Direction::Forward, 1),
        ] {
            let expected = match name {
                "new" => "not created",
                name if awaited_in.contains(&name) => "1 events",
                _ => "not in flight",
            };
            let command = ended(step, direction, attempt);
            assert_eq!(
                answer(&state, command),
                expected,
                "end of {step} {direction:?} #{attempt} when {name}"
            );
        }
    }
}

/// The letters of the acts that fit. What is decided can be applied; all else is refused with words.
#[test]
fn every_act_in_every_state() {
    let expected = [
        ("new", ""),
        ("before a phase", "SAZ"),
        ("before a batch", "SAZ"),
        ("step due", "SAZ"),
        ("step in flight", "SAZ"),
        ("batch behind", "SAZ"),
        ("all phases behind", "SAZ"),
        ("stopped by a failure", "SAZ"),
        ("undo due", "SZ"),
        ("undo in flight", "SZ"),
        ("all undone", "SZ"),
        ("ended", ""),
        ("paused before a phase", "GAZ"),
        ("paused with a step due", "GAZ"),
        ("paused with a step in flight", "GAZ"),
        ("paused at the end", "GAZ"),
        ("paused with a failure", "GRXAZ"),
        ("failure to pause for", "SAZ"),
        ("paused by the runbook", "RXAZ"),
        ("to be undone", "Z"),
        ("to be held", ""),
        ("paused with undo due", "GZ"),
        ("paused with all undone", "GZ"),
        ("undo to be held", ""),
        ("awaiting approval", "AZO"),
    ];
    let found: Vec<(&str, String)> = every_state()
        .into_iter()
        .map(|(name, state)| {
            let digest = state.plan().map_or_else(|| small().digest, |plan| plan.digest.clone());
            let fits = |act: &Act| {
                let command = Command::Steer {
                    at: at(1),
                    by: "bob".to_owned(),
                    reason: "looks odd".to_owned(),
                    act: act.clone(),
                };
                match decide(&state, &command) {
                    Ok(events) => {
                        let mut after = state.clone();
                        machine::transition(&mut after, command).expect("what was decided can be applied");
                        assert_eq!(events, [steered(act.clone())]);
                        true
                    }
                    Err(Rejected::NotCreated) => {
                        assert_eq!(name, "new");
                        false
                    }
                    Err(Rejected::Unfit(text) | Rejected::NotApproved(text)) => {
                        assert!(!text.is_empty(), "{act:?} when {name}");
                        false
                    }
                    Err(other) => panic!("{act:?} when {name}: {other}"),
                }
            };
            let fitting = acts(digest).into_iter().filter(|(_, act)| fits(act));
            (name, fitting.map(|(letter, _)| letter).collect())
        })
        .collect();
    let expected: Vec<(&str, String)> = expected.into_iter().map(|(n, e)| (n, e.to_owned())).collect();
    assert_eq!(found, expected);
}

/// Numbers that the plan does not have, or that are not due, are errors too.
#[test]
fn events_about_other_steps_phases_and_batches_are_refused() {
    let state = |wanted: &str| {
        states()
            .into_iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, state)| state)
            .expect("such a state")
    };
    let refused = |name: &str, event: Event| {
        assert!(apply(&mut state(name), &event).is_err(), "{event:?} when {name}");
    };
    let (direction, attempt) = (Direction::Forward, 1);
    refused(
        "before a phase",
        Event::PhaseStarted {
            at: at(1),
            phase: PhaseName::Stage,
        },
    );
    refused(
        "before a batch",
        Event::BatchStarted {
            at: at(1),
            phase: PhaseName::Preflight,
            batch: 1,
        },
    );
    refused(
        "before a batch",
        Event::PhaseEnded {
            at: at(1),
            phase: PhaseName::Preflight,
        },
    );
    refused(
        "step due",
        Event::StepIntended {
            at: at(1),
            step: StepId(1),
            direction,
            attempt,
        },
    );
    refused(
        "step due",
        Event::StepIntended {
            at: at(1),
            step: StepId(99),
            direction,
            attempt,
        },
    );
    refused(
        "step due",
        Event::StepIntended {
            at: at(1),
            step: StepId(0),
            direction,
            attempt: 2,
        },
    );
    let outcome = outcome(rollback_engine::event::StepResult::Succeeded, None);
    refused(
        "step in flight",
        Event::StepEnded {
            at: at(1),
            step: StepId(0),
            direction,
            attempt: 2,
            outcome,
        },
    );
    let mut plan = small();
    plan.body.phases.swap(0, 1);
    let Event::Created {
        at,
        started_by,
        reason,
        incident,
        trace_id,
        parent_span_id,
        consent,
        ledgers,
        ..
    } = events().remove(0).1
    else {
        panic!("the first one is Created")
    };
    let misnumbered = Event::Created {
        at,
        plan: Box::new(plan),
        started_by,
        reason,
        incident,
        trace_id,
        parent_span_id,
        consent,
        ledgers,
    };
    refused("new", misnumbered);
}
