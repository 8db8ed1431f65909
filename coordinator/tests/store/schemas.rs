//! Stores as earlier versions of this program left them. Each file is a store of that schema with rows in every table; none
//! is ever changed, and a new schema adds one.

use std::path::{Path, PathBuf};

use rollback_coordinator::store::sqlite::SqliteStore;
use rollback_coordinator::store::{Created, Store};
use rollback_engine::ids::{Epoch, Target};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::cases::cases;
use crate::material::{at, events, id, lead, rollback};
use crate::world::World;

cases![postgres_comes_from_every_earlier_schema];

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

/// What was left is all there, and goes on.
async fn goes_on(store: &dyn Store, file: &Path) {
    let file = file.display();
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
    let redeemed = store.redeem_token("h1", at(0)).await.expect("redeem");
    assert_eq!(redeemed.as_deref(), Some("app-9"), "{file}");

    let epoch = lead(store, "c1").await;
    assert!(epoch > lease.epoch, "{file}");
    let held = store
        .create(epoch, &rollback("r9", "q9", &["app-1"]))
        .await
        .expect("create");
    let (target, holder) = (Target::new("app-1", "api"), id("r1"));
    assert_eq!(held, Created::ScopeHeld { target, holder }, "{file}");
    store
        .append(epoch, &id("r1"), 2, &events(1), "{}", Some(&Default::default()))
        .await
        .expect("end");
}
