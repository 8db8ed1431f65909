//! A check over HTTP/1.1 without TLS: a 2xx answer passes, and where a version is asked for it must be the expected one.

use std::time::Duration;

use reqwest::{Client, Response, Url};

/// Bytes read of an answer. A version is short; a page of errors is not needed whole.
const BODY_LIMIT: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub struct HttpCheck {
    client: Client,
    url: Url,
    version: Option<Url>,
}

/// A client for questions to services of this host: no proxy, no redirects, no connection used twice.
pub fn client() -> Result<Client, String> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(1))
        .user_agent("rollback-agent")
        .build()
        .map_err(|e| format!("HTTP client: {e}"))
}

pub fn plain_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("{text:?} is not a URL: {e}"))?;
    if url.scheme() != "http" || url.host_str().is_none() {
        return Err(format!("{text:?}: only http:// addresses can be checked"));
    }
    Ok(url)
}

impl HttpCheck {
    /// `version` is a path on the same server, or a URL.
    pub fn new(url: &str, version: Option<&str>) -> Result<Self, String> {
        let url = plain_url(url)?;
        let version = match version {
            Some(path) if path.starts_with('/') => Some(url.join(path).map_err(|e| format!("{path:?}: {e}"))?),
            Some(other) => Some(plain_url(other)?),
            None => None,
        };
        Ok(Self {
            client: client()?,
            url,
            version,
        })
    }

    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// One question (two, when a version is expected). `Ok` and `Err` both say what was seen.
    pub async fn ask(&self, expected: Option<&str>) -> Result<String, String> {
        let answer = self.get(&self.url).await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{}: status {}", self.url, status.as_u16()));
        }
        let (Some(url), Some(expected)) = (&self.version, expected) else {
            return Ok(status.as_u16().to_string());
        };
        let answer = self.get(url).await?;
        if !answer.status().is_success() {
            return Err(format!("{url}: status {}", answer.status().as_u16()));
        }
        let body = bounded_body(answer).await.map_err(|e| format!("{url}: {e}"))?;
        let served = version_of(&body);
        if same_version(&served, expected) {
            Ok(format!("{}, version {served}", status.as_u16()))
        } else {
            Err(format!("{url}: serves version {served:?}, expected {expected:?}"))
        }
    }

    async fn get(&self, url: &Url) -> Result<Response, String> {
        self.client
            .get(url.clone())
            .send()
            .await
            .map_err(|e| format!("{url}: {}", root_cause(&e)))
    }
}

/// The innermost reason: "Connection refused" rather than "error sending request".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The beginning of a body, cut at [`BODY_LIMIT`].
pub async fn bounded_body(mut answer: Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| root_cause(&e))? {
        body.extend_from_slice(&chunk);
        if body.len() >= BODY_LIMIT {
            body.truncate(BODY_LIMIT);
            break;
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The field `version` of a JSON object, or the body itself; short enough for a message.
fn version_of(body: &str) -> String {
    let field = serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|json| json.get("version")?.as_str().map(str::to_owned));
    field
        .unwrap_or_else(|| body.trim().to_owned())
        .chars()
        .take(80)
        .collect()
}

/// `2.9.0` in a package file and `v2.9.0` on a tag are the same version.
fn same_version(a: &str, b: &str) -> bool {
    let bare = |v: &str| v.strip_prefix('v').unwrap_or(v).to_owned();
    !a.is_empty() && bare(a) == bare(b)
}
