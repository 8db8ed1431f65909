//! Scratch databases: where a backup is restored to prove it, and where migrations are rehearsed.
//!
//! They are named after the managed database and the rollback, so that what a killed agent left behind is recognised
//! and dropped by the next `stage`, and a database of anybody else never is.
//!
//! Dropping one works for a plain role with CREATEDB: `WITH (FORCE)` is refused as soon as an autovacuum worker is in the
//! database, because that process belongs to nobody that the role is a member of. The plain DROP ends such workers itself.

use std::time::{Duration, Instant};

use rand::Rng as _;
use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::connect::{Sessions, ident, literal, run};
use super::sql_error::{server_error, sql_problem};

/// How long dropping one is tried while somebody is in it, within the step's deadline. One attempt may take the server's
/// own 5 s.
const DROP_LIMIT: Duration = Duration::from_secs(8);

const PREFIX: &str = "rollbackctl_scratch_";

/// What tags of runs begin with that belong to no rollback.
pub(super) const BY_HAND: &str = "hand-";

/// The first 8 hex digits of a text's SHA-256: short names for what has a long one.
pub(super) fn short(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..4])
}

pub(super) fn name(database: &str, tag: &str) -> String {
    format!("{PREFIX}{}_{tag}", short(database))
}

/// Makes an empty database of this name, in place of one that is there, with the managed database's encoding and locale.
pub(super) async fn create(
    sessions: Sessions<'_>,
    live: &mut PgConnection,
    name: &str,
    rollback: &str,
) -> Result<(), Problem> {
    let failed = |e| sql_problem(Code::BackupUnproven, format!("create scratch database {name}"), &e);
    let row = sqlx::query(
        "SELECT pg_encoding_to_char(encoding)::text AS encoding, datcollate::text AS collate, datctype::text AS ctype,
                to_jsonb(d) ->> 'datlocprovider' AS provider,
                coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
                current_database()::text AS origin
         FROM pg_database d WHERE datname = current_database()",
    )
    .fetch_one(live)
    .await
    .map_err(failed)?;
    let text = |column: &str| row.try_get::<String, _>(column).map(|t| literal(&t)).map_err(failed);
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        text("encoding")?,
        text("collate")?,
        text("ctype")?
    );
    // Providers came with 15, `builtin` with 17.
    match row.try_get::<Option<String>, _>("provider").map_err(failed)?.as_deref() {
        Some("i") => sql.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", text("locale")?)),
        Some("b") => sql.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", text("locale")?)),
        Some(_) | None => {}
    }
    let origin: String = row.try_get("origin").map_err(failed)?;
    let mut maintenance = sessions.maintenance().await?;
    // One of the same name is what an earlier run of the same step left.
    remove(&mut maintenance, name, sessions.within(DROP_LIMIT))
        .await
        .map_err(failed)?;
    run(&mut maintenance, sql).await.map_err(failed)?;
    // A copy of everything: nobody else has business in it, and a session of another role could not be ended by ours.
    let alone = format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", ident(name));
    run(&mut maintenance, alone).await.map_err(failed)?;
    let comment =
        format!("copy of {origin} made by rollbackctl to prove a backup (rollback {rollback}); may be dropped");
    run(
        &mut maintenance,
        format!("COMMENT ON DATABASE {} IS {}", ident(name), literal(&comment)),
    )
    .await
    .map_err(failed)
}

/// Settings whose value is a list of names, quoted already where it stands in the catalog.
const LISTS: [&str; 6] = [
    "search_path",
    "temp_tablespaces",
    "local_preload_libraries",
    "session_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
];

/// Gives a scratch database the managed one's settings, for programs whose sessions we do not open ourselves. What only a
/// superuser may set is left out.
pub(super) async fn give_settings(
    sessions: Sessions<'_>,
    name: &str,
    settings: &[(String, String)],
) -> Result<(), Problem> {
    let mut maintenance = sessions.maintenance().await?;
    for (key, value) in settings {
        let value = if LISTS.contains(&key.to_ascii_lowercase().as_str()) {
            value.clone()
        } else {
            literal(value)
        };
        let key_parts: Vec<String> = key.split('.').map(ident).collect();
        let sql = format!("ALTER DATABASE {} SET {} TO {value}", ident(name), key_parts.join("."));
        if let Err(error) = run(&mut maintenance, sql).await {
            tracing::warn!(database = name, setting = key, %error, "a setting could not be given to a scratch database");
        }
    }
    let _ = sqlx::Connection::close(maintenance).await;
    Ok(())
}

/// Drops one scratch database, ending our own sessions in it. Succeeds when there is none.
pub(super) async fn drop(sessions: Sessions<'_>, name: &str) -> Result<(), Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, format!("drop scratch database {name}"), &e);
    let mut maintenance = sessions.maintenance().await?;
    let removed = remove(&mut maintenance, name, sessions.within(DROP_LIMIT))
        .await
        .map_err(failed);
    let _ = sqlx::Connection::close(maintenance).await;
    removed
}

/// What a summary says of a scratch database that could not be dropped after everything else went well: that is no
/// failure of the step.
pub(super) fn left_for_now(name: &str, problem: &Problem) -> String {
    tracing::warn!(database = name, problem = %problem.message, "a scratch database could not be dropped");
    format!(
        "; warning: {name} stays for now and will be removed as a leftover ({})",
        problem.message
    )
}

async fn remove(c: &mut PgConnection, name: &str, until: Instant) -> Result<(), sqlx::Error> {
    let superuser: bool = sqlx::query_scalar("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        .fetch_one(&mut *c)
        .await?;
    loop {
        // Sessions of ours that a cut-off step left, or whose end the server has not noticed yet.
        sqlx::query(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = $1 AND usename = current_user AND pid <> pg_backend_pid()",
        )
        .bind(name)
        .execute(&mut *c)
        .await?;
        // A step that is over shall not be held up by it. One attempt there always is.
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_secs(1));
        run(c, format!("SET statement_timeout = {}", left.as_millis())).await?;
        // Waits up to 5 s for others to leave, and sends autovacuum away.
        let dropped = run(c, format!("DROP DATABASE IF EXISTS {}", ident(name))).await;
        run(c, "SET statement_timeout = 0".to_owned()).await?;
        let Err(error) = dropped else {
            return Ok(());
        };
        if server_error(&error).is_none_or(|e| e.code() != "55006") {
            return Err(error);
        }
        if superuser {
            return run(c, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name))).await;
        }
        let pause = Duration::from_millis(300).mul_f64(rand::rng().random_range(0.3..1.0));
        if Instant::now() + pause >= until {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Scratch databases of this managed database that this component made, in whatever rollback or outside of one. Another
/// component that manages the same database may be at work on its own.
pub(super) async fn leftovers(c: &mut PgConnection, database: &str, component: &str) -> Result<Vec<String>, Problem> {
    let owner = short(component);
    let prefixes = ["", BY_HAND].map(|kind| name(database, &format!("{kind}{owner}")));
    sqlx::query_scalar(
        "SELECT datname::text FROM pg_database d
         WHERE EXISTS (SELECT 1 FROM unnest($1::text[]) p WHERE starts_with(d.datname::text, p))",
    )
    .bind(&prefixes[..])
    .fetch_all(c)
    .await
    .map_err(|e| sql_problem(Code::DatabaseDown, "list scratch databases", &e))
}
