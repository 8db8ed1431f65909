//! A coordinator as a process: the only one of its fleet, or one of several replicas.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::binaries::Binaries;
use crate::process::{Daemon, Launch, free_port, run};

const READY_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// Name of the one that makes the fleet's CA and its first operator; the others are called coord-2 and so on.
pub const FIRST: &str = "coord-1";

/// What all coordinators of a fleet are started with.
#[derive(Clone, Debug, Default)]
pub struct CoordinatorOptions {
    /// They shall outlive the harness.
    pub keep: bool,
    /// Where they export their spans.
    pub otlp: Option<String>,
    /// The journal is in PostgreSQL; without it: in SQLite, and there is one coordinator.
    pub store: Option<StoreAddress>,
    /// Keys of `[leadership]` that are not as shipped, by their names: `ttl = "1s"`.
    pub leadership: BTreeMap<&'static str, String>,
    /// How often readiness is checked: `1s`. Without it never: what agents are asked in a story is what the story asks.
    pub readiness: Option<String>,
}

/// Where the store is, as `coordinator.toml` says it.
#[derive(Clone, Debug)]
pub struct StoreAddress {
    /// Without a password.
    pub url: String,
    pub password_file: PathBuf,
}

#[derive(Debug)]
pub struct Coordinator {
    name: String,
    program: PathBuf,
    dir: PathBuf,
    log: PathBuf,
    ready_file: PathBuf,
    launch: Launch,
    endpoint: String,
    http: String,
    daemon: Option<Daemon>,
}

impl Coordinator {
    /// `rollback-coordinator init`. The ports are chosen here and stay: agents find it again after a restart. Does not run
    /// it yet.
    pub fn init(binaries: &Binaries, dir: &Path, log: &Path, options: &CoordinatorOptions) -> Result<Self> {
        let coordinator = Self::at(FIRST, binaries, dir, log, options)?;
        let mut init = Command::new(&coordinator.program);
        init.args(["init", "--name", FIRST, "--listen", &coordinator.endpoint])
            .args(["--http", &coordinator.http, "--dir"])
            .arg(dir);
        if let Some(otlp) = &options.otlp {
            init.args(["--otlp", otlp]);
        }
        if let Some(store) = &options.store {
            init.args(["--store-url", &store.url, "--store-password-file"])
                .arg(&store.password_file);
        }
        run(&mut init)?;
        coordinator.configure(|config| {
            for (key, value) in &options.leadership {
                table(config, "leadership", key, value.as_str());
            }
            match &options.readiness {
                Some(every) => table(config, "readiness", "every", every.as_str()),
                None => table(config, "readiness", "releases", 0),
            }
        })?;
        Ok(coordinator)
    }

    /// `rollback-coordinator replica`, by the one that has the CA: another one of the same fleet. Does not run it yet.
    pub fn replica(&self, name: &str, binaries: &Binaries, dir: &Path, log: &Path, keep: bool) -> Result<Self> {
        let options = CoordinatorOptions {
            keep,
            ..CoordinatorOptions::default()
        };
        let replica = Self::at(name, binaries, dir, log, &options)?;
        run(Command::new(&self.program)
            .args(["replica", name, "--config"])
            .arg(self.config())
            .arg("--out")
            .arg(dir)
            .args(["--listen", &replica.endpoint, "--http", &replica.http]))?;
        Ok(replica)
    }

    fn at(name: &str, binaries: &Binaries, dir: &Path, log: &Path, options: &CoordinatorOptions) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            program: binaries.path("rollback-coordinator"),
            dir: dir.to_owned(),
            log: log.to_owned(),
            ready_file: dir.with_extension("ready"),
            launch: Launch {
                outlives_us: options.keep,
                ..Launch::default()
            },
            endpoint: format!("127.0.0.1:{}", free_port()?),
            http: format!("127.0.0.1:{}", free_port()?),
            daemon: None,
        })
    }

    /// Changes `coordinator.toml`, for the next start.
    pub fn configure(&self, change: impl FnOnce(&mut toml::Table)) -> Result<()> {
        edit_toml(&self.config(), change)
    }

    /// Reaches its store at another URL, from its next start on: through a pooler or a proxy.
    pub fn set_store_url(&self, url: &str) -> Result<()> {
        self.configure(|config| table(config, "store", "url", url))
    }

    /// Starts the process and waits until it serves: also after [`Coordinator::kill`] and [`Coordinator::stop`].
    pub async fn run(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready().await
    }

    /// Starts the process, for a story in which it need not come far.
    pub fn spawn(&mut self) -> Result<()> {
        match std::fs::remove_file(&self.ready_file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove the ready file"),
            Ok(()) | Err(_) => {}
        }
        let (config, ready) = (
            self.config().display().to_string(),
            self.ready_file.display().to_string(),
        );
        let args = ["run", "--config", &config, "--ready-file", &ready];
        self.daemon = Some(Daemon::start(
            &self.name,
            &self.launch,
            &self.program,
            &args,
            &self.log,
        )?);
        Ok(())
    }

    /// Both of its ports listen.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("the coordinator was started")?;
        daemon.wait_ready(&self.ready_file, READY_WITHIN).await.map(drop)
    }

    /// It has this variable in its environment, from its next start on.
    pub fn export(&mut self, name: &str, value: &str) {
        self.launch.env.insert(name.to_owned(), value.to_owned());
    }

    pub fn is_exported(&self, name: &str) -> bool {
        self.launch.env.contains_key(name)
    }

    /// It has the variable no more, from its next start on.
    pub fn unexport(&mut self, name: &str) {
        self.launch.env.remove(name);
    }

    /// It runs as a group of its own, by which its packets are known, from its next start on.
    pub fn set_group(&mut self, group: u32) {
        self.launch.group = Some(group);
    }

    pub fn kill(&mut self) -> Result<()> {
        self.daemon.as_mut().context("the coordinator runs")?.kill()
    }

    /// SIGTERM, and waits until it has ended.
    pub async fn stop(&mut self) -> Result<()> {
        match &mut self.daemon {
            Some(daemon) => daemon.stop(Signal::TERM, ENDS_WITHIN).await.map(drop),
            None => Ok(()),
        }
    }

    /// Sends a signal and waits for nothing: STOP and CONT, or TERM for a story that watches what comes of it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().context("the coordinator runs")?.signal(signal)
    }

    /// How it ended, once it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.daemon.as_mut().and_then(Daemon::ended)
    }

    /// Was it started, and has it not ended since?
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.ended().is_none())
    }

    /// Ends the process with force, if it still runs and was not let go.
    pub fn end(&mut self) {
        self.daemon = None;
    }

    pub fn let_go(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.let_go();
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("coordinator.toml")
    }

    /// host:port of gRPC.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A page of its HTTP server: `/healthz`, `/readyz`, `/metrics`.
    pub fn page(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// The SQLite file.
    pub fn store(&self) -> PathBuf {
        self.dir.join("state/coordinator.db")
    }

    /// The first operator's connection. The coordinator that has the CA has it.
    pub fn context(&self) -> PathBuf {
        self.dir.join("operators/admin/context.toml")
    }

    /// A further operator's connection.
    pub fn add_operator(&self, name: &str) -> Result<PathBuf> {
        let out = self.dir.join("operators").join(name);
        let mut command = Command::new(&self.program);
        command
            .args(["operator", name, "--config"])
            .arg(self.config())
            .arg("--out")
            .arg(&out);
        run(&mut command)?;
        Ok(out.join("context.toml"))
    }

    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// Changes a file in TOML.
pub fn edit_toml(path: &Path, change: impl FnOnce(&mut toml::Table)) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut content: toml::Table = text.parse().with_context(|| format!("parse {}", path.display()))?;
    change(&mut content);
    let text = toml::to_string(&content).context("write TOML")?;
    // In place: who may read it stays as it was.
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn table(config: &mut toml::Table, name: &str, key: &str, value: impl Into<toml::Value>) {
    let table = config
        .entry(name)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(table) = table {
        table.insert(key.to_owned(), value.into());
    }
}
