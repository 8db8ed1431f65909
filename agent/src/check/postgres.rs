//! A check that a query on a PostgreSQL server returns a row (and does not return `false` or `NULL`, where its first
//! column is a boolean).

use std::path::PathBuf;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresCheck {
    /// A host name, or the directory of the server's socket.
    #[serde(default = "default_host")]
    host: String,
    #[serde(default = "default_port")]
    port: u16,
    user: String,
    database: String,
    /// A file (0600) that holds nothing but the password.
    password_file: Option<PathBuf>,
    #[serde(default = "default_query")]
    query: String,
}

fn default_host() -> String {
    "/run/postgresql".into()
}

fn default_port() -> u16 {
    5432
}

fn default_query() -> String {
    "SELECT 1".into()
}

impl PostgresCheck {
    pub fn target(&self) -> String {
        format!("postgres {} on {}:{}", self.database, self.host, self.port)
    }

    /// `Ok` and `Err` both say what was seen. The password is in neither.
    pub async fn ask(&self) -> Result<String, String> {
        let failed = |e: &dyn std::error::Error| format!("{}: {e}", self.target());
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .database(&self.database)
            .application_name("rollback-agent check")
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging();
        if self.host.starts_with('/') {
            options = options.socket(&self.host);
        }
        if let Some(path) = &self.password_file {
            let password = tokio::fs::read_to_string(path)
                .await
                .map_err(|e| format!("{}: read {}: {e}", self.target(), path.display()))?;
            options = options.password(password.trim_end_matches(['\r', '\n']));
        }
        let mut connection = options.connect().await.map_err(|e| failed(&e))?;
        // The query is the configuration's own; nobody else can set it.
        let answer = sqlx::query(AssertSqlSafe(self.query.clone()))
            .fetch_optional(&mut connection)
            .await;
        // The answer is what counts; a connection that cannot be closed politely is dropped.
        let _ = connection.close().await;
        match answer {
            Ok(Some(row)) if matches!(row.try_get::<Option<bool>, _>(0), Ok(Some(false) | None)) => {
                Err(format!("{}: the query returned false", self.target()))
            }
            Ok(Some(_)) => Ok("query returned".into()),
            Ok(None) => Err(format!("{}: the query returned no row", self.target())),
            Err(e) => Err(failed(&e)),
        }
    }
}
