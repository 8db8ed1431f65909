//! What is kept, and what keeping it promises. SQLite is the embedded default ([`sqlite`]); PostgreSQL is for replicas
//! ([`postgres`]).
//!
//! What do we store? Per rollback a journal of events (the truth), a summary (a projection, for lists) and the scope it
//! holds; the releases; the agents as they last registered; small documents (holds, where hosts shall be); hashes of join
//! tokens; and the lease with its epoch.
//!
//! Invariants:
//! - Once a method that writes returns `Ok`, what it wrote survives a kill and a power cut.
//! - What leaders alone write (rollbacks, documents, what is said of a release later) is fenced: nothing is written unless the
//!   lease is the caller's ([`Fence`]).
//! - A rollback's events, its summary and its scope change in one transaction; with its last events, so does what its end
//!   says of releases and hosts ([`Closing`]).
//! - An epoch is given out once. Whoever holds the lease is told apart by epoch and leader id together: a store that was
//!   taken back to an earlier copy of itself gives out epochs again.

mod chain;
mod kill_points;
mod lock;
pub mod memory;
mod open;
pub mod postgres;
pub mod sqlite;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

pub use self::open::{OpenError, open};

/// An event with its place in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// From 1, without gaps.
    pub seq: u64,
    pub event: Event,
}

/// A rollback about to begin.
#[derive(Debug)]
pub struct NewRollback {
    pub id: RollbackId,
    /// The caller's name for this request; asking twice starts one rollback.
    pub request_id: String,
    pub scope: Vec<Target>,
    pub events: Vec<Event>,
    /// JSON.
    pub summary: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Created {
    New,
    /// This request has started a rollback already.
    Existing(RollbackId),
    /// A running rollback holds one of the targets.
    ScopeHeld {
        target: Target,
        holder: RollbackId,
    },
}

/// What the end of a rollback says of releases and hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Was verified everywhere: it works.
    pub works: Option<ReleaseName>,
    /// Newer ones that the fleet was taken back from.
    pub abandoned: Vec<ReleaseName>,
    /// What is said of them beside the releases: holds, where the fleet shall be.
    pub documents: Vec<Document>,
}

/// What a small document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// One version of a runbook; its key is `name@version`.
    Runbook,
    /// A release that must not be deployed; its key is the release's name.
    Hold,
    /// Where a component shall be; its key is `host/component`.
    Objective,
    /// What the last check of a release found; its key is the release's name.
    Readiness,
}

impl DocumentKind {
    pub fn as_str(self) -> &'static str {
        match self {
            DocumentKind::Runbook => "runbook",
            DocumentKind::Hold => "hold",
            DocumentKind::Objective => "objective",
            DocumentKind::Readiness => "readiness",
        }
    }
}

/// Something small that coordinators keep for each other. Whoever wrote last is right; what must not be overwritten is
/// added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub kind: DocumentKind,
    pub key: String,
    /// JSON. `None` where one is put: it is removed.
    pub body: Option<String>,
}

#[derive(Clone, Debug)]
pub struct NewToken {
    /// SHA-256 of the secret, hex.
    pub hash: String,
    pub name: String,
    pub created_by: String,
    pub expires_at: Timestamp,
}

/// An agent as it last registered. Kept so that a coordinator that starts can dial the fleet before it calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    pub name: String,
    /// host:port.
    pub address: String,
    pub version: String,
    pub ledger_generation: String,
    pub components: Vec<ComponentRecord>,
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    pub registered_at: Timestamp,
    pub certificate_expires: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentRecord {
    pub name: String,
    pub kind: String,
    pub role: rollback_engine::release::Role,
    pub capabilities: std::collections::BTreeSet<rollback_engine::release::Action>,
    #[serde(default)]
    pub reads: std::collections::BTreeSet<String>,
    /// Proxies: "host/component" of what they can take out and give back, one by one; upstream by upstream.
    #[serde(default)]
    pub backends: rollback_engine::release::Upstreams,
    /// Databases: steps that restore a backup are understood. Agents from before that did not say so.
    #[serde(default)]
    pub restores: bool,
}

/// Who wants to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Another one for every start of a process: `name/uuid`.
    pub id: String,
    /// host:port for operators and agents.
    pub endpoint: String,
}

/// What a leader writes under: nothing is written unless the store's lease has this epoch *and* this holder, and has not run
/// out. The epoch alone would not do: a store that lost the commit of a campaign gives its epoch out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub epoch: Epoch,
    /// [`Candidate::id`].
    pub leader: String,
}

/// What a campaign came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Campaign {
    Won(Epoch),
    /// Somebody else holds the lease.
    Held(Lease),
}

/// The lease, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub epoch: Epoch,
    /// [`Candidate::id`] of its last holder; empty before there was one.
    pub leader: String,
    pub endpoint: String,
    /// How long it still holds, by the store's clock. Zero: it has run out or was given back. [`Duration::MAX`]: it does
    /// not run out.
    pub left: Duration,
}

/// Nobody takes the lease for so long (without it having no end). What holds longer is of a clock that went back since: by
/// that clock a leader that is gone would be waited for until it has caught up.
pub const LONGEST_LEASE: Duration = Duration::from_secs(600);

impl Lease {
    /// By a clock that went back.
    pub fn is_out_of_time(&self) -> bool {
        self.left > LONGEST_LEASE && self.left != Duration::MAX
    }
}

/// Whose coordinators may use a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetId {
    pub trust_domain: String,
    /// SHA-256 of every CA certificate that is trusted. Two coordinators of one fleet have one in common, also while the CA
    /// is being replaced.
    pub ca: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A coordinator that no host of the fleet would obey must not take its lead.
    #[error(
        "the store is that of the fleet {} with another CA (SHA-256 {}): this coordinator belongs to another fleet. Was it \
         made by `init` instead of `rollback-coordinator replica`?",
        .0.trust_domain,
        .0.ca.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    OtherFleet(FleetId),
    /// Another coordinator leads. Step down; never retry.
    #[error("another coordinator leads with epoch {0:?}")]
    Fenced(Epoch),
    /// Somebody else appended to this rollback. Reload.
    #[error("the journal has gone on without us")]
    Conflict,
    /// Nothing was written, or it is unknown whether it was. May pass.
    #[error("{what}: {source}")]
    Unavailable {
        what: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// What is stored cannot be understood. A person must look.
    #[error("{what} in the store is damaged: {why}")]
    Damaged { what: &'static str, why: String },
}

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Self {
        match &e {
            StoreError::Fenced(_) => Problem::new(Code::NotLeader, e.to_string()),
            StoreError::Conflict
            | StoreError::Unavailable { .. }
            | StoreError::Damaged { .. }
            | StoreError::OtherFleet(_) => Problem::from_error(Code::StoreUnavailable, "store", &e),
        }
    }
}

#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Takes the lead for `ttl`, when nobody else holds it: a new epoch, higher than every one before and at least
    /// `at_least`. The holder itself may do so, too, and ends its earlier epoch with it. A lease that is
    /// [out of time](Lease::is_out_of_time) holds nobody up; whether its holder is alive is for the caller to find out.
    async fn campaign(&self, candidate: &Candidate, ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError>;

    /// Holds the lease for another `ttl` from now, by the store's clock. `Fenced`: it is somebody else's, or it had run out
    /// before this was written. A lease that has run out is never renewed.
    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<(), StoreError>;

    /// Lets the lease run out now, so that others need not wait. Nothing happens when it is somebody else's.
    async fn give_back(&self, fence: &Fence) -> Result<(), StoreError>;

    async fn lease(&self) -> Result<Lease, StoreError>;

    /// Asked once, before anything else: does this store belong to the coordinator's fleet? An empty one does from then on.
    async fn join(&self, _fleet: &FleetId) -> Result<(), StoreError> {
        Ok(())
    }

    /// Can somebody else take the lead when this process is not heard of? If not, the lease does not run out.
    fn is_shared(&self) -> bool {
        true
    }

    /// Begins a rollback, unless its request has begun one or its scope is held.
    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError>;

    /// Appends events after the first `after` ones. `closing`: the rollback has ended with them; it gives its scope back,
    /// and what it says of releases is written, in the same transaction.
    async fn append(
        &self,
        fence: &Fence,
        id: &RollbackId,
        after: u64,
        events: &[Event],
        summary: &str,
        closing: Option<&Closing>,
    ) -> Result<(), StoreError>;

    /// The rollback that this request began, if it did.
    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError>;

    /// A running rollback that holds one of these targets.
    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError>;

    /// Everything that running rollbacks hold.
    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError>;

    /// Events of a rollback after `seq`, in order. Checks the hash chain of what it reads.
    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError>;

    /// Rollbacks that have not ended.
    async fn running(&self) -> Result<Vec<RollbackId>, StoreError>;

    /// Summaries (JSON), newest first.
    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError>;

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError>;

    /// Stores a release under a name that is free. `false`: it is taken.
    async fn add_release(&self, release: &Release) -> Result<bool, StoreError>;
    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError>;
    /// Newest first.
    async fn releases(&self) -> Result<Vec<Release>, StoreError>;

    /// Writes what a release says of itself beside its content (notes, commit, mark). Its content, and who recorded it
    /// when, stay as they are stored. `false`: there is none.
    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError>;
    /// `false`: there is none.
    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError>;

    /// Puts (or removes) all of these, in one transaction. Of several under one key the last one counts.
    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError>;
    /// Adds one under a key that is free. `false`: it is taken. Without a body there is nothing to add.
    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError>;
    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError>;
    /// Of a kind, all whose key begins so, by key. An empty beginning: all of them.
    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError>;
    /// All of a kind, by key.
    async fn documents(&self, kind: DocumentKind) -> Result<Vec<Document>, StoreError> {
        self.documents_under(kind, "").await
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError>;
    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError>;

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError>;
    /// Redeems a token by one atomic update. The name it was made for, or `None` when it is unknown, used or expired.
    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError>;
}

impl AgentRecord {
    /// `None`: it cannot be read. That must not keep the others out; it comes back when its agent registers again.
    fn read(document: &str) -> Option<Self> {
        serde_json::from_str(document)
            .inspect_err(|error| tracing::error!(%error, "an agent in the store is damaged"))
            .ok()
    }
}

/// As [`Store::update_release`] writes it.
fn relabelled(stored: Release, new: &Release) -> Release {
    Release {
        name: stored.name,
        recorded_at: stored.recorded_at,
        recorded_by: stored.recorded_by,
        entries: stored.entries,
        ranks_at: stored.ranks_at,
        ..new.clone()
    }
}

/// What putting these comes to: one of each key, in an order that is the same for everybody who writes.
fn last_of_each_key(documents: &[Document]) -> BTreeMap<(&'static str, &str), Option<&str>> {
    documents
        .iter()
        .map(|d| ((d.kind.as_str(), d.key.as_str()), d.body.as_deref()))
        .collect()
}

/// Keys that begin so are at least the first of these, and less than the second one: as bytes, nothing that could follow is
/// greater than the last character that there is.
fn keys_under(beginning: &str) -> (&str, String) {
    (beginning, format!("{beginning}{}", char::MAX))
}

/// As [`Store::releases`] answers.
fn newest_first(mut releases: Vec<Release>) -> Vec<Release> {
    releases.sort_by(|a, b| (b.rank(), &b.name).cmp(&(a.rank(), &a.name)));
    releases
}

/// How long an append that the store could not take is tried again before the rollback is left to the next start.
pub const APPEND_PATIENCE: Duration = Duration::from_secs(60);
