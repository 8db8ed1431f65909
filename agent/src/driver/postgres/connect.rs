//! Connections to the server.
//!
//! Two kinds of sessions: *readers* have an empty search path and fixed output formats, so that what they read of a
//! schema or of data is text that can be compared; *migrators* have exactly the settings that the project's own
//! migration tool would have.
//!
//! A server that restarts, fails over or has no free connection is waited for, with jittered pauses: how long depends on
//! what the session is for ([`Sessions`]). What it refuses for good (a password, a missing database) is reported at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::Rng as _;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use super::config::PostgresConfig;
use super::sql_error::{is_passing, sql_problem};
use crate::driver::Action;
use crate::step::StepContext;

/// Of one attempt.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long what only looks waits for a server that does not accept connections.
const QUICK: Duration = Duration::from_secs(2);

/// How long `verify` waits: it shall tell a server that is down.
const VERIFYING: Duration = Duration::from_secs(15);

/// How long a probe waits: the executor gives it a minute for everything.
const SETTLING: Duration = Duration::from_secs(30);

/// How long moves wait, at most; never beyond the step's deadline.
const MOVING: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Between two lines of progress while waiting; there is another one only if the server says something else by then.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Settings of a database that `CREATE DATABASE` does not copy: name and value.
pub(super) type Settings = Vec<(String, String)>;

/// Makes connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    config: Arc<PostgresConfig>,
    /// What `pg_stat_activity` shows, so that operators and our own recovery can tell our sessions.
    application: String,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Migrator,
    Reader,
}

/// An attempt to connect that failed.
struct Refused {
    problem: Problem,
    /// Another attempt may succeed.
    passing: bool,
}

impl Connector {
    pub fn new(config: Arc<PostgresConfig>, component: &str) -> Self {
        Self {
            config,
            application: application_name(component),
        }
    }

    /// For what only looks.
    pub fn quick(&self) -> Sessions<'_> {
        Sessions {
            connector: self,
            step: None,
            limit: QUICK,
            deadline: None,
        }
    }

    /// For a step, as patient as its action may be. Waiting shows in its progress.
    pub fn patient<'a>(&'a self, step: &'a StepContext) -> Sessions<'a> {
        let limit = match step.action {
            Action::Prepare => QUICK,
            Action::Verify => VERIFYING,
            Action::Unspecified
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Switch
            | Action::Finish
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Start => MOVING,
        };
        Sessions {
            connector: self,
            step: Some(step),
            limit,
            deadline: Some(step.deadline),
        }
    }

    /// For finding out what became of a step, whose deadline may have passed.
    pub fn settling<'a>(&'a self, step: &'a StepContext) -> Sessions<'a> {
        Sessions {
            connector: self,
            step: Some(step),
            limit: SETTLING,
            deadline: None,
        }
    }

    async fn attempt(&self, kind: Kind, database: &str, settings: &Settings) -> Result<PgConnection, Refused> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&self.config.host)
            .port(self.config.port)
            .username(&self.config.user)
            .database(database)
            .application_name(&self.application)
            .statement_cache_capacity(32);
        let password = self.config.password().map_err(|problem| Refused {
            problem,
            passing: false,
        })?;
        if let Some(password) = password {
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
        let refused = |error: sqlx::Error| Refused {
            passing: is_passing(&error),
            problem: sql_problem(Code::DatabaseDown, place(), &error),
        };
        // From 14 on the server notices within a second that the agent was killed; before, only when it next writes. From
        // 17 on it can limit whole transactions, which is meant for the application's: a copy of a large table takes long.
        let watch = "DO $$ BEGIN IF current_setting('server_version_num')::int >= 140000 THEN \
                     PERFORM set_config('client_connection_check_interval', '1s', false); END IF; \
                     IF current_setting('server_version_num')::int >= 170000 THEN \
                     PERFORM set_config('transaction_timeout', '0', false); END IF; END $$";
        let reader = "SELECT set_config('search_path', '', false), set_config('bytea_output', 'hex', false), \
                      set_config('DateStyle', 'ISO, YMD', false), set_config('IntervalStyle', 'postgres', false), \
                      set_config('TimeZone', 'UTC', false), set_config('extra_float_digits', '1', false), \
                      set_config('xmloption', 'content', false), set_config('row_security', 'off', false), \
                      set_config('idle_in_transaction_session_timeout', '0', false), \
                      set_config('statement_timeout', '0', false)";
        let connecting = async {
            let mut connection = options.connect().await?;
            sqlx::raw_sql(watch).execute(&mut connection).await?;
            match kind {
                Kind::Migrator => {}
                Kind::Reader => {
                    sqlx::raw_sql(reader).execute(&mut connection).await?;
                }
            }
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(result) => result.map_err(refused),
            Err(_) => {
                let message = format!("{}: no answer within {} s", place(), CONNECT_LIMIT.as_secs());
                Err(Refused {
                    problem: Problem::new(Code::DatabaseDown, message),
                    passing: true,
                })
            }
        }
    }
}

/// Makes sessions, waiting for a server that does not accept connections for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sessions<'a> {
    connector: &'a Connector,
    step: Option<&'a StepContext>,
    /// How long each of them may wait.
    limit: Duration,
    /// No new attempt is begun after it; the first always is.
    deadline: Option<Instant>,
}

impl<'a> Sessions<'a> {
    /// The same without patience.
    pub fn quick(&self) -> Sessions<'a> {
        self.connector.quick()
    }

    /// The end of something that may take `limit`, and no longer than the step.
    pub fn within(&self, limit: Duration) -> Instant {
        let end = Instant::now() + limit;
        self.deadline.map_or(end, |deadline| deadline.min(end))
    }

    /// Says what is being waited for, to whoever watches the rollback.
    pub fn tell(&self, message: impl AsRef<str>) {
        if let Some(step) = self.step {
            step.progress(message);
        }
    }

    /// A session whose settings are the database's own.
    pub async fn migrator(&self, database: &str, settings: &Settings) -> Result<PgConnection, Problem> {
        self.connect(Kind::Migrator, database, settings).await
    }

    /// A session for reading catalogs and figures.
    pub async fn reader(&self, database: &str) -> Result<PgConnection, Problem> {
        self.connect(Kind::Reader, database, &Settings::new()).await
    }

    /// A reader of the managed database.
    pub async fn live(&self) -> Result<PgConnection, Problem> {
        self.reader(&self.connector.config.database).await
    }

    /// A session of the maintenance database.
    pub async fn maintenance(&self) -> Result<PgConnection, Problem> {
        self.migrator(&self.connector.config.maintenance_database, &Settings::new())
            .await
    }

    async fn connect(&self, kind: Kind, database: &str, settings: &Settings) -> Result<PgConnection, Problem> {
        let begun = Instant::now();
        let until = self.within(self.limit);
        let (mut longest, mut told) = (FIRST_PAUSE, None::<(Instant, String)>);
        loop {
            let refused = match self.connector.attempt(kind, database, settings).await {
                Ok(connection) => return Ok(connection),
                Err(refused) => refused,
            };
            let pause = longest.mul_f64(rand::rng().random_range(0.5..1.0));
            if !refused.passing || Instant::now() + pause >= until {
                let mut problem = refused.problem;
                if told.is_some() {
                    let waited = begun.elapsed().as_secs_f32();
                    problem.message.push_str(&format!(" (tried for {waited:.0} s)"));
                }
                return Err(problem);
            }
            let why = refused.problem.message;
            if told
                .as_ref()
                .is_none_or(|(at, said)| *said != why && at.elapsed() >= TELL_EVERY)
            {
                self.tell(format!(
                    "the server does not accept connections ({why}), trying until {}",
                    clock(until)
                ));
                told = Some((Instant::now(), why));
            }
            tokio::time::sleep(pause).await;
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The time of day of a moment that is to come, for people.
fn clock(moment: Instant) -> String {
    let left = moment.saturating_duration_since(Instant::now());
    match Timestamp::now().checked_add(left) {
        Ok(at) => at.strftime("%H:%M:%SZ").to_string(),
        Err(_) => "the step's deadline".to_owned(),
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

/// The same; answers how many rows it changed.
pub(super) async fn changed(connection: &mut PgConnection, sql: String) -> Result<u64, sqlx::Error> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(done.rows_affected())
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
