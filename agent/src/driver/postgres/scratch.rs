//! Scratch databases: where a backup is restored to prove it, and where migrations are rehearsed.
//!
//! They are named after the managed database and the rollback, so that what a killed agent left behind is recognised
//! and dropped by the next `stage`, and a database of anybody else never is.

use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::connect::{Connector, ident, literal, run, sql_problem};

const PREFIX: &str = "rollbackctl_scratch_";

/// The first 8 hex digits of a text's SHA-256: short names for what has a long one.
pub(super) fn short(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..4])
}

fn owner_prefix(database: &str) -> String {
    format!("{PREFIX}{}_", short(database))
}

pub(super) fn name(database: &str, tag: &str) -> String {
    format!("{}{tag}", owner_prefix(database))
}

/// Makes an empty database of this name, in place of one that is there, with the managed database's encoding and locale.
pub(super) async fn create(
    connector: &Connector,
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
    let mut maintenance = connector.maintenance().await?;
    // One of the same name is what an earlier run of the same step left.
    let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name));
    run(&mut maintenance, drop).await.map_err(failed)?;
    run(&mut maintenance, sql).await.map_err(failed)?;
    let comment =
        format!("copy of {origin} made by rollbackctl to prove a backup (rollback {rollback}); may be dropped");
    run(
        &mut maintenance,
        format!("COMMENT ON DATABASE {} IS {}", ident(name), literal(&comment)),
    )
    .await
    .map_err(failed)
}

/// Drops one scratch database, ending sessions in it. Succeeds when there is none.
pub(super) async fn drop(connector: &Connector, name: &str) -> Result<(), Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, format!("drop scratch database {name}"), &e);
    let mut maintenance = connector.maintenance().await?;
    run(
        &mut maintenance,
        format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name)),
    )
    .await
    .map_err(failed)
}

/// Scratch databases of this managed database, of whatever rollback.
pub(super) async fn leftovers(c: &mut PgConnection, database: &str) -> Result<Vec<String>, Problem> {
    let prefix = owner_prefix(database);
    let found: Vec<String> =
        sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1)")
            .bind(&prefix)
            .fetch_all(c)
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, "list scratch databases", &e))?;
    Ok(found)
}
