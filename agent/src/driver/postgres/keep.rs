//! What a down migration takes away is kept, and given back when the migration comes up again.
//!
//! Down migrations drop columns and tables; the up migrations that undo them bring these back empty. So the rehearsal
//! compares the catalogs before and after going down ([`super::loss`]); in the same transaction as the migrations,
//! and before them, their content is copied into a schema of ours ([`keep`], [`super::kept`]); and in the same transaction
//! as the way up, after it, the content is put back ([`super::put_back`]).
//!
//! Rows that were rewritten in place (an UPDATE or a lossy change of type in a down migration) are not kept: the rehearsal
//! finds them by checksum and fails.

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{changed, ident, literal, qualified, run};
use super::kept::{self, KeepError, Kept};
use super::loss::Loss;
use super::privileges::Privileges;
use super::versions::Applied;

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
    if let Some(kept) = kept::read(c, schema).await.map_err(KeepError::Problem)? {
        if !kept.put_back {
            let message = format!("schema {schema} holds rows of this rollback that were never put back");
            return Err(KeepError::Problem(Problem::new(Code::DatabaseUnclear, message)));
        }
        clear_the_name(c, schema, &kept).await?;
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
    let mut rows = Vec::new();
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
        let copy = format!(
            "CREATE TABLE {into} AS SELECT {columns} FROM ONLY {}",
            part.table.quoted()
        );
        rows.push(changed(c, copy).await?);
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
        kept_at: Some(Timestamp::now()),
        rows,
        numbers: Some(numbers.to_vec()),
        put_back_by: None,
        account: None,
        left_out: 0,
    };
    run(c, format!("CREATE TABLE {} (document text)", qualified(schema, "kept"))).await?;
    kept.write(c, schema).await
}

/// Makes room for another schema of the same name. What was put back goes; rows that had no place then stay.
async fn clear_the_name(c: &mut PgConnection, schema: &str, kept: &Kept) -> Result<(), KeepError> {
    if kept.is_spent() {
        return Ok(run(c, format!("DROP SCHEMA {} CASCADE", ident(schema))).await?);
    }
    let oid: i64 = sqlx::query_scalar("SELECT oid::bigint FROM pg_namespace WHERE nspname = $1")
        .bind(schema)
        .fetch_one(&mut *c)
        .await?;
    let other = ident(&format!("{schema}_{oid}"));
    Ok(run(c, format!("ALTER SCHEMA {} RENAME TO {other}", ident(schema))).await?)
}
