//! What a seed means: a fleet, how its parts behave, and what is done to it when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rollback_agent::driver::DriverInfo;
use rollback_coordinator::config::LeadershipConfig;
use rollback_coordinator::store::{AgentRecord, ComponentRecord};
use rollback_engine::event::{AbortThen, Act};
use rollback_engine::ids::Target;
use rollback_engine::release::{Action, Release, ReleaseEntry, Revision, Role};
use rollback_proto::v1;

use crate::driver::capabilities;
use crate::faults::{Fault, Harm, Kind, Whom};
use crate::recorder::Deed;

/// The release that the fleet goes back to.
pub const RELEASE: &str = "v2.9.0";
const LIVE: &str = "v3.0.0";
/// Where agents and coordinators listen.
pub const PORT: u16 = 7443;

/// A safeguard that is taken away, to see that the judge notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Broken {
    /// The store takes appends of leaders that were replaced.
    Unfenced,
    /// An agent that crashes has forgotten every step.
    Forgetful,
    /// Agents take the word of leaders that were replaced.
    Obedient,
    /// Agents say that they have done and seen whatever they were asked for, and do nothing.
    Lying,
}

/// Everything that a run is made of.
#[derive(Debug)]
pub struct Seed {
    pub number: u64,
    pub fleet: Fleet,
    pub temper: Temper,
    /// In order of time.
    pub harm: Vec<Harm>,
    /// Harm begins before, and is over by then or some seconds later.
    pub calm: Duration,
    /// What the first operator does to the rollback while it runs.
    pub hands: Vec<Hand>,
    /// Whether a failure waits for an operator.
    pub pauses_on_failure: bool,
}

/// An act, so long after the one before.
#[derive(Clone, Debug)]
pub struct Hand {
    pub pause: Duration,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub struct Component {
    pub target: Target,
    pub role: Role,
    pub live: Revision,
    pub release: Revision,
    pub reads: BTreeSet<String>,
    /// "host/component", of a proxy.
    pub backends: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub struct Coordinator {
    pub name: String,
    pub timing: LeadershipConfig,
}

#[derive(Clone, Debug)]
pub struct Fleet {
    pub coordinators: Vec<Coordinator>,
    pub hosts: BTreeMap<String, Vec<Component>>,
    pub runbook: &'static str,
    /// So many operators ask for the same thing.
    pub operators: usize,
}

/// How the parts behave by themselves.
#[derive(Clone, Debug, Default)]
pub struct Temper {
    /// Longest ordinary move, in milliseconds.
    pub pace: u64,
    /// Shares of all moves.
    pub slow_moves: f64,
    pub tears: f64,
    /// Moves that fail, whenever they are asked for.
    pub failing: Vec<(Target, v1::Action, bool)>,
    /// Of all writes of ledgers: the agent dies just before or after it.
    pub ledger_crashes: f64,
    /// Of all writes of ledgers: they are refused, or their answer is lost.
    pub ledger_faults: f64,
    /// Longest ordinary way through the network.
    pub latency: Duration,
}

impl Temper {
    pub fn fails(&self, deed: &Deed) -> bool {
        let names = |(target, action, undo): &(Target, v1::Action, bool)| {
            *target == deed.target && *action == deed.action && *undo == deed.undo
        };
        self.failing.iter().any(names)
    }
}

impl Component {
    fn new(host: &str, name: &str, role: Role) -> Self {
        let revision = |version: &str| Revision {
            version: version.to_owned(),
            digest: format!("sha256:{}{}", name, version.replace(['v', '.'], "")).into(),
        };
        Self {
            target: Target::new(host, name),
            role,
            live: revision(LIVE),
            release: revision(RELEASE),
            reads: BTreeSet::new(),
            backends: BTreeSet::new(),
        }
    }

    pub fn pausable(&self) -> bool {
        matches!(self.role, Role::App | Role::Proxy)
    }

    pub fn info(&self) -> DriverInfo {
        let upstream = (!self.backends.is_empty()).then(|| self.backends.clone());
        DriverInfo {
            kind: "simulated",
            role: match self.role {
                Role::Database => v1::Role::Database,
                Role::Config => v1::Role::Config,
                Role::App => v1::Role::App,
                Role::Proxy => v1::Role::Proxy,
            },
            capabilities: capabilities(self.role),
            reads: self.reads.clone(),
            backends: upstream.into_iter().collect(),
            restores: false,
        }
    }

    fn record(&self) -> ComponentRecord {
        let can = capabilities(self.role);
        let name = |action: Action| format!("ACTION_{}", action.as_str().to_ascii_uppercase());
        let backends: BTreeSet<Target> = self
            .backends
            .iter()
            .filter_map(|b| b.split_once('/'))
            .map(|(h, c)| Target::new(h, c))
            .collect();
        ComponentRecord {
            name: self.target.component.0.clone(),
            kind: "simulated".to_owned(),
            role: self.role,
            capabilities: Action::ALL
                .into_iter()
                .filter(|action| can.iter().any(|c| c.as_str_name() == name(*action)))
                .collect(),
            reads: self.reads.clone(),
            backends: (!backends.is_empty()).then_some(backends).into_iter().collect(),
            restores: false,
        }
    }
}

impl Fleet {
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.hosts.values().flatten()
    }

    pub fn release(&self) -> Release {
        let entry = |c: &Component| ReleaseEntry {
            target: c.target.clone(),
            role: c.role,
            revision: c.release.clone(),
            summary: String::new(),
        };
        Release {
            name: RELEASE.into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: Timestamp::UNIX_EPOCH,
            recorded_by: "simulation".to_owned(),
            entries: self.components().map(entry).collect(),
            stable: true,
            ranks_at: None,
            mark: None,
        }
    }

    /// As if every agent had registered.
    pub fn agents(&self) -> impl Iterator<Item = AgentRecord> {
        self.hosts.iter().map(|(host, components)| AgentRecord {
            name: host.clone(),
            address: format!("{host}:{PORT}"),
            version: "0.0.0".to_owned(),
            // As the ledger in memory names its first one.
            ledger_generation: format!("{host}.0"),
            components: components.iter().map(Component::record).collect(),
            labels: BTreeMap::new(),
            registered_at: Timestamp::UNIX_EPOCH,
            certificate_expires: Timestamp::MAX,
        })
    }

    fn draw(dice: &mut StdRng) -> Self {
        let mut hosts: BTreeMap<String, Vec<Component>> = BTreeMap::new();
        let apps = dice.random_range(2..=4);
        let with_config = dice.random_bool(0.5);
        for n in 1..=apps {
            let host = format!("app-{n}");
            let mut api = Component::new(&host, "api", Role::App);
            let mut components = Vec::new();
            if with_config && dice.random_bool(0.6) {
                api.reads.insert("env".to_owned());
                components.push(Component::new(&host, "env", Role::Config));
            }
            components.insert(0, api);
            hosts.insert(host, components);
        }
        if dice.random_bool(0.3) {
            hosts.insert("db-1".to_owned(), vec![Component::new("db-1", "db", Role::Database)]);
        }
        if dice.random_bool(0.5) {
            let mut proxy = Component::new("proxy-1", "site", Role::Proxy);
            if dice.random_bool(0.6) {
                proxy.backends = (1..=apps).map(|n| format!("app-{n}/api")).collect();
            }
            hosts.insert("proxy-1".to_owned(), vec![proxy]);
        }
        let coordinators = (1..=dice.random_range(2..=3)).map(|n| Coordinator {
            name: format!("coordinator-{n}"),
            timing: LeadershipConfig::default(),
        });
        Self {
            coordinators: coordinators.collect(),
            hosts,
            runbook: if dice.random_bool(0.8) { "default" } else { "emergency" },
            operators: if dice.random_bool(0.25) { 2 } else { 1 },
        }
    }
}

impl Seed {
    pub fn draw(number: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(number);
        let dice = &mut dice;
        let mut fleet = Fleet::draw(dice);
        // A replica whose clock stands still does not notice that its time is over; only the fences are left.
        if dice.random_bool(0.5) {
            let stuck = dice.random_range(0..fleet.coordinators.len());
            fleet.coordinators[stuck].timing.step_down = Duration::from_secs(3600);
        }
        let temper = Temper::draw(dice, &fleet);
        let mut calm = Duration::from_millis(dice.random_range(8_000..35_000));
        let mut harm = draw_harm(dice, calm);
        // The hardest of all: a leader whose requests are still on their way when another one has taken over.
        if dice.random_bool(0.3) {
            let stranded = strand(dice);
            calm = calm.max(stranded.until);
            harm.push(stranded);
        }
        harm.sort_by_key(|h| h.at);
        // Drawn last, so that the rest of a seed is what it was before operators had hands.
        let steered = dice.random_bool(0.5);
        let hands = if steered { draw_hands(dice) } else { Vec::new() };
        Self {
            number,
            fleet,
            temper,
            harm,
            calm,
            hands,
            pauses_on_failure: steered && dice.random_bool(0.5),
        }
    }
}

impl Temper {
    fn draw(dice: &mut StdRng, fleet: &Fleet) -> Self {
        let components: Vec<&Component> = fleet.components().collect();
        let mut failing = Vec::new();
        if dice.random_bool(0.25) {
            use v1::Action::{Prepare, Stage, Start, Switch, Verify};
            let actions = [Prepare, Stage, Switch, Start, Verify];
            if let (Some(component), Some(action)) = (components.choose(dice), actions.choose(dice)) {
                failing.push((component.target.clone(), *action, false));
                // The way back fails, too.
                if dice.random_bool(0.15) {
                    failing.push((component.target.clone(), Switch, true));
                }
            }
        }
        let pace = dice.random_range(100..2500);
        let mut rarely = |share: f64, much: Range<f64>| {
            if dice.random_bool(share) {
                dice.random_range(much)
            } else {
                0.0
            }
        };
        Self {
            pace,
            slow_moves: rarely(0.7, 0.02..0.3),
            tears: rarely(0.15, 0.1..0.6),
            ledger_crashes: rarely(0.35, 0.01..0.15),
            ledger_faults: rarely(0.25, 0.01..0.1),
            failing,
            latency: Duration::from_millis(dice.random_range(5..60)),
        }
    }
}

/// Some kinds of harm, many times, rather than all kinds a little.
fn draw_harm(dice: &mut StdRng, calm: Duration) -> Vec<Harm> {
    let mut kinds = Kind::ALL.to_vec();
    kinds.shuffle(dice);
    kinds.truncate(dice.random_range(1..=5));
    let count = dice.random_range(0..=14);
    (0..count)
        .filter_map(|_| {
            let kind = kinds.choose(dice)?;
            let latest = calm.as_millis() as u64;
            let at = dice.random_range(500..latest.saturating_sub(500));
            let length = dice.random_range(kind.lasts());
            Some(Harm {
                at: Duration::from_millis(at),
                until: Duration::from_millis((at + length).min(latest)),
                fault: Fault::draw(*kind, dice),
            })
        })
        .collect()
}

/// Mostly pauses: what follows a pause is what can go wrong.
fn draw_hands(dice: &mut StdRng) -> Vec<Hand> {
    let one = |dice: &mut StdRng| Hand {
        pause: Duration::from_millis(dice.random_range(0..5_000)),
        act: match dice.random_range(0..20) {
            0..9 => Act::Pause,
            9..14 => Act::Resume,
            14..16 => Act::Retry { hosts: BTreeSet::new() },
            16 => Act::Skip { hosts: BTreeSet::new() },
            17..19 => Act::Abort { then: AbortThen::Undo },
            _ => Act::Abort { then: AbortThen::Hold },
        },
    };
    (0..dice.random_range(1..=5)).map(|_| one(dice)).collect()
}

fn strand(dice: &mut StdRng) -> Harm {
    let at = dice.random_range(800..6000);
    let length = dice.random_range(Kind::Strand.lasts());
    let (open, blind) = (dice.random_range(50..1500), dice.random_range(0..3000));
    Harm {
        at: Duration::from_millis(at),
        until: Duration::from_millis(at + length),
        fault: Fault::Strand(Whom::Leader, Duration::from_millis(open), Duration::from_millis(blind)),
    }
}
