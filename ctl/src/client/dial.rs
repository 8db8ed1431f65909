//! Opening connections: to one endpoint, or to whichever of several answers first.
//!
//! Whoever answers must prove to be a coordinator of our trust domain, also where a refusal sent us there.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::telemetry::inject_current;
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use rollback_proto::v1::fleet_client::FleetClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{CallError, coordinator_problem};

/// How long an endpoint is alone before the next one is tried beside it. A host that is down answers nothing at all: waiting
/// for that would cost 5 s each time.
const HEAD_START: Duration = Duration::from_millis(300);

/// Writes the current span into every request.
#[derive(Clone, Copy, Debug)]
pub struct Traced;

impl Interceptor for Traced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject_current(request.metadata_mut());
        Ok(request)
    }
}

/// The plan of a fleet of thousands is some KiB for each host, and a saved one has it twice.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

pub type Fleet = FleetClient<InterceptedService<Channel, Traced>>;

/// A connection, and whom it reached.
#[derive(Clone, Debug)]
pub struct Connected {
    pub endpoint: String,
    pub fleet: Fleet,
}

/// An endpoint that could not be used, and why.
#[derive(Clone, Debug)]
pub struct Unusable {
    pub endpoint: String,
    pub problem: Problem,
}

/// Connects to one endpoint, without trying any other.
pub async fn dial(endpoint: &str, credentials: &CredentialStore) -> Result<Fleet, Problem> {
    let how = Connect::Mutual {
        credentials: Arc::clone(credentials),
        expect: Expect::Coordinator,
    };
    let channel = connect(endpoint, how).await?;
    Ok(FleetClient::with_interceptor(channel, Traced).max_decoding_message_size(MAX_ANSWER))
}

/// Tries the endpoints in this order, each next one after a short while or as soon as one has failed, and keeps the first
/// that answers. Those that failed until then are added to `unusable`; `None`: all of them did.
pub async fn dial_any(
    endpoints: impl IntoIterator<Item = String>,
    credentials: &CredentialStore,
    unusable: &mut Vec<Unusable>,
) -> Option<Connected> {
    let mut waiting = endpoints.into_iter().peekable();
    let mut trying = FuturesUnordered::new();
    loop {
        if let Some(endpoint) = waiting.next() {
            trying.push(async move {
                let dialled = dial(&endpoint, credentials).await;
                (endpoint, dialled)
            });
        }
        let turn_of_the_next = async {
            match waiting.peek() {
                Some(_) => tokio::time::sleep(HEAD_START).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = trying.next() => match ended {
                Some((endpoint, Ok(fleet))) => return Some(Connected { endpoint, fleet }),
                Some((endpoint, Err(problem))) => unusable.push(Unusable { endpoint, problem }),
                None => return None,
            },
            () = turn_of_the_next => {}
        }
    }
}

/// No endpoint answered. A refusal (wrong certificate) is worth more than a silence: its code wins. Asking again can help
/// as long as one of them was only silent.
pub fn unreachable(unusable: &[Unusable]) -> CallError {
    let codes = || unusable.iter().map(|u| u.problem.code);
    let code = codes()
        .find(|c| *c != Code::HostUnreachable)
        .unwrap_or(Code::HostUnreachable);
    let mut problem = coordinator_problem(format!("no coordinator answers: {}", reasons(unusable)));
    problem.code = code;
    CallError {
        problem,
        lost: codes().any(|c| c == Code::HostUnreachable),
    }
}

/// Every reason, with its endpoint, in one line.
pub fn reasons(unusable: &[Unusable]) -> String {
    let texts: Vec<&str> = unusable.iter().map(|u| u.problem.message.as_str()).collect();
    texts.join("; ")
}
