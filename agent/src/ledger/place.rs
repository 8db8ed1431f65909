//! Where the ledger lives: the state directory, its rights, its lock, and the open database.

use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::LedgerError;
use crate::files::open_private;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{verb} {}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is in use by another rollback-agent", path.display())]
    InUse { path: PathBuf },
    #[error("open ledger {}", path.display())]
    Database {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    #[error(
        "bring ledger {} to the form of this version (if the file is damaged, move it away: a new one gets another \
         generation, and the coordinator will ask for a look at this host)",
        path.display()
    )]
    Migrate {
        path: PathBuf,
        #[source]
        source: sqlx::migrate::MigrateError,
    },
}

impl OpenError {
    /// Of a ledger that was open before.
    pub(super) fn into_disk(self) -> LedgerError {
        let source = match self {
            OpenError::Database { source, .. } => source,
            OpenError::Migrate { source, .. } => source.into(),
            OpenError::File { source, .. } => source.into(),
            OpenError::InUse { path } => sqlx::Error::Io(std::io::Error::other(path.display().to_string())),
        };
        LedgerError::from(source)
    }
}

/// Held as long as the ledger is open. Two agents on one ledger would run every step twice.
#[derive(Debug)]
pub(super) struct StateLock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

/// Makes the directory 0700 and takes its lock.
pub(super) fn claim(state: &Path) -> Result<StateLock, OpenError> {
    let file = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { verb, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(file("create", state))?;
    std::fs::set_permissions(state, Permissions::from_mode(0o700)).map_err(file("restrict", state))?;
    let path = state.join("agent.lock");
    let lock = open_private(&path).map_err(file("open", &path))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| OpenError::InUse { path: state.to_owned() })?;
    let database = database(state);
    let opened = open_private(&database).map_err(file("open", &database))?;
    // SQLite gives its WAL the database's mode.
    opened
        .set_permissions(Permissions::from_mode(0o600))
        .map_err(file("restrict", &database))?;
    Ok(StateLock(lock))
}

fn database(state: &Path) -> PathBuf {
    state.join("ledger.db")
}

/// Opens the database and brings it to the form of this version. The row of `meta` exists afterwards.
pub(super) async fn connect(state: &Path) -> Result<SqliteConnection, OpenError> {
    let path = database(state);
    let failed = |source| OpenError::Database {
        path: path.clone(),
        source,
    };
    let mut connection = SqliteConnectOptions::new()
        .filename(&path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // An operator's sqlite3 shell may hold it for a moment.
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
        .connect()
        .await
        .map_err(failed)?;
    MIGRATIONS
        .run_direct(None, &mut connection, false)
        .await
        .map_err(|source| OpenError::Migrate {
            path: path.clone(),
            source,
        })?;
    let mut transaction = connection.begin().await.map_err(failed)?;
    sqlx::query("INSERT OR IGNORE INTO meta (one, generation) VALUES (1, ?)")
        .bind(uuid::Uuid::new_v4().to_string())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(connection)
}

pub(super) async fn generation(state: &Path, connection: &mut SqliteConnection) -> Result<String, OpenError> {
    sqlx::query("SELECT generation FROM meta")
        .fetch_one(connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|source| OpenError::Database {
            path: database(state),
            source,
        })
}

/// Forgets steps that nobody will ask for any more.
pub(super) async fn forget(state: &Path, connection: &mut SqliteConnection, before: i64) -> Result<u64, OpenError> {
    sqlx::query(
        "DELETE FROM steps WHERE (state = 'ended' AND ended_at < ?1) OR (state = 'interrupted' AND interrupted_at < ?1)",
    )
    .bind(before)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
    .map_err(|source| OpenError::Database { path: database(state), source })
}
