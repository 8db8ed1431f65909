//! PostgreSQL with the application's schema and data.

use std::sync::Arc;

use anyhow::Result;

use crate::control::Control;
use crate::facts::Data;
use crate::postgres::{DATABASE, Postgres};
use crate::zekka::{Version, Zekka};

/// The host of [`Database::of`].
pub const HOST: &str = "db-1";

#[derive(Debug)]
pub struct Database {
    pub postgres: Arc<Postgres>,
    pub zekka: Zekka,
    component: String,
}

/// What psql and pg_dump say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Rows of schema_migrations.
    pub migrations: String,
    pub schema: String,
    pub data: Data,
    /// Of the cluster: scratch copies that are left behind show here.
    pub databases: Vec<String>,
}

impl Database {
    /// An empty one on `db-1`. It ends after the agents.
    pub async fn of(control: &mut Control) -> Result<Self> {
        let postgres = Postgres::of(control, HOST).await?;
        let dir = control.host_dir(HOST);
        let zekka = Zekka::without_hosts(dir.join("migrations"));
        let component = postgres.component(&dir, &zekka.migrations, postgres.bin())?;
        Ok(Self {
            postgres,
            zekka,
            component,
        })
    }

    /// Migrates it by hand to what a version needs, with data that this version would have made.
    pub fn install(&self, version: Version) -> Result<()> {
        self.zekka.deploy_database(&self.postgres, version)
    }

    /// The `[[component]]` for the agent of its host. It is called `db`.
    pub fn component(&self) -> &str {
        &self.component
    }

    pub fn facts(&self) -> Result<DatabaseFacts> {
        let migrations = "SELECT string_agg(version::text, ',' ORDER BY version) FROM schema_migrations";
        Ok(DatabaseFacts {
            migrations: self.postgres.psql(DATABASE, migrations)?,
            schema: self.postgres.schema()?,
            data: Data::gather(&self.postgres)?,
            databases: self.postgres.databases()?,
        })
    }
}
