//! What going down takes away, found by comparing the catalogs before and after.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::connect::qualified;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Name {
    pub schema: String,
    pub name: String,
}

impl Name {
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Part of a table that disappears: all of it when there is no key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LostPart {
    pub table: Name,
    /// Columns whose content must be kept; generated ones are computed anew.
    pub columns: Vec<String>,
    /// The primary key by which values find their rows again; `None`: the whole table goes.
    pub key: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Loss {
    /// In an order in which they can be filled: referenced tables first.
    pub parts: Vec<LostPart>,
    pub sequences: Vec<Name>,
}

/// Tables with their columns, as far as content depends on them. Keys are OIDs: a rename is no loss.
#[derive(Debug, Default)]
pub(super) struct Structure {
    tables: BTreeMap<i64, Table>,
    sequences: BTreeMap<i64, Name>,
}

#[derive(Debug)]
struct Table {
    name: Name,
    /// By attribute number: name, and whether it is generated.
    columns: BTreeMap<i16, (String, bool)>,
    key: Vec<i16>,
    references: BTreeSet<i64>,
}

impl Structure {
    pub async fn read(c: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let mut found = Self::default();
        let rows = sqlx::query(
            "SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, c.relkind = 'S' AS sequence,
                    coalesce((SELECT array_agg(DISTINCT f.confrelid::bigint) FROM pg_constraint f
                              WHERE f.conrelid = c.oid AND f.contype = 'f'), '{}') AS refs,
                    coalesce((SELECT (string_to_array(i.indkey::text, ' ')::smallint[])[1:i.indnkeyatts] FROM pg_index i
                              WHERE i.indrelid = c.oid AND i.indisprimary), '{}') AS key
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
               AND n.nspname !~ '^rollbackctl_'",
        )
        .fetch_all(&mut *c)
        .await?;
        for row in &rows {
            let oid: i64 = row.try_get("oid")?;
            let name = Name {
                schema: row.try_get("schema")?,
                name: row.try_get("name")?,
            };
            if row.try_get("sequence")? {
                found.sequences.insert(oid, name);
            } else {
                let references = row.try_get::<Vec<i64>, _>("refs")?.into_iter().collect();
                let table = Table {
                    name,
                    columns: BTreeMap::new(),
                    key: row.try_get("key")?,
                    references,
                };
                found.tables.insert(oid, table);
            }
        }
        let rows = sqlx::query(
            "SELECT attrelid::bigint AS oid, attnum, attname::text AS name, attgenerated <> '' AS generated
             FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped",
        )
        .fetch_all(c)
        .await?;
        for row in &rows {
            if let Some(table) = found.tables.get_mut(&row.try_get("oid")?) {
                table.columns.insert(
                    row.try_get("attnum")?,
                    (row.try_get("name")?, row.try_get("generated")?),
                );
            }
        }
        Ok(found)
    }

    /// What is here and not in `after`. An error says why it could not be given back.
    pub fn lost_in(&self, after: &Self) -> Result<Loss, String> {
        let mut whole = Vec::new();
        let mut parts = Vec::new();
        for (oid, table) in &self.tables {
            let Some(left) = after.tables.get(oid) else {
                whole.push(*oid);
                continue;
            };
            let lost: Vec<i16> = table
                .columns
                .keys()
                .filter(|n| !left.columns.contains_key(*n))
                .copied()
                .collect();
            let name = |n: &i16| table.columns.get(n).map(|(name, _)| name.clone());
            let columns: Vec<String> = lost
                .iter()
                .filter_map(|n| table.columns.get(n))
                .filter(|(_, generated)| !generated)
                .map(|(n, _)| n.clone())
                .collect();
            if columns.is_empty() {
                continue;
            }
            if table.key.is_empty() || table.key.iter().any(|n| lost.contains(n)) {
                return Err(format!(
                    "column {} of table {} is dropped, and the table has no primary key outside of it by which its values \
                     could be put back",
                    columns.join(", "),
                    table.name
                ));
            }
            let key = table.key.iter().filter_map(name).collect();
            parts.push(LostPart {
                table: table.name.clone(),
                columns,
                key: Some(key),
            });
        }
        for oid in self.fill_order(whole)? {
            let Some(table) = self.tables.get(&oid) else { continue };
            let columns = table
                .columns
                .values()
                .filter(|(_, generated)| !generated)
                .map(|(name, _)| name.clone())
                .collect();
            parts.push(LostPart {
                table: table.name.clone(),
                columns,
                key: None,
            });
        }
        // Whole tables first: a column that is put back may refer to them.
        parts.sort_by_key(|p| p.key.is_some());
        let sequences = self
            .sequences
            .iter()
            .filter(|(oid, _)| !after.sequences.contains_key(oid));
        Ok(Loss {
            parts,
            sequences: sequences.map(|(_, name)| name.clone()).collect(),
        })
    }

    /// Referenced tables before those that refer to them.
    fn fill_order(&self, mut left: Vec<i64>) -> Result<Vec<i64>, String> {
        let mut order = Vec::new();
        while !left.is_empty() {
            let free = |oid: &i64| {
                self.tables
                    .get(oid)
                    .is_none_or(|t| !t.references.iter().any(|r| r != oid && left.contains(r)))
            };
            let (ready, waiting): (Vec<i64>, Vec<i64>) = left.iter().copied().partition(free);
            if ready.is_empty() {
                let names: Vec<String> = waiting
                    .iter()
                    .filter_map(|o| self.tables.get(o))
                    .map(|t| t.name.to_string())
                    .collect();
                return Err(format!(
                    "the tables {} are dropped and refer to each other in a circle",
                    names.join(", ")
                ));
            }
            order.extend(ready);
            left = waiting;
        }
        Ok(order)
    }
}
