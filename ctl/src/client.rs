//! The connection to the coordinators: endpoints in turn, a deadline on every call, the trace in every call, and errors
//! that say whether the request may have taken effect.

mod backoff;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use rollback_proto::telemetry::inject_current;
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use rollback_proto::v1;
use rollback_proto::v1::fleet_client::FleetClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;

pub use backoff::Backoff;

/// For questions that the coordinator answers from memory or its store.
pub const QUICK: Duration = Duration::from_secs(10);
/// For what asks every host once.
pub const ALL_HOSTS: Duration = Duration::from_secs(30);
/// For what lets every host work: `prepare` reads and hashes.
pub const PREPARE: Duration = Duration::from_secs(120);
/// For recording a release: every host copies its live revision into its vault.
pub const RETAIN: Duration = Duration::from_secs(600);

/// A call that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct CallError {
    pub problem: Problem,
    /// The connection, the coordinator or its leadership was lost: the request may or may not have taken effect, and
    /// asking again (another coordinator) can help.
    pub lost: bool,
}

impl From<Problem> for CallError {
    fn from(problem: Problem) -> Self {
        Self { problem, lost: false }
    }
}

/// Writes the current span into every request.
#[derive(Clone, Copy, Debug)]
pub struct Traced;

impl Interceptor for Traced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject_current(request.metadata_mut());
        Ok(request)
    }
}

pub type Fleet = FleetClient<InterceptedService<Channel, Traced>>;

/// A client of one fleet. Dials when it is first needed, and again after a loss.
pub struct Client {
    endpoints: Vec<String>,
    /// The endpoint to try first.
    first: usize,
    credentials: CredentialStore,
    connected: Option<Fleet>,
}

impl Client {
    pub fn new(context: &Context) -> Result<Self, Problem> {
        Ok(Self {
            endpoints: context.endpoints.clone(),
            first: 0,
            credentials: context.credentials()?,
            connected: None,
        })
    }

    /// Connects to the first endpoint that answers as a coordinator of our fleet. Does nothing when connected.
    pub async fn connect(&mut self) -> Result<(), CallError> {
        self.fleet().await.map(|_| ())
    }

    async fn fleet(&mut self) -> Result<Fleet, CallError> {
        if let Some(fleet) = &self.connected {
            return Ok(fleet.clone());
        }
        let mut reasons = Vec::new();
        for offset in 0..self.endpoints.len() {
            let index = (self.first + offset) % self.endpoints.len();
            match dial(&self.endpoints[index], &self.credentials).await {
                Ok(fleet) => {
                    self.first = index;
                    self.connected = Some(fleet.clone());
                    return Ok(fleet);
                }
                Err(problem) => reasons.push(problem),
            }
        }
        Err(unreachable(&reasons))
    }

    /// Forgets the connection; the next call begins with the next endpoint.
    fn drop_connection(&mut self) {
        self.connected = None;
        self.first = (self.first + 1) % self.endpoints.len();
    }

    /// One call, with its deadline. A replica that does not lead refuses before anything happens, so the others are
    /// asked in turn.
    pub async fn call<Req, Res, F, Fut>(&mut self, deadline: Duration, request: Req, rpc: F) -> Result<Res, CallError>
    where
        Req: Clone,
        F: Fn(Fleet, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let mut others = self.endpoints.len().saturating_sub(1);
        loop {
            let fleet = self.fleet().await?;
            let mut message = Request::new(request.clone());
            message.set_timeout(deadline);
            // The header asks the coordinator to give up; the timer here does not depend on anybody.
            let error = match tokio::time::timeout(deadline, rpc(fleet, message)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => self.failed(&status),
                Err(_) => {
                    self.drop_connection();
                    let text = format!("the coordinator did not answer within {} s", deadline.as_secs());
                    CallError {
                        problem: coordinator_problem(text),
                        lost: true,
                    }
                }
            };
            if error.problem.code != Code::NotLeader || others == 0 {
                return Err(error);
            }
            others -= 1;
        }
    }

    /// Follows a rollback: its journal from `after_seq` on, then live. There is no deadline on the stream; pings of the
    /// connection find a coordinator that is gone.
    pub async fn watch(&mut self, id: &str, after_seq: u64) -> Result<Streaming<v1::RollbackEvent>, CallError> {
        let request = v1::WatchRollbackRequest {
            id: id.to_owned(),
            after_seq,
        };
        let mut fleet = self.fleet().await?;
        match tokio::time::timeout(QUICK, fleet.watch_rollback(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => {
                self.drop_connection();
                let problem = coordinator_problem("the coordinator did not begin to answer".to_owned());
                Err(CallError { problem, lost: true })
            }
        }
    }

    /// What a failed call (or a stream that broke) means; forgets a connection that is no good any more.
    pub fn failed(&mut self, status: &Status) -> CallError {
        // Only errors that arose on this side have a source: what a coordinator says arrives without one.
        let broken = std::error::Error::source(status).is_some();
        let problem = Problem::from_status(status);
        let says_lost = match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => true,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::InvalidArgument
            | tonic::Code::NotFound
            | tonic::Code::AlreadyExists
            | tonic::Code::PermissionDenied
            | tonic::Code::ResourceExhausted
            | tonic::Code::FailedPrecondition
            | tonic::Code::Aborted
            | tonic::Code::OutOfRange
            | tonic::Code::Unimplemented
            | tonic::Code::Internal
            | tonic::Code::DataLoss
            | tonic::Code::Unauthenticated => false,
        };
        if broken {
            self.drop_connection();
            let problem = coordinator_problem(format!("the connection broke: {}", status.message()));
            return CallError { problem, lost: true };
        }
        if says_lost {
            self.drop_connection();
        }
        CallError {
            problem,
            lost: says_lost,
        }
    }
}

/// Connects to one endpoint, without trying any other.
pub async fn dial(endpoint: &str, credentials: &CredentialStore) -> Result<Fleet, Problem> {
    let how = Connect::Mutual {
        credentials: Arc::clone(credentials),
        expect: Expect::Coordinator,
    };
    let channel = connect(endpoint, how).await?;
    Ok(FleetClient::with_interceptor(channel, Traced))
}

fn coordinator_problem(message: String) -> Problem {
    Problem::new(Code::HostUnreachable, message)
        .remedy("look at rollback-coordinator and the network between; rollbackctl doctor checks both")
}

/// No endpoint answered. A refusal (wrong certificate) is worth more than a silence: its code wins.
fn unreachable(reasons: &[Problem]) -> CallError {
    let code = reasons
        .iter()
        .map(|p| p.code)
        .find(|c| *c != Code::HostUnreachable)
        .unwrap_or(Code::HostUnreachable);
    let texts: Vec<&str> = reasons.iter().map(|p| p.message.as_str()).collect();
    let mut problem = coordinator_problem(format!("no coordinator answers: {}", texts.join("; ")));
    problem.code = code;
    CallError {
        problem,
        lost: code == Code::HostUnreachable,
    }
}
