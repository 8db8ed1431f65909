//! The `command` process manager: declared vectors start and stop the application, a PID file says who it is.
//!
//! Invariants:
//! - `stop` ends well only when neither the process nor anything it started is alive, and nothing answers the health
//!   check any more.
//! - `start` ends well only when the process is alive, runs in the right release, has the right environment, and
//!   answers the health check at the right version. When it ends badly, nothing is left running.
//! - Only a process that is known to belong to the application (its directory, program or an argument lies beneath the
//!   component's root) is ever signalled. A PID file may be stale, and the PID somebody else's.
//!
//! The start vector must return, leaving a daemon behind.

mod start;
mod stop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use crate::check::HealthCheck;
use crate::processes::{self, Identity};
use crate::program::SAFE_PATH;

use super::evidence::executable;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program that starts the application and returns, with its arguments. Bare names are looked up in a fixed
    /// PATH; relative paths begin at `cwd`.
    pub start: Vec<String>,
    /// The program that stops it. Without one, SIGTERM is sent to the process of the PID file.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Where the application writes its PID.
    pub pid_file: Option<PathBuf>,
    /// Environment of both programs, besides PATH and LC_ALL.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=value` lines that is added to the environment of the start program. It has precedence over `env`.
    pub env_file: Option<PathBuf>,
    /// Where both programs run. Default: the `current` link.
    pub cwd: Option<PathBuf>,
    /// The application's log: its last lines are quoted when it does not start.
    pub log: Option<PathBuf>,
    /// How long the application may take to stop by itself.
    #[serde(default = "default_kill_after", deserialize_with = "crate::duration::deserialize")]
    pub kill_after: Duration,
    /// Require that the process's directory or program lies in the release that was started. Default: yes, when there
    /// is a PID file.
    #[serde(default = "super::yes")]
    pub verify_cwd: bool,
    /// Require that the process has every variable of `env_file`, with the value that the file has.
    #[serde(default = "super::yes")]
    pub verify_env: bool,
}

fn default_kill_after() -> Duration {
    Duration::from_secs(10)
}

/// The application of one component.
#[derive(Clone, Debug)]
pub struct Command {
    config: CommandConfig,
    root: PathBuf,
    current: PathBuf,
    health: Option<HealthCheck>,
}

impl Command {
    pub fn new(
        config: CommandConfig,
        root: &Path,
        current: &Path,
        health: Option<HealthCheck>,
    ) -> Result<Self, String> {
        if config.start.first().is_none_or(String::is_empty) {
            return Err("process.start is empty".into());
        }
        if config.stop.is_empty() && config.pid_file.is_none() {
            return Err("a process needs a stop vector or a pid_file".into());
        }
        if config.pid_file.is_none() && health.is_none() {
            return Err("a process needs a pid_file or a health check: otherwise nobody knows whether it runs".into());
        }
        let paths = [&config.pid_file, &config.env_file, &config.cwd, &config.log];
        if let Some(path) = paths.into_iter().flatten().find(|path| !path.is_absolute()) {
            return Err(format!("{} must be absolute", path.display()));
        }
        Ok(Self {
            config,
            root: root.to_owned(),
            current: current.to_owned(),
            health,
        })
    }

    /// The living process that the PID file names. `None` also when no PID file is configured.
    pub fn running(&self) -> Result<Option<Identity>, Problem> {
        self.config
            .pid_file
            .as_deref()
            .map_or(Ok(None), processes::from_pid_file)
    }

    pub fn has_pid_file(&self) -> bool {
        self.config.pid_file.is_some()
    }

    fn cwd(&self) -> &Path {
        self.config.cwd.as_deref().unwrap_or(&self.current)
    }

    /// A configured vector as it is run.
    fn resolved(&self, argv: &[String]) -> Vec<String> {
        let mut argv = argv.to_vec();
        if let Some(first) = argv.first_mut()
            && first.contains('/')
            && !first.starts_with('/')
        {
            *first = self.cwd().join(&*first).to_string_lossy().into_owned();
        }
        argv
    }

    /// Can both programs be run? `in_release` answers for a path within the release that will be live.
    pub fn check_programs(&self, in_release: impl Fn(&str) -> bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, argv) in [("start", &self.config.start), ("stop", &self.config.stop)] {
            let Some(program) = self.resolved(argv).into_iter().next() else {
                continue;
            };
            let found = match Path::new(&program).strip_prefix(&self.current) {
                Ok(relative) => in_release(&relative.to_string_lossy()),
                Err(_) if program.starts_with('/') => executable(Path::new(&program)),
                Err(_) => SAFE_PATH
                    .split(':')
                    .any(|dir| executable(&Path::new(dir).join(&program))),
            };
            if !found {
                problems.push(Problem::new(
                    Code::ProgramFailed,
                    format!("the {name} program {program} does not exist or is not executable"),
                ));
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
}
