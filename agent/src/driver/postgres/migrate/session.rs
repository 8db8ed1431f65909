//! An open transaction of a migration: its limits, what is seen in it, and who stands in its way.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Migrator, Stop, sql};
use crate::driver::postgres::catalog::Schema;
use crate::driver::postgres::config::PostgresConfig;
use crate::driver::postgres::connect::run;
use crate::driver::postgres::integrity;
use crate::driver::postgres::privileges::Privileges;
use crate::driver::postgres::tool_locks;
use crate::driver::postgres::versions::{Applied, Layout};

/// How long a lock on a copy is waited for: nobody queues behind it. Autovacuum comes to fresh copies.
const ON_A_COPY: Duration = Duration::from_secs(10);

/// What the server needs, beyond `deadlock_timeout`, to send away an autovacuum that somebody waits for.
const SENDING_AWAY: Duration = Duration::from_millis(500);

/// An open transaction.
pub(super) struct Session<'a> {
    config: &'a PostgresConfig,
    search_path: String,
    transaction: i64,
    lock_timeout: Duration,
    statement_timeout: Duration,
}

impl Migrator<'_> {
    /// Opens the transaction in which a part of a leg runs, with the locks of the migration tools. `outlasting`: the server
    /// sends an autovacuum away when somebody has waited for it for `deadlock_timeout`, so each lock is waited for longer
    /// than that.
    pub(super) async fn begin(&self, c: &mut PgConnection, outlasting: bool) -> Result<Session<'_>, Stop> {
        sqlx::raw_sql("BEGIN").execute(&mut *c).await.map_err(sql("begin"))?;
        let row = sqlx::query(
            "SELECT current_setting('search_path') AS path, txid_current() AS xid,
                    (SELECT setting::bigint FROM pg_settings WHERE name = 'deadlock_timeout') AS deadlock_timeout",
        )
        .fetch_one(&mut *c)
        .await
        .map_err(sql("begin"))?;
        let deadlock_timeout: i64 = row.try_get("deadlock_timeout").map_err(sql("begin"))?;
        let deadlock_timeout = Duration::from_millis(u64::try_from(deadlock_timeout).unwrap_or(1000));
        // What COMMIT answers must outlive a crash of the server, whatever the database is content with.
        let durable = "SELECT set_config('synchronous_commit', 'local', true) \
                       WHERE current_setting('synchronous_commit') = 'off'";
        sqlx::raw_sql(durable).execute(&mut *c).await.map_err(sql("begin"))?;
        let session = Session {
            config: self.config,
            search_path: row.try_get("path").map_err(sql("begin"))?,
            transaction: row.try_get("xid").map_err(sql("begin"))?,
            lock_timeout: if outlasting {
                self.lock_timeout().max(deadlock_timeout + SENDING_AWAY)
            } else {
                self.lock_timeout()
            },
            statement_timeout: self
                .config
                .statement_timeout
                .min(self.deadline.saturating_duration_since(Instant::now())),
        };
        session.limits(c).await?;
        // The table of a tool that is asked is the tool's own affair.
        let applied = match self.config.tool {
            Some(_) => Applied::default(),
            None => Applied::read(c, &self.config.version_table).await?,
        };
        let (schema, table) = match &applied.layout {
            Layout::Rows(t) | Layout::Head(t) => (t.schema.as_str(), t.table.as_str()),
            Layout::Absent | Layout::Named => ("public", self.config.version_table.as_str()),
        };
        let locked = tool_locks::take(c, self.database, schema, table).await;
        locked.map_err(sql("take the migration tools' lock"))?;
        Ok(session)
    }

    /// How long each lock is waited for.
    pub(super) fn lock_timeout(&self) -> Duration {
        let configured = self.config.lock_timeout.max(Duration::from_millis(1));
        match self.copy {
            Some(_) => configured.max(ON_A_COPY),
            None => configured,
        }
    }
}

impl Session<'_> {
    /// Sets what a migration may have changed back to what it should be.
    pub async fn limits(&self, c: &mut PgConnection) -> Result<(), Stop> {
        sqlx::query(
            "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
                    set_config('idle_in_transaction_session_timeout', '60s', true), set_config('search_path', $3, true)",
        )
        .bind(format!("{}ms", self.lock_timeout.as_millis()))
        .bind(format!("{}ms", self.statement_timeout.as_millis().max(1)))
        .bind(&self.search_path)
        .execute(c)
        .await
        .map(|_| ())
        .map_err(sql("set limits"))
    }

    /// The schema and the applied migrations as this transaction sees them.
    pub async fn state(&self, c: &mut PgConnection) -> Result<(Schema, Applied), Stop> {
        let empty = "SELECT set_config('search_path', '', true)";
        sqlx::raw_sql(empty)
            .execute(&mut *c)
            .await
            .map_err(sql("read the schema"))?;
        let schema = Schema::read(c).await.map_err(sql("read the schema"))?;
        let applied = Applied::read(c, &self.config.version_table).await?;
        self.limits(c).await?;
        Ok((schema, applied))
    }

    /// A migration that ends our transaction (from inside a procedure, say) is found before anything builds on it.
    pub async fn still_open(&self, c: &mut PgConnection) -> Result<(), Stop> {
        let now: i64 = sqlx::query_scalar("SELECT txid_current()")
            .fetch_one(c)
            .await
            .map_err(sql("look at the transaction"))?;
        if now == self.transaction {
            return Ok(());
        }
        Err(Stop::Escaped)
    }

    /// Asks a migration's own questions, in a part of the transaction that is read-only and leaves nothing.
    pub async fn check(&self, c: &mut PgConnection, questions: &[String], of: &str) -> Result<(), Stop> {
        for (i, question) in questions.iter().enumerate() {
            let begin = "SAVEPOINT rollbackctl_check; SET LOCAL transaction_read_only = on";
            run(c, begin.to_owned()).await.map_err(sql("begin a check"))?;
            integrity::one(c, &format!("{of} {}", i + 1), question).await?;
            let end = "ROLLBACK TO SAVEPOINT rollbackctl_check; RELEASE SAVEPOINT rollbackctl_check";
            run(c, end.to_owned()).await.map_err(sql("end a check"))?;
        }
        Ok(())
    }

    /// The last things before COMMIT: grants, deferred constraints, the checks of the configuration.
    pub async fn settle(&self, c: &mut PgConnection, privileges: &Privileges) -> Result<(), Stop> {
        privileges.give_back(c).await.map_err(sql("give back privileges"))?;
        // What a deferred constraint has to say shall not come as an answer to COMMIT.
        sqlx::raw_sql("SET CONSTRAINTS ALL IMMEDIATE")
            .execute(&mut *c)
            .await
            .map_err(sql("check constraints"))?;
        Ok(())
    }
}

/// Who holds what a session waits for.
#[derive(Debug, Default)]
pub(super) struct InTheWay {
    /// For people. Their queries are not shown: they may hold data.
    pub who: Vec<String>,
    /// The server's own workers are among them.
    pub autovacuum: bool,
}

pub(super) async fn in_the_way(c: &mut PgConnection, pid: i32) -> Result<InTheWay, sqlx::Error> {
    // A plain role may not see what a worker is. But it sees that nobody's it is, and no other such process locks tables.
    let query = format!(
        "SELECT CASE WHEN a.usesysid IS NULL THEN concat('pid ', a.pid, ' (autovacuum)') ELSE {WHO} END, a.usesysid IS NULL
         FROM unnest(pg_blocking_pids($1)) AS b(pid) JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.pid"
    );
    let found: Vec<(String, bool)> = sqlx::query_as(AssertSqlSafe(query)).bind(pid).fetch_all(c).await?;
    Ok(InTheWay {
        autovacuum: found.iter().any(|(_, autovacuum)| *autovacuum),
        who: found.into_iter().map(|(who, _)| who).collect(),
    })
}

/// A row of `pg_stat_activity` as `a`, for people.
pub(super) const WHO: &str =
    "concat('pid ', a.pid, ' (', nullif(a.application_name, ''), ', user ', a.usename, ', ', a.state,
    ' since ', to_char(coalesce(a.state_change, a.query_start), 'YYYY-MM-DD HH24:MI:SS TZ'), ')')";
