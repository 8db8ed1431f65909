//! The leader is stopped (SIGSTOP) while a transaction of it is open and locks the lease. Nobody could take over for as
//! long as it holds that lock; the server ends the transaction by itself, and another one leads in time. Woken up, the old
//! leader appends nothing, says that it does not lead, and the rollback is verified by the new one.
//!
//! To be met at that point, the insert of an event is made to take a moment, and the leader is stopped inside it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use super::swing::{Swing, Tally};
use super::{SLACK, TTL, does_not_lead, expect_whole_journal, replicated, well};
use crate::fleet::Fleet;
use crate::scenario::{Found, Options, on_fleet};
use crate::store_server::{ROLE, StoreServer};
use crate::wait;
use crate::zekka::Version;

/// How long the insert of an event takes, when told to.
const SLOW: &str = "
CREATE TABLE harness.slow (seconds double precision NOT NULL);
INSERT INTO harness.slow VALUES (0);
ALTER TABLE harness.slow OWNER TO {role};
CREATE FUNCTION harness.slows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds) FROM harness.slow WHERE seconds > 0;
    RETURN NEW;
END $$;
CREATE TRIGGER harness_slows BEFORE INSERT ON public.events FOR EACH ROW EXECUTE FUNCTION harness.slows();
";

const MET_WITHIN: Duration = Duration::from_secs(10);
/// Once it goes on, the old leader has to find out.
const STANDS_WITHIN: Duration = Duration::from_secs(3);

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(2);
    on_fleet(replicated(), options, async |fleet| {
        let store = fleet.store_server()?;
        store.record()?;
        store.psql(&SLOW.replace("{role}", ROLE)).context("make inserts slow")?;
        fleet.deploy_both().await?;
        let (mut live, mut tally, mut takeovers) = (Version::V3_0_0, Tally::default(), Vec::new());
        for _ in 0..rounds {
            let swing = Swing::begin(fleet, live)?;
            swing.middle(fleet).await?;
            takeovers.push(freeze(fleet, options).await?);
            live = swing.verified(fleet, &mut tally).await?;
            well(fleet).await?;
        }
        let stale = fleet.store_server()?.recorder().stale_appends()?.len();
        let events = expect_whole_journal(fleet).await?;
        Ok(tally.with(json!({
            "stale_appends": stale, "takeover_ms_max": takeovers.iter().max(), "events": events,
        })))
    })
    .await
}

/// Milliseconds from the stop until another one leads.
async fn freeze(fleet: &mut Fleet, options: Options) -> Result<u128> {
    let leader = fleet.wait_leader(TTL).await?;
    let store = fleet.store_server()?;
    store.psql("UPDATE harness.slow SET seconds = 0.3")?;
    let name = leader.name.clone();
    wait::until_true("the leader is inserting an event", MET_WITHIN, async || {
        sessions(store, "state = 'active' AND wait_event = 'PgSleep'").is_ok_and(|n| n > 0)
    })
    .await?;
    fleet.replica(&name)?.signal(Signal::STOP)?;
    let begun = Instant::now();
    let store = fleet.store_server()?;
    // The insert ends, and its transaction waits for a client that does not go on, with its lock on the lease.
    let open = "state = 'idle in transaction' AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted \
                AND l.relation = 'public.lease'::regclass AND l.mode = 'RowShareLock')";
    wait::until_true("its transaction is open and idle", MET_WITHIN, async || {
        sessions(store, open).is_ok_and(|n| n > 0)
    })
    .await?;
    store.psql("UPDATE harness.slow SET seconds = 0")?;
    options.say(format!("{name} is stopped inside its transaction."));
    let next = fleet.wait_leader_after(leader.epoch, TTL + SLACK + SLACK).await?;
    let taken = begun.elapsed();
    ensure!(next.name != name, "{name} leads while it is stopped");
    ensure!(taken <= TTL + SLACK, "{} took over after {taken:?} only", next.name);
    fleet.replica(&name)?.signal(Signal::CONT)?;
    wait::until_true("the old leader says that it does not lead", STANDS_WITHIN, async || {
        does_not_lead(fleet, &name).await
    })
    .await?;
    Ok(taken.as_millis())
}

/// Sessions of coordinators that are like this. Nobody but the leader writes events.
fn sessions(store: &StoreServer, such: &str) -> Result<usize> {
    let sql = format!("SELECT count(*) FROM pg_stat_activity a WHERE usename = '{ROLE}' AND {such}");
    store.psql(&sql)?.parse().context("a number of sessions")
}
