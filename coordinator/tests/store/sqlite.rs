//! What only the embedded store has to do: one process for each file, and opening.

use rollback_coordinator::store::OpenError;
use rollback_coordinator::store::sqlite::SqliteStore;

use crate::cases::cases;
use crate::schemas::sqlite_comes_from_every_earlier_schema;
use crate::world::World;

cases![
    a_second_coordinator_is_told_who_has_the_file,
    a_schema_of_a_newer_program_is_not_touched,
    sqlite_comes_from_every_earlier_schema,
];

async fn a_second_coordinator_is_told_who_has_the_file(world: &World) {
    let file = world.file();
    let first = SqliteStore::open(&file, "c1").await.expect("open");
    let refused = SqliteStore::open(&file, "c2").await.expect_err("it is open");
    let said = refused.to_string();
    let holder = format!("coordinator c1 (process {})", std::process::id());
    assert!(said.contains(&holder) && said.contains("coordinator.db"), "{said}");
    drop(first);
    SqliteStore::open(&file, "c2").await.expect("it is free");
}

async fn a_schema_of_a_newer_program_is_not_touched(world: &World) {
    drop(world.replica().await);
    world
        .by_hand("INSERT INTO _sqlx_migrations VALUES (9999, 'later', '2030-01-01', 1, x'00', 0)")
        .await;
    let refused = SqliteStore::open(&world.file(), "c1").await;
    assert!(
        matches!(refused, Err(OpenError::Newer { found: 9999, known: 3 })),
        "{refused:?}"
    );
}
