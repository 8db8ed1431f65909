//! All rows of a database as a multiset of hashes, table by table: which rows does one database have that another one
//! has not? Asked with psql, whatever the programs under test count.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::postgres::Postgres;

/// By `schema.table`; sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows(BTreeMap<String, Vec<i64>>);

impl Rows {
    /// Reads all tables but PostgreSQL's and those that a rollback keeps, also of a database that takes no connections.
    pub fn read(postgres: &Postgres, database: &str) -> Result<Self> {
        postgres.while_open(database, || Self::read_open(postgres, database))
    }

    fn read_open(postgres: &Postgres, database: &str) -> Result<Self> {
        let tables = postgres.psql(
            database,
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|rollbackctl_)' AND n.nspname <> 'information_schema'",
        )?;
        let mut all = BTreeMap::new();
        for table in tables.lines() {
            let hashes = postgres.psql(database, &hashes_of(table))?;
            let mut hashes: Vec<i64> = hashes
                .lines()
                .map(|line| {
                    line.parse()
                        .with_context(|| format!("hash of a row of {table}: {line}"))
                })
                .collect::<Result<_>>()?;
            hashes.sort_unstable();
            all.insert(table.to_owned(), hashes);
        }
        Ok(Self(all))
    }

    /// How many rows of each table the other one has not; tables without any are left out.
    pub fn missing_from(&self, other: &Self) -> BTreeMap<String, u64> {
        let none = Vec::new();
        let missing = self.0.iter().map(|(table, mine)| {
            let theirs = other.0.get(table).unwrap_or(&none);
            (table.clone(), missing(mine, theirs))
        });
        missing.filter(|(_, count)| *count > 0).collect()
    }

    pub fn total(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// The order of columns does not count. A deal in v3.0.0's schema whose stage is only the column's default is the deal
/// that v2.9.0 knows.
fn hashes_of(table: &str) -> String {
    let row = match table {
        "public.deals" => "to_jsonb(t) - CASE WHEN to_jsonb(t) ->> 'stage' = 'open' THEN 'stage' ELSE '' END",
        _ => "to_jsonb(t)",
    };
    format!("COPY (SELECT hashtextextended(({row})::text, 0) FROM ONLY {table} t) TO STDOUT")
}

/// Both are sorted.
fn missing(mine: &[i64], theirs: &[i64]) -> u64 {
    let (mut at, mut count) = (0, 0);
    for hash in mine {
        while theirs.get(at).is_some_and(|other| other < hash) {
            at += 1;
        }
        if theirs.get(at) == Some(hash) {
            at += 1;
        } else {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn rows_that_occur_twice_are_two_rows() {
        assert_eq!(missing(&[1, 2, 2, 5], &[0, 1, 2, 3]), 2);
        assert_eq!(missing(&[2, 2], &[2, 2]), 0);
        assert_eq!(missing(&[], &[1]), 0);
        assert_eq!(missing(&[7], &[]), 1);
    }
}
