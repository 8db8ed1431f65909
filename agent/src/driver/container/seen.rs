//! A container as the engine shows it, with the questions that the driver asks of it.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerConfig, ContainerInspectResponse, ContainerState, EndpointSettings, HealthStatusEnum, HostConfig,
    RestartPolicy, RestartPolicyNameEnum,
};

/// Labels of ours on containers that this driver made.
pub const LABEL_COMPONENT: &str = "rollbackctl.component";
pub const LABEL_ROLLBACK: &str = "rollbackctl.rollback";
/// The restart policy that the container gets when it is started; until then it has none.
pub const LABEL_POLICY: &str = "rollbackctl.restart-policy";
/// Names of the variables that came from the env file.
pub const LABEL_ENV: &str = "rollbackctl.env-names";
pub const OUR_LABELS: &str = "rollbackctl.";

/// Where the text of an identity begins in a 64-digit id: what people and the engine call the short id.
const SHORT: usize = 12;

#[derive(Clone)]
pub struct Seen(pub ContainerInspectResponse);

impl std::fmt::Debug for Seen {
    /// Deliberately little: an inspected container holds the environment's values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl Seen {
    pub fn id(&self) -> &str {
        self.0.id.as_deref().unwrap_or_default()
    }

    pub fn short_id(&self) -> &str {
        self.id().get(..SHORT).unwrap_or(self.id())
    }

    pub fn name(&self) -> &str {
        self.0.name.as_deref().unwrap_or_default().trim_start_matches('/')
    }

    /// The image's id, `sha256:…`.
    pub fn image(&self) -> &str {
        self.0.image.as_deref().unwrap_or_default()
    }

    /// The name of the image as the container was made with it.
    pub fn image_name(&self) -> &str {
        self.config().and_then(|c| c.image.as_deref()).unwrap_or_default()
    }

    pub fn config(&self) -> Option<&ContainerConfig> {
        self.0.config.as_ref()
    }

    pub fn host(&self) -> Option<&HostConfig> {
        self.0.host_config.as_ref()
    }

    pub fn state(&self) -> Option<&ContainerState> {
        self.0.state.as_ref()
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.config()?.labels.as_ref()?.get(name).map(String::as_str)
    }

    pub fn has_label_beginning(&self, prefix: &str) -> bool {
        let labels = self.config().and_then(|c| c.labels.as_ref());
        labels.is_some_and(|l| l.keys().any(|name| name.starts_with(prefix)))
    }

    /// Alive, or being brought back to life by the engine.
    pub fn running(&self) -> bool {
        self.state().and_then(|s| s.running) == Some(true) || self.restarting()
    }

    /// Dead, and about to be started once more by the engine.
    pub fn restarting(&self) -> bool {
        self.state().and_then(|s| s.restarting) == Some(true)
    }

    /// How often the engine did that since somebody started it.
    pub fn restarts(&self) -> i64 {
        self.0.restart_count.unwrap_or_default()
    }

    pub fn paused(&self) -> bool {
        self.state().and_then(|s| s.paused) == Some(true)
    }

    pub fn started_at(&self) -> &str {
        self.state().and_then(|s| s.started_at.as_deref()).unwrap_or_default()
    }

    /// `None` when the container has no health check of its own.
    pub fn health(&self) -> Option<HealthStatusEnum> {
        self.state()?
            .health
            .as_ref()?
            .status
            .filter(|s| !matches!(s, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY))
    }

    pub fn policy(&self) -> RestartPolicy {
        self.host().and_then(|h| h.restart_policy.clone()).unwrap_or_default()
    }

    pub fn environment(&self) -> BTreeMap<&str, &str> {
        let lines = self.config().and_then(|c| c.env.as_deref()).unwrap_or_default();
        lines
            .iter()
            .map(|line| line.split_once('=').unwrap_or((line, "")))
            .collect()
    }

    pub fn networks(&self) -> Option<&HashMap<String, EndpointSettings>> {
        self.0.network_settings.as_ref()?.networks.as_ref()
    }

    pub fn network_mode(&self) -> &str {
        self.host().and_then(|h| h.network_mode.as_deref()).unwrap_or_default()
    }

    pub fn auto_remove(&self) -> bool {
        self.host().and_then(|h| h.auto_remove) == Some(true)
    }
}

/// The policy under which the engine never starts a container by itself.
pub fn never() -> RestartPolicy {
    RestartPolicy {
        name: Some(RestartPolicyNameEnum::NO),
        maximum_retry_count: Some(0),
    }
}

pub fn is_never(policy: &RestartPolicy) -> bool {
    match policy.name {
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO) => true,
        Some(
            RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED | RestartPolicyNameEnum::ON_FAILURE,
        ) => false,
    }
}
