//! Connections that break, at the worst moments. What the store said is written is there, what it said is not is not, and
//! whoever got neither answer finds out by reading.

use std::time::Duration;

use rollback_coordinator::store::postgres::PostgresStore;
use rollback_coordinator::store::{Campaign, Created, Store, StoreError};
use rollback_engine::ids::Epoch;
use sqlx::Executor as _;
use tokio::time::Instant;

use super::proxy::{Proxy, Weather};
use crate::cases::cases;
use crate::material::{LONG, candidate, events, id, lead, rollback};
use crate::world::World;

cases![
    a_connection_cut_at_commit_leaves_all_or_nothing,
    a_network_that_swallows_everything_is_answered_in_time,
    connections_that_are_killed_all_the_time_lose_nothing,
    a_lease_of_a_clock_that_went_back_holds_nobody_up,
];

/// As a standby with another clock has it, whose primary died together with the leader.
async fn a_lease_of_a_clock_that_went_back_holds_nobody_up(world: &World) {
    let store = world.replica().await;
    let fence = lead(store.as_ref(), "a").await;
    let mut hand = world.database().connect().await;
    let ahead = "UPDATE lease SET held_until = clock_timestamp() + interval '1 hour'";
    hand.execute(ahead).await.expect("update");
    assert!(store.lease().await.expect("read").is_out_of_time());
    store.renew(&fence, LONG).await.expect("its holder lives");
    let held = store.campaign(&candidate("b"), LONG, Epoch(0)).await.expect("campaign");
    assert!(matches!(held, Campaign::Held(_)), "{held:?}");
    hand.execute(ahead).await.expect("update");
    let won = store.campaign(&candidate("b"), LONG, Epoch(0)).await.expect("campaign");
    assert!(matches!(won, Campaign::Won(epoch) if epoch > fence.epoch), "{won:?}");
}

async fn behind_a_proxy(world: &World) -> (Proxy, PostgresStore) {
    let database = world.database();
    let proxy = Proxy::before(&database.socket).await;
    let store = PostgresStore::open(&proxy.url(&database.name), None)
        .await
        .expect("open");
    (proxy, store)
}

async fn a_connection_cut_at_commit_leaves_all_or_nothing(world: &World) {
    let (proxy, store) = behind_a_proxy(world).await;
    let looks = world.replica().await;
    let cut = async |weather, asked: &mut (dyn Future<Output = Result<(), StoreError>> + Send + Unpin)| {
        proxy.set(weather);
        let (answer, ()) = tokio::join!(asked, proxy.met());
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    };
    let epoch = lead(&store, "a").await;
    for (weather, then) in [
        (Weather::CutBeforeCommit, Created::New),
        (Weather::CutAfterCommit, Created::Existing(id("r2"))),
    ] {
        let new = match then {
            Created::New => rollback("r1", "q1", &["app-1"]),
            Created::Existing(_) | Created::ScopeHeld { .. } => rollback("r2", "q2", &["app-2"]),
        };
        let mut create = Box::pin(async { store.create(&epoch, &new).await.map(drop) });
        cut(weather, &mut create).await;
        assert_eq!(store.create(&epoch, &new).await.expect("again"), then, "{weather:?}");
    }
    for (weather, read, then) in [
        (Weather::CutBeforeCommit, 2, "written"),
        (Weather::CutAfterCommit, 102, "there already"),
    ] {
        let rollback = if read == 2 { id("r1") } else { id("r2") };
        let group = events(100);
        let mut append = Box::pin(store.append(&epoch, &rollback, 2, &group, "{}", None));
        cut(weather, &mut append).await;
        let found = looks.events(&rollback, 0).await.expect("read");
        assert_eq!(found.len(), read, "{weather:?}");
        match store.append(&epoch, &rollback, 2, &group, "{}", None).await {
            Ok(()) => assert_eq!(then, "written"),
            Err(StoreError::Conflict) => assert_eq!(then, "there already"),
            Err(e) => panic!("{e:?}"),
        }
        assert_eq!(looks.events(&rollback, 0).await.expect("read").len(), 102);
    }
    // Won, without knowing it: it may ask again, and gets the next epoch.
    let a = candidate("a");
    let mut campaign = Box::pin(async { store.campaign(&a, LONG, Epoch(0)).await.map(drop) });
    cut(Weather::CutAfterCommit, &mut campaign).await;
    let again = store.campaign(&a, LONG, Epoch(0)).await.expect("again");
    assert_eq!(again, Campaign::Won(Epoch(epoch.epoch.0 + 2)));
}

async fn a_network_that_swallows_everything_is_answered_in_time(world: &World) {
    let (proxy, store) = behind_a_proxy(world).await;
    let epoch = lead(&store, "a").await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let r1 = r1();
    // Used a moment ago, so nobody asks them whether they live.
    futures::future::join_all((0..12).map(|_| store.events(&r1, 0))).await;
    proxy.set(Weather::Swallow);
    let sent = Instant::now();
    // More than there are connections: none may wait behind those that hang.
    let asked = futures::future::join_all((0..12).map(|_| store.events(&r1, 0)));
    let group = events(1);
    let (renewed, appended, read) = tokio::join!(
        store.renew(&epoch, LONG),
        store.append(&epoch, &r1, 2, &group, "{}", None),
        asked,
    );
    for answer in [renewed, appended] {
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    }
    assert!(
        read.iter().all(|r| matches!(r, Err(StoreError::Unavailable { .. }))),
        "{read:?}"
    );
    let took = sent.elapsed();
    assert!(took < Duration::from_millis(4500), "{took:?}");
    proxy.set(Weather::Fair);
    store.renew(&epoch, LONG).await.expect("at once");
    store.append(&epoch, &r1, 2, &group, "{}", None).await.expect("at once");
}

fn r1() -> rollback_engine::ids::RollbackId {
    id("r1")
}

async fn connections_that_are_killed_all_the_time_lose_nothing(world: &World) {
    let store = world.replica().await;
    let mut hand = world.database().connect().await;
    let epoch = lead(&*store, "a").await;
    store
        .create(&epoch, &rollback("r1", "q1", &["app-1"]))
        .await
        .expect("create");
    let stop = tokio_util::sync::CancellationToken::new();
    let killer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                        WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let mut killed = 0_i64;
            while !stop.is_cancelled() {
                let (n,): (i64,) = sqlx::query_as(kill).fetch_one(&mut hand).await.expect("kill");
                killed += n;
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            hand.execute("SELECT 1").await.expect("the hand lives");
            killed
        }
    });
    // The journal as its writer knows it. It appends groups of three, and asks when it got no answer.
    let (mut after, mut unknown) = (2_u64, 0);
    while after < 62 || unknown < 5 {
        match store.append(&epoch, &r1(), after, &events(3), "{}", None).await {
            Ok(()) => after += 3,
            Err(StoreError::Unavailable { .. }) => {
                unknown += 1;
                let Ok(news) = store.events(&r1(), after).await else {
                    continue;
                };
                assert!(news.is_empty() || news.len() == 3, "{news:?}");
                after += news.len() as u64;
            }
            // The one before was made after all.
            Err(StoreError::Conflict) => {
                let Ok(news) = store.events(&r1(), after).await else {
                    continue;
                };
                assert_eq!(news.len(), 3, "{news:?}");
                after += 3;
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    stop.cancel();
    let killed = killer.await.expect("killer");
    assert!(killed > 0 && unknown > 0, "{killed} killed, {unknown} answers missing");
    let journal = loop {
        if let Ok(journal) = store.events(&r1(), 0).await {
            break journal;
        }
    };
    assert!(journal.iter().map(|r| r.seq).eq(1..=after), "{journal:?}");
}
