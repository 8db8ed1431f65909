//! Figures of a database's content that can be compared: rows and an order-free checksum for every table.
//!
//! The checksum of a table is the sum over its rows of a 64-bit hash of the row's text, with the columns in the order of
//! their names: the same content has the same sum whatever the order of rows or columns, and, unlike an exclusive or,
//! rows that occur twice do not cancel out. It guards against damage, not against forgers. The server's own hash is used
//! and not MD5, because the sums are read three times and are most of what `stage` adds to a dump and a restore.
//!
//! Left out: large objects are counted only (their content needs a superuser), views and foreign tables hold nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{ident, qualified};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableFigures {
    pub rows: u64,
    pub checksum: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Figures {
    pub tables: BTreeMap<String, TableFigures>,
    pub large_objects: u64,
}

impl Figures {
    /// Reads everything once. `seen` is told of every table, with its number and how many there are.
    pub async fn read(c: &mut PgConnection, seen: impl FnMut(&str, usize, usize) + Send) -> Result<Self, sqlx::Error> {
        Self::read_but(c, &BTreeMap::new(), seen).await
    }

    /// The same, but for tables whose figures are known.
    pub async fn read_but(
        c: &mut PgConnection,
        known: &BTreeMap<String, TableFigures>,
        mut seen: impl FnMut(&str, usize, usize) + Send,
    ) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT n.nspname AS schema, c.relname AS name,
                    coalesce((SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
                              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '{}') AS columns
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
               AND n.nspname !~ '^rollbackctl_'
               AND NOT EXISTS (SELECT 1 FROM pg_depend d
                               WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
             ORDER BY pg_table_size(c.oid) DESC, 1, 2",
        )
        .fetch_all(&mut *c)
        .await?;
        let mut tables = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            let (schema, name): (String, String) = (row.try_get("schema")?, row.try_get("name")?);
            let full = format!("{schema}.{name}");
            if let Some(figures) = known.get(&full) {
                tables.insert(full, figures.clone());
                continue;
            }
            let columns: Vec<String> = row.try_get("columns")?;
            let columns = columns
                .iter()
                .map(|c| format!("t.{}", ident(c)))
                .collect::<Vec<_>>()
                .join(", ");
            let query = format!(
                "SELECT count(*)::bigint, \
                        coalesce(sum(hashtextextended(ROW({columns})::text COLLATE \"C\", 0)), 0)::text \
                 FROM ONLY {} AS t",
                qualified(&schema, &name)
            );
            let found = sqlx::query(AssertSqlSafe(query))
                .persistent(false)
                .fetch_one(&mut *c)
                .await?;
            let figures = TableFigures {
                rows: u64::try_from(found.try_get::<i64, _>(0)?).unwrap_or_default(),
                checksum: found.try_get(1)?,
            };
            seen(&full, i + 1, rows.len());
            tables.insert(full, figures);
        }
        let large: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_largeobject_metadata")
            .fetch_one(c)
            .await?;
        Ok(Self {
            tables,
            large_objects: u64::try_from(large).unwrap_or_default(),
        })
    }

    pub fn rows(&self) -> u64 {
        self.tables.values().map(|t| t.rows).sum()
    }

    /// The first differences to what was expected, for a message; `None` when there are none.
    pub fn differences(&self, expected: &Self) -> Option<String> {
        let mut found = Vec::new();
        for (name, expected) in &expected.tables {
            match self.tables.get(name) {
                None => found.push(format!("table {name} is missing")),
                Some(t) if t.rows != expected.rows => {
                    found.push(format!("table {name} has {} rows instead of {}", t.rows, expected.rows));
                }
                Some(t) if t.checksum != expected.checksum => {
                    found.push(format!("table {name} has {} rows, but other content", t.rows));
                }
                Some(_) => {}
            }
        }
        for name in self.tables.keys().filter(|name| !expected.tables.contains_key(*name)) {
            found.push(format!("table {name} was not expected"));
        }
        if self.large_objects != expected.large_objects {
            found.push(format!(
                "{} large objects instead of {}",
                self.large_objects, expected.large_objects
            ));
        }
        found.truncate(4);
        (!found.is_empty()).then(|| found.join("; "))
    }
}

/// `last_value` and `is_called` of every sequence. Sequences do not belong to snapshots: only figures of a database
/// that nobody else writes to can be compared.
pub(super) async fn sequences(c: &mut PgConnection) -> Result<BTreeMap<String, String>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'S' AND n.nspname !~ '^pg_' AND n.nspname !~ '^rollbackctl_'",
    )
    .fetch_all(&mut *c)
    .await?;
    let mut values = BTreeMap::new();
    for row in &rows {
        let (schema, name): (String, String) = (row.try_get("schema")?, row.try_get("name")?);
        let query = format!(
            "SELECT concat(last_value, ' ', is_called) FROM {}",
            qualified(&schema, &name)
        );
        let value = sqlx::query_scalar(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await?;
        values.insert(format!("{schema}.{name}"), value);
    }
    Ok(values)
}
