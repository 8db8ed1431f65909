//! The task that owns the ledger's connection.
//!
//! Requests that wait at the same time form a batch: one transaction, one fsync. When anything in a batch fails, the
//! whole batch is rolled back and everybody in it is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollback_proto::kill_point;
use rollback_proto::v1::{ExecuteRequest, Outcome};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use super::place::{OpenError, StateLock, claim, connect, forget, generation};
use super::rows::{Rows, Seen, millis, now, read_seen};
use super::{ArgsDigest, Begin, Fence, LedgerError, RETENTION, Recalled, StepKey, Unfinished};

/// Requests of one transaction.
const BATCH: usize = 64;

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
    Recall {
        fence: Fence,
        rollbacks: Vec<String>,
        reply: Reply<Recalled>,
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
            Ask::Recall { reply, .. } => no(reply, error),
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
    state: PathBuf,
    /// `None` after a transaction that failed. When the disk is full SQLite takes a transaction back by itself, and the client's
    /// own count of open ones is wrong from then on: what it would call a commit could be the end of a savepoint, and not on
    /// the disk.
    connection: Option<SqliteConnection>,
    generation: Arc<str>,
    /// As it is on the disk. `None` when that is not known: at the start, and after a commit that failed.
    seen: Option<Seen>,
    _lock: StateLock,
}

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
            state: state.to_owned(),
            connection: Some(connection),
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
        let Some(connection) = self.connection else { return };
        if let Err(error) = connection.close().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "close ledger");
        }
    }

    /// One transaction. On an error, what is in `held` must be given that error, and what is left in the batch, too.
    async fn serve(&mut self, batch: &mut Vec<Ask>, held: &mut Vec<Held>) -> Result<(), LedgerError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.state).await.map_err(OpenError::into_disk)?,
        };
        let mut transaction = connection.begin().await?;
        let seen = match self.seen.clone() {
            Some(seen) => seen,
            None => read_seen(&mut transaction).await?,
        };
        let mut rows = Rows::new(&mut transaction, seen);
        let mut failed = None;
        for ask in batch.drain(..) {
            held.push(answer(&mut rows, ask, &mut failed).await);
        }
        let (seen, wrote) = rows.end();
        match failed {
            // Dropping the connection rolls it back.
            Some(error) => Err(error),
            None => {
                let kill_points = |when| {
                    for what in &wrote {
                        kill_point::pass(|| format!("ledger.{what}.{when}"));
                    }
                };
                kill_points("before");
                transaction.commit().await?;
                kill_points("after");
                self.seen = Some(seen);
                self.connection = Some(connection);
                Ok(())
            }
        }
    }
}

async fn answer(rows: &mut Rows<'_>, ask: Ask, failed: &mut Option<LedgerError>) -> Held {
    match ask {
        Ask::Observe { fence, reply } => hold(reply, rows.observe(fence).await, failed),
        Ask::Look {
            fence,
            key,
            digest,
            reply,
        } => hold(reply, rows.look(fence, &key, &digest).await, failed),
        Ask::Begin {
            fence,
            key,
            digest,
            request,
            reply,
        } => hold(reply, rows.begin(fence, &key, &digest, &request).await, failed),
        Ask::Finish { key, outcome, reply } => hold(reply, rows.finish(&key, &outcome).await, failed),
        Ask::Interrupt { key, reply } => hold(reply, rows.interrupt(&key).await, failed),
        Ask::Unfinished { reply } => hold(reply, rows.unfinished().await, failed),
        Ask::Recall {
            fence,
            rollbacks,
            reply,
        } => hold(reply, rows.recall(fence, &rollbacks).await, failed),
    }
}
