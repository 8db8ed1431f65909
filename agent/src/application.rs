//! An application as a process: who starts and stops it (its process manager), and how it shows that it serves. What the
//! kinds have in common that leave running a release to a process manager: `release-dir` and `git`.
//!
//! ```toml
//! process = { start = ["bin/app", "launch"], pid_file = "/run/app.pid" }     # manager = "command"
//! process = { manager = "systemd", unit = "zekka.service" }
//! process = { manager = "pm2", name = "zekka-app", home = "/home/deploy/.pm2", user = "deploy" }
//! ```
//!
//! Invariants, whatever the manager:
//! - `stop` ends well only when nothing of the application is alive and nothing answers the health check any more.
//! - `start` ends well only when the process is alive, runs in the right release, has the right environment, and answers
//!   the health check at the right version. When it ends badly, nothing is left running.
//! - What a manager says is not believed: `/proc` and the health check are.

pub mod command;
mod ending;
mod evidence;
pub mod pm2;
mod staying;
pub mod systemd;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::command::{Command, CommandConfig};
use self::pm2::{Pm2, Pm2Config};
use self::systemd::{Systemd, SystemdConfig};
use crate::check::HealthCheck;
use crate::driver::{Action, Done, Failure, Finding, Health, Probe, Revision, unsupported};
use crate::processes::Identity;
use crate::step::StepContext;

/// How long `verify` gives the health check: the application runs since `start`, only a hiccup is waited out.
const VERIFY_WITHIN: Duration = Duration::from_secs(5);

/// `process` of a component: the manager and its keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "toml::Table")]
pub enum ProcessConfig {
    Command(CommandConfig),
    Systemd(SystemdConfig),
    Pm2(Pm2Config),
}

impl ProcessConfig {
    /// The file whose variables the application is started with.
    pub fn env_file(&self) -> Option<PathBuf> {
        match self {
            Self::Command(config) => config.env_file.clone(),
            Self::Systemd(config) => config.env_file.clone(),
            Self::Pm2(config) => config.env_file.clone(),
        }
    }
}

/// What `process.manager` may be. The first one is the default.
pub const MANAGERS: [&str; 3] = ["command", "systemd", "pm2"];

fn yes() -> bool {
    true
}

impl TryFrom<toml::Table> for ProcessConfig {
    type Error = String;

    fn try_from(mut keys: toml::Table) -> Result<Self, String> {
        let manager = match keys.remove("manager") {
            None => MANAGERS[0].to_owned(),
            Some(toml::Value::String(manager)) => manager,
            Some(other) => return Err(format!("process.manager is a {}, not a string", other.type_str())),
        };
        let read = match manager.as_str() {
            "command" => CommandConfig::deserialize(keys).map(Self::Command),
            "systemd" => SystemdConfig::deserialize(keys).map(Self::Systemd),
            "pm2" => Pm2Config::deserialize(keys).map(Self::Pm2),
            _ => {
                let known = MANAGERS.join(", ");
                return Err(format!("there is no process manager {manager:?}; there are {known}"));
            }
        };
        read.map_err(|e| format!("process: {}", e.message()))
    }
}

/// What a manager knows of the application's main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    Yes(Identity),
    No,
    /// Nobody says: there is no PID file, or the manager is at work on it.
    Unknown,
}

#[derive(Clone, Debug)]
enum Manager {
    Command(Command),
    Systemd(Systemd),
    Pm2(Pm2),
}

/// The application of one component. Its process manager may be absent: then only its health is known.
#[derive(Clone, Debug)]
pub struct Application {
    manager: Option<Manager>,
    health: Option<HealthCheck>,
}

impl Application {
    /// `root` is the component's directory and `current` the link to the live release. The error says what is wrong with
    /// the configuration.
    pub fn new(
        process: Option<ProcessConfig>,
        health: Option<HealthCheck>,
        root: &Path,
        current: &Path,
    ) -> Result<Self, String> {
        let manager = match process {
            None => None,
            Some(ProcessConfig::Command(config)) => {
                Some(Manager::Command(Command::new(config, root, current, health.clone())?))
            }
            Some(ProcessConfig::Systemd(config)) => {
                Some(Manager::Systemd(Systemd::new(config, root, current, health.clone())?))
            }
            Some(ProcessConfig::Pm2(config)) => Some(Manager::Pm2(Pm2::new(config, root, health.clone())?)),
        };
        Ok(Self { manager, health })
    }

    /// The moves that the component offers because of its process manager.
    pub fn capabilities(&self) -> &'static [Action] {
        match self.manager {
            Some(_) => &[Action::Stop, Action::Start],
            None => &[],
        }
    }

    async fn running(&self) -> Result<Running, Problem> {
        match &self.manager {
            None => Ok(Running::Unknown),
            Some(Manager::Command(command)) => Ok(match command.running()? {
                Some(process) => Running::Yes(process),
                None if command.has_pid_file() => Running::No,
                None => Running::Unknown,
            }),
            Some(Manager::Systemd(systemd)) => systemd.running().await,
            Some(Manager::Pm2(pm2)) => pm2.running().await,
        }
    }

    /// Health of what is live, which should be at `version`, and one line for people.
    pub async fn health(&self, version: &str) -> (Health, String) {
        let pid = match self.running().await {
            Ok(Running::Yes(found)) => Some(format!("pid {}, ", found.pid)),
            Ok(Running::No) => return (Health::Stopped, "the process does not run".into()),
            Ok(Running::Unknown) => None,
            Err(problem) => return (Health::Unhealthy, problem.message),
        };
        match &self.health {
            Some(check) => match check.once(Some(version)).await {
                Ok(passed) => (Health::Healthy, format!("{}{}", pid.unwrap_or_default(), passed.detail)),
                Err(problem) => (
                    Health::Unhealthy,
                    format!("{}{}", pid.unwrap_or_default(), problem.message),
                ),
            },
            None => match pid {
                Some(pid) => (Health::Healthy, format!("{pid}no health check")),
                None => (Health::Unknown, "no health check".into()),
            },
        }
    }

    /// What `prepare` has to say. `in_release` answers whether a path within the release that will be live is a program.
    pub fn check_programs(&self, in_release: impl Fn(&str) -> bool) -> Vec<Problem> {
        match &self.manager {
            None => Vec::new(),
            Some(Manager::Command(command)) => command.check_programs(in_release),
            Some(Manager::Systemd(systemd)) => systemd.check_programs(),
            Some(Manager::Pm2(pm2)) => pm2.check_programs(),
        }
    }

    /// Files, relative to the release, without which the manager cannot start it. For `prepare`.
    pub fn files_in_release(&self) -> Vec<PathBuf> {
        match &self.manager {
            None | Some(Manager::Command(_) | Manager::Systemd(_)) => Vec::new(),
            Some(Manager::Pm2(pm2)) => pm2.files_in_release(),
        }
    }

    /// Would the manager do what it is asked for? For `prepare`; reads only, answers within seconds.
    pub async fn ready(&self) -> Vec<Finding> {
        match &self.manager {
            None | Some(Manager::Command(_)) => Vec::new(),
            Some(Manager::Systemd(systemd)) => systemd.ready().await,
            Some(Manager::Pm2(pm2)) => pm2.ready().await,
        }
    }

    fn manager(&self, kind: &str, step: &StepContext) -> Result<&Manager, Failure> {
        self.manager.as_ref().ok_or_else(|| unsupported(kind, step))
    }

    pub async fn stop(&self, kind: &str, step: &StepContext) -> Result<Done, Failure> {
        match self.manager(kind, step)? {
            Manager::Command(command) => command.stop(step, step.deadline).await,
            Manager::Systemd(systemd) => systemd.stop(step, step.deadline).await,
            Manager::Pm2(pm2) => pm2.stop(step, step.deadline).await,
        }
        .map(Done::new)
    }

    /// Starts the release in `dir`, which is `live`. Nothing is started when that is not what the step expects.
    pub async fn start(&self, kind: &str, step: &StepContext, live: Revision, dir: &Path) -> Result<Done, Failure> {
        let manager = self.manager(kind, step)?;
        if live != step.to {
            return Err(Failure::Failed(Problem::new(
                Code::WrongRevision,
                format!("{} is live, not {}: nothing was started", live.version, step.to.version),
            )));
        }
        let detail = match manager {
            Manager::Command(command) => command.start(step, dir, &step.to.version).await,
            Manager::Systemd(systemd) => systemd.start(step, dir, &step.to.version).await,
            Manager::Pm2(pm2) => pm2.start(step, dir, &step.to.version).await,
        }?;
        Ok(Done::at(live, detail))
    }

    /// Does the right process run, in the right release?
    async fn running_right(&self, dir: &Path) -> Result<(), Problem> {
        match &self.manager {
            None => Ok(()),
            Some(Manager::Command(command)) => command.running_right(dir),
            Some(Manager::Systemd(systemd)) => systemd.running_right(dir).await,
            Some(Manager::Pm2(pm2)) => pm2.running_right(dir).await,
        }
    }

    /// Is the release in `dir`, which is `live`, what runs, and healthy?
    pub async fn verify(&self, step: &StepContext, live: Revision, dir: &Path) -> Result<Done, Failure> {
        self.running_right(dir).await?;
        let detail = match &self.health {
            Some(check) => {
                let until = step.deadline.min(Instant::now() + VERIFY_WITHIN);
                step.operation("health_check", check.wait(Some(&live.version), until))
                    .await?
                    .detail
            }
            None => "no health check".into(),
        };
        Ok(Done::at(live, detail))
    }

    /// The agent was killed inside a stop.
    pub async fn probe_stop(&self) -> Probe {
        match self.running().await {
            Ok(Running::No) => Probe::Applied(Done::new("the process does not run")),
            Ok(Running::Yes(_) | Running::Unknown) => Probe::Repeatable("stopping may be repeated".into()),
            Err(problem) => Probe::Indeterminate(problem),
        }
    }

    /// The agent was killed inside a start of what should be live now.
    pub async fn probe_start(&self, step: &StepContext, live: Revision, dir: &Path) -> Probe {
        if self.manager.is_none() || live != step.to || self.running_right(dir).await.is_err() {
            return Probe::Repeatable("not started".into());
        }
        match self.health(&live.version).await {
            (Health::Healthy, detail) => Probe::Applied(Done::at(live, detail)),
            (_, detail) => Probe::Repeatable(format!("started, not healthy yet: {detail}")),
        }
    }
}
