//! The running coordinator: everything put together, and taken down in order.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use rollback_proto::telemetry::{self, Settings};
use rollback_proto::tls::Credentials;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::config::Config;
use crate::inventory::{Inventory, MutualTls};
use crate::issuer::CertificateAuthority;
use crate::metrics::Metrics;
use crate::replica::{Parts, Replica};
use crate::store::{self, Candidate, FleetId};

/// Runs until a signal. Running rollbacks are left as they stand in the journal; the replica that leads next, or the next
/// start, goes on with them.
pub async fn run(config: Config, ready_file: Option<&Path>) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&Settings {
        service: "rollback-coordinator",
        instance: config.name.clone(),
        otlp_endpoint: config.telemetry.otlp.clone(),
        log: config.telemetry.log.clone(),
        json: config.telemetry.json,
    })
    .context("start telemetry")?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();

    let credentials = Credentials::load_store(&config.tls).context("load credentials")?;
    let trust_domain = credentials.load().us.identity.trust_domain.clone();
    let issuer = match &config.issuer {
        Some(issuer) => Some(Arc::new(CertificateAuthority::load(
            &config.tls.ca,
            &issuer.key,
            &trust_domain,
        )?)),
        None => None,
    };
    // Who would not be obeyed must not lead.
    credentials
        .load()
        .check_own(SystemTime::now())
        .context("check our own certificate")?;
    let store = store::open(&config).await.context("open the store")?;
    let fleet = FleetId {
        trust_domain,
        ca: credentials.load().ca_fingerprints.clone(),
    };
    store.join(&fleet).await.context("open the store")?;
    // Ports before leadership: a coordinator that cannot serve must not fence the one that can.
    let grpc = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    let http = TcpListener::bind(config.http)
        .await
        .with_context(|| format!("listen on {}", config.http))?;
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);

    let inventory = Inventory::load(
        store.as_ref(),
        Arc::new(MutualTls(Arc::clone(&credentials))),
        config.agents.heartbeat,
        tasks.clone(),
        stop.clone(),
    )
    .await
    .context("load the agents")?;
    let replica = Replica::new(Parts {
        store,
        inventory,
        candidate: Candidate {
            id: format!("{}/{}", config.name, uuid::Uuid::now_v7()),
            endpoint: match &config.endpoint {
                Some(endpoint) => endpoint.clone(),
                // The port may have been chosen by the system.
                None => grpc_address.to_string(),
            },
        },
        timing: config.leadership.clone(),
        tracer: telemetry.tracer(),
        metrics: Arc::new(Metrics::default()),
        stop: stop.clone(),
    });
    let leading = tasks.spawn({
        let replica = replica.clone();
        async move { replica.run().await }
    });
    tasks.spawn(crate::converge::keep(replica.clone()));
    tasks.spawn(crate::readiness::keep(replica.clone(), config.readiness.clone()));
    tracing::info!(name = config.name, %grpc_address, %http_address, "coordinator serves");

    let lifetime = config
        .issuer
        .as_ref()
        .map(|i| i.agent_certificate_lifetime)
        .unwrap_or_default();
    let api = Api::new(replica.clone(), credentials, issuer, lifetime).retaining(config.releases, &config.readiness);
    let mut api = tasks.spawn(api.serve(grpc));
    let mut pages = tasks.spawn(crate::http::serve(http, replica.clone(), stop.clone()));
    replica.settled().await;
    if let Some(path) = ready_file {
        let ready = serde_json::json!({
            "grpc": grpc_address.to_string(),
            "http": http_address.to_string(),
            "pid": std::process::id(),
        });
        write_atomically(path, ready.to_string().as_bytes()).with_context(|| format!("write {}", path.display()))?;
    }

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        ended = &mut api => ended.context("gRPC server")?.context("gRPC server"),
        ended = &mut pages => ended.context("HTTP server")?.context("HTTP server"),
    };
    tracing::info!("stopping");
    stop.cancel();
    // First of all: others wait for the lease.
    drop(leading.await);
    tasks.close();
    // Watch streams end with `stop`; a peer that does not hang up must not keep us.
    if tokio::time::timeout(std::time::Duration::from_secs(5), tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some tasks did not end in time");
    }
    // Sending the last spans blocks.
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
    result
}

fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temp = path.with_extension("new");
    std::fs::write(&temp, content)?;
    std::fs::rename(&temp, path)
}
