//! Many agents in one process, for figures of large fleets: each has a certificate of the fleet's CA, a server of its own and
//! the real executor. Only its components are in memory ([`ground`]), and so is its ledger.
//!
//! What is deployed comes by stdin, one order a line, and is answered by one line when it is done:
//! ```text
//! deploy v2.9.0        every component of every host runs this from now on
//! prune v2.8.0 3       the first three hosts have lost it
//! ```
//! It ends when stdin does.

mod ground;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rollback_agent::executor::{Executor, Limits, Parts};
use rollback_agent::ledger::memory::Memory;
use rollback_agent::registration::{Membership, stay_registered};
use rollback_agent::server::{Identity, serve};
use rollback_agent::vault::Vault;
use rollback_coordinator::issuer::CertificateAuthority;
use rollback_proto::identity::PeerRole;
use rollback_proto::tls::{CredentialFiles, CredentialStore, Credentials, install_crypto, write_private};
use rollback_proto::v1::RegisterRequest;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ground::{Ground, InMemory, Kind};

const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3600);

#[derive(Parser)]
#[command(about = "Many agents in one process")]
struct Options {
    /// host:port of the coordinator.
    #[arg(long)]
    coordinator: String,
    /// The directory that `rollback-coordinator init` made, with the CA's key.
    #[arg(long)]
    fleet: PathBuf,
    #[arg(long, default_value = "rollback.local")]
    trust_domain: String,
    #[arg(long)]
    agents: usize,
    /// Where the certificates are put.
    #[arg(long)]
    dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    install_crypto();
    let options = Options::parse();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let grounds = start(&options, &stop, &tasks).await?;
    say(&format!("started {}", grounds.len()))?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.context("read an order")? {
        say(&carry_out(&order, &grounds)?)?;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Starts every agent. They register by themselves.
async fn start(options: &Options, stop: &CancellationToken, tasks: &TaskTracker) -> Result<Vec<Ground>> {
    let pki = options.fleet.join("pki");
    let issuer = CertificateAuthority::load(&pki.join("ca.pem"), &pki.join("ca.key"), &options.trust_domain)?;
    // Nobody here keeps anything in it.
    let vault = Arc::new(Vault::open(options.dir.join("vault")).context("make the vault")?);
    let mut grounds = Vec::with_capacity(options.agents);
    for number in 1..=options.agents {
        let name = format!("host-{number:04}");
        let credentials = credentials(&issuer, &pki.join("ca.pem"), &options.dir, &name)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen")?;
        let address = listener.local_addr().context("look at the port")?.to_string();
        let ground = Ground::default();
        let ledger = Memory::new(name.as_str()).open();
        let generation = ledger.generation().to_owned();
        let executor = Executor::start(Parts {
            host: name.clone(),
            components: [Kind::Env, Kind::Api]
                .map(|kind| {
                    (
                        kind.name().to_owned(),
                        Arc::new(InMemory::new(kind, ground.clone())) as _,
                    )
                })
                .into(),
            vault: Arc::clone(&vault),
            ledger,
            limits: Limits::default(),
        });
        let member = Membership {
            coordinators: vec![options.coordinator.clone()],
            credentials: credentials.clone(),
            pki: options.dir.clone(),
            name: name.clone(),
            announcement: RegisterRequest {
                address,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ledger_generation: generation.clone(),
                components: executor.describe(),
                labels: std::iter::once(("tier".to_owned(), "app".to_owned())).collect(),
            },
            replaced: tokio::sync::watch::Sender::new(0),
        };
        let identity = Identity {
            name,
            ledger_generation: generation,
            labels: std::collections::BTreeMap::new(),
        };
        let (serving, registered) = (stop.clone(), stop.clone());
        tasks.spawn(serve(listener, credentials, identity, executor, serving));
        tasks.spawn(async move { stay_registered(&member, registered).await });
        grounds.push(ground);
    }
    Ok(grounds)
}

fn credentials(issuer: &CertificateAuthority, ca: &Path, dir: &Path, name: &str) -> Result<CredentialStore> {
    let issued = issuer.issue(PeerRole::Agent, name, CERTIFICATE_LIFETIME)?;
    let files = CredentialFiles {
        ca: ca.to_owned(),
        certificate: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
    };
    std::fs::write(&files.certificate, issued.certificate_pem).context("write a certificate")?;
    write_private(&files.key, issued.key_pem.as_bytes()).context("write a key")?;
    Credentials::load_store(&files).with_context(|| format!("load the credentials of {name}"))
}

fn carry_out(order: &str, grounds: &[Ground]) -> Result<String> {
    let words: Vec<&str> = order.split_whitespace().collect();
    match words.as_slice() {
        ["deploy", version] => {
            for ground in grounds {
                ground.deploy(version);
            }
            Ok(format!("deployed {version}"))
        }
        ["prune", version, hosts] => {
            let hosts: usize = hosts.parse().context("read the number of hosts")?;
            for ground in grounds.iter().take(hosts) {
                ground.prune(version);
            }
            Ok(format!("pruned {version}"))
        }
        _ => bail!("there is no such order: {order}"),
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("answer")
}
