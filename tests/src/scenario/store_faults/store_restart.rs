//! The store's server fails in the middle of rollbacks, in every way in which a server fails: it is restarted, it crashes
//! and stays away for longer than a leader may go on without it, sessions are ended again and again, and they are ended
//! *inside COMMIT*, once so that the commit was made and its reply was lost, and once so that it was not made.
//!
//! Every rollback is verified; in the journal nothing is missing and nothing is there twice; a coordinator that cannot
//! reach the store says so, and nobody has to be started again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::swing::{Swing, Tally};
use super::{SLACK, STEP_DOWN, expect_whole_journal, replicated, unready, well};
use crate::fleet::Fleet;
use crate::postgres::Shutdown;
use crate::scenario::{Found, Options, on_fleet};
use crate::store_server::{ROLE, StoreServer};
use crate::wait;
use crate::zekka::Version;

/// In a row, each as soon as there is a session again.
const TIMES_ENDED: usize = 20;

/// Sessions that are ended while they commit.
const COMMITS: usize = 4;

/// Until so many commits were met.
const MET_WITHIN: Duration = Duration::from_secs(15);

/// Makes the coordinators' commits of events take their time, when told to: at COMMIT itself, before it is made.
const LINGER: &str = "
CREATE TABLE harness.linger (seconds double precision NOT NULL);
INSERT INTO harness.linger VALUES (0);
ALTER TABLE harness.linger OWNER TO {role};
CREATE FUNCTION harness.lingers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds) FROM harness.linger WHERE seconds > 0;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER harness_lingers AFTER INSERT ON public.events DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION harness.lingers();
";

/// What happens to the store's server.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// As for an update: sessions are ended, and it is there again at once.
    Restarted,
    /// `kill -9`, and nobody starts it before all coordinators have said that they cannot reach it.
    Crashed,
    SessionsEnded,
    /// COMMIT is made and its reply never comes.
    RepliesLost,
    /// The session ends inside COMMIT, which is not made.
    CommitsLost,
}

const FAULTS: [Fault; 5] = [
    Fault::Restarted,
    Fault::Crashed,
    Fault::SessionsEnded,
    Fault::RepliesLost,
    Fault::CommitsLost,
];

/// What was met on the way.
#[derive(Debug, Default)]
struct Met {
    sessions_ended: usize,
    replies_lost: usize,
    commits_lost: usize,
    /// From the crash until every coordinator had said that it cannot reach the store and does not lead.
    stepped_down_ms: u128,
    /// What one of them said.
    said: String,
}

pub async fn tell(options: Options) -> Result<Found> {
    let swings = options.rounds.unwrap_or(1) * FAULTS.len();
    on_fleet(replicated(), options, async |fleet| {
        let store = fleet.store_server()?;
        store.record()?;
        store
            .psql(&LINGER.replace("{role}", ROLE))
            .context("make commits linger")?;
        fleet.deploy_both().await?;
        let (mut live, mut tally, mut met) = (Version::V3_0_0, Tally::default(), Met::default());
        for fault in FAULTS.into_iter().cycle().take(swings) {
            options.say(format!("To the other release, and in the middle of it: {fault:?}."));
            let swing = Swing::begin(fleet, live)?;
            swing.middle(fleet).await?;
            fault
                .strike(fleet, &mut met)
                .await
                .with_context(|| format!("{fault:?}"))?;
            live = swing
                .verified(fleet, &mut tally)
                .await
                .with_context(|| format!("{fault:?}"))?;
            well(fleet).await.with_context(|| format!("after {fault:?}"))?;
        }
        let events = expect_whole_journal(fleet).await?;
        Ok(tally.with(json!({
            "sessions_ended": met.sessions_ended, "replies_to_commit_lost": met.replies_lost,
            "commits_not_made": met.commits_lost, "stepped_down_ms": met.stepped_down_ms, "said": met.said,
            "events": events,
        })))
    })
    .await
}

impl Fault {
    async fn strike(self, fleet: &mut Fleet, met: &mut Met) -> Result<()> {
        match self {
            Self::Restarted => {
                let store = fleet.store_server.as_mut().context("the store's server")?;
                store.stop(Shutdown::Fast).await?;
                store.run().await
            }
            Self::Crashed => crashed(fleet, met).await,
            Self::SessionsEnded => {
                for _ in 0..TIMES_ENDED {
                    met.sessions_ended += ended(fleet.store_server()?, "true").await?;
                }
                Ok(())
            }
            Self::RepliesLost => replies_lost(fleet.store_server()?, met).await,
            Self::CommitsLost => commits_lost(fleet.store_server()?, met).await,
        }
    }
}

async fn crashed(fleet: &mut Fleet, met: &mut Met) -> Result<()> {
    let store = fleet.store_server.as_mut().context("the store's server")?;
    store.crash().await?;
    let begun = Instant::now();
    let all = fleet.coordinators().count();
    let nobody_leads = |said: &[(String, String)]| said.iter().all(|(_, why)| !why.starts_with("leading"));
    let said = wait::until(
        "every coordinator says that it cannot reach the store, and nobody leads",
        STEP_DOWN + SLACK,
        async || Some(unready(fleet).await).filter(|said| said.len() == all && nobody_leads(said)),
    );
    let said = match said.await {
        Ok(said) => said,
        Err(error) => bail!("{error:#}; they say {:?}", fleet.standings().await),
    };
    met.stepped_down_ms = begun.elapsed().as_millis();
    met.said = said.into_iter().map(|(_, why)| why).next().unwrap_or_default();
    let store = fleet.store_server.as_mut().context("the store's server")?;
    store.run().await
}

/// Every commit waits for a standby that does not exist, after it was made. Whoever waits is ended.
async fn replies_lost(store: &StoreServer, met: &mut Met) -> Result<()> {
    let events = || -> Result<usize> { store.psql("SELECT count(*) FROM events")?.parse().context("a number") };
    let before = events()?;
    store.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")?;
    store.psql("SELECT pg_reload_conf()")?;
    let begun = Instant::now();
    let mut ended_sessions = 0;
    // Renewals of the lease commit, too: there must be an append among those that lost their reply.
    while ended_sessions < COMMITS || events()? == before {
        ensure!(begun.elapsed() < MET_WITHIN, "no append was met inside COMMIT");
        ended_sessions += ended(store, "wait_event = 'SyncRep'").await?;
    }
    store.psql("ALTER SYSTEM RESET synchronous_standby_names")?;
    store.psql("SELECT pg_reload_conf()")?;
    met.replies_lost += ended_sessions;
    Ok(())
}

/// Every commit of events takes its time before it is made. Whoever is at it is ended.
async fn commits_lost(store: &StoreServer, met: &mut Met) -> Result<()> {
    store.psql("UPDATE harness.linger SET seconds = 5")?;
    for _ in 0..COMMITS {
        met.commits_lost += ended(store, "wait_event = 'PgSleep' AND query ILIKE 'commit%'").await?;
    }
    store.psql("UPDATE harness.linger SET seconds = 0")?;
    // Who began to linger before that goes on at once, too.
    store.psql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")?;
    Ok(())
}

/// Ends the coordinators' sessions that are like this, as soon as there is one. How many there were.
async fn ended(store: &StoreServer, such: &str) -> Result<usize> {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE usename = '{ROLE}' AND backend_type = 'client backend' AND {such}"
    );
    let what = format!("a coordinator has a session with {such}");
    wait::until(&what, MET_WITHIN, async || {
        let count = store.psql(&sql).ok()?.parse().ok()?;
        (count > 0).then_some(count)
    })
    .await
}
