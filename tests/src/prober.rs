//! A user who never stops asking: requests at a steady rate, each on a connection and a deadline of its own.
//!
//! Requests do not wait for each other: a slow answer does not hide how the next one would have fared. There is a bound
//! on how many are under way; one that would go beyond it counts as failed, because a user got no answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::wait;

/// Requests per second, unless told otherwise.
const RATE: u32 = 50;
const DEADLINE: Duration = Duration::from_secs(2);
const SERVED_WITHIN: Duration = Duration::from_secs(30);
/// Requests under way at once: those of two seconds at 250 per second, far below the limit of open files.
const MOST_UNDER_WAY: usize = 500;

/// What one request came to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was there, or the deadline had passed.
    pub ended: Instant,
    /// HTTP status; `None` when there was no answer.
    pub status: Option<u16>,
    /// It was sent a second time; see [`Prober::keep_alive`].
    pub again: bool,
}

impl Sample {
    pub fn is_success(&self) -> bool {
        self.status == Some(200)
    }
}

#[derive(Debug)]
pub struct Prober {
    /// Requests that have ended, successful ones alone.
    served: Arc<AtomicUsize>,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Vec<Sample>>,
}

impl Prober {
    /// Asks every 20 ms.
    pub fn start(url: String) -> anyhow::Result<Self> {
        Self::at_rate(url, RATE)
    }

    /// Asks so many times in a second. When the machine falls behind, the requests that were missed follow at once: the
    /// number of requests is what was asked for.
    pub fn at_rate(url: String, per_second: u32) -> anyhow::Result<Self> {
        // Nothing is pooled: a connection that a reload closes is no failure of the service.
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE)
            .build()?;
        Ok(Self::ask(client, url, per_second, false))
    }

    /// Asks so many times in a second, over connections that are kept. A server may close one of those at the moment when
    /// a request is sent on it; what is left without any answer by that is sent once again at once, as browsers do.
    pub fn keep_alive(url: String, per_second: u32) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(DEADLINE).build()?;
        Ok(Self::ask(client, url, per_second, true))
    }

    fn ask(client: reqwest::Client, url: String, per_second: u32, again: bool) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let every = Duration::from_secs(1) / per_second.max(1);
        let served = Arc::new(AtomicUsize::new(0));
        let user = User { client, url, again };
        let task = tokio::spawn(probe(user, every, Arc::clone(&served), stopped));
        Self { served, stop, task }
    }

    /// Waits until users got so many more successful answers: begin with it, and end with it.
    pub async fn until_served(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.served.load(Ordering::Relaxed) + more;
        let what = format!("users get {more} more successful answers");
        wait::until_true(&what, SERVED_WITHIN, async || {
            self.served.load(Ordering::Relaxed) >= wanted
        })
        .await
    }

    /// Waits for the requests under way and hands all samples out, in the order in which they were sent.
    pub async fn stop(self) -> anyhow::Result<Samples> {
        // The receiver is gone only when the task has panicked, which the join reports.
        let _ = self.stop.send(());
        Ok(Samples(self.task.await?))
    }
}

#[derive(Clone, Debug)]
struct User {
    client: reqwest::Client,
    url: String,
    /// Asks once again when a connection ends without an answer.
    again: bool,
}

impl User {
    async fn ask(self, sent: Instant) -> Sample {
        let mut answer = self.client.get(&self.url).send().await;
        let unanswered = answer.as_ref().is_err_and(|e| !e.is_timeout() && !e.is_connect());
        let again = self.again && unanswered;
        if again {
            answer = self.client.get(&self.url).send().await;
        }
        Sample {
            sent,
            ended: Instant::now(),
            status: answer.ok().map(|answer| answer.status().as_u16()),
            again,
        }
    }
}

async fn probe(
    user: User,
    every: Duration,
    served: Arc<AtomicUsize>,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
) -> Vec<Sample> {
    let mut requests = JoinSet::new();
    let mut samples = Vec::new();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(done) = requests.join_next() => {
                let sample: Option<Sample> = done.ok();
                if sample.is_some_and(|s| s.is_success()) {
                    served.fetch_add(1, Ordering::Relaxed);
                }
                samples.extend(sample);
            }
            _ = tick.tick() => {
                let sent = Instant::now();
                if requests.len() >= MOST_UNDER_WAY {
                    samples.push(Sample { sent, ended: sent, status: None, again: false });
                    continue;
                }
                requests.spawn(user.clone().ask(sent));
            }
        }
    }
    samples.extend(requests.join_all().await);
    samples.sort_by_key(|s| s.sent);
    samples
}

/// While nginx exchanges its workers, old ones may still give the maintenance answer for a moment when the first new one
/// serves already.
pub const EXCHANGE: Duration = Duration::from_millis(300);

/// All requests of one prober.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Sample>);

/// What users went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downtime {
    /// The longest time with no successful answer: from one success's answer to the next.
    pub longest: Duration,
    /// Requests that failed inside of it, or within [`EXCHANGE`] after it.
    pub failed_inside: usize,
    /// Requests that failed later.
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

    /// Requests that were sent a second time.
    pub fn sent_again(&self) -> usize {
        self.0.iter().filter(|s| s.again).count()
    }

    /// The time within which so many of a thousand requests had ended, answered or not: 990 is the 99th percentile.
    /// `None` without any requests.
    pub fn within(&self, of_a_thousand: usize) -> Option<Duration> {
        let mut times: Vec<Duration> = self.0.iter().map(|s| s.ended - s.sent).collect();
        times.sort_unstable();
        let rank = (times.len() * of_a_thousand).div_ceil(1000);
        times.get(rank.saturating_sub(1)).copied()
    }

    /// What a scenario says of its users: `requests`, `failed_requests`, `p99_ms`.
    pub fn figures(&self) -> Value {
        let p99 = self.within(990).unwrap_or_default();
        json!({
            "requests": self.len(),
            "failed_requests": self.failed(),
            "p99_ms": (p99.as_secs_f64() * 10_000.0).round() / 10.0,
        })
    }

    /// The longest gap between successful answers. `None` when no two requests succeeded.
    pub fn downtime(&self) -> Option<Downtime> {
        let mut successes: Vec<Instant> = self.0.iter().filter(|s| s.is_success()).map(|s| s.ended).collect();
        successes.sort();
        let gap = successes.windows(2).max_by_key(|w| w[1] - w[0])?;
        let failures = || self.0.iter().filter(|s| !s.is_success());
        let over = gap[1] + EXCHANGE;
        Some(Downtime {
            longest: gap[1] - gap[0],
            failed_inside: failures().filter(|s| s.ended >= gap[0] && s.ended <= over).count(),
            failed_after: failures().filter(|s| s.ended > over).count(),
            requests: self.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(20);

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
                    again: false,
                })
                .collect(),
        )
    }

    #[test]
    fn the_longest_gap_counts_and_what_failed_later_is_told_apart() {
        let (ok, down) = (Some(200), Some(503));
        let mut statuses = vec![ok, Some(500), ok, down, None, down, ok, ok, down];
        // Until old workers have long ended.
        statuses.extend([ok; 15]);
        statuses.extend([down, ok]);
        let found = samples(&statuses).downtime();
        let expected = Downtime {
            longest: EVERY * 4,
            failed_inside: 4,
            failed_after: 1,
            requests: statuses.len(),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn no_downtime_can_be_told_without_two_successes() {
        assert_eq!(samples(&[Some(503), Some(200)]).downtime(), None);
        assert_eq!(samples(&[]).downtime(), None);
    }

    #[test]
    fn percentiles_are_of_requests_that_did_happen() {
        let begin = Instant::now();
        let took = |ms: u64| Sample {
            sent: begin,
            ended: begin + Duration::from_millis(ms),
            status: Some(200),
            again: false,
        };
        let hundred = Samples::new((1..=100).rev().map(took).collect());
        assert_eq!(hundred.within(990), Some(Duration::from_millis(99)));
        assert_eq!(hundred.within(500), Some(Duration::from_millis(50)));
        assert_eq!(Samples::new(vec![took(7)]).within(990), Some(Duration::from_millis(7)));
        assert_eq!(Samples::new(Vec::new()).within(990), None);
    }
}
