//! A store for simulations and tests: no file, no server, no real time. Not for a coordinator: what is in memory is gone
//! with the process.
//!
//! The [`MemoryDisk`] is what a database server would be. It outlives every coordinator of a simulation, and several
//! handles ([`MemoryStore`], one for each replica) share it. A handle can be told to fail in the ways in which a database
//! fails that is somewhere else: it cannot be reached, or it made the change and the answer was lost.
//!
//! Invariants:
//! - Every method is one step under one lock, so it is all or nothing, and what it answers was true at one instant.
//! - The journal is the same chain as in the other stores ([`super::chain`]), kept as JSON, so that what cannot be written
//!   and read again is found here, too.
//!
//! It leaves out what the two real stores are tested for themselves: statements that interleave, and files.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use rollback_proto::jitter;

use super::chain::{self, Link};
use super::{
    AgentRecord, Campaign, Candidate, Closing, Created, Document, DocumentKind, Fence, Lease, NewRollback, NewToken,
    Recorded, Store, StoreError, relabelled,
};

type Clock = dyn Fn() -> Duration + Send + Sync;

/// What all replicas of a simulation keep together.
pub struct MemoryDisk {
    content: Mutex<Content>,
    clock: Box<Clock>,
}

/// A replica's way to the disk. Clones share their faults, so a simulation keeps one to cause them with.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    disk: Arc<MemoryDisk>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    unreachable: AtomicBool,
    replies_to_lose: AtomicU32,
    journals_to_refuse: AtomicU32,
    latency: Mutex<Duration>,
}

struct Content {
    epoch: Epoch,
    leader: String,
    endpoint: String,
    /// By the disk's clock.
    held_until: Duration,
    rollbacks: BTreeMap<RollbackId, Rollback>,
    scope: BTreeMap<Target, RollbackId>,
    releases: BTreeMap<ReleaseName, Release>,
    agents: BTreeMap<String, AgentRecord>,
    /// By hash.
    tokens: BTreeMap<String, Token>,
    documents: BTreeMap<DocumentKind, BTreeMap<String, Document>>,
}

struct Rollback {
    request_id: String,
    running: bool,
    summary: String,
    journal: Vec<Link>,
}

struct Token {
    name: String,
    expires_at: Timestamp,
    redeemed: bool,
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").finish_non_exhaustive()
    }
}

impl MemoryDisk {
    /// An empty disk whose clock is tokio's: it stands still when a test pauses time.
    pub fn new() -> Arc<Self> {
        let begun = tokio::time::Instant::now();
        Self::with_clock(move || begun.elapsed())
    }

    /// With a clock of the caller's: the time since any fixed moment. A simulation in which every host has a runtime of
    /// its own needs it, because their clocks are not one.
    pub fn with_clock(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            content: Mutex::new(Content {
                epoch: Epoch(0),
                leader: String::new(),
                endpoint: String::new(),
                held_until: Duration::ZERO,
                rollbacks: BTreeMap::new(),
                scope: BTreeMap::new(),
                releases: BTreeMap::new(),
                agents: BTreeMap::new(),
                tokens: BTreeMap::new(),
                documents: BTreeMap::new(),
            }),
            clock: Box::new(clock),
        })
    }

    /// Changes the payload of an event behind the store's back, as a person with an editor could.
    pub fn tamper(&self, id: &RollbackId, seq: u64, change: impl FnOnce(&str) -> String) {
        let mut content = self.lock();
        let journal = content.rollbacks.get_mut(id).map(|r| &mut r.journal);
        if let Some(link) = journal.into_iter().flatten().find(|l| l.seq == seq) {
            link.payload = change(&link.payload);
        }
    }

    /// Nothing that holds the lock stops half way, so what a panic left behind is whole.
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryStore {
    pub fn open(disk: &Arc<MemoryDisk>) -> Self {
        Self {
            disk: Arc::clone(disk),
            faults: Arc::default(),
        }
    }

    /// Nothing goes to the disk and nothing comes back, not even the answer to what is under way.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.faults.unreachable.store(unreachable, Ordering::SeqCst);
    }

    /// The next so many changes are made, and their caller gets [`StoreError::Unavailable`].
    pub fn lose_replies(&self, changes: u32) {
        self.faults.replies_to_lose.store(changes, Ordering::SeqCst);
    }

    /// The next so many reads of a journal fail.
    pub fn refuse_journals(&self, reads: u32) {
        self.faults.journals_to_refuse.store(reads, Ordering::SeqCst);
    }

    /// How long the way there and the way back take each, more or less. Zero at first: then no method ever waits.
    pub fn set_latency(&self, one_way: Duration) {
        *self.faults.latency.lock().unwrap_or_else(PoisonError::into_inner) = one_way;
    }

    async fn travel(&self, what: &'static str) -> Result<(), StoreError> {
        let latency = *self.faults.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if !latency.is_zero() {
            tokio::time::sleep(jitter::spread(latency, 0.5..=1.5)).await;
        }
        if self.faults.unreachable.load(Ordering::SeqCst) {
            return Err(unavailable(what, "the store cannot be reached"));
        }
        Ok(())
    }

    async fn read<T>(&self, what: &'static str, read: impl FnOnce(&Content) -> T) -> Result<T, StoreError> {
        self.travel(what).await?;
        let answer = read(&self.disk.lock());
        self.travel(what).await?;
        Ok(answer)
    }

    /// `change` gets the time, and changes nothing when it fails.
    async fn change<T>(
        &self,
        what: &'static str,
        change: impl FnOnce(&mut Content, Duration) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.travel(what).await?;
        let answer = change(&mut self.disk.lock(), (self.disk.clock)())?;
        let lost = self
            .faults
            .replies_to_lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if lost.is_ok() {
            return Err(unavailable(what, "the answer was lost"));
        }
        self.travel(what).await?;
        Ok(answer)
    }
}

fn unavailable(what: &'static str, why: &'static str) -> StoreError {
    StoreError::Unavailable {
        what,
        source: std::io::Error::other(why).into(),
    }
}

impl Content {
    fn fence(&self, fence: &Fence, now: Duration) -> Result<(), StoreError> {
        if self.epoch == fence.epoch && self.leader == fence.leader && self.held_until > now {
            Ok(())
        } else {
            Err(StoreError::Fenced(self.epoch))
        }
    }

    fn lease(&self, now: Duration) -> Lease {
        Lease {
            epoch: self.epoch,
            leader: self.leader.clone(),
            endpoint: self.endpoint.clone(),
            left: self.held_until.saturating_sub(now),
        }
    }

    fn put(&mut self, documents: &[Document]) {
        for document in documents {
            let kept = self.documents.entry(document.kind).or_default();
            if document.body.is_some() {
                kept.insert(document.key.clone(), document.clone());
            } else {
                kept.remove(&document.key);
            }
        }
    }

    fn requested(&self, request_id: &str) -> Option<RollbackId> {
        let found = self.rollbacks.iter().find(|(_, r)| r.request_id == request_id);
        found.map(|(id, _)| id.clone())
    }

    fn holder(&self, targets: &[Target]) -> Option<(Target, RollbackId)> {
        targets
            .iter()
            .find_map(|t| self.scope.get(t).map(|id| (t.clone(), id.clone())))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn campaign(&self, candidate: &Candidate, ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError> {
        self.change("take the lead", |content, now| {
            if content.held_until > now && content.leader != candidate.id {
                return Ok(Campaign::Held(content.lease(now)));
            }
            content.epoch = Epoch(content.epoch.0 + 1).max(at_least);
            content.leader.clone_from(&candidate.id);
            content.endpoint.clone_from(&candidate.endpoint);
            content.held_until = now + ttl;
            Ok(Campaign::Won(content.epoch))
        })
        .await
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<(), StoreError> {
        self.change("renew the lease", |content, now| {
            content.fence(fence, now)?;
            content.held_until = now + ttl;
            Ok(())
        })
        .await
    }

    async fn give_back(&self, fence: &Fence) -> Result<(), StoreError> {
        self.change("give the lease back", |content, now| {
            if content.fence(fence, now).is_ok() {
                content.held_until = content.held_until.min(now);
            }
            Ok(())
        })
        .await
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        let clock = &self.disk.clock;
        self.read("read the lease", |content| content.lease(clock())).await
    }

    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
        self.change("write the new rollback", |content, now| {
            content.fence(fence, now)?;
            if let Some(id) = content.requested(&rollback.request_id) {
                return Ok(Created::Existing(id));
            }
            if let Some((target, holder)) = content.holder(&rollback.scope) {
                return Ok(Created::ScopeHeld { target, holder });
            }
            if content.rollbacks.contains_key(&rollback.id) {
                return Err(StoreError::Conflict);
            }
            let new = Rollback {
                request_id: rollback.request_id.clone(),
                running: true,
                summary: rollback.summary.clone(),
                journal: chain::forge((0, String::new()), &rollback.events)?,
            };
            content.rollbacks.insert(rollback.id.clone(), new);
            let held = rollback.scope.iter().map(|t| (t.clone(), rollback.id.clone()));
            content.scope.extend(held);
            Ok(Created::New)
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
        self.change("append to the journal", |content, now| {
            content.fence(fence, now)?;
            let rollback = content.rollbacks.get_mut(id).ok_or(StoreError::Conflict)?;
            let last = rollback.journal.last().map(|l| (l.seq, l.hash.clone()));
            let last = last.unwrap_or_default();
            if last.0 != after {
                return Err(StoreError::Conflict);
            }
            rollback.journal.extend(chain::forge(last, events)?);
            summary.clone_into(&mut rollback.summary);
            rollback.running = closing.is_none();
            if let Some(closing) = closing {
                content.scope.retain(|_, holder| holder != id);
                let abandoned = closing.abandoned.iter().map(|name| (name, false));
                for (name, stable) in abandoned.chain(closing.works.iter().map(|name| (name, true))) {
                    if let Some(release) = content.releases.get_mut(name) {
                        release.stable = stable;
                    }
                }
                content.put(&closing.documents);
            }
            Ok(())
        })
        .await
    }

    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
        self.read("look the request up", |content| content.requested(request_id))
            .await
    }

    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
        self.read("read the scopes", |content| content.holder(targets)).await
    }

    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
        self.read("read the scopes", |content| content.scope.clone()).await
    }

    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
        let journal = |content: &Content| {
            let journal = content.rollbacks.get(id).map(|r| r.journal.iter());
            let links = journal.into_iter().flatten().filter(|l| l.seq > after);
            links.cloned().collect()
        };
        let refused = self
            .faults
            .journals_to_refuse
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Err(unavailable("read the journal", "the connection was closed"));
        }
        let links = self.read("read the journal", journal).await?;
        chain::read(id, after, links)
    }

    async fn running(&self) -> Result<Vec<RollbackId>, StoreError> {
        self.read("list running rollbacks", |content| {
            let running = content.rollbacks.iter().filter(|(_, r)| r.running);
            running.map(|(id, _)| id.clone()).collect()
        })
        .await
    }

    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.read("list rollbacks", |content| {
            let newest = content.rollbacks.values().rev().take(limit);
            newest.map(|r| r.summary.clone()).collect()
        })
        .await
    }

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError> {
        self.read("read a rollback", |content| {
            content.rollbacks.get(id).map(|r| r.summary.clone())
        })
        .await
    }

    async fn add_release(&self, release: &Release) -> Result<bool, StoreError> {
        self.change("write the release", |content, _| {
            let free = !content.releases.contains_key(&release.name);
            if free {
                content.releases.insert(release.name.clone(), release.clone());
            }
            Ok(free)
        })
        .await
    }

    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
        self.read("read a release", |content| content.releases.get(name).cloned())
            .await
    }

    async fn releases(&self) -> Result<Vec<Release>, StoreError> {
        self.read("list releases", |content| {
            super::newest_first(content.releases.values().cloned().collect())
        })
        .await
    }

    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
        self.change("write the release", |content, now| {
            content.fence(fence, now)?;
            let Some(stored) = content.releases.get_mut(&release.name) else {
                return Ok(false);
            };
            *stored = relabelled(stored.clone(), release);
            Ok(true)
        })
        .await
    }

    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
        self.change("remove the release", |content, now| {
            content.fence(fence, now)?;
            Ok(content.releases.remove(name).is_some())
        })
        .await
    }

    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
        self.change("write documents", |content, now| {
            content.fence(fence, now)?;
            content.put(documents);
            Ok(())
        })
        .await
    }

    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
        self.change("add a document", |content, now| {
            content.fence(fence, now)?;
            let kept = content.documents.get(&document.kind);
            let free = document.body.is_some() && !kept.is_some_and(|kept| kept.contains_key(&document.key));
            if free {
                content.put(std::slice::from_ref(document));
            }
            Ok(free)
        })
        .await
    }

    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
        self.read("read a document", |content| {
            content.documents.get(&kind).and_then(|kept| kept.get(key)).cloned()
        })
        .await
    }

    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
        self.read("list documents", |content| {
            let kept = content.documents.get(&kind).into_iter().flat_map(BTreeMap::values);
            kept.filter(|d| d.key.starts_with(beginning)).cloned().collect()
        })
        .await
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError> {
        self.change("write the agent", |content, _| {
            content.agents.insert(agent.name.clone(), agent.clone());
            Ok(())
        })
        .await
    }

    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.read("list agents", |content| content.agents.values().cloned().collect())
            .await
    }

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        self.change("write the token", |content, _| {
            let new = Token {
                name: token.name.clone(),
                expires_at: token.expires_at,
                redeemed: false,
            };
            content.tokens.insert(token.hash.clone(), new);
            Ok(())
        })
        .await
    }

    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
        self.change("redeem the token", |content, _| {
            let token = content.tokens.get_mut(hash);
            let token = token.filter(|t| !t.redeemed && t.expires_at > now);
            Ok(token.map(|t| {
                t.redeemed = true;
                t.name.clone()
            }))
        })
        .await
    }
}
