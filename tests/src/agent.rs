//! An agent as a process: its configuration, enrollment by token, its life and its death.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::binaries::Binaries;
use crate::ctl::Ctl;
use crate::process::{Daemon, Launch, run};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Who an agent is and where its files are.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    pub name: String,
    /// Directory of the host: configuration, certificates, ledger and vault go below it.
    pub host_dir: PathBuf,
    /// host:port of every coordinator.
    pub coordinators: Vec<String>,
    pub otlp: Option<String>,
    /// The `[[component]]` tables, as TOML.
    pub components: String,
    pub tier: &'static str,
}

impl AgentSpec {
    fn dir(&self) -> PathBuf {
        self.host_dir.join("agent")
    }

    pub fn config(&self) -> PathBuf {
        self.dir().join("agent.toml")
    }

    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    pub fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// `rollback-agent enroll` with a join token, at the first coordinator.
    pub fn enroll_command(&self, program: &Path, token: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["enroll", "--token", token]);
        if let Some(first) = self.coordinators.first() {
            command.args(["--coordinator", first]);
        }
        command.arg("--config").arg(self.config());
        command
    }

    /// Writes `agent.toml`.
    pub fn write_config(&self) -> Result<()> {
        std::fs::create_dir_all(self.dir()).context("make the agent's directory")?;
        let telemetry = match &self.otlp {
            Some(otlp) => format!("[telemetry]\notlp = \"{otlp}\"\nlog = \"info\"\n"),
            None => String::new(),
        };
        let text = format!(
            "name = \"{}\"\nlisten = \"127.0.0.1:0\"\ncoordinators = {:?}\nstate = \"{}\"\npki = \"{}\"\n\
             [labels]\ntier = \"{}\"\n{telemetry}{}",
            self.name,
            self.coordinators,
            self.state().display(),
            self.pki().display(),
            self.tier,
            self.components,
        );
        std::fs::write(self.config(), text).context("write agent.toml")
    }
}

#[derive(Debug)]
pub struct Agent {
    pub spec: AgentSpec,
    program: PathBuf,
    log: PathBuf,
    ready_file: PathBuf,
    launch: Launch,
    daemon: Option<Daemon>,
    /// host:port of its gRPC server.
    address: String,
}

impl Agent {
    /// Writes the configuration and enrolls with a token that an operator made. Does not run it yet.
    pub async fn enroll(binaries: &Binaries, spec: AgentSpec, ctl: &Ctl, log: &Path, keep: bool) -> Result<Self> {
        let program = binaries.path("rollback-agent");
        spec.write_config()?;
        run(&mut spec.enroll_command(&program, &ctl.token(&spec.name).await?))?;
        Ok(Self {
            ready_file: spec.dir().join("ready.json"),
            spec,
            program,
            log: log.to_owned(),
            launch: Launch {
                outlives_us: keep,
                ..Launch::default()
            },
            daemon: None,
            address: String::new(),
        })
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

    /// Starts the process; also after [`Agent::kill`] and [`Agent::stop`].
    pub async fn run(&mut self) -> Result<()> {
        match std::fs::remove_file(&self.ready_file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove the ready file"),
            Ok(()) | Err(_) => {}
        }
        let name = format!("agent of {}", self.spec.name);
        let (config, ready) = (
            self.spec.config().display().to_string(),
            self.ready_file.display().to_string(),
        );
        let args = ["run", "--config", &config, "--ready-file", &ready];
        let mut daemon = Daemon::start(&name, &self.launch, &self.program, &args, &self.log)?;
        let ready = daemon.wait_ready(&self.ready_file, READY_WITHIN).await?;
        let ready: serde_json::Value = serde_json::from_str(&ready).context("parse the ready file")?;
        self.address = ready["grpc"]
            .as_str()
            .context("the ready file names the port")?
            .to_owned();
        self.daemon = Some(daemon);
        Ok(())
    }

    /// A command that a person types on the host, beside the running agent: `database backup db`. It answers on stdout.
    pub fn tool(&self, args: &[&str]) -> Result<String> {
        run(Command::new(&self.program)
            .args(args)
            .arg("--config")
            .arg(self.spec.config()))
    }

    /// [`Agent::tool`], for a person to type: as whoever started the harness, because the agent runs as that, too.
    pub fn tool_line(&self, args: &str) -> String {
        let (config, program) = (self.spec.config(), self.program.display());
        format!("ROLLBACK_AGENT_CONFIG={} {program} {args}", config.display())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.daemon.as_mut().context("the agent runs")?.kill()
    }

    /// How it ended, once it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.daemon.as_mut().and_then(Daemon::ended)
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

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn log(&self) -> &Path {
        &self.log
    }
}
