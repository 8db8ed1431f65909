//! Running Compose: version 2 (`docker compose`) when it works, else version 1 (`docker-compose`).
//!
//! Invariants:
//! - It is run as a person in the project directory runs it: same files, same `.env`. Otherwise the hashes that Compose
//!   keeps of each container would differ, and the next `up -d` by hand would recreate what we started.
//! - Of the agent's own environment it sees nothing: a shell's value overrides `.env`. Only to ask what another value
//!   would lead to, and to build, is the variable put into its environment.
//! - It speaks to the engine that the driver itself asks.
//! - What it says is not believed: the callers look at the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use tokio::sync::OnceCell;

use super::listing::{self, Services};
use super::variable::Variable;
use crate::program::{Output, Program, ProgramError};

/// Limit for a question, which only reads files.
pub const ASK_LIMIT: Duration = Duration::from_secs(30);

/// Which Compose: they take other options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    V1,
    V2,
}

/// The program as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    pub argv: Vec<String>,
    pub generation: Generation,
    pub version: String,
}

#[derive(Clone, Debug)]
pub struct Compose {
    pub dir: PathBuf,
    /// Relative to `dir`. Empty: those that Compose finds by itself, with their override file.
    pub files: Vec<PathBuf>,
    /// As configured.
    pub project: Option<String>,
    pub binary: Option<PathBuf>,
    pub socket: PathBuf,
    pub variable: Variable,
    pub stop_timeout: Option<Duration>,
    pub found: Arc<OnceCell<Tool>>,
}

/// Where Compose is to look, when it is not the project itself.
pub struct Place<'a> {
    pub dir: &'a Path,
    pub files: &'a [PathBuf],
    /// Must be said when the directory's name says another.
    pub project: Option<&'a str>,
}

impl Compose {
    pub async fn tool(&self) -> Result<&Tool, Problem> {
        self.found.get_or_try_init(|| self.find()).await
    }

    async fn find(&self) -> Result<Tool, Problem> {
        let mut said = Vec::new();
        for argv in candidates(self.binary.as_deref()) {
            let Some(program) = Program::from_argv(&argv) else {
                continue;
            };
            match program.args(["version", "--short"]).run(ASK_LIMIT).await {
                Ok(output) => match generation(&output.stdout) {
                    Some(generation) => {
                        return Ok(Tool {
                            argv,
                            generation,
                            version: output.stdout.trim().to_owned(),
                        });
                    }
                    None => said.push(format!("`{} version --short` gives no version", argv.join(" "))),
                },
                Err(e) => said.push(Problem::from_error(Code::ComposeFailed, argv.join(" "), &e).message),
            }
        }
        Err(
            Problem::new(Code::ComposeFailed, format!("there is no Compose: {}", said.join("; ")))
                .remedy("install Docker Compose, or name it with `binary`"),
        )
    }

    /// The program with what goes before the command.
    async fn program(&self, place: Option<&Place<'_>>) -> Result<Program, Problem> {
        let tool = self.tool().await?;
        let (dir, files, project) = match place {
            Some(place) => (place.dir, place.files, place.project),
            None => (self.dir.as_path(), self.files.as_slice(), None),
        };
        let mut program = Program::new(&tool.argv[0])
            .args(&tool.argv[1..])
            .cwd(dir)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        // Version 1 fails when a file is named that is not there.
        if self.variable.path.exists() {
            program = program.arg("--env-file").arg(&self.variable.path);
        }
        if let Some(project) = self.project.as_deref().or(project) {
            program = program.args(["--project-name", project]);
        }
        for file in files {
            program = program.arg("--file").arg(file);
        }
        Ok(program)
    }

    async fn run(&self, program: Program, what: &str, limit: Duration) -> Result<Output, Problem> {
        program.run(limit).await.map_err(|e| {
            let code = match &e {
                ProgramError::Deadline { .. } => Code::StepTimeout,
                ProgramError::Start { .. } | ProgramError::Failed { .. } => Code::ComposeFailed,
            };
            Problem::from_error(code, format!("compose {what} in {}", self.dir.display()), &e)
        })
    }

    /// The services as the files have them when the variable has this value; `None`: as they are now.
    pub async fn services(&self, value: Option<&str>, place: Option<&Place<'_>>) -> Result<Services, Problem> {
        let mut program = self.program(place).await?.arg("config");
        if let Some(value) = value {
            program = program.env(&self.variable.name, value);
        }
        match self.tool().await?.generation {
            Generation::V1 => listing::from_yaml(&self.run(program, "config", ASK_LIMIT).await?.stdout),
            Generation::V2 => {
                let program = program.args(["--format", "json"]);
                listing::from_json(&self.run(program, "config", ASK_LIMIT).await?.stdout)
            }
        }
    }

    /// What Compose would write on a container that it made now (`com.docker.compose.config-hash`).
    pub async fn config_hash(&self, service: &str) -> Result<Option<String>, Problem> {
        let program = self.program(None).await?.args(["config", "--hash", service]);
        let output = self.run(program, "config --hash", ASK_LIMIT).await?;
        Ok(output
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(name, _)| *name == service)
            .map(|(_, hash)| hash.trim().to_owned()))
    }

    /// Starts these services and no others, so many containers of each. Images are neither pulled nor built; that none
    /// is missing must have been seen before, because version 1 cannot be told not to pull.
    pub async fn up(&self, services: &[(String, usize)], limit: Duration) -> Result<(), Problem> {
        let mut program = self
            .program(None)
            .await?
            .args(["up", "--detach", "--no-deps", "--no-build"]);
        if self.tool().await?.generation == Generation::V2 {
            program = program.args(["--pull", "never"]);
        }
        program = self.with_timeout(program, "--timeout");
        for (service, count) in services {
            // Without it, `up` would go back to the files' number.
            if *count > 1 {
                program = program.arg("--scale").arg(format!("{service}={count}"));
            }
        }
        let program = program.args(services.iter().map(|(service, _)| service));
        self.run(program, "up --detach --no-deps", limit).await.map(|_| ())
    }

    pub async fn stop(&self, services: &[String], limit: Duration) -> Result<(), Problem> {
        let program = self.with_timeout(self.program(None).await?.arg("stop"), "--timeout");
        self.run(program.args(services), "stop", limit).await.map(|_| ())
    }

    pub async fn build(
        &self,
        place: &Place<'_>,
        value: &str,
        services: &[String],
        limit: Duration,
    ) -> Result<(), Problem> {
        let program = self.program(Some(place)).await?.env(&self.variable.name, value);
        let program = program.arg("build").args(services);
        self.run(program, "build", limit).await.map(|_| ())
    }

    fn with_timeout(&self, program: Program, option: &str) -> Program {
        match self.stop_timeout {
            Some(limit) => program.arg(option).arg(limit.as_secs().max(1).to_string()),
            None => program,
        }
    }

    /// The name that Compose gives an image that has none.
    pub async fn default_image(&self, project: &str, service: &str) -> Result<String, Problem> {
        Ok(match self.tool().await?.generation {
            Generation::V1 => format!("{project}_{service}"),
            Generation::V2 => format!("{project}-{service}"),
        })
    }
}

/// What is tried, in this order. A binary called `docker` has Compose as a command.
pub fn candidates(binary: Option<&Path>) -> Vec<Vec<String>> {
    let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    match binary {
        None => vec![own(&["docker", "compose"]), own(&["docker-compose"])],
        Some(path) if path.file_name().is_some_and(|name| name == "docker") => {
            vec![own(&[&path.to_string_lossy(), "compose"])]
        }
        Some(path) => vec![own(&[&path.to_string_lossy()])],
    }
}

/// From `version --short`: `1.29.2`, `2.24.5`, `v2.20.0`.
pub fn generation(answer: &str) -> Option<Generation> {
    let major = answer.trim().trim_start_matches('v').split('.').next()?;
    match major.parse::<u32>().ok()? {
        0 => None,
        1 => Some(Generation::V1),
        _ => Some(Generation::V2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_generations_apart_by_their_answer_not_by_their_name() {
        assert_eq!(generation("1.29.2\n"), Some(Generation::V1));
        assert_eq!(generation("2.24.5\n"), Some(Generation::V2));
        assert_eq!(generation("v2.20.0-desktop.1\n"), Some(Generation::V2));
        assert_eq!(generation("5.0.1\n"), Some(Generation::V2));
        for no in ["", "docker: 'compose' is not a docker command", "0.1", "Usage: docker"] {
            assert_eq!(generation(no), None, "{no:?}");
        }
    }

    #[test]
    fn version_2_is_tried_first_and_a_named_binary_alone() {
        assert_eq!(candidates(None), [vec!["docker", "compose"], vec!["docker-compose"]]);
        assert_eq!(
            candidates(Some(Path::new("/opt/bin/docker"))),
            [["/opt/bin/docker", "compose"]]
        );
        assert_eq!(
            candidates(Some(Path::new("/opt/bin/docker-compose"))),
            [["/opt/bin/docker-compose"]]
        );
    }
}
