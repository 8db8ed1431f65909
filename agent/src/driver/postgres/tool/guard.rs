//! Keeps the project's tool off the live database while it runs on a copy.
//!
//! A session holds every table of the live database in ACCESS SHARE mode, which stands in nobody's way but that of a
//! statement that changes a table's definition. A second session watches: one that waits for the first, or that has the name
//! of the tool's run, was begun by a tool that does not do as it was told. The tool is killed, that session is ended
//! before its lock is free, and the rehearsal fails. A session that was there before and has to wait for the first is the
//! application's: the rehearsal gives way to it, because whoever reads that table would wait behind it.
//!
//! The tables in which the tool notes what it did, as far as the configuration names them, are held against writing as
//! well: nobody else writes to them. What this cannot hold up is a stray session under another name that changes rows, or
//! makes something new, before it notes anything, and not in one transaction with the note. Therefore the schema of the live
//! database is compared as well, before and after; nobody migrates a database by hand while it is being rolled back.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::application_name;
use crate::driver::postgres::catalog::Schema;
use crate::driver::postgres::connect::{Sessions, ident, qualified, run};
use crate::driver::postgres::sql_error::sql_problem;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(25);

/// How long a session of the application may wait for the guard.
const GIVE_WAY: Duration = Duration::from_millis(300);

/// For the guard's own locks: somebody who holds a table exclusively is at work on the live database.
const LOCK_LIMIT: &str = "SET LOCAL lock_timeout = '5s'";

/// Runs `work`, during which the tool runs on these databases.
pub(in crate::driver::postgres) async fn while_running<T>(
    sessions: Sessions<'_>,
    own: &[String],
    copies: &[&str],
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, "guard the live database", &e);
    let mut holder = sessions.live().await?;
    let mut watcher = sessions.live().await?;
    let before = Schema::read(&mut holder).await.map_err(failed)?;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut holder)
        .await
        .map_err(failed)?;
    hold(&mut holder, own).await.map_err(failed)?;
    let stray = tokio::select! {
        // A stray session that was noticed counts, even if the tool has ended with it.
        biased;
        stray = watch(&mut watcher, pid, copies) => stray,
        done = work => {
            let last = in_the_way(&mut watcher, pid, copies).await.map_err(failed)?;
            if last.strays.is_empty() {
                run(&mut holder, "COMMIT".to_owned()).await.map_err(failed)?;
                let after = Schema::read(&mut holder).await.map_err(failed)?;
                close([holder, watcher]).await;
                return match after.differences(&before) {
                    Some(differences) => Err(moved(&differences)),
                    None => done,
                };
            }
            Ok(last)
        }
    };
    // Here the tool is dead: its process group was killed with the future.
    let InTheWay { strays, waiting } = stray.map_err(failed)?;
    if strays.is_empty() {
        run(&mut holder, "COMMIT".to_owned()).await.map_err(failed)?;
        close([holder, watcher]).await;
        let message = format!(
            "while the migration tool ran on a copy, a session had to wait for a table of the live database, which is \
             guarded meanwhile: {}; the rehearsal gave way to it",
            waiting.join("; ")
        );
        return Err(Problem::new(Code::DatabaseLocked, message)
            .remedy("let nobody truncate, rebuild or alter tables while a rollback is staged, and start it anew"));
    }
    let mut names = Vec::new();
    for (pid, name) in strays {
        let ended = end(&mut watcher, pid).await.map_err(failed)?;
        names.push(if ended { name } else { format!("{name}, still there") });
    }
    run(&mut holder, "COMMIT".to_owned()).await.map_err(failed)?;
    let after = Schema::read(&mut holder).await.map_err(failed)?;
    close([holder, watcher]).await;
    if let Some(differences) = after.differences(&before) {
        return Err(moved(&differences));
    }
    let message = format!(
        "while the migration tool ran on a copy, a session was at work on the live database: {}; it was ended, and \
         the schema is as it was",
        names.join("; ")
    );
    Err(Problem::new(Code::MigrationToolFailed, message).remedy(
        "if the session is the tool's: let every command of it take its database from the environment; else let nobody \
         migrate during a rollback",
    ))
}

async fn close(sessions: [PgConnection; 2]) {
    for session in sessions {
        let _ = sqlx::Connection::close(session).await;
    }
}

fn moved(differences: &str) -> Problem {
    let message = format!("the live database changed while the migration tool ran on a copy of it: {differences}");
    Problem::new(Code::DatabaseUnclear, message)
        .remedy("find out whether the tool did this: it must take its database from the environment; mend the live schema by hand")
}

/// Takes the locks; they last to the end of the session's transaction.
async fn hold(c: &mut PgConnection, own: &[String]) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("BEGIN").execute(&mut *c).await?;
    sqlx::raw_sql(LOCK_LIMIT).execute(&mut *c).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
           AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1",
    )
    .fetch_all(&mut *c)
    .await?;
    if tables.is_empty() {
        return Ok(());
    }
    let sql = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", tables.join(", ONLY "));
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *c).await?;
    for name in own {
        let quoted = name
            .split_once('.')
            .map_or_else(|| ident(name), |(schema, table)| qualified(schema, table));
        // A name without a schema means what it means to the tool, whose sessions have the database's own search path.
        sqlx::raw_sql("SET LOCAL search_path TO DEFAULT")
            .execute(&mut *c)
            .await?;
        let sql = format!(
            "DO $$ BEGIN LOCK TABLE {quoted} IN EXCLUSIVE MODE; EXCEPTION WHEN undefined_table OR insufficient_privilege \
             THEN NULL; END $$"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *c).await?;
    }
    Ok(())
}

/// Sessions of the live database that the guard has to do with.
#[derive(Default)]
struct InTheWay {
    /// Named as the tool's run on the copy, or begun after the guard and waiting for it.
    strays: Vec<(i32, String)>,
    /// Begun before it and waiting for it.
    waiting: Vec<String>,
}

/// Ends when there is a stray one, or one that has waited for too long.
async fn watch(c: &mut PgConnection, holder: i32, copies: &[&str]) -> Result<InTheWay, sqlx::Error> {
    let mut since = None;
    loop {
        let found = in_the_way(c, holder, copies).await?;
        if !found.strays.is_empty() {
            return Ok(found);
        }
        if found.waiting.is_empty() {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= GIVE_WAY {
            return Ok(found);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn in_the_way(c: &mut PgConnection, holder: i32, copies: &[&str]) -> Result<InTheWay, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT a.pid, concat('pid ', a.pid, ' (', nullif(a.application_name, ''), ', user ', a.usename, ')') AS name,
                a.application_name = ANY ($2) OR a.backend_start > h.xact_start AS stray
         FROM pg_stat_activity a, pg_stat_activity h
         WHERE h.pid = $1 AND a.datname = current_database()
           AND coalesce(a.backend_type, 'client backend') = 'client backend'
           AND a.pid <> ALL (ARRAY[$1, pg_backend_pid()])
           AND (a.application_name = ANY ($2) OR $1 = ANY (pg_blocking_pids(a.pid)))
         ORDER BY a.pid",
    )
    .bind(holder)
    .bind(copies.iter().map(|copy| application_name(copy)).collect::<Vec<_>>())
    .fetch_all(c)
    .await?;
    let mut found = InTheWay::default();
    for row in &rows {
        let name: String = row.try_get("name")?;
        // What may not be seen of another role's session is null; then it is not known to be stray.
        if row.try_get::<Option<bool>, _>("stray")?.unwrap_or(false) {
            found.strays.push((row.try_get("pid")?, name));
        } else {
            found.waiting.push(name);
        }
    }
    Ok(found)
}

/// Ends a session and waits until it is gone; false when it may not be ended.
async fn end(c: &mut PgConnection, pid: i32) -> Result<bool, sqlx::Error> {
    let gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    // A session of a role that we are no member of answers with an error.
    let _ = sqlx::query("SELECT pg_terminate_backend($1)")
        .bind(pid)
        .execute(&mut *c)
        .await;
    for _ in 0..200 {
        if sqlx::query_scalar::<_, bool>(gone).bind(pid).fetch_one(&mut *c).await? {
            return Ok(true);
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(false)
}
