//! A check over HTTP/1.1 without TLS: a 2xx answer passes, and where a version is asked for it must be the expected one.
//!
//! ```toml
//! http = "http://127.0.0.1:3000/api/health"
//! version = "/api/version"                    # a path or a URL that answers with the version
//! body = "\"db\":\\s*\"up\""                    # a regular expression that the answer must match
//! field = "/status"                           # a JSON pointer into the answer …
//! equals = "ok"                               # … and the value that must be there
//! max_latency = "500ms"                       # until the answer is there, with its body where that is looked at
//! ```
//!
//! Nothing of a body is quoted in a message but the value of `field` and the version.

use std::time::{Duration, Instant};

use regex::Regex;
use reqwest::{Client, Response, Url};
use serde_json::Value;

/// Bytes read of an answer. A version is short; a page of errors is not needed whole.
const BODY_LIMIT: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub struct HttpCheck {
    client: Client,
    url: Url,
    version: Option<Url>,
    expect: Expect,
}

/// What an answer must be like, besides 2xx.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    body: Option<Regex>,
    /// A JSON pointer, and the value there.
    field: Option<(String, Value)>,
    max_latency: Option<Duration>,
}

impl Expect {
    pub fn new(
        body: Option<String>,
        field: Option<String>,
        equals: Option<toml::Value>,
        max_latency: Option<Duration>,
    ) -> Result<Self, String> {
        let body = body.map(|pattern| Regex::new(&pattern).map_err(|e| format!("`body`: {e}")));
        let field = match (field, equals) {
            (None, None) => None,
            (Some(pointer), Some(value)) if pointer.starts_with('/') => {
                let value = match value {
                    toml::Value::String(text) => Value::from(text),
                    toml::Value::Integer(number) => Value::from(number),
                    toml::Value::Float(number) => Value::from(number),
                    toml::Value::Boolean(truth) => Value::from(truth),
                    toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                        return Err("`equals` is a string, a number or a boolean".into());
                    }
                };
                Some((pointer, value))
            }
            (Some(_), Some(_)) => return Err("`field` is a JSON pointer: /status, or /db/state".into()),
            (Some(_), None) | (None, Some(_)) => return Err("`field` and `equals` belong together".into()),
        };
        Ok(Self {
            body: body.transpose()?,
            field,
            max_latency,
        })
    }

    fn needs_body(&self) -> bool {
        self.body.is_some() || self.field.is_some()
    }

    fn judge(&self, body: &str) -> Result<(), String> {
        if let Some(pattern) = &self.body
            && !pattern.is_match(body)
        {
            return Err(format!("the answer does not match {:?}", pattern.as_str()));
        }
        let Some((pointer, wanted)) = &self.field else {
            return Ok(());
        };
        let json: Value = serde_json::from_str(body).map_err(|_| {
            let cut = if body.len() >= BODY_LIMIT {
                ", or is too long"
            } else {
                ""
            };
            format!("the answer is not JSON{cut}")
        })?;
        match json.pointer(pointer) {
            Some(found) if same_value(found, wanted) => Ok(()),
            Some(found) => {
                let found = crate::check::printable(&found.to_string(), 80);
                Err(format!("{pointer} is {found}, expected {wanted}"))
            }
            None => Err(format!("there is no {pointer} in the answer")),
        }
    }
}

/// `1` and `1.0` are one number to JSON, and two to the parser.
fn same_value(found: &Value, wanted: &Value) -> bool {
    match (found.as_f64(), wanted.as_f64()) {
        (Some(a), Some(b)) => a == b,
        (Some(_), None) | (None, Some(_)) | (None, None) => found == wanted,
    }
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
            expect: Expect::default(),
        })
    }

    #[must_use]
    pub fn expecting(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// One question (two, when a version is expected). `Ok` and `Err` both say what was seen.
    pub async fn ask(&self, expected: Option<&str>) -> Result<String, String> {
        let begun = Instant::now();
        let answer = self.get(&self.url).await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{}: status {}", self.url, status.as_u16()));
        }
        let failed = |why: String| format!("{}: {why}", self.url);
        let body = match self.expect.needs_body() {
            true => Some(bounded_body(answer).await.map_err(failed)?),
            false => None,
        };
        let took = begun.elapsed();
        if let Some(body) = body {
            self.expect.judge(&body).map_err(failed)?;
        }
        if let Some(most) = self.expect.max_latency.filter(|most| took > *most) {
            return Err(failed(format!(
                "answered in {} ms, {} are allowed",
                took.as_millis(),
                most.as_millis()
            )));
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
