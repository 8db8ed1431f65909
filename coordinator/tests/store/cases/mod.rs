//! What every store has to do, case by case. A case gets a store of its own, and runs beside the others.

pub mod documents;
pub mod journal;
pub mod leadership;
pub mod records;

use futures::future::LocalBoxFuture;
use futures::stream::StreamExt as _;
use tokio::runtime::Handle;

use crate::world::World;

pub struct Case {
    pub name: &'static str,
    pub run: fn(&World) -> LocalBoxFuture<'_, ()>,
}

/// Functions of one module as cases.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const CASES: &[$crate::cases::Case] = &[$($crate::cases::Case {
            name: stringify!($name),
            run: |world| Box::pin($name(world)),
        }),*];
    };
}
pub(crate) use cases;

/// What every store has to do.
pub fn of_every_store() -> impl Iterator<Item = &'static Case> {
    [leadership::CASES, journal::CASES, records::CASES, documents::CASES]
        .into_iter()
        .flatten()
}

/// Runs them all, a few at a time, and fails with the names of those that failed.
pub async fn run(cases: impl Iterator<Item = &'static Case>, world: impl AsyncFn() -> World) {
    let runs = cases.map(async |case| {
        let world = world().await;
        // A thread of its own: a panic ends the case, and what blocks it holds up no other.
        let run = case.run;
        let ended = tokio::task::spawn_blocking(move || Handle::current().block_on(run(&world))).await;
        (case.name, ended.is_ok())
    });
    let ended: Vec<(&str, bool)> = futures::stream::iter(runs).buffer_unordered(6).collect().await;
    let failed: Vec<&str> = ended.iter().filter(|(_, ok)| !ok).map(|(name, _)| *name).collect();
    assert!(
        !ended.is_empty() && failed.is_empty(),
        "of {} cases failed: {failed:?}",
        ended.len()
    );
}
