//! Directories with credentials: `init` makes a fleet's first coordinator (a CA, credentials, a configuration and the first
//! operator), [`replica`] another coordinator of the same fleet, `operator` another operator. [`check`] looks at what is there.
//!
//! Invariants:
//! - Directories are made 0700, files 0600 from their first byte on.
//! - A directory that has a configuration is never touched. The configuration is written last, so that whoever was stopped in
//!   the middle can begin again.
//! - No password comes in by a command line: only the name of a file that has it.

pub mod check;
pub mod replica;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rollback_proto::identity::PeerRole;
use rollback_proto::tls::{CredentialFiles, write_private};

use crate::config::{
    AgentsConfig, Config, IssuerConfig, LeadershipConfig, ReadinessConfig, StoreConfig, TelemetryConfig,
};
use crate::issuer::{CertificateAuthority, LONG_LIFETIME};
use crate::retention::ReleasesConfig;

#[derive(Clone, Debug)]
pub struct InitOptions {
    pub dir: PathBuf,
    pub name: String,
    pub trust_domain: String,
    pub operator: String,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    /// host:port under which operators and agents reach it; `None`: the address where it listens.
    pub endpoint: Option<String>,
    pub otlp: Option<String>,
    /// `None`: SQLite in this directory.
    pub store_url: Option<String>,
    /// Copied into the directory.
    pub store_password_file: Option<PathBuf>,
}

/// The copy of the database's password, in the directory of the coordinator that uses it.
const PASSWORD: &str = "store.password";
/// Its configuration.
const CONFIG: &str = "coordinator.toml";

/// What was made.
#[derive(Clone, Debug)]
pub struct Initialized {
    pub config: PathBuf,
    pub operator_context: PathBuf,
    pub ca_fingerprint: String,
}

/// Makes everything that a first coordinator needs.
pub fn init(options: &InitOptions) -> anyhow::Result<Initialized> {
    let endpoint = reached_at(options.endpoint.as_deref(), options.listen)?;
    let store = StoreConfig {
        url: options.store_url.clone(),
        password_file: None,
    };
    store.url.as_deref().map_or(Ok(()), check_store_url)?;
    let password = options.store_password_file.as_deref().map(read_password).transpose()?;
    let dir = begin(&options.dir, "--dir")?;
    let config_path = dir.join(CONFIG);
    let (pki, state) = (dir.join("pki"), dir.join("state"));
    make_private_dir(&pki)?;
    make_private_dir(&state)?;

    let (ca, ca_key) = CertificateAuthority::create(&options.trust_domain)?;
    let tls = CredentialFiles {
        ca: pki.join("ca.pem"),
        certificate: pki.join("server.pem"),
        key: pki.join("server.key"),
    };
    let issuer_key = pki.join("ca.key");
    write(&issuer_key, &ca_key)?;
    write(&tls.ca, ca.ca_pem())?;
    let server = ca.issue(PeerRole::Coordinator, &options.name, LONG_LIFETIME)?;
    write(&tls.certificate, &server.certificate_pem)?;
    write(&tls.key, &server.key_pem)?;
    let operators = dir.join("operators");
    let operator_context = write_operator(
        &ca,
        &operators.join(&options.operator),
        &options.operator,
        std::slice::from_ref(&endpoint),
        options.otlp.as_deref(),
    )?;
    let password_file = dir.join(PASSWORD);
    if let Some(password) = &password {
        write(&password_file, password)?;
    }

    let config = Config {
        name: options.name.clone(),
        listen: options.listen,
        http: options.http,
        endpoint: Some(endpoint),
        state,
        store: StoreConfig {
            password_file: password.is_some().then_some(password_file),
            ..store
        },
        leadership: LeadershipConfig::default(),
        tls,
        issuer: Some(IssuerConfig {
            key: issuer_key,
            agent_certificate_lifetime: std::time::Duration::from_secs(72 * 3600),
        }),
        agents: AgentsConfig::default(),
        releases: ReleasesConfig::default(),
        readiness: ReadinessConfig::default(),
        telemetry: TelemetryConfig {
            otlp: options.otlp.clone(),
            ..TelemetryConfig::default()
        },
    };
    write_config(&config_path, &config, "init")?;
    Ok(Initialized {
        config: config_path,
        operator_context,
        ca_fingerprint: ca.ca_fingerprint().to_owned(),
    })
}

/// Certificate, key and context of an operator, in a directory that can be handed over. `endpoints` are those of all
/// replicas. Returns the context file.
pub fn write_operator(
    ca: &CertificateAuthority,
    dir: &Path,
    name: &str,
    endpoints: &[String],
    otlp: Option<&str>,
) -> anyhow::Result<PathBuf> {
    endpoints.iter().try_for_each(|e| check_endpoint(e))?;
    let issued = ca.issue(PeerRole::Operator, name, LONG_LIFETIME)?;
    make_private_dir(dir)?;
    write(&dir.join("ca.pem"), ca.ca_pem())?;
    write(&dir.join("cert.pem"), &issued.certificate_pem)?;
    write(&dir.join("key.pem"), &issued.key_pem)?;
    let mut context = toml::Table::new();
    context.insert("name".into(), ca.trust_domain().into());
    let endpoints = endpoints.iter().map(|e| e.as_str().into()).collect();
    context.insert("endpoints".into(), toml::Value::Array(endpoints));
    context.insert("ca".into(), "ca.pem".into());
    context.insert("certificate".into(), "cert.pem".into());
    context.insert("key".into(), "key.pem".into());
    if let Some(otlp) = otlp {
        context.insert("otlp".into(), otlp.into());
    }
    let path = dir.join("context.toml");
    write(&path, &context.to_string())?;
    Ok(path)
}

/// Makes the directory, private, and answers with its absolute path: that works from every working directory.
fn begin(dir: &Path, option: &str) -> anyhow::Result<PathBuf> {
    let config = dir.join(CONFIG);
    anyhow::ensure!(
        !config.exists(),
        "{} exists; a coordinator was set up here before. Choose another {option}, or remove it",
        config.display()
    );
    make_private_dir(dir)?;
    dir.canonicalize().with_context(|| format!("find {}", dir.display()))
}

fn write_config(path: &Path, config: &Config, made_by: &str) -> anyhow::Result<()> {
    let text = toml::to_string(config).context("write the configuration")?;
    write(
        path,
        &format!(
            "# Made by `rollback-coordinator {made_by}`. Every key is described in the example configuration.\n{text}"
        ),
    )
}

/// Where others reach a coordinator that listens there.
fn reached_at(endpoint: Option<&str>, listen: SocketAddr) -> anyhow::Result<String> {
    match endpoint {
        Some(endpoint) => check_endpoint(endpoint).map(|()| endpoint.to_owned()),
        None if listen.ip().is_unspecified() => anyhow::bail!(
            "{listen} is where it listens, and nobody can connect to that from another host. Say under which host:port it \
             is reached: --endpoint"
        ),
        None => Ok(listen.to_string()),
    }
}

fn check_endpoint(endpoint: &str) -> anyhow::Result<()> {
    let parts = endpoint.rsplit_once(':');
    let is_good =
        !endpoint.contains("://") && parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    anyhow::ensure!(is_good, "endpoint {endpoint:?} is not host:port, as in coord-1:7443");
    Ok(())
}

/// Refuses a URL that has a password: whoever is on this host can read command lines.
fn check_store_url(url: &str) -> anyhow::Result<()> {
    let (_, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| ["postgres", "postgresql"].contains(scheme))
        .context(
            "the store's URL is to be one of PostgreSQL: postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full",
        )?;
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split_once('/').map_or(place, |(authority, _)| authority);
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let has_password = user.contains(':') || parameters.split('&').any(|p| p.starts_with("password="));
    anyhow::ensure!(
        !has_password,
        "the store's URL has a password, which everybody on this host can read in the list of processes. Change it, write the new \
         one to a file (chmod 600), and give that: --store-password-file"
    );
    Ok(())
}

fn read_password(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the password's file {}", path.display()))?;
    anyhow::ensure!(
        !text.trim().is_empty(),
        "the password's file {} is empty",
        path.display()
    );
    Ok(text)
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    write_private(path, content.as_bytes()).with_context(|| format!("write {}", path.display()))
}
