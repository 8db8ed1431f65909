//! The `systemd` process manager: a system unit, driven by `systemctl`.
//!
//! ```toml
//! process = { manager = "systemd", unit = "zekka.service", env_file = "/etc/zekka/env" }
//! ```
//!
//! ```ini
//! [Service]
//! WorkingDirectory=/opt/zekka/current
//! ExecStart=/usr/bin/node server.js
//! EnvironmentFile=/etc/zekka/env
//! ```
//!
//! Invariants:
//! - That systemd started something proves nothing (`Type=simple` is "started" before the program is even executed): the
//!   same main process lives for `stable_for`, is healthy, and works in the release that was started.
//! - A restart by `Restart=` while the application comes up is a failure, not a second chance.
//! - `stop` ends well only when systemd has nothing left to do for the unit and nothing lives in its control group.
//! - Unit files are read, never written. One that changed on disk is read again (`daemon-reload`) before a start.
//!
//! Left out: units of users' managers, and units without a process of their own (`Type=oneshot`).
//!
//! Rights: root, or a polkit rule for `org.freedesktop.systemd1.manage-units` and `.reload-daemon`; for the environment in
//! `/proc`, root or the unit's user.

mod cgroup;
mod ready;
mod start;
mod stop;
mod unit;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::unit::{Activity, Unit, UnitState};
use super::Running;
use super::evidence::{executable, expect_environment, expect_release, variables};
use crate::check::HealthCheck;
use crate::processes::{self, Identity};
use crate::program::SAFE_PATH;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemdConfig {
    /// The unit's whole name, with `.service`.
    pub unit: String,
    /// The file that the unit names in `EnvironmentFile=`: the running process must have its present values.
    pub env_file: Option<PathBuf>,
    /// How long the unit may take to stop before everything in it is killed.
    #[serde(default = "default_kill_after", deserialize_with = "crate::duration::deserialize")]
    pub kill_after: Duration,
    /// How long the same main process must live before it counts as started. Runs beside the health check.
    #[serde(default = "default_stable_for", deserialize_with = "crate::duration::deserialize")]
    pub stable_for: Duration,
    /// Require that the main process's directory or program lies in the release that was started.
    #[serde(default = "super::yes")]
    pub verify_cwd: bool,
    /// Require that the main process has every variable of `env_file`, with the value that the file has.
    #[serde(default = "super::yes")]
    pub verify_env: bool,
}

fn default_kill_after() -> Duration {
    Duration::from_secs(10)
}

fn default_stable_for() -> Duration {
    Duration::from_secs(2)
}

/// The application of one component.
#[derive(Clone, Debug)]
pub struct Systemd {
    unit: Unit,
    config: SystemdConfig,
    root: PathBuf,
    current: PathBuf,
    health: Option<HealthCheck>,
}

impl Systemd {
    pub fn new(
        config: SystemdConfig,
        root: &Path,
        current: &Path,
        health: Option<HealthCheck>,
    ) -> Result<Self, String> {
        if let Some(path) = config.env_file.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("{} must be absolute", path.display()));
        }
        Ok(Self {
            unit: Unit::new(&config.unit)?,
            config,
            root: root.to_owned(),
            current: current.to_owned(),
            health,
        })
    }

    pub async fn running(&self) -> Result<Running, Problem> {
        let state = self.unit.state().await?;
        state.expect_loaded()?;
        Ok(match main_process(&state) {
            Some(process) => Running::Yes(process),
            None if state.at_rest() => Running::No,
            // Between two tries of `Restart=`, or on its way.
            None => Running::Unknown,
        })
    }

    /// What `prepare` has to say of programs and files.
    pub fn check_programs(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let found = SAFE_PATH
            .split(':')
            .any(|dir| executable(&Path::new(dir).join(unit::SYSTEMCTL)));
        if !found {
            problems.push(Problem::new(
                Code::ProgramFailed,
                format!("there is no {} on this host", unit::SYSTEMCTL),
            ));
        }
        if let Some(path) = self.config.env_file.as_ref().filter(|path| !path.is_file()) {
            problems.push(Problem::new(
                Code::FileFailed,
                format!("env_file {} does not exist", path.display()),
            ));
        }
        problems
    }

    /// Does the unit run, in this release and with the present environment? Starts and stops nothing.
    pub async fn running_right(&self, release: &Path) -> Result<(), Problem> {
        let state = self.unit.state().await?;
        state.expect_loaded()?;
        self.expect_right(&state, release).map(drop)
    }

    fn expect_right(&self, state: &UnitState, release: &Path) -> Result<Identity, Problem> {
        let Some(process) = main_process(state) else {
            return Err(Problem::new(
                Code::Unhealthy,
                format!("{} is {}", state.name, state.phrase()),
            ));
        };
        self.expect_process_right(process, release)?;
        Ok(process)
    }

    fn expect_process_right(&self, process: Identity, release: &Path) -> Result<(), Problem> {
        if self.config.verify_cwd {
            expect_release(process, release).map_err(|problem| {
                problem.remedy(format!(
                    "let the unit work in {} (WorkingDirectory= or ExecStart=), or set verify_cwd = false",
                    self.current.display()
                ))
            })?;
        }
        if self.config.verify_env
            && let Some(path) = &self.config.env_file
        {
            expect_environment(process, &variables(Some(path))?)?;
        }
        Ok(())
    }
}

/// The main process of an active unit.
fn main_process(state: &UnitState) -> Option<Identity> {
    match state.active {
        Activity::Active => processes::identity(state.main?),
        Activity::Activating | Activity::Deactivating | Activity::Inactive | Activity::Failed => None,
    }
}
