//! Health checks: is a component serving, and at the version that it should be at?
//!
//! ```toml
//! health = { http = "http://127.0.0.1:3000/api/health", version = "/api/version", within = "60s" }
//! health = { tcp = "127.0.0.1:5432", within = "10s" }
//! health = { postgres = { host = "/run/postgresql", user = "app", database = "zekka" } }
//! health = { redis = { address = "127.0.0.1:6379" } }
//! health = { process = { pid_file = "/run/zekka.pid", steady = "5s" } }
//! health = { command = { run = ["/usr/local/bin/check-queue"] } }
//!
//! [[check]]           # the same, asked by the verification of its component, and besides:
//! name = "api-log"
//! component = "api"
//! log = { file = "/var/log/zekka/app.log" }
//! ```
//!
//! Invariants:
//! - Every try opens a connection of its own and has a time limit: an old worker that keeps a connection alive cannot
//!   answer for a new one.
//! - An answer that cannot be judged is not a pass.
//! - What is asked comes from the agent's configuration alone.

pub mod command;
pub mod http;
pub mod log;
pub mod postgres;
pub mod process;
pub mod redact;
pub mod redis;

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::command::CommandCheck;
use self::http::{Expect, HttpCheck};
use self::log::LogCheck;
use self::postgres::PostgresCheck;
use self::process::ProcessCheck;
use self::redis::RedisCheck;

const DEFAULT_WITHIN: Duration = Duration::from_secs(30);
const DEFAULT_EVERY: Duration = Duration::from_millis(50);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// The same, for what runs a program or asks a manager.
const SLOW_TIMEOUT: Duration = Duration::from_secs(10);

/// A check of `[[check]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Fragment")]
pub enum Check {
    /// Can be asked at any time.
    Asked(HealthCheck),
    /// Judges what was written since a moment that somebody has to remember.
    Log(LogCheck),
}

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
    Http(Box<HttpCheck>),
    Tcp(String),
    Postgres(Box<PostgresCheck>),
    Redis(RedisCheck),
    Process(Box<ProcessCheck>),
    Command(CommandCheck),
}

/// What a check may ask. Exactly one is given.
const TARGETS: &str = "`http`, `tcp`, `postgres`, `redis`, `process`, `command`";

/// The keys as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    http: Option<String>,
    version: Option<String>,
    body: Option<String>,
    field: Option<String>,
    equals: Option<toml::Value>,
    #[serde(default, deserialize_with = "optional_duration")]
    max_latency: Option<Duration>,
    tcp: Option<String>,
    postgres: Option<PostgresCheck>,
    redis: Option<RedisCheck>,
    process: Option<ProcessCheck>,
    command: Option<CommandCheck>,
    log: Option<LogCheck>,
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

impl Fragment {
    fn has_http_keys(&self) -> bool {
        let expects = self.body.is_some() || self.field.is_some() || self.equals.is_some();
        self.version.is_some() || expects || self.max_latency.is_some()
    }

    /// What is asked. `None`: nothing that can be asked at any time.
    fn target(&mut self) -> Result<Option<Target>, String> {
        if self.http.is_none() && self.has_http_keys() {
            return Err("`version`, `body`, `field`, `equals` and `max_latency` belong to an http check".into());
        }
        let mut targets = Vec::new();
        if let Some(url) = self.http.take() {
            let expect = Expect::new(
                self.body.take(),
                self.field.take(),
                self.equals.take(),
                self.max_latency,
            )?;
            targets.push(Target::Http(Box::new(
                HttpCheck::new(&url, self.version.as_deref())?.expecting(expect),
            )));
        }
        if let Some(address) = self.tcp.take() {
            targets.push(Target::Tcp(checked_address(address)?));
        }
        if let Some(check) = self.postgres.take() {
            targets.push(Target::Postgres(Box::new(check)));
        }
        if let Some(check) = self.redis.take() {
            check.validate()?;
            targets.push(Target::Redis(check));
        }
        if let Some(check) = self.process.take() {
            check.validate()?;
            targets.push(Target::Process(Box::new(check)));
        }
        if let Some(check) = self.command.take() {
            check.validate()?;
            targets.push(Target::Command(check));
        }
        match targets.len() {
            0 | 1 => Ok(targets.pop()),
            _ => Err(format!("a check has only one of {TARGETS}")),
        }
    }
}

impl TryFrom<Fragment> for Check {
    type Error = String;

    fn try_from(mut f: Fragment) -> Result<Self, String> {
        let Some(log) = f.log.take() else {
            return HealthCheck::try_from(f).map(Self::Asked).map_err(|why| {
                // The list of what a health check may be is one shorter.
                why.replace(TARGETS, &format!("{TARGETS}, `log`"))
            });
        };
        if f.target()?.is_some() {
            return Err(format!("a check has only one of {TARGETS}, `log`"));
        }
        if f.within.is_some() || f.every.is_some() || f.timeout.is_some() {
            return Err("a log is read once: `within`, `every` and `timeout` do not belong to it".into());
        }
        Ok(Self::Log(log))
    }
}

impl Check {
    /// How long it may take.
    pub fn within(&self) -> Duration {
        match self {
            Self::Asked(check) => check.within(),
            Self::Log(_) => DEFAULT_WITHIN,
        }
    }

    /// What is asked, without secrets.
    pub fn target(&self) -> String {
        match self {
            Self::Asked(check) => check.target(),
            Self::Log(check) => check.target(),
        }
    }
}

impl TryFrom<Fragment> for HealthCheck {
    type Error = String;

    fn try_from(mut f: Fragment) -> Result<Self, String> {
        if f.log.is_some() {
            return Err(
                "a log says what happened since a switch, not whether something serves now: make it a [[check]]".into(),
            );
        }
        let target = f.target()?.ok_or_else(|| format!("a check needs one of {TARGETS}"))?;
        let every = f.every.unwrap_or(DEFAULT_EVERY);
        if every < Duration::from_millis(1) {
            return Err("`every` must be at least 1ms".into());
        }
        let timeout = match &target {
            Target::Http(_) | Target::Tcp(_) | Target::Postgres(_) | Target::Redis(_) => DEFAULT_TIMEOUT,
            Target::Process(_) | Target::Command(_) => SLOW_TIMEOUT,
        };
        Ok(Self {
            target,
            within: f.within.unwrap_or(DEFAULT_WITHIN),
            every,
            timeout: f.timeout.unwrap_or(timeout),
        })
    }
}

/// The beginning of a text from elsewhere, on one line, safe to print.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let short: String = text.chars().take(limit).map(plain).collect();
    let dots = if text.chars().nth(limit).is_some() { "…" } else { "" };
    format!("{short}{dots}")
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
                Target::Redis(check) => check.ask().await,
                Target::Process(check) => check.ask().await,
                Target::Command(check) => check.ask(self.timeout).await,
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
            Target::Redis(check) => check.target(),
            Target::Process(check) => check.target(),
            Target::Command(check) => check.target(),
        }
    }
}

#[cfg(test)]
mod tests;
