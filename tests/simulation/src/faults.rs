//! What is done to a fleet: to its network, its processes, and its way to the store. Each fault begins, lasts, and ends.
//!
//! Faults overlap. What a link is then like is the worst of what is done to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rollback_coordinator::replica::name_of;
use serde::{Deserialize, Serialize};
use turmoil::Sim;

use crate::seed::Fleet;
use crate::store::Trouble;
use crate::world::World;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    CutPair,
    CutHalf,
    CutOneWay,
    HoldPair,
    Isolate,
    Slow,
    Lossy,
    CrashCoordinator,
    CrashAgent,
    HandOver,
    StoreRefuses,
    StoreMute,
    StoreSlow,
    StoreDown,
    AnswersLost,
    Freeze,
    Strand,
}

impl Kind {
    pub const ALL: [Kind; 17] = [
        Kind::CutPair,
        Kind::CutHalf,
        Kind::CutOneWay,
        Kind::HoldPair,
        Kind::Isolate,
        Kind::Slow,
        Kind::Lossy,
        Kind::CrashCoordinator,
        Kind::CrashAgent,
        Kind::HandOver,
        Kind::StoreRefuses,
        Kind::StoreMute,
        Kind::StoreSlow,
        Kind::StoreDown,
        Kind::AnswersLost,
        Kind::Freeze,
        Kind::Strand,
    ];

    /// Milliseconds.
    pub fn lasts(self) -> Range<u64> {
        match self {
            Kind::CutPair | Kind::CutHalf | Kind::CutOneWay | Kind::Isolate => 500..20_000,
            Kind::HoldPair | Kind::Slow | Kind::Lossy => 500..12_000,
            Kind::CrashCoordinator | Kind::CrashAgent | Kind::HandOver => 100..8_000,
            Kind::StoreRefuses | Kind::StoreMute | Kind::StoreSlow | Kind::StoreDown => 300..12_000,
            Kind::AnswersLost => 1..2,
            Kind::Freeze => 2_000..15_000,
            Kind::Strand => 9_000..18_000,
        }
    }
}

/// Of several of a kind, the one with this number, counted around.
pub type Nth = usize;

/// Which coordinator.
#[derive(Clone, Copy, Debug)]
pub enum Whom {
    /// The one that leads at that moment.
    Leader,
    Nth(Nth),
}

#[derive(Clone, Debug)]
pub enum Fault {
    CutPair(Whom, Nth),
    /// Half of the agents from the leader.
    CutHalf {
        odd: bool,
    },
    CutOneWay {
        whom: Whom,
        agent: Nth,
        from_agent: bool,
    },
    HoldPair(Whom, Nth),
    Isolate(Nth),
    Slow(Whom, Nth, Duration),
    Lossy(Whom, Nth, f64),
    CrashCoordinator(Whom),
    /// `power`: the host is gone at once, and nobody is told by a closed connection.
    CrashAgent {
        agent: Nth,
        power: bool,
    },
    /// The coordinator is asked to stop, and starts again.
    HandOver(Whom),
    StoreRefuses(Whom),
    StoreMute(Whom),
    StoreSlow(Whom, Duration),
    StoreDown,
    AnswersLost(Whom, u32),
    /// Everything that it sends and everything that is sent to it waits. Its way to the store is open for the first time
    /// yet, so that it goes on for a while; and closed for the second time when agents hear it again, so that it does not
    /// find out at once who leads.
    Freeze(Whom, Duration, Duration),
    /// What it asks of agents is on its way until this is over, and arrives then; it hears them, and it goes on for the
    /// first time yet, until its way to the store closes. That opens again the second time later.
    Strand(Whom, Duration, Duration),
    /// What it asks of the store waits, and so do the answers.
    StoreFrozen(Whom),
}

/// A fault with its time.
#[derive(Clone, Debug)]
pub struct Harm {
    pub at: Duration,
    pub until: Duration,
    pub fault: Fault,
}

impl Fault {
    pub fn draw(kind: Kind, dice: &mut StdRng) -> Self {
        let whom = if dice.random_bool(0.7) {
            Whom::Leader
        } else {
            Whom::Nth(dice.random_range(0..3))
        };
        let agent = dice.random_range(0..6);
        match kind {
            Kind::CutPair => Fault::CutPair(whom, agent),
            Kind::CutHalf => Fault::CutHalf {
                odd: dice.random_bool(0.5),
            },
            Kind::CutOneWay => Fault::CutOneWay {
                whom,
                agent,
                from_agent: dice.random_bool(0.5),
            },
            Kind::HoldPair => Fault::HoldPair(whom, agent),
            Kind::Isolate => Fault::Isolate(dice.random_range(0..9)),
            Kind::Slow => Fault::Slow(whom, agent, Duration::from_millis(dice.random_range(100..3000))),
            Kind::Lossy => Fault::Lossy(whom, agent, dice.random_range(0.01..0.2)),
            Kind::CrashCoordinator => Fault::CrashCoordinator(whom),
            Kind::CrashAgent => Fault::CrashAgent {
                agent,
                power: dice.random_bool(0.4),
            },
            Kind::HandOver => Fault::HandOver(whom),
            Kind::StoreRefuses => Fault::StoreRefuses(whom),
            Kind::StoreMute => Fault::StoreMute(whom),
            Kind::StoreSlow => Fault::StoreSlow(whom, Duration::from_millis(dice.random_range(50..4000))),
            Kind::StoreDown => Fault::StoreDown,
            Kind::AnswersLost => Fault::AnswersLost(whom, dice.random_range(1..4)),
            Kind::Freeze => Fault::Freeze(whom, some(dice, 0.7), some(dice, 0.5)),
            Kind::Strand => Fault::Strand(whom, some(dice, 1.0), some(dice, 0.5)),
        }
    }
}

/// A while, or none at all.
fn some(dice: &mut StdRng, share: f64) -> Duration {
    Duration::from_millis(if dice.random_bool(share) {
        dice.random_range(50..3000)
    } else {
        0
    })
}

/// What a link is like. The worst of several wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    /// Nothing of what the first host of the pair sends arrives.
    FirstMute,
    /// Nothing of what the second one sends.
    SecondMute,
    /// What is sent arrives when this is over.
    Held,
    Cut,
}

type Pair = (String, String);

fn pair(a: &str, b: &str) -> Pair {
    if a < b {
        (a.to_owned(), b.to_owned())
    } else {
        (b.to_owned(), a.to_owned())
    }
}

/// How faults add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub crashes: u64,
    pub partitions: u64,
    pub freezes: u64,
}

/// What is being done now, and what comes.
#[derive(Debug)]
pub struct Havoc {
    /// In order of time.
    coming: VecDeque<Harm>,
    now: Vec<Active>,
    links: BTreeMap<Pair, Link>,
    /// Hosts that are down, until then.
    down: BTreeMap<String, Duration>,
    coordinators: Vec<String>,
    agents: Vec<String>,
    pub counts: Counts,
}

/// A fault in force, with the names that it was drawn for.
#[derive(Debug)]
struct Active {
    until: Duration,
    links: Vec<(Pair, Link)>,
    undo: Option<Undo>,
}

#[derive(Debug)]
enum Undo {
    Latency(Pair),
    Loss(Pair),
    Store(Vec<String>, Trouble),
    Requests(String),
}

impl Havoc {
    pub fn new(fleet: &Fleet, harm: Vec<Harm>) -> Self {
        Self {
            coming: harm.into(),
            now: Vec::new(),
            links: BTreeMap::new(),
            down: BTreeMap::new(),
            coordinators: fleet.coordinators.iter().map(|c| c.name.clone()).collect(),
            agents: fleet.hosts.keys().cloned().collect(),
            counts: Counts::default(),
        }
    }

    /// Nothing is being done any more, and nothing comes.
    pub fn is_over(&self) -> bool {
        self.coming.is_empty() && self.now.is_empty() && self.down.is_empty()
    }

    /// Nothing new is begun any more.
    pub fn relent(&mut self) {
        self.coming.clear();
    }

    /// Everything that is due at this time.
    pub fn tick(&mut self, now: Duration, sim: &mut Sim<'_>, world: &World) {
        let due: Vec<String> = self
            .down
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(h, _)| h.clone())
            .collect();
        for host in due {
            self.down.remove(&host);
            world.say(format!("{host} starts again"));
            sim.bounce(host.as_str());
        }
        let mut changed = false;
        let (over, on) = std::mem::take(&mut self.now)
            .into_iter()
            .partition(|a: &Active| a.until <= now);
        self.now = on;
        for active in over {
            changed |= !active.links.is_empty();
            match active.undo {
                Some(Undo::Latency((a, b))) => {
                    sim.set_link_max_message_latency(a.as_str(), b.as_str(), world.latency())
                }
                Some(Undo::Loss((a, b))) => sim.set_link_fail_rate(a.as_str(), b.as_str(), 0.0),
                Some(Undo::Store(names, trouble)) => names.iter().for_each(|name| world.store_link(name).end(trouble)),
                Some(Undo::Requests(host)) => world.hold_requests(&host, -1),
                None => {}
            }
        }
        while let Some(harm) = self.coming.pop_front_if(|harm| harm.at <= now) {
            changed |= self.begin(harm, sim, world);
        }
        if changed {
            self.relink(sim, world);
        }
    }

    /// A process ended by itself, and is started again at that time.
    pub fn ended(&mut self, host: &str, until: Duration) {
        self.down.entry(host.to_owned()).or_insert(until);
    }

    /// The host's process dies, and is started again at that time.
    pub fn crash(&mut self, host: &str, until: Duration, sim: &mut Sim<'_>, world: &World) {
        if self.down.contains_key(host) {
            return;
        }
        self.counts.crashes += 1;
        world.say(format!("{host} dies"));
        sim.crash(host);
        world.died(host);
        self.down.insert(host.to_owned(), until);
    }

    fn whom(&self, whom: Whom, world: &World) -> String {
        let nth = |n: usize| self.coordinators[n % self.coordinators.len()].clone();
        match whom {
            Whom::Leader => world
                .recorder
                .leader()
                .map_or_else(|| nth(0), |id| name_of(&id).to_owned()),
            Whom::Nth(n) => nth(n),
        }
    }

    fn agent(&self, n: Nth) -> String {
        self.agents[n % self.agents.len()].clone()
    }

    fn everybody_else(&self, host: &str) -> Vec<String> {
        let all = self
            .coordinators
            .iter()
            .chain(&self.agents)
            .map(String::as_str)
            .chain(OPERATORS);
        all.filter(|other| *other != host)
            .filter(|o| self.exists(o))
            .map(str::to_owned)
            .collect()
    }

    fn exists(&self, host: &str) -> bool {
        // There is a second operator only in some fleets; faults leave it alone.
        host != OPERATORS[1]
    }

    fn freeze_store(&mut self, host: &str, at: Duration, until: Duration) {
        // The same one, whoever leads by then.
        let nth = self
            .coordinators
            .iter()
            .position(|name| name == host)
            .unwrap_or_default();
        let fault = Fault::StoreFrozen(Whom::Nth(nth));
        self.later(Harm { at, until, fault });
    }

    fn later(&mut self, harm: Harm) {
        let place = self.coming.partition_point(|other| other.at <= harm.at);
        self.coming.insert(place, harm);
    }

    /// Does it change what links are like?
    fn begin(&mut self, harm: Harm, sim: &mut Sim<'_>, world: &World) -> bool {
        let Harm { at, until, fault } = harm;
        let mut active = Active {
            until,
            links: Vec::new(),
            undo: None,
        };
        world.say(format!("{fault:?} until {:.3} s", until.as_secs_f64()));
        match fault {
            Fault::CutPair(whom, agent) => {
                self.counts.partitions += 1;
                active.links = vec![(pair(&self.whom(whom, world), &self.agent(agent)), Link::Cut)];
            }
            Fault::CutHalf { odd } => {
                self.counts.partitions += 1;
                let leader = self.whom(Whom::Leader, world);
                let half = self.agents.iter().enumerate().filter(|(n, _)| (n % 2 == 1) == odd);
                active.links = half.map(|(_, agent)| (pair(&leader, agent), Link::Cut)).collect();
            }
            Fault::CutOneWay {
                whom,
                agent,
                from_agent,
            } => {
                self.counts.partitions += 1;
                let (whom, agent) = (self.whom(whom, world), self.agent(agent));
                let mute = if from_agent { &agent } else { &whom };
                let pair = pair(&whom, &agent);
                let link = if *mute == pair.0 {
                    Link::FirstMute
                } else {
                    Link::SecondMute
                };
                active.links = vec![(pair, link)];
            }
            Fault::HoldPair(whom, agent) => {
                active.links = vec![(pair(&self.whom(whom, world), &self.agent(agent)), Link::Held)];
            }
            Fault::Isolate(n) => {
                self.counts.partitions += 1;
                let all: Vec<String> = self.coordinators.iter().chain(&self.agents).cloned().collect();
                let host = &all[n % all.len()];
                active.links = self
                    .everybody_else(host)
                    .iter()
                    .map(|o| (pair(host, o), Link::Cut))
                    .collect();
            }
            Fault::Slow(whom, agent, latency) => {
                let (a, b) = pair(&self.whom(whom, world), &self.agent(agent));
                sim.set_link_max_message_latency(a.as_str(), b.as_str(), latency);
                active.undo = Some(Undo::Latency((a, b)));
            }
            Fault::Lossy(whom, agent, share) => {
                let (a, b) = pair(&self.whom(whom, world), &self.agent(agent));
                sim.set_link_fail_rate(a.as_str(), b.as_str(), share);
                active.undo = Some(Undo::Loss((a, b)));
            }
            Fault::CrashCoordinator(whom) => {
                let host = self.whom(whom, world);
                self.crash(&host, until, sim, world);
                return false;
            }
            Fault::CrashAgent { agent, power } => {
                let host = self.agent(agent);
                if power {
                    // What the kernel of a host that is gone does not send.
                    for other in self.everybody_else(&host) {
                        sim.partition(host.as_str(), other.as_str());
                    }
                    self.links
                        .extend(self.everybody_else(&host).iter().map(|o| (pair(&host, o), Link::Cut)));
                }
                self.crash(&host, until, sim, world);
                return power;
            }
            Fault::HandOver(whom) => {
                world.retire(&self.whom(whom, world));
                return false;
            }
            Fault::StoreRefuses(whom) => self.store(&mut active, vec![self.whom(whom, world)], Trouble::Refuses, world),
            Fault::StoreMute(whom) => self.store(&mut active, vec![self.whom(whom, world)], Trouble::Mute, world),
            Fault::StoreSlow(whom, by) => {
                self.store(&mut active, vec![self.whom(whom, world)], Trouble::Slow(by), world)
            }
            Fault::StoreDown => self.store(&mut active, self.coordinators.clone(), Trouble::Refuses, world),
            Fault::AnswersLost(whom, count) => {
                world.store_link(&self.whom(whom, world)).lose_answers(count);
                return false;
            }
            Fault::Freeze(whom, open, blind) => {
                self.counts.freezes += 1;
                let host = self.whom(whom, world);
                active.links = self
                    .everybody_else(&host)
                    .iter()
                    .map(|o| (pair(&host, o), Link::Held))
                    .collect();
                self.freeze_store(&host, at + open, until + blind);
            }
            Fault::Strand(whom, open, blind) => {
                self.counts.freezes += 1;
                let host = self.whom(whom, world);
                world.hold_requests(&host, 1);
                self.freeze_store(&host, at + open, until + blind);
                active.undo = Some(Undo::Requests(host));
            }
            Fault::StoreFrozen(whom) => self.store(&mut active, vec![self.whom(whom, world)], Trouble::Frozen, world),
        }
        let changed = !active.links.is_empty();
        self.now.push(active);
        changed
    }

    fn store(&self, active: &mut Active, names: Vec<String>, trouble: Trouble, world: &World) {
        names.iter().for_each(|name| world.store_link(name).begin(trouble));
        active.undo = Some(Undo::Store(names, trouble));
    }

    /// Makes the links what they are to be now.
    fn relink(&mut self, sim: &Sim<'_>, _world: &World) {
        let mut wanted: BTreeMap<Pair, Link> = BTreeMap::new();
        for (pair, link) in self.now.iter().flat_map(|active| &active.links) {
            let worst = wanted.entry(pair.clone()).or_insert(*link);
            *worst = (*worst).max(*link);
        }
        let pairs: BTreeSet<Pair> = wanted.keys().chain(self.links.keys()).cloned().collect();
        for pair in pairs {
            let (was, will) = (self.links.get(&pair), wanted.get(&pair));
            if was == will {
                continue;
            }
            let (a, b) = (pair.0.as_str(), pair.1.as_str());
            // Whatever was held arrives now, or is lost with the cut.
            sim.release(a, b);
            match will {
                None => {}
                Some(Link::Held) => sim.hold(a, b),
                Some(Link::Cut) => sim.partition(a, b),
                Some(Link::FirstMute) => sim.partition_oneway(a, b),
                Some(Link::SecondMute) => sim.partition_oneway(b, a),
            }
        }
        self.links = wanted;
    }
}

/// Hosts of operators.
pub const OPERATORS: [&str; 2] = ["operator-1", "operator-2"];
