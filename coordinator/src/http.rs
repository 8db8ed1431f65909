//! Health, readiness and metrics over plain HTTP.
//!
//! `/healthz`: the process answers. `/readyz`: it leads and its store takes reads. `/metrics`: Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::inventory::Inventory;
use crate::leader::Leader;

#[derive(Clone)]
struct Served {
    leader: Leader,
    inventory: Arc<Inventory>,
}

/// Serves until `stop` is cancelled.
pub async fn serve(
    listener: TcpListener,
    leader: Leader,
    inventory: Arc<Inventory>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Served { leader, inventory });
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

async fn ready(State(served): State<Served>) -> Response {
    let shared = served.leader.shared();
    if shared.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    match shared.store.running().await {
        Ok(_) => {
            let damaged = served.leader.damaged();
            let mut text = format!("leading with epoch {}\n", shared.epoch.0);
            for id in damaged {
                text.push_str(&format!(
                    "rollback {id} cannot be gone on with: its journal cannot be read\n"
                ));
            }
            text.into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("store: {error}\n")).into_response(),
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    let metrics = &served.leader.shared().metrics;
    let agents = served.inventory.list();
    let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.agents_registered.set(gauge(agents.len()));
    metrics
        .agents_connected
        .set(gauge(agents.iter().filter(|a| a.connected).count()));
    metrics.rollbacks_running.set(gauge(served.leader.running_count()));
    metrics
        .epoch
        .set(i64::try_from(served.leader.shared().epoch.0).unwrap_or(i64::MAX));
    match metrics.encode() {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
