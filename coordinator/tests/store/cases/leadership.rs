//! Who leads, and what keeps everybody else from writing.

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::store::{Campaign, Created, StoreError};
use rollback_engine::ids::Epoch;
use tokio::time::Instant;

use super::cases;
use crate::material::{LONG, candidate, events, fence, id, lead, lead_for, rollback, until};
use crate::world::World;

cases![
    epochs_grow_and_fence_every_write_of_an_older_leader,
    nobody_leads_before_somebody_has_taken_the_lead,
    a_lease_is_held_against_others_until_it_is_given_back,
    a_lease_that_runs_out_is_taken_over_and_never_renewed,
    the_holder_may_campaign_again_and_ends_its_earlier_epoch,
    an_epoch_is_given_out_once_whoever_asks,
];

async fn epochs_grow_and_fence_every_write_of_an_older_leader(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let old = lead(&*a, "a").await;
    let created = a.create(&old, &rollback("r1", "q1", &["app-1"])).await;
    assert_eq!(created.expect("create"), Created::New);
    a.give_back(&old).await.expect("give back");
    let newer = lead(&*b, "b").await;
    assert!(newer.epoch > old.epoch);
    for store in [&a, &b] {
        let refused = store.append(&old, &id("r1"), 2, &events(1), "{}", None).await;
        assert!(
            matches!(refused, Err(StoreError::Fenced(e)) if e == newer.epoch),
            "{refused:?}"
        );
        let refused = store.create(&old, &rollback("r2", "q2", &["app-2"])).await;
        assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
        let refused = store.renew(&old, LONG).await;
        assert!(
            matches!(refused, Err(StoreError::Fenced(e)) if e == newer.epoch),
            "{refused:?}"
        );
    }
    // The epoch of the lease is not enough: a store that has lost a campaign gives its epoch out again.
    let namesake = fence(newer.epoch, "a");
    let refused = a.append(&namesake, &id("r1"), 2, &events(1), "{}", None).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let refused = a.renew(&namesake, LONG).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let read = b.events(&id("r1"), 0).await.expect("events");
    assert_eq!(read.len(), 2, "nothing was appended");
    assert_eq!(b.requested("q2").await.expect("look"), None, "nothing was begun");
    b.append(&newer, &id("r1"), 2, &events(1), "{}", None)
        .await
        .expect("the new leader appends");
}

async fn nobody_leads_before_somebody_has_taken_the_lead(world: &World) {
    let store = world.replica().await;
    let refused = store
        .create(&fence(Epoch(1), "a"), &rollback("r1", "q1", &["app-1"]))
        .await;
    assert!(matches!(refused, Err(StoreError::Fenced(Epoch(0)))), "{refused:?}");
    let lease = store.lease().await.expect("lease");
    assert_eq!((lease.epoch, lease.leader.as_str()), (Epoch(0), ""));
}

async fn a_lease_is_held_against_others_until_it_is_given_back(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let epoch = lead(&*a, "a").await;
    a.renew(&epoch, LONG).await.expect("renew");
    let seen = b.lease().await.expect("lease");
    let said = (seen.epoch, seen.leader.as_str(), seen.endpoint.as_str());
    assert_eq!(said, (epoch.epoch, "a", "a:7443"));
    if !a.is_shared() {
        assert_eq!(seen.left, Duration::MAX, "nobody waits for it to run out");
        return;
    }
    assert!(seen.left > LONG / 2 && seen.left <= LONG, "{:?}", seen.left);
    match b.campaign(&candidate("b"), LONG, Epoch(0)).await.expect("campaign") {
        Campaign::Held(lease) => assert_eq!((lease.epoch, lease.leader.as_str()), (epoch.epoch, "a")),
        Campaign::Won(stolen) => panic!("took a lease that holds: {stolen:?}"),
    }
    a.give_back(&epoch).await.expect("give back");
    assert_eq!(b.lease().await.expect("lease").left, Duration::ZERO);
    let refused = a.renew(&epoch, LONG).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let taken = lead(&*b, "b").await;
    // A leader that gives back late gives nothing back.
    a.give_back(&epoch).await.expect("give back");
    b.renew(&taken, LONG).await.expect("renew");
}

async fn a_lease_that_runs_out_is_taken_over_and_never_renewed(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    if !a.is_shared() {
        return;
    }
    let ttl = Duration::from_millis(300);
    let sent = Instant::now();
    let old = lead_for(&*a, "a", ttl).await;
    let store = Arc::clone(&b);
    until("the lease runs out", async || {
        store.lease().await.expect("lease").left.is_zero()
    })
    .await;
    assert!(sent.elapsed() >= ttl, "it ran out early: {:?}", sent.elapsed());
    // Nobody has taken it. It is over all the same: its holder cannot know that nobody has.
    let refused = a.renew(&old, ttl).await;
    assert!(
        matches!(refused, Err(StoreError::Fenced(e)) if e == old.epoch),
        "{refused:?}"
    );
    let refused = a.create(&old, &rollback("r1", "q1", &["app-1"])).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert!(lead(&*b, "b").await.epoch > old.epoch);
}

async fn the_holder_may_campaign_again_and_ends_its_earlier_epoch(world: &World) {
    let store = world.replica().await;
    let first = lead(&*store, "a").await;
    let at_least = Epoch(first.epoch.0 + 40);
    let again = store.campaign(&candidate("a"), LONG, at_least).await.expect("campaign");
    assert_eq!(again, Campaign::Won(at_least), "an agent has seen that one");
    let refused = store.renew(&first, LONG).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let refused = store.create(&first, &rollback("r1", "q1", &["app-1"])).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let lower = store
        .campaign(&candidate("a"), LONG, first.epoch)
        .await
        .expect("campaign");
    assert_eq!(lower, Campaign::Won(Epoch(at_least.0 + 1)), "never back");
}

async fn an_epoch_is_given_out_once_whoever_asks(world: &World) {
    let mut candidates = Vec::new();
    for n in 0..6 {
        let store = world.replica().await;
        candidates.push(tokio::spawn(async move {
            let name = format!("c{n}");
            let mut won = Vec::new();
            while won.len() < 5 {
                match store.campaign(&candidate(&name), LONG, Epoch(0)).await {
                    Ok(Campaign::Won(epoch)) => {
                        won.push(epoch);
                        store.give_back(&fence(epoch, &name)).await.expect("give back");
                    }
                    Ok(Campaign::Held(_)) => tokio::task::yield_now().await,
                    Err(e) => panic!("{e:?}"),
                }
            }
            won
        }));
    }
    let mut all = Vec::new();
    for candidate in candidates {
        all.extend(candidate.await.expect("candidate"));
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 30, "{all:?}");
}
