//! PgBouncer in transaction mode: every transaction may be another server connection's, and a session is nobody's.
//!
//! What breaks behind it is whatever a program keeps in its session: prepared statements, session locks, settings without
//! LOCAL. The pool is smaller than the number of clients, so that connections do change hands all the while.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Daemon, End, Launch, free_port, run};
use crate::wait;

const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// The account that it runs as when the harness is root, which it refuses to run as. It comes with the package.
const USER: &str = "postgres";

/// Connections to the server that all clients together share.
const POOL: u32 = 4;

/// What it stands in front of.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a> {
    pub port: u16,
    pub database: &'a str,
    pub role: &'a str,
    pub password: &'a str,
    /// For looking at the pooler itself.
    pub psql: &'a Path,
}

#[derive(Debug)]
pub struct PgBouncer {
    daemon: Option<Daemon>,
    launch: Launch,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    role: String,
    password: String,
    psql: PathBuf,
}

impl PgBouncer {
    /// Lays its files out below `dir` and starts it on a port that stays the same.
    pub async fn start(dir: &Path, log: &Path, behind: Behind<'_>) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "there is no {PROGRAM}: tests/install-dependencies.sh installs the package pgbouncer"
        );
        std::fs::create_dir_all(dir).context("make the pooler's directory")?;
        let (port, users, config) = (free_port()?, dir.join("users"), dir.join("pgbouncer.ini"));
        let Behind {
            role,
            password,
            database,
            ..
        } = behind;
        std::fs::write(&users, format!("\"{role}\" \"{password}\"\n")).context("write the pooler's users")?;
        // What the harness itself puts into a session's options does not get through a pooler, and is not missed.
        let text = format!(
            "[databases]\n{database} = host=127.0.0.1 port={server} dbname={database}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {users}\nadmin_users = {role}\n\
             pool_mode = transaction\ndefault_pool_size = {POOL}\nserver_login_retry = 1\nserver_round_robin = 1\n\
             ignore_startup_parameters = options\n",
            server = behind.port,
            users = users.display(),
        );
        std::fs::write(&config, text).context("write pgbouncer.ini")?;
        let user = rustix::process::geteuid().is_root().then_some(USER);
        if let Some(user) = user {
            run(Command::new("chown").arg("-R").arg(user).arg(dir))?;
        }
        let mut pooler = Self {
            daemon: None,
            launch: Launch {
                user,
                end: End::Kill,
                ..Launch::default()
            },
            config,
            log: log.to_owned(),
            port,
            role: role.to_owned(),
            password: password.to_owned(),
            psql: behind.psql.to_owned(),
        };
        pooler.run().await?;
        Ok(pooler)
    }

    /// Starts the process on its configuration and waits until it answers.
    pub async fn run(&mut self) -> Result<()> {
        let config = self.config.display().to_string();
        let daemon = Daemon::start("pgbouncer", &self.launch, Path::new(PROGRAM), &[&config], &self.log)?;
        self.daemon = Some(daemon);
        let answers = async || self.ask("SHOW VERSION").is_ok();
        wait::until_true("PgBouncer answers", Duration::from_secs(10), answers).await
    }

    /// Ends it as a restart does, without waiting for anybody: clients lose their connections, and what they had not
    /// committed.
    pub async fn restart(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("the pooler runs")?;
        daemon.stop(Signal::TERM, Duration::from_secs(10)).await?;
        self.run().await
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The pooler's own console.
    fn ask(&self, show: &str) -> Result<String> {
        let mut psql = Command::new(&self.psql);
        psql.env("PGPASSWORD", &self.password).env("PGCONNECT_TIMEOUT", "2");
        psql.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", &self.role]);
        run(psql.args(["-d", "pgbouncer", "-XAt", "-F", "|", "-c", show]))
    }

    /// Transactions that went through it since it was started.
    pub fn transactions(&self) -> Result<u64> {
        let totals = self.ask("SHOW STATS_TOTALS")?;
        // database|xact_count|query_count|…
        let counts = totals.lines().filter(|l| !l.starts_with("pgbouncer|"));
        let counts = counts.filter_map(|l| l.split('|').nth(1)?.parse::<u64>().ok());
        Ok(counts.sum())
    }

    /// Clients that are connected to a database behind it now.
    pub fn clients(&self) -> Result<usize> {
        let clients = self.ask("SHOW CLIENTS")?;
        Ok(clients
            .lines()
            .filter(|l| l.split('|').nth(2) != Some("pgbouncer"))
            .count())
    }
}
