//! A user who never stops asking: one request through nginx every 20 ms, each on a connection and a deadline of its own.
//!
//! Requests do not wait for each other: a slow answer does not hide how the next one would have fared.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const EVERY: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(2);

/// What one request came to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was there, or the deadline had passed.
    pub ended: Instant,
    /// HTTP status; `None` when there was no answer.
    pub status: Option<u16>,
}

impl Sample {
    pub fn is_success(&self) -> bool {
        self.status == Some(200)
    }
}

#[derive(Debug)]
pub struct Prober {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Vec<Sample>>,
}

impl Prober {
    pub fn start(url: String) -> anyhow::Result<Self> {
        // Nothing is pooled: a connection that a reload closes is no failure of the service.
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE)
            .build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(probe(client, url, stopped));
        Ok(Self { stop, task })
    }

    /// Waits for the requests under way and hands all samples out, in the order in which they were sent.
    pub async fn stop(self) -> anyhow::Result<Samples> {
        // The receiver is gone only when the task has panicked, which the join reports.
        let _ = self.stop.send(());
        Ok(Samples(self.task.await?))
    }
}

async fn probe(client: reqwest::Client, url: String, mut stopped: tokio::sync::oneshot::Receiver<()>) -> Vec<Sample> {
    let mut requests = JoinSet::new();
    let mut samples = Vec::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(done) = requests.join_next() => samples.extend(done.ok()),
            _ = tick.tick() => {
                let request = client.get(&url).send();
                requests.spawn(async move {
                    let sent = Instant::now();
                    let status = request.await.ok().map(|answer| answer.status().as_u16());
                    Sample { sent, ended: Instant::now(), status }
                });
            }
        }
    }
    samples.extend(requests.join_all().await);
    samples.sort_by_key(|s| s.sent);
    samples
}

/// All requests of one prober.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Sample>);

/// What users went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downtime {
    /// The longest time with no successful answer: from one success's answer to the next.
    pub longest: Duration,
    /// Requests that failed inside of it.
    pub failed_inside: usize,
    /// Requests that failed after it.
    pub failed_after: usize,
    /// Requests in all.
    pub requests: usize,
}

impl Samples {
    pub fn new(samples: Vec<Sample>) -> Self {
        Self(samples)
    }

    /// Of the requests sent from `begin` on.
    pub fn since(&self, begin: Instant) -> Self {
        Self(self.0.iter().filter(|s| s.sent >= begin).copied().collect())
    }

    /// Of the requests sent before `end`.
    pub fn before(&self, end: Instant) -> Self {
        Self(self.0.iter().filter(|s| s.sent < end).copied().collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn failed(&self) -> usize {
        self.0.iter().filter(|s| !s.is_success()).count()
    }

    /// The longest gap between successful answers. `None` when no two requests succeeded.
    pub fn downtime(&self) -> Option<Downtime> {
        let mut successes: Vec<Instant> = self.0.iter().filter(|s| s.is_success()).map(|s| s.ended).collect();
        successes.sort();
        let gap = successes.windows(2).max_by_key(|w| w[1] - w[0])?;
        let failures = || self.0.iter().filter(|s| !s.is_success());
        Some(Downtime {
            longest: gap[1] - gap[0],
            failed_inside: failures().filter(|s| s.ended >= gap[0] && s.ended <= gap[1]).count(),
            failed_after: failures().filter(|s| s.ended > gap[1]).count(),
            requests: self.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests 20 ms apart, answered at once.
    fn samples(statuses: &[Option<u16>]) -> Samples {
        let begin = Instant::now();
        let at = |i: usize| begin + EVERY * u32::try_from(i).expect("few samples");
        Samples::new(
            statuses
                .iter()
                .enumerate()
                .map(|(i, status)| Sample {
                    sent: at(i),
                    ended: at(i),
                    status: *status,
                })
                .collect(),
        )
    }

    #[test]
    fn the_longest_gap_counts_and_what_failed_later_is_told_apart() {
        let (ok, down) = (Some(200), Some(503));
        let found = samples(&[ok, Some(500), ok, down, None, down, ok, ok, down, ok]).downtime();
        let expected = Downtime {
            longest: EVERY * 4,
            failed_inside: 3,
            failed_after: 1,
            requests: 10,
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn no_downtime_can_be_told_without_two_successes() {
        assert_eq!(samples(&[Some(503), Some(200)]).downtime(), None);
        assert_eq!(samples(&[]).downtime(), None);
    }
}
