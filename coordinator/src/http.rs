//! Health, readiness and metrics over plain HTTP.
//!
//! `/healthz`: the process answers. `/readyz`: its store takes reads, and it leads or knows who does; it says which.
//! `/metrics`: Prometheus.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::leader::Leader;
use crate::replica::{Replica, Standing, name_of};

/// Whoever asks whether we are ready has little patience, often a second.
const STORE_ANSWERS: Duration = Duration::from_millis(300);

#[derive(Clone)]
struct Served {
    replica: Replica,
    /// One probe at a time asks the store: nobody needs a certificate to ask us, and rollbacks wait for the same connections.
    asking: Arc<Mutex<()>>,
}

/// Serves until `stop` is cancelled.
pub async fn serve(listener: TcpListener, replica: Replica, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Served {
            replica,
            asking: Arc::default(),
        });
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
}

/// Ready is who can answer: a follower answers what reads, and knows who answers the rest.
async fn ready(State(served): State<Served>) -> Response {
    let standing = served.replica.standing();
    let store = &served.replica.parts().store;
    let mut text = match &standing {
        Standing::Leading(leader) => format!("leading with epoch {}\n", leader.shared().term.epoch().0),
        Standing::Following { lease: Some(lease), .. } => format!(
            "following {} at {}, epoch {}\n",
            name_of(&lease.leader),
            lease.endpoint,
            lease.epoch.0
        ),
        Standing::Following { lease: None, .. } => "following nobody\n".to_owned(),
        Standing::Stopping => String::new(),
    };
    let known = match &standing {
        Standing::Leading(_) | Standing::Following { lease: Some(_), .. } => true,
        Standing::Following { lease: None, .. } | Standing::Stopping => false,
    };
    let note = standing.note();
    if !note.is_empty() {
        text.push_str(&format!("{note}\n"));
    }
    let ask = async {
        let _asking = served.asking.lock().await;
        store.running().await
    };
    let answers = match tokio::time::timeout(STORE_ANSWERS, ask).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            text.push_str(&format!("store: {error}\n"));
            false
        }
        Err(_) => {
            text.push_str(&format!("store: no answer within {STORE_ANSWERS:?}\n"));
            false
        }
    };
    if known && answers {
        text.into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    let metrics = &served.replica.parts().metrics;
    let standing = served.replica.standing();
    let agents = served.replica.parts().inventory.list();
    let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let leader = standing.leader();
    metrics.agents_registered.set(gauge(agents.len()));
    metrics
        .agents_connected
        .set(gauge(agents.iter().filter(|a| a.connected).count()));
    metrics
        .rollbacks_running
        .set(gauge(leader.map_or(0, Leader::running_count)));
    metrics.leading.set(i64::from(leader.is_some()));
    let epoch = leader.map(|leader| leader.shared().term.epoch());
    let epoch = epoch.or(standing.lease().map(|lease| lease.epoch));
    metrics
        .epoch
        .set(epoch.map_or(0, |epoch| i64::try_from(epoch.0).unwrap_or(i64::MAX)));
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
