//! The application's database, on a server of its own: what is rolled back, and psql to look at it.

mod by_hand;
mod cluster;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

pub use self::by_hand::ByHand;
use self::cluster::SUPERUSER;
pub use self::cluster::{Cluster, ClusterOptions, Shutdown};
use crate::control::{Control, Held};
use crate::process::run;

/// The database that is rolled back, and the role that owns it.
pub const DATABASE: &str = "zekka_production";
pub const ROLE: &str = "zekka";

#[derive(Debug)]
pub struct Postgres(Cluster);

impl Postgres {
    /// Makes a server below `dir` with the application's database, which is empty.
    pub async fn start(dir: &Path, log: &Path, options: &ClusterOptions) -> Result<Self> {
        let postgres = Self(Cluster::start(dir, log, options).await?);
        postgres.psql(
            "postgres",
            &format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{}'", postgres.password()),
        )?;
        postgres.psql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
        Ok(postgres)
    }

    /// That of a host in a story, in the host's directory. It ends after the agents.
    pub async fn of(control: &mut Control, host: &str) -> Result<Arc<Self>> {
        let dir = control.host_dir(host).join("postgres");
        let options = ClusterOptions {
            keep: control.is_kept(),
            ..ClusterOptions::default()
        };
        let postgres = Self::start(&dir, &control.log("postgres"), &options).await?;
        let postgres = Arc::new(postgres);
        control.hold(Arc::clone(&postgres));
        Ok(postgres)
    }

    /// The `[[component]]` of its agent, which is called `db`. Passwords and backups go into the host's directory.
    pub fn component(&self, host_dir: &Path, migrations: &Path, bin_dir: &Path) -> Result<String> {
        let password = host_dir.join("db.password");
        rollback_proto::tls::write_private(&password, self.password().as_bytes())
            .context("write the password's file")?;
        Ok(format!(
            "[[component]]\nname = \"db\"\nkind = \"postgres\"\ndatabase = \"{DATABASE}\"\nhost = \"{}\"\nport = {}\n\
             user = \"{ROLE}\"\npassword_file = \"{}\"\nmigrations = \"{}\"\nbackups = \"{}\"\nbin_dir = \"{}\"\n",
            self.socket().display(),
            self.port(),
            password.display(),
            migrations.display(),
            host_dir.join("backups").display(),
            bin_dir.display(),
        ))
    }

    /// Ends the server in order, which ends the sessions of others.
    pub async fn stop(&mut self) -> Result<()> {
        self.0.stop(Shutdown::Fast).await
    }

    pub fn let_go(&self) {
        self.0.let_go();
    }

    pub fn pid(&self) -> Option<u32> {
        self.0.pid()
    }

    pub fn socket(&self) -> &Path {
        self.0.socket()
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Of the superuser and of [`ROLE`].
    pub fn password(&self) -> &str {
        self.0.password()
    }

    /// Where `pg_dump` and its like are.
    pub fn bin(&self) -> &Path {
        self.0.bin()
    }

    /// What the application is given.
    pub fn url(&self) -> String {
        format!(
            "postgres://{ROLE}:{}@127.0.0.1:{}/{DATABASE}",
            self.password(),
            self.port()
        )
    }

    fn client(&self, program: &str, role: &str, database: &str) -> Command {
        self.0.client(program, role, database)
    }

    /// Runs SQL as the superuser; rows come back as lines, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        self.0.psql(database, sql)
    }

    /// Runs a file as the owner of the database, in one transaction, as a migration tool would.
    pub fn migrate(&self, sql: &str) -> Result<()> {
        let mut psql = self.client("psql", ROLE, DATABASE);
        run(psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-c", sql])).map(drop)
    }

    /// Runs one statement as the owner of the database, in no transaction of others.
    pub fn migrate_alone(&self, sql: &str) -> Result<()> {
        let mut psql = self.client("psql", ROLE, DATABASE);
        run(psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-c", sql])).map(drop)
    }

    /// Looks at a database that takes no connections: it takes them for that long. Others are looked at as they are.
    pub fn while_open<T>(&self, database: &str, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let allow = |yes: bool| {
            let sql = format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS {yes}");
            self.psql("postgres", &sql).map(drop)
        };
        let closed = format!("SELECT 1 FROM pg_database WHERE datname = '{database}' AND NOT datallowconn");
        if self.psql("postgres", &closed)?.is_empty() {
            return look();
        }
        allow(true)?;
        let seen = look();
        allow(false)?;
        seen
    }

    /// The application's schema as SQL, without what differs from run to run, and without what a rollback keeps of the
    /// data that a down migration drops (see [`Postgres::kept_schemas`]).
    pub fn schema(&self) -> Result<String> {
        let dump = run(self
            .client("pg_dump", SUPERUSER, DATABASE)
            .args(["--schema-only", "--exclude-schema=rollbackctl_kept_*"]))?;
        let lasting = |l: &&str| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict") && !l.starts_with("--");
        Ok(dump.lines().filter(lasting).collect::<Vec<_>>().join("\n"))
    }

    /// Names of the schemas in which the database's agent keeps what a down migration drops. They outlive a rollback that
    /// reached its target, and nothing else.
    pub fn kept_schemas(&self) -> Result<Vec<String>> {
        let sql = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rollbackctl%' ORDER BY 1";
        Ok(self.psql(DATABASE, sql)?.lines().map(str::to_owned).collect())
    }

    pub fn databases(&self) -> Result<Vec<String>> {
        let names = self.psql(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1",
        )?;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

impl Held for Arc<Postgres> {
    fn let_go(&mut self) -> String {
        Postgres::let_go(self);
        // The script that ends a kept fleet finds the server by itself.
        String::new()
    }
}
