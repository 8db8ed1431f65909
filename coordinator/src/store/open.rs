//! Opens the store that the configuration names, and says what is in the way in the words of whoever has to mend it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::kill_points::KillPoints;
use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{Store, StoreError};
use crate::config::Config;

/// Why a store could not be opened. No message has a password in it, nor a URL that could have one.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite only.
    #[error("{holder} has {} open: stop it first, or give this one a state directory of its own", database.display())]
    InUse { database: PathBuf, holder: String },
    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "others may read {} (mode {mode:03o}), which has the database's password: chmod 600 {0}",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("store.url is not one of PostgreSQL ({why}): write postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full")]
    BadUrl { why: String },
    #[error(
        "there is no database {database} at {server}: make it, owned by {user}: CREATE DATABASE {database} OWNER {user}"
    )]
    NoDatabase {
        server: String,
        database: String,
        user: String,
    },
    #[error(
        "{server} does not let {user} into {database} ({why}): look at store.password_file, and at its pg_hba.conf"
    )]
    Refused {
        server: String,
        database: String,
        user: String,
        why: String,
    },
    #[error(
        "PostgreSQL at {server} cannot be reached: see that it runs, and that its address and sslmode in store.url are right"
    )]
    Unreachable {
        server: String,
        #[source]
        source: sqlx::Error,
    },
    #[error("{server} is a standby, which cannot be written to: let store.url lead to the primary")]
    Standby { server: String },
    #[error(
        "the store has schema {found}, this program knows those up to {known}: a newer coordinator has upgraded it; run \
         that version here, too"
    )]
    Newer { found: i64, known: i64 },
    #[error(
        "schema {version} of the store is not the one that this program has under that number: another build made it"
    )]
    Foreign { version: i64 },
    #[error("bring the store to schema {version}: the database's user has to own the database")]
    Migrate {
        version: i64,
        #[source]
        source: sqlx::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The configured store, with kill points around every durable write (debug builds pass them, releases do not).
pub async fn open(config: &Config) -> Result<Arc<dyn Store>, OpenError> {
    let Some(url) = &config.store.url else {
        let store = SqliteStore::open(&config.database(), &config.name).await?;
        return Ok(Arc::new(KillPoints::around(store)));
    };
    let password = config.store.password_file.as_deref().map(read_password).transpose()?;
    let store = PostgresStore::open(url, password.as_deref()).await?;
    Ok(Arc::new(KillPoints::around(store)))
}

/// The first line: editors end files with one.
pub(super) fn read_password(path: &Path) -> Result<String, OpenError> {
    let failed = |source| OpenError::File {
        what: "read the password's file",
        path: path.to_owned(),
        source,
    };
    let mode = std::fs::metadata(path).map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(OpenError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_that_others_may_read_is_refused_and_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "geheim\n").expect("write");
        let allow = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
        allow(0o640);
        let refused = read_password(file.path())
            .expect_err("the group may read it")
            .to_string();
        assert!(refused.contains("mode 640") && refused.ends_with(&format!("chmod 600 {}", file.path().display())));
        assert!(!refused.contains("geheim"), "{refused}");
        allow(0o600);
        assert_eq!(read_password(file.path()).expect("it is private"), "geheim");
    }
}
