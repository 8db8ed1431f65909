//! A look at the database before a coordinator starts: does it answer, does it let us in, and which schema has it? Writes
//! nothing, and takes no lock.

use sqlx::{Connection as _, query_as, raw_sql};

use super::{Server, options, schema};
use crate::config::StoreConfig;
use crate::store::open::{OpenError, read_password};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// For people; without a password.
    pub place: String,
    /// `None`: no coordinator has been here.
    pub schema: Option<i64>,
    /// This program's.
    pub newest: i64,
}

/// Fails where a start would fail, too, but for the right to make tables.
pub async fn look(config: &StoreConfig) -> Result<Found, OpenError> {
    let url = config.url.as_deref().unwrap_or_default();
    let password = config.password_file.as_deref().map(read_password).transpose()?;
    let mut options = options(url)?;
    if let Some(password) = password {
        options = options.password(&password);
    }
    let server = Server::of(&options);
    let mut connection = server.connect(&options).await?;
    let failed = |source| OpenError::Unreachable {
        server: server.server.clone(),
        source,
    };
    // Behind a pooler, only what is asked in one transaction is asked on one connection.
    raw_sql("BEGIN READ ONLY; SET LOCAL statement_timeout = '2500ms'")
        .execute(&mut connection)
        .await
        .map_err(failed)?;
    let (is_new,): (bool,) = query_as("SELECT to_regclass('_sqlx_migrations') IS NULL")
        .persistent(false)
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    let applied: Vec<(i64, Vec<u8>)> = if is_new {
        Vec::new()
    } else {
        query_as("SELECT version, checksum FROM _sqlx_migrations ORDER BY version")
            .persistent(false)
            .fetch_all(&mut connection)
            .await
            .map_err(failed)?
    };
    // All was read; a connection that does not close in order does no harm.
    drop(connection.close().await);
    schema::missing(&applied)?;
    Ok(Found {
        place: format!("PostgreSQL database {} at {}", server.database, server.server),
        schema: applied.last().map(|(version, _)| *version),
        newest: schema::newest(),
    })
}
