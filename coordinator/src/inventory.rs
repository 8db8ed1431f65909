//! The agents: as they registered, whether they live, and a warm connection to each.
//!
//! Each agent has a task of its own that dials it as soon as it is known, keeps dialling until it answers, and asks now and
//! then whether it still does, so that no step waits for a handshake. Replicas that follow do the same: what they would
//! need as leaders is warm before they are. When the agent's address changes, the task dials the new one.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_proto::jitter;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use rollback_proto::v1::DescribeRequest;
use rollback_proto::v1::agent_client::AgentClient;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::store::{AgentRecord, Store, StoreError};

/// Pauses between attempts to dial: doubled from the first to the last, with jitter.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a warm connection is asked whether it still is one, and for how long.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How agents are dialled. Simulations have a network of their own.
#[async_trait]
pub trait Dial: Send + Sync + std::fmt::Debug {
    /// A connection to the agent of this name at this host:port; it re-dials by itself when it breaks.
    async fn dial(&self, name: &str, address: &str) -> Result<Channel, Problem>;
}

/// Over mutual TLS: whoever answers must be the agent of that name.
#[derive(Debug)]
pub struct MutualTls(pub CredentialStore);

#[async_trait]
impl Dial for MutualTls {
    async fn dial(&self, name: &str, address: &str) -> Result<Channel, Problem> {
        let how = Connect::Mutual {
            credentials: Arc::clone(&self.0),
            expect: Expect::Agent(name.to_owned()),
        };
        connect(address, how).await
    }
}

/// The state of the connection to an agent.
#[derive(Clone, Debug)]
enum Link {
    Dialling { last_error: Option<Problem> },
    Up(Channel),
}

#[derive(Debug)]
struct Entry {
    record: AgentRecord,
    /// Of the last registration or heartbeat that this process heard.
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
    /// Since when agents say to this replica that they live; `None`: they say so to another one.
    heard_since: RwLock<Option<Instant>>,
    dial: Arc<dyn Dial>,
    heartbeat: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Inventory {
    /// With the agents that the store knows; dialling begins at once.
    pub async fn load(
        store: &dyn Store,
        dial: Arc<dyn Dial>,
        heartbeat: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let inventory = Arc::new(Self {
            agents: RwLock::new(BTreeMap::new()),
            heard_since: RwLock::new(None),
            dial,
            heartbeat,
            tasks,
            stop,
        });
        inventory.refresh(store).await?;
        Ok(inventory)
    }

    /// Takes in what other replicas have written of agents since.
    pub async fn refresh(&self, store: &dyn Store) -> Result<(), StoreError> {
        let asked = Instant::now();
        for record in store.agents().await? {
            // Who registered here while the store answered is known better than by that answer.
            if self.record(&record.name).as_ref() != Some(&record) && !self.heard_of_since(&record.name, asked) {
                self.upsert(record, None);
            }
        }
        Ok(())
    }

    fn heard_of_since(&self, name: &str, since: Instant) -> bool {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let heard = agents.get(name).and_then(|entry| entry.last_seen);
        heard.is_some_and(|(_, at)| at >= since)
    }

    /// From now on agents say to this replica that they live, or to another one. Who says nothing at all to a new leader
    /// is missed only when it has had the time to find it.
    pub fn hears_agents(&self, heard: bool) {
        *self.heard_since.write().unwrap_or_else(PoisonError::into_inner) = heard.then(Instant::now);
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

    /// Can it be asked for something right now?
    pub fn is_connected(&self, name: &str) -> bool {
        let heard_since = *self.heard_since.read().unwrap_or_else(PoisonError::into_inner);
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        agents.get(name).is_some_and(|entry| self.is_up(entry, heard_since))
    }

    pub fn list(&self) -> Vec<AgentView> {
        let heard_since = *self.heard_since.read().unwrap_or_else(PoisonError::into_inner);
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        agents.values().map(|e| self.view(e, heard_since)).collect()
    }

    fn is_up(&self, entry: &Entry, heard_since: Option<Instant>) -> bool {
        let recent = |at: Instant| at.elapsed() < 3 * self.heartbeat;
        let fresh = heard_since.is_none_or(recent) || entry.last_seen.is_some_and(|(_, at)| recent(at));
        fresh && matches!(*entry.link.borrow(), Link::Up(_))
    }

    fn view(&self, entry: &Entry, heard_since: Option<Instant>) -> AgentView {
        AgentView {
            record: entry.record.clone(),
            last_seen: entry.last_seen.map(|(t, _)| t),
            connected: self.is_up(entry, heard_since),
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
        let dial = keep_warm(record.name.clone(), addresses, link_tx, Arc::clone(&self.dial));
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
    dial: Arc<dyn Dial>,
) {
    let mut pause = REDIAL.0;
    loop {
        let address = addresses.borrow_and_update().clone();
        let problem = match dial.dial(&name, &address).await {
            Ok(channel) => {
                tracing::debug!(host = name, address, "connected");
                link.send_replace(Link::Up(channel.clone()));
                pause = REDIAL.0;
                match watch_over(&name, &address, &mut addresses, channel).await {
                    Over::Moved => continue,
                    Over::Gone => return,
                    Over::Broken(problem) => problem,
                }
            }
            Err(problem) => problem,
        };
        tracing::debug!(host = name, address, %problem, "no connection to the agent");
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

/// Why a connection is watched no longer.
enum Over {
    /// The agent has another address.
    Moved,
    /// It does not answer.
    Broken(Problem),
    /// The inventory is.
    Gone,
}

async fn watch_over(name: &str, address: &str, addresses: &mut watch::Receiver<String>, channel: Channel) -> Over {
    let mut client = AgentClient::new(channel);
    loop {
        tokio::select! {
            changed = addresses.changed() => {
                if changed.is_err() {
                    return Over::Gone;
                }
                if *addresses.borrow_and_update() != address {
                    return Over::Moved;
                }
            }
            () = tokio::time::sleep(jitter::spread(ASK_AGAIN, 0.5..=1.0)) => {}
        }
        // The channel re-dials by itself when it is asked; this has it done before somebody needs it, and finds out when
        // it cannot be done.
        let broken = match tokio::time::timeout(ANSWER_WITHIN, client.describe(DescribeRequest {})).await {
            Ok(Ok(_)) => continue,
            Ok(Err(status)) => Problem::from_status(&status),
            Err(_) => Problem::new(
                Code::HostUnreachable,
                format!("{name} did not answer within {ANSWER_WITHIN:?}"),
            ),
        };
        return Over::Broken(broken);
    }
}
