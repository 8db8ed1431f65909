//! The store for replicas: a PostgreSQL database that all of them reach, directly or through a pooler in transaction mode.
//!
//! By subject: who leads ([`lease`]), rollbacks ([`journal`]), small documents ([`documents`]), the rest ([`records`]); below
//! them connections and transactions ([`session`]) and the schema ([`schema`]).
//!
//! Invariants, beside those of every store:
//! - Only the database's clock counts.
//! - An answer, good or bad, is there after [`session::ANSWER`]. Bad is `Unavailable` for everything that may pass: a
//!   connection that broke, a lock or a statement that took too long, a server that stops or starts.
//! - Renewing the lease waits neither for a free connection behind ten thousand agents that register, nor for the row
//!   behind a journal that is written all the time.

mod documents;
mod journal;
mod lease;
pub mod look;
mod records;
mod schema;
mod session;

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::sync::RwLock;

use self::session::{ANSWER, Lane};
use super::open::OpenError;
use super::{
    AgentRecord, Campaign, Candidate, Closing, Created, Document, DocumentKind, Fence, FleetId, Lease, NewRollback,
    NewToken, Recorded, Store, StoreError,
};

pub struct PostgresStore {
    /// For people; without a password.
    place: String,
    leadership: Lane,
    journal: Lane,
    others: Lane,
    /// What begins with a look at the lease goes in together, a renewal alone. PostgreSQL lets one who shares the lease's
    /// row pass one who waits to change it: behind four rollbacks that append without a pause, renewals took a second.
    gate: RwLock<()>,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// PostgreSQL's integers are signed. Sequence numbers and epochs grow by one from zero and never come near the end.
fn to_sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn from_sql(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl PostgresStore {
    /// Reaches the database, once, and brings its schema up to date. `password` goes before one in the URL.
    pub async fn open(url: &str, password: Option<&str>) -> Result<Self, OpenError> {
        let mut options = options(url)?;
        if let Some(password) = password {
            options = options.password(password);
        }
        let server = Server::of(&options);
        let mut connection = server.connect(&options).await?;
        schema::bring_up_to_date(&mut connection).await?;
        // The schema is there; a connection that does not close in order does no harm.
        drop(connection.close().await);
        Ok(Self {
            place: format!("{} at {}", server.database, server.server),
            leadership: Lane::new(&options, 2),
            journal: Lane::new(&options, 4),
            others: Lane::new(&options, 4),
            gate: RwLock::default(),
        })
    }
}

fn options(url: &str) -> Result<PgConnectOptions, OpenError> {
    let bad = |why: String| OpenError::BadUrl { why };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(bad("it begins otherwise".to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|e| bad(e.to_string()))?;
    Ok(options
        .application_name("rollback-coordinator")
        // Poolers in transaction mode know neither statements of a session nor this parameter.
        .statement_cache_capacity(0)
        .extra_float_digits(None))
}

/// Where the database is, for messages.
struct Server {
    server: String,
    database: String,
    user: String,
}

impl Server {
    fn of(options: &PgConnectOptions) -> Self {
        let host = options
            .get_socket()
            .map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
        let user = options.get_username().to_owned();
        Self {
            server: format!("{host}:{}", options.get_port()),
            database: options.get_database().unwrap_or(&user).to_owned(),
            user,
        }
    }

    async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, OpenError> {
        let unreachable = |source| OpenError::Unreachable {
            server: self.server.clone(),
            source,
        };
        let connected = tokio::time::timeout(ANSWER, options.connect()).await;
        let mut connection = connected
            .map_err(|_| unreachable(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))?
            .map_err(|e| self.refused(e))?;
        // No transaction here, so no statement that would have to be prepared on the connection that executes it.
        let asked = sqlx::raw_sql("SELECT pg_is_in_recovery()")
            .fetch_one(&mut connection)
            .await;
        if asked.and_then(|row| row.try_get(0)).map_err(unreachable)? {
            return Err(OpenError::Standby {
                server: self.server.clone(),
            });
        }
        Ok(connection)
    }

    fn refused(&self, error: sqlx::Error) -> OpenError {
        let (server, database, user) = (self.server.clone(), self.database.clone(), self.user.clone());
        let refusal = error
            .as_database_error()
            .map(|e| (e.code().unwrap_or_default(), e.message()));
        match refusal {
            Some((code, _)) if code == "3D000" => OpenError::NoDatabase { server, database, user },
            // invalid_authorization_specification, invalid_password, insufficient_privilege (no CONNECT).
            Some((code, why)) if code == "28000" || code == "28P01" || code == "42501" => OpenError::Refused {
                server,
                database,
                user,
                why: why.to_owned(),
            },
            _ => OpenError::Unreachable { server, source: error },
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn campaign(&self, candidate: &Candidate, ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError> {
        lease::campaign(&self.leadership, candidate, ttl, at_least).await
    }

    async fn renew(&self, fence: &Fence, ttl: Duration) -> Result<(), StoreError> {
        lease::renew(&self.leadership, &self.gate, fence, ttl).await
    }

    async fn give_back(&self, fence: &Fence) -> Result<(), StoreError> {
        lease::give_back(&self.leadership, fence).await
    }

    async fn join(&self, fleet: &FleetId) -> Result<(), StoreError> {
        records::join(&self.others, fleet).await
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        lease::lease(&self.leadership).await
    }

    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
        let _with_others = self.gate.read().await;
        journal::create(&self.journal, fence, rollback).await
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
        let _with_others = self.gate.read().await;
        journal::append(&self.journal, fence, id, after, events, summary, closing).await
    }

    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
        journal::requested(&self.journal, request_id).await
    }

    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
        journal::holder(&self.journal, targets).await
    }

    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
        journal::scopes(&self.others).await
    }

    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
        journal::events(&self.journal, id, after).await
    }

    async fn running(&self) -> Result<Vec<RollbackId>, StoreError> {
        journal::running(&self.journal).await
    }

    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        journal::summaries(&self.others, limit).await
    }

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError> {
        journal::summary(&self.others, id).await
    }

    async fn add_release(&self, release: &Release) -> Result<bool, StoreError> {
        records::add_release(&self.others, release).await
    }

    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
        records::release(&self.others, name).await
    }

    async fn releases(&self) -> Result<Vec<Release>, StoreError> {
        records::releases(&self.others).await
    }

    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
        let _with_others = self.gate.read().await;
        records::update_release(&self.journal, fence, release).await
    }

    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
        let _with_others = self.gate.read().await;
        records::remove_release(&self.journal, fence, name).await
    }

    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
        let _with_others = self.gate.read().await;
        documents::put(&self.journal, fence, documents).await
    }

    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
        let _with_others = self.gate.read().await;
        documents::add(&self.journal, fence, document).await
    }

    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
        documents::one(&self.others, kind, key).await
    }

    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
        documents::under(&self.others, kind, beginning).await
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError> {
        records::save_agent(&self.others, agent).await
    }

    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        records::agents(&self.others).await
    }

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        records::add_token(&self.others, token).await
    }

    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
        records::redeem_token(&self.others, hash, now).await
    }
}
