//! The keys of an nginx component.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::upstream::config::Upstreams;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NginxConfig {
    #[serde(default = "default_binary")]
    pub binary: PathBuf,
    /// What `nginx -p` is given, where nginx was started with it.
    pub prefix: Option<PathBuf>,
    /// The main configuration file.
    #[serde(default = "default_config")]
    pub config: PathBuf,
    #[serde(default = "default_pid_file")]
    pub pid_file: PathBuf,
    /// Quoted when a reload fails, and watched so that it is noticed at once.
    #[serde(default = "default_error_log")]
    pub error_log: PathBuf,
    /// The directory that holds all that is managed. Default: that of `config`.
    pub root: Option<PathBuf>,
    /// The managed files, relative to `root` or absolute beneath it.
    pub files: Vec<PathBuf>,
    /// The file that every managed server block includes. Default: `rollbackctl/<component>.inc`.
    pub managed_include: Option<PathBuf>,
    /// Where the marker is asked for: an http address of a managed server block, as seen from this host.
    pub marker_url: String,
    /// Host header for the marker, where server blocks are told apart by name.
    pub marker_host: Option<String>,
    /// What users are told while the site is drained.
    #[serde(default = "default_retry_after", deserialize_with = "crate::duration::deserialize")]
    pub retry_after: Duration,
    pub maintenance_body: Option<String>,
    /// Upstreams whose backends are taken out and brought back one by one: a table, or a list of tables.
    #[serde(default)]
    pub upstream: Upstreams,
    /// How long a reload may take until new workers serve it.
    #[serde(
        default = "default_worker_timeout",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub worker_timeout: Duration,
    /// How long `drain` waits for requests that old workers are still answering.
    #[serde(default = "default_drain_grace", deserialize_with = "crate::duration::deserialize")]
    pub drain_grace: Duration,
}

fn default_binary() -> PathBuf {
    "/usr/sbin/nginx".into()
}

fn default_config() -> PathBuf {
    "/etc/nginx/nginx.conf".into()
}

fn default_pid_file() -> PathBuf {
    "/run/nginx.pid".into()
}

fn default_error_log() -> PathBuf {
    "/var/log/nginx/error.log".into()
}

fn default_retry_after() -> Duration {
    Duration::from_secs(30)
}

fn default_worker_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_drain_grace() -> Duration {
    Duration::from_secs(5)
}
