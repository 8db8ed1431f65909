//! Sends everybody away from a database, and waits until they are gone.
//!
//! Whoever connects again meanwhile is refused by the server, because connections were disallowed before; who was half
//! inside then is found by looking again.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::driver::postgres::sql_error::{server_error, sql_problem};

/// Most sessions end within a millisecond or two, while everybody waits.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Sessions that a message names.
const SHOWN: usize = 4;

struct Session {
    pid: i32,
    who: String,
}

/// Ends every session of `database` but `ours`. [`Code::DatabaseLocked`] names those who are still there in the end.
pub(super) async fn send_away(
    c: &mut PgConnection,
    database: u32,
    ours: &[i32],
    until: Instant,
) -> Result<usize, Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, "look at who is connected", &e);
    let mut ended = std::collections::BTreeSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let there = others(c, database, ours).await.map_err(failed)?;
        if there.is_empty() {
            return Ok(ended.len());
        }
        let mut refused = false;
        for session in &there {
            match sqlx::query("SELECT pg_terminate_backend($1)")
                .bind(session.pid)
                .execute(&mut *c)
                .await
            {
                Ok(_) => {
                    ended.insert(session.pid);
                }
                // A plain role may not end a superuser's sessions; that one may leave by itself.
                Err(e) if server_error(&e).is_some_and(|e| e.code() == "42501") => refused = true,
                Err(e) => return Err(failed(e)),
            }
        }
        if Instant::now() >= until {
            let shown: Vec<&str> = there.iter().take(SHOWN).map(|s| s.who.as_str()).collect();
            let more = if there.len() > SHOWN { ", …" } else { "" };
            let message = format!("sessions that do not end: {}{more}", shown.join("; "));
            let remedy = if refused {
                "the agent's user may not end them (a superuser's, or another role's): end them, or grant it pg_signal_backend"
            } else {
                "find out what they are at, end them, and try again"
            };
            return Err(Problem::new(Code::DatabaseLocked, message).remedy(remedy));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Workers of the server itself have no user, and leave when they are asked by whoever renames the database.
async fn others(c: &mut PgConnection, database: u32, ours: &[i32]) -> Result<Vec<Session>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT pid, concat('pid ', pid, ' (', nullif(application_name, '') || ', ', 'user ', usename, ')') AS who
         FROM pg_stat_activity WHERE datid::bigint = $1 AND usename IS NOT NULL AND pid <> ALL ($2) ORDER BY backend_start",
    )
    .bind(i64::from(database))
    .bind(ours)
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Session {
                pid: row.try_get("pid")?,
                who: row.try_get("who")?,
            })
        })
        .collect()
}

/// What forbids to exchange a database: it would be left behind, or come along under the wrong name.
pub(super) async fn obstacles(c: &mut PgConnection, database: &str) -> Result<Vec<Problem>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT (SELECT string_agg(gid, ', ') FROM pg_prepared_xacts WHERE database = $1) AS prepared,
                (SELECT string_agg(slot_name::text, ', ') FROM pg_replication_slots WHERE database = $1) AS slots",
    )
    .bind(database)
    .fetch_one(c)
    .await?;
    let mut found = Vec::new();
    if let Some(prepared) = row.try_get::<Option<String>, _>("prepared")? {
        found.push(
            Problem::new(
                Code::DatabaseLocked,
                format!("database {database} has prepared transactions: {prepared}"),
            )
            .remedy("COMMIT PREPARED or ROLLBACK PREPARED each of them"),
        );
    }
    if let Some(slots) = row.try_get::<Option<String>, _>("slots")? {
        found.push(
            Problem::new(
                Code::DatabaseLocked,
                format!("database {database} is replicated from, by logical slots: {slots}"),
            )
            .remedy("stop the subscribers and drop the slots; after the restore, set them up anew"),
        );
    }
    Ok(found)
}

/// The same for what is seen from inside only.
pub(super) async fn subscriptions(c: &mut PgConnection, database: &str) -> Result<Option<Problem>, sqlx::Error> {
    // The names are for everybody, the rest of the catalog is not.
    let found: Option<String> = sqlx::query_scalar(
        "SELECT string_agg(subname::text, ', ') FROM pg_subscription
         WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(c)
    .await?;
    Ok(found.map(|names| {
        Problem::new(
            Code::DatabaseLocked,
            format!("database {database} receives logical replication: subscriptions {names}"),
        )
        .remedy("drop the subscriptions; after the restore, set them up anew")
    }))
}
