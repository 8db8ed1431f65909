//! Staying in the fleet: tells a coordinator where this agent is, says that it lives, and renews its certificate.
//!
//! Two tasks: [`stay_registered`] talks to one coordinator at a time, follows the leader, and goes to the next one when
//! nobody answers ([`route`]: whom it asks, and when); [`renewal::renew_in_time`] replaces the certificate at half of its life. A fleet without coordinators loses nothing
//! by these failing: steps come over connections that coordinators open.

pub mod renewal;
mod route;

use std::path::PathBuf;
use std::time::Duration;

use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use rollback_proto::v1::enrollment_client::EnrollmentClient;
use rollback_proto::v1::{Awaited, HeartbeatRequest, RegisterRequest};
use rollback_proto::{jitter, kill_point};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::route::{Route, Step};

/// Limit of one call.
const DEADLINE: Duration = Duration::from_secs(5);
/// When a coordinator names no interval, or one that makes no sense.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Longest pause while nobody can be reached.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause while a coordinator answers that does not lead: a leader is being found.
const ELECTION_PAUSE: Duration = Duration::from_secs(1);

type Client = EnrollmentClient<Channel>;

/// What both tasks share.
#[derive(Debug)]
pub struct Membership {
    /// `host:port`, at least one.
    pub coordinators: Vec<String>,
    pub credentials: CredentialStore,
    pub pki: PathBuf,
    pub name: String,
    /// What we say of ourselves.
    pub announcement: RegisterRequest,
    /// Counts replacements of the credentials: connections made with the old ones are given up.
    pub replaced: watch::Sender<u64>,
}

impl Membership {
    async fn dial(&self, coordinator: &str) -> Result<Client, Problem> {
        let credentials = self.credentials.clone();
        let channel = connect(
            coordinator,
            Connect::Mutual {
                credentials,
                expect: Expect::Coordinator,
            },
        )
        .await?;
        Ok(EnrollmentClient::new(channel))
    }
}

/// Pauses between attempts: doubling from `least` to `most`, each between half of that and all of it, so that a fleet
/// does not come back in step.
#[derive(Debug)]
struct Backoff {
    next: Duration,
    least: Duration,
    most: Duration,
}

impl Backoff {
    fn new(least: Duration, most: Duration) -> Self {
        Self {
            next: least,
            least,
            most,
        }
    }

    fn reset(&mut self) {
        self.next = self.least;
    }

    fn pause(&mut self) -> Duration {
        self.pause_within(self.most)
    }

    fn pause_within(&mut self, most: Duration) -> Duration {
        self.next = self.next.min(most);
        let pause = jitter::spread(self.next, 0.5..=1.0);
        self.next = (self.next * 2).min(self.most);
        pause
    }
}

/// Registers, and keeps saying that we live, until `stop` is cancelled.
pub async fn stay_registered(member: &Membership, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), LONGEST_PAUSE);
    let mut route = Route::new(&member.coordinators);
    // To the coordinator that is asked next, where there is one already.
    let mut open = None;
    // Since we were registered: the rest of them are said where details are wanted.
    let mut failures = 0;
    let mut expectation = Expectation::default();
    loop {
        let coordinator = route.here().to_owned();
        let registered = || {
            backoff.reset();
            route.taken();
            failures = 0;
        };
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            end = session(member, &coordinator, open.take(), &mut expectation, registered) => end,
        };
        let pause = match end {
            End::Replaced => continue,
            End::Declined(problem, client) => {
                let leader = match &problem.hint {
                    Some(Hint::Leader(leader)) => Some(leader.as_str()),
                    Some(Hint::Epoch(_)) | None => None,
                };
                match route.declined(leader) {
                    Step::AtOnce => {
                        tracing::info!(coordinator, leader = route.here(), "follows the leader");
                        continue;
                    }
                    Step::Stay => open = Some(client),
                    Step::AfterPause => {}
                }
                if failures == 0 {
                    tracing::info!(coordinator, %problem, "no leader yet; asking on");
                } else {
                    tracing::debug!(coordinator, %problem, "no leader yet");
                }
                failures += 1;
                backoff.pause_within(ELECTION_PAUSE)
            }
            End::Lost(problem) => {
                tracing::warn!(coordinator, %problem, "lost the coordinator");
                route.lost();
                backoff.pause()
            }
            End::Unreachable(problem) => {
                if failures < member.coordinators.len() {
                    tracing::warn!(coordinator, %problem, "cannot register; trying on");
                } else {
                    tracing::debug!(coordinator, %problem, "no coordinator");
                }
                failures += 1;
                route.failed();
                backoff.pause()
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Why we talk to a coordinator no longer.
enum End {
    /// It never took us.
    Unreachable(Problem),
    /// It took us, and answers no more.
    Lost(Problem),
    /// It does not lead, or not any more.
    Declined(Problem, Client),
    /// We have other credentials now.
    Replaced,
}

impl End {
    fn of(problem: Problem, client: Client, otherwise: fn(Problem) -> Self) -> Self {
        if problem.code == Code::NotLeader {
            Self::Declined(problem, client)
        } else {
            otherwise(problem)
        }
    }
}

/// What the fleet expects this host to be, as it was last told.
#[derive(Debug, Default)]
struct Expectation(Vec<Awaited>);

impl Expectation {
    /// Says so once for each change; `false`: there was none. Nothing else is done about it here: it is the leader who takes
    /// the fleet anywhere.
    fn told(&mut self, awaited: Vec<Awaited>) -> bool {
        if self.0 == awaited {
            return false;
        }
        for one in &awaited {
            let version = one.revision.as_ref().map(|r| r.version.as_str()).unwrap_or_default();
            let what_next = if one.automatic {
                "the coordinator brings it there"
            } else {
                "bring it there: rollbackctl fleet converge"
            };
            tracing::warn!(
                component = one.component,
                version,
                release = one.release,
                rollback = one.rollback_id,
                "a rollback went on without this host; it may run what must not serve users: {what_next}"
            );
        }
        if awaited.is_empty() {
            tracing::info!("this host is awaited to be nothing else any more");
        }
        self.0 = awaited;
        true
    }
}

async fn session(
    member: &Membership,
    coordinator: &str,
    open: Option<Client>,
    expectation: &mut Expectation,
    registered: impl FnOnce(),
) -> End {
    let mut replaced = member.replaced.subscribe();
    let mut client = match open {
        Some(client) => client,
        None => match member.dial(coordinator).await {
            Ok(client) => client,
            Err(problem) => return End::Unreachable(problem),
        },
    };
    let mut interval = match register(member, &mut client, expectation).await {
        Ok(interval) => interval,
        Err(problem) => return End::of(problem, client, End::Unreachable),
    };
    tracing::info!(coordinator, address = member.announcement.address, "registered");
    registered();
    loop {
        tokio::select! {
            biased;
            // A sender lives as long as `member`.
            _ = replaced.changed() => return End::Replaced,
            () = tokio::time::sleep(jitter::spread(interval, 0.9..=1.0)) => {}
        }
        let again = match heartbeat(&mut client).await {
            Ok(again) => again,
            Err(problem) => return End::of(problem, client, End::Lost),
        };
        if again {
            tracing::info!(
                coordinator,
                "the coordinator does not know us any more; registering again"
            );
            interval = match register(member, &mut client, expectation).await {
                Ok(interval) => interval,
                Err(problem) => return End::of(problem, client, End::Lost),
            };
        }
    }
}

/// How often the coordinator wants to hear from us.
async fn register(
    member: &Membership,
    client: &mut Client,
    expectation: &mut Expectation,
) -> Result<Duration, Problem> {
    kill_point::pass(|| "registration.register.before".to_owned());
    let answer = bounded(client.register(member.announcement.clone())).await?;
    kill_point::pass(|| "registration.register.after".to_owned());
    expectation.told(answer.awaited);
    let asked = answer
        .heartbeat_interval
        .and_then(|interval| Duration::try_from(interval).ok());
    Ok(asked
        .filter(|interval| !interval.is_zero())
        .unwrap_or(HEARTBEAT)
        .clamp(Duration::from_millis(50), Duration::from_secs(300)))
}

/// Whether we have to register again.
async fn heartbeat(client: &mut Client) -> Result<bool, Problem> {
    kill_point::pass(|| "registration.heartbeat.before".to_owned());
    let answer = bounded(client.heartbeat(HeartbeatRequest {})).await?;
    kill_point::pass(|| "registration.heartbeat.after".to_owned());
    Ok(answer.register_again)
}

async fn bounded<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Problem> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Problem::from_status(&status)),
        Err(_) => Err(Problem::new(
            Code::HostUnreachable,
            "the coordinator did not answer in time",
        )),
    }
}

#[cfg(test)]
mod tests;
