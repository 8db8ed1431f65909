//! The agents: as they registered, whether they live, and a warm connection to each.
//!
//! Each agent has a task of its own that dials it as soon as it is known and keeps dialling until it answers, so that no
//! step waits for a handshake. A connection that breaks later re-dials on the next call (tonic's channel does that);
//! when the agent's address changes, the task dials the new one.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rollback_proto::jitter;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::store::{AgentRecord, Store, StoreError};

/// Pauses between attempts to dial: doubled from the first to the last, with jitter.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The state of the connection to an agent.
#[derive(Clone, Debug)]
enum Link {
    Dialling { last_error: Option<Problem> },
    Up(Channel),
}

#[derive(Debug)]
struct Entry {
    record: AgentRecord,
    /// Of the last registration or heartbeat, in this process's life.
    last_seen: Option<(Timestamp, Instant)>,
    /// Tells the dialling task that the address is another one, or that the agent just called and can be dialled.
    redial: watch::Sender<String>,
    link: watch::Receiver<Link>,
}

/// What others may know of an agent.
#[derive(Clone, Debug)]
pub struct AgentView {
    pub record: AgentRecord,
    pub last_seen: Option<Timestamp>,
    pub connected: bool,
}

#[derive(Debug)]
pub struct Inventory {
    agents: RwLock<BTreeMap<String, Entry>>,
    credentials: CredentialStore,
    heartbeat: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Inventory {
    /// With the agents that the store knows; dialling begins at once.
    pub async fn load(
        store: &dyn Store,
        credentials: CredentialStore,
        heartbeat: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let inventory = Arc::new(Self {
            agents: RwLock::new(BTreeMap::new()),
            credentials,
            heartbeat,
            tasks,
            stop,
        });
        for record in store.agents().await? {
            inventory.upsert(record, None);
        }
        Ok(inventory)
    }

    pub fn heartbeat_interval(&self) -> Duration {
        self.heartbeat
    }

    /// An agent registered. The caller has made the record durable.
    pub fn registered(&self, record: AgentRecord) {
        self.upsert(record, Some((Timestamp::now(), Instant::now())));
    }

    /// `false`: nobody of this name has registered.
    pub fn heartbeat(&self, name: &str) -> bool {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = agents.get_mut(name) else {
            return false;
        };
        entry.last_seen = Some((Timestamp::now(), Instant::now()));
        true
    }

    pub fn record(&self, name: &str) -> Option<AgentRecord> {
        self.agents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .map(|e| e.record.clone())
    }

    pub fn list(&self) -> Vec<AgentView> {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        agents.values().map(|e| self.view(e)).collect()
    }

    fn view(&self, entry: &Entry) -> AgentView {
        let fresh = entry.last_seen.is_some_and(|(_, at)| at.elapsed() < 3 * self.heartbeat);
        let up = matches!(*entry.link.borrow(), Link::Up(_));
        AgentView {
            record: entry.record.clone(),
            last_seen: entry.last_seen.map(|(t, _)| t),
            connected: up && fresh,
        }
    }

    /// A connection to the agent: at once when it is warm, else as soon as dialling succeeds, at most after `patience`.
    pub async fn channel(&self, name: &str, patience: Duration) -> Result<Channel, Problem> {
        let mut link = {
            let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
            let entry = agents.get(name).ok_or_else(|| {
                Problem::new(
                    Code::HostUnreachable,
                    format!("{name}: no agent of this name has ever registered"),
                )
            })?;
            entry.link.clone()
        };
        let up = link.wait_for(|l| matches!(l, Link::Up(_)));
        if let Ok(Ok(state)) = tokio::time::timeout(patience, up).await
            && let Link::Up(channel) = &*state
        {
            return Ok(channel.clone());
        }
        let why = match &*link.borrow() {
            Link::Dialling {
                last_error: Some(problem),
            } => problem.clone(),
            Link::Dialling { last_error: None } | Link::Up(_) => {
                Problem::new(Code::HostUnreachable, "it does not answer")
            }
        };
        Err(Problem {
            message: format!("{name}: {}", why.message),
            ..why
        })
    }

    fn upsert(&self, record: AgentRecord, last_seen: Option<(Timestamp, Instant)>) {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = agents.get_mut(&record.name) {
            // Sent also when the address is the same: an agent that just called can be dialled right now.
            entry.redial.send_replace(record.address.clone());
            entry.record = record;
            entry.last_seen = last_seen.or(entry.last_seen);
            return;
        }
        let (redial, addresses) = watch::channel(record.address.clone());
        let (link_tx, link) = watch::channel(Link::Dialling { last_error: None });
        let dial = keep_warm(record.name.clone(), addresses, link_tx, Arc::clone(&self.credentials));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = dial => {}
            }
        });
        agents.insert(
            record.name.clone(),
            Entry {
                record,
                last_seen,
                redial,
                link,
            },
        );
    }
}

async fn keep_warm(
    name: String,
    mut addresses: watch::Receiver<String>,
    link: watch::Sender<Link>,
    credentials: CredentialStore,
) {
    let mut pause = REDIAL.0;
    loop {
        let address = addresses.borrow_and_update().clone();
        let how = Connect::Mutual {
            credentials: Arc::clone(&credentials),
            expect: Expect::Agent(name.clone()),
        };
        match connect(&address, how).await {
            Ok(channel) => {
                tracing::debug!(host = name, address, "connected");
                link.send_replace(Link::Up(channel));
                pause = REDIAL.0;
                // The channel re-dials this address by itself; only another address is news.
                loop {
                    if addresses.changed().await.is_err() {
                        return;
                    }
                    if *addresses.borrow() != address {
                        break;
                    }
                }
            }
            Err(problem) => {
                tracing::debug!(host = name, address, %problem, "dial agent");
                link.send_replace(Link::Dialling {
                    last_error: Some(problem),
                });
                tokio::select! {
                    () = tokio::time::sleep(jitter::spread(pause, 0.5..=1.0)) => {}
                    changed = addresses.changed() => if changed.is_err() { return },
                }
                pause = (pause * 2).min(REDIAL.1);
            }
        }
    }
}
