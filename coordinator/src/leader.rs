//! What a replica does in a term: takes up every rollback that has not ended, starts new ones, lets people watch.
//!
//! Invariants:
//! - A rollback runs in exactly one task here, registered in `running` from before its first effect until after its last
//!   event is durable.
//! - Everything here ends with the term, at any await: the journal says how to go on.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rollback_engine::event::{Act, Command, Event};
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::loss::Consent;
use rollback_engine::machine::{self, State};
use rollback_engine::plan::Plan;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tokio::sync::{Notify, broadcast, oneshot, watch};

use crate::history;
use crate::projection::Summary;
use crate::recall::{self, Recalled};
use crate::runner::{self, Given, Handle, LastAct, Lines, Runner, Shared, Steering, Stopped};
use crate::store::{Created, NewRollback, StoreError};

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

/// How often a journal that the store did not give is asked for again.
const READ_AGAIN: Duration = Duration::from_millis(500);

type Running = Arc<Mutex<HashMap<RollbackId, Handle>>>;

#[derive(Clone, Debug)]
pub struct Leader {
    shared: Shared,
    running: Running,
    /// Nothing is started before what was running has been taken up.
    taken_up: Arc<watch::Sender<bool>>,
    /// How many are in `running`.
    count: Arc<watch::Sender<usize>>,
    /// A release was recorded since somebody last waited for that.
    recorded: Arc<Notify>,
    /// Rollbacks whose journal cannot be read.
    unreadable: Arc<Mutex<BTreeSet<RollbackId>>>,
    /// Rollbacks of which the store did not say whether they were begun.
    unsure: Arc<Mutex<BTreeSet<RollbackId>>>,
}

impl Leader {
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            running: Running::default(),
            taken_up: Arc::new(watch::Sender::new(false)),
            count: Arc::default(),
            recorded: Arc::default(),
            unreadable: Arc::default(),
            unsure: Arc::default(),
        }
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Goes on with every rollback that an earlier term left. The same code path as a new one: read, run; except that the
    /// agents' ledgers are asked first what they know.
    pub async fn take_up(&self) -> Result<usize, Problem> {
        let ids = self.shared.store.running().await?;
        let mut read = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(lines) = self.register(&id) else { continue };
            tracing::info!(rollback = %id, "going on with a rollback from the journal");
            match self.read_journal(&id).await {
                Ok(events) => match self.runner(&id, &events, lines) {
                    Ok(runner) => read.push((id, (runner, events))),
                    Err(error) => self.set_aside(&id, error),
                },
                // What one answer of the store did not bring, the next one may. The others do not wait for it.
                Err(StoreError::Unavailable { .. }) => {
                    let this = self.clone();
                    self.spawn_in_term(async move { this.take_up_later(id, lines).await });
                }
                Err(error) => self.set_aside(&id, error),
            }
        }
        let ids: Vec<RollbackId> = read.iter().map(|(id, _)| id.clone()).collect();
        let (recalled, hosts) = self.go_on(read).await;
        self.taken_up.send_replace(true);
        self.look_around(recalled, hosts, ids.clone());
        Ok(ids.len())
    }

    /// Goes on with a rollback whose journal the store did not give when the term began. It is registered all the while.
    async fn take_up_later(&self, id: RollbackId, lines: Lines) {
        let events = loop {
            tokio::time::sleep(READ_AGAIN).await;
            match self.read_journal(&id).await {
                Ok(events) => break events,
                Err(error @ StoreError::Unavailable { .. }) => {
                    let problem = Problem::from(error);
                    let what = format!("stands still, its journal cannot be read now: {problem}");
                    self.shared.troubles.begin(format!("rollback {id}"), what);
                }
                Err(error) => return self.set_aside(&id, error),
            }
        };
        match self.runner(&id, &events, lines) {
            Ok(runner) => {
                self.shared.troubles.over(&format!("rollback {id}"));
                drop(self.go_on(vec![(id, (runner, events))]).await);
            }
            Err(error) => self.set_aside(&id, error),
        }
    }

    /// A journal that is damaged must not keep all the others from going on. Its scope stays held, so nothing is started
    /// over it before a person has looked.
    fn set_aside(&self, id: &RollbackId, error: StoreError) {
        self.unregister(id);
        let unreadable = &self.unreadable;
        unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone());
        self.shared.metrics.fatal.inc();
        let what = format!("its journal cannot be read: {}", Problem::from(error));
        self.shared.troubles.begin(format!("rollback {id}"), what);
    }

    /// Asks the agents what they know of these rollbacks, and runs them. What they said, and who was asked.
    async fn go_on(&self, read: Vec<(RollbackId, (Runner, Vec<Event>))>) -> (Recalled, BTreeSet<String>) {
        let ids: Vec<RollbackId> = read.iter().map(|(id, _)| id.clone()).collect();
        let hosts: BTreeSet<String> = read
            .iter()
            .flat_map(|(_, (runner, _))| runner.hosts().map(str::to_owned))
            .collect();
        let recalled = recall::recall(&self.shared.dispatcher, hosts.clone(), &ids).await;
        for (id, (mut runner, events)) in read {
            let unknown = recalled.unknown_to(&id, &events);
            if !unknown.is_empty() {
                let problem = recall::journal_lost(&unknown);
                self.shared
                    .troubles
                    .begin(format!("rollback {id}"), problem.to_string());
                runner.doubt(problem);
            }
            self.spawn(id, runner);
        }
        (recalled, hosts)
    }

    /// Comes back when the store says that a rollback runs which this leader has seen end: it has lost a commit that it had
    /// confirmed, and nobody would ever go on with that rollback. Twice in a row, because one that is just being started or
    /// ended is in the store and here at slightly different moments.
    pub async fn until_store_forgets(&self, look_every: Duration) -> String {
        let mut suspects = BTreeSet::new();
        loop {
            tokio::time::sleep(look_every).await;
            // A store that does not answer ends the term by other means.
            let Ok(running) = self.shared.store.running().await else {
                continue;
            };
            let missing: BTreeSet<RollbackId> = running.into_iter().filter(|id| !self.is_known(id)).collect();
            // Their beginning was written, and the answer to it was lost.
            let begun: Vec<RollbackId> = missing.iter().filter(|id| self.is_unsure_of(id)).cloned().collect();
            for id in &begun {
                // Tried again with the next look.
                if let Err(problem) = self.ensure_running(id).await {
                    tracing::warn!(rollback = %id, %problem, "it was begun and does not run yet");
                }
            }
            let missing: BTreeSet<RollbackId> = missing.into_iter().filter(|id| !begun.contains(id)).collect();
            if let Some(lost) = missing.intersection(&suspects).next() {
                return format!(
                    "the store says that rollback {lost} runs, and it has ended here: the store has lost its end"
                );
            }
            suspects = missing;
        }
    }

    fn is_unsure_of(&self, id: &RollbackId) -> bool {
        let unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
        unsure.contains(id)
    }

    fn is_known(&self, id: &RollbackId) -> bool {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(id)
            || self
                .unreadable
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(id)
    }

    async fn when_taken_up(&self) -> Result<(), Problem> {
        let mut taken_up = self.taken_up.subscribe();
        tokio::select! {
            // The sender lives as long as `self`.
            _ = taken_up.wait_for(|done| *done) => Ok(()),
            () = self.shared.term.ended() => {
                Err(Problem::new(Code::NotLeader, "the term ended before the running rollbacks were taken up"))
            }
        }
    }

    /// The agents that no running rollback is about are asked, too, and nobody waits for them: they learn who leads, and
    /// they may remember a rollback that the store has lost altogether.
    fn look_around(&self, recalled: Recalled, asked: BTreeSet<String>, known: Vec<RollbackId>) {
        let this = self.clone();
        self.spawn_in_term(async move {
            let all = this.shared.dispatcher.inventory().list();
            let others = all.into_iter().map(|agent| agent.record.name);
            let others = others.filter(|name| !asked.contains(name)).collect();
            let more = recall::recall(&this.shared.dispatcher, others, &known).await;
            for (id, host) in recalled.others.into_iter().chain(more.others) {
                let lost = this.shared.store.summary(&RollbackId(id.clone())).await;
                if matches!(lost, Ok(None)) {
                    this.shared.metrics.fatal.inc();
                    let what = format!("{host} remembers it, the store does not: it has lost what it had confirmed");
                    this.shared.troubles.begin(format!("rollback {id}"), what);
                }
            }
        });
    }

    /// Ends with the term.
    fn spawn_in_term(&self, work: impl Future<Output = ()> + Send + 'static) {
        let term = self.shared.term.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = term.ended() => {}
                () = work => {}
            }
        });
    }

    /// Makes a rollback durable and starts it. The id of the rollback that this request started, now or before.
    pub async fn start(&self, start: Start) -> Result<RollbackId, Problem> {
        // In a task of its own: a caller that goes away between the commit and the start must not leave a rollback that
        // nobody runs.
        let this = self.clone();
        let (answer, answered) = oneshot::channel();
        self.spawn_in_term(async move {
            // A caller that went away asks again.
            drop(answer.send(this.start_owned(start).await));
        });
        answered
            .await
            .map_err(|_| Problem::new(Code::NotLeader, "the term ended while the rollback was being started"))?
    }

    async fn start_owned(&self, start: Start) -> Result<RollbackId, Problem> {
        self.when_taken_up().await?;
        let id = RollbackId(uuid::Uuid::now_v7().to_string());
        let scope: Vec<Target> = start.plan.body.changes.iter().map(|c| c.target.clone()).collect();
        let ledgers = scope.iter().filter_map(|target| {
            let generation = self.shared.dispatcher.ledger_of(target.host.as_str())?;
            Some((target.host.clone(), generation))
        });
        let ledgers = ledgers.collect();
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
            ledgers,
        };
        let events = machine::transition(&mut state, command).map_err(runner::refused)?;
        let summary = serde_json::to_string(&Summary::of(&id, &state))
            .map_err(|e| Problem::from_error(Code::Internal, "write summary", &e))?;
        let new = NewRollback {
            id: id.clone(),
            request_id: start.request_id,
            scope,
            events,
            summary,
        };
        let created = self.shared.store.create(self.shared.term.fence(), &new).await;
        if matches!(created, Err(StoreError::Unavailable { .. })) {
            let unsure = &self.unsure;
            unsure.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        }
        match created? {
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
        self.when_taken_up().await?;
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
            let waits = match (&s.standstill, s.approval.as_ref().map(|approval| &approval.approved)) {
                (Some(still), _) => format!("; {} has paused it", still.by.as_deref().unwrap_or("its runbook")),
                (None, Some(None)) => "; it waits for an approval".to_owned(),
                (None, Some(Some(_)) | None) => String::new(),
            };
            format!(
                " (to {}, started by {} at {:.0}{waits})",
                s.release, s.started_by, s.started_at
            )
        });
        Problem::new(Code::ScopeHeld, format!("rollback {holder}{who} holds {target}"))
            .remedy(format!("watch it: rollbackctl rollback watch {holder}"))
    }

    /// Runs the rollback here, unless it does already. One that has ended ends again at once.
    async fn ensure_running(&self, id: &RollbackId) -> Result<(), Problem> {
        let Some(lines) = self.register(id) else {
            return Ok(());
        };
        let read = self.read_journal(id).await;
        match read.and_then(|events| self.runner(id, &events, lines)) {
            Ok(runner) => {
                self.unsure.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
                self.spawn(id.clone(), runner);
                Ok(())
            }
            Err(error) => {
                self.unregister(id);
                Err(error.into())
            }
        }
    }

    /// Before anything is read: of two that ask at the same time, one runs it. `None`: it runs.
    fn register(&self, id: &RollbackId) -> Option<Lines> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.entry(id.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                let (handle, lines) = runner::lines();
                place.insert(handle);
                self.count.send_replace(running.len());
                Some(lines)
            }
        }
    }

    fn unregister(&self, id: &RollbackId) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(id);
        self.count.send_replace(running.len());
    }

    async fn read_journal(&self, id: &RollbackId) -> Result<Vec<Event>, StoreError> {
        let events = self.shared.store.events(id, 0).await?;
        Ok(events.into_iter().map(|r| r.event).collect())
    }

    fn runner(&self, id: &RollbackId, events: &[Event], lines: Lines) -> Result<Runner, StoreError> {
        Runner::from_journal(self.shared.clone(), id.clone(), events, lines).map_err(|e| StoreError::Damaged {
            what: "the journal",
            why: format!("{id}: {e}"),
        })
    }

    fn spawn(&self, id: RollbackId, runner: Runner) {
        let this = self.clone();
        self.spawn_in_term(async move {
            let stopped = runner.run().await;
            this.unregister(&id);
            match stopped {
                Stopped::Ended => tracing::info!(rollback = %id, "rollback ended"),
                Stopped::Left(error) => {
                    // Nothing that runs here may be trusted to lead any more: the term ends, and the next one, here or
                    // elsewhere, reads the journal.
                    tracing::error!(rollback = %id, %error, "cannot go on with the journal");
                    this.shared.metrics.fatal.inc();
                    this.shared.term.fail(format!("rollback {id}: {error}"));
                }
            }
        });
    }

    /// What happens from here on; `None` when the rollback does not run here.
    pub fn subscribe(&self, id: &RollbackId) -> Option<broadcast::Receiver<v1::RollbackEvent>> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .map(|handle| handle.live.subscribe())
    }

    /// An operator's act. The rollback as it is afterwards, once that is durable.
    pub async fn steer(&self, id: &RollbackId, by: String, reason: String, act: Act) -> Result<Summary, Problem> {
        self.when_taken_up().await?;
        let handle = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.get(id).map(|handle| handle.acts.clone())
        };
        if let Some(acts) = handle {
            let (answer, answered) = oneshot::channel();
            let steering = Steering {
                by: by.clone(),
                reason: reason.clone(),
                act: act.clone(),
                answer,
            };
            if acts.send(steering).await.is_ok()
                && let Ok(answer) = answered.await
            {
                return answer;
            }
            // It has ended before it looked, or the term has: the journal says which.
            if !self.shared.term.holds() {
                return Err(Problem::new(
                    Code::NotLeader,
                    format!("the term ended; ask the next leader what became of rollback {id}"),
                ));
            }
        }
        self.steer_what_does_not_run(id, by, reason, act).await
    }

    /// What has ended takes no act; but whoever ended it, and lost the answer, is told so.
    async fn steer_what_does_not_run(
        &self,
        id: &RollbackId,
        by: String,
        reason: String,
        act: Act,
    ) -> Result<Summary, Problem> {
        let events = self.read_journal(id).await?;
        if events.is_empty() {
            return Err(Problem::new(Code::NotFound, format!("no rollback {id}")));
        }
        let mut state = State::replay(events.iter().cloned()).map_err(|e| history::unreadable(id, &e))?;
        if state.ending().is_none() {
            let text = format!("rollback {id} does not run on this coordinator now");
            return Err(Problem::new(Code::NotLeader, text));
        }
        let summary = Summary::of(id, &state);
        let given = Given {
            by: by.clone(),
            reason: reason.clone(),
            act: act.clone(),
        };
        let at = Timestamp::now();
        match machine::transition(&mut state, Command::Steer { at, by, reason, act }) {
            Err(rejected) => {
                let last = LastAct::of(&events);
                match summary.filter(|_| last.is_done_already(&state, &given, &rejected)) {
                    Some(summary) => Ok(summary),
                    None => Err(runner::refused(rejected)),
                }
            }
            // Nothing is written here: the machine has no business to take an act after the end.
            Ok(_) => Err(Problem::new(
                Code::Internal,
                format!("rollback {id} has ended and takes an act"),
            )),
        }
    }

    /// A release was recorded: what the fleet could go back to is another one.
    pub fn release_recorded(&self) {
        self.recorded.notify_one();
    }

    /// Resolves once for any number of releases that were recorded since the last time. For one who waits.
    pub async fn until_recorded(&self) {
        self.recorded.notified().await;
    }

    /// Resolves at once when a rollback runs, else when one begins.
    pub async fn until_busy(&self) {
        // The sender lives as long as `self`.
        let _ = self.count.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Resolves when what an earlier term left is taken up, and no rollback runs.
    pub async fn until_idle(&self) {
        let _ = self.taken_up.subscribe().wait_for(|done| *done).await;
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// How many run here. Changes whenever one begins or ends, however short it is.
    pub fn watch_count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    pub fn running_count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
