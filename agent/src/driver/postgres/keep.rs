//! What a down migration takes away is kept, and given back when the rollback is undone.
//!
//! Down migrations drop columns and tables; the up migrations that undo them bring these back empty. So the rehearsal
//! compares the catalogs before and after going down ([`super::loss`]); in the same transaction as the migrations,
//! and before them, their content is copied into a schema of ours ([`keep`]); and in the same transaction as the way up,
//! after it, the content is put back ([`put_back`]): tables as a whole, columns by primary key.
//!
//! The schema outlives the rollback, so that nothing is lost when it stands; it is dropped on purpose by an operator, or
//! by `finish` once everything in it was put back. Rows that were rewritten in place (an UPDATE or a lossy change of type
//! in a down migration) are not kept: the rehearsal finds them by checksum and fails.

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{ident, literal, qualified, run, sql_problem};
use super::loss::{Loss, LostPart, Name};
use super::privileges::Privileges;
use super::versions::Applied;

/// What is in a kept schema; its one document.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    rollback_id: String,
    parts: Vec<LostPart>,
    /// Name, last value, whether it was called.
    sequences: Vec<(Name, i64, bool)>,
    privileges: Privileges,
    version_rows: bool,
    put_back: bool,
}

/// The schema of a rollback.
pub(super) fn schema_name(tag: &str) -> String {
    format!("rollbackctl_kept_{tag}")
}

async fn read_kept(c: &mut PgConnection, schema: &str) -> Result<Option<Kept>, Problem> {
    let failed = |e| sql_problem(Code::DatabaseUnclear, format!("read schema {schema}"), &e);
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *c)
        .await
        .map_err(failed)?;
    if !exists {
        return Ok(None);
    }
    let query = format!("SELECT document FROM {}", qualified(schema, "kept"));
    let text: String = sqlx::query_scalar(AssertSqlSafe(query))
        .persistent(false)
        .fetch_one(c)
        .await
        .map_err(failed)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Problem::from_error(Code::DatabaseUnclear, format!("read schema {schema}"), &e))
}

/// Copies what is going to be lost, and the version rows of these migrations. Runs inside the migrations' transaction;
/// the tables stay locked to its end, so nothing is written between the copy and the drop.
pub(super) async fn keep(
    c: &mut PgConnection,
    schema: &str,
    rollback_id: &str,
    loss: &Loss,
    applied: &Applied,
    numbers: &[i64],
) -> Result<(), KeepError> {
    if let Some(kept) = read_kept(c, schema).await.map_err(KeepError::Problem)? {
        if !kept.put_back {
            let message = format!("schema {schema} holds rows of this rollback that were never put back");
            return Err(KeepError::Problem(Problem::new(Code::DatabaseUnclear, message)));
        }
        run(c, format!("DROP SCHEMA {} CASCADE", ident(schema))).await?;
    }
    // Strongest lock first and in one order: asking for more later is how two sessions end in a deadlock.
    let mut tables: Vec<String> = loss.parts.iter().map(|p| p.table.quoted()).collect();
    tables.sort();
    if !tables.is_empty() {
        run(
            c,
            format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", tables.join(", ONLY ")),
        )
        .await?;
    }
    run(c, format!("CREATE SCHEMA {}", ident(schema))).await?;
    let about = format!(
        "rows that rollbackctl kept when rollback {rollback_id} took migrations down; drop it when they are not needed any more"
    );
    run(c, format!("COMMENT ON SCHEMA {} IS {}", ident(schema), literal(&about))).await?;
    for (i, part) in loss.parts.iter().enumerate() {
        let columns = part
            .key
            .iter()
            .flatten()
            .chain(&part.columns)
            .map(|n| ident(n))
            .collect::<Vec<_>>()
            .join(", ");
        let into = qualified(schema, &format!("t{i}"));
        run(
            c,
            format!(
                "CREATE TABLE {into} AS SELECT {columns} FROM ONLY {}",
                part.table.quoted()
            ),
        )
        .await?;
    }
    let mut sequences = Vec::new();
    for name in &loss.sequences {
        let query = format!("SELECT last_value, is_called FROM {}", name.quoted());
        let row = sqlx::query(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await?;
        sequences.push((name.clone(), row.try_get(0)?, row.try_get(1)?));
    }
    let version_rows = matches!(applied.layout, super::versions::Layout::Rows(_)) && !numbers.is_empty();
    if version_rows {
        applied
            .copy_rows(c, numbers, &qualified(schema, "version_rows"))
            .await?;
    }
    let kept = Kept {
        rollback_id: rollback_id.to_owned(),
        parts: loss.parts.clone(),
        sequences,
        privileges: Privileges::read(c).await?,
        version_rows,
        put_back: false,
    };
    let document = serde_json::to_string(&kept)
        .map_err(|e| KeepError::Problem(Problem::from_error(Code::Internal, "describe kept rows", &e)))?;
    let table = qualified(schema, "kept");
    run(
        c,
        format!(
            "CREATE TABLE {table} AS SELECT {}::text AS document",
            literal(&document)
        ),
    )
    .await?;
    Ok(())
}

/// The version row of a migration as it was before it was taken down. False when none was kept.
pub(super) async fn version_row_back(
    c: &mut PgConnection,
    schema: &str,
    applied: &Applied,
    number: i64,
) -> Result<bool, KeepError> {
    match read_kept(c, schema).await.map_err(KeepError::Problem)? {
        Some(kept) if kept.version_rows && !kept.put_back => Ok(applied
            .put_row_back(c, number, &qualified(schema, "version_rows"))
            .await?),
        Some(_) | None => Ok(false),
    }
}

/// Puts everything back. Runs inside the transaction of the way up, after it. Does nothing when nothing was kept.
pub(super) async fn put_back(c: &mut PgConnection, schema: &str) -> Result<(), KeepError> {
    let Some(mut kept) = read_kept(c, schema).await.map_err(KeepError::Problem)? else {
        return Ok(());
    };
    if kept.put_back {
        return Ok(());
    }
    // The migration just made these tables; what it put in is replaced by what was there.
    for part in kept.parts.iter().rev().filter(|p| p.key.is_none()) {
        let triggers = quiet_triggers(c, part).await?;
        run(c, format!("DELETE FROM ONLY {}", part.table.quoted())).await?;
        wake_triggers(c, part, &triggers).await?;
    }
    for (i, part) in kept.parts.iter().enumerate() {
        // Triggers have seen these rows once already.
        let triggers = quiet_triggers(c, part).await?;
        run(c, fill(part, &qualified(schema, &format!("t{i}")))).await?;
        wake_triggers(c, part, &triggers).await?;
    }
    for (name, last, called) in &kept.sequences {
        run(
            c,
            format!("SELECT setval({}::regclass, {last}, {called})", literal(&name.quoted())),
        )
        .await?;
    }
    kept.privileges.give_back(c).await?;
    kept.put_back = true;
    let document = serde_json::to_string(&kept)
        .map_err(|e| KeepError::Problem(Problem::from_error(Code::Internal, "describe kept rows", &e)))?;
    let table = qualified(schema, "kept");
    run(c, format!("UPDATE {table} SET document = {}", literal(&document))).await?;
    Ok(())
}

/// The statement that puts one part back.
fn fill(part: &LostPart, from: &str) -> String {
    let table = part.table.quoted();
    let list = |prefix: &str, names: &[String]| {
        names
            .iter()
            .map(|n| format!("{prefix}{}", ident(n)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match &part.key {
        None if part.columns.is_empty() => format!("INSERT INTO {table} SELECT FROM {from}"),
        None => {
            let columns = list("", &part.columns);
            format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {from}")
        }
        Some(key) => {
            let set: Vec<String> = part.columns.iter().map(|n| format!("{0} = k.{0}", ident(n))).collect();
            let matching: Vec<String> = key.iter().map(|n| format!("t.{0} = k.{0}", ident(n))).collect();
            format!(
                "UPDATE ONLY {table} AS t SET {} FROM {from} AS k WHERE {} AND ROW({}) IS DISTINCT FROM ROW({})",
                set.join(", "),
                matching.join(" AND "),
                list("t.", &part.columns),
                list("k.", &part.columns)
            )
        }
    }
}

/// Disables the table's own triggers; answers how each was set.
async fn quiet_triggers(c: &mut PgConnection, part: &LostPart) -> Result<Vec<(String, &'static str)>, KeepError> {
    let rows = sqlx::query(
        "SELECT t.tgname::text AS name, t.tgenabled::text AS enabled FROM pg_trigger t
         JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND NOT t.tgisinternal AND t.tgenabled <> 'D'",
    )
    .bind(&part.table.schema)
    .bind(&part.table.name)
    .fetch_all(&mut *c)
    .await?;
    let mut triggers = Vec::new();
    for row in &rows {
        let name: String = row.try_get("name")?;
        let how = match row.try_get::<String, _>("enabled")?.as_str() {
            "A" => "ENABLE ALWAYS",
            "R" => "ENABLE REPLICA",
            _ => "ENABLE",
        };
        run(
            c,
            format!(
                "ALTER TABLE ONLY {} DISABLE TRIGGER {}",
                part.table.quoted(),
                ident(&name)
            ),
        )
        .await?;
        triggers.push((name, how));
    }
    Ok(triggers)
}

async fn wake_triggers(c: &mut PgConnection, part: &LostPart, triggers: &[(String, &str)]) -> Result<(), KeepError> {
    for (name, how) in triggers {
        run(
            c,
            format!("ALTER TABLE ONLY {} {how} TRIGGER {}", part.table.quoted(), ident(name)),
        )
        .await?;
    }
    Ok(())
}

/// Drops the kept schema if everything in it was put back; else it stays.
pub(super) async fn drop_if_put_back(c: &mut PgConnection, schema: &str) -> Result<bool, Problem> {
    match read_kept(c, schema).await? {
        Some(kept) if kept.put_back => {
            let dropped = run(c, format!("DROP SCHEMA {} CASCADE", ident(schema))).await;
            dropped
                .map_err(|e| sql_problem(Code::DatabaseDown, format!("drop schema {schema}"), &e))
                .map(|()| true)
        }
        Some(_) | None => Ok(false),
    }
}

/// Lock waits must stay recognisable, so that the transaction is tried again.
#[derive(Debug)]
pub(super) enum KeepError {
    Sql(sqlx::Error),
    Problem(Problem),
}

impl From<sqlx::Error> for KeepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}
