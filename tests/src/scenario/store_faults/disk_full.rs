//! The store's disk takes no more byte in the middle of a rollback. Three times: PostgreSQL cannot make a table longer;
//! PostgreSQL cannot write its log ahead and goes down; SQLite.
//!
//! While the disk is full, the coordinator says so in its log and on `/readyz`, rollbackctl says it to the operator, and no
//! host is asked for anything more. With room on the disk again (and the server started again, as whatever supervises it
//! does), the rollback goes on by itself and is verified.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::swing::{Swing, Tally};
use super::{expect_whole, expect_whole_journal, replicated, well};
use crate::coordinator::Coordinator;
use crate::facts::curl;
use crate::fleet::{Fleet, HOSTS};
use crate::journal::{Journal, Ledgers};
use crate::postgres::Shutdown;
use crate::process::run;
use crate::scenario::{Found, Options, found, on_fleet};
use crate::small_disk::SmallDisk;
use crate::store_server::StoreServer;
use crate::wait;
use crate::zekka::Version;

/// A new cluster, its log, and room to work.
const SERVER_MIB: u32 = 160;
const FILE_MIB: u32 = 16;

/// Until everybody has said it.
const SAID_WITHIN: Duration = Duration::from_secs(15);

/// How long nobody may be asked for anything, from then on.
const STAYS_FULL: Duration = Duration::from_secs(2);

/// What is said while the server takes nothing, and while it is down.
const TAKES_NOTHING: Words = Words {
    operator: "waiting for the store",
    page: "waiting for the store",
};
const IS_DOWN: Words = Words {
    operator: "reconnecting",
    page: "store: ",
};

/// In a coordinator's log: no room, in the words of PostgreSQL and of SQLite, and a server that is not there.
const CAUSES: [&str; 3] = ["No space left on device", "database or disk is full", "refused"];

/// PostgreSQL: a page that is a tenth full takes nothing more, so that every few events need another one.
const HUNGRY: &str = "ALTER TABLE events SET (fillfactor = 10)";

/// A part of what operators are told, and of `/readyz`.
struct Words {
    operator: &'static str,
    page: &'static str,
}

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(1);
    let mut tally = Tally::default();
    let events = on_fleet(replicated(), options, async |fleet| {
        postgres(fleet, options, rounds, &mut tally).await
    })
    .await?;
    let embedded = on_fleet(Fleet::builder(), options, async |fleet| {
        sqlite(fleet, options, rounds, &mut tally).await
    })
    .await?;
    Ok(tally.with(json!({ "postgres": events, "sqlite": embedded })))
}

async fn postgres(fleet: &mut Fleet, options: Options, rounds: usize, tally: &mut Tally) -> Result<Found> {
    let data = fleet.dir().join("store/postgres/data");
    let store = fleet.store_server.as_mut().context("the store's server")?;
    store.stop(Shutdown::Fast).await?;
    let disk = move_onto_small_disk(fleet, &data, SERVER_MIB)?;
    let store = fleet.store_server.as_mut().context("the store's server")?;
    store.run().await?;
    store.record()?;
    store.psql(HUNGRY)?;
    well(fleet).await?;
    fleet.deploy_both().await?;
    let (mut live, mut said) = (Version::V3_0_0, Vec::new());
    for down in (0..rounds).flat_map(|_| [false, true]) {
        let mut swing = Swing::begin(fleet, live)?;
        swing.middle(fleet).await?;
        disk.fill()?;
        if down {
            without_a_log(fleet.store_server()?)?;
        }
        options.say(format!(
            "The disk of the store's server is full; it is {}.",
            if down { "down" } else { "up" }
        ));
        said.push(said_and_waited(fleet, &mut swing, if down { &IS_DOWN } else { &TAKES_NOTHING }).await?);
        disk.free()?;
        options.say("There is room again.");
        if down {
            let store = fleet.store_server.as_mut().context("the store's server")?;
            store.stop(Shutdown::Immediate).await?;
            store.run().await?;
        }
        live = swing.verified(fleet, tally).await?;
        well(fleet).await?;
    }
    let events = expect_whole_journal(fleet).await?;
    Ok(found(json!({ "events": events, "said": said })))
}

async fn sqlite(fleet: &mut Fleet, options: Options, rounds: usize, tally: &mut Tally) -> Result<Found> {
    fleet.coordinator.stop().await?;
    let file = fleet.coordinator.store();
    let disk = move_onto_small_disk(fleet, file.parent().context("the store has a directory")?, FILE_MIB)?;
    fleet.coordinator.run().await?;
    fleet.wait_connected(&HOSTS).await?;
    fleet.deploy_both().await?;
    let (mut live, mut said) = (Version::V3_0_0, Vec::new());
    for _ in 0..rounds {
        let mut swing = Swing::begin(fleet, live)?;
        swing.middle(fleet).await?;
        disk.fill()?;
        options.say("The disk of the coordinator is full.");
        said.push(said_and_waited(fleet, &mut swing, &TAKES_NOTHING).await?);
        disk.free()?;
        options.say("There is room again.");
        live = swing.verified(fleet, tally).await?;
    }
    let journal = Journal::of_sqlite(&file).await?;
    expect_whole(fleet, &journal).await?;
    Ok(found(json!({ "events": journal.events(), "said": said })))
}

/// The next file of the server's log is needed now. It cannot be made, and the server ends itself.
fn without_a_log(store: &StoreServer) -> Result<()> {
    let needed = [
        "SELECT pg_switch_wal()",
        "CREATE TABLE harness.nothing (nothing integer)",
    ];
    let refused = needed.iter().any(|sql| store.psql(sql).is_err());
    ensure!(refused, "the server goes on without room for its log");
    Ok(())
}

/// Waits until the log, `/readyz` and rollbackctl have said that the store cannot be written, and then makes sure that no
/// agent is asked for anything while that is so. What the operator was told.
async fn said_and_waited(fleet: &Fleet, swing: &mut Swing, words: &Words) -> Result<String> {
    let told = swing
        .until_said("the store cannot be written", |line| line.contains(words.operator))
        .await?;
    let pages = async || {
        fleet
            .coordinators()
            .any(|c| curl(&c.page("/readyz")).is_ok_and(|a| a.body.contains(words.page)))
    };
    wait::until_true("/readyz says that the store cannot be written", SAID_WITHIN, pages).await?;
    let logged =
        |c: &Coordinator| std::fs::read_to_string(c.log()).is_ok_and(|log| CAUSES.iter().any(|c| log.contains(c)));
    let logs = async || fleet.coordinators().any(logged);
    wait::until_true("a coordinator logs why the store cannot be written", SAID_WITHIN, logs).await?;
    let (before, begun) = (Ledgers::read(fleet).await?, Instant::now());
    wait::until_true("a while", STAYS_FULL, async || begun.elapsed() >= STAYS_FULL).await?;
    ensure!(
        Ledgers::read(fleet).await? == before,
        "agents were asked for more while nothing could be written"
    );
    Ok(told)
}

/// Puts a directory, which nobody uses now, onto a disk of its own, with what is in it.
/// It goes with the fleet.
fn move_onto_small_disk(fleet: &mut Fleet, dir: &Path, mib: u32) -> Result<Arc<SmallDisk>> {
    let away = dir.with_extension("away");
    std::fs::rename(dir, &away).context("move the directory away")?;
    let disk = Arc::new(SmallDisk::mount(dir, mib)?);
    fleet.hold(Arc::clone(&disk));
    // With owners and modes, those of the directory, too.
    run(Command::new("cp").arg("-a").arg(away.join(".")).arg(dir)).context("copy what is in it")?;
    std::fs::remove_dir_all(&away).context("remove what was copied")?;
    Ok(disk)
}
