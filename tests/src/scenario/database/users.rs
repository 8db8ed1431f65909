//! Users of zekka who ask and write all the while, and what they go through.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fleet::Fleet;
use crate::prober::Prober;
use crate::writers::{Writers, Written};

/// Requests per second.
const RATE: u32 = 100;
/// Answers that are seen before and after.
const ANSWERED: usize = 50;

/// Those who ask and those who write.
#[derive(Debug)]
pub struct Users {
    prober: Prober,
    writers: Writers,
}

/// What they went through.
#[derive(Debug)]
pub struct Lived {
    /// The longest time between two successful answers to `/api/health` through nginx, which wants the database.
    pub downtime: Duration,
    /// From the first command to the end of the last.
    pub took: Duration,
    /// What was acknowledged.
    pub written: Written,
}

impl Users {
    /// From now on they ask for the application's health, and two of them add deals. `name` tells what they write from
    /// what others have written.
    pub fn at_work(fleet: &Fleet, name: &str) -> Result<Self> {
        let mut writers = Writers::new();
        for n in 1..=2 {
            writers.through_the_application(&format!("{name} {n}"), fleet.nginx.url("/api/deals"))?;
        }
        Ok(Self {
            prober: Prober::at_rate(fleet.nginx.url("/api/health"), RATE)?,
            writers,
        })
    }

    /// And a job that writes to the database itself; see [`Writers::past_the_application`].
    #[must_use]
    pub fn and_a_job(mut self, fleet: &Fleet) -> Self {
        self.writers.past_the_application("job", &fleet.postgres);
        self
    }

    /// Goes one way, and sends them home.
    pub async fn during(self, fleet: &mut Fleet, way: impl AsyncFnOnce(&mut Fleet) -> Result<()>) -> Result<Lived> {
        // The gap begins with an answer, and so must what is looked at.
        let seen_from = Instant::now();
        self.prober.until_served(ANSWERED).await?;
        let begun = Instant::now();
        way(fleet).await?;
        let took = begun.elapsed();
        self.prober.until_served(ANSWERED).await?;
        let written = self.writers.stop().await;
        let samples = self.prober.stop().await?.since(seen_from);
        let downtime = samples.downtime().context("users got answers")?;
        ensure!(
            downtime.failed_after == 0,
            "{} requests failed after v2.9.0 had come back",
            downtime.failed_after
        );
        ensure!(!written.is_empty(), "nobody could write");
        Ok(Lived {
            downtime: downtime.longest,
            took,
            written,
        })
    }
}
