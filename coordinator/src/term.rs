//! A term: the time from winning the lease to giving it up. Whatever a leader does, it does in a term.
//!
//! Invariants:
//! - A term that has ended stays ended; who led gets another one, with a higher epoch.
//! - Nothing is sent to an agent in a term's name once its time is over, also when the process was stopped in the
//!   meantime and no timer could fire: [`Term::holds`] asks the clock.
//! - The clock is the monotonic one, and time is counted from when a renewal was *sent*: the store's own count began later.
//!
//! What protects the journal and the agents is the epoch, which they check themselves. The clock here only keeps a leader
//! from trying.

use std::sync::{Arc, Mutex, PoisonError};

use rollback_engine::ids::Epoch;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::Fence;

/// An agent that claims to obey an epoch further ahead than this is not believed: epochs grow by one for each term, and
/// they must not be used up by one peer's word.
const BELIEVED: u64 = 1 << 32;

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Term(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fence: Fence,
    /// `None`: the lease does not run out.
    until: Mutex<Option<Instant>>,
    /// The highest epoch that an agent said it obeys instead.
    outdone: watch::Sender<Option<Epoch>>,
    /// Why it ended, when somebody ended it for a reason.
    failed: Mutex<Option<String>>,
    stop: CancellationToken,
}

impl Term {
    /// `stop` is cancelled when the term ends, and ends it.
    pub fn new(fence: Fence, until: Option<Instant>, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            fence,
            until: Mutex::new(until),
            outdone: watch::Sender::new(None),
            failed: Mutex::default(),
            stop,
        }))
    }

    pub fn epoch(&self) -> Epoch {
        self.0.fence.epoch
    }

    /// What it writes under.
    pub fn fence(&self) -> &Fence {
        &self.0.fence
    }

    pub fn leader(&self) -> &str {
        &self.0.fence.leader
    }

    /// What agents know the leader by. Those from before there were replicas refuse everything from a leader whose id is
    /// not a name.
    pub fn leader_for_agents(&self) -> String {
        self.leader().replace('/', "+")
    }

    /// May anything still be done in its name?
    pub fn holds(&self) -> bool {
        !self.0.stop.is_cancelled() && self.until().is_none_or(|until| Instant::now() < until)
    }

    /// When its time is over, unless it is extended.
    pub fn until(&self) -> Option<Instant> {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn extend(&self, until: Instant) {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Ends it; the first reason is kept.
    pub fn fail(&self, why: String) {
        self.0
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
        self.0.stop.cancel();
    }

    pub fn failed(&self) -> Option<String> {
        self.0.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An agent says that it obeys another leader, with this epoch.
    pub fn outdone(&self, epoch: Epoch) {
        if epoch < self.epoch() {
            return;
        }
        if epoch.0 - self.epoch().0 >= BELIEVED {
            tracing::error!(epoch = epoch.0, "an agent claims to obey an epoch that cannot be");
            return;
        }
        self.0.outdone.send_if_modified(|known| {
            let news = known.is_none_or(|known| known < epoch);
            if news {
                *known = Some(epoch);
            }
            news
        });
    }

    pub fn watch_outdone(&self) -> watch::Receiver<Option<Epoch>> {
        self.0.outdone.subscribe()
    }

    pub async fn ended(&self) {
        self.0.stop.cancelled().await;
    }

    pub fn end(&self) {
        self.0.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn fence() -> Fence {
        Fence {
            epoch: Epoch(3),
            leader: "a/1".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_is_over_ends_what_may_be_done_although_no_timer_fired() {
        let term = Term::new(
            fence(),
            Some(Instant::now() + Duration::from_secs(4)),
            CancellationToken::new(),
        );
        assert!(term.holds());
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!term.holds());
        term.extend(Instant::now() + Duration::from_secs(1));
        assert!(term.holds());
        term.fail("the first reason".to_owned());
        term.fail("another one".to_owned());
        assert!(!term.holds());
        assert_eq!(term.failed().as_deref(), Some("the first reason"));
    }

    #[test]
    fn agents_of_every_version_take_the_leaders_id() {
        let name = "c".repeat(crate::config::MAX_COORDINATOR_NAME);
        let fence = Fence {
            epoch: Epoch(1),
            leader: format!("{name}/{}", uuid::Uuid::now_v7()),
        };
        let term = Term::new(fence, None, CancellationToken::new());
        rollback_proto::names::check_name("leader", &term.leader_for_agents()).expect("a name");
        assert_eq!(crate::replica::name_of(&term.leader_for_agents()), name);
    }

    #[tokio::test]
    async fn highest_epoch_that_outdoes_us_is_what_counts() {
        let term = Term::new(fence(), None, CancellationToken::new());
        let watched = term.watch_outdone();
        term.outdone(Epoch(9));
        term.outdone(Epoch(5));
        term.outdone(Epoch(u64::MAX));
        assert_eq!(*watched.borrow(), Some(Epoch(9)));
    }
}
