//! Containers of a Docker engine, each known by its name:
//!
//! ```toml
//! [[component]]
//! name = "api"
//! kind = "container"
//! container = "zekka-api"
//! image = "registry.example.com/zekka/api"
//! health = { http = "http://127.0.0.1:3000/api/health", version = "/api/version" }
//! ```
//!
//! | move | what it does |
//! |---|---|
//! | `retain` | gives the live image a tag of ours, and writes its name down in the vault |
//! | `stage` | creates the successor, stopped, under a temporary name, with all networks |
//! | `stop` | takes the restart policy away, then stops |
//! | `switch` | two renames; starts and stops nothing |
//! | `start` | gives the restart policy back, starts, waits until healthy |
//! | undo | the same moves, the other way: the old container itself comes back |
//! | `finish` | keeps the old container, stopped, until the next rollback |
//!
//! Invariants:
//! - The container that was live is never changed, except for its name and its restart policy.
//! - No volume is ever removed.
//! - Values of environment variables go from the engine or the env file to the engine, and nowhere else.
//!
//! Left out: building images, logging in to registries, swarm services; and containers that compose manages, which are
//! replaced by compose (see the compose driver).

mod carry;
mod environment;
mod images;
mod managed;
mod moves;
mod networks;
mod notes;
mod process;
mod readiness;
mod seen;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::managed::Managed;
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision, Role};
use crate::check::HealthCheck;
use crate::engine::{self, Engine};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "container";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    /// The container's name.
    pub container: String,
    /// Its image's repository, without a tag.
    pub image: String,
    /// The tag that a release goes by: `{release}` is its name, `{version}` the same without a leading `v`.
    #[serde(default = "default_tag")]
    pub tag: String,
    /// The engine's socket.
    pub socket: Option<PathBuf>,
    /// File with `NAME=value` lines, as `docker run --env-file` takes it, that become the container's environment.
    pub env_file: Option<PathBuf>,
    /// Components of this host whose content the container reads when it starts: the one of `env_file`, for one.
    #[serde(default)]
    pub reads: BTreeSet<String>,
    /// How long it may take to stop by itself. Then the engine kills it.
    #[serde(default = "default_stop_timeout", deserialize_with = "crate::duration::deserialize")]
    pub stop_timeout: Duration,
    /// Without it, the container's own HEALTHCHECK counts.
    pub health: Option<HealthCheck>,
    /// Without either, it is well when it has run for so long since it was started.
    #[serde(default = "default_steady", deserialize_with = "crate::duration::deserialize")]
    pub steady: Duration,
    /// Keep the container that was live before, stopped, until the next rollback.
    #[serde(default = "default_keep")]
    pub keep: bool,
    /// Fetch a missing image by its digest from the registry that it came from.
    #[serde(default)]
    pub pull: bool,
}

fn default_tag() -> String {
    "{release}".into()
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_steady() -> Duration {
    Duration::from_secs(3)
}

fn default_keep() -> bool {
    true
}

#[derive(Clone, Debug)]
pub struct ContainerDriver {
    managed: Arc<Managed>,
    reads: BTreeSet<String>,
}

impl ContainerDriver {
    pub fn new(component: &str, config: ContainerConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        let bad = |why: String| Problem::new(Code::BadConfig, format!("component {component}: {why}"));
        engine::check_container(&config.container).map_err(|p| bad(p.message))?;
        engine::check_reference(&config.image).map_err(|p| bad(p.message))?;
        let last = config.image.rsplit('/').next().unwrap_or_default();
        if last.contains([':', '@']) {
            return Err(bad(format!(
                "image {} has a tag or a digest; give the repository alone",
                config.image
            )));
        }
        if !config.tag.contains("{release}") && !config.tag.contains("{version}") {
            return Err(bad(format!(
                "tag {:?} has neither {{release}} nor {{version}}: every release would be the same",
                config.tag
            )));
        }
        let paths = [("socket", &config.socket), ("env_file", &config.env_file)];
        for (key, path) in paths {
            if path.as_ref().is_some_and(|p| !p.is_absolute()) {
                return Err(bad(format!("{key} must be an absolute path")));
            }
        }
        for name in &config.reads {
            check_name("component", name)?;
        }
        Ok(Self {
            managed: Arc::new(Managed {
                component: component.to_owned(),
                container: config.container,
                image: config.image,
                tag: config.tag,
                engine: Engine::new(config.socket),
                vault,
                env_file: config.env_file,
                stop_timeout: config.stop_timeout,
                steady: config.steady,
                health: config.health,
                keep: config.keep,
                pull: config.pull,
            }),
            reads: config.reads,
        })
    }
}

#[async_trait]
impl Driver for ContainerDriver {
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
        let live = self.managed.live().await?;
        let revision = self.managed.revision_of(&live).await?;
        let (health, detail) = self.managed.health_now(&live, &revision.version).await;
        Ok(Observation {
            revision,
            health,
            detail,
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        self.managed.retain_live(release).await
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        self.managed.resolve_tag(release).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        self.managed.forget(revision).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        step.operation("look_at_container", self.managed.findings(step))
            .await
            .unwrap_or_else(|problem| vec![Finding::blocker(problem)])
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        self.managed.stage(step).await
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        let removed = step.operation("remove_staged", self.managed.discard()).await?;
        Ok(Done::new(match removed {
            0 => "nothing staged".to_owned(),
            n => format!("removed {n} staged container(s)"),
        }))
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        self.managed.stop(step).await
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        self.managed.switch(step).await
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        self.managed.start(step).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        self.managed.verify(step).await
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        let kept = step.operation("tidy_up", self.managed.tidy(step)).await?;
        Ok(Done::new(match kept {
            Some(name) => format!("{name} is kept, stopped, until the next rollback"),
            None => "nothing left behind".to_owned(),
        }))
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        let probed = match step.action {
            Action::Switch => self.managed.probe_switch(step).await,
            Action::Stop => self.managed.probe_stop().await,
            Action::Start => self.managed.probe_start(step).await,
            Action::Stage
            | Action::Discard
            | Action::Finish
            | Action::Prepare
            | Action::Verify
            | Action::Snapshot
            | Action::Drain
            | Action::Resume
            | Action::Unspecified => Ok(Probe::Repeatable(
                "the live container is not touched by this move".into(),
            )),
        };
        probed.unwrap_or_else(Probe::Indeterminate)
    }
}
