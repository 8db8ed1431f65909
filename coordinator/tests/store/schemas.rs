//! Schemas: stores as earlier versions of this program left them, replicas that make one at the same time, and a newer one.
//!
//! Each file in `schemas` is a store of that schema with rows in every table; none is ever changed, and a new schema adds one.

use std::path::{Path, PathBuf};

use rollback_coordinator::config::StoreConfig;
use rollback_coordinator::store::postgres::PostgresStore;
use rollback_coordinator::store::postgres::look::look;
use rollback_coordinator::store::sqlite::SqliteStore;
use rollback_coordinator::store::{Created, DocumentKind, FleetId, OpenError, Store, StoreError};
use rollback_engine::ids::{Epoch, Target};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::cases::cases;
use crate::material::{at, events, id, lead, rollback};
use crate::world::World;

cases![
    postgres_comes_from_every_earlier_schema,
    eight_replicas_may_start_on_an_empty_database,
    a_schema_of_a_newer_program_is_not_touched,
    a_store_is_of_one_fleet,
];

/// In the order of their schemas.
fn earlier(kind: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/schemas");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("list the schemas")
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(kind))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "none of {kind} in {}", dir.display());
    files
}

pub async fn sqlite_comes_from_every_earlier_schema(_: &World) {
    for file in earlier("sqlite-") {
        let world = World::sqlite();
        let url = format!("sqlite://{}?mode=rwc", world.file().display());
        let mut hand = sqlx::SqliteConnection::connect(&url).await.expect("make the file");
        let sql = std::fs::read_to_string(&file).expect("read the schema");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut hand)
            .await
            .expect("fill it");
        hand.close().await.expect("close");
        let store = SqliteStore::open(&world.file(), "c1").await.expect("open");
        goes_on(&store, &file).await;
    }
}

async fn postgres_comes_from_every_earlier_schema(world: &World) {
    for file in earlier("postgres-") {
        let mut hand = world.database().connect().await;
        sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION rollback")
            .execute(&mut hand)
            .await
            .expect("clear the database");
        world.database().load(&file);
        goes_on(&*world.replica().await, &file).await;
    }
}

async fn eight_replicas_may_start_on_an_empty_database(world: &World) {
    let url = &world.database().url;
    let config = StoreConfig {
        url: Some(url.clone()),
        password_file: None,
    };
    let opened = futures::future::join_all((0..8).map(|_| PostgresStore::open(url, None))).await;
    let seen = futures::future::join_all((0..8).map(|_| look(&config))).await;
    for found in seen {
        assert_eq!(found.expect("look").schema, Some(3));
    }
    for store in &opened {
        let store = store.as_ref().expect("open");
        store.lease().await.expect("lease");
    }
    let mut hand = world.database().connect().await;
    let rows: (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM lease), (SELECT count(*) FROM _sqlx_migrations)")
            .fetch_one(&mut hand)
            .await
            .expect("look");
    assert_eq!(rows, (1, 3));
}

async fn a_schema_of_a_newer_program_is_not_touched(world: &World) {
    let store = world.replica().await;
    let epoch = lead(&*store, "a").await;
    let mut hand = world.database().connect().await;
    let changes = [
        "INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), true, '', 0)",
        "UPDATE _sqlx_migrations SET version = 1, checksum = 'x' WHERE version = 9999",
    ];
    hand.execute(changes[0]).await.expect("change");
    let refused = PostgresStore::open(&world.database().url, None).await;
    assert!(
        matches!(refused, Err(OpenError::Newer { found: 9999, known: 3 })),
        "{refused:?}"
    );
    hand.execute("DELETE FROM _sqlx_migrations WHERE version = 1")
        .await
        .expect("change");
    hand.execute(changes[1]).await.expect("change");
    let refused = PostgresStore::open(&world.database().url, None).await;
    assert!(matches!(refused, Err(OpenError::Foreign { version: 1 })), "{refused:?}");
    // The older program, which runs still, goes on.
    store.give_back(&epoch).await.expect("give back");
}

/// The first coordinator says whose store it is. One that was made by another `init` must not lead a fleet that cannot obey it.
async fn a_store_is_of_one_fleet(world: &World) {
    let store = world.replica().await;
    let fleet = |domain: &str, ca: &[&str]| FleetId {
        trust_domain: domain.to_owned(),
        ca: ca.iter().map(|ca| (*ca).to_owned()).collect(),
    };
    store.join(&fleet("a.example", &["1"])).await.expect("it is empty");
    for stranger in [fleet("a.example", &["2"]), fleet("b.example", &["1"])] {
        let refused = store.join(&stranger).await;
        let ours = fleet("a.example", &["1"]);
        assert!(
            matches!(&refused, Err(StoreError::OtherFleet(f)) if *f == ours),
            "{refused:?}"
        );
    }
    // A CA is replaced by way of coordinators that trust both.
    for ca in [&["1", "2"][..], &["2"], &["1"]] {
        store.join(&fleet("a.example", ca)).await.expect("the same fleet");
    }
}

/// What was left is all there, and goes on.
async fn goes_on(store: &dyn Store, file: &Path) {
    let file = file.display().to_string();
    let lease = store.lease().await.expect("lease");
    assert_eq!((lease.epoch, lease.leader.as_str()), (Epoch(7), "c1"), "{file}");
    assert_eq!(store.running().await.expect("running"), [id("r1")], "{file}");
    let journal = store.events(&id("r1"), 0).await.expect("the chain holds");
    assert!(journal.iter().map(|r| &r.event).eq(&events(2)), "{file}: {journal:?}");
    assert_eq!(store.summaries(9).await.expect("list").len(), 2, "{file}");
    let releases = store.releases().await.expect("releases");
    let stable: Vec<(&str, bool)> = releases.iter().map(|r| (r.name.as_str(), r.stable)).collect();
    assert_eq!(stable, [("v2", false), ("v1", true)], "{file}");
    assert_eq!(store.agents().await.expect("agents")[0].name, "app-1", "{file}");
    let holds = store.documents(DocumentKind::Hold).await.expect("holds");
    let held: Vec<&str> = holds.iter().map(|d| d.key.as_str()).collect();
    let since_schema_3 = (!file.ends_with("0001.sql") && !file.ends_with("0002.sql")).then_some("v2");
    assert!(held.into_iter().eq(since_schema_3), "{file}: {holds:?}");
    let redeemed = store.redeem_token("h1", at(0)).await.expect("redeem");
    assert_eq!(redeemed.as_deref(), Some("app-9"), "{file}");

    let epoch = lead(store, "c1").await;
    assert!(epoch.epoch > lease.epoch, "{file}");
    let held = store
        .create(&epoch, &rollback("r9", "q9", &["app-1"]))
        .await
        .expect("create");
    let (target, holder) = (Target::new("app-1", "api"), id("r1"));
    assert_eq!(held, Created::ScopeHeld { target, holder }, "{file}");
    store
        .append(&epoch, &id("r1"), 2, &events(1), "{}", Some(&Default::default()))
        .await
        .expect("end");
}
