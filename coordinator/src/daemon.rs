//! The running coordinator: everything put together, and taken down in order.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rollback_engine::ids::Epoch;
use rollback_proto::telemetry::{self, Settings};
use rollback_proto::tls::Credentials;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::config::Config;
use crate::dispatcher::Dispatcher;
use crate::inventory::Inventory;
use crate::issuer::CertificateAuthority;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::runner::Shared;
use crate::store::sqlite::SqliteStore;
use crate::store::{Campaign, Candidate, Store};

/// Runs until a signal, or until the journal cannot be gone on with. Running rollbacks are left as they stand in the
/// journal; the next start goes on with them.
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
    let store: Arc<dyn Store> = Arc::new(
        SqliteStore::open(&config.database())
            .await
            .with_context(|| format!("open the store {}", config.database().display()))?,
    );
    // Ports before leadership: a coordinator that cannot serve must not fence the one that can.
    let grpc = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    let http = TcpListener::bind(config.http)
        .await
        .with_context(|| format!("listen on {}", config.http))?;
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);

    let candidate = Candidate {
        id: config.name.clone(),
        endpoint: config.advertised(),
    };
    let Campaign::Won(epoch) = store
        .campaign(&candidate, config.leadership.ttl, Epoch(0))
        .await
        .context("take the lead")?
    else {
        anyhow::bail!("somebody else leads");
    };
    let inventory = Inventory::load(
        store.as_ref(),
        Arc::clone(&credentials),
        config.agents.heartbeat,
        tasks.clone(),
        stop.clone(),
    )
    .await
    .context("load the agents")?;
    let leader = Leader::new(Shared {
        dispatcher: Dispatcher::new(Arc::clone(&inventory), epoch, config.name.clone()),
        store,
        epoch,
        tracer: telemetry.tracer(),
        metrics: Arc::new(Metrics::default()),
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let taken_up = leader.take_up().await?;
    tracing::info!(name = config.name, epoch = epoch.0, %grpc_address, %http_address, taken_up, "coordinator leads");

    let lifetime = config
        .issuer
        .as_ref()
        .map(|i| i.agent_certificate_lifetime)
        .unwrap_or_default();
    let api = Api::new(leader.clone(), Arc::clone(&inventory), credentials, issuer, lifetime);
    let mut api = tasks.spawn(api.serve(grpc));
    let mut pages = tasks.spawn(crate::http::serve(http, leader, inventory, stop.clone()));
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
        () = stop.cancelled() => Err(anyhow::anyhow!("the journal cannot be gone on with; see the log")),
        ended = &mut api => ended.context("gRPC server")?.context("gRPC server"),
        ended = &mut pages => ended.context("HTTP server")?.context("HTTP server"),
    };
    tracing::info!("stopping");
    stop.cancel();
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
