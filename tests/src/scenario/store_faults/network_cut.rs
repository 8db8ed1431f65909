//! Packets vanish in the middle of rollbacks, as when a switch dies: connections break without a word.
//!
//! - Between the leader and half of the agents, for a while: it goes on when the network is healed.
//! - Between the leader and the store, and half of the agents: it steps down in time, another one, which reaches all, takes
//!   over and goes on, while the network is still cut.
//! - Between a host and everybody, for good: the rollback ends when the step's time is over, says the host's
//!   name, and has touched nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::swing::{Swing, Tally};
use super::{SLACK, STEP_DOWN, TTL, does_not_lead, expect_whole_journal, replicated, well};
use crate::control::Leading;
use crate::coordinator::Coordinator;
use crate::facts::Facts;
use crate::fleet::Fleet;
use crate::network::{self, Cut, MADE_WITH, Party};
use crate::process;
use crate::scenario::{Found, Options, expect_nothing, expect_running, on_fleet};
use crate::wait;
use crate::zekka::Version;

/// How long the network is cut before it is healed.
const CUT: Duration = Duration::from_secs(10);

/// Half of the hosts: one of the application, and the database's.
const HALF: [&str; 2] = ["app-1", "db-1"];

/// The host that is cut off for good, and for how long preflight asks it: 30 s and a grace.
const LOST: &str = "db-1";
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(45);

/// Groups of the processes: coordinators from here on, then agents.
const FIRST_GROUP: u32 = 7_001;

/// The store opens no connections, so it has no mark.
const NO_GROUP: u32 = 7_000;

pub async fn tell(options: Options) -> Result<Found> {
    network::alone(move || {
        async move { on_fleet(replicated(), options, async |fleet| story(fleet, options).await).await }.boxed_local()
    })
    .await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    tell_apart(fleet).await?;
    fleet.store_server()?.record()?;
    fleet.deploy_both().await?;
    let (mut live, mut tally) = (Version::V3_0_0, Tally::default());
    let (mut stepped_down, mut taken_over, mut dropped) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.rounds.unwrap_or(1) {
        let swing = Swing::begin(fleet, live)?;
        swing.middle(fleet).await?;
        let leader = fleet.wait_leader(TTL).await?;
        options.say(format!("{} is cut from {} …", leader.name, HALF.join(" and ")));
        let cut = Cut::between(&parties(fleet, &[&leader.name])?, &parties(fleet, &HALF)?)?;
        let begun = Instant::now();
        wait::until_true("a while", CUT, async || begun.elapsed() >= CUT).await?;
        dropped += Cut::dropped()?;
        cut.heal()?;
        options.say("… and healed.");
        live = swing
            .verified(fleet, &mut tally)
            .await
            .context("healed after a while")?;
        let now = fleet.wait_leader(TTL).await?;
        ensure!(
            now == leader,
            "{leader:?} reached the store all the while, and now {now:?} leads"
        );
        well(fleet).await?;

        let swing = Swing::begin(fleet, live)?;
        swing.middle(fleet).await?;
        options.say(format!(
            "{} is cut from the store and from {}.",
            leader.name,
            HALF.join(" and ")
        ));
        let others = [vec![store(fleet)?], parties(fleet, &HALF)?].concat();
        let cut = Cut::between(&parties(fleet, &[&leader.name])?, &others)?;
        let (down, over) = handed_over(fleet, &leader).await?;
        stepped_down.push(down.as_millis());
        taken_over.push(over.as_millis());
        live = swing.verified(fleet, &mut tally).await.context("taken over")?;
        dropped += Cut::dropped()?;
        cut.heal()?;
        well(fleet).await?;
    }
    let lost = lost_for_good(fleet, options, live).await?;
    ensure!(dropped > 0, "no packet was dropped");
    let events = expect_whole_journal(fleet).await?;
    Ok(tally.with(json!({
        "cut_with": MADE_WITH, "packets_dropped": dropped, "stepped_down_ms_max": stepped_down.iter().max(),
        "taken_over_ms_max": taken_over.iter().max(), "lost": lost, "events": events,
    })))
}

/// How long it takes until the one that is cut from the store says that it does not lead, and until another one does.
async fn handed_over(fleet: &Fleet, cut_off: &Leading) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    wait::until_true(
        "who is cut from the store says that it does not lead",
        STEP_DOWN + SLACK,
        async || does_not_lead(fleet, &cut_off.name).await,
    )
    .await?;
    let down = begun.elapsed();
    let next = fleet.wait_leader_after(cut_off.epoch, TTL + SLACK).await?;
    ensure!(next.name != cut_off.name, "{} leads without the store", next.name);
    Ok((down, begun.elapsed()))
}

/// The database's host vanishes while preflight asks it.
async fn lost_for_good(fleet: &mut Fleet, options: Options, live: Version) -> Result<Value> {
    let before = expect_running(fleet, live)?;
    let mut swing = Swing::begin(fleet, live)?;
    swing.until("preflight", "db-1/db", "prepare").await?;
    // It is to vanish before it has answered: it stands still until its network is gone.
    let agent = fleet.agent(LOST)?.pid().context("its agent runs")?;
    process::kill(agent, Signal::STOP)?;
    let begun = Instant::now();
    let coordinators: Vec<&str> = fleet.coordinators().map(Coordinator::name).collect();
    let cut = Cut::between(&parties(fleet, &coordinators)?, &parties(fleet, &[LOST])?)?;
    process::kill(agent, Signal::CONT)?;
    options.say(format!("{LOST} is cut off for good."));
    let answer = swing.into_running().answer_within(GIVEN_UP_WITHIN).await?;
    let taken = begun.elapsed();
    let result = answer.clone().expect_code(3)?.json()?;
    ensure!(
        result["blocked"] == true && result["failed_hosts"] == json!([LOST]),
        "it is to be blocked, because of {LOST}: {answer}"
    );
    let after = Facts::gather(fleet)?;
    expect_nothing("something was touched", &after.changes_since(&before, true))?;
    cut.heal()?;
    well(fleet).await?;
    Ok(json!({ "state": result["state"], "code": result["problem"]["code"], "ms": taken.as_millis() }))
}

/// Gives every coordinator and every agent a group of its own, and starts them anew, so that all connections are marked.
async fn tell_apart(fleet: &mut Fleet) -> Result<()> {
    let mut groups = FIRST_GROUP..;
    for coordinator in fleet.coordinators_mut() {
        coordinator.stop().await?;
        let group = groups.next().context("a group")?;
        coordinator.set_group(group);
        Party::mark(group)?;
    }
    for agent in fleet.agents.values_mut() {
        agent.stop().await?;
        let group = groups.next().context("a group")?;
        agent.set_group(group);
        Party::mark(group)?;
        agent.run().await?;
    }
    for coordinator in fleet.coordinators_mut() {
        coordinator.run().await?;
    }
    well(fleet).await
}

/// Coordinators and agents, in the order in which they got their groups, with the ports at which they listen now.
fn everybody(fleet: &Fleet) -> Result<Vec<Party>> {
    let listens = |address: &str| -> Result<u16> {
        let (_, port) = address.rsplit_once(':').context("an address has a port")?;
        port.parse().context("a port is a number")
    };
    let coordinators = fleet.coordinators().map(|c| (c.name(), c.endpoint()));
    let agents = fleet
        .agents
        .iter()
        .map(|(name, agent)| (name.as_str(), agent.address()));
    let named = coordinators.chain(agents).zip(FIRST_GROUP..);
    let party = |((name, address), group): ((&str, &str), u32)| {
        Ok(Party {
            name: name.to_owned(),
            group,
            ports: vec![listens(address)?],
        })
    };
    named.map(party).collect()
}

fn parties(fleet: &Fleet, names: &[&str]) -> Result<Vec<Party>> {
    let all = everybody(fleet)?;
    let found: Vec<Party> = all.into_iter().filter(|p| names.contains(&p.name.as_str())).collect();
    ensure!(found.len() == names.len(), "not all of {names:?} are there");
    Ok(found)
}

fn store(fleet: &Fleet) -> Result<Party> {
    Ok(Party {
        name: "store".to_owned(),
        group: NO_GROUP,
        ports: vec![fleet.store_server()?.port()],
    })
}
