//! The demo's fleet with three coordinators. It swings between two releases, and something happens to the leader at a
//! moment of each rollback that was drawn before.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::control::Leading;
use crate::ctl::{Answer, Running, rollback_to};
use crate::effects::{Effects, Tally, duplicates, missing};
use crate::fleet::{Fleet, FleetBuilder, HOSTS};
use crate::scenario::{expect_nothing, expect_running};
use crate::store_server::Act;
use crate::wait;
use crate::zekka::Version;

pub const OLD: Version = Version::V2_9_0;
pub const NEW: Version = Version::V3_0_0;

/// Deals in the database: few, so that a round takes little time.
const DEALS: u64 = 500;

/// Until a rollback that was asked for is in the journal.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Each look at the store is a process of its own.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What a rollback is like in which nothing happens.
#[derive(Clone, Debug)]
struct Undisturbed {
    /// When its events were appended, from the first one on.
    offsets: Vec<Duration>,
    effects: Tally,
}

#[derive(Debug)]
pub struct Ground<'a> {
    pub fleet: &'a mut Fleet,
    undisturbed: BTreeMap<Version, Undisturbed>,
}

/// A rollback that is under way.
#[derive(Debug)]
pub struct Swing {
    pub to: Version,
    pub leader: Leading,
    pub began: Duration,
    id: String,
    /// rollbackctl, watching from the beginning on.
    watching: Option<Running>,
    effects: Effects,
}

/// One that has ended as it must.
#[derive(Debug)]
pub struct Swung {
    pub answer: Answer,
    /// What was appended to its journal, in order.
    pub acts: Vec<Act>,
    /// Effects that were there more often than in an undisturbed one.
    pub duplicates: Vec<String>,
}

pub fn builder() -> FleetBuilder {
    Fleet::builder().replicas(3).rows(DEALS).effects()
}

/// Now, as the recorder counts time: the store's server has the clock of this host.
pub fn now() -> Duration {
    Duration::from_micros(u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default())
}

impl<'a> Ground<'a> {
    /// Deploys both releases and rolls back and forth once, undisturbed, to know what that is like.
    pub async fn prepare(fleet: &'a mut Fleet) -> Result<Self> {
        fleet.deploy_both().await?;
        fleet.store_server()?.record()?;
        let mut ground = Self {
            fleet,
            undisturbed: BTreeMap::new(),
        };
        for to in [OLD, NEW] {
            let swing = ground.begin(to).await?;
            let began = swing.began;
            let (answer, acts, effects) = ground.watch_to_its_end(swing).await?;
            expect_verified(&answer)?;
            let offsets = acts.iter().map(|act| act.at.saturating_sub(began)).collect();
            ground.undisturbed.insert(to, Undisturbed { offsets, effects });
        }
        Ok(ground)
    }

    /// How long a rollback takes in which nothing happens.
    pub fn takes(&self, to: Version) -> Duration {
        self.undisturbed[&to].offsets.last().copied().unwrap_or_default()
    }

    /// Waits until so much of a rollback is done: for the event that came last before that part of the time that an
    /// undisturbed one takes, and as long after it. So a moment is the same one on a machine that is busy now.
    pub async fn wait_for_part(&self, swing: &Swing, part: f64) -> Result<()> {
        let offsets = &self.undisturbed[&swing.to].offsets;
        let at = self.takes(swing.to).mul_f64(part);
        let events = offsets.iter().take_while(|offset| **offset <= at).count().max(1);
        let last = offsets.get(events - 1).copied().unwrap_or_default();
        let what = format!("event {events} of the rollback is in the journal");
        wait::until_true(&what, ENDS_WITHIN, async || {
            self.acts(swing.began).is_ok_and(|acts| acts.len() >= events)
        })
        .await?;
        wait::moment(at.saturating_sub(last)).await;
        Ok(())
    }

    /// Asks for a rollback and waits until it is in the journal. rollbackctl goes on watching it.
    pub async fn begin(&mut self, to: Version) -> Result<Swing> {
        let (leader, effects, asked) = self.before_beginning().await?;
        let mut running = self.fleet.ctl.start(&rollback_to(to.name()), false)?;
        let is_created = |line: &str| line.split_whitespace().any(|word| word == "created");
        running.until_line("created", BEGINS_WITHIN, is_created).await?;
        self.swing(to, leader, effects, asked, Some(running))
    }

    /// As [`Ground::begin`], and nobody watches it until its end, which is seen in the journal. A coordinator that is
    /// stopped answers as little as a network that swallows everything, and rollbackctl notices that after seconds only.
    pub async fn begin_unwatched(&mut self, to: Version) -> Result<Swing> {
        let (leader, effects, asked) = self.before_beginning().await?;
        let args = [&rollback_to(to.name())[..], &["--detach"]].concat();
        self.fleet.ctl.run(&args).await?.expect_code(7)?;
        self.swing(to, leader, effects, asked, None)
    }

    async fn before_beginning(&self) -> Result<(Leading, Effects, Duration)> {
        // Planned from what all agents say, by the one that leads then.
        self.fleet.wait_all_ready().await?;
        self.fleet.wait_connected(&HOSTS).await?;
        let leader = self.fleet.leader().await.context("somebody leads")?;
        let effects = Effects::watch(&self.fleet.zekka.hosts, &self.fleet.nginx, Some(&self.fleet.postgres))?;
        Ok((leader, effects, now()))
    }

    fn swing(
        &self,
        to: Version,
        leader: Leading,
        effects: Effects,
        asked: Duration,
        watching: Option<Running>,
    ) -> Result<Swing> {
        let acts = self.fleet.store_server()?.recorder().acts_since(asked)?;
        let first = acts.first().context("a rollback that was created has an event")?;
        Ok(Swing {
            to,
            leader,
            began: first.at,
            id: first.rollback_id.clone(),
            watching,
            effects,
        })
    }

    /// Waits until the last event of the rollback that began then is in the journal.
    pub async fn wait_ended(&self, began: Duration) -> Result<()> {
        wait::until_true("the rollback's end is in the journal", ENDS_WITHIN, async || {
            wait::moment(BETWEEN_LOOKS).await;
            self.acts(began)
                .is_ok_and(|acts| acts.iter().any(|act| act.kind == "ended"))
        })
        .await
    }

    /// Waits until somebody else leads, by what the store says. (A coordinator that is stopped keeps those waiting who ask
    /// all of them.)
    pub async fn wait_taken_over(&self, from: &Leading, within: Duration) -> Result<Leading> {
        wait::until("another coordinator takes over", within, async || {
            wait::moment(BETWEEN_LOOKS).await;
            let lease = self
                .fleet
                .store_server()
                .ok()?
                .recorder()
                .lease_from(from.epoch + 1)
                .ok()?;
            lease.map(|(epoch, name, _)| Leading { name, epoch })
        })
        .await
    }

    fn acts(&self, began: Duration) -> Result<Vec<Act>> {
        let before = began.saturating_sub(Duration::from_micros(1));
        self.fleet.store_server()?.recorder().acts_since(before)
    }

    async fn watch_to_its_end(&self, swing: Swing) -> Result<(Answer, Vec<Act>, Tally)> {
        let answer = match swing.watching {
            Some(running) => running.answer().await?,
            None => {
                self.wait_ended(swing.began).await?;
                let args = ["rollback", "watch", &swing.id, "-o", "json"];
                self.fleet.ctl.run(&args).await?
            }
        };
        let effects = swing.effects.tally(Some(&self.fleet.postgres))?;
        Ok((answer, self.acts(swing.began)?, effects))
    }

    /// Waits for the end. It is verified, the release runs everywhere, everything took effect that has to, and nobody
    /// wrote into the journal who did not lead.
    pub async fn end(&self, swing: Swing) -> Result<Swung> {
        let to = swing.to;
        let (answer, acts, effects) = self.watch_to_its_end(swing).await?;
        expect_verified(&answer)?;
        expect_running(self.fleet, to)?;
        let expected = &self.undisturbed[&to].effects;
        expect_nothing("these effects were not there", &missing(expected, &effects))?;
        Ok(Swung {
            answer,
            acts,
            duplicates: duplicates(expected, &effects),
        })
    }
}

fn expect_verified(answer: &Answer) -> Result<()> {
    let result = answer.clone().expect_code(0)?.json()?;
    ensure!(result["state"] == "verified", "the rollback ended {}", result["state"]);
    Ok(())
}

/// What was appended by others than the leader that something happened to, afterwards.
pub fn by_successors<'a>(acts: &'a [Act], before: &Leading, since: Duration) -> Vec<&'a Act> {
    let theirs = |act: &&Act| act.epoch > before.epoch && act.at > since;
    acts.iter().filter(theirs).collect()
}

/// Where a rollback was at a moment: the phase that began last before it, or that it had ended.
pub fn phase_at(acts: &[Act], moment: Duration) -> String {
    let seen = acts.iter().take_while(|act| act.at <= moment);
    let last = seen
        .filter(|act| act.kind == "phase_started" || act.kind == "ended")
        .last();
    match last {
        None => "before the first".to_owned(),
        Some(act) if act.kind == "ended" => "after the end".to_owned(),
        Some(act) => act.phase.clone(),
    }
}

/// Moments of a rollback, as parts of the time that it takes: one in each of so many equal parts, in any order.
#[derive(Debug)]
pub struct Dice {
    pub seed: u64,
    random: StdRng,
}

impl Dice {
    /// With this seed the same moments are drawn again.
    pub fn new(seed: Option<u64>) -> Self {
        // As JSON has it: every reader can hold 53 bits.
        let seed = seed.unwrap_or_else(|| rand::random::<u64>() >> 11);
        Self {
            seed,
            random: StdRng::seed_from_u64(seed),
        }
    }

    pub fn moments(&mut self, rounds: usize) -> Vec<f64> {
        let mut slots: Vec<usize> = (0..rounds).collect();
        slots.shuffle(&mut self.random);
        let all = f64::from(u32::try_from(rounds.max(1)).unwrap_or(u32::MAX));
        let moment = |slot: usize, within: f64| (f64::from(u32::try_from(slot).unwrap_or(u32::MAX)) + within) / all;
        slots
            .into_iter()
            .map(|slot| moment(slot, self.random.random_range(0.0..1.0)))
            .collect()
    }

    pub fn flip(&mut self) -> bool {
        self.random.random_bool(0.5)
    }

    pub fn part_of(&mut self, length: Duration) -> Duration {
        length.mul_f64(self.random.random_range(0.0..1.0))
    }
}

/// p50 and the largest, in milliseconds.
pub fn p50_and_max(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort_unstable();
    let at = |n: usize| times.get(n).map_or(0, Duration::as_millis);
    (at(times.len().saturating_sub(1) / 2), at(times.len().saturating_sub(1)))
}

/// Which way a round goes.
pub fn to_of_round(round: usize) -> Version {
    if round.is_multiple_of(2) { OLD } else { NEW }
}
