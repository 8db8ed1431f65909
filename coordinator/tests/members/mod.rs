//! Replicas over one store in memory, on a clock that only the tests move. There are no agents: a step that is begun runs
//! until its time is over.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rollback_coordinator::config::LeadershipConfig;
use rollback_coordinator::inventory::{Dial, Inventory};
use rollback_coordinator::metrics::Metrics;
use rollback_coordinator::replica::{Parts, Replica};
use rollback_coordinator::store::Candidate;
use rollback_coordinator::store::memory::{MemoryDisk, MemoryStore};
use rollback_engine::event::Event;
use rollback_engine::ids::Epoch;
use rollback_engine::plan::Plan;
use rollback_proto::problem::{Code, Problem};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

/// There are no agents here.
#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Dial for Nobody {
    async fn dial(&self, name: &str, _address: &str) -> Result<Channel, Problem> {
        Err(Problem::new(Code::HostUnreachable, name))
    }
}

pub struct Member {
    pub store: MemoryStore,
    pub replica: Replica,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

pub async fn member(disk: &Arc<MemoryDisk>, name: &str) -> Member {
    let store = MemoryStore::open(disk);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let heartbeat = Duration::from_secs(5);
    let inventory = Inventory::load(&store, Arc::new(Nobody), heartbeat, tasks.clone(), stop.clone())
        .await
        .expect("inventory");
    let replica = Replica::new(Parts {
        store: Arc::new(store.clone()),
        inventory,
        candidate: Candidate {
            id: format!("{name}/1"),
            endpoint: format!("{name}.example:7443"),
        },
        timing: LeadershipConfig::default(),
        tracer: None,
        metrics: Arc::new(Metrics::default()),
        stop: stop.clone(),
    });
    let running = replica.clone();
    tasks.spawn(async move { running.run().await });
    replica.settled().await;
    Member {
        store,
        replica,
        stop,
        tasks,
    }
}

/// Until the replica leads; how long that took. Never more than a minute of the tests' clock.
pub async fn until_leading(member: &Member) -> Duration {
    let begun = Instant::now();
    while member.replica.leader().is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "nobody leads: {:?}",
            member.replica.standing()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

pub fn epoch(member: &Member) -> Epoch {
    member.replica.leader().expect("leads").shared().term.epoch()
}

pub fn created() -> Event {
    const JOURNAL: &str = include_str!("../../engine/tests/journals/v1-demo.jsonl");
    serde_json::from_str(JOURNAL.lines().next().expect("a line")).expect("an event")
}

pub fn demo() -> Plan {
    match created() {
        Event::Created { plan, .. } => *plan,
        other => panic!("a journal begins otherwise: {other:?}"),
    }
}
