//! One task per running rollback: the loop command → events → journal → effects.
//!
//! Invariants:
//! - Effects follow only from events that are durable.
//! - Everything that arrived by the time an append begins goes into that one append (one transaction, one fsync).
//! - A journal that has gone on without us, or a newer leader, ends the runner at once; nothing more is dispatched.
//! - The runner keeps no truth of its own: dropped at any point, the journal says how to go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use opentelemetry_sdk::trace::SdkTracer;
use rollback_engine::event::{Command, Direction, Effect, Ending, Event};
use rollback_engine::ids::{Epoch, RollbackId, StepId};
use rollback_engine::machine::{self, Rejected, State};
use rollback_proto::v1;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::closing;
use crate::dispatcher::{Dispatcher, Order};
use crate::journal_spans::JournalSpans;
use crate::metrics::Metrics;
use crate::projection::{self, Summary};
use crate::store::{APPEND_PATIENCE, Closing, Store, StoreError};

/// Answers of this many steps wait while an append is under way; more make their tasks wait.
const COMMANDS: usize = 1024;

/// Watchers that fall this many events behind read the journal again.
pub const LIVE_EVENTS: usize = 1024;

/// What every runner shares.
#[derive(Clone, Debug)]
pub struct Shared {
    pub store: Arc<dyn Store>,
    pub dispatcher: Dispatcher,
    pub epoch: Epoch,
    pub tracer: Option<SdkTracer>,
    pub metrics: Arc<Metrics>,
    pub tasks: TaskTracker,
    /// Cancelled when the process stops or does not lead any more.
    pub stop: CancellationToken,
}

/// A rollback that runs here.
#[derive(Debug)]
pub struct Runner {
    shared: Shared,
    id: RollbackId,
    state: State,
    /// The last event in the journal.
    seq: u64,
    spans: JournalSpans,
    live: broadcast::Sender<v1::RollbackEvent>,
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
}

/// Why a runner stopped.
#[derive(Debug)]
pub enum Stopped {
    Ended,
    /// Left to the next start or the next leader.
    Left(StoreError),
    Cancelled,
}

impl Runner {
    /// Takes up a rollback from its journal: one that was created a moment ago, or one that another leader left.
    pub fn from_journal(
        shared: Shared,
        id: RollbackId,
        events: Vec<Event>,
        live: broadcast::Sender<v1::RollbackEvent>,
    ) -> Result<Self, machine::Corrupt> {
        let mut spans = JournalSpans::new(shared.tracer.clone(), id.clone(), shared.epoch);
        let mut state = State::New;
        for event in &events {
            machine::apply(&mut state, event)?;
            spans.follow(&state, event);
        }
        let seq = u64::try_from(events.len()).unwrap_or(u64::MAX);
        Ok(Self {
            shared,
            id,
            state,
            seq,
            spans,
            live,
            commands: mpsc::channel(COMMANDS),
        })
    }

    /// Runs to the end of the rollback.
    pub async fn run(mut self) -> Stopped {
        // The effects first: they stand in the journal already, and the agents' time runs.
        for effect in machine::outstanding(&self.state) {
            self.carry_out(effect);
        }
        let mut arrived = vec![Command::Resume { at: Timestamp::now() }];
        loop {
            match self.tick(&mut arrived).await {
                Ok(()) => {}
                Err(error) => return Stopped::Left(error),
            }
            if self.state.ending().is_some() {
                return Stopped::Ended;
            }
            let stop = self.shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return Stopped::Cancelled,
                // We hold a sender ourselves, so this never yields 0.
                _ = self.commands.1.recv_many(&mut arrived, COMMANDS) => {}
            }
        }
    }

    /// Takes in what arrived, writes down what follows from it, does what that asks for.
    async fn tick(&mut self, arrived: &mut Vec<Command>) -> Result<(), StoreError> {
        let mut events = Vec::new();
        for command in arrived.drain(..) {
            match machine::transition(&mut self.state, command) {
                Ok(more) => events.extend(more),
                Err(Rejected::Corrupt(error)) => {
                    let why = format!("{}: {error}", self.id);
                    return Err(StoreError::Damaged {
                        what: "the state machine",
                        why,
                    });
                }
                Err(rejected) => tracing::debug!(rollback = %self.id, %rejected, "ignored a command"),
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        self.append(&events).await?;
        for event in &events {
            self.seq += 1;
            self.spans.follow(&self.state, event);
            self.shared.metrics.event(event);
            // Nobody may be watching.
            let _ = self.live.send(projection::event(&self.state, self.seq, event));
        }
        for effect in machine::effects_of(&self.state, &events) {
            self.carry_out(effect);
        }
        Ok(())
    }

    async fn append(&self, events: &[Event]) -> Result<(), StoreError> {
        let summary = Summary::of(&self.id, &self.state);
        let summary = serde_json::to_string(&summary).map_err(|e| StoreError::Damaged {
            what: "a summary",
            why: e.to_string(),
        })?;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            match self.try_append(events, &summary).await {
                Ok(()) => break,
                Err(error @ StoreError::Unavailable { .. }) if begun.elapsed() < APPEND_PATIENCE => {
                    tracing::warn!(rollback = %self.id, %error, "append to the journal; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                    // The commit whose answer was lost may have been made: then the journal has our events already.
                    if self.has_been_written(events).await {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.shared
            .metrics
            .append_seconds
            .observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn try_append(&self, events: &[Event], summary: &str) -> Result<(), StoreError> {
        let Shared { store, epoch, .. } = &self.shared;
        let closing = self.closing().await?;
        store
            .append(*epoch, &self.id, self.seq, events, summary, closing.as_ref())
            .await
    }

    /// What the end says of releases; `None` while it has not ended.
    async fn closing(&self) -> Result<Option<Closing>, StoreError> {
        let (Some(ending), Some(plan)) = (self.state.ending(), self.state.plan()) else {
            return Ok(None);
        };
        // Only a good end says anything, and only for that the releases are read: a bad one must not fail over them.
        if ending != &Ending::Verified {
            return Ok(Some(Closing::default()));
        }
        let releases = self.shared.store.releases().await?;
        Ok(Some(closing::of_verified(&plan.body, &releases)))
    }

    async fn has_been_written(&self, events: &[Event]) -> bool {
        match self.shared.store.events(&self.id, self.seq).await {
            Ok(recorded) => !recorded.is_empty() && recorded.iter().map(|r| &r.event).eq(events),
            Err(_) => false,
        }
    }

    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Dispatch {
                step,
                direction,
                attempt,
            } => self.dispatch(step, direction, attempt),
            // The scope was given back in the transaction that wrote the end.
            Effect::Close => {}
        }
    }

    fn dispatch(&self, step: StepId, direction: Direction, attempt: u32) {
        let Some(planned) = self.state.step(step).cloned() else {
            return;
        };
        let order = Order {
            rollback: self.id.clone(),
            intended_at: self.intended_at(step),
            context: self.spans.step_context(step, direction, attempt),
            step: planned,
            direction,
            attempt,
            consent: self.state.run().and_then(|run| run.creation.consent),
        };
        let line = projection::place(
            &self.state,
            step,
            direction,
            v1::RollbackEvent {
                kind: v1::rollback_event::Kind::Progress.into(),
                attempt,
                ..v1::RollbackEvent::default()
            },
        );
        let (live, commands) = (self.live.clone(), self.commands.0.clone());
        let (dispatcher, stop) = (self.shared.dispatcher.clone(), self.shared.stop.clone());
        self.shared.tasks.spawn(async move {
            let progress = move |p: v1::Progress| {
                let at = Some(crate::convert::timestamp(Timestamp::now()));
                let line = v1::RollbackEvent {
                    at,
                    message: p.message,
                    fraction: p.fraction,
                    ..line.clone()
                };
                // Nobody may be watching.
                let _ = live.send(line);
            };
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = dispatcher.execute(&order, &progress) => outcome,
            };
            let at = Timestamp::now();
            // The runner is gone only when the process stops or has been fenced; the next leader asks the agent again.
            let _ = commands
                .send(Command::StepEnded {
                    at,
                    step,
                    direction,
                    attempt,
                    outcome,
                })
                .await;
        });
    }

    /// When the intent in flight was written down.
    fn intended_at(&self, step: StepId) -> Timestamp {
        use rollback_engine::machine::StepState;
        match self.state.step_state(step) {
            Some(StepState::InFlight { since, .. } | StepState::Undoing { since, .. }) => *since,
            Some(StepState::Pending | StepState::Ended { .. } | StepState::UndoEnded { .. }) | None => Timestamp::now(),
        }
    }
}
