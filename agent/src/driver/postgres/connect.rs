//! Connections to the server, and how its errors become problems.
//!
//! Two kinds of sessions: *readers* have an empty search path and fixed output formats, so that what they read of a
//! schema or of data is text that can be compared; *migrators* have exactly the settings that the project's own
//! migration tool would have.

use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use super::config::PostgresConfig;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Settings of a database that `CREATE DATABASE` does not copy: name and value.
pub(super) type Settings = Vec<(String, String)>;

/// Makes connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    config: Arc<PostgresConfig>,
    /// What `pg_stat_activity` shows, so that operators and our own recovery can tell our sessions.
    application: String,
}

impl Connector {
    pub fn new(config: Arc<PostgresConfig>, component: &str) -> Self {
        Self {
            config,
            application: application_name(component),
        }
    }

    /// A session whose settings are the database's own.
    pub async fn migrator(&self, database: &str, settings: &Settings) -> Result<PgConnection, Problem> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.config.host)
            .port(self.config.port)
            .username(&self.config.user)
            .database(database)
            .application_name(&self.application)
            .statement_cache_capacity(32);
        if let Some(password) = self.config.password()? {
            options = options.password(&password);
        }
        if !settings.is_empty() {
            options = options.options(settings.iter().map(|(k, v)| (k, v)));
        }
        let options = options.disable_statement_logging();
        let place = || {
            format!(
                "connect to database {database} at {}:{}",
                self.config.host, self.config.port
            )
        };
        let connecting = tokio::time::timeout(CONNECT_LIMIT, options.connect()).await;
        let mut connection = match connecting {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return Err(sql_problem(Code::DatabaseDown, place(), &e)),
            Err(_) => {
                let message = format!("{}: no answer within {} s", place(), CONNECT_LIMIT.as_secs());
                return Err(Problem::new(Code::DatabaseDown, message));
            }
        };
        // From 14 on the server notices within a second that the agent was killed; before, only when it next writes.
        let watch = "DO $$ BEGIN IF current_setting('server_version_num')::int >= 140000 THEN \
                     PERFORM set_config('client_connection_check_interval', '1s', false); END IF; END $$";
        let watched = sqlx::raw_sql(watch).execute(&mut connection).await;
        watched.map_err(|e| sql_problem(Code::DatabaseDown, place(), &e))?;
        Ok(connection)
    }

    /// A session for reading catalogs and figures.
    pub async fn reader(&self, database: &str) -> Result<PgConnection, Problem> {
        let mut connection = self.migrator(database, &Settings::new()).await?;
        let settings = "SELECT set_config('search_path', '', false), set_config('bytea_output', 'hex', false), \
                        set_config('DateStyle', 'ISO, YMD', false), set_config('IntervalStyle', 'postgres', false), \
                        set_config('TimeZone', 'UTC', false), set_config('extra_float_digits', '1', false), \
                        set_config('xmloption', 'content', false), set_config('row_security', 'off', false), \
                        set_config('idle_in_transaction_session_timeout', '0', false), \
                        set_config('statement_timeout', '0', false)";
        let set = sqlx::raw_sql(settings).execute(&mut connection).await;
        set.map_err(|e| sql_problem(Code::DatabaseDown, format!("prepare a session of {database}"), &e))?;
        Ok(connection)
    }

    /// A reader of the managed database.
    pub async fn live(&self) -> Result<PgConnection, Problem> {
        self.reader(&self.config.database).await
    }

    /// A session of the maintenance database.
    pub async fn maintenance(&self) -> Result<PgConnection, Problem> {
        self.migrator(&self.config.maintenance_database, &Settings::new()).await
    }
}

/// At most 63 bytes are kept by the server.
fn application_name(component: &str) -> String {
    format!("rollbackctl {component}").chars().take(63).collect()
}

/// The settings that `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET` gave the managed database, for the
/// user that the driver connects as. They do not follow a dump.
pub(super) async fn database_settings(live: &mut PgConnection) -> Result<Settings, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT unnest(s.setconfig) AS setting FROM pg_db_role_setting s
         JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
         LEFT JOIN pg_roles r ON r.oid = s.setrole
         WHERE s.setrole = 0 OR r.rolname = current_user
         ORDER BY s.setrole",
    )
    .fetch_all(live)
    .await?;
    rows.iter()
        .map(|row| row.try_get::<String, _>("setting"))
        .map(|s| {
            s.map(|s| {
                s.split_once('=')
                    .map_or((s.clone(), String::new()), |(k, v)| (k.into(), v.into()))
            })
        })
        .collect()
}

/// Runs statements that we composed of names that were quoted by [`ident`] or checked, and of no other input.
pub(super) async fn run(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
}

/// Quotes an identifier.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text.
pub(super) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// `schema.table`, quoted.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A server's error with what helps to find its cause; other errors with their chain. Neither holds the password.
pub(super) fn sql_problem(code: Code, what: impl std::fmt::Display, error: &sqlx::Error) -> Problem {
    let Some(server) = server_error(error) else {
        return Problem::from_error(code, what, error);
    };
    let mut message = format!("{what}: {} (SQLSTATE {})", server.message(), server.code());
    // What the server says of rows and values is data, and stays on the host.
    let about_data = server.code().starts_with("22") || server.code().starts_with("23");
    let detail = server.detail().filter(|_| !about_data);
    let place = server.r#where().filter(|text| !text.starts_with("COPY"));
    for (label, text) in [("detail", detail), ("where", place)] {
        if let Some(text) = text {
            let text: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
            message.push_str(&format!("; {label}: {text}"));
        }
    }
    let code = match server.code() {
        "53100" => Code::DiskFull,
        "55P03" | "40P01" => Code::DatabaseLocked,
        _ => code,
    };
    Problem::new(code, message)
}

pub(super) fn server_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
}
