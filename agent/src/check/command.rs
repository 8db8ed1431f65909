//! A check that a program of the host's passes: exit status 0 within the time limit. The last line that it wrote is the
//! detail.
//!
//! ```toml
//! command = { run = ["/usr/local/bin/check-queue", "--fast"], env = { QUEUE = "mail" } }
//! ```
//!
//! The vector comes from the configuration as it is: no shell, and nothing of the agent's own environment.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::program::{Program, ProgramError};

/// Longest detail, in characters.
const DETAIL: usize = 200;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandCheck {
    run: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// Names of variables only: their values may be secrets.
impl std::fmt::Debug for CommandCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandCheck")
            .field("run", &self.run)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl CommandCheck {
    pub fn validate(&self) -> Result<(), String> {
        match self.run.first() {
            Some(program) if program.starts_with('/') => {}
            Some(_) | None => return Err("command.run must begin with the absolute path of a program".into()),
        }
        match self
            .env
            .keys()
            .find(|name| name.is_empty() || name.contains(['=', '\0']))
        {
            Some(name) => Err(format!("command.env: {name:?} is not a name of a variable")),
            None => Ok(()),
        }
    }

    pub fn target(&self) -> String {
        self.run.first().cloned().unwrap_or_default()
    }

    pub async fn ask(&self, limit: Duration) -> Result<String, String> {
        let target = self.target();
        let mut program = Program::from_argv(&self.run).ok_or("command.run is empty")?;
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        let output = program.output(limit).await.map_err(|e| match e {
            ProgramError::Start { program, source } => format!("start {program}: {source}"),
            other @ (ProgramError::Deadline { .. } | ProgramError::Failed { .. }) => other.to_string(),
        })?;
        let said = last_line(&output.stdout).or_else(|| last_line(&output.stderr));
        match output.code {
            Some(0) => Ok(self.hidden(said.unwrap_or_else(|| "passed".into()))),
            Some(code) => {
                let said = last_line(&output.stderr).or(said).unwrap_or_else(|| "no output".into());
                Err(self.hidden(format!("{target} ended with status {code}: {said}")))
            }
            None => Err(format!("{target} was ended by a signal")),
        }
    }

    /// Without the values that it was given.
    fn hidden(&self, text: String) -> String {
        super::redact::hide(
            text,
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        )
    }
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(super::printable(line, DETAIL))
}
