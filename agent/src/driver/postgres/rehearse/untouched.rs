//! Tables of the copy that a rehearsal has not touched: their figures need no third reading, which is a good part of what
//! `stage` takes.
//!
//! Nobody else is at work in the copy. A table is untouched when it has the same file, the same columns in the same
//! places, as many rows as before, and no row that a transaction since the beginning wrote: whatever a migration did to its
//! content has changed one of these.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use crate::driver::postgres::connect::qualified;
use crate::driver::postgres::figures::{Figures, TableFigures};

/// How the tables were before a rehearsal.
#[derive(Debug)]
pub(super) struct Marks {
    /// The first transaction that had not begun, as the server writes it in rows.
    since: String,
    /// File and columns, by name.
    shapes: BTreeMap<(String, String), String>,
}

impl Marks {
    pub async fn read(c: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let since = "SELECT (txid_snapshot_xmax(txid_current_snapshot()) & 4294967295)::text";
        Ok(Self {
            since: sqlx::query_scalar(since).fetch_one(&mut *c).await?,
            shapes: shapes(c).await?,
        })
    }

    /// The figures of those that are as they were, by the names that [`Figures`] uses.
    pub async fn untouched(
        &self,
        c: &mut PgConnection,
        figures: &Figures,
    ) -> Result<BTreeMap<String, TableFigures>, sqlx::Error> {
        let now = shapes(c).await?;
        let mut untouched = BTreeMap::new();
        for (key, shape) in &self.shapes {
            let (schema, name) = key;
            let full = format!("{schema}.{name}");
            let Some(known) = figures.tables.get(&full).filter(|_| now.get(key) == Some(shape)) else {
                continue;
            };
            let query = format!(
                "SELECT count(*)::bigint, count(*) FILTER (WHERE age(t.xmin) <= age('{}'::xid))::bigint FROM ONLY {} AS t",
                self.since,
                qualified(schema, name)
            );
            let row = sqlx::query(AssertSqlSafe(query))
                .persistent(false)
                .fetch_one(&mut *c)
                .await?;
            let (rows, new): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            if new == 0 && u64::try_from(rows).is_ok_and(|rows| rows == known.rows) {
                untouched.insert(full, known.clone());
            }
        }
        Ok(untouched)
    }
}

async fn shapes(c: &mut PgConnection) -> Result<BTreeMap<(String, String), String>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT n.nspname::text AS schema, c.relname::text AS name,
                concat(c.oid, ' ', c.relfilenode, ' ',
                       (SELECT string_agg(concat(a.attnum, a.attname, ' ', a.atttypid, ' ', a.atttypmod, a.attgenerated), ',' ORDER BY a.attnum)
                        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)) AS shape
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    )
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| Ok(((row.try_get("schema")?, row.try_get("name")?), row.try_get("shape")?)))
        .collect()
}
