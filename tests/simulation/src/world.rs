//! One run: the fleet of a seed, put together, harmed, left in peace, and watched until its rollbacks have ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rollback_agent::ledger::memory::{Fault as LedgerFault, Memory, Write};
use rollback_agent::vault::Vault;
use rollback_coordinator::issuer::CertificateAuthority;
use rollback_coordinator::replica::name_of;
use rollback_coordinator::store::memory::{MemoryDisk, MemoryStore};
use rollback_coordinator::store::{Recorded, Store as _};
use rollback_engine::ids::RollbackId;
use rollback_proto::identity::PeerRole;
use rollback_proto::jitter;
use rollback_proto::tls::{CredentialFiles, CredentialStore, Credentials, write_private};
use rollback_proto::v1::RollbackState;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::faults::{Counts, Havoc, OPERATORS};
use crate::ground::Ground;
use crate::network::TRUST_DOMAIN;
use crate::recorder::{Key, Line, Picture, Recorder, Seen};
use crate::seed::{Broken, Seed};
use crate::store::{Link, Links, Server};
use crate::{agent, coordinator, operator};

/// How much time passes for a host before it is the next one's turn.
const TICK: Duration = Duration::from_millis(25);
/// Everything has to have ended so long after the last harm.
const BOUND: Duration = Duration::from_secs(300);
/// After the end it is watched for so long whether anything happens that should not.
const AFTERMATH: Duration = Duration::from_secs(5);
/// Between the end of a process and the start of the next one.
const RESTART: Duration = Duration::from_millis(500);

/// What the parts of the simulation share, and what survives their crashes.
#[derive(Debug)]
pub struct World {
    pub seed: Seed,
    pub broken: Option<Broken>,
    pub recorder: Recorder,
    pub ground: Ground,
    pub vault: Arc<Vault>,
    pub credentials: CredentialStore,
    links: Links,
    ledgers: Mutex<BTreeMap<String, Memory>>,
    stops: Mutex<BTreeMap<String, CancellationToken>>,
    told: Mutex<BTreeMap<String, RollbackState>>,
    incarnations: AtomicU64,
    /// By coordinator: more than zero while what it asks of agents is on its way and does not arrive.
    held_up: BTreeMap<String, watch::Sender<i32>>,
}

/// What is left of a run, for the judge.
#[derive(Debug)]
pub struct Aftermath {
    pub lines: Vec<Line>,
    pub journals: Vec<(RollbackId, Vec<Recorded>)>,
    /// The fleet at the end.
    pub picture: Picture,
    /// How operators were told that their rollbacks ended.
    pub told: BTreeMap<String, RollbackState>,
    pub operators: usize,
    pub counts: Counts,
    pub took: Duration,
    /// Nothing ran any more when it ended.
    pub settled: bool,
    pub seed: Seed,
}

/// What is made before a run, because making it has nothing to do with the seed.
#[derive(Debug)]
pub struct Scenery {
    vault: Arc<Vault>,
    credentials: CredentialStore,
    #[expect(dead_code, reason = "removed when this is dropped")]
    directory: TempDir,
}

impl Scenery {
    pub fn make() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("make a directory")?;
        let vault = Vault::open(directory.path().join("vault")).context("open the vault")?;
        // Nobody is shown them; the API wants to have some.
        let (ca, _) = CertificateAuthority::create(TRUST_DOMAIN)?;
        let issued = ca.issue(PeerRole::Coordinator, "coordinator", Duration::from_secs(3600))?;
        let file = |name: &str, content: &str| -> anyhow::Result<PathBuf> {
            let path = directory.path().join(name);
            write_private(&path, content.as_bytes()).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let files = CredentialFiles {
            ca: file("ca.pem", ca.ca_pem())?,
            certificate: file("server.pem", &issued.certificate_pem)?,
            key: file("server.key", &issued.key_pem)?,
        };
        Ok(Self {
            vault: Arc::new(vault),
            credentials: Credentials::load_store(&files).context("load credentials")?,
            directory,
        })
    }
}

impl World {
    fn new(
        seed: Seed,
        broken: Option<Broken>,
        scenery: &Scenery,
        links: Links,
        recorder: Recorder,
        ground: Ground,
    ) -> Self {
        let coordinators = seed.fleet.coordinators.iter();
        let held_up = coordinators.map(|c| (c.name.clone(), watch::Sender::new(0))).collect();
        let world = Self {
            seed,
            broken,
            recorder,
            ground,
            vault: Arc::clone(&scenery.vault),
            credentials: Arc::clone(&scenery.credentials),
            links,
            ledgers: Mutex::default(),
            stops: Mutex::default(),
            told: Mutex::default(),
            incarnations: AtomicU64::new(0),
            held_up,
        };
        for (n, host) in world.seed.fleet.hosts.keys().enumerate() {
            let ledger = world.new_ledger(host, n as u64);
            world.ledgers().insert(host.clone(), ledger);
        }
        world
    }

    fn new_ledger(&self, host: &str, salt: u64) -> Memory {
        let ledger = Memory::new(host);
        ledger.set_latency(Duration::from_millis(1));
        let mut dice = StdRng::seed_from_u64(self.seed.number ^ (salt << 32) ^ 0x6c65_6467_6572);
        let (recorder, host, calm) = (self.recorder.clone(), host.to_owned(), self.seed.calm);
        let (crashes, faults) = (self.seed.temper.ledger_crashes, self.seed.temper.ledger_faults);
        ledger.decide(move |writes| {
            let in_peace = turmoil::sim_elapsed().is_none_or(|now| now >= calm);
            let (crash, fault) = (dice.random_bool(crashes), dice.random_bool(faults));
            let second = dice.random_bool(0.5);
            let fault = match (crash && !in_peace, fault && !in_peace) {
                (true, _) if second => LedgerFault::CrashBefore,
                (true, _) => LedgerFault::CrashAfter,
                (false, true) if second => LedgerFault::Refused,
                (false, true) => LedgerFault::Unknown,
                (false, false) => LedgerFault::None,
            };
            let durable = match fault {
                LedgerFault::None | LedgerFault::Unknown | LedgerFault::CrashAfter => true,
                LedgerFault::Refused | LedgerFault::CrashBefore => false,
            };
            for write in writes.iter().filter(|_| durable) {
                match write {
                    Write::Begin(key) => recorder.note(Seen::Intended {
                        host: host.clone(),
                        key: Key {
                            rollback: key.rollback_id.clone(),
                            step: key.step_id.clone(),
                            attempt: key.attempt,
                        },
                    }),
                    Write::Epoch(_) | Write::Finish(_) | Write::Interrupt(_) => {}
                }
            }
            fault
        });
        ledger
    }

    pub fn ledger(&self, host: &str) -> Memory {
        self.ledgers().get(host).cloned().expect("every host has a ledger")
    }

    pub fn store_link(&self, coordinator: &str) -> &Link {
        self.links
            .get(coordinator)
            .expect("every coordinator has a way to the store")
    }

    /// A process starts; it is told to stop by this.
    pub fn start(&self, coordinator: &str) -> CancellationToken {
        let stop = CancellationToken::new();
        self.stops().insert(coordinator.to_owned(), stop.clone());
        stop
    }

    /// Asks a process to stop, as a service manager does.
    pub fn retire(&self, coordinator: &str) {
        if let Some(stop) = self.stops().get(coordinator) {
            stop.cancel();
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnations.fetch_add(1, Ordering::Relaxed)
    }

    pub fn hold_requests(&self, coordinator: &str, change: i32) {
        if let Some(held_up) = self.held_up.get(coordinator) {
            held_up.send_modify(|faults| *faults += change);
        }
    }

    /// Resolves when what this leader asks arrives at agents.
    pub async fn arrives(&self, leader: &str) {
        if let Some(held_up) = self.held_up.get(name_of(leader)) {
            // The sender lives as long as `self`.
            let _ = held_up.subscribe().wait_for(|faults| *faults == 0).await;
        }
    }

    /// The host of an agent or a coordinator has died.
    pub fn died(&self, host: &str) {
        if self.broken == Some(Broken::Forgetful) && self.ledgers().contains_key(host) {
            let forgotten = self.new_ledger(host, self.incarnation() + 100);
            self.ledgers().insert(host.to_owned(), forgotten);
        }
    }

    pub fn told(&self, id: &str, state: RollbackState) {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned(), state);
    }

    pub fn latency(&self) -> Duration {
        self.seed.temper.latency
    }

    pub fn say(&self, what: String) {
        self.recorder.note(Seen::Fault { what });
    }

    fn ledgers(&self) -> MutexGuard<'_, BTreeMap<String, Memory>> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a seed. Has to be the only run of its process: see [`crate`].
pub fn run(seed: Seed, broken: Option<Broken>, scenery: &Scenery) -> anyhow::Result<Aftermath> {
    jitter::seed(seed.number);
    let recorder = Recorder::default();
    let ground = Ground::new(seed.number, &seed.fleet, seed.temper.clone(), recorder.clone());
    let store = MemoryStore::open(&MemoryDisk::with_clock(|| turmoil::sim_elapsed().unwrap_or_default()));
    let (jobs, arriving) = mpsc::unbounded_channel();
    let names = seed.fleet.coordinators.iter().map(|c| c.name.clone());
    let links: Links = names
        .map(|name| (name.clone(), Link::new(&name, jobs.clone(), recorder.clone(), broken)))
        .collect();
    fill(&store, &seed)?;
    let world = Arc::new(World::new(seed, broken, scenery, links, recorder, ground));

    let mut sim = build(&world);
    let server = Server {
        store: store.clone(),
        recorder: world.recorder.clone(),
        ground: world.ground.clone(),
    };
    sim.client("store", async move {
        server.run(arriving).await;
        Ok(())
    });
    populate(&mut sim, &world);
    let mut havoc = Havoc::new(&world.seed.fleet, world.seed.harm.clone());
    let settled = go(&mut sim, &world, &mut havoc)?;

    let took = sim.elapsed();
    let counts = havoc.counts.clone();
    drop(sim);
    drop(havoc);
    let lines = world.recorder.lines();
    let journals = journals(&store, &lines)?;
    let told = world.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let picture = world.ground.picture();
    Ok(Aftermath {
        lines,
        journals,
        picture,
        told,
        operators: world.seed.fleet.operators,
        counts,
        took,
        settled,
        seed: Seed::draw(world.seed.number),
    })
}

fn build<'a>(world: &World) -> Sim<'a> {
    turmoil::Builder::new()
        .rng_seed(world.seed.number)
        .enable_random_order()
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(24 * 3600))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(world.latency())
        .tcp_capacity(1024)
        .build()
}

fn populate(sim: &mut Sim<'_>, world: &Arc<World>) {
    for coordinator in &world.seed.fleet.coordinators {
        let (world, coordinator) = (Arc::clone(world), coordinator.clone());
        sim.host(coordinator.name.clone(), move || {
            coordinator::run(Arc::clone(&world), coordinator.clone())
        });
    }
    for host in world.seed.fleet.hosts.keys() {
        let (world, host) = (Arc::clone(world), host.clone());
        sim.host(host.clone(), move || agent::run(Arc::clone(&world), host.clone()));
    }
    for (number, name) in OPERATORS.into_iter().enumerate().take(world.seed.fleet.operators) {
        sim.client(name, operator::run(Arc::clone(world), number));
    }
}

/// Until everything has ended, or should have. `true`: it has.
fn go(sim: &mut Sim<'_>, world: &Arc<World>, havoc: &mut Havoc) -> anyhow::Result<bool> {
    let mut dice = StdRng::seed_from_u64(world.seed.number ^ 0x68_6176_6f63);
    let mut done_at: Option<Duration> = None;
    loop {
        let now = sim.elapsed();
        world.recorder.tick(now);
        havoc.tick(now, sim, world);
        sim.step()
            .map_err(|e| anyhow::anyhow!("a simulated host failed: {e}"))?;
        for host in world.seed.fleet.hosts.keys() {
            if world.ledger(host).crashed() {
                let until = now + Duration::from_millis(dice.random_range(50..4000));
                havoc.crash(host, until, sim, world);
            }
        }
        for coordinator in &world.seed.fleet.coordinators {
            if !sim.is_host_running(coordinator.name.as_str()) {
                havoc.ended(&coordinator.name, now + RESTART);
            }
        }
        let told = world.told.lock().unwrap_or_else(PoisonError::into_inner).len();
        let ended = told == world.seed.fleet.operators && world.recorder.running() == 0;
        if ended {
            havoc.relent();
        }
        let over = ended && havoc.is_over();
        match done_at {
            None if over => done_at = Some(now),
            Some(at) if now >= at + AFTERMATH => return Ok(true),
            Some(_) => {}
            None if now >= world.seed.calm + BOUND => return Ok(false),
            None => {}
        }
    }
}

/// The release, and the agents as they registered long ago.
fn fill(store: &MemoryStore, seed: &Seed) -> anyhow::Result<()> {
    let at_once = "a store without latency never waits";
    store
        .add_release(&seed.fleet.release())
        .now_or_never()
        .expect(at_once)?;
    for agent in seed.fleet.agents() {
        store.save_agent(&agent).now_or_never().expect(at_once)?;
    }
    Ok(())
}

fn journals(store: &MemoryStore, lines: &[Line]) -> anyhow::Result<Vec<(RollbackId, Vec<Recorded>)>> {
    let begun = lines.iter().filter_map(|line| match &line.seen {
        Seen::Written { rollback, first: 1, .. } => Some(rollback.clone()),
        _ => None,
    });
    begun
        .map(|id| {
            let events = store
                .events(&id, 0)
                .now_or_never()
                .expect("a store without latency never waits");
            Ok((id, events?))
        })
        .collect()
}
