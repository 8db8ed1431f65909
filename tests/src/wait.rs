//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at a condition that cannot wake us. Only here and in [`moment`] does time pass in the harness.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Looks until the probe answers with `Some`, and fails with the name of the condition when `within` has passed.
pub async fn until<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return Ok(found);
        }
        if begun.elapsed() > within {
            bail!("waited {} s for: {what}", within.as_secs());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// [`until`] for a condition that is true or false.
pub async fn until_true(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> bool) -> Result<()> {
    until(what, within, async || probe().await.then_some(())).await
}

/// Lets a moment pass that was drawn: what happens at any time must be met at any time.
pub async fn moment(length: Duration) {
    tokio::time::sleep(length).await;
}
