//! PgBouncer in transaction mode, with four server connections for three coordinators. One rollback is undisturbed, in one
//! the leader is killed with -9, in one the pooler is restarted. All are verified, and no step took effect twice.

use anyhow::{Result, ensure};
use serde_json::json;

use super::swing::{Swing, Tally};
use super::{SLACK, TTL, expect_whole_journal, replicated, start_anew, well};
use crate::fleet::Fleet;
use crate::pgbouncer::{Behind, PgBouncer};
use crate::scenario::{Found, Options, on_fleet};
use crate::store_server::{DATABASE, ROLE};
use crate::zekka::Version;

/// Rollbacks of one round: an undisturbed one, a kill, a restart of the pooler, and one back to where it began.
const SWINGS: usize = 4;

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(1);
    on_fleet(replicated(), options, async |fleet| {
        let mut pooler = put_between(fleet).await?;
        fleet.store_server()?.record()?;
        fleet.deploy_both().await?;
        let (mut live, mut tally) = (Version::V3_0_0, Tally::default());
        for number in 0..rounds * SWINGS {
            let swing = Swing::begin(fleet, live)?;
            swing.middle(fleet).await?;
            match number % SWINGS {
                1 => {
                    let leader = fleet.wait_leader(TTL).await?;
                    options.say(format!("kill -9 of the leader, {}.", leader.name));
                    fleet.replica(&leader.name)?.kill()?;
                    fleet.wait_leader_after(leader.epoch, TTL + SLACK).await?;
                    fleet.replica(&leader.name)?.run().await?;
                }
                2 => {
                    options.say("The pooler is restarted.");
                    pooler.restart().await?;
                }
                _ => {}
            }
            live = swing.verified(fleet, &mut tally).await?;
            well(fleet).await?;
        }
        let events = expect_whole_journal(fleet).await?;
        let transactions = pooler.transactions()?;
        ensure!(pooler.clients()? >= 3, "not every coordinator goes through the pooler");
        Ok(tally.with(json!({
            "leaders_killed": rounds, "pooler_restarts": rounds, "transactions_since_restart": transactions,
            "events": events,
        })))
    })
    .await
}

/// Sends the coordinators through a pooler. It ends with the story.
async fn put_between(fleet: &mut Fleet) -> Result<PgBouncer> {
    let store = fleet.store_server()?;
    let psql = store.cluster().bin().join("psql");
    let behind = Behind {
        port: store.port(),
        database: DATABASE,
        role: ROLE,
        password: store.password(),
        psql: &psql,
    };
    let pooler = PgBouncer::start(&fleet.dir().join("pgbouncer"), &fleet.log("pgbouncer"), behind).await?;
    start_anew(fleet, |fleet| {
        for coordinator in fleet.coordinators() {
            let url = fleet.store_server()?.url_at(pooler.port(), coordinator.name());
            coordinator.set_store_url(&url)?;
        }
        Ok(())
    })
    .await?;
    Ok(pooler)
}
