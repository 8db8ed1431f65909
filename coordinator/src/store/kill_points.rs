//! Every durable write of a store as a place at which a test can have the process killed: `store.append.before`,
//! `store.append.after`, and so on (see [`rollback_proto::kill_point`]).
//!
//! "After" is passed whatever came of the write: a failed one is as good a place to die as any. Reads have no points:
//! dying in one is dying after the write before it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use rollback_proto::kill_point;

use super::{
    AgentRecord, Campaign, Candidate, Closing, Created, Document, DocumentKind, Fence, FleetId, Lease, NewRollback,
    NewToken, Recorded, Store, StoreError,
};

#[derive(Debug)]
pub struct KillPoints<S>(S);

impl<S: Store> KillPoints<S> {
    pub fn around(store: S) -> Self {
        Self(store)
    }
}

async fn pass<T>(name: &str, write: impl Future<Output = T>) -> T {
    kill_point::pass(|| format!("store.{name}.before"));
    let answer = write.await;
    kill_point::pass(|| format!("store.{name}.after"));
    answer
}

#[async_trait]
impl<S: Store> Store for KillPoints<S> {
    async fn campaign(&self, candidate: &Candidate, ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError> {
        pass("campaign", self.0.campaign(candidate, ttl, at_least)).await
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<(), StoreError> {
        pass("renew", self.0.renew(fence, ttl)).await
    }

    async fn give_back(&self, fence: &Fence) -> Result<(), StoreError> {
        pass("give_back", self.0.give_back(fence)).await
    }

    async fn join(&self, fleet: &FleetId) -> Result<(), StoreError> {
        self.0.join(fleet).await
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        self.0.lease().await
    }

    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
        pass("create", self.0.create(fence, rollback)).await
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
        pass("append", self.0.append(fence, id, after, events, summary, closing)).await
    }

    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
        self.0.requested(request_id).await
    }

    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
        self.0.holder(targets).await
    }

    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
        self.0.scopes().await
    }

    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
        self.0.events(id, after).await
    }

    async fn running(&self) -> Result<Vec<RollbackId>, StoreError> {
        self.0.running().await
    }

    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        self.0.summaries(limit).await
    }

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError> {
        self.0.summary(id).await
    }

    async fn add_release(&self, release: &Release) -> Result<bool, StoreError> {
        pass("add_release", self.0.add_release(release)).await
    }

    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
        self.0.release(name).await
    }

    async fn releases(&self) -> Result<Vec<Release>, StoreError> {
        self.0.releases().await
    }

    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
        pass("update_release", self.0.update_release(fence, release)).await
    }

    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
        pass("remove_release", self.0.remove_release(fence, name)).await
    }

    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
        pass("put_documents", self.0.put_documents(fence, documents)).await
    }

    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
        pass("add_document", self.0.add_document(fence, document)).await
    }

    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
        self.0.document(kind, key).await
    }

    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
        self.0.documents_under(kind, beginning).await
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError> {
        pass("save_agent", self.0.save_agent(agent)).await
    }

    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.0.agents().await
    }

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        pass("add_token", self.0.add_token(token)).await
    }

    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
        pass("redeem_token", self.0.redeem_token(hash, now)).await
    }
}
