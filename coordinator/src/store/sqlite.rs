//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`.
//!
//! One connection writes (SQLite has one writer anyway, and queueing for it here is fair), a few read. Every write
//! transaction begins IMMEDIATE, so that its fence check and its writes see the same lease.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_engine::event::Event;
use rollback_engine::ids::{Epoch, ReleaseName, RollbackId, Target};
use rollback_engine::release::Release;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Row, Sqlite, Transaction};

use super::chain::{self, EVENT_FORMAT, Link, damaged};
use super::lock::Lock;
use super::open::OpenError;
use super::{
    AgentRecord, Campaign, Candidate, Closing, Created, Document, DocumentKind, Fence, Lease, NewRollback, NewToken,
    Recorded, Store, StoreError, keys_under, last_of_each_key, newest_first, relabelled,
};

#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Let go last: fields are dropped in order.
    _lock: Lock,
}

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

fn not_migrated(error: MigrateError) -> OpenError {
    let known = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    match error {
        MigrateError::VersionMissing(found) => OpenError::Newer { found, known },
        MigrateError::VersionMismatch(version) => OpenError::Foreign { version },
        other => StoreError::Unavailable {
            what: "migrate the database",
            source: other.into(),
        }
        .into(),
    }
}

fn unavailable(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Unavailable { what, source }
}

/// SQLite's integers are signed. Sequence numbers and epochs grow by one from zero and never come near the end.
fn to_sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn from_sql(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl SqliteStore {
    /// Opens or makes the database, for a coordinator of this name and nobody else, and brings its schema up to date.
    pub async fn open(path: &Path, name: &str) -> Result<Self, OpenError> {
        let lock = Lock::take(path, name)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        // When the disk is full SQLite takes a transaction back by itself. The client still counts it as open, and begins no
        // other one on that connection.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await
            .map_err(unavailable("open the database"))?;
        MIGRATIONS.run(&writer).await.map_err(not_migrated)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true))
            .await
            .map_err(unavailable("open the database for reading"))?;
        Ok(Self {
            writer,
            readers,
            _lock: lock,
        })
    }

    /// A write transaction that holds the lease as the caller knows it, or `Fenced`.
    async fn fenced(&self, fence: &Fence) -> Result<Transaction<'_, Sqlite>, StoreError> {
        let mut tx = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(unavailable("begin a transaction"))?;
        let (epoch, leader): (i64, String) = sqlx::query_as("SELECT epoch, leader FROM lease WHERE id = 1")
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable("read the lease"))?;
        if from_sql(epoch) == fence.epoch.0 && leader == fence.leader {
            Ok(tx)
        } else {
            Err(StoreError::Fenced(Epoch(from_sql(epoch))))
        }
    }
}

async fn insert_events(
    tx: &mut Transaction<'_, Sqlite>,
    id: &RollbackId,
    after: u64,
    events: &[Event],
) -> Result<(), StoreError> {
    let last: Option<(i64, String)> =
        sqlx::query_as("SELECT seq, hash FROM events WHERE rollback_id = ? ORDER BY seq DESC LIMIT 1")
            .bind(id.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(unavailable("read the journal's end"))?;
    let last = last.map_or((0, String::new()), |(seq, hash)| (from_sql(seq), hash));
    if last.0 != after {
        return Err(StoreError::Conflict);
    }
    for link in chain::forge(last, events)? {
        sqlx::query(
            "INSERT INTO events (rollback_id, seq, format, payload, prev_hash, hash) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(id.as_str())
        .bind(to_sql(link.seq))
        .bind(EVENT_FORMAT)
        .bind(&link.payload)
        .bind(&link.prev_hash)
        .bind(&link.hash)
        .execute(&mut **tx)
        .await
        .map_err(unavailable("append to the journal"))?;
    }
    Ok(())
}

async fn put(tx: &mut Transaction<'_, Sqlite>, documents: &[Document]) -> Result<(), StoreError> {
    for ((kind, key), body) in last_of_each_key(documents) {
        let query = match body {
            Some(body) => sqlx::query("INSERT OR REPLACE INTO documents (kind, key, body) VALUES (?, ?, ?)")
                .bind(kind)
                .bind(key)
                .bind(body),
            None => sqlx::query("DELETE FROM documents WHERE kind = ? AND key = ?")
                .bind(kind)
                .bind(key),
        };
        query.execute(&mut **tx).await.map_err(unavailable("write documents"))?;
    }
    Ok(())
}

#[async_trait]
impl Store for SqliteStore {
    /// There is one process for each file (see [`super::lock`]), so nobody else can hold the lease, and it does not run
    /// out.
    async fn campaign(&self, candidate: &Candidate, _ttl: Duration, at_least: Epoch) -> Result<Campaign, StoreError> {
        let epoch: i64 = sqlx::query_scalar(
            "UPDATE lease SET epoch = max(epoch + 1, ?), leader = ?, endpoint = ?, since = ? WHERE id = 1 RETURNING epoch",
        )
        .bind(to_sql(at_least.0))
        .bind(&candidate.id)
        .bind(&candidate.endpoint)
        .bind(Timestamp::now().to_string())
        .fetch_one(&self.writer)
        .await
        .map_err(unavailable("take the lead"))?;
        Ok(Campaign::Won(Epoch(from_sql(epoch))))
    }

    async fn renew(&self, fence: &Fence, _ttl: Duration) -> Result<(), StoreError> {
        let lease = self.lease().await?;
        if lease.epoch == fence.epoch && lease.leader == fence.leader {
            Ok(())
        } else {
            Err(StoreError::Fenced(lease.epoch))
        }
    }

    async fn give_back(&self, _fence: &Fence) -> Result<(), StoreError> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        let (epoch, leader, endpoint): (i64, String, String) =
            sqlx::query_as("SELECT epoch, leader, endpoint FROM lease WHERE id = 1")
                .fetch_one(&self.readers)
                .await
                .map_err(unavailable("read the lease"))?;
        Ok(Lease {
            epoch: Epoch(from_sql(epoch)),
            leader,
            endpoint,
            left: Duration::MAX,
        })
    }

    async fn create(&self, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
        let mut tx = self.fenced(fence).await?;
        let existing: Option<String> = sqlx::query_scalar("SELECT id FROM rollbacks WHERE request_id = ?")
            .bind(&rollback.request_id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable("look the request up"))?;
        if let Some(id) = existing {
            return Ok(Created::Existing(id.into()));
        }
        sqlx::query("INSERT INTO rollbacks (id, request_id, running, summary) VALUES (?, ?, 1, ?)")
            .bind(rollback.id.as_str())
            .bind(&rollback.request_id)
            .bind(&rollback.summary)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("write the rollback"))?;
        for target in &rollback.scope {
            let taken =
                sqlx::query("INSERT INTO scope (host, component, rollback_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                    .bind(target.host.as_str())
                    .bind(target.component.as_str())
                    .bind(rollback.id.as_str())
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable("take the scope"))?;
            if taken.rows_affected() == 0 {
                let holder: String =
                    sqlx::query_scalar("SELECT rollback_id FROM scope WHERE host = ? AND component = ?")
                        .bind(target.host.as_str())
                        .bind(target.component.as_str())
                        .fetch_one(&mut *tx)
                        .await
                        .map_err(unavailable("read the scope's holder"))?;
                // The transaction is dropped, and with it everything above.
                return Ok(Created::ScopeHeld {
                    target: target.clone(),
                    holder: holder.into(),
                });
            }
        }
        insert_events(&mut tx, &rollback.id, 0, &rollback.events).await?;
        tx.commit().await.map_err(unavailable("commit the new rollback"))?;
        Ok(Created::New)
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
        let mut tx = self.fenced(fence).await?;
        insert_events(&mut tx, id, after, events).await?;
        sqlx::query("UPDATE rollbacks SET summary = ?, running = ? WHERE id = ?")
            .bind(summary)
            .bind(i64::from(closing.is_none()))
            .bind(id.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("write the summary"))?;
        if let Some(closing) = closing {
            sqlx::query("DELETE FROM scope WHERE rollback_id = ?")
                .bind(id.as_str())
                .execute(&mut *tx)
                .await
                .map_err(unavailable("give the scope back"))?;
            let abandoned = closing.abandoned.iter().map(|name| (name, "false"));
            for (name, stable) in abandoned.chain(closing.works.iter().map(|name| (name, "true"))) {
                sqlx::query("UPDATE releases SET document = json_set(document, '$.stable', json(?)) WHERE name = ?")
                    .bind(stable)
                    .bind(name.as_str())
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable("mark a release"))?;
            }
            put(&mut tx, &closing.documents).await?;
        }
        tx.commit().await.map_err(unavailable("commit events"))
    }

    async fn events(&self, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq, payload, prev_hash, hash FROM events WHERE rollback_id = ? AND seq > ? ORDER BY seq",
        )
        .bind(id.as_str())
        .bind(to_sql(after))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable("read the journal"))?;
        let links = rows.iter().map(|row| Link {
            seq: from_sql(row.get("seq")),
            payload: row.get("payload"),
            prev_hash: row.get("prev_hash"),
            hash: row.get("hash"),
        });
        chain::read(id, after, links.collect())
    }

    async fn requested(&self, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
        let id: Option<String> = sqlx::query_scalar("SELECT id FROM rollbacks WHERE request_id = ?")
            .bind(request_id)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("look the request up"))?;
        Ok(id.map(RollbackId::from))
    }

    async fn holder(&self, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
        let held = self.scopes().await?;
        Ok(targets
            .iter()
            .find_map(|t| held.get(t).map(|id| (t.clone(), id.clone()))))
    }

    async fn scopes(&self) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
        let held: Vec<(String, String, String)> = sqlx::query_as("SELECT host, component, rollback_id FROM scope")
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("read the scopes"))?;
        let one = |(host, component, id): (String, String, String)| (Target::new(host, component), id.into());
        Ok(held.into_iter().map(one).collect())
    }

    async fn running(&self) -> Result<Vec<RollbackId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM rollbacks WHERE running = 1 ORDER BY id")
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list running rollbacks"))?;
        Ok(ids.into_iter().map(RollbackId::from).collect())
    }

    async fn summaries(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT summary FROM rollbacks ORDER BY id DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list rollbacks"))
    }

    async fn summary(&self, id: &RollbackId) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT summary FROM rollbacks WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a rollback"))
    }

    async fn add_release(&self, release: &Release) -> Result<bool, StoreError> {
        let document = serde_json::to_string(release).map_err(damaged("a release"))?;
        let written =
            sqlx::query("INSERT INTO releases (name, recorded_at, document) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(release.name.as_str())
                .bind(release.rank().to_string())
                .bind(document)
                .execute(&self.writer)
                .await
                .map_err(unavailable("write the release"))?;
        Ok(written.rows_affected() == 1)
    }

    async fn release(&self, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
        let document: Option<String> = sqlx::query_scalar("SELECT document FROM releases WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a release"))?;
        document
            .map(|d| serde_json::from_str(&d).map_err(damaged("a release")))
            .transpose()
    }

    async fn releases(&self) -> Result<Vec<Release>, StoreError> {
        let documents: Vec<String> = sqlx::query_scalar("SELECT document FROM releases")
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list releases"))?;
        let read = |d: &String| serde_json::from_str(d).map_err(damaged("a release"));
        let releases: Result<Vec<Release>, StoreError> = documents.iter().map(read).collect();
        // Not by the column: as text, half a second later is earlier.
        releases.map(newest_first)
    }

    async fn update_release(&self, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
        let mut tx = self.fenced(fence).await?;
        let stored: Option<String> = sqlx::query_scalar("SELECT document FROM releases WHERE name = ?")
            .bind(release.name.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable("read a release"))?;
        let Some(stored) = stored else {
            return Ok(false);
        };
        let stored: Release = serde_json::from_str(&stored).map_err(damaged("a release"))?;
        let document = serde_json::to_string(&relabelled(stored, release)).map_err(damaged("a release"))?;
        sqlx::query("UPDATE releases SET document = ? WHERE name = ?")
            .bind(document)
            .bind(release.name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("write the release"))?;
        tx.commit().await.map_err(unavailable("commit the release"))?;
        Ok(true)
    }

    async fn remove_release(&self, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
        let mut tx = self.fenced(fence).await?;
        let removed = sqlx::query("DELETE FROM releases WHERE name = ?")
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(unavailable("remove the release"))?;
        tx.commit().await.map_err(unavailable("commit the removal"))?;
        Ok(removed.rows_affected() == 1)
    }

    async fn put_documents(&self, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
        let mut tx = self.fenced(fence).await?;
        put(&mut tx, documents).await?;
        tx.commit().await.map_err(unavailable("commit documents"))
    }

    async fn add_document(&self, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
        let mut tx = self.fenced(fence).await?;
        let Some(body) = &document.body else {
            return Ok(false);
        };
        let added = sqlx::query("INSERT INTO documents (kind, key, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(document.kind.as_str())
            .bind(&document.key)
            .bind(body)
            .execute(&mut *tx)
            .await
            .map_err(unavailable("add a document"))?;
        tx.commit().await.map_err(unavailable("commit a document"))?;
        Ok(added.rows_affected() == 1)
    }

    async fn document(&self, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
        let body: Option<String> = sqlx::query_scalar("SELECT body FROM documents WHERE kind = ? AND key = ?")
            .bind(kind.as_str())
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .map_err(unavailable("read a document"))?;
        Ok(body.map(|body| Document {
            kind,
            key: key.to_owned(),
            body: Some(body),
        }))
    }

    async fn documents_under(&self, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
        let (from, to) = keys_under(beginning);
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT key, body FROM documents WHERE kind = ? AND key >= ? AND key < ? ORDER BY key")
                .bind(kind.as_str())
                .bind(from)
                .bind(to)
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable("list documents"))?;
        let document = |(key, body)| Document {
            kind,
            key,
            body: Some(body),
        };
        Ok(rows.into_iter().map(document).collect())
    }

    async fn save_agent(&self, agent: &AgentRecord) -> Result<(), StoreError> {
        let document = serde_json::to_string(agent).map_err(damaged("an agent"))?;
        sqlx::query(
            "INSERT INTO agents (name, document, ledger_generation, generation_changed_at) VALUES (?, ?, ?, '')
             ON CONFLICT (name) DO UPDATE SET document = excluded.document, ledger_generation = excluded.ledger_generation",
        )
        .bind(&agent.name)
        .bind(document)
        .bind(&agent.ledger_generation)
        .execute(&self.writer)
        .await
        .map_err(unavailable("write the agent"))?;
        Ok(())
    }

    async fn agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        let documents: Vec<String> = sqlx::query_scalar("SELECT document FROM agents ORDER BY name")
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable("list agents"))?;
        Ok(documents.iter().filter_map(|d| AgentRecord::read(d)).collect())
    }

    async fn add_token(&self, token: &NewToken) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO tokens (hash, name, created_by, expires_at) VALUES (?, ?, ?, ?)")
            .bind(&token.hash)
            .bind(&token.name)
            .bind(&token.created_by)
            .bind(token.expires_at.as_second())
            .execute(&self.writer)
            .await
            .map_err(unavailable("write the token"))?;
        Ok(())
    }

    async fn redeem_token(&self, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar(
            "UPDATE tokens SET redeemed_at = ?1 WHERE hash = ?2 AND redeemed_at IS NULL AND expires_at > ?1 RETURNING name",
        )
        .bind(now.as_second())
        .bind(hash)
        .fetch_optional(&self.writer)
        .await
        .map_err(unavailable("redeem the token"))
    }
}
