//! The answer to every event and every command in every kind of state, as one table each.

use rollback_engine::event::{Command, Direction, Effect, Ending, Event};
use rollback_engine::ids::StepId;
use rollback_engine::machine::{self, Rejected, State, apply, decide};
use rollback_engine::plan::{PhaseName, Plan};
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
}

/// The letters of the events that fit; every other one is refused as corrupt, and none panics.
#[test]
fn every_event_in_every_state() {
    let expected = [
        ("new", "C"),
        ("before a phase", "PUHK"),
        ("before a batch", "BUHK"),
        ("step due", "iUHK"),
        ("step in flight", "e"),
        ("batch behind", "pUHK"),
        ("all phases behind", "UHVTK"),
        ("stopped by a failure", "UHK"),
        ("undo due", "jH"),
        ("undo in flight", "f"),
        ("all undone", "HN"),
        ("ended", ""),
    ];
    let found: Vec<(&str, String)> = states()
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
        Err(error @ (Rejected::Unsound(_) | Rejected::NoConsent(_) | Rejected::Corrupt(_))) => error.to_string(),
    };
    let ended = |step, direction, attempt| Command::StepEnded {
        at: at(9),
        step,
        direction,
        attempt,
        outcome: failed(),
    };
    for (name, state) in states() {
        let is_new = name == "new";
        let create_answer = if is_new { "1 events" } else { "already created" };
        assert_eq!(answer(&state, create(&small())), create_answer, "create when {name}");
        let resume_answer = if is_new { "not created" } else { "0 events" };
        assert_eq!(
            answer(&state, Command::TakeUp { at: at(9) }),
            resume_answer,
            "resume when {name}"
        );
        let hold = Command::Hold {
            at: at(9),
            cause: problem("lost"),
        };
        let in_flight = usize::from(["step in flight", "undo in flight"].contains(&name));
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
            ("step in flight", StepId(0), Direction::Forward, 1),
            ("undo in flight", SWITCH, Direction::Undo, 1),
            ("", StepId(0), Direction::Forward, 2),
            ("", StepId(0), Direction::Undo, 1),
            ("", StepId(999), Direction::Forward, 1),
        ] {
            let expected = match name {
                "new" => "not created",
                name if name == awaited_in => "1 events",
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
