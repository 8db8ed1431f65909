//! The web service: health, version, deals; a POST adds a deal.
//!
//! Its environment: PORT and GREETING; HOST, where 127.0.0.1 will not do; DATABASE_URL. Without that there are no deals,
//! and health says nothing of a schema: the same program then serves from a container image or an archive alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::installation::Installation;

/// At a fault that holds the start up.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

type Answer = (StatusCode, Json<Value>);

struct Service {
    installation: Installation,
    greeting: String,
    pool: Option<PgPool>,
    queries: AtomicU64,
}

/// Serves until SIGTERM; requests under way are answered first.
pub fn serve(installation: Installation) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(installation.clone()));
    installation.note("stop")?;
    result
}

async fn run(installation: Installation) -> Result<()> {
    // First of all: in a container we are PID 1, for which a signal without a handler is lost.
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    installation.note("start")?;
    tokio::select! {
        _ = term.recv() => return Ok(()),
        () = may_start(&installation) => {}
    }
    let var = |name: &str| std::env::var(name).with_context(|| format!("the environment lacks {name}"));
    let pool = match std::env::var("DATABASE_URL") {
        Err(_) => None,
        Ok(url) => Some(
            PgPoolOptions::new()
                .max_connections(4)
                .acquire_timeout(Duration::from_secs(2))
                .connect_lazy(&url)
                .context("read DATABASE_URL")?,
        ),
    };
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let address = format!("{host}:{}", var("PORT")?);
    let service = Service {
        installation,
        greeting: var("GREETING")?,
        pool,
        queries: AtomicU64::new(0),
    };
    let router = Router::new()
        .route("/api/health", get(health))
        .route("/health", get(health))
        .route("/api/version", get(version))
        .route("/api/deals", get(deals).post(add_deal))
        .with_state(Arc::new(service));
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    let until_asked = async move {
        term.recv().await;
    };
    axum::serve(listener, router)
        .with_graceful_shutdown(until_asked)
        .await
        .context("serve")
}

/// The start takes as long as the experiment wants it to.
async fn may_start(installation: &Installation) {
    tokio::time::sleep(installation.fault().start_delay()).await;
    while installation.fault().start_held {
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

fn failed(error: impl std::fmt::Display) -> Answer {
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        Json(json!({ "error": error.to_string() })),
    )
}

/// 200 only if the database, where there is one, answers and its schema is one that this version can live with.
async fn health(State(service): State<Arc<Service>>) -> Answer {
    let release = &service.installation.release;
    if service.installation.fault().unhealthy {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "unhealthy", "version": release.version })),
        );
    }
    let healthy = || {
        (
            StatusCode::OK,
            Json(json!({ "status": "ok", "version": release.version })),
        )
    };
    let Some(pool) = &service.pool else { return healthy() };
    let schema = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version)::bigint FROM schema_migrations");
    match schema.fetch_one(pool).await {
        Ok(Some(schema)) if (release.schema..=release.schema_at_most.unwrap_or(release.schema)).contains(&schema) => {
            healthy()
        }
        Ok(found) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "schema", "wanted": release.schema, "found": found })),
        ),
        Err(error) => failed(error),
    }
}

async fn version(State(service): State<Arc<Service>>) -> Answer {
    let version = &service.installation.release.version;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let answer = json!({
        "version": version,
        "greeting": service.greeting,
        "pid": std::process::id(),
        "host": host.trim(),
    });
    (StatusCode::OK, Json(answer))
}

/// The newest deals. The bug of a faulty version fails every second query.
async fn deals(State(service): State<Arc<Service>>) -> Answer {
    if service.installation.release.faulty && service.queries.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
        return failed("deal stage is not a number");
    }
    let Some(pool) = &service.pool else {
        return failed("there is no database");
    };
    let query = match service.installation.release.schema {
        1 => "SELECT id, title, amount, NULL AS stage FROM deals ORDER BY id DESC LIMIT 20",
        _ => "SELECT id, title, amount, stage FROM deals ORDER BY id DESC LIMIT 20",
    };
    match sqlx::query_as::<_, (i64, String, i64, Option<String>)>(query)
        .fetch_all(pool)
        .await
    {
        Ok(rows) => {
            let deal =
                |(id, title, amount, stage)| json!({ "id": id, "title": title, "amount": amount, "stage": stage });
            (StatusCode::OK, Json(rows.into_iter().map(deal).collect()))
        }
        Err(error) => failed(error),
    }
}

#[derive(Debug, Deserialize)]
struct NewDeal {
    title: String,
}

/// 201 once the deal is committed: whoever got that may rely on it.
async fn add_deal(State(service): State<Arc<Service>>, Json(deal): Json<NewDeal>) -> Answer {
    let Some(pool) = &service.pool else {
        return failed("there is no database");
    };
    let insert = "INSERT INTO deals (owner, title, amount) SELECT min(id), $1, 1 FROM users RETURNING id";
    match sqlx::query_scalar::<_, i64>(insert)
        .bind(&deal.title)
        .fetch_one(pool)
        .await
    {
        Ok(id) => (StatusCode::CREATED, Json(json!({ "id": id }))),
        Err(error) => failed(error),
    }
}
