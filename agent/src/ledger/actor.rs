//! The task that owns the ledger's connection.
//!
//! Requests that wait at the same time form a batch: one transaction, one fsync. When anything in a batch fails, the
//! whole batch is rolled back and everybody in it is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rollback_proto::v1::{ExecuteRequest, Outcome};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, oneshot};

use super::place::{OpenError, StateLock, claim, connect, forget, generation};
use super::{ArgsDigest, Begin, Fence, LedgerError, StepKey, Unfinished};

/// Requests of one transaction.
const BATCH: usize = 64;
/// How long steps that ended are remembered. A coordinator that asks after a month has other worries.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// A request to the task.
#[derive(Debug)]
pub(super) enum Ask {
    Observe {
        fence: Fence,
        reply: Reply<()>,
    },
    Look {
        fence: Fence,
        key: StepKey,
        digest: ArgsDigest,
        reply: Reply<Begin>,
    },
    Begin {
        fence: Fence,
        key: StepKey,
        digest: ArgsDigest,
        request: Box<ExecuteRequest>,
        reply: Reply<Begin>,
    },
    Finish {
        key: StepKey,
        outcome: Box<Outcome>,
        reply: Reply<()>,
    },
    Interrupt {
        key: StepKey,
        reply: Reply<()>,
    },
    Unfinished {
        reply: Reply<Vec<Unfinished>>,
    },
}

impl Ask {
    fn refuse(self, error: &LedgerError) {
        fn no<T>(reply: Reply<T>, error: &LedgerError) {
            // A caller that went away does not need the answer.
            drop(reply.send(Err(error.clone())));
        }
        match self {
            Ask::Observe { reply, .. } | Ask::Finish { reply, .. } | Ask::Interrupt { reply, .. } => no(reply, error),
            Ask::Look { reply, .. } | Ask::Begin { reply, .. } => no(reply, error),
            Ask::Unfinished { reply } => no(reply, error),
        }
    }
}

/// An answer that waits for its transaction to be durable. It is given the error when that failed.
type Held = Box<dyn FnOnce(Option<&LedgerError>) + Send>;

fn hold<T: Send + 'static>(reply: Reply<T>, answer: Result<T, LedgerError>, failed: &mut Option<LedgerError>) -> Held {
    if let Err(error @ LedgerError::Disk(_)) = &answer {
        failed.get_or_insert_with(|| error.clone());
    }
    Box::new(move |failed| {
        drop(reply.send(match failed {
            Some(error) => Err(error.clone()),
            None => answer,
        }));
    })
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        LedgerError::Disk(Arc::new(error))
    }
}

pub(super) struct Actor {
    connection: SqliteConnection,
    generation: Arc<str>,
    /// As it is on the disk. `None` when that is not known: at the start, and after a commit that failed.
    seen: Option<Seen>,
    _lock: StateLock,
}

/// The highest epoch and its leader; `None` until the first leader spoke.
type Seen = Option<Fence>;

impl Actor {
    pub(super) async fn open(state: &Path) -> Result<Self, OpenError> {
        let lock = claim(state)?;
        let mut connection = connect(state).await?;
        let generation = generation(state, &mut connection).await?;
        let forgotten = forget(state, &mut connection, now() - millis(RETENTION)).await?;
        if forgotten > 0 {
            tracing::info!(steps = forgotten, "forgot old steps of the ledger");
        }
        Ok(Self {
            connection,
            generation: generation.into(),
            seen: None,
            _lock: lock,
        })
    }

    pub(super) fn generation(&self) -> Arc<str> {
        Arc::clone(&self.generation)
    }

    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Ask>) {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            let mut held = Vec::with_capacity(batch.len());
            let result = self.serve(&mut batch, &mut held).await;
            let failed = result.err();
            if let Some(error) = &failed {
                // Whether a commit that failed is on the disk is not known: read it again.
                self.seen = None;
                tracing::error!(error = error as &dyn std::error::Error, "write ledger");
                batch.drain(..).for_each(|ask| ask.refuse(error));
            }
            held.into_iter().for_each(|answer: Held| answer(failed.as_ref()));
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "close ledger");
        }
    }

    /// One transaction. On an error, what is in `held` must be given that error, and what is left in the batch, too.
    async fn serve(&mut self, batch: &mut Vec<Ask>, held: &mut Vec<Held>) -> Result<(), LedgerError> {
        let mut transaction = self.connection.begin().await?;
        let seen = match self.seen.clone() {
            Some(seen) => seen,
            None => read_seen(&mut transaction).await?,
        };
        let mut entries = Entries {
            connection: &mut transaction,
            seen,
        };
        let mut failed = None;
        for ask in batch.drain(..) {
            held.push(entries.answer(ask, &mut failed).await);
        }
        let seen = entries.seen;
        match failed {
            // Dropping the transaction rolls it back.
            Some(error) => Err(error),
            None => {
                transaction.commit().await?;
                self.seen = Some(seen);
                Ok(())
            }
        }
    }
}

async fn read_seen(connection: &mut SqliteConnection) -> Result<Seen, LedgerError> {
    let row = sqlx::query("SELECT max_epoch, leader_id FROM meta")
        .fetch_one(connection)
        .await?;
    let epoch: Option<i64> = row.try_get(0)?;
    let leader: Option<String> = row.try_get(1)?;
    Ok(epoch.zip(leader).map(|(epoch, leader)| Fence {
        epoch: epoch.cast_unsigned(),
        leader,
    }))
}

/// The rows, inside a transaction.
struct Entries<'a> {
    connection: &'a mut SqliteConnection,
    seen: Seen,
}

impl Entries<'_> {
    async fn answer(&mut self, ask: Ask, failed: &mut Option<LedgerError>) -> Held {
        match ask {
            Ask::Observe { fence, reply } => hold(reply, self.observe(fence).await, failed),
            Ask::Look {
                fence,
                key,
                digest,
                reply,
            } => hold(reply, self.look(fence, &key, &digest).await, failed),
            Ask::Begin {
                fence,
                key,
                digest,
                request,
                reply,
            } => hold(reply, self.begin(fence, &key, &digest, &request).await, failed),
            Ask::Finish { key, outcome, reply } => hold(reply, self.finish(&key, &outcome).await, failed),
            Ask::Interrupt { key, reply } => hold(reply, self.interrupt(&key).await, failed),
            Ask::Unfinished { reply } => hold(reply, self.unfinished().await, failed),
        }
    }

    /// Refuses a lower epoch, and the same epoch of another leader. Epochs of a store that lost commits can repeat;
    /// the leader's name tells the two apart.
    async fn observe(&mut self, fence: Fence) -> Result<(), LedgerError> {
        match &self.seen {
            Some(known) if *known == fence => return Ok(()),
            Some(known) if fence.epoch <= known.epoch => {
                return Err(LedgerError::Stale {
                    asking: fence,
                    known: known.clone(),
                });
            }
            Some(_) | None => {}
        }
        sqlx::query("UPDATE meta SET max_epoch = ?, leader_id = ?")
            .bind(fence.epoch.cast_signed())
            .bind(&fence.leader)
            .execute(&mut *self.connection)
            .await?;
        self.seen = Some(fence);
        Ok(())
    }

    async fn look(&mut self, fence: Fence, key: &StepKey, digest: &ArgsDigest) -> Result<Begin, LedgerError> {
        self.observe(fence).await?;
        let row = sqlx::query(
            "SELECT args_digest, state, outcome FROM steps WHERE rollback_id = ? AND step_id = ? AND attempt = ?",
        )
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .fetch_optional(&mut *self.connection)
        .await?;
        match row {
            None => Ok(Begin::New),
            Some(row) => known(key, digest, &row),
        }
    }

    async fn begin(
        &mut self,
        fence: Fence,
        key: &StepKey,
        digest: &ArgsDigest,
        request: &ExecuteRequest,
    ) -> Result<Begin, LedgerError> {
        let known = self.look(fence, key, digest).await?;
        if known == Begin::New {
            sqlx::query(
                "INSERT INTO steps (rollback_id, step_id, attempt, args_digest, request, state, intent_at)
                 VALUES (?, ?, ?, ?, ?, 'running', ?)
                 ON CONFLICT DO UPDATE SET state = 'running', request = excluded.request,
                                           intent_at = excluded.intent_at",
            )
            .bind(&key.rollback_id)
            .bind(&key.step_id)
            .bind(key.attempt)
            .bind(&digest[..])
            .bind(request.encode_to_vec())
            .bind(now())
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(known)
    }

    async fn finish(&mut self, key: &StepKey, outcome: &Outcome) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE steps SET state = 'ended', outcome = ?, ended_at = ?
             WHERE rollback_id = ? AND step_id = ? AND attempt = ? AND state = 'running'",
        )
        .bind(outcome.encode_to_vec())
        .bind(now())
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn interrupt(&mut self, key: &StepKey) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE steps SET state = 'interrupted', interrupted_at = ?, interruptions = interruptions + 1
             WHERE rollback_id = ? AND step_id = ? AND attempt = ? AND state = 'running'",
        )
        .bind(now())
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .execute(&mut *self.connection)
        .await?;
        Ok(())
    }

    async fn unfinished(&mut self) -> Result<Vec<Unfinished>, LedgerError> {
        let rows = sqlx::query(
            "SELECT rollback_id, step_id, attempt, request FROM steps WHERE state = 'running' ORDER BY intent_at",
        )
        .fetch_all(&mut *self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let key = StepKey {
                    rollback_id: row.try_get(0)?,
                    step_id: row.try_get(1)?,
                    attempt: row.try_get(2)?,
                };
                let request: Vec<u8> = row.try_get(3)?;
                match ExecuteRequest::decode(&request[..]) {
                    Ok(request) => Ok(Unfinished { key, request }),
                    Err(_) => Err(LedgerError::Damaged(key)),
                }
            })
            .collect()
    }
}

/// What a row says to somebody who asks with these arguments.
fn known(key: &StepKey, digest: &ArgsDigest, row: &SqliteRow) -> Result<Begin, LedgerError> {
    let recorded: Vec<u8> = row.try_get(0)?;
    if recorded != digest {
        return Ok(Begin::ArgsDiffer);
    }
    let state: String = row.try_get(1)?;
    let outcome: Option<Vec<u8>> = row.try_get(2)?;
    let damaged = || LedgerError::Damaged(key.clone());
    match (state.as_str(), outcome) {
        ("interrupted", None) => Ok(Begin::New),
        ("running", None) => Ok(Begin::Unfinished),
        ("ended", Some(outcome)) => {
            let outcome = Outcome::decode(&outcome[..]).map_err(|_| damaged())?;
            Ok(Begin::Known(Box::new(outcome)))
        }
        // The table's own checks allow nothing else.
        _ => Err(damaged()),
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
