//! Brings the database's schema up to date, whoever else does so at the same time.
//!
//! Everything is one transaction behind a transaction-level advisory lock: of eight replicas that start on an empty
//! database, one makes the tables and seven find them. sqlx's own migrator holds a lock of the *session* and names its
//! statements, and both go wrong behind a pooler in transaction mode. Its list of migrations and its table are used, so its
//! command-line tool understands the database.

use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};
use sqlx::{PgConnection, query, query_as, raw_sql};

use crate::store::open::OpenError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Longer than for anything else: a migration may rewrite a table, and the others wait for it.
const PATIENCE: Duration = Duration::from_secs(120);

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
    SET LOCAL statement_timeout = '120s'; \
    SET LOCAL lock_timeout = '120s'; \
    SET LOCAL idle_in_transaction_session_timeout = '10s'; \
    SELECT pg_advisory_xact_lock(5927301118265003)";

const BOOK: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations ( \
        version BIGINT PRIMARY KEY, \
        description TEXT NOT NULL, \
        installed_on TIMESTAMPTZ NOT NULL DEFAULT now(), \
        success BOOLEAN NOT NULL, \
        checksum BYTEA NOT NULL, \
        execution_time BIGINT NOT NULL \
    )";

/// The number of migrations that were missing. When it fails, nothing has changed; the connection is not to be used again.
pub async fn bring_up_to_date(connection: &mut PgConnection) -> Result<usize, OpenError> {
    let late = |_| OpenError::Migrate {
        version: newest(),
        source: std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
    };
    tokio::time::timeout(PATIENCE, migrate(connection))
        .await
        .map_err(late)?
}

async fn migrate(connection: &mut PgConnection) -> Result<usize, OpenError> {
    let failed = |version| move |source| OpenError::Migrate { version, source };
    let begun = failed(newest());
    raw_sql(BEGIN).execute(&mut *connection).await.map_err(begun)?;
    // Whoever may only read and write what there is cannot say CREATE TABLE IF NOT EXISTS either.
    let (is_new,): (bool,) = query_as("SELECT to_regclass('_sqlx_migrations') IS NULL")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(begun)?;
    if is_new {
        raw_sql(BOOK).execute(&mut *connection).await.map_err(begun)?;
    }
    let applied: Vec<(i64, Vec<u8>)> = query_as("SELECT version, checksum FROM _sqlx_migrations ORDER BY version")
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(begun)?;
    let missing = missing(&applied)?;
    for migration in &missing {
        let failed = failed(migration.version);
        raw_sql(migration.sql.clone())
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES ($1, $2, true, $3, -1)",
        )
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .persistent(false)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    raw_sql("COMMIT").execute(connection).await.map_err(begun)?;
    Ok(missing.len())
}

pub(super) fn missing(applied: &[(i64, Vec<u8>)]) -> Result<Vec<&'static Migration>, OpenError> {
    let known = |version| MIGRATIONS.iter().find(|m| m.version == version);
    for (version, checksum) in applied {
        let Some(ours) = known(*version) else {
            return Err(OpenError::Newer {
                found: *version,
                known: newest(),
            });
        };
        if ours.checksum != checksum.as_slice() {
            return Err(OpenError::Foreign { version: *version });
        }
    }
    let is_missing = |m: &&Migration| applied.iter().all(|(version, _)| *version != m.version);
    Ok(MIGRATIONS.iter().filter(is_missing).collect())
}

pub(super) fn newest() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}
