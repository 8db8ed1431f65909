//! What `prepare` finds of a unit: would it start what the link points to, and stay stopped when it is stopped?

use std::path::Path;

use rollback_proto::problem::{Code, Problem};

use super::unit::UnitState;
use super::{Systemd, main_process};
use crate::application::evidence::belongs;
use crate::driver::Finding;

impl Systemd {
    /// Reads only.
    pub async fn ready(&self) -> Vec<Finding> {
        let state = match self.unit.state().await.and_then(|state| {
            state.expect_loaded()?;
            Ok(state)
        }) {
            Ok(state) => state,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        let mut findings = Vec::new();
        if state.kind == "oneshot" {
            findings.push(Finding::blocker(
                failed(&state, "Type=oneshot has no process that could be watched")
                    .remedy("let the unit run the application itself, or use manager = \"command\""),
            ));
        }
        if state.needs_reload {
            findings.push(Finding::warning(
                failed(&state, "its files changed on disk since systemd read them").remedy(
                    "nothing: they are read again before the start. Look at them if that change should not come along",
                ),
            ));
        }
        if !state.triggered_by.is_empty() {
            findings.push(Finding::warning(
                failed(&state, &format!("{} starts it, too", state.triggered_by))
                    .remedy("stop that unit first if it may fire during the rollback: a stop would not last"),
            ));
        }
        findings.extend(self.place_finding(&state));
        findings.extend(self.environment_finding(&state));
        findings
    }

    /// A unit that names one release, or no place of ours at all, starts the same program whatever the link says.
    fn place_finding(&self, state: &UnitState) -> Option<Finding> {
        if !self.config.verify_cwd {
            return None;
        }
        // `-` allows the directory to be missing.
        let named = [state.working_directory.trim_start_matches('-'), &state.program];
        if named.iter().any(|path| Path::new(path).starts_with(&self.current)) {
            return None;
        }
        let remedy = format!(
            "set WorkingDirectory={} in the unit, or verify_cwd = false in the agent's configuration",
            self.current.display()
        );
        if let Some(path) = named.iter().find(|path| Path::new(path).starts_with(&self.root)) {
            let why = format!("it names {path} and does not follow {}", self.current.display());
            return Some(Finding::blocker(failed(state, &why).remedy(remedy)));
        }
        // A program that changes its directory itself is found out by looking.
        match main_process(state) {
            Some(process) if belongs(process, &self.root) => None,
            Some(_) => Some(Finding::blocker(
                failed(
                    state,
                    &format!(
                        "its process works outside {}: which release it runs cannot be seen",
                        self.root.display()
                    ),
                )
                .remedy(remedy),
            )),
            None => Some(Finding::warning(
                failed(
                    state,
                    &format!(
                        "neither WorkingDirectory nor ExecStart goes through {}",
                        self.current.display()
                    ),
                )
                .remedy(remedy),
            )),
        }
    }

    /// The start would fail its own check of the environment.
    fn environment_finding(&self, state: &UnitState) -> Option<Finding> {
        let wanted = self.config.env_file.as_ref().filter(|_| self.config.verify_env)?;
        let named = state
            .environment_files
            .iter()
            .any(|file| Path::new(file) == wanted.as_path());
        (!named).then(|| {
            Finding::warning(
                failed(state, &format!("no EnvironmentFile= names {}", wanted.display()))
                    .remedy("the start fails unless the application gets these variables in another way"),
            )
        })
    }
}

fn failed(state: &UnitState, why: &str) -> Problem {
    Problem::new(Code::ManagerFailed, format!("{}: {why}", state.name))
}
