//! Proof that an application came up to stay: the same processes, for a while, healthy. A manager that restarts whatever
//! ends makes a crash loop look like a service that has just been started.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use crate::check::HealthCheck;
use crate::processes::{self, Identity};

/// How long an application may take to appear when no health check says how long it may take to start.
pub const WITHOUT_HEALTH: Duration = Duration::from_secs(10);

/// How long a healthy process may look wrong in `/proc` before it counts.
pub const SETTLING: Duration = Duration::from_millis(300);

/// How often it is looked whether the processes still live.
const LOOK: Duration = Duration::from_millis(10);

/// Kept free before a step's deadline for stopping what did not become healthy.
pub const CLEAN_UP: Duration = Duration::from_secs(5);

/// Waits until the health check passes at `version` and all of `family` have lived for `stable_for`, both at once.
/// Fails as soon as one of them is gone. Answers with the health check's detail.
pub async fn healthy_and_stable(
    family: &[Identity],
    health: Option<&HealthCheck>,
    version: &str,
    stable_for: Duration,
    deadline: Instant,
) -> Result<String, Problem> {
    let begun = Instant::now();
    let asked = async {
        match health {
            Some(health) => health.wait(Some(version), deadline).await.map(|passed| passed.detail),
            None => Ok("no health check".to_owned()),
        }
    };
    tokio::pin!(asked);
    let mut passed = None;
    loop {
        if let Some(gone) = family.iter().find(|process| !processes::alive(**process)) {
            let when = match &passed {
                None => "before it was healthy".to_owned(),
                Some(_) => format!("{} ms after it was healthy", begun.elapsed().as_millis()),
            };
            return Err(Problem::new(
                Code::Unhealthy,
                format!("process {} ended {when}", gone.pid),
            ));
        }
        match passed.take() {
            Some(detail) if begun.elapsed() >= stable_for => return Ok(detail),
            Some(detail) if Instant::now() >= deadline => {
                return Err(Problem::new(
                    Code::Unhealthy,
                    format!(
                        "healthy ({detail}), but the step's time is over before it has lived for {} ms",
                        stable_for.as_millis()
                    ),
                ));
            }
            Some(detail) => {
                passed = Some(detail);
                tokio::time::sleep(LOOK).await;
            }
            None => tokio::select! {
                answer = &mut asked => passed = Some(answer?),
                () = tokio::time::sleep(LOOK) => {}
            },
        }
    }
}

/// A process that replaces itself by another program has no environment for an instant: one bad look proves nothing.
pub async fn settles(look: impl Fn() -> Result<(), Problem>, deadline: Instant) -> Result<(), Problem> {
    let until = deadline.min(Instant::now() + SETTLING);
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(problem) if Instant::now() >= until => return Err(problem),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
