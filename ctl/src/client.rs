//! The connection to the coordinators: whichever answers, then the one that leads; a deadline on every call, the trace in
//! every call, and errors that say whether the request may have taken effect.
//!
//! Reads are answered by any replica. One that does not lead refuses everything else, and says who leads: we go there, also
//! where that endpoint is in no context. In one round every replica is asked once at most, so replicas that point at each
//! other cost a pause and no circle. Asking again is safe: what must not happen twice carries a name of its own
//! (`request_id`), and all else may.

mod backoff;
mod dial;

use std::future::Future;
use std::time::Duration;

use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::tls::CredentialStore;
use rollback_proto::v1;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use crate::output;
use crate::output::text::clean;

pub use backoff::Backoff;
pub use dial::{Fleet, dial, dial_any};

use dial::{Connected, Unusable, reasons, unreachable};

/// For questions that the coordinator answers from memory or its store.
pub const QUICK: Duration = Duration::from_secs(10);
/// For what asks every host once.
pub const ALL_HOSTS: Duration = Duration::from_secs(30);
/// For what lets every host work: `prepare` reads and hashes.
pub const PREPARE: Duration = Duration::from_secs(120);
/// For recording a release: every host copies its live revision into its vault.
pub const RETAIN: Duration = Duration::from_secs(600);

/// How long we ask again while nobody leads. An election takes at most the lease's life (6 s) and some pauses.
const LEADERLESS: Duration = Duration::from_secs(15);
/// The longest pause meanwhile: the lead is taken at one instant, and somebody waits in front of a terminal.
const LEADERLESS_PAUSE: Duration = Duration::from_secs(1);
/// For connecting to the leader that a refusal names. Its host may be the one that died.
const REFERRAL: Duration = Duration::from_secs(2);
/// How many referrals are followed in one round.
const REFERRALS: usize = 3;

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

/// A client of one fleet. Dials when it is first needed, and again after a loss.
pub struct Client {
    endpoints: Vec<String>,
    /// The endpoint to try first.
    first: usize,
    /// Where a refusal said that the leader is; tried before all others.
    leader: Option<String>,
    credentials: CredentialStore,
    connected: Option<Connected>,
}

/// Why a round through the replicas brought no answer.
enum Miss {
    /// No replica could be connected to. Nobody was asked.
    Unreachable(CallError),
    /// Every replica that could be asked refused, since it does not lead (any more).
    Leaderless(Problem),
    Failed(CallError),
}

/// What is not tried again in this round.
#[derive(Default)]
struct Round {
    asked: Vec<String>,
    unusable: Vec<Unusable>,
    referrals: usize,
}

impl Round {
    fn is_done_with(&self, endpoint: &str) -> bool {
        self.asked.iter().any(|e| e == endpoint) || self.unusable.iter().any(|u| u.endpoint == endpoint)
    }

    /// `refusal`, with the reasons why nobody else could be asked.
    fn leaderless(&self, mut refusal: Problem) -> Problem {
        if !self.unusable.is_empty() {
            refusal.message = format!("{}; {}", refusal.message, reasons(&self.unusable));
        }
        refusal
    }
}

impl Client {
    pub fn new(context: &Context) -> Result<Self, Problem> {
        Ok(Self {
            endpoints: context.endpoints.clone(),
            first: 0,
            leader: None,
            credentials: context.credentials()?,
            connected: None,
        })
    }

    /// Connects to the first endpoint that answers as a coordinator of our fleet. Does nothing when connected.
    pub async fn connect(&mut self) -> Result<(), CallError> {
        let mut round = Round::default();
        match self.fleet(&mut round).await {
            Some(_) => Ok(()),
            None => Err(unreachable(&round.unusable)),
        }
    }

    /// The name in our certificate: what we do is written down under it.
    pub fn identity(&self) -> String {
        self.credentials.load().us.identity.name.clone()
    }

    /// host:port of the coordinator that answered last, while the connection to it holds.
    pub fn endpoint(&self) -> Option<&str> {
        self.connected.as_ref().map(|c| c.endpoint.as_str())
    }

    /// The connection that there is, or one to the leader that we heard of, or to whichever endpoint answers first.
    async fn fleet(&mut self, round: &mut Round) -> Option<Connected> {
        if let Some(connected) = &self.connected {
            return Some(connected.clone());
        }
        let connected = match self.referred(round).await {
            Some(connected) => connected,
            None => {
                let (later, sooner) = self.endpoints.split_at(self.first);
                let in_turn = sooner.iter().chain(later).filter(|e| !round.is_done_with(e));
                let in_turn: Vec<String> = in_turn.cloned().collect();
                dial_any(in_turn, &self.credentials, &mut round.unusable).await?
            }
        };
        self.connected = Some(connected.clone());
        Some(connected)
    }

    /// A connection to the leader that a refusal named, unless that leads in a circle or nowhere.
    async fn referred(&mut self, round: &mut Round) -> Option<Connected> {
        let endpoint = self.leader.take()?;
        if round.is_done_with(&endpoint) || round.referrals == REFERRALS {
            return None;
        }
        round.referrals += 1;
        let problem = match timeout(REFERRAL, dial(&endpoint, &self.credentials)).await {
            Ok(Ok(fleet)) => return Some(Connected { endpoint, fleet }),
            Ok(Err(problem)) => problem,
            Err(_) => coordinator_problem(format!(
                "connect to {endpoint}: no answer within {} s",
                REFERRAL.as_secs()
            )),
        };
        round.unusable.push(Unusable { endpoint, problem });
        None
    }

    /// Forgets the connection; the next one is looked for from the next endpoint on.
    pub fn drop_connection(&mut self) {
        let Some(left) = self.connected.take() else { return };
        if let Some(index) = self.endpoints.iter().position(|e| *e == left.endpoint) {
            self.first = (index + 1) % self.endpoints.len();
        }
    }

    /// One call, with its deadline for every replica that is asked. While nobody leads, it is asked again for some
    /// seconds: whoever is in the middle of an incident should not have to type it again.
    pub async fn call<Req, Res, F, Fut>(&mut self, deadline: Duration, request: Req, rpc: F) -> Result<Res, CallError>
    where
        Req: Clone,
        F: Fn(Fleet, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let ask = |fleet| {
            let mut message = Request::new(request.clone());
            message.set_timeout(deadline);
            rpc(fleet, message)
        };
        let mut waiting: Option<(Instant, Backoff)> = None;
        loop {
            let nobody = match self.round(deadline, &ask).await {
                Ok(response) => return Ok(response),
                Err(Miss::Failed(error)) => return Err(error),
                Err(Miss::Leaderless(problem)) => problem,
                // In the middle of an election, the replica that we were at may go away, too.
                Err(Miss::Unreachable(error)) if waiting.is_some() => error.problem,
                Err(Miss::Unreachable(error)) => return Err(error),
            };
            let (give_up, backoff) = waiting.get_or_insert_with(|| {
                let why = clean(&nobody.message);
                output::note(&format!("no coordinator leads at the moment; trying again … ({why})"));
                (Instant::now() + LEADERLESS, Backoff::up_to(LEADERLESS_PAUSE))
            });
            if Instant::now() >= *give_up {
                return Err(leaderless(&nobody).into());
            }
            backoff.pause().await;
        }
    }

    /// Asks one replica after the other until one does not send us away.
    async fn round<Res, F, Fut>(&mut self, deadline: Duration, ask: &F) -> Result<Res, Miss>
    where
        F: Fn(Fleet) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let mut round = Round::default();
        let mut refusal = None;
        loop {
            let Some(Connected { endpoint, fleet }) = self.fleet(&mut round).await else {
                return Err(match refusal {
                    Some(problem) => Miss::Leaderless(round.leaderless(problem)),
                    None => Miss::Unreachable(unreachable(&round.unusable)),
                });
            };
            // The header asks the coordinator to give up; the timer here does not depend on anybody.
            let error = match timeout(deadline, ask(fleet)).await {
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
            if error.problem.code != Code::NotLeader {
                return Err(Miss::Failed(error));
            }
            round.asked.push(endpoint);
            refusal = Some(error.problem);
        }
    }

    /// Follows a rollback: its journal from `after_seq` on, then live. There is no deadline on the stream; pings of the
    /// connection find a coordinator that is gone. That nobody leads is a loss like any other: whoever follows comes back.
    pub async fn watch(&mut self, id: &str, after_seq: u64) -> Result<Streaming<v1::RollbackEvent>, CallError> {
        let request = v1::WatchRollbackRequest {
            id: id.to_owned(),
            after_seq,
        };
        let ask = |mut fleet: Fleet| {
            let request = request.clone();
            async move { fleet.watch_rollback(request).await }
        };
        self.round(QUICK, &ask).await.map_err(|miss| match miss {
            Miss::Unreachable(error) | Miss::Failed(error) => error,
            Miss::Leaderless(problem) => CallError { problem, lost: true },
        })
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
        if let (Code::NotLeader, Some(Hint::Leader(endpoint))) = (problem.code, &problem.hint) {
            self.leader = Some(endpoint.clone());
        }
        CallError {
            problem,
            lost: says_lost,
        }
    }
}

fn coordinator_problem(message: String) -> Problem {
    Problem::new(Code::HostUnreachable, message)
        .remedy("look at rollback-coordinator and the network between; rollbackctl doctor checks both")
}

/// We have waited long enough. `why` is what the last round met.
fn leaderless(why: &Problem) -> Problem {
    let message = format!(
        "no coordinator leads, for {} s now: {}",
        LEADERLESS.as_secs(),
        why.message
    );
    Problem::new(Code::NotLeader, message).remedy(
        "find out why: rollbackctl doctor asks every replica. Then look whether something was started all the same, before \
         you give the command again: rollbackctl rollback list",
    )
}
