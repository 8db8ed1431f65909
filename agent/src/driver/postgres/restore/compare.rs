//! The loss for a dump that says nothing of its snapshot: the rows of the live database are compared with the restored
//! ones.
//!
//! Both sides give a hash of every row, sorted by the server, and the two streams are merged: nothing is held in memory,
//! and no row leaves the server. Only columns that both sides have can be compared; where they are not the same, the
//! answer is that the loss is unknown, with what was found as its least. What is written to the live database meanwhile
//! and later is told by a horizon that is taken together with the comparison.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::Basis;
use super::cost::{Cost, Rows};
use crate::driver::postgres::connect::{ident, qualified};
use crate::driver::postgres::horizon::Horizon;

/// Longer comparisons are given up: then the loss is unknown.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    schema: String,
    name: String,
    columns: Vec<String>,
}

pub(super) async fn compare(
    live: &mut PgConnection,
    side: &mut PgConnection,
    until: Instant,
) -> Result<Basis, sqlx::Error> {
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::raw_sql(begin).execute(&mut *live).await?;
    let since = Horizon::read(live).await?;
    let (now, then) = (tables(live).await?, tables(side).await?);
    let (mut cost, mut rows) = (Cost::default(), BTreeMap::new());
    for name in now.keys().chain(then.keys().filter(|name| !now.contains_key(*name))) {
        let left = until.saturating_duration_since(Instant::now());
        let work = one(live, side, now.get(name), then.get(name));
        let Ok(found) = tokio::time::timeout(left, work).await else {
            return Ok(Basis::Unknown(format!(
                "the backup has no horizon, and comparing it with the live database took longer than {} s",
                LIMIT.as_secs()
            )));
        };
        let (lost, live_rows) = found?;
        if now.contains_key(name) {
            rows.insert(name.clone(), live_rows);
        }
        cost.add(name, lost);
        if let (Some(a), Some(b)) = (now.get(name), then.get(name))
            && a.columns != b.columns
        {
            cost.doubt(format!("{name} has other columns now than in the backup"));
        }
    }
    sqlx::raw_sql("COMMIT").execute(live).await?;
    Ok(Basis::Compared { cost, since, rows })
}

/// What one table loses, and how many rows the live one has.
async fn one(
    live: &mut PgConnection,
    side: &mut PgConnection,
    now: Option<&Table>,
    then: Option<&Table>,
) -> Result<(Rows, u64), sqlx::Error> {
    let columns: Vec<&String> = match (now, then) {
        (Some(a), Some(b)) => a.columns.iter().filter(|c| b.columns.contains(c)).collect(),
        (Some(only), None) | (None, Some(only)) => only.columns.iter().collect(),
        (None, None) => Vec::new(),
    };
    let query = |table: &Table| {
        let columns: Vec<String> = columns.iter().map(|c| format!("t.{}", ident(c))).collect();
        format!(
            "SELECT hashtextextended(ROW({})::text COLLATE \"C\", 0) FROM ONLY {} AS t ORDER BY 1",
            columns.join(", "),
            qualified(&table.schema, &table.name)
        )
    };
    // A table that one side does not have is one without rows.
    let nothing = "SELECT 0::bigint WHERE false".to_owned();
    let (ours, theirs) = (now.map_or(nothing.clone(), query), then.map_or(nothing, query));
    let mut ours = sqlx::query(AssertSqlSafe(ours)).persistent(false).fetch(live);
    let mut theirs = sqlx::query(AssertSqlSafe(theirs)).persistent(false).fetch(side);
    let hash = |row: Option<sqlx::postgres::PgRow>| row.map(|r| r.try_get::<i64, _>(0)).transpose();
    let (mut a, mut b) = (hash(ours.try_next().await?)?, hash(theirs.try_next().await?)?);
    let (mut rows, mut count) = (Rows::default(), 0);
    loop {
        let order = match (a, b) {
            (None, None) => return Ok((rows, count)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(&b),
        };
        match order {
            Ordering::Less => rows.written += 1,
            Ordering::Greater => rows.replaced += 1,
            Ordering::Equal => {}
        }
        if order != Ordering::Greater {
            count += 1;
            a = hash(ours.try_next().await?)?;
        }
        if order != Ordering::Less {
            b = hash(theirs.try_next().await?)?;
        }
    }
}

async fn tables(c: &mut PgConnection) -> Result<BTreeMap<String, Table>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT n.nspname::text AS schema, c.relname::text AS name,
                coalesce((SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
                          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '{}') AS columns
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname !~ '^rollbackctl_'
           AND NOT EXISTS (SELECT 1 FROM pg_depend d
                           WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')",
    )
    .fetch_all(c)
    .await?;
    rows.iter()
        .map(|row| {
            let table = Table {
                schema: row.try_get("schema")?,
                name: row.try_get("name")?,
                columns: row.try_get("columns")?,
            };
            Ok((format!("{}.{}", table.schema, table.name), table))
        })
        .collect()
}
