//! A simulated replica: the real replica, inventory and API over the simulated network and the simulated way to the store.

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::api::Api;
use rollback_coordinator::inventory::Inventory;
use rollback_coordinator::metrics::Metrics;
use rollback_coordinator::replica::{Parts, Replica};
use rollback_coordinator::store::{Candidate, Store};
use rollback_proto::identity::{Identity, Peer, PeerRole};
use rollback_proto::tls::{CredentialStore, Credentials};
use rollback_proto::v1::fleet_server::FleetServer;
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::network::{self, Plain, TRUST_DOMAIN};
use crate::seed::{Coordinator, PORT};
use crate::world::World;

/// Between the end of a process and the start of the next one, as a service manager does it.
const RESTART: Duration = Duration::from_millis(500);

/// The host's software: a process after the other.
pub async fn run(world: Arc<World>, coordinator: Coordinator) -> turmoil::Result {
    loop {
        process(&world, &coordinator).await?;
        tokio::time::sleep(RESTART).await;
    }
}

async fn process(world: &Arc<World>, coordinator: &Coordinator) -> turmoil::Result {
    let name = &coordinator.name;
    let stop = world.start(name);
    let tasks = TaskTracker::new();
    let store: Arc<dyn Store> = Arc::new(world.store_link(name).clone());
    // A process that cannot read the store ends, and is started again.
    let loaded = Inventory::load(
        store.as_ref(),
        Arc::new(Plain),
        Duration::from_secs(5),
        tasks.clone(),
        stop.clone(),
    );
    let Ok(inventory) = loaded.await else {
        return Ok(());
    };
    let replica = Replica::new(Parts {
        store,
        inventory,
        candidate: Candidate {
            id: format!("{name}/{}", world.incarnation()),
            endpoint: format!("{name}:{PORT}"),
        },
        timing: coordinator.timing.clone(),
        tracer: None,
        metrics: Arc::new(Metrics::default()),
        stop: stop.clone(),
    });
    let api = Api::new(replica.clone(), credentials(name), None, Duration::ZERO);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(FleetServer::new(api))
        .serve_with_incoming_shutdown(network::listen().await?, stop.clone().cancelled_owned());
    let serving = tokio::spawn(serving);
    replica.run().await;
    // Who stops waits for its connections only so long.
    if let Ok(ended) = tokio::time::timeout(Duration::from_secs(2), serving).await {
        ended??;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Nobody looks at them, but for the name and the trust domain.
fn credentials(name: &str) -> CredentialStore {
    let us = Peer {
        identity: Identity::new(TRUST_DOMAIN, PeerRole::Coordinator, name),
        ..network::operator()
    };
    CredentialStore::new(
        Credentials {
            roots: Arc::new(RootCertStore::empty()),
            chain: Vec::new(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(Vec::new())),
            us,
        }
        .into(),
    )
}

/// What a process is told to stop by.
pub type Stop = CancellationToken;
