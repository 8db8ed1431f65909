//! `coordinator.toml`: read once, checked as a whole, typed from then on. Every key is described in
//! `deploy/examples/coordinator.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::CredentialFiles;
use serde::{Deserialize, Serialize};

use crate::retention::ReleasesConfig;
use crate::store::LONGEST_LEASE;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This coordinator's name: the last part of its SPIFFE id, and the leader id that agents remember.
    pub name: String,
    /// gRPC for agents and operators.
    pub listen: SocketAddr,
    /// Health, readiness and metrics. Plain HTTP; keep it on a private address.
    pub http: SocketAddr,
    /// host:port under which operators and agents reach this coordinator; absent: `listen`. Followers send people there
    /// when it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Directory of the SQLite database, where that is the store.
    pub state: PathBuf,
    #[serde(default, skip_serializing_if = "StoreConfig::is_embedded")]
    pub store: StoreConfig,
    #[serde(default, skip_serializing_if = "LeadershipConfig::is_default")]
    pub leadership: LeadershipConfig,
    pub tls: CredentialFiles,
    /// The built-in CA. Absent: certificates come from elsewhere, and agents cannot enroll here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<IssuerConfig>,
    #[serde(default)]
    pub agents: AgentsConfig,
    #[serde(default, skip_serializing_if = "ReleasesConfig::is_default")]
    pub releases: ReleasesConfig,
    #[serde(default, skip_serializing_if = "ReadinessConfig::is_default")]
    pub readiness: ReadinessConfig,
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The CA's private key, 0600.
    pub key: PathBuf,
    #[serde(
        default = "default_agent_lifetime",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required"
    )]
    pub agent_certificate_lifetime: Duration,
}

/// Where the journal is. Without a URL: SQLite in `state`, for a coordinator that is alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=PATH, the same for all replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A file with the password and nothing else (0600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// Who leads of several replicas (PostgreSQL only; with SQLite there is one).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeadershipConfig {
    /// A leader that was not heard of for so long is replaced.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub ttl: Duration,
    /// How often the leader says that it lives.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub renew: Duration,
    /// A leader that could not say so for so long stops by itself. Less than `ttl`, so that it has stopped before anybody
    /// else begins.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub step_down: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsConfig {
    /// How often an agent says that it lives. It counts as connected for three of these.
    #[serde(
        default = "default_heartbeat",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required"
    )]
    pub heartbeat: Duration,
}

/// What the leader checks in the background: could the fleet go back?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadinessConfig {
    /// So many stable releases before the one that runs. 0: nothing is checked.
    pub releases: usize,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub every: Duration,
    /// What a check may cost the fleet at any moment.
    pub hosts_at_once: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// OTLP over gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    #[serde(default = "default_log")]
    pub log: String,
    #[serde(default)]
    pub json: bool,
}

/// With what tells a coordinator's processes apart, it must still be a name.
pub const MAX_COORDINATOR_NAME: usize = 90;

fn default_agent_lifetime() -> Duration {
    Duration::from_secs(72 * 3600)
}

fn default_heartbeat() -> Duration {
    Duration::from_secs(5)
}

fn default_log() -> String {
    "info".to_owned()
}

impl StoreConfig {
    fn is_embedded(&self) -> bool {
        self.url.is_none()
    }
}

impl LeadershipConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for LeadershipConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(6),
            renew: Duration::from_millis(1500),
            step_down: Duration::from_secs(4),
        }
    }
}

impl ReadinessConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ReadinessConfig {
    fn default() -> Self {
        Self {
            releases: 3,
            every: Duration::from_secs(15 * 60),
            hosts_at_once: 8,
        }
    }
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            heartbeat: default_heartbeat(),
        }
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp: None,
            log: default_log(),
            json: false,
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, Problem> {
        let bad = |message: String| Problem::new(Code::BadConfig, format!("{}: {message}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        // toml's own message shows the line, and for a misspelt key the keys that there are.
        let config: Self = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        config.check().map_err(bad)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        check_name("coordinator", &self.name).map_err(|p| p.message)?;
        if self.name.len() > MAX_COORDINATOR_NAME {
            return Err(format!("name is longer than {MAX_COORDINATOR_NAME} characters"));
        }
        if self.agents.heartbeat < Duration::from_millis(100) {
            return Err("agents.heartbeat is less than 100ms".to_owned());
        }
        if self.releases.keep == 0 {
            return Err("releases.keep is 0: the newest release is always kept".to_owned());
        }
        if self.readiness.every < Duration::from_secs(1) {
            return Err("readiness.every is less than 1s".to_owned());
        }
        if self.readiness.hosts_at_once == 0 {
            return Err("readiness.hosts_at_once is 0; to check nothing, set readiness.releases to 0".to_owned());
        }
        let LeadershipConfig { ttl, renew, step_down } = self.leadership;
        if renew < Duration::from_millis(50) || renew * 2 > step_down || step_down >= ttl {
            return Err(format!(
                "leadership: renew ({renew:?}) is to be at least 50ms and at most half of step_down ({step_down:?}), and \
                 step_down less than ttl ({ttl:?})"
            ));
        }
        if ttl > LONGEST_LEASE {
            return Err(format!("leadership: ttl ({ttl:?}) is more than {LONGEST_LEASE:?}"));
        }
        // Followers send everybody to where the leader says it is.
        if self.store.url.is_some() && self.endpoint.is_none() && self.listen.ip().is_unspecified() {
            return Err(format!(
                "endpoint is missing: with replicas, others have to be told an address that {} is not",
                self.listen.ip()
            ));
        }
        if self.store.password_file.is_some() && self.store.url.is_none() {
            return Err("store.password_file is there without store.url".to_owned());
        }
        if let Some(issuer) = &self.issuer
            && issuer.agent_certificate_lifetime < Duration::from_secs(60)
        {
            return Err("issuer.agent_certificate_lifetime is less than 1m".to_owned());
        }
        Ok(())
    }

    /// host:port for operators and agents.
    pub fn advertised(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| self.listen.to_string())
    }

    pub fn database(&self) -> PathBuf {
        self.state.join("coordinator.db")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Problem> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        Config::load(file.path())
    }

    const EXAMPLE: &str = include_str!("../../deploy/examples/coordinator.toml");

    #[test]
    fn the_commented_example_is_a_configuration_with_the_defaults() {
        let config = load(EXAMPLE).expect("the example");
        assert_eq!(config.agents.heartbeat, default_heartbeat());
        assert_eq!(config.releases, ReleasesConfig::default());
        assert_eq!(config.readiness, ReadinessConfig::default());
        assert_eq!(
            config.issuer.expect("issuer").agent_certificate_lifetime,
            default_agent_lifetime()
        );
    }

    #[test]
    fn a_replica_says_where_it_is() {
        let store = "[store]\nurl = \"postgres://rollback@db/rollback\"\n\n[tls]";
        let nowhere = load(&EXAMPLE.replace("[tls]", store)).expect_err("it listens on 0.0.0.0");
        assert!(nowhere.message.contains("endpoint is missing"), "{nowhere}");
        let somewhere = EXAMPLE.replace("# endpoint = ", "endpoint = ").replace("[tls]", store);
        load(&somewhere).expect("an endpoint");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_keys_there_are() {
        let refused = load(&EXAMPLE.replace("heartbeat =", "hartbeat =")).expect_err("a misspelt key");
        assert_eq!(refused.code, Code::BadConfig);
        assert!(
            refused.message.contains("hartbeat") && refused.message.contains("`heartbeat`"),
            "{refused}"
        );
        assert!(refused.message.contains("line "), "{refused}");
    }
}
