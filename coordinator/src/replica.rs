//! One coordinator of several: follows while another one leads, leads when nobody does.
//!
//! ```text
//!             campaign won                    not renewed in time · fenced · failed
//! Following ───────────────▶ Leading (a term) ─────────────────────────────────────▶ Following
//!     ▲                                                                                 │
//!     └───────────────────────── stop: the lease is given back ◀────────────────────────┘
//! ```
//!
//! Invariants:
//! - There is at most one term at a time in a process, and everything that belongs to it has ended before the next begins.
//! - A term ends by itself [`LeadershipConfig::step_down`] after the last renewal that succeeded was *sent*, which is before
//!   the store lets anybody else win.
//! - Nothing here is needed for safety: appends and steps are fenced where they arrive. This decides who tries.
//!
//! A store that only this process can use (SQLite) has a lease that does not run out; the same code leads for ever then.

mod standing;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use rollback_engine::ids::Epoch;
use rollback_proto::jitter;
use rollback_proto::problem::Problem;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::standing::{Standing, name_of};
use crate::config::LeadershipConfig;
use crate::dispatcher::Dispatcher;
use crate::inventory::Inventory;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::runner::Shared;
use crate::store::{Campaign, Candidate, Fence, Lease, Store, StoreError};
use crate::term::Term;
use crate::troubles::Troubles;

/// How often a follower takes in what the leader wrote of agents.
const REFRESH: Duration = Duration::from_secs(15);
/// What belongs to a term that is over gets this long to end before the lease is given back.
const WIND_UP: Duration = Duration::from_millis(300);
/// Between two attempts that failed.
const RETRY: Duration = Duration::from_millis(500);
/// A term that failed for a reason of its own is not followed by the next one at once.
const COOL_DOWN: Duration = Duration::from_secs(2);
/// After so many terms in a row that agents ended soon by what they claim to obey, the next one does not ask them: above
/// every epoch that honest agents know it would lead by then, and one liar must not keep a fleet from being led.
const OUTDONE: u32 = 5;
const SOON: Duration = Duration::from_secs(60);

/// What a replica is made of.
#[derive(Debug)]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub inventory: Arc<Inventory>,
    pub candidate: Candidate,
    pub timing: LeadershipConfig,
    pub tracer: Option<SdkTracer>,
    pub metrics: Arc<Metrics>,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
}

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Replica(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    standing: watch::Sender<Standing>,
}

/// Why a term ended.
#[derive(Debug)]
enum End {
    /// The process stops.
    Stopped,
    /// Somebody else has the lease.
    Fenced(Epoch),
    /// The store did not confirm the lease in time.
    Unheard(Option<StoreError>),
    /// The term itself could not go on.
    Failed(String),
    /// An agent obeys a higher epoch, or another leader of ours, although the lease is ours.
    Outdone(Epoch),
}

impl Replica {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            standing: watch::Sender::new(Standing::starting()),
        }))
    }

    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }

    pub fn standing(&self) -> Standing {
        self.0.standing.borrow().clone()
    }

    /// The leader, when it is this replica; else a refusal that says where the leader is.
    pub fn leader(&self) -> Result<Leader, Problem> {
        let standing = self.0.standing.borrow();
        standing
            .leader()
            .cloned()
            .ok_or_else(|| standing.refusal(&self.0.parts.candidate))
    }

    /// The leader of this replica's next term; at once when it leads with a later epoch than this one.
    pub async fn until_leading_after(&self, past: Epoch) -> Leader {
        let mut standing = self.0.standing.subscribe();
        loop {
            let leader = standing.borrow_and_update().leader().cloned();
            if let Some(leader) = leader.filter(|leader| leader.shared().term.epoch() > past) {
                return leader;
            }
            // The sender lives as long as `self`.
            let _ = standing.changed().await;
        }
    }

    /// Resolves once it is known who leads.
    pub async fn settled(&self) {
        let mut standing = self.0.standing.subscribe();
        // The sender lives as long as `self`.
        let _ = standing.wait_for(Standing::is_settled).await;
    }

    /// Follows and leads until the process stops; then the lease is given back.
    pub async fn run(&self) {
        let Parts { stop, .. } = &self.0.parts;
        let mut past = Past {
            at_least: Epoch(0),
            outdone: 0,
        };
        let mut follower = Follower::new();
        while !stop.is_cancelled() {
            let sent = Instant::now();
            match self.stand(past.at_least, &follower).await {
                Ok(Campaign::Won(epoch)) => {
                    self.lead(epoch, sent, &mut past).await;
                    follower = Follower::new();
                }
                Ok(Campaign::Held(lease)) => self.follow(&mut follower, lease).await,
                Err(error) => {
                    if follower.is_news(&error) {
                        tracing::warn!(%error, "the store does not say who leads; trying on");
                    }
                    self.set(Standing::cut_off(&self.standing(), &error));
                    self.pause(RETRY).await;
                }
            }
        }
        self.set(Standing::Stopping);
    }

    /// Campaigns when nobody holds the lease. Looking first keeps followers from writing.
    async fn stand(&self, at_least: Epoch, follower: &Follower) -> Result<Campaign, StoreError> {
        let Parts {
            store,
            candidate,
            timing,
            ..
        } = &self.0.parts;
        if store.is_shared() {
            let lease = store.lease().await?;
            let is_dead = lease.is_out_of_time() && follower.out_of_time_for() > timing.ttl;
            if !lease.left.is_zero() && !is_dead && lease.leader != candidate.id {
                return Ok(Campaign::Held(lease));
            }
        }
        store.campaign(candidate, timing.ttl, at_least).await
    }

    async fn follow(&self, follower: &mut Follower, lease: Lease) {
        let Parts {
            store,
            inventory,
            timing,
            ..
        } = &self.0.parts;
        // A leader that lives renews its lease, by whatever clock the store has now.
        follower.out_of_time_since = lease
            .is_out_of_time()
            .then(|| follower.out_of_time_since.unwrap_or_else(Instant::now));
        let standing = self.standing();
        if !standing.follows(&lease) {
            tracing::info!(leader = lease.leader, epoch = lease.epoch.0, "following");
        }
        self.set(standing.following(lease.clone()));
        if follower.refresh_at <= Instant::now() {
            follower.refresh_at = Instant::now() + REFRESH;
            if let Err(error) = inventory.refresh(store.as_ref()).await {
                tracing::warn!(%error, "read the agents");
            }
        }
        // Often enough that a lease that is given back is taken up well within a second; and never past its end.
        let look_again = jitter::spread(timing.renew / 4, 0.5..=1.0);
        self.pause(look_again.min(lease.left.saturating_add(Duration::from_millis(1))))
            .await;
    }

    /// A whole term.
    async fn lead(&self, epoch: Epoch, won_at: Instant, past: &mut Past) {
        let Parts {
            store,
            inventory,
            candidate,
            timing,
            tracer,
            metrics,
            stop,
        } = &self.0.parts;
        let until = store.is_shared().then_some(won_at + timing.step_down);
        let fence = Fence {
            epoch,
            leader: candidate.id.clone(),
        };
        let term = Term::new(fence.clone(), until, stop.child_token());
        let tasks = TaskTracker::new();
        let leader = Leader::new(Shared {
            store: Arc::clone(store),
            dispatcher: Dispatcher::new(Arc::clone(inventory), term.clone()),
            term: term.clone(),
            tracer: tracer.clone(),
            metrics: Arc::clone(metrics),
            troubles: Troubles::default(),
            tasks: tasks.clone(),
        });
        tracing::info!(leader = candidate.id, epoch = epoch.0, "leading");
        metrics.terms.inc();
        inventory.hears_agents(true);
        self.set(Standing::Leading(leader.clone()));
        tasks.spawn(begin(leader, Arc::clone(inventory), term.clone(), timing.renew));

        let believes = past.outdone < OUTDONE;
        if !believes {
            tracing::error!(
                terms = past.outdone,
                "agents claim higher epochs again and again; they are not believed in this term"
            );
        }
        let end = self.hold(&term, believes).await;
        term.end();
        inventory.hears_agents(false);
        self.set(Standing::between_terms(end.why()));
        tasks.close();
        if tokio::time::timeout(WIND_UP, tasks.wait()).await.is_err() {
            tracing::warn!("some tasks of the term did not end in time");
        }
        match &end {
            End::Stopped => tracing::info!(epoch = epoch.0, "the term ends: stopping"),
            End::Outdone(_) => tracing::warn!(epoch = epoch.0, why = %end.text(), "the term ends; campaigning again"),
            End::Fenced(_) | End::Unheard(_) | End::Failed(_) => {
                tracing::error!(epoch = epoch.0, why = %end.text(), "stepped down");
                metrics.stepped_down.inc();
            }
        }
        past.at_least = Epoch(epoch.0 + 1);
        past.outdone = match &end {
            End::Outdone(_) if won_at.elapsed() < SOON => past.outdone + 1,
            End::Outdone(_) | End::Stopped | End::Fenced(_) | End::Unheard(_) | End::Failed(_) => 0,
        };
        match end {
            End::Outdone(claimed) => past.at_least = Epoch(claimed.0.max(epoch.0) + 1),
            End::Stopped | End::Failed(_) => {
                // Nobody needs to wait for a lease that nobody uses. Whether it arrives or not: it runs out.
                let given_back = tokio::time::timeout(timing.renew, store.give_back(&fence)).await;
                if !matches!(given_back, Ok(Ok(()))) {
                    tracing::warn!(epoch = epoch.0, "could not give the lease back; it runs out by itself");
                }
                // Another replica, with another disk and another network, is to have the first try.
                self.pause(COOL_DOWN).await;
            }
            End::Fenced(_) | End::Unheard(_) => {}
        }
    }

    /// Renews the lease until the term ends. `believes`: also when agents say that they obey somebody else.
    async fn hold(&self, term: &Term, believes: bool) -> End {
        let Parts {
            store, timing, stop, ..
        } = &self.0.parts;
        let mut outdone = term.watch_outdone();
        let mut renew_at = Instant::now() + timing.renew;
        let mut last_error = None;
        loop {
            let until = term.until();
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stopped,
                () = term.ended() => return End::Failed(term.failed().unwrap_or_else(|| "it was ended".to_owned())),
                () = until_instant(until) => return End::Unheard(last_error),
                // The sender lives as long as `term`.
                _ = outdone.changed(), if believes => {}
                () = tokio::time::sleep_until(renew_at), if until.is_some() => {}
            }
            let claimed = outdone.borrow_and_update().filter(|_| believes);
            let sent = Instant::now();
            let renewed = tokio::select! {
                biased;
                // A store that is slow must not keep the lease from being given back.
                () = stop.cancelled() => return End::Stopped,
                () = until_instant(until) => return End::Unheard(last_error),
                renewed = store.renew(term.fence(), timing.ttl) => renewed,
            };
            match renewed {
                Ok(()) => {
                    if until.is_some() {
                        term.extend(sent + timing.step_down);
                    }
                    last_error = None;
                    renew_at = sent + timing.renew;
                }
                Err(StoreError::Fenced(other)) => return End::Fenced(other),
                Err(error) => {
                    tracing::warn!(%error, epoch = term.epoch().0, "renew the lease; trying again");
                    last_error = Some(error);
                    renew_at = Instant::now() + timing.renew / 8;
                    continue;
                }
            }
            // The lease is ours, and an agent obeys somebody else: a store that gives epochs out again.
            if let Some(claimed) = claimed {
                return End::Outdone(claimed);
            }
        }
    }

    fn set(&self, standing: Standing) {
        self.0.standing.send_replace(standing);
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.0.parts.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn until_instant(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// What a term begins with, and what it then keeps an eye on.
async fn begin(leader: Leader, inventory: Arc<Inventory>, term: Term, look_every: Duration) {
    let shared = leader.shared().store.is_shared();
    let work = async {
        // Agents that registered with the leader before, since this replica looked last.
        if let Err(error) = inventory.refresh(leader.shared().store.as_ref()).await {
            tracing::warn!(%error, "read the agents");
        }
        leader.take_up().await
    };
    tokio::select! {
        biased;
        () = term.ended() => {}
        taken_up = work => match taken_up {
            Ok(taken_up) => tracing::info!(epoch = term.epoch().0, taken_up, "took up what was running"),
            Err(problem) => term.fail(format!("take up what was running: {problem}")),
        }
    }
    if !shared {
        return;
    }
    tokio::select! {
        biased;
        () = term.ended() => {}
        lost = leader.until_store_forgets(look_every) => term.fail(lost),
    }
}

impl End {
    fn text(&self) -> String {
        match self {
            End::Stopped => "the coordinator stops".to_owned(),
            End::Fenced(epoch) => format!("another coordinator leads, with epoch {}", epoch.0),
            End::Unheard(None) => "the store did not confirm the lease in time".to_owned(),
            End::Unheard(Some(error)) => {
                let problem = Problem::from_error(rollback_proto::problem::Code::StoreUnavailable, "store", error);
                format!("the store did not confirm the lease in time: {}", problem.message)
            }
            End::Failed(why) => why.clone(),
            End::Outdone(epoch) => format!("an agent obeys epoch {}", epoch.0),
        }
    }

    /// For those who ask afterwards why it does not lead. `None`: there is nothing to explain.
    fn why(&self) -> Option<String> {
        match self {
            End::Stopped | End::Outdone(_) => None,
            End::Fenced(_) | End::Unheard(_) | End::Failed(_) => Some(self.text()),
        }
    }
}

/// What is remembered of the terms that are over.
#[derive(Debug)]
struct Past {
    /// The next one's epoch must be this at least: this process is known by its id, so that a store that lost a term must
    /// not give its epoch to the same id again.
    at_least: Epoch,
    /// How many of the last ones agents ended soon, in a row.
    outdone: u32,
}

/// What a follower remembers from one look to the next.
#[derive(Debug)]
struct Follower {
    refresh_at: Instant,
    said: Option<String>,
    /// Since when every look found the lease [out of time](Lease::is_out_of_time).
    out_of_time_since: Option<Instant>,
}

impl Follower {
    fn new() -> Self {
        Self {
            refresh_at: Instant::now(),
            said: None,
            out_of_time_since: None,
        }
    }

    fn out_of_time_for(&self) -> Duration {
        self.out_of_time_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Was the same thing said before?
    fn is_news(&mut self, error: &StoreError) -> bool {
        let text = error.to_string();
        self.said.replace(text.clone()) != Some(text)
    }
}
