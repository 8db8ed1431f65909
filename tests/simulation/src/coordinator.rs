//! A simulated replica: the real replica, inventory and API over the simulated network and the simulated way to the store.

use std::sync::Arc;
use std::time::Duration;

use rollback_coordinator::api::Api;
use rollback_coordinator::inventory::Inventory;
use rollback_coordinator::metrics::Metrics;
use rollback_coordinator::replica::{Parts, Replica};
use rollback_coordinator::store::{Candidate, Store};
use rollback_proto::v1::fleet_server::FleetServer;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::network::{self, Plain};
use crate::seed::{Coordinator, PORT};
use crate::world::World;

/// The host's software: one process. Whoever runs the simulation starts the next one when it has ended.
pub async fn run(world: Arc<World>, coordinator: Coordinator) -> turmoil::Result {
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
    let api = Api::new(replica.clone(), Arc::clone(&world.credentials), None, Duration::ZERO);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(FleetServer::new(api))
        .serve_with_incoming_shutdown(network::listen().await?, stop.clone().cancelled_owned());
    let serving = tokio::spawn(serving);
    replica.run().await;
    // Connections end with the process.
    serving.abort();
    Ok(())
}
