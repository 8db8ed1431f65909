//! What the cases write, and the few things that they do again and again.

use std::time::Duration;

use jiff::Timestamp;
use rollback_coordinator::store::{Campaign, Candidate, Fence, NewRollback, Store};
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, RollbackId, Target};
use rollback_engine::plan::PhaseName;
use rollback_engine::release::Release;

/// Longer than any case takes.
pub const LONG: Duration = Duration::from_secs(60);

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("a time")
}

pub fn events(n: i64) -> Vec<Event> {
    (0..n)
        .map(|i| Event::PhaseStarted {
            at: at(i),
            phase: PhaseName::Stage,
        })
        .collect()
}

pub fn rollback(id: &str, request: &str, hosts: &[&str]) -> NewRollback {
    NewRollback {
        id: id.into(),
        request_id: request.to_owned(),
        scope: hosts.iter().map(|h| Target::new(*h, "api")).collect(),
        events: events(2),
        summary: format!("{{\"id\":\"{id}\"}}"),
    }
}

pub fn release(name: &str, stable: bool) -> Release {
    Release {
        name: name.into(),
        commit: String::new(),
        notes: String::new(),
        recorded_at: at(0),
        recorded_by: "admin".to_owned(),
        entries: Vec::new(),
        stable,
        ranks_at: None,
        mark: None,
    }
}

pub fn id(text: &str) -> RollbackId {
    text.into()
}

pub fn candidate(id: &str) -> Candidate {
    Candidate {
        id: id.to_owned(),
        endpoint: format!("{id}:7443"),
    }
}

pub fn fence(epoch: Epoch, id: &str) -> Fence {
    Fence {
        epoch,
        leader: id.to_owned(),
    }
}

/// Takes the lead, which must be free.
pub async fn lead_for(store: &dyn Store, id: &str, ttl: Duration) -> Fence {
    match store.campaign(&candidate(id), ttl, Epoch(0)).await.expect("campaign") {
        Campaign::Won(epoch) => fence(epoch, id),
        Campaign::Held(lease) => panic!("held: {lease:?}"),
    }
}

pub async fn lead(store: &dyn Store, id: &str) -> Fence {
    lead_for(store, id, LONG).await
}

/// Waits for a condition, and fails when it does not come true.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
