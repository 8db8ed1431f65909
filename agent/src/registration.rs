//! Staying in the fleet: tells a coordinator where this agent is, says that it lives, and renews its certificate.
//!
//! Two tasks: [`stay_registered`] talks to one coordinator at a time and goes to the next one when it does not answer;
//! [`renewal::renew_in_time`] replaces the certificate at half of its life. A fleet without coordinators loses nothing
//! by these failing: steps come over connections that coordinators open.

pub mod renewal;

use std::path::PathBuf;
use std::time::Duration;

use rollback_proto::jitter;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, CredentialStore, Expect, connect};
use rollback_proto::v1::enrollment_client::EnrollmentClient;
use rollback_proto::v1::{HeartbeatRequest, RegisterRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Limit of one call.
const DEADLINE: Duration = Duration::from_secs(5);
/// When a coordinator names no interval, or one that makes no sense.
const HEARTBEAT: Duration = Duration::from_secs(5);

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
    async fn dial(&self, coordinator: &str) -> Result<EnrollmentClient<Channel>, Problem> {
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
        let pause = jitter::spread(self.next, 0.5..=1.0);
        self.next = (self.next * 2).min(self.most);
        pause
    }
}

/// Registers, and keeps saying that we live, until `stop` is cancelled.
pub async fn stay_registered(member: &Membership, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut quiet = false;
    for coordinator in member.coordinators.iter().cycle() {
        let end = tokio::select! {
            () = stop.cancelled() => return,
            end = session(member, coordinator, || backoff.reset()) => end,
        };
        match end {
            // The same coordinator would do, and the next one does as well.
            End::Replaced => continue,
            End::Lost(problem) => {
                tracing::warn!(coordinator, %problem, "lost the coordinator");
                quiet = false;
            }
            End::Unreachable(problem) if quiet => tracing::debug!(coordinator, %problem, "no coordinator"),
            End::Unreachable(problem) => {
                tracing::warn!(coordinator, %problem, "cannot register; trying on");
                quiet = member.coordinators.last() == Some(coordinator);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
}

/// Why we talk to a coordinator no longer.
enum End {
    /// It never took us.
    Unreachable(Problem),
    /// It took us, and answers no more.
    Lost(Problem),
    /// We have other credentials now.
    Replaced,
}

async fn session(member: &Membership, coordinator: &str, registered: impl FnOnce()) -> End {
    let mut replaced = member.replaced.subscribe();
    let mut client = match member.dial(coordinator).await {
        Ok(client) => client,
        Err(problem) => return End::Unreachable(problem),
    };
    let mut interval = match register(member, &mut client).await {
        Ok(interval) => interval,
        Err(problem) => return End::Unreachable(problem),
    };
    tracing::info!(coordinator, address = member.announcement.address, "registered");
    registered();
    loop {
        tokio::select! {
            // A sender lives as long as `member`.
            _ = replaced.changed() => return End::Replaced,
            () = tokio::time::sleep(jitter::spread(interval, 0.9..=1.0)) => {}
        }
        let again = match bounded(client.heartbeat(HeartbeatRequest {})).await {
            Ok(answer) => answer.register_again,
            Err(problem) => return End::Lost(problem),
        };
        if again {
            tracing::info!(
                coordinator,
                "the coordinator does not know us any more; registering again"
            );
            interval = match register(member, &mut client).await {
                Ok(interval) => interval,
                Err(problem) => return End::Lost(problem),
            };
        }
    }
}

/// How often the coordinator wants to hear from us.
async fn register(member: &Membership, client: &mut EnrollmentClient<Channel>) -> Result<Duration, Problem> {
    let answer = bounded(client.register(member.announcement.clone())).await?;
    let asked = answer
        .heartbeat_interval
        .and_then(|interval| Duration::try_from(interval).ok());
    Ok(asked
        .filter(|interval| !interval.is_zero())
        .unwrap_or(HEARTBEAT)
        .clamp(Duration::from_millis(50), Duration::from_secs(300)))
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
