//! Stories of what happens around the coordinators, in the middle of rollbacks of the demo's fleet: the store's server
//! dies, its disk is full, a pooler stands before it; clocks are moved, the network is cut, a leader freezes at the worst
//! moment.
//!
//! Each of them swings one fleet back and forth and has a fault in the middle of every swing. What is judged: the facts of
//! the hosts, how often the application was started and stopped, and the [journal](crate::journal) as it is stored.

mod clock_moved;
mod disk_full;
mod frozen_in_commit;
mod network_cut;
mod pgbouncer;
mod store_restart;
mod swing;

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::{Scenario, expect_nothing};
use crate::control::Standing;
use crate::fleet::{Fleet, FleetBuilder, HOSTS};
use crate::journal::{Journal, Ledgers};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "pgbouncer",
        about: "three coordinators share a small pool in transaction mode: leader killed, pooler restarted, nothing twice",
        tell: |o| pgbouncer::tell(o).boxed_local(),
    },
    Scenario {
        name: "store-restart",
        about: "the store's PostgreSQL is restarted, crashes, loses sessions inside COMMIT: nothing is lost or there twice",
        tell: |o| store_restart::tell(o).boxed_local(),
    },
    Scenario {
        name: "store-disk-full",
        about: "the store's disk is full in the middle of a rollback, PostgreSQL's and SQLite's: it says so, waits, goes on",
        tell: |o| disk_full::tell(o).boxed_local(),
    },
    Scenario {
        name: "clock-moved",
        about: "wall clocks of leader and agents move by an hour: nobody else leads, deadlines hold, the journal's order, too",
        tell: |o| clock_moved::tell(o).boxed_local(),
    },
    Scenario {
        name: "network-cut",
        about: "packets between the leader and agents, or the store, vanish: healed, taken over, or held with the host's name",
        tell: |o| network_cut::tell(o).boxed_local(),
    },
    Scenario {
        name: "leader-frozen-in-commit",
        about: "the leader is stopped while its transaction locks the lease: others take over all the same, it appends nothing",
        tell: |o| frozen_in_commit::tell(o).boxed_local(),
    },
];

/// As shipped: nobody sees more of a fault than this before another one leads.
const TTL: Duration = Duration::from_secs(6);
/// As shipped: a leader that cannot renew for so long stops by itself.
const STEP_DOWN: Duration = Duration::from_secs(4);
/// A busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Until everybody is well again after a fault.
const WELL_WITHIN: Duration = Duration::from_secs(30);

/// Three coordinators on one PostgreSQL.
fn replicated() -> FleetBuilder {
    Fleet::builder().replicas(3)
}

/// Stops all coordinators, lets their next start be another one, and starts them again.
async fn start_anew(fleet: &mut Fleet, change: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    for coordinator in fleet.coordinators_mut() {
        coordinator.stop().await?;
    }
    change(fleet)?;
    for coordinator in fleet.coordinators_mut() {
        coordinator.spawn()?;
    }
    for coordinator in fleet.coordinators_mut() {
        coordinator.wait_ready().await?;
    }
    well(fleet).await
}

/// Somebody leads, the others follow, and the leader is in touch with all agents.
async fn well(fleet: &Fleet) -> Result<()> {
    fleet.wait_leader(WELL_WITHIN).await?;
    fleet.wait_all_ready().await?;
    fleet.wait_connected(&HOSTS).await
}

/// Does one of them say on `/readyz` that it is not well? Then it says why.
async fn unready(fleet: &Fleet) -> Vec<(String, String)> {
    let standings = fleet.standings().await.into_iter();
    let unready = standings.filter_map(|(name, standing)| match standing {
        Standing::Unready(why) => Some((name, why)),
        Standing::Leading(_) | Standing::Following(_) | Standing::Silent => None,
    });
    unready.collect()
}

/// Does a coordinator say of itself that it does not lead? One that says nothing does not say that, and one that leads and
/// cannot reach the store says both.
async fn does_not_lead(fleet: &Fleet, name: &str) -> bool {
    let standings = fleet.standings().await;
    let standing = standings.into_iter().find(|(who, _)| who == name);
    standing.is_some_and(|(_, standing)| match standing {
        Standing::Following(_) => true,
        Standing::Unready(why) => !why.starts_with("leading"),
        Standing::Leading(_) | Standing::Silent => false,
    })
}

/// What the store itself has: a whole journal, nothing by anybody who did not lead, and every step that any agent was asked
/// for. How many events there are.
async fn expect_whole_journal(fleet: &Fleet) -> Result<usize> {
    let store = fleet.store_server()?;
    let journal = Journal::of_postgres(store)?;
    expect_whole(fleet, &journal).await?;
    expect_nothing("appended without the lead", &store.recorder().stale_appends()?)?;
    Ok(journal.events())
}

async fn expect_whole(fleet: &Fleet, journal: &Journal) -> Result<()> {
    ensure!(journal.events() > 0, "the journal is empty");
    expect_nothing("the journal is damaged", &journal.damages())?;
    let ledgers = Ledgers::read(fleet).await?;
    expect_nothing("agents went ahead of the journal", &ledgers.beyond(journal))
}
