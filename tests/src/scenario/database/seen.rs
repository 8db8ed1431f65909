//! What a database holds, by psql and pg_dump alone: for stories whose database is not zekka's.

use anyhow::{Result, ensure};

use crate::facts::Data;
use crate::postgres::{DATABASE, Postgres};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub schema: String,
    pub data: Data,
    /// Of the cluster: scratch copies that are left behind show here.
    pub databases: Vec<String>,
    /// Schemas that hold what down migrations dropped.
    pub kept: Vec<String>,
}

impl Seen {
    pub fn of(postgres: &Postgres) -> Result<Self> {
        Ok(Self {
            schema: postgres.schema()?,
            data: Data::gather(postgres)?,
            databases: postgres.databases()?,
            kept: postgres.kept_schemas()?,
        })
    }

    /// Nothing was changed at all.
    pub fn expect_untouched(&self, before: &Self) -> Result<()> {
        self.expect_same(before)?;
        ensure!(
            self.kept == before.kept,
            "rows are kept in {:?}, and were in {:?}",
            self.kept,
            before.kept
        );
        Ok(())
    }

    /// The application finds what it had. `without` names tables that may differ: a tool's notes of when it ran.
    pub fn expect_same_but(&self, before: &Self, without: &str) -> Result<()> {
        let but = |seen: &Self| {
            let mut seen = seen.clone();
            seen.data.tables.remove(without);
            seen
        };
        but(self).expect_same(&but(before))
    }

    fn expect_same(&self, before: &Self) -> Result<()> {
        ensure!(
            self.schema == before.schema,
            "the schema was\n{}\nand is\n{}",
            before.schema,
            self.schema
        );
        ensure!(
            self.data == before.data,
            "it held {:?}, and holds {:?}",
            before.data,
            self.data
        );
        ensure!(
            self.databases == before.databases,
            "the databases were {:?}, and are {:?}",
            before.databases,
            self.databases
        );
        Ok(())
    }
}

/// How many rows a table has.
pub fn rows(postgres: &Postgres, table: &str) -> Result<String> {
    postgres.psql(DATABASE, &format!("SELECT count(*) FROM {table}"))
}
