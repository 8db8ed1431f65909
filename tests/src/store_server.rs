//! The PostgreSQL server in which several coordinators keep their journal. It is not the application's: it can be stopped,
//! crashed, or reached through a pooler or a proxy, and the application does not notice.
//!
//! What is seen of the store without asking a coordinator is [`Recorder`]'s.

mod recorder;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use self::recorder::{Act, Recorder};
use crate::coordinator::StoreAddress;
use crate::postgres::{Cluster, ClusterOptions, Shutdown};

/// The journal's database, and the role that owns it.
pub const DATABASE: &str = "rollback";
pub const ROLE: &str = "rollback";

#[derive(Debug)]
pub struct StoreServer {
    cluster: Cluster,
    password_file: PathBuf,
}

impl StoreServer {
    /// Makes a server below `dir`, with an empty database for the coordinators.
    pub async fn start(dir: &Path, log: &Path, durable: bool, keep: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).context("make the store's directory")?;
        let options = ClusterOptions {
            durable,
            keep,
            max_connections: 100,
            // The recorder tells by it what was committed before what.
            settings: vec!["track_commit_timestamp=on"],
        };
        let cluster = Cluster::start(&dir.join("postgres"), log, &options).await?;
        let create = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", cluster.password());
        cluster.psql("postgres", &create)?;
        cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
        let password_file = dir.join("store.password");
        rollback_proto::tls::write_private(&password_file, cluster.password().as_bytes())
            .context("write the password's file")?;
        Ok(Self { cluster, password_file })
    }

    /// How the coordinator of this name reaches it.
    pub fn address(&self, name: &str) -> StoreAddress {
        StoreAddress {
            url: self.url_at(self.cluster.port(), name),
            password_file: self.password_file.clone(),
        }
    }

    /// By way of another port on this host: through a pooler or a proxy. Sessions carry the coordinator's name, in a
    /// setting of ours, for the [`Recorder`]; a pooler must be told to ignore the startup parameter `options`.
    pub fn url_at(&self, port: u16, name: &str) -> String {
        let setting = recorder::SETTING;
        format!("postgres://{ROLE}@127.0.0.1:{port}/{DATABASE}?sslmode=disable&options[{setting}]={name}")
    }

    pub fn port(&self) -> u16 {
        self.cluster.port()
    }

    /// For a pooler, which logs in for others.
    pub fn password(&self) -> &str {
        self.cluster.password()
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs SQL in the journal's database as the superuser; rows come back as lines, columns separated by `|`.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.cluster.psql(DATABASE, sql)
    }

    /// Ends it; [`StoreServer::run`] starts it again on the same data.
    pub async fn stop(&mut self, how: Shutdown) -> Result<()> {
        self.cluster.stop(how).await
    }

    /// `kill -9` of all its processes.
    pub async fn crash(&mut self) -> Result<()> {
        self.cluster.crash().await
    }

    pub async fn run(&mut self) -> Result<()> {
        self.cluster.run().await
    }

    /// Ends every session of the coordinators, in the middle of whatever they do. How many there were.
    pub fn end_sessions(&self) -> Result<usize> {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}' AND datname = '{DATABASE}'"
        );
        self.psql(&sql)?.parse().context("a number of sessions")
    }

    pub fn let_go(&self) {
        self.cluster.let_go();
    }
}
