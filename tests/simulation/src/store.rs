//! The store as it is reached over a network: a server with a clock of its own, and a way to it for each replica.
//!
//! What a replica asked for is done when it arrives, whether or not the replica still lives or still listens. What is
//! written is noted at that moment, so that the judge needs to believe nobody.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_coordinator::store::memory::MemoryStore;
use rollback_coordinator::store::{
    AgentRecord, Campaign, Candidate, Closing, Created, Document, DocumentKind, Fence, Lease, NewRollback, NewToken,
    Recorded, Store, StoreError,
};
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use rollback_proto::jitter;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ground::Ground;
use crate::recorder::{Recorder, Seen};
use crate::seed::Broken;

/// As a client of a database gives up waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// To the store and back again, each, more or less.
const WAY: Duration = Duration::from_millis(2);

/// What is wrong with a replica's way to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing arrives, and that is said at once.
    Refuses,
    /// Everything arrives; no answer comes back.
    Mute,
    Slow(Duration),
    /// Everything waits until this is over, what is asked and what was answered.
    Frozen,
}

type Done = Pin<Box<dyn Future<Output = ()> + Send>>;
type Work = Box<dyn FnOnce(Server) -> Done + Send>;

/// The store's side: runs what arrives, on the store's host, which never fails.
#[derive(Clone, Debug)]
pub struct Server {
    pub store: MemoryStore,
    pub recorder: Recorder,
    pub ground: Ground,
}

impl Server {
    pub async fn run(self, mut arriving: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = arriving.recv().await {
            let this = self.clone();
            tokio::spawn(async move {
                job.link.travel().await;
                (job.work)(this).await;
            });
        }
    }
}

/// Something to be done at the store.
pub struct Job {
    link: Link,
    work: Work,
}

/// A replica's way to the store. Clones are the same way.
#[derive(Clone, Debug)]
pub struct Link {
    name: Arc<str>,
    jobs: mpsc::UnboundedSender<Job>,
    state: Arc<Mutex<State>>,
    frozen: watch::Sender<bool>,
    recorder: Recorder,
    broken: Option<Broken>,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Lost, with the connection, which whoever waits notices.
    Closed,
    Silence,
}

#[derive(Debug, Default)]
struct State {
    troubles: Vec<Trouble>,
    answers_to_lose: u32,
}

impl Link {
    pub fn new(name: &str, jobs: mpsc::UnboundedSender<Job>, recorder: Recorder, broken: Option<Broken>) -> Self {
        Self {
            name: name.into(),
            jobs,
            state: Arc::default(),
            frozen: watch::Sender::new(false),
            recorder,
            broken,
        }
    }

    pub fn begin(&self, trouble: Trouble) {
        let mut state = self.state();
        state.troubles.push(trouble);
        self.frozen.send_replace(state.troubles.contains(&Trouble::Frozen));
    }

    pub fn end(&self, trouble: Trouble) {
        let mut state = self.state();
        if let Some(at) = state.troubles.iter().position(|t| *t == trouble) {
            state.troubles.swap_remove(at);
        }
        self.frozen.send_replace(state.troubles.contains(&Trouble::Frozen));
    }

    /// Of the next changes: they are made, and the caller is told that the store did not answer.
    pub fn lose_answers(&self, changes: u32) {
        self.state().answers_to_lose += changes;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, trouble: Trouble) -> bool {
        self.state().troubles.contains(&trouble)
    }

    /// One way, with what is in the way now.
    async fn travel(&self) {
        let slow = self.state().troubles.iter().find_map(|trouble| match trouble {
            Trouble::Slow(by) => Some(*by),
            Trouble::Refuses | Trouble::Mute | Trouble::Frozen => None,
        });
        tokio::time::sleep(jitter::spread(WAY + slow.unwrap_or_default(), 0.5..=1.5)).await;
        // The sender lives as long as `self`.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }

    /// Has `work` done at the store, and waits for the answer.
    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        changes: bool,
        work: impl FnOnce(Server) -> Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let unavailable = |why: &'static str| StoreError::Unavailable {
            what,
            source: std::io::Error::other(why).into(),
        };
        if self.has(Trouble::Refuses) {
            tokio::time::sleep(WAY).await;
            return Err(unavailable("connection refused"));
        }
        let (reply, answer) = oneshot::channel();
        let link = self.clone();
        let work: Work = Box::new(move |server| {
            Box::pin(async move {
                let answer = work(server).await;
                match link.fate(changes) {
                    Fate::Arrives => link.travel().await,
                    Fate::Closed => return,
                    Fate::Silence => return tokio::time::sleep(2 * PATIENCE).await,
                }
                // Who asked may be gone.
                drop(reply.send(answer));
            })
        });
        let link = self.clone();
        // The store's host runs as long as the simulation does.
        drop(self.jobs.send(Job { link, work }));
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("the connection was closed")),
            Err(_) => Err(unavailable("no answer")),
        }
    }

    fn fate(&self, changes: bool) -> Fate {
        let mut state = self.state();
        let fate = if changes && state.answers_to_lose > 0 {
            state.answers_to_lose -= 1;
            Fate::Closed
        } else if state.troubles.contains(&Trouble::Mute) {
            Fate::Silence
        } else {
            Fate::Arrives
        };
        drop(state);
        if changes && fate != Fate::Arrives {
            let replica = self.name.to_string();
            self.recorder.note(Seen::AnswerLost { replica });
        }
        fate
    }

    /// What the store compares with the lease.
    async fn fence(&self, server: &Server, fence: &Fence) -> Result<Fence, StoreError> {
        match self.broken {
            Some(Broken::Unfenced) => {
                let Lease { epoch, leader, .. } = server.store.lease().await?;
                Ok(Fence { epoch, leader })
            }
            Some(Broken::Forgetful | Broken::Obedient | Broken::Lying) | None => Ok(fence.clone()),
        }
    }
}

fn written(server: &Server, epoch: Epoch, rollback: &RollbackId, first: u64, events: &[Event]) {
    server.recorder.note(Seen::Written {
        epoch: epoch.0,
        rollback: rollback.clone(),
        first,
        events: events.to_vec(),
    });
}

#[async_trait]
impl Store for Link {
    async fn campaign(&self, candidate: &Candidate, ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError> {
        let candidate = candidate.clone();
        self.ask("take the lead", true, move |server| {
            Box::pin(async move {
                let campaign = server.store.campaign(&candidate, ttl, at_least).await?;
                if let Campaign::Won(epoch) = &campaign {
                    server.recorder.note(Seen::Won {
                        epoch: epoch.0,
                        leader: candidate.id,
                    });
                }
                Ok(campaign)
            })
        })
        .await
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<(), StoreError> {
        let fence = fence.clone();
        let fence = fence.clone();
        self.ask("renew the lease", true, move |server| {
            Box::pin(async move { server.store.renew(&fence, ttl).await })
        })
        .await
    }

    async fn give_back(&self, fence: &Fence) -> Result<(), StoreError> {
        let fence = fence.clone();
        let fence = fence.clone();
        self.ask("give the lease back", true, move |server| {
            Box::pin(async move { server.store.give_back(&fence).await })
        })
        .await
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        self.ask("read the lease", false, |server| {
            Box::pin(async move { server.store.lease().await })
        })
        .await
    }

    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
        let (link, fence) = (self.clone(), fence.clone());
        let rollback = NewRollback {
            id: rollback.id.clone(),
            request_id: rollback.request_id.clone(),
            scope: rollback.scope.clone(),
            events: rollback.events.clone(),
            summary: rollback.summary.clone(),
        };
        self.ask("write the new rollback", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                let created = server.store.create(&at, &rollback).await?;
                if created == Created::New {
                    written(&server, fence.epoch, &rollback.id, 1, &rollback.events);
                    let (rollback, picture) = (rollback.id, server.ground.picture());
                    server.recorder.note(Seen::Opened { rollback, picture });
                }
                Ok(created)
            })
        })
        .await
    }

    async fn append(
        &self,
        fence: &Fence,
        id: &RollbackId,
        after: u64,
        events: &[Event],
        summary: &str,
        closing: Option<&Closing>,
    ) -> Result<(), StoreError> {
        let (link, fence) = (self.clone(), fence.clone());
        let (id, events, summary, closing) = (id.clone(), events.to_vec(), summary.to_owned(), closing.cloned());
        self.ask("append to the journal", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                server
                    .store
                    .append(&at, &id, after, &events, &summary, closing.as_ref())
                    .await?;
                written(&server, fence.epoch, &id, after + 1, &events);
                if closing.is_some() {
                    let picture = server.ground.picture();
                    server.recorder.note(Seen::Closed { rollback: id, picture });
                }
                Ok(())
            })
        })
        .await
    }

    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
        let request_id = request_id.to_owned();
        self.ask("look the request up", false, move |server| {
            Box::pin(async move { server.store.requested(&request_id).await })
        })
        .await
    }

    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
        let targets = targets.to_vec();
        self.ask("read the scopes", false, move |server| {
            Box::pin(async move { server.store.holder(&targets).await })
        })
        .await
    }

    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
        self.ask("read the scopes", false, move |server| {
            Box::pin(async move { server.store.scopes().await })
        })
        .await
    }

    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
        let id = id.clone();
        self.ask("read the journal", false, move |server| {
            Box::pin(async move { server.store.events(&id, after).await })
        })
        .await
    }

    async fn running(&self) -> Result<Vec<RollbackId>, StoreError> {
        self.ask("list running rollbacks", false, |server| {
            Box::pin(async move { server.store.running().await })
        })
        .await
    }

    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        self.ask("list rollbacks", false, move |server| {
            Box::pin(async move { server.store.summaries(limit).await })
        })
        .await
    }

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError> {
        let id = id.clone();
        self.ask("read a rollback", false, move |server| {
            Box::pin(async move { server.store.summary(&id).await })
        })
        .await
    }

    async fn add_release(&self, release: &Release) -> Result<bool, StoreError> {
        let release = release.clone();
        self.ask("write the release", true, move |server| {
            Box::pin(async move { server.store.add_release(&release).await })
        })
        .await
    }

    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
        let name = name.clone();
        self.ask("read a release", false, move |server| {
            Box::pin(async move { server.store.release(&name).await })
        })
        .await
    }

    async fn releases(&self) -> Result<Vec<Release>, StoreError> {
        self.ask("list releases", false, |server| {
            Box::pin(async move { server.store.releases().await })
        })
        .await
    }

    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
        let (link, fence, release) = (self.clone(), fence.clone(), release.clone());
        self.ask("write the release", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                server.store.update_release(&at, &release).await
            })
        })
        .await
    }

    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
        let (link, fence, name) = (self.clone(), fence.clone(), name.clone());
        self.ask("remove the release", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                server.store.remove_release(&at, &name).await
            })
        })
        .await
    }

    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
        let (link, fence, documents) = (self.clone(), fence.clone(), documents.to_vec());
        self.ask("write documents", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                server.store.put_documents(&at, &documents).await
            })
        })
        .await
    }

    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
        let (link, fence, document) = (self.clone(), fence.clone(), document.clone());
        self.ask("add a document", true, move |server| {
            Box::pin(async move {
                let at = link.fence(&server, &fence).await?;
                server.store.add_document(&at, &document).await
            })
        })
        .await
    }

    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
        let key = key.to_owned();
        self.ask("read a document", false, move |server| {
            Box::pin(async move { server.store.document(kind, &key).await })
        })
        .await
    }

    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
        let beginning = beginning.to_owned();
        self.ask("list documents", false, move |server| {
            Box::pin(async move { server.store.documents_under(kind, &beginning).await })
        })
        .await
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError> {
        let agent = agent.clone();
        self.ask("write the agent", true, move |server| {
            Box::pin(async move { server.store.save_agent(&agent).await })
        })
        .await
    }

    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.ask("list agents", false, |server| {
            Box::pin(async move { server.store.agents().await })
        })
        .await
    }

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        let token = token.clone();
        self.ask("write the token", true, move |server| {
            Box::pin(async move { server.store.add_token(&token).await })
        })
        .await
    }

    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
        let hash = hash.to_owned();
        self.ask("redeem the token", true, move |server| {
            Box::pin(async move { server.store.redeem_token(&hash, now).await })
        })
        .await
    }
}

/// The ways to the store, by replica.
pub type Links = BTreeMap<String, Link>;
