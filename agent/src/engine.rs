//! The seam to the container engine (Docker Engine API, over a Unix socket). Who asks: the container and compose
//! drivers, and checks that read a container's state or log.
//!
//! Invariants:
//! - Connects when it is first asked, agrees on the API version once, and keeps no connection: every request opens one
//!   of its own, so a daemon that was restarted is no lasting error.
//! - Every request has a time limit.
//! - No message carries an environment value. The engine's own words are passed on; what could not be decoded is not,
//!   because the undecoded text is somebody's whole configuration.
//! - A container is found by its whole name or its whole id. The engine also takes the beginning of an id for a name.
//!
//! Left out: what containers mean. That is `driver/container.rs`.

use std::collections::VecDeque;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerInspectResponse, ImageInspect};
use bollard::query_parameters::{InspectContainerOptions, LogsOptions, RemoveImageOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use tokio::sync::Mutex;

use crate::check::redact;

/// Bytes of a log that a message quotes.
const LAST_WORDS: usize = 600;

/// Where the engine listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Limit of one request. Stopping a container waits for it, so callers that do so give their client more
/// ([`Docker::with_timeout`]).
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Limit for finding out which version the daemon speaks.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// A handle to one engine. Clones share what was agreed with it.
#[derive(Clone, Debug)]
pub struct Engine {
    socket: Arc<PathBuf>,
    /// Held while the version is being agreed, so that it happens once however many ask.
    agreed: Arc<Mutex<Option<Docker>>>,
}

impl Engine {
    /// Does not connect yet. `None` is [`DEFAULT_SOCKET`].
    pub fn new(socket: Option<PathBuf>) -> Self {
        Self {
            socket: Arc::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
            agreed: Arc::new(Mutex::new(None)),
        }
    }

    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// A client that speaks the daemon's version. The daemon may be gone again when it is used: then the request fails,
    /// and the next one finds it when it is back.
    pub async fn client(&self) -> Result<Docker, Problem> {
        let mut agreed = self.agreed.lock().await;
        if let Some(client) = agreed.as_ref() {
            return Ok(client.clone());
        }
        let path = self.socket.to_string_lossy();
        let greet = async {
            Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), API_DEFAULT_VERSION)?
                .negotiate_version()
                .await
        };
        let client = within(GREETING_LIMIT, &format!("connect to the engine at {path}"), greet).await?;
        *agreed = Some(client.clone());
        Ok(client)
    }

    /// The image of this id or reference, if it is on this host.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInspect>, Problem> {
        check_reference(reference)?;
        let client = self.client().await?;
        let asked = client.inspect_image(reference);
        found(self.asked(&format!("look at image {reference}"), asked).await)
    }

    /// Takes a name away from an image; the engine removes the image with its last name. `false`: a container needs it, and
    /// nothing was done. Succeeds when there is no such name.
    pub async fn remove_name(&self, reference: &str) -> Result<bool, Problem> {
        check_reference(reference)?;
        let client = self.client().await?;
        let asked = client.remove_image(reference, None::<RemoveImageOptions>, None);
        match self.asked(&format!("remove image {reference}"), asked).await {
            Ok(_) => Ok(true),
            Err(refused) if refused.status == Some(404) => Ok(true),
            Err(refused) if refused.status == Some(409) => Ok(false),
            Err(refused) => Err(refused.problem),
        }
    }

    /// The container of this whole name or whole id.
    pub async fn container(&self, name: &str) -> Result<Option<ContainerInspectResponse>, Problem> {
        check_container(name)?;
        let client = self.client().await?;
        let asked = client.inspect_container(name, None::<InspectContainerOptions>);
        let seen = found(self.asked(&format!("look at container {name}"), asked).await)?;
        Ok(seen.filter(|c| {
            c.id.as_deref() == Some(name) || c.name.as_deref().map(|n| n.trim_start_matches('/')) == Some(name)
        }))
    }

    /// The end of a container's log as the end of a message, on one line; empty when there is none. The message leaves this
    /// host, and the application may have written down what it was given: the names of `given` stand for their values.
    pub async fn last_words<'a>(&self, id: &str, given: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let log = self.logs(id, UNIX_EPOCH, LAST_WORDS).await;
        match log.map(|text| redact::hide(text, given)) {
            Ok(text) if !text.trim().is_empty() => format!("; its log ends: {}", text.trim().replace('\n', " | ")),
            Ok(_) | Err(_) => String::new(),
        }
    }

    /// What the container wrote to stdout and stderr since a moment: whole lines in the order of the engine, the newest
    /// when there are more than `limit_bytes`.
    pub async fn logs(&self, name: &str, since: SystemTime, limit_bytes: usize) -> Result<String, Problem> {
        check_container(name)?;
        let client = self.client().await?;
        let after = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            // The engine takes whole seconds; the rest is told by each line's own time.
            since: i32::try_from(after.as_secs()).unwrap_or(i32::MAX),
            timestamps: true,
            ..LogsOptions::default()
        };
        let since = Timestamp::try_from(since).unwrap_or(Timestamp::MIN);
        let mut lines = client.logs(name, Some(options));
        let read = async {
            let (mut kept, mut size) = (VecDeque::new(), 0);
            while let Some(line) = lines.next().await {
                let bytes = line?.into_bytes();
                let line = String::from_utf8_lossy(&bytes);
                let Some(text) = said_since(&line, since) else {
                    continue;
                };
                size += text.len() + 1;
                kept.push_back(text.to_owned());
                while size > limit_bytes
                    && let Some(oldest) = kept.pop_front()
                {
                    size -= oldest.len() + 1;
                }
            }
            let mut all = String::with_capacity(size);
            for line in kept {
                all.push_str(&line);
                all.push('\n');
            }
            Ok(all)
        };
        self.asked(&format!("read the log of container {name}"), read)
            .await
            .map_err(Refused::into_problem)
    }

    /// One request with its time limit. A daemon that was exchanged for one that speaks another version is greeted anew
    /// the next time.
    async fn asked<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, Refused> {
        let result = match tokio::time::timeout(REQUEST_LIMIT, request).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Refused {
                status: status(&error),
                problem: problem(what, &error),
            },
            Err(_) => Refused {
                status: None,
                problem: no_answer(what, REQUEST_LIMIT),
            },
        };
        if result.status == Some(400) && result.problem.message.contains("client version") {
            *self.agreed.lock().await = None;
        }
        Err(result)
    }
}

/// A request that was not done.
struct Refused {
    status: Option<u16>,
    problem: Problem,
}

impl Refused {
    fn into_problem(self) -> Problem {
        self.problem
    }
}

fn found<T>(result: Result<T, Refused>) -> Result<Option<T>, Problem> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(refused) if refused.status == Some(404) => Ok(None),
        Err(refused) => Err(refused.problem),
    }
}

/// Runs a request of a [`Docker`] client with a time limit of its own. `what` is "verb + object".
pub async fn within<T>(
    limit: Duration,
    what: &str,
    request: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(limit, request).await {
        Ok(result) => result.map_err(|error| problem(what, &error)),
        Err(_) => Err(no_answer(what, limit)),
    }
}

fn no_answer(what: &str, limit: Duration) -> Problem {
    Problem::new(
        Code::EngineFailed,
        format!("{what}: the engine did not answer within {} s", limit.as_secs()),
    )
}

/// The HTTP status with which the engine refused.
pub fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// What the engine said, as a problem. `what` is "verb + object".
pub fn problem(what: impl Display, error: &bollard::errors::Error) -> Problem {
    use bollard::errors::Error;
    match error {
        Error::DockerResponseServerError { message, .. } => {
            Problem::new(Code::EngineFailed, format!("{what}: {}", one_line(message)))
        }
        // The text around the place that could not be decoded may be a secret.
        Error::JsonDataError { .. } | Error::JsonSerdeError { .. } => Problem::new(
            Code::EngineFailed,
            format!("{what}: the engine's answer cannot be understood"),
        ),
        Error::RequestTimeoutError => {
            Problem::new(Code::EngineFailed, format!("{what}: the engine did not answer in time"))
        }
        Error::SocketNotFoundError(path) => Problem::new(
            Code::EngineFailed,
            format!("{what}: there is no socket at {path}; is the engine running?"),
        ),
        other => Problem::from_error(Code::EngineFailed, what, other),
    }
}

/// The engine quotes programs' output, which may be long.
fn one_line(message: &str) -> String {
    message
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(600)
        .collect()
}

/// The text of a log line that begins with its time, if it was written since then. A line without a time is passed on:
/// better one line too many than one too few.
fn said_since(line: &str, since: Timestamp) -> Option<&str> {
    let line = line.trim_end_matches(['\n', '\r']);
    match line
        .split_once(' ')
        .map(|(time, text)| (time.parse::<Timestamp>(), text))
    {
        Some((Ok(time), text)) => (time >= since).then_some(text),
        Some((Err(_), _)) => Some(line),
        // An empty line is its time alone.
        None => line
            .parse::<Timestamp>()
            .map_or(Some(line), |time| (time >= since).then_some("")),
    }
}

/// The engine's rule for names of containers. Ids obey it, too.
pub fn check_container(name: &str) -> Result<(), Problem> {
    let good = (2..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    Err(Problem::new(
        Code::BadName,
        format!("{shown:?} is not a name of a container"),
    ))
}

/// What may stand in an image reference. It becomes a part of a path of the API.
pub fn check_reference(reference: &str) -> Result<(), Problem> {
    let good = (1..=512).contains(&reference.len())
        && reference.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !reference.contains("..")
        && reference
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ':' | '@'));
    if good {
        return Ok(());
    }
    let shown: String = reference.chars().take(40).collect();
    Err(Problem::new(
        Code::BadName,
        format!("{shown:?} is not an image reference"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path_of_a_request() {
        for bad in ["", "../info", "a/json?x", "a b", "-a", "a\n"] {
            assert!(check_container(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "../x", "a/../../info", "a?b", "a b", "-a", "a%2e"] {
            assert!(check_reference(bad).is_err(), "{bad:?}");
        }
        for good in ["app", "app.before-rb_1", &"0a".repeat(32)] {
            assert!(check_container(good).is_ok(), "{good}");
        }
        for good in ["app:v1", "reg.local:5000/a/b@sha256:00ff", "sha256:00ff"] {
            assert!(check_reference(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn log_lines_before_the_moment_are_left_out_to_the_nanosecond() {
        let since: Timestamp = "2026-01-01T00:00:00.5Z".parse().expect("time");
        assert_eq!(said_since("2026-01-01T00:00:00.499999999Z early", since), None);
        assert_eq!(
            said_since("2026-01-01T00:00:00.500000001Z on time\n", since),
            Some("on time")
        );
        assert_eq!(said_since("2026-01-01T00:00:01Z ", since), Some(""));
        assert_eq!(said_since("without a time", since), Some("without a time"));
    }

    #[tokio::test]
    async fn says_so_when_there_is_no_engine() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let engine = Engine::new(Some(dir.path().join("none.sock")));
        let problem = engine.container("app").await.expect_err("no engine");
        assert_eq!(problem.code, Code::EngineFailed);
        assert!(problem.message.contains("no socket"), "{}", problem.message);
    }

    #[test]
    fn what_cannot_be_decoded_is_not_quoted() {
        let error = bollard::errors::Error::JsonDataError {
            message: "PASSWORD=secret".into(),
            column: 1,
        };
        assert!(!problem("look", &error).message.contains("secret"));
    }
}
