//! A Docker Compose project whose version is a variable in its `.env`: `image: zekka:${IMAGE_TAG}`.
//!
//! | move | what it does |
//! |---|---|
//! | `retain` | notes the images that the services run, by id, and gives them a name of ours so that pruning spares them |
//! | `stage` | makes the wanted images present under their names; with `rebuild`, builds those that are gone |
//! | `stop` | `compose stop` of the services, so that a restarted engine does not start them |
//! | `switch` | changes the variable in `.env`, and never touches a container |
//! | `start` | `compose up -d --no-deps` of the services; ends when the engine and the health check agree |
//! | undo | the same moves, the other way |
//!
//! Invariants:
//! - What runs is told by the engine: image ids of the containers with the project's labels.
//! - Compose runs as a person runs it, from the project's own files and `.env`: the next `up -d` by hand recreates
//!   nothing, and does not bring the bad release back.
//! - Only the configured services are touched: no dependency, no orphan, no volume, no network.
//! - No image is pulled or built outside `stage`, and no name is taken away from an image that has it.
//!
//! `rebuild` is "full rollback, rebuild from git tag". The commit is the revision there: an image that was rebuilt from
//! the recorded commit counts as that revision, although its id is another. Dockerfile, sources and the compose file
//! that says how to build come from the tag, out of a worktree of ours; what starts the containers is always the
//! project directory's own compose file. So when the compose file differs between the two, containers run the tag's
//! images with today's ports, volumes and environment. `prepare` warns of that, and `stage` refuses when the two files
//! give a service's image different names: what `up` uses is what was built. A compose file that must go back as well is
//! to be put back by hand before.
//!
//! Left out: services whose versions are in different variables (declare one component for each), images by digest from
//! registries, Swarm.

pub mod command;
pub mod listing;
mod moves;
pub mod pin;
mod readiness;
mod resting;
mod running;
mod seen;
mod source;
mod staging;
pub mod variable;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;
use tokio::sync::OnceCell;

use self::command::Compose;
use self::pin::Template;
use self::source::Repository;
use self::variable::Variable;
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision, Role};
use crate::check::HealthCheck;
use crate::engine::Engine;
use crate::files::stays_beneath;
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "compose";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComposeConfig {
    /// Where `docker compose` is run by hand, absolute.
    pub project_dir: PathBuf,
    /// Compose files, relative to `project_dir`, as given to `-f` by hand. Default: none are given, so that Compose finds
    /// `docker-compose.yml` and its override file by itself.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// The project's name, where `-p` or `name:` gives one. Default: as Compose derives it from the directory.
    pub project: Option<String>,
    /// The services that the release consists of.
    pub services: Vec<String>,
    /// The variable in the names of their images: `IMAGE_TAG`.
    pub variable: String,
    /// The file that has it, relative to `project_dir` or absolute. Default: the `.env` that Compose reads.
    pub env_path: Option<PathBuf>,
    /// The variable's value for a release: `{release}` or `{version}` (without the leading v) is replaced.
    #[serde(default = "release_itself")]
    pub version: String,
    /// The program: a `docker` with the command `compose`, or a `docker-compose`. Default: whichever is there.
    pub binary: Option<PathBuf>,
    /// The engine's socket.
    pub socket: Option<PathBuf>,
    /// Components of this host that the services read when they start.
    #[serde(default)]
    pub reads: BTreeSet<String>,
    /// Files that the compose file names under `env_file`, relative to `project_dir` or absolute: after a start, the
    /// containers must have their present values.
    #[serde(default)]
    pub env_files: Vec<PathBuf>,
    pub health: Option<HealthCheck>,
    /// Without it, a container that has no HEALTHCHECK of its own is well when it has run for so long.
    #[serde(default = "default_steady", deserialize_with = "crate::duration::deserialize")]
    pub steady: Duration,
    /// How long a container may take to stop. Default: Compose's own.
    #[serde(default, deserialize_with = "optional_duration")]
    pub stop_timeout: Option<Duration>,
    pub rebuild: Option<RebuildConfig>,
}

/// "Full rollback, rebuild from git tag."
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebuildConfig {
    /// The repository that holds `project_dir`, absolute.
    pub repository: PathBuf,
    /// The tag of a release; see `version`.
    #[serde(default = "release_itself")]
    pub tag: String,
}

fn release_itself() -> String {
    "{release}".into()
}

fn default_steady() -> Duration {
    Duration::from_secs(3)
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::duration::deserialize(deserializer).map(Some)
}

#[derive(Clone, Debug)]
struct Rebuild {
    repository: Repository,
    tag: Template,
    /// The project's directory, relative to the repository.
    within: PathBuf,
}

#[derive(Clone, Debug)]
pub struct ComposeDriver {
    component: String,
    compose: Compose,
    engine: Engine,
    vault: Arc<Vault>,
    services: Vec<String>,
    version: Template,
    rebuild: Option<Rebuild>,
    reads: BTreeSet<String>,
    /// Absolute.
    env_files: Vec<PathBuf>,
    health: Option<HealthCheck>,
    steady: Duration,
}

impl ComposeDriver {
    pub fn new(component: &str, config: ComposeConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        let bad = |why: String| Problem::new(Code::BadConfig, format!("component {component}: {why}"));
        check(&config).map_err(bad)?;
        for name in &config.reads {
            check_name("component", name)?;
        }
        for name in &config.services {
            check_name("service", name)?;
        }
        let dir = config.project_dir;
        let engine = Engine::new(config.socket);
        let first = config
            .files
            .first()
            .and_then(|file| file.parent())
            .unwrap_or(Path::new(""));
        let env_path = config.env_path.unwrap_or_else(|| first.join(".env"));
        let rebuild = match config.rebuild {
            None => None,
            Some(rebuild) => Some(Rebuild {
                within: dir
                    .strip_prefix(&rebuild.repository)
                    .map_err(|_| {
                        bad(format!(
                            "project_dir {} does not lie in the repository {}",
                            dir.display(),
                            rebuild.repository.display()
                        ))
                    })?
                    .to_owned(),
                tag: Template::new(&rebuild.tag).map_err(|e| bad(format!("rebuild.tag: {e}")))?,
                repository: Repository {
                    path: rebuild.repository,
                },
            }),
        };
        Ok(Self {
            component: component.to_owned(),
            compose: Compose {
                variable: Variable {
                    name: config.variable,
                    path: dir.join(env_path),
                },
                files: config.files,
                project: config.project,
                binary: config.binary,
                socket: engine.socket().to_owned(),
                stop_timeout: config.stop_timeout,
                found: Arc::new(OnceCell::new()),
                dir: dir.clone(),
            },
            engine,
            vault,
            services: config.services,
            version: Template::new(&config.version).map_err(|e| bad(format!("version: {e}")))?,
            rebuild,
            reads: config.reads,
            env_files: config.env_files.iter().map(|file| dir.join(file)).collect(),
            health: config.health,
            steady: config.steady,
        })
    }
}

fn check(config: &ComposeConfig) -> Result<(), String> {
    let rebuild = config.rebuild.as_ref().map(|r| &r.repository);
    let absolute = [
        Some(&config.project_dir),
        config.binary.as_ref(),
        config.socket.as_ref(),
        rebuild,
    ];
    if let Some(path) = absolute.into_iter().flatten().find(|path| !path.is_absolute()) {
        return Err(format!("{} must be absolute", path.display()));
    }
    if let Some(file) = config.files.iter().find(|file| !stays_beneath(file)) {
        return Err(format!("{} must be a path beneath project_dir", file.display()));
    }
    if config.services.is_empty() {
        return Err("services must name those that the release consists of".into());
    }
    let name = &config.variable;
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = name.starts_with("COMPOSE_") || name.starts_with("DOCKER_") || name == "PATH" || name == "LC_ALL";
    if !good || reserved {
        return Err(format!("{name:?} cannot be the variable with the version"));
    }
    match &config.project {
        Some(project) if *project != normalized(project) || project.starts_with(['-', '_']) || project.is_empty() => {
            Err(format!("{project:?} is not a project's name: a-z 0-9 _ - are allowed"))
        }
        Some(_) | None => Ok(()),
    }
}

/// What Compose makes of a directory's name.
fn normalized(name: &str) -> String {
    name.to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
        .collect()
}

#[async_trait]
impl Driver for ComposeDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            kind: KIND,
            role: Role::App,
            capabilities: vec![
                Action::Prepare,
                Action::Stage,
                Action::Discard,
                Action::Stop,
                Action::Switch,
                Action::Start,
                Action::Verify,
                Action::Finish,
            ],
            reads: self.reads.clone(),
            backends: BTreeSet::new(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let seen = self.see().await?;
        let (health, detail) = self.health_of(&seen).await?;
        Ok(Observation {
            revision: seen.revision,
            health,
            detail,
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let seen = self.see().await?;
        let pin = self.pin_of_live(&seen)?;
        if let Some(missing) = self.services.iter().find(|service| !pin.images.contains_key(*service)) {
            return Err(Problem::new(
                Code::ComposeFailed,
                format!(
                    "{missing} of project {} has no container: there is no image to record",
                    seen.project
                ),
            ));
        }
        self.keep(&pin).await?;
        Ok(Retained {
            revision: pin.revision(),
            summary: self.summary(&pin),
        })
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        staging::resolve(self, release).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        self.forget_images(revision).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        step.operation("look_at_project", readiness::findings(self, &step.from, &step.to))
            .await
            .unwrap_or_else(|problem| vec![Finding::blocker(problem)])
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(staging::stage(self, step).await?)
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        step.operation("tidy_up", self.tidy()).await?;
        Ok(Done::new(
            "nothing staged; images that were built stay, they are the recorded revision",
        ))
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(moves::switch(self, step).await?)
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(moves::stop(self, step).await?)
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(moves::start(self, step).await?)
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(moves::verify(self, step).await?)
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        step.operation("tidy_up", self.tidy()).await?;
        Ok(Done::new("nothing left behind"))
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        moves::probe(self, step).await
    }
}
