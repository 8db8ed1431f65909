//! Journals of earlier versions, one event a line. They are replayed for ever and never written anew: a change that
//! cannot read them would strand a rollback that was under way when the coordinator was upgraded.

use rollback_engine::event::{Ending, Event};
use rollback_engine::machine::State;

const V1_DEMO: &str = include_str!("journals/v1-demo.jsonl");

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
