//! The `pm2` process manager, driven by its own program.
//!
//! ```toml
//! process = { manager = "pm2", name = "zekka-app", home = "/home/deploy/.pm2", user = "deploy" }
//! ```
//!
//! Measured, and the reason for most of what is here: `restart` and `startOrReload` keep the directory, the script and the
//! environment with which the application was first started, and exit 0; `start FILE --only NAME` exits 0 when the file has
//! no such application; a daemon that is killed leaves its applications running, and the next one knows nothing of them.
//! So an application is stopped, forgotten (`delete`) and started anew from the ecosystem file of the release, in the
//! directory of the release, and `/proc` is asked about every one of its processes.
//!
//! Invariants:
//! - pm2 is asked by number, never by name: it takes a name that no application has for a namespace, and `all` for
//!   everybody.
//! - Looking never starts pm2's daemon.
//! - All processes of the application (`instances`, cluster mode) run in the release, or the start has failed.
//! - pm2 prints environments; they are not read, kept or quoted.
//!
//! pm2's daemon outlives the agent: it is started in a session of its own, in `home`. systemd still counts it to the
//! agent's unit when the agent brought it up, and ends it with that unit. Let it have a unit of its own (`pm2 startup`), or
//! the agent's unit `KillMode=process`; `prepare` warns.

mod cli;
mod list;
mod ready;
mod start;
mod stop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::cli::Account;
use self::list::{Instance, Status};
use super::Running;
use super::evidence::{expect_environment, expect_release, found_in, variables};
use crate::check::HealthCheck;
use crate::files::stays_beneath;
use crate::processes::Identity;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pm2Config {
    /// The application's name in the ecosystem file.
    pub name: String,
    /// The ecosystem file, in the release.
    #[serde(default = "default_ecosystem")]
    pub ecosystem: PathBuf,
    /// `PM2_HOME`: which of the host's pm2 daemons.
    pub home: PathBuf,
    /// The account that pm2 runs under. Without it: the agent's.
    pub user: Option<String>,
    /// The program. Bare names are looked up in `path`.
    #[serde(default = "default_binary")]
    pub binary: String,
    /// Directories that are searched for `binary` and for node before the standard ones, as in PATH.
    pub path: Option<String>,
    /// Environment of the application, besides PATH, HOME, LC_ALL and PM2_HOME. What the ecosystem file sets has precedence.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=value` lines that is added to the environment. It has precedence over `env`.
    pub env_file: Option<PathBuf>,
    /// How long the application may take to stop before it is killed.
    #[serde(default = "default_kill_after", deserialize_with = "crate::duration::deserialize")]
    pub kill_after: Duration,
    /// How long the same processes must live before they count as started. Runs beside the health check.
    #[serde(default = "default_stable_for", deserialize_with = "crate::duration::deserialize")]
    pub stable_for: Duration,
    /// `pm2 save` after a start, so that the next boot brings this release up and not the one before. Default: when the
    /// application is in pm2's dump already. It saves the whole list of this daemon, other applications included.
    pub save: Option<bool>,
    /// Require that every process's directory or program lies in the release that was started.
    #[serde(default = "super::yes")]
    pub verify_cwd: bool,
    /// Require that every process has every variable of `env_file`, with the value that the file has.
    #[serde(default = "super::yes")]
    pub verify_env: bool,
}

fn default_ecosystem() -> PathBuf {
    "ecosystem.config.cjs".into()
}

fn default_binary() -> String {
    "pm2".into()
}

fn default_kill_after() -> Duration {
    Duration::from_secs(10)
}

/// From then on pm2, too, takes an application for one that came up (`min_uptime`).
fn default_stable_for() -> Duration {
    Duration::from_secs(1)
}

/// The application of one component.
#[derive(Clone, Debug)]
pub struct Pm2 {
    config: Pm2Config,
    root: PathBuf,
    health: Option<HealthCheck>,
}

impl Pm2 {
    pub fn new(config: Pm2Config, root: &Path, health: Option<HealthCheck>) -> Result<Self, String> {
        check_name("pm2 application", &config.name).map_err(|problem| problem.message)?;
        if config.name == "all" || config.name.chars().all(|c| c.is_ascii_digit()) {
            return Err(format!(
                "process.name {:?} means other applications to pm2, too: give it another name",
                config.name
            ));
        }
        if !stays_beneath(&config.ecosystem) {
            return Err(format!(
                "ecosystem {} must be a path within the release",
                config.ecosystem.display()
            ));
        }
        if let Some(user) = &config.user {
            check_name("user", user).map_err(|problem| problem.message)?;
        }
        if config.binary.is_empty() || (config.binary.contains('/') && !config.binary.starts_with('/')) {
            return Err(format!("binary {:?} must be a bare name or absolute", config.binary));
        }
        for path in [Some(&config.home), config.env_file.as_ref()].into_iter().flatten() {
            if !path.is_absolute() {
                return Err(format!("{} must be absolute", path.display()));
            }
        }
        Ok(Self {
            config,
            root: root.to_owned(),
            health,
        })
    }

    /// Files that a release must have in order to be started.
    pub fn files_in_release(&self) -> Vec<PathBuf> {
        vec![self.config.ecosystem.clone()]
    }

    pub async fn running(&self) -> Result<Running, Problem> {
        let account = self.account().await?;
        let instances = self.instances(&account).await?;
        if let Some(process) = instances.iter().find_map(|i| i.process) {
            return Ok(Running::Yes(process));
        }
        if let Some(orphan) = self.orphans(&instances)?.first() {
            return Ok(Running::Yes(*orphan));
        }
        let at_rest = instances.iter().all(|i| i.status.at_rest());
        Ok(if at_rest { Running::No } else { Running::Unknown })
    }

    /// What `prepare` has to say of programs and files.
    pub fn check_programs(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let path = self.search_path();
        for program in [self.config.binary.as_str(), "node"] {
            if !found_in(program, &path) {
                problems.push(
                    Problem::new(
                        Code::ProgramFailed,
                        format!("{program} does not exist or is not executable in {path}"),
                    )
                    .remedy("install it (npm install --global pm2), or name its directory in process.path"),
                );
            }
        }
        if let Some(path) = self.config.env_file.as_ref().filter(|path| !path.is_file()) {
            problems.push(Problem::new(
                Code::FileFailed,
                format!("env_file {} does not exist", path.display()),
            ));
        }
        problems
    }

    /// Do all processes of the application run, in this release and with the present environment? Changes nothing.
    pub async fn running_right(&self, release: &Path) -> Result<(), Problem> {
        let account = self.account().await?;
        let instances = self.instances(&account).await?;
        self.expect_right(&instances, release).map(drop)
    }

    /// The processes, when all are as they should be.
    fn expect_right(&self, instances: &[Instance], release: &Path) -> Result<Vec<Identity>, Problem> {
        let name = &self.config.name;
        if instances.is_empty() {
            let message = match self.orphans(instances)?.first() {
                Some(orphan) => format!(
                    "pm2 knows no {name}, but process {} of it runs: pm2's daemon was ended and left it behind",
                    orphan.pid
                ),
                None => format!("pm2 knows no {name}"),
            };
            return Err(Problem::new(Code::Unhealthy, message));
        }
        let mut processes = Vec::new();
        for instance in instances {
            let (Status::Online, Some(process)) = (&instance.status, instance.process) else {
                return Err(Problem::new(
                    Code::Unhealthy,
                    format!("{name} (pm2 id {}) is {}", instance.id, instance.status),
                ));
            };
            self.expect_process_right(process, release)?;
            processes.push(process);
        }
        Ok(processes)
    }

    fn expect_process_right(&self, process: Identity, release: &Path) -> Result<(), Problem> {
        if self.config.verify_cwd {
            expect_release(process, release)?;
        }
        if self.config.verify_env
            && let Some(path) = &self.config.env_file
        {
            expect_environment(process, &variables(Some(path))?)?;
        }
        Ok(())
    }

    async fn account(&self) -> Result<Option<Account>, Problem> {
        match &self.config.user {
            Some(user) => Account::find(user).await.map(Some),
            None => Ok(None),
        }
    }
}
