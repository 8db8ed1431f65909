//! Journals of earlier versions, one event a line. They are replayed for ever and never written anew: a change that
//! cannot read them would strand a rollback that was under way when the coordinator was upgraded.

use rollback_engine::event::{Command, Direction, Effect, Ending, Event};
use rollback_engine::loss::Consent;
use rollback_engine::machine::{State, outstanding, transition};

const V1_DEMO: &str = include_str!("journals/v1-demo.jsonl");
/// A restore that lost too much at the switch, with consent, findings and outcomes that tell the loss.
const V1_RESTORE: &str = include_str!("journals/v1-restore.jsonl");
/// Approved, paused and resumed; paused by its policy, a host skipped and another one tried again; then aborted.
const V1_STEERED: &str = include_str!("journals/v1-steered.jsonl");

fn events(journal: &str) -> Vec<Event> {
    journal
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event of a known format"))
        .collect()
}

#[test]
fn v1_replays() {
    let events = events(V1_DEMO);
    let state = State::replay(events.iter().cloned()).expect("a readable journal");
    let Some(Ending::Undone { blocked: false, cause }) = state.ending() else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.message, "verify of app-2/api: exit status 1");
    assert_eq!(
        state.plan().map(|p| p.verify().is_ok()),
        Some(true),
        "the seal is still computed the same way"
    );
    // Every prefix is a rollback that a leader may have to take over.
    for length in 0..events.len() {
        assert!(
            State::replay(events[..length].iter().cloned()).is_ok(),
            "the first {length} events"
        );
    }
}

#[test]
fn v1_with_a_restore_replays() {
    let events = events(V1_RESTORE);
    let state = State::replay(events.iter().cloned()).expect("a readable journal");
    let Some(Ending::Undone { blocked: false, cause }) = state.ending() else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.code, "RB0710");
    let plan = state.plan().expect("it was created");
    assert!(plan.verify().is_ok(), "the seal is still computed the same way");
    assert_eq!(plan.body.restored_databases().count(), 1);
    let run = state.run().expect("it was created");
    assert_eq!(run.creation.consent, Some(Consent { max_rows: Some(1132) }));
    let losses: Vec<u64> = state
        .reports()
        .filter_map(|r| r.outcome?.loss.as_ref())
        .flat_map(|loss| loss.tables.iter().map(|t| t.written))
        .collect();
    assert_eq!(losses, [5000]);
}

#[test]
fn v1_with_operators_acts_replays() {
    let events = events(V1_STEERED);
    let state = State::replay(events.iter().cloned()).expect("a readable journal");
    let Some(Ending::Undone { blocked: false, cause }) = state.ending() else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(
        (cause.code.as_str(), cause.message.as_str()),
        ("RB0218", "bob ended it: looks odd")
    );
    let run = state.run().expect("it was created");
    assert!(run.plan().verify().is_ok(), "the seal is still computed the same way");
    assert_eq!(run.approved().map(|approved| approved.by.as_str()), Some("bob"));
    let again = state.reports().filter(|r| r.attempt > 1);
    assert_eq!(again.map(|r| r.step.subject()).collect::<Vec<_>>(), ["app-2/env"]);
    assert_eq!(
        run.skipped_hosts().iter().map(|h| h.as_str()).collect::<Vec<_>>(),
        ["app-1"]
    );
    // Every prefix is a rollback that a leader may have to take over: it waits for a person exactly in these, and asks again
    // under the same attempt for what is in flight in this one.
    let mut waits = Vec::new();
    for length in 1..events.len() {
        let mut state = State::replay(events[..length].iter().cloned()).expect("the first events");
        let take_up = Command::TakeUp { at: run.creation.at };
        let missing = transition(&mut state, take_up).expect("nothing is refused");
        let asked = outstanding(&state);
        if missing.is_empty() && asked.is_empty() {
            waits.push(length);
        }
        if let Event::StepIntended { step, attempt: 2, .. } = events[length - 1] {
            let (direction, attempt) = (Direction::Forward, 2);
            assert!(
                asked.contains(&Effect::Dispatch {
                    step,
                    direction,
                    attempt
                }),
                "{asked:?}"
            );
        }
    }
    assert_eq!(waits, [1, 67, 68], "to be approved; paused; app-2 still failed");
}
