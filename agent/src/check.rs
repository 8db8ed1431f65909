//! Health checks: is a component serving, and at the version that it should be at?
//!
//! ```toml
//! health = { http = "http://127.0.0.1:3000/api/health", version = "/api/version", within = "60s" }
//! health = { tcp = "127.0.0.1:5432", within = "10s" }
//! health = { postgres = { host = "/run/postgresql", user = "app", database = "zekka" } }
//! ```
//!
//! Invariants:
//! - Every try opens a connection of its own and has a time limit: an old worker that keeps a connection alive cannot
//!   answer for a new one.
//! - An answer that cannot be judged is not a pass.
//! - What is asked comes from the agent's configuration alone.

pub mod http;
pub mod postgres;

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::http::HttpCheck;
use self::postgres::PostgresCheck;

const DEFAULT_WITHIN: Duration = Duration::from_secs(30);
const DEFAULT_EVERY: Duration = Duration::from_millis(50);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// A check as configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Fragment")]
pub struct HealthCheck {
    target: Target,
    /// How long `wait` tries at most.
    within: Duration,
    /// Pause between tries. The first try is immediate.
    every: Duration,
    /// Limit of one try.
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Target {
    Http(HttpCheck),
    Tcp(String),
    Postgres(Box<PostgresCheck>),
}

/// The keys as they are written. Exactly one of `http`, `tcp` and `postgres` is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    http: Option<String>,
    version: Option<String>,
    tcp: Option<String>,
    postgres: Option<PostgresCheck>,
    #[serde(default, deserialize_with = "optional_duration")]
    within: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    every: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    timeout: Option<Duration>,
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::duration::deserialize(deserializer).map(Some)
}

impl TryFrom<Fragment> for HealthCheck {
    type Error = String;

    fn try_from(f: Fragment) -> Result<Self, String> {
        if f.version.is_some() && f.http.is_none() {
            return Err("`version` belongs to an http check".into());
        }
        let target = match (f.http, f.tcp, f.postgres) {
            (Some(url), None, None) => Target::Http(HttpCheck::new(&url, f.version.as_deref())?),
            (None, Some(address), None) => Target::Tcp(checked_address(address)?),
            (None, None, Some(check)) => Target::Postgres(Box::new(check)),
            (None, None, None) => return Err("a check needs one of `http`, `tcp`, `postgres`".into()),
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                return Err("a check has only one of `http`, `tcp`, `postgres`".into());
            }
        };
        let every = f.every.unwrap_or(DEFAULT_EVERY);
        if every < Duration::from_millis(1) {
            return Err("`every` must be at least 1ms".into());
        }
        Ok(Self {
            target,
            within: f.within.unwrap_or(DEFAULT_WITHIN),
            every,
            timeout: f.timeout.unwrap_or(DEFAULT_TIMEOUT),
        })
    }
}

fn checked_address(address: String) -> Result<String, String> {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, p)| p.parse::<u16>().ok());
    match port {
        Some(_) => Ok(address),
        None => Err(format!("{address:?} is not host:port")),
    }
}

/// A check that passed.
#[derive(Clone, Debug)]
pub struct Passed {
    /// One line for people: "200 in 3 ms, version v2.9.0".
    pub detail: String,
}

impl HealthCheck {
    /// One try. `expected` is the version that must be served; it is ignored by checks that cannot know a version.
    /// A check that does not pass is `Unhealthy`, with what was seen instead.
    pub async fn once(&self, expected: Option<&str>) -> Result<Passed, Problem> {
        let begun = Instant::now();
        let tried = tokio::time::timeout(self.timeout, async {
            match &self.target {
                Target::Http(check) => check.ask(expected).await,
                Target::Tcp(address) => match tokio::net::TcpStream::connect(address).await {
                    Ok(_) => Ok("connected".to_owned()),
                    Err(e) => Err(format!("tcp {address}: {e}")),
                },
                Target::Postgres(check) => check.ask().await,
            }
        })
        .await;
        match tried {
            Ok(Ok(seen)) => Ok(Passed {
                detail: format!("{seen} in {} ms", begun.elapsed().as_millis()),
            }),
            Ok(Err(why)) => Err(Problem::new(Code::Unhealthy, why)),
            Err(_) => Err(Problem::new(
                Code::Unhealthy,
                format!("{}: no answer within {} ms", self.target(), self.timeout.as_millis()),
            )),
        }
    }

    /// Tries until the check passes, its own `within` is over, or the deadline comes. The problem carries the last
    /// answer.
    pub async fn wait(&self, expected: Option<&str>, deadline: Instant) -> Result<Passed, Problem> {
        let begun = Instant::now();
        let end = deadline.min(begun + self.within);
        let mut last = format!("{}: no answer", self.target());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left.max(Duration::from_millis(1)), self.once(expected)).await {
                Ok(Ok(passed)) => return Ok(passed),
                Ok(Err(problem)) => last = problem.message,
                // The end came in the middle of a try: the answer before it says more.
                Err(_) => {}
            }
            if Instant::now() + self.every >= end {
                return Err(Problem::new(
                    Code::Unhealthy,
                    format!("not healthy after {} ms: {last}", begun.elapsed().as_millis()),
                ));
            }
            tokio::time::sleep(self.every).await;
        }
    }

    /// How long `wait` tries at most.
    pub fn within(&self) -> Duration {
        self.within
    }

    /// What is asked, without secrets.
    pub fn target(&self) -> String {
        match &self.target {
            Target::Http(check) => check.url().to_owned(),
            Target::Tcp(address) => format!("tcp {address}"),
            Target::Postgres(check) => check.target(),
        }
    }
}

#[cfg(test)]
mod tests;
