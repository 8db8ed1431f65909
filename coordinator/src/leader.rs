//! The leader: takes the epoch, takes up every rollback that has not ended, starts new ones, lets people watch.
//!
//! Invariant: a rollback runs in exactly one task here, registered in `running` from before its first effect until after
//! its last event is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rollback_engine::event::Command;
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::loss::Consent;
use rollback_engine::machine::{self, Rejected, State};
use rollback_engine::plan::Plan;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tokio::sync::broadcast;

use crate::projection::Summary;
use crate::runner::{LIVE_EVENTS, Runner, Shared, Stopped};
use crate::store::{Created, NewRollback};

/// A rollback that an operator asks for.
#[derive(Debug)]
pub struct Start {
    pub plan: Plan,
    pub request_id: String,
    pub started_by: String,
    pub reason: String,
    pub incident: String,
    /// W3C ids of the caller's span.
    pub trace_id: String,
    pub parent_span_id: String,
    /// To the loss that this plan may cost.
    pub consent: Option<Consent>,
}

/// Why the machine takes no such rollback.
fn refused(rejected: Rejected) -> Problem {
    let code = match rejected {
        Rejected::NoConsent(_) => Code::ConsentNeeded,
        Rejected::NotCreated
        | Rejected::AlreadyCreated
        | Rejected::Unsound(_)
        | Rejected::NotInFlight { .. }
        | Rejected::Corrupt(_) => Code::PlanRefused,
    };
    Problem::from_error(code, "create rollback", &rejected)
}

type Running = Arc<Mutex<HashMap<RollbackId, broadcast::Sender<v1::RollbackEvent>>>>;

#[derive(Clone, Debug)]
pub struct Leader {
    shared: Shared,
    running: Running,
    damaged: Arc<Mutex<Vec<RollbackId>>>,
}

impl Leader {
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            running: Running::default(),
            damaged: Arc::default(),
        }
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Goes on with every rollback that an earlier process left. The same code path as a new one: read, run.
    pub async fn take_up(&self) -> Result<usize, Problem> {
        let ids = self.shared.store.running().await?;
        let mut taken_up = 0;
        for id in ids {
            tracing::info!(rollback = %id, "going on with a rollback from the journal");
            match self.ensure_running(&id).await {
                Ok(()) => taken_up += 1,
                // A journal that cannot be read must not keep all the others from going on. Its scope stays held, so
                // nothing is started over it before a person has looked.
                Err(problem) => {
                    tracing::error!(rollback = %id, %problem, "cannot go on with a rollback");
                    self.shared.metrics.fatal.inc();
                    self.damaged.lock().unwrap_or_else(PoisonError::into_inner).push(id);
                }
            }
        }
        Ok(taken_up)
    }

    /// Makes a rollback durable and starts it. The id of the rollback that this request started, now or before.
    pub async fn start(&self, start: Start) -> Result<RollbackId, Problem> {
        // In a task of its own: a caller that goes away between the commit and the start must not leave a rollback that
        // nobody runs.
        let this = self.clone();
        let task = self.shared.tasks.spawn(async move { this.start_owned(start).await });
        task.await
            .map_err(|e| Problem::new(Code::Internal, format!("start rollback: {e}")))?
    }

    async fn start_owned(&self, start: Start) -> Result<RollbackId, Problem> {
        let id = RollbackId(uuid::Uuid::now_v7().to_string());
        let scope: Vec<Target> = start.plan.body.changes.iter().map(|c| c.target.clone()).collect();
        let mut state = State::New;
        let command = Command::Create {
            at: Timestamp::now(),
            plan: Box::new(start.plan),
            started_by: start.started_by,
            reason: start.reason,
            incident: start.incident,
            trace_id: start.trace_id,
            parent_span_id: start.parent_span_id,
            consent: start.consent,
        };
        let events = machine::transition(&mut state, command).map_err(refused)?;
        let summary = serde_json::to_string(&Summary::of(&id, &state))
            .map_err(|e| Problem::from_error(Code::Internal, "write summary", &e))?;
        let new = NewRollback {
            id: id.clone(),
            request_id: start.request_id,
            scope,
            events,
            summary,
        };
        match self.shared.store.create(self.shared.epoch, &new).await? {
            Created::New => {}
            // The answer to the first request was lost, perhaps with the process that should have run it.
            Created::Existing(existing) => {
                self.ensure_running(&existing).await?;
                return Ok(existing);
            }
            Created::ScopeHeld { target, holder } => return Err(self.scope_held(&target, &holder).await),
        }
        tracing::info!(rollback = %id, scope = new.scope.len(), "rollback started");
        self.shared.metrics.rollbacks_started.inc();
        self.ensure_running(&id).await?;
        Ok(id)
    }

    /// The rollback that this request started before, running again if its process was lost.
    pub async fn started_before(&self, request_id: &str) -> Result<Option<RollbackId>, Problem> {
        let Some(id) = self.shared.store.requested(request_id).await? else {
            return Ok(None);
        };
        self.ensure_running(&id).await?;
        Ok(Some(id))
    }

    /// Refuses when a running rollback holds one of these. `start` decides; this is for an early and clear answer.
    pub async fn check_free(&self, targets: &[Target]) -> Result<(), Problem> {
        match self.shared.store.holder(targets).await? {
            Some((target, holder)) => Err(self.scope_held(&target, &holder).await),
            None => Ok(()),
        }
    }

    async fn scope_held(&self, target: &Target, holder: &RollbackId) -> Problem {
        let summary = self.shared.store.summary(holder).await.ok().flatten();
        let summary = summary.and_then(|s| serde_json::from_str::<Summary>(&s).ok());
        let who = summary.map_or_else(String::new, |s| {
            format!(" (to {}, started by {} at {})", s.release, s.started_by, s.started_at)
        });
        Problem::new(Code::ScopeHeld, format!("rollback {holder}{who} holds {target}"))
            .remedy(format!("watch it: rollbackctl rollback watch {holder}"))
    }

    /// Runs the rollback here, unless it does already. One that has ended ends again at once.
    async fn ensure_running(&self, id: &RollbackId) -> Result<(), Problem> {
        let (live, _) = broadcast::channel(LIVE_EVENTS);
        // Registered first: of two that ask at the same time, one runs it.
        match self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(id.clone())
        {
            Entry::Occupied(_) => return Ok(()),
            Entry::Vacant(place) => place.insert(live.clone()),
        };
        match self.read_runner(id, live).await {
            Ok(runner) => {
                self.spawn(id.clone(), runner);
                Ok(())
            }
            Err(problem) => {
                self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
                Err(problem)
            }
        }
    }

    async fn read_runner(
        &self,
        id: &RollbackId,
        live: broadcast::Sender<v1::RollbackEvent>,
    ) -> Result<Runner, Problem> {
        let events = self.shared.store.events(id, 0).await?;
        let events = events.into_iter().map(|r| r.event).collect();
        Runner::from_journal(self.shared.clone(), id.clone(), events, live)
            .map_err(|e| Problem::from_error(Code::StoreUnavailable, format_args!("read rollback {id}"), &e))
    }

    fn spawn(&self, id: RollbackId, runner: Runner) {
        let (running, shared) = (Arc::clone(&self.running), self.shared.clone());
        self.shared.tasks.spawn(async move {
            let stopped = runner.run().await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            match stopped {
                Stopped::Ended => tracing::info!(rollback = %id, "rollback ended"),
                Stopped::Cancelled => tracing::info!(rollback = %id, "left to the next start"),
                Stopped::Left(error) => {
                    // Nothing that runs here may be trusted to lead any more: stop, and let a start (or another
                    // replica) read the journal.
                    tracing::error!(rollback = %id, %error, "cannot go on with the journal; stopping");
                    shared.metrics.fatal.inc();
                    shared.stop.cancel();
                }
            }
        });
    }

    /// Rollbacks whose journal could not be read.
    pub fn damaged(&self) -> Vec<RollbackId> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What happens from here on; `None` when the rollback does not run here.
    pub fn subscribe(&self, id: &RollbackId) -> Option<broadcast::Receiver<v1::RollbackEvent>> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .map(broadcast::Sender::subscribe)
    }

    pub fn running_count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The state of a rollback, running or ended, as the journal has it.
    pub async fn state(&self, id: &RollbackId) -> Result<State, Problem> {
        let events = self.shared.store.events(id, 0).await?;
        if events.is_empty() {
            return Err(Problem::new(Code::NotFound, format!("no rollback {id}")));
        }
        State::replay(events.into_iter().map(|r| r.event))
            .map_err(|e| Problem::from_error(Code::StoreUnavailable, format_args!("read rollback {id}"), &e))
    }
}
