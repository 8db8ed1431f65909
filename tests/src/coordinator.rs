//! The coordinator as a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::binaries::Binaries;
use crate::process::{Daemon, Launch, free_port, run};

const READY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Coordinator {
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
    /// `init` and `run`. The ports are chosen here and stay: agents find it again after a restart.
    pub async fn start(binaries: &Binaries, dir: &Path, log: &Path, otlp: Option<&str>, keep: bool) -> Result<Self> {
        let program = binaries.path("rollback-coordinator");
        let endpoint = format!("127.0.0.1:{}", free_port()?);
        let http = format!("127.0.0.1:{}", free_port()?);
        let mut init = Command::new(&program);
        init.args([
            "init", "--name", "coord-1", "--listen", &endpoint, "--http", &http, "--dir",
        ])
        .arg(dir);
        if let Some(otlp) = otlp {
            init.args(["--otlp", otlp]);
        }
        run(&mut init)?;
        let mut coordinator = Self {
            program,
            dir: dir.to_owned(),
            log: log.to_owned(),
            ready_file: dir.with_extension("ready"),
            launch: Launch {
                outlives_us: keep,
                ..Launch::default()
            },
            endpoint,
            http,
            daemon: None,
        };
        coordinator.run().await?;
        Ok(coordinator)
    }

    /// Starts the process anew on the same directory, after [`Coordinator::kill`].
    pub async fn run(&mut self) -> Result<()> {
        match std::fs::remove_file(&self.ready_file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove the ready file"),
            Ok(()) | Err(_) => {}
        }
        let (config, ready) = (
            self.config().display().to_string(),
            self.ready_file.display().to_string(),
        );
        let args = ["run", "--config", &config, "--ready-file", &ready];
        let mut daemon = Daemon::start("coordinator", &self.launch, &self.program, &args, &self.log)?;
        daemon.wait_ready(&self.ready_file, READY_WITHIN).await?;
        self.daemon = Some(daemon);
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.daemon.as_mut().context("the coordinator runs")?.kill()
    }

    pub async fn stop(&mut self) -> Result<()> {
        match &mut self.daemon {
            Some(daemon) => daemon.stop(Signal::TERM, Duration::from_secs(15)).await.map(drop),
            None => Ok(()),
        }
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

    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
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

    /// The first operator's connection.
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
