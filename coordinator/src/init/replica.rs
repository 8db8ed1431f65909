//! `rollback-coordinator replica`: a directory for another coordinator of the same fleet.
//!
//! It gets a certificate of its own from the fleet's CA, and everything that replicas must have in common (store, timing of the
//! lease, heartbeat) from the configuration of one that is there.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rollback_proto::identity::{Identity, PeerRole};
use rollback_proto::names::check_name;
use rollback_proto::tls::{CredentialFiles, Credentials};

use super::{CONFIG, PASSWORD, begin, make_private_dir, reached_at, read_password, write, write_config};
use crate::config::{Config, IssuerConfig, StoreConfig};
use crate::issuer::{CertificateAuthority, LONG_LIFETIME};

/// For agents and operators, unless another one is said.
const PORT: u16 = 7443;

#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Of a coordinator that is there, with its issuer.
    pub config: PathBuf,
    pub name: String,
    pub out: PathBuf,
    /// Where the directory will be on the replica's host; `None`: it stays where it is made.
    pub installed_at: Option<PathBuf>,
    /// `None`: every address, at the port of `endpoint`. Other hosts are to reach a replica.
    pub listen: Option<SocketAddr>,
    pub http: SocketAddr,
    /// host:port under which operators and agents reach it; `None`: the address where it listens.
    pub endpoint: Option<String>,
    /// Copy the CA's key, so that agents can enroll there.
    pub with_issuer: bool,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct MadeReplica {
    pub dir: PathBuf,
    /// The configuration's path on the replica's host.
    pub config: PathBuf,
    pub identity: Identity,
    pub endpoint: String,
    pub with_issuer: bool,
    /// The store's URL names files, which have to be on the replica's host, too.
    pub store_needs_files: bool,
}

pub fn replica(options: &ReplicaOptions) -> anyhow::Result<MadeReplica> {
    let of = Config::load(&options.config)?;
    let from = options.config.display();
    anyhow::ensure!(
        of.store.url.is_some(),
        "{from} has no [store] url: its journal is a SQLite file, which is for one coordinator alone. Replicas share a PostgreSQL \
         database; how to set them up: docs/high-availability.md"
    );
    let issuer = of.issuer.as_ref().with_context(|| {
        format!("{from} has no [issuer]: give the configuration of the coordinator that has the CA's key")
    })?;
    check_name("coordinator", &options.name)?;
    anyhow::ensure!(
        options.name != of.name,
        "{} is the name of the coordinator in {from} and exists already; every replica needs one of its own",
        of.name
    );
    let listen = options
        .listen
        .unwrap_or_else(|| everywhere(options.endpoint.as_deref()));
    let endpoint = reached_at(options.endpoint.as_deref(), listen)?;
    anyhow::ensure!(
        endpoint != of.advertised(),
        "{endpoint} is where {} is reached; every replica needs an endpoint of its own",
        of.name
    );
    if let Some(home) = options.installed_at.as_deref().filter(|home| !home.is_absolute()) {
        anyhow::bail!("--installed-at {} is not an absolute path", home.display());
    }
    let password = of.store.password_file.as_deref().map(read_password).transpose()?;
    let us = Credentials::load(&of.tls).context("credentials")?.us.identity;
    let ca = CertificateAuthority::load(&of.tls.ca, &issuer.key, &us.trust_domain)?;

    let dir = begin(&options.out, "--out")?;
    let pki = dir.join("pki");
    anyhow::ensure!(
        !is_same(&pki.join("server.key"), &of.tls.key),
        "{} is the directory of {from}; choose another --out",
        dir.display()
    );
    make_private_dir(&pki)?;
    make_private_dir(&dir.join("state"))?;
    write(&pki.join("ca.pem"), ca.ca_pem())?;
    let issued = ca.issue(PeerRole::Coordinator, &options.name, LONG_LIFETIME)?;
    write(&pki.join("server.pem"), &issued.certificate_pem)?;
    write(&pki.join("server.key"), &issued.key_pem)?;
    if options.with_issuer {
        let key = std::fs::read_to_string(&issuer.key).with_context(|| format!("read {}", issuer.key.display()))?;
        write(&pki.join("ca.key"), &key)?;
    }
    if let Some(password) = &password {
        write(&dir.join(PASSWORD), password)?;
    }

    // Paths as they will be there.
    let home = options.installed_at.clone().unwrap_or_else(|| dir.clone());
    let pki = home.join("pki");
    let store_needs_files = of.store.url.as_deref().is_some_and(names_files);
    let config = Config {
        name: options.name.clone(),
        listen,
        http: options.http,
        endpoint: Some(endpoint.clone()),
        state: home.join("state"),
        store: StoreConfig {
            password_file: password.is_some().then(|| home.join(PASSWORD)),
            url: of.store.url,
        },
        tls: CredentialFiles {
            ca: pki.join("ca.pem"),
            certificate: pki.join("server.pem"),
            key: pki.join("server.key"),
        },
        issuer: options.with_issuer.then(|| IssuerConfig {
            key: pki.join("ca.key"),
            agent_certificate_lifetime: issuer.agent_certificate_lifetime,
        }),
        leadership: of.leadership,
        agents: of.agents,
        releases: of.releases,
        readiness: of.readiness,
        telemetry: of.telemetry,
    };
    write_config(&dir.join(CONFIG), &config, "replica")?;
    Ok(MadeReplica {
        config: home.join(CONFIG),
        identity: Identity::new(&us.trust_domain, PeerRole::Coordinator, &options.name),
        endpoint,
        with_issuer: options.with_issuer,
        store_needs_files,
        dir,
    })
}

/// Where a replica listens of which only the endpoint was said. One that is no host:port is refused elsewhere.
fn everywhere(endpoint: Option<&str>) -> SocketAddr {
    let port = endpoint.and_then(|e| e.rsplit_once(':')?.1.parse().ok());
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.unwrap_or(PORT)))
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn names_files(url: &str) -> bool {
    ["sslrootcert=", "sslcert=", "sslkey="]
        .iter()
        .any(|key| url.contains(key))
}
