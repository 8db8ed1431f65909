//! The wall clock of the leader, and then that of two agents, is moved by an hour in the middle of rollbacks, forwards and
//! backwards. Nobody else takes the lead, rollbacks are verified, and in the journal events stand in the order in which
//! they happened, whatever time they say.
//!
//! Deadlines hold, too: in the last rollback the application never gets healthy while the leader's clock and the agents'
//! are moved, and it is undone when its time is over, neither at once nor an hour later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::swing::{Swing, Tally};
use super::{TTL, expect_whole_journal, replicated, start_anew, well};
use crate::clock::WallClock;
use crate::control::Leading;
use crate::ctl::rollback_to;
use crate::fleet::{Fleet, HOSTS};
use crate::scenario::{Found, Options, expect_running, on_fleet};
use crate::zekka::Version;

const HOUR: i64 = 3_600;

/// Hosts whose agents have a clock of their own: an application's and the database's.
const MOVED_HOSTS: [&str; 2] = ["app-1", "db-1"];

/// An application that never gets healthy is given up after 8 s by its health check; undoing takes a few more.
const UNDONE_WITHIN: Duration = Duration::from_secs(60);

/// Whose clock moves in the middle of a swing, by how much, and what it is moved to before the end.
#[derive(Clone, Copy, Debug)]
struct Move {
    leader: bool,
    hours: i64,
    /// At the first step behind the application's start.
    then: i64,
}

const MOVES: [Move; 4] = [
    Move {
        leader: true,
        hours: 1,
        then: 0,
    },
    Move {
        leader: true,
        hours: -1,
        then: -1,
    },
    Move {
        leader: false,
        hours: 1,
        then: -1,
    },
    Move {
        leader: false,
        hours: -1,
        then: 0,
    },
];

pub async fn tell(options: Options) -> Result<Found> {
    let swings = options.rounds.unwrap_or(1) * MOVES.len();
    on_fleet(replicated(), options, async |fleet| {
        let clocks = Clocks::give(fleet).await?;
        fleet.store_server()?.record()?;
        fleet.deploy_both().await?;
        let leader = fleet.wait_leader(TTL).await?;
        let (mut live, mut tally) = (Version::V3_0_0, Tally::default());
        for moved in MOVES.into_iter().cycle().take(swings) {
            options.say(format!("{moved:?}"));
            let mut swing = Swing::begin(fleet, live)?;
            swing.middle(fleet).await?;
            clocks.shift(moved.leader.then_some(&leader), moved.hours * HOUR)?;
            swing.until("proxy", "proxy-1/proxy", "switch").await?;
            clocks.shift(moved.leader.then_some(&leader), moved.then * HOUR)?;
            live = swing
                .verified(fleet, &mut tally)
                .await
                .with_context(|| format!("{moved:?}"))?;
            clocks.set_right()?;
            same_leader(fleet, &leader).await?;
            well(fleet).await?;
        }
        let undone_ms = deadline_holds(fleet, &clocks, &leader, live).await?;
        let strayed = strayed(fleet)?;
        ensure!(
            strayed > 0,
            "no event of the journal was written by a clock that was moved"
        );
        let events = expect_whole_journal(fleet).await?;
        Ok(tally.with(json!({
            "leader_changes": 0, "undone_ms": undone_ms, "events_out_of_time": strayed, "events": events,
        })))
    })
    .await
}

/// The clocks of all coordinators and of some agents, by name.
struct Clocks(BTreeMap<String, WallClock>);

impl Clocks {
    async fn give(fleet: &mut Fleet) -> Result<Self> {
        let mut clocks = BTreeMap::new();
        let names = fleet.coordinators().map(|c| c.name().to_owned());
        let names: Vec<String> = names.chain(MOVED_HOSTS.map(str::to_owned)).collect();
        for name in names {
            let offset = fleet.dir().join(format!("clock-of-{name}"));
            clocks.insert(name, WallClock::new(&offset)?);
        }
        for host in MOVED_HOSTS {
            let agent = fleet.agent(host)?;
            agent.stop().await?;
            for (name, value) in clocks[host].environment() {
                agent.export(name, &value);
            }
            agent.run().await?;
        }
        start_anew(fleet, |fleet| {
            for coordinator in fleet.coordinators_mut() {
                for (name, value) in clocks[coordinator.name()].environment() {
                    coordinator.export(name, &value);
                }
            }
            Ok(())
        })
        .await?;
        Ok(Self(clocks))
    }

    /// Moves the leader's, or those of the hosts.
    fn shift(&self, leader: Option<&Leading>, seconds: i64) -> Result<()> {
        match leader {
            Some(leader) => self.of(&leader.name)?.shift(seconds),
            None => MOVED_HOSTS.iter().try_for_each(|host| self.of(host)?.shift(seconds)),
        }
    }

    fn set_right(&self) -> Result<()> {
        self.0.values().try_for_each(|clock| clock.shift(0))
    }

    fn of(&self, name: &str) -> Result<&WallClock> {
        self.0.get(name).with_context(|| format!("{name} has a clock"))
    }
}

/// The lead has not changed hands: by what the coordinators say, and by what the store noted.
async fn same_leader(fleet: &Fleet, leader: &Leading) -> Result<()> {
    let now = fleet.wait_leader(TTL).await?;
    ensure!(
        now == *leader,
        "{leader:?} led before the clock was moved, and now {now:?}"
    );
    let later = fleet.store_server()?.recorder().lease_from(leader.epoch + 1)?;
    ensure!(later.is_none(), "somebody else led in between: {later:?}");
    Ok(())
}

/// Nobody gets healthy, and every clock that can be moved is moved back by an hour.
async fn deadline_holds(fleet: &mut Fleet, clocks: &Clocks, leader: &Leading, live: Version) -> Result<u128> {
    ensure!(live == Version::V3_0_0, "an even number of swings ends where it began");
    for host in &fleet.zekka.hosts {
        host.set_fault(Version::V2_9_0, true, Duration::ZERO)?;
    }
    let marks = crate::scenario::coordinator_killed::Marks::set(fleet)?;
    let running = fleet.ctl.start(&rollback_to("v2.9.0"), false)?;
    marks.wait_started(fleet, "app-1").await?;
    clocks.shift(Some(leader), -HOUR)?;
    clocks.shift(None, -HOUR)?;
    let begun = Instant::now();
    let answer = running.answer_within(UNDONE_WITHIN).await?.expect_code(5)?;
    let taken = begun.elapsed().as_millis();
    clocks.set_right()?;
    ensure!(answer.json()?["state"] == "undone", "it is to be undone: {answer}");
    expect_running(fleet, Version::V3_0_0)?;
    same_leader(fleet, leader).await?;
    fleet.wait_connected(&HOSTS).await?;
    Ok(taken)
}

/// Events that say a time which differs by more than half an hour from when they were written, by the store's clock.
fn strayed(fleet: &Fleet) -> Result<usize> {
    let sql = "SELECT count(*) FROM events e JOIN harness.appends a USING (rollback_id, seq) \
               WHERE abs(extract(epoch FROM (e.payload::jsonb ->> 'at')::timestamptz - a.at)) > 1800";
    fleet.store_server()?.psql(sql)?.parse().context("a number of events")
}
