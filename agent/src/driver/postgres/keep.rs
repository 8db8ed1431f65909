//! What a down migration takes away is kept, and given back when the migration comes up again.
//!
//! Down migrations drop columns and tables; the up migrations that undo them bring these back empty. So the rehearsal
//! compares the catalogs before and after going down ([`super::loss`]); in the same transaction as the migrations,
//! and before them, their content is copied into a schema of ours ([`keep`], [`super::kept`]); and in the same transaction
//! as the way up, after it, the content is put back ([`super::put_back`]).
//!
//! A leg of several parts keeps in each part what that part takes away, and puts back in each part what that part has
//! brought: no row is lost that is written between two parts, and one that turns round half-way touches nothing that was
//! never taken away. Only the project's own tool runs outside of our transactions: what is written between the copy and
//! the tool's drop is not kept.
//!
//! Rows that were rewritten in place (an UPDATE or a lossy change of type in a down migration) are not kept: the rehearsal
//! finds them by checksum and fails.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{changed, ident, literal, qualified, run};
use super::kept::{self, KeepError, Kept};
use super::loss::Loss;
use super::privileges::Privileges;
use super::versions::Applied;

/// Where to keep, and for whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub schema: &'a str,
    pub rollback_id: &'a str,
    /// All migrations of the leg.
    pub numbers: &'a [i64],
    /// Earlier parts of the same leg may have kept something there.
    pub adds: bool,
}

/// Copies what is going to be lost, and the version rows of these migrations. Runs inside the migrations' transaction;
/// the tables stay locked to its end, so nothing is written between the copy and the drop.
pub(super) async fn keep(
    c: &mut PgConnection,
    place: Place<'_>,
    loss: &Loss,
    applied: &Applied,
) -> Result<(), KeepError> {
    let Place {
        schema,
        rollback_id,
        numbers,
        adds,
    } = place;
    let mut earlier = None;
    if let Some(kept) = kept::read(c, schema).await.map_err(KeepError::Problem)? {
        if kept.put_back {
            clear_the_name(c, schema, &kept).await?;
        } else if adds && !kept.holds_any_of(loss) {
            earlier = Some(kept);
        } else {
            let message = format!("schema {schema} holds rows of this rollback that were never put back");
            return Err(KeepError::Problem(Problem::new(Code::DatabaseUnclear, message)));
        }
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
    let mut kept = match earlier {
        Some(kept) => kept,
        None => begin(c, schema, rollback_id, applied, numbers).await?,
    };
    for part in &loss.parts {
        let columns = part
            .key
            .iter()
            .flatten()
            .chain(&part.columns)
            .map(|n| ident(n))
            .collect::<Vec<_>>()
            .join(", ");
        let into = qualified(schema, &format!("t{}", kept.parts.len()));
        let copy = format!(
            "CREATE TABLE {into} AS SELECT {columns} FROM ONLY {}",
            part.table.quoted()
        );
        kept.rows.push(changed(c, copy).await?);
        kept.parts.push(part.clone());
    }
    for name in &loss.sequences {
        let query = format!("SELECT last_value, is_called FROM {}", name.quoted());
        let row = sqlx::query(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await?;
        kept.sequences.retain(|(known, ..)| known != name);
        kept.sequences.push((name.clone(), row.try_get(0)?, row.try_get(1)?));
    }
    kept.write(c, schema).await
}

/// The schema with nothing in it but the version rows.
async fn begin(
    c: &mut PgConnection,
    schema: &str,
    rollback_id: &str,
    applied: &Applied,
    numbers: &[i64],
) -> Result<Kept, KeepError> {
    run(c, format!("CREATE SCHEMA {}", ident(schema))).await?;
    let about = format!(
        "rows that rollbackctl kept when rollback {rollback_id} took migrations down; drop it when they are not needed any more"
    );
    run(c, format!("COMMENT ON SCHEMA {} IS {}", ident(schema), literal(&about))).await?;
    // A way up that turns round half-way has noted some of them only.
    let noted: Vec<i64> = numbers
        .iter()
        .filter(|n| applied.text_of(**n).is_some())
        .copied()
        .collect();
    let version_rows = matches!(applied.layout, super::versions::Layout::Rows(_)) && !noted.is_empty();
    if version_rows {
        applied.copy_rows(c, &noted, &qualified(schema, "version_rows")).await?;
    }
    run(c, format!("CREATE TABLE {} (document text)", qualified(schema, "kept"))).await?;
    Ok(Kept {
        rollback_id: rollback_id.to_owned(),
        parts: Vec::new(),
        sequences: Vec::new(),
        privileges: Privileges::read(c).await?,
        version_rows,
        put_back: false,
        kept_at: Some(Timestamp::now()),
        rows: Vec::new(),
        numbers: Some(numbers.to_vec()),
        put_back_by: None,
        account: None,
        left_out: 0,
        returned: Vec::new(),
        absent: BTreeSet::new(),
        absent_sequences: BTreeSet::new(),
    })
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
