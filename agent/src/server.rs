//! The agent's gRPC server: who calls, and what the call becomes.
//!
//! Invariants:
//! - Every call of every connection is checked ([`authority`]): a coordinator of our trust domain whose certificate has
//!   not expired since the connection was opened. Everybody else is refused.
//! - Handlers do nothing themselves: steps and `retain` run in tasks of the executor. A broken stream stops nothing.
//! - Messages, streams and calls of a connection are bounded.

mod authority;

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use rollback_proto::problem::Problem;
use rollback_proto::tls::{ClientCertificate, CredentialStore, incoming};
use rollback_proto::v1::agent_server::{Agent, AgentServer};
use rollback_proto::v1::execute_event::Event;
use rollback_proto::v1::{
    DescribeRequest, DescribeResponse, ExecuteEvent, ExecuteRequest, ForgetRequest, ForgetResponse, ObserveRequest,
    ObserveResponse, RecallRequest, RecallResponse, ResolveRequest, ResolveResponse, RetainRequest, RetainResponse,
};
use rollback_proto::{kill_point, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use self::authority::Authority;
use crate::executor::{Events, Executor};

/// A step's request is a few hundred bytes; an answer with many findings some hundred kilobytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Calls that one connection has open. A coordinator sends one step for each component.
const MAX_CALLS: usize = 64;
/// A coordinator whose host died is found out in the sum of both.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// What the agent says of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: String,
    pub ledger_generation: String,
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Serves until `stop` is cancelled and the streams that are open then have ended.
pub async fn serve(
    listener: TcpListener,
    credentials: CredentialStore,
    identity: Identity,
    executor: Executor,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = service(identity, executor);
    let authority = Authority::new(credentials.clone());
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .max_concurrent_streams(u32::try_from(MAX_CALLS).ok())
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .http2_max_header_list_size(16 * 1024)
        .add_service(InterceptedService::new(service, authority))
        .serve_with_incoming_shutdown(
            incoming(listener, credentials, ClientCertificate::Required, stop.clone()),
            stop.cancelled(),
        )
        .await
}

/// What [`serve`] serves, without the question who calls: for simulations, which have a network of their own.
pub fn service(identity: Identity, executor: Executor) -> AgentServer<Service> {
    AgentServer::new(Service { identity, executor })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// The agent's side of the calls.
#[derive(Debug)]
pub struct Service {
    identity: Identity,
    executor: Executor,
}

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(&self, _request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse {
            name: self.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ledger_generation: self.identity.ledger_generation.clone(),
            components: self.executor.describe(),
            labels: self.identity.labels.clone().into_iter().collect(),
        }))
    }

    async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<ObserveResponse>, Status> {
        let span = tracing::info_span!("agent_observe", host = %self.identity.name);
        telemetry::continue_trace(&span, request.metadata());
        let states = self
            .executor
            .observe(request.into_inner().components)
            .instrument(span)
            .await?;
        Ok(Response::new(ObserveResponse { states }))
    }

    async fn retain(&self, request: Request<RetainRequest>) -> Result<Response<RetainResponse>, Status> {
        received("retain");
        let (metadata, _, request) = request.into_parts();
        // The names are not checked yet, so they are no fields of the span.
        let span = tracing::info_span!("agent_retain", host = %self.identity.name);
        telemetry::continue_trace(&span, &metadata);
        let retained = self
            .executor
            .retain(request.component, request.release)
            .instrument(span)
            .await?;
        answering("retain");
        Ok(Response::new(retained))
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        received("resolve");
        let (metadata, _, request) = request.into_parts();
        let span = tracing::info_span!("agent_resolve", host = %self.identity.name);
        telemetry::continue_trace(&span, &metadata);
        let resolved = self
            .executor
            .resolve(request.component, request.release)
            .instrument(span)
            .await?;
        answering("resolve");
        Ok(Response::new(resolved))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        received("forget");
        let (metadata, _, request) = request.into_parts();
        let span = tracing::info_span!("agent_forget", host = %self.identity.name);
        telemetry::continue_trace(&span, &metadata);
        let forgotten = self.executor.forget(request).instrument(span).await?;
        answering("forget");
        Ok(Response::new(forgotten))
    }

    async fn recall(&self, request: Request<RecallRequest>) -> Result<Response<RecallResponse>, Status> {
        received("recall");
        let (metadata, _, request) = request.into_parts();
        let span = tracing::info_span!("agent_recall", host = %self.identity.name, leader.epoch = request.epoch);
        telemetry::continue_trace(&span, &metadata);
        let recalled = self.executor.recall(request).instrument(span).await?;
        answering("recall");
        Ok(Response::new(recalled))
    }

    type ExecuteStream = Pin<Box<dyn Stream<Item = Result<ExecuteEvent, Status>> + Send>>;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<Self::ExecuteStream>, Status> {
        received("execute");
        let parent = telemetry::extract(request.metadata());
        let events = self.executor.execute(request.into_inner(), parent).await?;
        kill_point::pass(|| "rpc.execute.accepted".to_owned());
        Ok(Response::new(Box::pin(stream(events))))
    }
}

fn stream(events: Events) -> impl Stream<Item = Result<ExecuteEvent, Status>> + Send {
    futures::stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        if let Ok(ExecuteEvent {
            event: Some(Event::Outcome(_)),
        }) = &event
        {
            answering("execute");
        }
        Some((event.map_err(|problem: Problem| problem.into()), events))
    })
}

/// A call came, and nothing was done for it yet.
fn received(rpc: &str) {
    kill_point::pass(|| format!("rpc.{rpc}.received"));
}

/// What was done for a call is durable, and the caller did not hear of it yet.
fn answering(rpc: &str) {
    kill_point::pass(|| format!("rpc.{rpc}.answering"));
}

#[cfg(test)]
mod tests;
