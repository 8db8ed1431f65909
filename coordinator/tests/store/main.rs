//! One conformance suite for stores: every implementation of `Store` runs all of [`cases`], and PostgreSQL's what only it
//! can get wrong ([`postgres`]), with and without a pooler before it.
//!
//! Beside them, how a coordinator is set up over a store ([`setup`]).
//!
//! A test is a whole run, because a server is started once for each process; the names of the cases that failed are said
//! at the end.

mod cases;
mod material;
mod postgres;
mod schemas;
mod server;
mod setup;
mod sqlite;
mod world;

use std::time::Duration;

use self::cases::Case;
use self::server::Server;
use self::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite() {
    let cases = cases::of_every_store().chain(sqlite::CASES);
    cases::run(cases, async || World::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    cases::run(cases::of_every_store(), async || World::memory()).await;
}

/// What only PostgreSQL's store has to do, whatever stands before the server.
fn of_postgres() -> impl Iterator<Item = &'static Case> {
    let special = [postgres::faults::CASES, postgres::races::CASES, schemas::CASES];
    special.into_iter().flatten().chain(cases::of_every_store())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres() {
    let server = Server::start(false).await.expect("a server");
    let cases = postgres::opening::CASES.iter().chain(of_postgres());
    cases::run(cases, async || World::postgres(server.database().await)).await;
}

/// In transaction mode, with fewer connections to the server than the stores have to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pgbouncer() {
    let Some(server) = Server::start(true).await else {
        eprintln!("not run: PgBouncer is not installed (tests/install-dependencies.sh does that)");
        return;
    };
    cases::run(of_postgres(), async || World::postgres(server.database().await)).await;
}

/// SQLite takes a transaction back by itself when the disk is full, as this trigger does. The next ones go on all the same.
#[tokio::test]
async fn sqlite_goes_on_after_a_disk_that_was_full() {
    use rollback_coordinator::store::sqlite::SqliteStore;
    use rollback_coordinator::store::{Store as _, StoreError};
    use sqlx::{ConnectOptions as _, Executor as _};

    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("coordinator.db");
    let store = SqliteStore::open(&path, "coord-1").await.expect("open");
    let fence = material::lead(&store, "a").await;
    let created = store.create(&fence, &material::rollback("r1", "q1", &["app-1"])).await;
    created.expect("create");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut hand = options.connect().await.expect("connect");
    let full = "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ROLLBACK, 'the disk is full'); END";
    hand.execute(full).await.expect("fill");
    let append = async || {
        let events = material::events(1);
        store.append(&fence, &material::id("r1"), 2, &events, "{}", None).await
    };
    for _ in 0..3 {
        let refused = append().await;
        let Err(StoreError::Unavailable { source, .. }) = &refused else {
            panic!("{refused:?}");
        };
        assert!(source.to_string().contains("the disk is full"), "{refused:?}");
    }
    hand.execute("DROP TRIGGER full").await.expect("free");
    append().await.expect("append");
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM events")
        .fetch_one(&mut hand)
        .await
        .expect("count");
    assert_eq!(seen, 3, "others see it: it is on the disk");
}

/// What a simulation does to the store of its own: time that is paused, a way that is cut, an answer that is lost.
#[tokio::test(start_paused = true)]
async fn a_simulations_store_fails_as_it_is_told() {
    use rollback_coordinator::store::memory::{MemoryDisk, MemoryStore};
    use rollback_coordinator::store::{Store as _, StoreError};

    let disk = MemoryDisk::new();
    let store = MemoryStore::open(&disk);
    let epoch = material::lead_for(&store, "a", Duration::from_secs(6)).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    store.renew(&epoch, Duration::from_secs(6)).await.expect("renew");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(matches!(
        store.renew(&epoch, Duration::from_secs(6)).await,
        Err(StoreError::Fenced(_))
    ));

    let epoch = material::lead_for(&store, "a", Duration::from_secs(6)).await;
    store.lose_replies(1);
    let new = material::rollback("r1", "q1", &["app-1"]);
    let answer = store.create(&epoch, &new).await;
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    assert_eq!(store.running().await.expect("it is there"), [material::id("r1")]);

    // The change is made, and its answer is on the way when the way is cut.
    store.set_latency(Duration::from_millis(100));
    let (cut, other, append) = (store.clone(), MemoryStore::open(&disk), material::events(1));
    let under_way = store.append(&epoch, &new.id, 2, &append, "{}", None);
    let (answer, ()) = tokio::join!(under_way, async {
        let made = async || other.events(&new.id, 2).await.is_ok_and(|news| news.len() == 1);
        material::until("the event is there", made).await;
        cut.set_unreachable(true);
    });
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
}
