//! Asks the integrity checks of the configuration: questions about the data that must be answered with true.
//!
//! A question is one statement in a read-only transaction, or in a read-only part of one that is open: what it would
//! change is refused by the server. It sees names as the application does, by the search path of the database. What a
//! question is about may be private: a problem names the check, and never what the data said.

use futures::TryStreamExt as _;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _};

use super::PostgresDriver;
use super::config::PostgresConfig;
use super::connect::{Sessions, run};
use super::sql_error::sql_problem;

impl PostgresDriver {
    /// Asks the live database.
    pub(super) async fn ask_live(&self, sessions: Sessions<'_>) -> Result<(), Problem> {
        if self.config.integrity.is_empty() {
            return Ok(());
        }
        let mut c = sessions.live().await?;
        let answer = ask(&mut c, &self.config).await;
        let _ = sqlx::Connection::close(c).await;
        answer
    }
}

/// Asks all of them in a transaction of their own. The first that is not answered with true is the problem.
pub(super) async fn ask(c: &mut PgConnection, config: &PostgresConfig) -> Result<(), Problem> {
    if config.integrity.is_empty() {
        return Ok(());
    }
    around(c, config, "BEGIN READ ONLY", "ROLLBACK").await
}

/// Asks all of them inside the transaction that is open, seeing what it did. It stays open and as it was; also when the
/// answer is an error.
pub(super) async fn ask_within(c: &mut PgConnection, config: &PostgresConfig) -> Result<(), Problem> {
    if config.integrity.is_empty() {
        return Ok(());
    }
    around(
        c,
        config,
        // Ends with the savepoint, unlike a transaction's own mode, which could not be taken back.
        "SAVEPOINT rollbackctl_integrity; SET LOCAL transaction_read_only = on",
        "ROLLBACK TO SAVEPOINT rollbackctl_integrity; RELEASE SAVEPOINT rollbackctl_integrity",
    )
    .await
}

async fn around(c: &mut PgConnection, config: &PostgresConfig, begin: &str, end: &str) -> Result<(), Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, "ask the integrity checks", &e);
    let limit = config.statement_timeout.as_millis();
    let begin = format!("{begin}; SET LOCAL search_path TO DEFAULT; SET LOCAL statement_timeout = {limit}");
    run(c, begin).await.map_err(failed)?;
    let mut answer = Ok(());
    for (place, check) in config.integrity.iter().enumerate() {
        answer = one(c, &check.name(place), &check.sql).await;
        if answer.is_err() {
            break;
        }
    }
    let ended = run(c, end.to_owned()).await.map_err(failed);
    answer.and(ended)
}

/// The names of all that do not hold, each with the reason: for a backup, where one that fails must not hide the others.
pub(super) async fn broken(c: &mut PgConnection, config: &PostgresConfig) -> Result<Vec<Problem>, Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, "ask the integrity checks", &e);
    let mut found = Vec::new();
    for (place, check) in config.integrity.iter().enumerate() {
        let limit = config.statement_timeout.as_millis();
        let begin = format!("BEGIN READ ONLY; SET LOCAL search_path TO DEFAULT; SET LOCAL statement_timeout = {limit}");
        run(c, begin).await.map_err(failed)?;
        let answer = one(c, &check.name(place), &check.sql).await;
        run(c, "ROLLBACK".to_owned()).await.map_err(failed)?;
        found.extend(answer.err());
    }
    Ok(found)
}

pub(super) async fn one(c: &mut PgConnection, name: &str, question: &str) -> Result<(), Problem> {
    let bad = |why: &str| {
        Err(Problem::new(
            Code::IntegrityFailed,
            format!("integrity check {name:?} {why}"),
        ))
    };
    let mut rows = sqlx::query(AssertSqlSafe(question)).persistent(false).fetch(c);
    let asked = async { Ok::<_, sqlx::Error>((rows.try_next().await?, rows.try_next().await?)) };
    let answer = asked
        .await
        .map_err(|e| sql_problem(Code::IntegrityFailed, format!("integrity check {name:?}"), &e))?;
    match answer {
        (None, _) => bad("gave no row; it must give one, whose first column is true"),
        (Some(_), Some(_)) => bad("gave several rows; it must give one, whose first column is true"),
        (Some(row), None) => match truth(&row) {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => bad("does not hold"),
            Ok(None) => bad("was answered with NULL, not with true"),
            Err(kind) => bad(&format!(
                "was answered with a {kind}; it must be true or false, as `count(*) > 0` is"
            )),
        },
    }
}

/// The first column of an answer; its type when that is no truth value.
fn truth(row: &PgRow) -> Result<Option<bool>, String> {
    let Some(column) = row.columns().first() else {
        return Err("row without columns".to_owned());
    };
    row.try_get::<Option<bool>, _>(0)
        .map_err(|_| column.type_info().name().to_lowercase())
}
