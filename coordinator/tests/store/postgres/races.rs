//! Two leaders, and a statement of one between two statements of the other.

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::store::postgres::PostgresStore;
use rollback_coordinator::store::{Campaign, Fence, Store, StoreError};
use rollback_engine::ids::Epoch;
use sqlx::{Executor as _, PgConnection};
use tokio::time::Instant;

use super::proxy::{Proxy, Weather};
use crate::cases::cases;
use crate::material::{LONG, candidate, events, id, lead, lead_for, rollback, until};
use crate::world::World;

cases![
    nobody_takes_over_while_an_append_is_on_its_way_to_commit,
    a_leader_that_stands_still_in_a_transaction_holds_nobody_up_for_long,
    a_renewal_that_had_to_wait_until_the_lease_ran_out_is_refused,
    a_campaign_that_had_to_wait_sees_who_was_faster,
    a_leader_that_writes_all_the_time_still_renews,
];

/// A store whose COMMITs can be held up.
async fn slow_store(world: &World) -> (Proxy, Arc<PostgresStore>) {
    let database = world.database();
    let proxy = Proxy::before(&database.socket).await;
    let store = PostgresStore::open(&proxy.url(&database.name), None)
        .await
        .expect("open");
    (proxy, Arc::new(store))
}

/// Somebody waits for a lock in the case's database.
async fn somebody_waits(hand: &mut PgConnection) {
    until("somebody waits for a lock", async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *hand)
        .await
        .expect("look");
        waiting > 0
    })
    .await;
}

/// The one who takes over bears the same id in these races: so it may at once, and no test depends on how long a lease that
/// has to outlast the beginning of an append, and no more, is on a busy machine.
const LEADER: &str = "old";

async fn begun(store: &PostgresStore) -> Fence {
    let epoch = lead(store, LEADER).await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    epoch
}

async fn run_out(store: &dyn Store) {
    until("the lease runs out", async || {
        store.lease().await.expect("lease").left.is_zero()
    })
    .await;
}

/// The trap: a guard that only looks at the lease (`EXISTS`) lets this append commit after the new leader has read.
async fn nobody_takes_over_while_an_append_is_on_its_way_to_commit(world: &World) {
    let (proxy, old) = slow_store(world).await;
    let new = world.replica().await;
    let mut hand = world.database().connect().await;
    let epoch = begun(&old).await;

    proxy.set(Weather::HoldCommit);
    let append = tokio::spawn({
        let (old, epoch) = (Arc::clone(&old), epoch.clone());
        async move { old.append(&epoch, &id("r1"), 2, &events(1), "{}", None).await }
    });
    until("the append stands before its COMMIT", async || {
        let idle: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' \
                 AND query LIKE 'UPDATE rollbacks%'",
        )
        .fetch_one(&mut hand)
        .await
        .expect("look");
        idle > 0
    })
    .await;
    let takeover = tokio::spawn({
        let new = Arc::clone(&new);
        async move {
            let won = lead(&*new, LEADER).await;
            (won, new.events(&id("r1"), 0).await.expect("read").len())
        }
    });
    somebody_waits(&mut hand).await;
    proxy.set(Weather::Fair);
    append.await.expect("task").expect("it was in time");
    let (won, read) = takeover.await.expect("task");
    assert!(won.epoch > epoch.epoch);
    assert_eq!(read, 3, "the new leader has read what the old one was told is written");
    let late = old.append(&epoch, &id("r1"), 3, &events(1), "{}", None).await;
    assert!(matches!(late, Err(StoreError::Fenced(e)) if e == won.epoch), "{late:?}");
}

/// As after SIGSTOP. What it was about to commit is lost, and it finds out when it goes on.
async fn a_leader_that_stands_still_in_a_transaction_holds_nobody_up_for_long(world: &World) {
    let (proxy, old) = slow_store(world).await;
    let new = world.replica().await;
    let epoch = begun(&old).await;
    proxy.set(Weather::HoldCommit);
    let append = tokio::spawn({
        let (old, epoch) = (Arc::clone(&old), epoch.clone());
        async move { old.append(&epoch, &id("r1"), 2, &events(1), "{}", None).await }
    });
    // It holds the row as soon as nobody else gets it.
    let mut hand = world.database().connect().await;
    until("the append holds the lease's row", async || {
        let free = "SELECT 1 FROM lease FOR UPDATE NOWAIT";
        hand.execute(free).await.is_err()
    })
    .await;
    let begun = Instant::now();
    let mut won = None;
    while won.is_none() {
        match new.campaign(&candidate(LEADER), LONG, Epoch(0)).await {
            Ok(Campaign::Won(epoch)) => won = Some(epoch),
            Ok(Campaign::Held(lease)) => panic!("{lease:?}"),
            Err(StoreError::Unavailable { .. }) => {}
            Err(e) => panic!("{e:?}"),
        }
    }
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    assert_eq!(new.events(&id("r1"), 0).await.expect("read").len(), 2);
    proxy.set(Weather::Fair);
    let late = append.await.expect("task");
    assert!(matches!(late, Err(StoreError::Unavailable { .. })), "{late:?}");
    let again = old.append(&epoch, &id("r1"), 2, &events(1), "{}", None).await;
    assert!(
        matches!(again, Err(StoreError::Fenced(e)) if Some(e) == won),
        "{again:?}"
    );
    assert_eq!(
        new.events(&id("r1"), 0).await.expect("read").len(),
        2,
        "nothing came late"
    );
}

/// The trap: one statement that waits for the row judges with the time before it waited.
async fn a_renewal_that_had_to_wait_until_the_lease_ran_out_is_refused(world: &World) {
    let store = world.replica().await;
    let mut holder = world.database().connect().await;
    let mut hand = world.database().connect().await;
    let ttl = Duration::from_millis(500);
    let epoch = lead_for(&*store, "old", ttl).await;
    holder
        .execute("BEGIN; SELECT 1 FROM lease FOR UPDATE")
        .await
        .expect("hold the row");
    let renewal = tokio::spawn({
        let (store, epoch) = (Arc::clone(&store), epoch.clone());
        async move { store.renew(&epoch, LONG).await }
    });
    somebody_waits(&mut hand).await;
    run_out(&*store).await;
    holder.execute("COMMIT").await.expect("let go");
    let renewed = renewal.await.expect("task");
    assert!(
        matches!(renewed, Err(StoreError::Fenced(e)) if e == epoch.epoch),
        "{renewed:?}"
    );
    assert!(store.lease().await.expect("lease").left.is_zero());
}

async fn a_campaign_that_had_to_wait_sees_who_was_faster(world: &World) {
    let (a, b) = (world.replica().await, world.replica().await);
    let mut holder = world.database().connect().await;
    let mut hand = world.database().connect().await;
    holder
        .execute("BEGIN; SELECT 1 FROM lease FOR UPDATE")
        .await
        .expect("hold the row");
    let campaigns = [("a", a), ("b", b)].map(|(name, store)| {
        tokio::spawn(async move {
            store
                .campaign(&candidate(name), LONG, Epoch(0))
                .await
                .expect("campaign")
        })
    });
    somebody_waits(&mut hand).await;
    holder.execute("COMMIT").await.expect("let go");
    let mut won = 0;
    for campaign in campaigns {
        match campaign.await.expect("task") {
            Campaign::Won(epoch) => {
                won += 1;
                assert_eq!(epoch, Epoch(1));
            }
            Campaign::Held(lease) => assert_eq!(lease.epoch, Epoch(1)),
        }
    }
    assert_eq!(won, 1);
}

/// PostgreSQL lets one who shares a row pass one who waits to change it.
async fn a_leader_that_writes_all_the_time_still_renews(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut writers = Vec::new();
    for n in 0..4 {
        let (store, stop, epoch) = (Arc::clone(&store), stop.clone(), epoch.clone());
        let name = format!("r{n}");
        store
            .create(&epoch, &rollback(&name, &name, &[&name]))
            .await
            .expect("create");
        writers.push(tokio::spawn(async move {
            let mut after = 2;
            while !stop.is_cancelled() {
                let appended = store.append(&epoch, &id(&name), after, &events(1), "{}", None).await;
                appended.expect("append");
                after += 1;
            }
            after
        }));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let sent = Instant::now();
        store.renew(&epoch, LONG).await.expect("renew");
        slowest = slowest.max(sent.elapsed());
    }
    stop.cancel();
    let mut appended = 0;
    for writer in writers {
        appended += writer.await.expect("writer");
    }
    assert!(appended > 20, "they did write: {appended}");
    assert!(slowest < Duration::from_millis(700), "{slowest:?} for a renewal");
}
