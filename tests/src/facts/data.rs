//! What the database holds, by psql: every table as a count and a checksum in which the order of rows and columns does
//! not count, and every sequence.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::postgres::{DATABASE, Postgres};

/// Rows of the application's own, without PostgreSQL's and without what a rollback keeps.
const OURS: &str = "n.nspname !~ '^(pg_|rollbackctl_)' AND n.nspname <> 'information_schema'";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub rows: u64,
    pub checksum: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// By `schema.name`.
    pub tables: BTreeMap<String, Table>,
    /// Last values, by `schema.name`; empty for one that was never used.
    pub sequences: BTreeMap<String, String>,
}

impl Data {
    pub fn gather(postgres: &Postgres) -> Result<Self> {
        let names = postgres.psql(
            DATABASE,
            &format!(
                "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND {OURS} ORDER BY 1"
            ),
        )?;
        let sums: Vec<String> = names
            .lines()
            .map(|table| {
                format!(
                    "SELECT '{table}', count(*), coalesce(sum(hashtextextended(to_jsonb(t)::text, 0)::numeric), 0) \
                     FROM ONLY {table} t"
                )
            })
            .collect();
        let sequences = format!(
            "SELECT format('%I.%I', n.nspname, s.sequencename), s.last_value FROM pg_sequences s \
             JOIN pg_namespace n ON n.nspname = s.schemaname WHERE {OURS}"
        );
        let mut data = Self::default();
        if !sums.is_empty() {
            for line in postgres.psql(DATABASE, &sums.join(" UNION ALL "))?.lines() {
                let (name, table) = named_table(line).with_context(|| format!("sum of a table: {line}"))?;
                data.tables.insert(name, table);
            }
        }
        for line in postgres.psql(DATABASE, &sequences)?.lines() {
            let (name, last) = line.split_once('|').context("name and value of a sequence")?;
            data.sequences.insert(name.to_owned(), last.to_owned());
        }
        Ok(data)
    }

    /// Without the tool's own list of migrations, whose times of application are not the application's data.
    pub fn of_the_application(mut self) -> Self {
        self.tables.remove("public.schema_migrations");
        self
    }
}

fn named_table(line: &str) -> Option<(String, Table)> {
    let mut fields = line.split('|');
    let (name, rows, checksum) = (fields.next()?, fields.next()?, fields.next()?);
    let table = Table {
        rows: rows.parse().ok()?,
        checksum: checksum.to_owned(),
    };
    Some((name.to_owned(), table))
}

/// What v3.0.0 alone holds: deals in a stage, and the events that led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageData {
    pub staged_deals: Table,
    pub events: Table,
}

const STAGED_DEALS: [&str; 2] = ["id", "stage"];
const EVENTS: [&str; 4] = ["deal", "happened_at", "id", "stage"];

impl StageData {
    pub fn live(postgres: &Postgres) -> Result<Self> {
        Self::of(postgres, "public.deals", "public.deal_events")
    }

    /// In a schema that a rollback keeps. How its tables are called is the agent's affair; they are known by their columns.
    pub fn kept(postgres: &Postgres, schema: &str) -> Result<Self> {
        let with_columns = |columns: &[&str]| {
            let table = postgres.psql(
                DATABASE,
                &format!(
                    "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.columns \
                     WHERE table_schema = '{schema}' GROUP BY table_schema, table_name \
                     HAVING string_agg(column_name, ',' ORDER BY column_name::text COLLATE \"C\") = '{}'",
                    columns.join(",")
                ),
            )?;
            anyhow::ensure!(!table.is_empty(), "{schema} has no table with the columns {columns:?}");
            Ok(table)
        };
        Self::of(postgres, &with_columns(&STAGED_DEALS)?, &with_columns(&EVENTS)?)
    }

    fn of(postgres: &Postgres, deals: &str, events: &str) -> Result<Self> {
        let sum = |table: &str, columns: &[&str]| {
            let sql = format!(
                "SELECT '', count(*), coalesce(sum(hashtextextended(ROW({})::text, 0)::numeric), 0) FROM {table} \
                 WHERE stage <> 'open'",
                columns.join(", ")
            );
            let line = postgres.psql(DATABASE, &sql)?;
            let (_, table) = named_table(&line).with_context(|| format!("sum of a table: {line}"))?;
            Ok::<_, anyhow::Error>(table)
        };
        Ok(Self {
            staged_deals: sum(deals, &STAGED_DEALS)?,
            events: sum(events, &EVENTS)?,
        })
    }
}
