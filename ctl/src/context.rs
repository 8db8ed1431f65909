//! The context file: which fleet, where its coordinators are, and with which certificate to ask them.
//!
//! Found at `--context FILE` (or `ROLLBACKCTL_CONTEXT`), else the first of
//! `$XDG_CONFIG_HOME/rollbackctl/context.toml`, `~/.config/rollbackctl/context.toml`, `/etc/rollbackctl/context.toml`.
//! Relative paths in it are relative to the file, so that a directory made by `rollback-coordinator` can be moved.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{CredentialFiles, CredentialStore, Credentials};
use serde::Deserialize;

/// A context, checked, with absolute paths (or relative to the working directory when `--context` was).
#[derive(Clone, Debug)]
pub struct Context {
    pub path: PathBuf,
    pub name: String,
    /// `host:port` of every replica, at least one, in the order in which they are tried.
    pub endpoints: Vec<String>,
    pub files: CredentialFiles,
    /// Where spans go, `http://host:4317`.
    pub otlp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    endpoints: Vec<String>,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    otlp: Option<String>,
}

const HINT: &str = "a context.toml has the keys name, endpoints = [\"host:port\", …] (every replica of the coordinator), ca, \
                    certificate, key and, if spans shall be sent, otlp";

const GIVE: &str =
    "give one with --context FILE or ROLLBACKCTL_CONTEXT: the coordinator wrote it to operators/NAME/context.toml";

/// Finds the context file. `given` wins over everything and must exist.
pub fn find(given: Option<&Path>) -> Result<PathBuf, Problem> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let candidates = candidates(|key| std::env::var_os(key));
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let looked: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
        Problem::new(
            Code::BadConfig,
            format!("there is no context file; looked for {}", looked.join(", ")),
        )
        .remedy(GIVE)
    })
}

fn candidates(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |key| env(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let directories = [
        set("XDG_CONFIG_HOME"),
        set("HOME").map(|home| home.join(".config")),
        Some(PathBuf::from("/etc")),
    ];
    let mut paths: Vec<PathBuf> = directories
        .into_iter()
        .flatten()
        .map(|dir| dir.join("rollbackctl").join("context.toml"))
        .collect();
    paths.dedup();
    paths
}

impl Context {
    /// Finds and reads. The certificate files are not opened: see [`Context::credentials`].
    pub fn load(given: Option<&Path>) -> Result<Self, Problem> {
        let path = find(given)?;
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Problem::from_error(Code::BadConfig, format_args!("read {}", path.display()), &e).remedy(GIVE)
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, Problem> {
        let bad =
            |what: String| Problem::new(Code::BadConfig, format!("{}: {what}", path.display())).remedy(HINT.to_owned());
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| text[..span.start].matches('\n').count() + 1);
            bad(line.map_or_else(|| e.message().to_owned(), |n| format!("line {n}: {}", e.message())))
        })?;
        if file.endpoints.is_empty() {
            return Err(bad("endpoints is empty".to_owned()));
        }
        if let Some(wrong) = file.endpoints.iter().find(|e| e.contains("://") || !e.contains(':')) {
            return Err(bad(format!("endpoint {wrong:?} is not host:port")));
        }
        let directory = path.parent().unwrap_or(Path::new(""));
        let files = CredentialFiles {
            ca: directory.join(file.ca),
            certificate: directory.join(file.certificate),
            key: directory.join(file.key),
        };
        Ok(Self {
            name: file.name,
            endpoints: file.endpoints,
            files,
            otlp: file.otlp,
            path,
        })
    }

    pub fn credentials(&self) -> Result<CredentialStore, Problem> {
        Credentials::load_store(&self.files).map_err(|e| {
            let problem = Problem::from_error(Code::BadCredentials, "use this operator's certificate", &e);
            problem.remedy("fix the file that the message names (keys: chmod 600); rollbackctl doctor checks all of it")
        })
    }

    /// Where spans go. The environment wins, as for every program that speaks OTLP.
    pub fn otlp_endpoint(&self) -> Option<String> {
        let from_env = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT")
            .ok()
            .filter(|v| !v.is_empty());
        from_env.or_else(|| self.otlp.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"prod\"\nendpoints = [\"coord-1:7443\"]\nca = \"ca.pem\"\ncertificate = \"cert.pem\"\n\
                        key = \"/secret/key.pem\"\n";

    fn parse(text: &str) -> Result<Context, Problem> {
        Context::parse(PathBuf::from("/home/ana/fleet/context.toml"), text)
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let context = parse(GOOD).expect("good");
        assert_eq!(context.files.ca, Path::new("/home/ana/fleet/ca.pem"));
        assert_eq!(context.files.key, Path::new("/secret/key.pem"));
    }

    #[test]
    fn says_where_the_file_is_wrong() {
        for (text, wanted) in [
            (format!("{GOOD}endpoint = \"x\"\n"), "line 6: unknown field `endpoint`"),
            (GOOD.replace("name = \"prod\"\n", ""), "missing field `name`"),
            (GOOD.replace("\"coord-1:7443\"", ""), "endpoints is empty"),
            (GOOD.replace("coord-1:7443", "https://coord-1:7443"), "is not host:port"),
        ] {
            let problem = parse(&text).expect_err(wanted);
            assert_eq!(problem.code, Code::BadConfig);
            assert!(
                problem.message.contains(wanted),
                "{wanted:?} is not in {:?}",
                problem.message
            );
        }
    }

    #[test]
    fn looks_where_it_says() {
        let env = |key: &str| match key {
            "HOME" => Some(OsString::from("/home/ana")),
            _ => None,
        };
        let expected = [
            PathBuf::from("/home/ana/.config/rollbackctl/context.toml"),
            PathBuf::from("/etc/rollbackctl/context.toml"),
        ];
        assert_eq!(candidates(env), expected);
    }
}
