//! `rollback-coordinator init`: a CA, credentials, a configuration and the first operator, in one directory.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rollback_proto::identity::PeerRole;
use rollback_proto::tls::{CredentialFiles, write_private};

use crate::config::{AgentsConfig, Config, IssuerConfig, LeadershipConfig, StoreConfig, TelemetryConfig};
use crate::issuer::{CertificateAuthority, LONG_LIFETIME};

#[derive(Clone, Debug)]
pub struct InitOptions {
    pub dir: PathBuf,
    pub name: String,
    pub trust_domain: String,
    pub operator: String,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    /// host:port under which operators and agents reach it.
    pub endpoint: String,
    pub otlp: Option<String>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Initialized {
    pub config: PathBuf,
    pub operator_context: PathBuf,
    pub ca_fingerprint: String,
}

/// Makes everything that a first coordinator needs. Refuses a directory that has a configuration; after a crash in the
/// middle it can be run again, since the configuration is written last.
pub fn init(options: &InitOptions) -> anyhow::Result<Initialized> {
    let config_path = options.dir.join("coordinator.toml");
    anyhow::ensure!(
        !config_path.exists(),
        "{} exists; a coordinator was set up here before. Choose another --dir, or remove it",
        config_path.display()
    );
    // An absolute path in the configuration works from every working directory.
    make_private_dir(&options.dir)?;
    let dir = options
        .dir
        .canonicalize()
        .with_context(|| format!("find {}", options.dir.display()))?;
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
        &options.endpoint,
        options.otlp.as_deref(),
    )?;

    let config = Config {
        name: options.name.clone(),
        listen: options.listen,
        http: options.http,
        endpoint: Some(options.endpoint.clone()),
        state,
        store: StoreConfig::default(),
        leadership: LeadershipConfig::default(),
        tls,
        issuer: Some(IssuerConfig {
            key: issuer_key,
            agent_certificate_lifetime: std::time::Duration::from_secs(72 * 3600),
        }),
        agents: AgentsConfig::default(),
        telemetry: TelemetryConfig {
            otlp: options.otlp.clone(),
            ..TelemetryConfig::default()
        },
    };
    let text = toml::to_string(&config).context("write the configuration")?;
    let text =
        format!("# Made by `rollback-coordinator init`. Every key is described in the example configuration.\n{text}");
    write(&config_path, &text)?;
    Ok(Initialized {
        config: config_path,
        operator_context,
        ca_fingerprint: ca.ca_fingerprint().to_owned(),
    })
}

/// Certificate, key and context of an operator, in a directory that can be handed over. Returns the context file.
pub fn write_operator(
    ca: &CertificateAuthority,
    dir: &Path,
    name: &str,
    endpoint: &str,
    otlp: Option<&str>,
) -> anyhow::Result<PathBuf> {
    let issued = ca.issue(PeerRole::Operator, name, LONG_LIFETIME)?;
    make_private_dir(dir)?;
    write(&dir.join("ca.pem"), ca.ca_pem())?;
    write(&dir.join("cert.pem"), &issued.certificate_pem)?;
    write(&dir.join("key.pem"), &issued.key_pem)?;
    let mut context = toml::Table::new();
    context.insert("name".into(), ca.trust_domain().into());
    context.insert("endpoints".into(), toml::Value::Array(vec![endpoint.into()]));
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
