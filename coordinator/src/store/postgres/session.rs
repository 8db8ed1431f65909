//! Connections, and transactions that end in time, well or badly.
//!
//! Invariants:
//! - Everything is asked inside an explicit transaction, with unnamed statements, and leaves nothing behind in the
//!   session: so a pooler in transaction mode may stand between (it gives every transaction another connection).
//! - The server ends a transaction whose client stands still ([`WRITE`], [`READ`]): a leader that was stopped while it
//!   held the lease's row must not keep the next one from taking over.
//! - The client gives an answer after [`ANSWER`] at the latest, also when the network swallows everything. sqlx cannot be
//!   told to set keepalives or `TCP_USER_TIMEOUT` on its sockets; this takes their place.
//! - A connection on which something did not end as it should is closed, not given back. That takes its transaction back,
//!   too, and it cannot hang in the pool.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Connection as _, FromRow, PgConnection, Postgres};
use tokio::time::{Instant, timeout_at};

use crate::store::StoreError;

/// An answer is there after so long: connecting, waiting for a free connection and the whole transaction together.
pub const ANSWER: Duration = Duration::from_secs(3);

/// How long a connection may have been idle to be used without asking whether it still lives.
const TRUSTED: Duration = Duration::from_millis(500);

/// One simple query, so one exchange. READ COMMITTED, because a lock that was waited for must be judged by what is true
/// then. A database whose default is not to wait for the disk is told to wait; what else it waits for is its owner's
/// business.
const WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = '2500ms'; \
    SET LOCAL lock_timeout = '2000ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '1000ms'; \
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'";

/// As [`WRITE`], and everything that is read in it is of one instant.
const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL statement_timeout = '2500ms'; \
    SET LOCAL lock_timeout = '2000ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '1000ms'";

/// A few connections for one purpose, so that purposes do not wait for each other.
#[derive(Clone)]
pub struct Lane(PgPool);

impl Lane {
    /// Connects when it is first used.
    pub fn new(options: &PgConnectOptions, connections: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ANSWER)
            .test_before_acquire(false)
            // A server that was restarted shows here, and not in a transaction of which then nobody knows what came.
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        Self(pool.connect_lazy_with(options.clone()))
    }

    pub async fn write(&self, what: &'static str) -> Result<Transaction, StoreError> {
        self.begin(what, WRITE).await
    }

    pub async fn read(&self, what: &'static str) -> Result<Transaction, StoreError> {
        self.begin(what, READ).await
    }

    async fn begin(&self, what: &'static str, begin: &'static str) -> Result<Transaction, StoreError> {
        let deadline = Instant::now() + ANSWER;
        let unavailable = |source| StoreError::Unavailable { what, source };
        let connection = match timeout_at(deadline, self.0.acquire()).await {
            Ok(Ok(connection)) => connection,
            // The pool says no more than that: it goes on trying where a connection is refused.
            Err(_) | Ok(Err(sqlx::Error::PoolTimedOut)) => {
                return Err(unavailable(late("cannot be reached, or is busy")));
            }
            Ok(Err(e)) => return Err(unavailable(e)),
        };
        let mut transaction = Transaction {
            connection: Some(connection),
            what,
            deadline,
        };
        transaction.simple(begin).await?;
        Ok(transaction)
    }
}

/// An open transaction. What was not committed is taken back when it is dropped.
pub struct Transaction {
    /// `None` at the end only.
    connection: Option<PoolConnection<Postgres>>,
    /// What it is for, as messages say it.
    what: &'static str,
    deadline: Instant,
}

impl Transaction {
    pub async fn all<T>(&mut self, query: QueryAs<'_, Postgres, T, PgArguments>) -> Result<Vec<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let query = query.persistent(false);
        self.within(async |connection| query.fetch_all(connection).await).await
    }

    pub async fn optional<T>(&mut self, query: QueryAs<'_, Postgres, T, PgArguments>) -> Result<Option<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Ok(self.all(query).await?.pop())
    }

    /// The number of rows that it wrote.
    pub async fn execute(&mut self, query: Query<'_, Postgres, PgArguments>) -> Result<u64, StoreError> {
        let query = query.persistent(false);
        let done = self.within(async |connection| query.execute(connection).await).await?;
        Ok(done.rows_affected())
    }

    /// Statements without arguments.
    pub async fn simple(&mut self, sql: &'static str) -> Result<(), StoreError> {
        self.within(async |connection| sqlx::raw_sql(sql).execute(connection).await)
            .await
            .map(drop)
    }

    /// Once this has returned `Ok`, what was written is there. `Unavailable`: nobody knows.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.end("COMMIT").await
    }

    /// Takes everything back and keeps the connection, which dropping does not.
    pub async fn roll_back(self) -> Result<(), StoreError> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), StoreError> {
        self.simple(how).await?;
        // Only now the connection is as it was.
        drop(self.connection.take());
        Ok(())
    }

    fn unavailable(&self, source: sqlx::Error) -> StoreError {
        if source.as_database_error().is_some_and(|e| e.is_unique_violation()) {
            StoreError::Conflict
        } else {
            StoreError::Unavailable {
                what: self.what,
                source,
            }
        }
    }

    async fn within<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let connection = self.connection.as_mut().expect("a transaction that was not ended");
        match timeout_at(self.deadline, ask(connection)).await {
            Ok(answer) => answer.map_err(|e| self.unavailable(e)),
            Err(_) => Err(self.unavailable(late("gave no answer"))),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // Detached, a connection is closed at once. Given back, it would be asked whether it lives, without a limit of
        // time, and would keep its place in the pool for so long.
        drop(self.connection.take().map(PoolConnection::detach));
    }
}

fn late(what: &str) -> sqlx::Error {
    let seconds = ANSWER.as_secs();
    std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("PostgreSQL {what}, for {seconds} s"),
    )
    .into()
}
