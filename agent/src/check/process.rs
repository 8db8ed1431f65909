//! A check that a process is alive, has been the same one for a while, and takes no more memory than it may.
//!
//! ```toml
//! process = { pid_file = "/run/zekka.pid", max_memory = "512MB", steady = "10s" }
//! process = { unit = "zekka.service", max_restarts = 0 }
//! process = { container = "zekka-api", max_memory = "512MB", max_restarts = 0 }
//! ```
//!
//! `steady` is the age that the process must have: one that ends and is started again never reaches it. Memory is the
//! resident set of the main process from `/proc`, and for a container that of its first process. `max_restarts` counts
//! what the manager did on its own (systemd's NRestarts, the engine's RestartCount); a PID file has no such count.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::engine::Engine;
use crate::processes::{self, Identity};
use crate::program::Program;

const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessCheck {
    pid_file: Option<PathBuf>,
    unit: Option<String>,
    container: Option<String>,
    /// The container engine's socket.
    socket: Option<PathBuf>,
    #[serde(default, deserialize_with = "crate::size::optional")]
    max_memory: Option<u64>,
    max_restarts: Option<u64>,
    #[serde(default, deserialize_with = "super::optional_duration")]
    steady: Option<Duration>,
}

enum Who<'a> {
    PidFile(&'a PathBuf),
    Unit(&'a str),
    Container(&'a str),
}

/// What was seen of the process.
struct Seen {
    process: Identity,
    restarts: Option<u64>,
}

impl ProcessCheck {
    pub fn validate(&self) -> Result<(), String> {
        match self.who()? {
            Who::PidFile(_) if self.max_restarts.is_some() => {
                Err("process.max_restarts needs a `unit` or a `container`: nobody counts for a PID file".into())
            }
            Who::PidFile(path) if !path.is_absolute() => Err("process.pid_file must be an absolute path".into()),
            Who::Unit(unit) => check_unit(unit),
            Who::Container(name) => crate::engine::check_container(name).map_err(|problem| problem.message),
            Who::PidFile(_) => Ok(()),
        }
    }

    fn who(&self) -> Result<Who<'_>, String> {
        match (&self.pid_file, &self.unit, &self.container) {
            (Some(path), None, None) => Ok(Who::PidFile(path)),
            (None, Some(unit), None) => Ok(Who::Unit(unit)),
            (None, None, Some(name)) => Ok(Who::Container(name)),
            (None, None, None) | (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                Err("process needs one of `pid_file`, `unit`, `container`".into())
            }
        }
    }

    pub fn target(&self) -> String {
        match self.who() {
            Ok(Who::PidFile(path)) => format!("process of {}", path.display()),
            Ok(Who::Unit(unit)) => format!("unit {unit}"),
            Ok(Who::Container(name)) => format!("container {name}"),
            Err(why) => why,
        }
    }

    pub async fn ask(&self) -> Result<String, String> {
        let target = self.target();
        let Seen { process, restarts } = match self.who()? {
            Who::PidFile(path) => Seen {
                process: processes::from_pid_file(path)
                    .map_err(|problem| problem.message)?
                    .ok_or_else(|| format!("{target}: it does not run"))?,
                restarts: None,
            },
            Who::Unit(unit) => ask_systemd(unit).await?,
            Who::Container(name) => self.ask_engine(name).await?,
        };
        let mut said = vec![format!("pid {}", process.pid)];
        if let Some(steady) = self.steady {
            let age = processes::started_at(process)
                .and_then(|began| SystemTime::now().duration_since(began).ok())
                .ok_or_else(|| format!("{target}: nobody says since when it runs"))?;
            if age < steady {
                return Err(format!(
                    "{target}: runs for {} s only, {} s are wanted",
                    age.as_secs(),
                    steady.as_secs_f32()
                ));
            }
            said.push(format!("for {} s", age.as_secs()));
        }
        if let Some(most) = self.max_memory {
            let resident =
                processes::resident(process.pid).ok_or_else(|| format!("{target}: its memory is not known"))?;
            let memory = crate::size::shown(resident);
            if resident > most {
                return Err(format!(
                    "{target}: takes {memory}, {} are allowed",
                    crate::size::shown(most)
                ));
            }
            said.push(memory);
        }
        if let Some(most) = self.max_restarts {
            let restarts = restarts.ok_or_else(|| format!("{target}: nobody says how often it was restarted"))?;
            if restarts > most {
                return Err(format!("{target}: was restarted {restarts} times, {most} are allowed"));
            }
            said.push(format!("{restarts} restarts"));
        }
        // It was looked at piece by piece: was it the same one to the end?
        if processes::alive(process) {
            Ok(said.join(", "))
        } else {
            Err(format!("{target}: ended while it was looked at"))
        }
    }

    async fn ask_engine(&self, name: &str) -> Result<Seen, String> {
        let found = Engine::new(self.socket.clone()).container(name).await;
        let container = found
            .map_err(|problem| problem.message)?
            .ok_or_else(|| format!("container {name} does not exist"))?;
        let state = container.state.unwrap_or_default();
        if state.running != Some(true) || state.restarting == Some(true) || state.paused == Some(true) {
            let status = state.status.map_or("unknown".to_owned(), |s| s.to_string());
            return Err(format!("container {name} does not run: {status}"));
        }
        let process = state
            .pid
            .and_then(|pid| i32::try_from(pid).ok())
            .filter(|pid| *pid > 0)
            .and_then(processes::identity)
            .ok_or_else(|| format!("container {name}: its process is not to be seen on this host"))?;
        Ok(Seen {
            process,
            restarts: container.restart_count.and_then(|n| u64::try_from(n).ok()),
        })
    }
}

async fn ask_systemd(unit: &str) -> Result<Seen, String> {
    let output = Program::new("systemctl")
        .args(["show", "--property=ActiveState,SubState,MainPID,NRestarts", "--", unit])
        .run(SYSTEMCTL_LIMIT)
        .await
        .map_err(|e| format!("unit {unit}: {e}"))?;
    let value = |key: &str| {
        let mut lines = output.stdout.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let state = value("ActiveState").unwrap_or("unknown");
    if state != "active" {
        let detail = value("SubState").unwrap_or("unknown");
        return Err(format!("unit {unit} is {state} ({detail})"));
    }
    let process = value("MainPID")
        .and_then(|pid| pid.parse().ok())
        .filter(|pid| *pid > 0)
        .and_then(processes::identity)
        .ok_or_else(|| format!("unit {unit} has no main process"))?;
    Ok(Seen {
        process,
        restarts: value("NRestarts").and_then(|n| n.parse().ok()),
    })
}

/// A name that systemd would accept for a unit, and that is no option.
pub fn check_unit(unit: &str) -> Result<(), String> {
    let good = (1..=255).contains(&unit.len())
        && !unit.starts_with('-')
        && unit
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '-' | '@' | '\\'));
    if good {
        Ok(())
    } else {
        Err(format!("{unit:?} is not a name of a unit"))
    }
}
