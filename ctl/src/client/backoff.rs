//! How long to wait before asking again.

use std::time::Duration;

use rollback_proto::jitter::spread;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3);

/// Doubles from 100 ms to 3 s, each pause shortened by up to a half at random, so that many operators' terminals do not
/// come back in the same instant. It has no end of its own: the caller decides when to give up.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Self::up_to(LONGEST)
    }

    /// With another longest pause.
    pub fn up_to(longest: Duration) -> Self {
        Self { next: FIRST, longest }
    }

    /// Call when something worked.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    pub async fn pause(&mut self) {
        let pause = spread(self.next, 0.5..=1.0);
        self.next = (self.next * 2).min(self.longest);
        tokio::time::sleep(pause).await;
    }
}
