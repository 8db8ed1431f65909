//! The project's own migration tool: which migrations it says are applied, and one run of it up or down.
//!
//! A run is about the database that it is given, and about no other: the name goes in through the environment, and the
//! rehearsal gives it a copy. A tool that takes its database from a file of its own would move the live one during the
//! rehearsal, so two things stand in its way, both before it was let loose on anything:
//! - [`Tool::heeds_the_environment`]: asked about a database that does not exist it must not answer as it does for the
//!   live one. This costs one run of `status` and makes nothing.
//! - [`guard`]: while it runs on a copy, no session can change the tables of the live database, and one that tries
//!   is ended.
//!
//! Invariants: no password in an argument or a variable (`PGPASSFILE` names a file that only we can read, for as long as
//! the run lasts); the environment is cleared; every run has a deadline; an exit status is never an account of what
//! happened, the next `status` and the schema are.
//!
//! Left out: whose programs these are. They run as the agent's user, in their directory as it is at that moment: the
//! directory must still hold the scripts of the newer release when the database moves, in either direction. That is so
//! while the application has not switched yet (down), and not any more when the rollback is undone after a release
//! directory was cleared away: then `status` differs from the recorded names and nothing is run.

pub(super) mod guard;
mod hold;
mod output;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use self::output::{names, without_data};
use super::config::{PostgresConfig, ToolConfig};
use super::connect::{Sessions, ident, run};
use super::route::Direction;
use super::scratch;
use super::sql_error::sql_problem;
use super::tools::password_file;
use super::versions::Applied;
use crate::program::{Output, Program, ProgramError};
use crate::step::StepContext;

/// Kept of what a run prints. A list that is longer is refused.
const OUTPUT_LIMIT: usize = 4 * 1024 * 1024;

/// Runs the configured vectors. Cheap to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool<'a> {
    config: &'a PostgresConfig,
    vectors: &'a ToolConfig,
    component: &'a str,
}

/// Which migrations are applied in `database`, of which `c` is a session: the tool is asked where there is one, else the
/// version table is read.
pub(super) async fn applied(
    config: &PostgresConfig,
    component: &str,
    c: &mut PgConnection,
    database: &str,
) -> Result<Applied, Problem> {
    match Tool::of(config, component) {
        Some(tool) => tool.applied(database, Instant::now() + tool.vectors.timeout).await,
        None => Applied::read(c, &config.version_table).await,
    }
}

/// Whether the tool is about the database that it is given, by what it says when it is asked about one that does not exist.
/// `Ok` where there is no tool.
pub(super) async fn is_obedient(
    config: &PostgresConfig,
    component: &str,
    sessions: Sessions<'_>,
    step: &StepContext,
) -> Result<(), Problem> {
    let Some(tool) = Tool::of(config, component) else {
        return Ok(());
    };
    let live = tool.status(&config.database, step.deadline).await?;
    tool.heeds_the_environment(sessions, &live, step.deadline).await
}

/// What sessions of a run on `database` are called, if the tool's client library heeds `PGAPPNAME`.
fn application_name(database: &str) -> String {
    format!("rollbackctl tool {}", scratch::short(database))
}

impl<'a> Tool<'a> {
    /// `None` when the driver runs SQL itself.
    pub fn of(config: &'a PostgresConfig, component: &'a str) -> Option<Self> {
        config.tool.as_ref().map(|vectors| Self {
            config,
            vectors,
            component,
        })
    }

    /// Where it notes what it did, as far as the configuration says so.
    pub fn own_tables(&self) -> &'a [String] {
        &self.vectors.tables
    }

    /// What is applied in `database`, by the tool's own account.
    pub async fn applied(&self, database: &str, until: Instant) -> Result<Applied, Problem> {
        Applied::named(&self.status(database, until).await?)
    }

    /// Names in the order in which the tool prints them.
    pub async fn status(&self, database: &str, until: Instant) -> Result<Vec<String>, Problem> {
        let output = self.run(&self.vectors.status, database, until, None).await?;
        if output.stdout.len() >= OUTPUT_LIMIT {
            return Err(self.failed("status", database, "it printed more than a list of migrations can be"));
        }
        names(&output.stdout, self.vectors.pattern()?.as_ref()).map_err(|why| self.failed("status", database, &why))
    }

    /// One run. `Ok` says that it ended with status 0, and nothing of what it did.
    pub async fn move_once(&self, direction: Direction, database: &str, until: Instant) -> Result<(), Problem> {
        let argv = match direction {
            Direction::Down => &self.vectors.down,
            Direction::Up => &self.vectors.up,
        };
        let mut held = None;
        if database == self.config.database {
            let taken = hold::take(self.config, self.component)?;
            held = Some(taken.ok_or_else(|| self.failed("run", database, "an earlier run is still at work"))?);
        }
        self.run(argv, database, until, held).await.map(|_| ())
    }

    /// Asks about a database that does not exist. `live` is what the tool said of the live one just before.
    pub async fn heeds_the_environment(
        &self,
        sessions: Sessions<'_>,
        live: &[String],
        until: Instant,
    ) -> Result<(), Problem> {
        let nowhere = format!("rollbackctl_nowhere_{}", hex::encode(rand::random::<[u8; 8]>()));
        let answer = self.status(&nowhere, until).await;
        // Some tools make the database that they are told to use.
        let mut maintenance = sessions.maintenance().await?;
        run(&mut maintenance, format!("DROP DATABASE IF EXISTS {}", ident(&nowhere)))
            .await
            .map_err(|e| {
                sql_problem(
                    Code::MigrationToolFailed,
                    format!("drop {nowhere}, which the tool made"),
                    &e,
                )
            })?;
        let _ = sqlx::Connection::close(maintenance).await;
        match answer {
            Err(problem) if problem.code == Code::StepTimeout => Err(problem),
            Err(_) => Ok(()),
            Ok(names) if names != live => Ok(()),
            Ok(_) => {
                let message = format!(
                    "the migration tool does not use the database that it is given: asked about one that does not exist \
                     it answers as for {}; on a copy it would move the live database",
                    self.config.database
                );
                Err(Problem::new(Code::MigrationToolFailed, message).remedy(
                    "let the tool take its database from the environment (PGDATABASE, or a variable under tool.env with \
                     {database} in it), not from a file of its own",
                ))
            }
        }
    }

    /// Whether a run of it is still at work on the live database: one outlives the agent that began it when only the agent
    /// is killed, and its session may outlive the tool. A session whose client library does not heed `PGAPPNAME` is not seen.
    pub async fn still_runs(&self, sessions: Sessions<'_>) -> Result<bool, Problem> {
        if hold::take(self.config, self.component)?.is_none() {
            return Ok(true);
        }
        let database = &self.config.database;
        let mut c = sessions.maintenance().await?;
        let query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND application_name = $2)";
        let found = sqlx::query_scalar(query)
            .bind(database)
            .bind(application_name(database))
            .fetch_one(&mut c)
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, "look for the migration tool's sessions", &e));
        let _ = sqlx::Connection::close(c).await;
        found
    }

    /// A problem of a run, by the name of what was run.
    fn failed(&self, what: &str, database: &str, why: &str) -> Problem {
        Problem::new(
            Code::MigrationToolFailed,
            format!("the migration tool's {what} for {database}: {why}"),
        )
    }

    /// `held` is locked for as long as the program or a child of it runs.
    async fn run(
        &self,
        argv: &[String],
        database: &str,
        until: Instant,
        held: Option<Arc<File>>,
    ) -> Result<Output, Problem> {
        let limit = self
            .vectors
            .timeout
            .min(until.saturating_duration_since(Instant::now()));
        let passfile = password_file(self.config, &scratch::short(self.component))?;
        let shown = argv.join(" ");
        let mut program = Program::from_argv(argv)
            .ok_or_else(|| Problem::new(Code::BadConfig, "a vector of the tool is empty"))?
            .cwd(&self.vectors.directory)
            .output_limit(OUTPUT_LIMIT)
            .env("NO_COLOR", "1");
        let port = self.config.port.to_string();
        let value = |name: &str| match name {
            "database" => Some(database.to_owned()),
            "host" => Some(self.config.host.clone()),
            "port" => Some(port.clone()),
            "user" => Some(self.config.user.clone()),
            _ => None,
        };
        for (name, value) in self.vectors.variables(value)? {
            program = program.env(name, value);
        }
        program = program
            .env("PGHOST", &self.config.host)
            .env("PGPORT", &port)
            .env("PGUSER", &self.config.user)
            .env("PGDATABASE", database)
            .env("PGAPPNAME", application_name(database));
        if let Some(file) = held {
            program = program.holding(file);
        }
        if let Some(file) = &passfile {
            program = program.env("PGPASSFILE", file.path());
        }
        let output = Box::pin(program.output(limit.max(Duration::from_millis(1))))
            .await
            .map_err(|error| {
                let code = match &error {
                    ProgramError::Deadline { .. } => Code::StepTimeout,
                    ProgramError::Start { .. } | ProgramError::Failed { .. } => Code::MigrationToolFailed,
                };
                let directory = self.vectors.directory.display();
                Problem::from_error(code, format!("run `{shown}` in {directory} for {database}"), &error)
            })?;
        if output.code == Some(0) {
            return Ok(output);
        }
        // Many tools print their errors where their answers go.
        let said = [&output.stderr, &output.stdout]
            .into_iter()
            .find(|t| !t.trim().is_empty());
        let ended = output.code.map_or("a signal".to_owned(), |c| format!("status {c}"));
        let said = said.map(|text| without_data(text)).unwrap_or_default();
        Err(self.failed(&format!("`{shown}`"), database, &format!("ended with {ended}: {said}")))
    }
}
