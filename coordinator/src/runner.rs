//! One task per running rollback: the loop command → events → journal → effects.
//!
//! Invariants:
//! - Effects follow only from events that are durable.
//! - Everything that arrived by the time an append begins goes into that one append (one transaction, one fsync).
//! - A journal that has gone on without us, or a newer leader, ends the runner at once; nothing more is dispatched.
//! - An operator's act is answered when what it led to is durable, or when it was refused by a state that is.
//! - The runner keeps no truth of its own: dropped at any point, the journal says how to go on.
//!
//! What people let pass (an approval that does not come) wakes the runner by a timer that is set from the state, so a
//! leader that takes the rollback up has it again.

mod acts;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry_sdk::trace::SdkTracer;
use rollback_engine::event::{self, Command, Direction, Effect, Event};
use rollback_engine::ids::{RollbackId, StepId};
use rollback_engine::machine::{self, Rejected, State};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::closing;
use crate::dispatcher::{Dispatcher, Order};
use crate::journal_spans::JournalSpans;
use crate::metrics::Metrics;
use crate::projection::{self, Summary};
use crate::store::{APPEND_PATIENCE, Store, StoreError};
use crate::term::Term;
use crate::troubles::Troubles;

pub use acts::{Given, LastAct, Steering, refused};

/// Answers of this many steps wait while an append is under way; more make their tasks wait.
const COMMANDS: usize = 1024;

/// Acts of people that wait while an append is under way. People are few, and whoever is in a hurry asks once more.
const ACTS: usize = 16;

/// The least time between two looks at what may have expired: the clock that says so and the one that wakes us are not the
/// same.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Watchers that fall this many events behind read the journal again.
pub const LIVE_EVENTS: usize = 1024;

/// What every runner shares.
#[derive(Clone, Debug)]
pub struct Shared {
    pub store: Arc<dyn Store>,
    pub dispatcher: Dispatcher,
    pub term: Term,
    pub tracer: Option<SdkTracer>,
    pub metrics: Arc<Metrics>,
    /// Of the term, as they are now.
    pub troubles: Troubles,
    /// Of the term: all end with it.
    pub tasks: TaskTracker,
}

/// What reaches a runner from outside. Made before the runner: a rollback can be steered and watched from the moment that
/// it is registered.
#[derive(Clone, Debug)]
pub struct Handle {
    pub live: broadcast::Sender<v1::RollbackEvent>,
    pub acts: mpsc::Sender<Steering>,
}

/// The runner's ends of a [`Handle`].
#[derive(Debug)]
pub struct Lines {
    live: broadcast::Sender<v1::RollbackEvent>,
    acts: mpsc::Receiver<Steering>,
}

/// Both ends.
pub fn lines() -> (Handle, Lines) {
    let live = broadcast::channel(LIVE_EVENTS).0;
    let (acts, received) = mpsc::channel(ACTS);
    let lines = Lines {
        live: live.clone(),
        acts: received,
    };
    (Handle { live, acts }, lines)
}

/// A rollback that runs here.
#[derive(Debug)]
pub struct Runner {
    shared: Shared,
    id: RollbackId,
    state: State,
    /// The last event in the journal.
    seq: u64,
    /// Set when the journal is known to be incomplete: what is in flight is not asked for, and the rollback is held.
    doubt: Option<event::Problem>,
    spans: JournalSpans,
    live: broadcast::Sender<v1::RollbackEvent>,
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    acts: mpsc::Receiver<Steering>,
    last: LastAct,
}

/// Why a runner stopped.
#[derive(Debug)]
pub enum Stopped {
    Ended,
    /// Left to the next term.
    Left(StoreError),
}

impl Runner {
    /// Takes up a rollback from its journal: one that was created a moment ago, or one that another leader left.
    pub fn from_journal(
        shared: Shared,
        id: RollbackId,
        events: &[Event],
        lines: Lines,
    ) -> Result<Self, machine::Corrupt> {
        let mut spans = JournalSpans::new(shared.tracer.clone(), id.clone(), shared.term.epoch());
        let mut state = State::New;
        for event in events {
            machine::apply(&mut state, event)?;
            spans.follow(&state, event);
        }
        let Lines { live, acts } = lines;
        let seq = u64::try_from(events.len()).unwrap_or(u64::MAX);
        Ok(Self {
            shared,
            id,
            state,
            seq,
            doubt: None,
            spans,
            live,
            commands: mpsc::channel(COMMANDS),
            acts,
            last: LastAct::of(events),
        })
    }

    /// The journal has lost events, for this reason: nobody can tell what became of the steps in flight.
    pub fn doubt(&mut self, reason: Problem) {
        self.doubt = Some(crate::convert::problem(reason));
    }

    /// Hosts that this rollback is about.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let changes = self.state.plan().into_iter().flat_map(|plan| &plan.body.changes);
        changes.map(|change| change.target.host.as_str())
    }

    /// Runs to the end of the rollback.
    pub async fn run(mut self) -> Stopped {
        // The effects first: they stand in the journal already, and the agents' time runs.
        let at = Timestamp::now();
        let mut arrived = vec![Command::TakeUp { at }];
        match self.doubt.take() {
            Some(cause) => arrived.push(Command::Hold { at, cause }),
            None => {
                for effect in machine::outstanding(&self.state) {
                    self.carry_out(effect, Origin::Journal);
                }
            }
        }
        let mut acts = Vec::new();
        loop {
            match self.tick(&mut arrived, &mut acts).await {
                Ok(()) => {}
                Err(error) => return Stopped::Left(error),
            }
            if self.state.ending().is_some() {
                return Stopped::Ended;
            }
            self.wait(&mut arrived, &mut acts).await;
        }
    }

    /// Until something arrives, or until it is time to look whether something was awaited for too long.
    async fn wait(&mut self, arrived: &mut Vec<Command>, acts: &mut Vec<Steering>) {
        let awaited_until = awaits_approval_until(&self.state);
        let expiry = async {
            match awaited_until {
                Some(at) => tokio::time::sleep(until(at).max(LOOK_AGAIN)).await,
                None => std::future::pending().await,
            }
        };
        // What was sent stays in its channel when another arm wins.
        tokio::select! {
            // We hold a sender ourselves, so this never yields 0.
            _ = self.commands.1.recv_many(arrived, COMMANDS) => {}
            Some(act) = self.acts.recv() => acts.push(act),
            () = expiry => arrived.push(Command::Expire { at: Timestamp::now() }),
        }
    }

    /// Takes in what arrived, writes down what follows from it, does what that asks for.
    async fn tick(&mut self, arrived: &mut Vec<Command>, acts: &mut Vec<Steering>) -> Result<(), StoreError> {
        let mut events = Vec::new();
        for command in arrived.drain(..) {
            match self.take_in(command, &mut events)? {
                Ok(()) => {}
                Err(rejected) => tracing::debug!(rollback = %self.id, %rejected, "ignored a command"),
            }
        }
        let mut answers = Vec::new();
        for act in acts.drain(..).filter(|act| !act.answer.is_closed()) {
            let given = Given::of(&act);
            let command = Command::Steer {
                at: Timestamp::now(),
                by: act.by,
                reason: act.reason,
                act: act.act,
            };
            let answer = match self.take_in(command, &mut events)? {
                Ok(()) => Ok(()),
                Err(rejected) if self.last.is_done_already(&self.state, &given, &rejected) => Ok(()),
                Err(rejected) => Err(acts::refused(rejected)),
            };
            answers.push((act.answer, answer));
        }
        if !events.is_empty() {
            self.write(&events).await?;
        }
        for (asker, answer) in answers {
            let answer = answer.and_then(|()| {
                Summary::of(&self.id, &self.state)
                    .ok_or_else(|| Problem::new(Code::Internal, "a rollback that runs has no summary"))
            });
            // Whoever asked may have gone by now.
            let _ = asker.send(answer);
        }
        Ok(())
    }

    /// The outer error ends the runner.
    fn take_in(&mut self, command: Command, events: &mut Vec<Event>) -> Result<Result<(), Rejected>, StoreError> {
        match machine::transition(&mut self.state, command) {
            Ok(more) => {
                self.last.follow(&more);
                events.extend(more);
                Ok(Ok(()))
            }
            Err(Rejected::Corrupt(error)) => {
                let why = format!("{}: {error}", self.id);
                Err(StoreError::Damaged {
                    what: "the state machine",
                    why,
                })
            }
            Err(rejected) => Ok(Err(rejected)),
        }
    }

    /// Makes the events durable, tells them, and does what they ask for.
    async fn write(&mut self, events: &[Event]) -> Result<(), StoreError> {
        self.append(events).await?;
        for event in events {
            self.seq += 1;
            self.spans.follow(&self.state, event);
            self.shared.metrics.event(event);
            // Nobody may be watching.
            let _ = self.live.send(projection::event(&self.state, self.seq, event));
        }
        for effect in machine::effects_of(&self.state, events) {
            self.carry_out(effect, Origin::Now);
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
        let mut stuck = Stuck(None);
        loop {
            match self.try_append(events, &summary).await {
                Ok(()) => break,
                // The commit whose answer was lost may have been made: then the journal has our events already. It may
                // also have been on its way while we looked, and stand in the way of the next attempt.
                Err(StoreError::Conflict) if self.has_been_written(events).await => break,
                Err(error @ StoreError::Unavailable { .. }) if begun.elapsed() < APPEND_PATIENCE => {
                    tracing::warn!(rollback = %self.id, %error, "append to the journal; trying again");
                    self.say_stuck(&mut stuck, error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
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

    /// Nothing moves until the journal can be written. Whoever waits, or wonders, is told.
    fn say_stuck(&self, stuck: &mut Stuck, error: StoreError) {
        let what = Problem::from(error).message;
        let what = format!("waiting for the store, nothing new begins until then: {what}");
        // Nobody may be watching.
        let _ = self.live.send(v1::RollbackEvent {
            at: Some(crate::convert::timestamp(Timestamp::now())),
            kind: v1::rollback_event::Kind::Progress.into(),
            message: what.clone(),
            fraction: -1.0,
            ..v1::RollbackEvent::default()
        });
        if stuck.0.is_none() {
            let subject = format!("rollback {}", self.id);
            self.shared.troubles.begin(subject.clone(), what);
            stuck.0 = Some((self.shared.troubles.clone(), subject));
        }
    }

    async fn try_append(&self, events: &[Event], summary: &str) -> Result<(), StoreError> {
        let Shared { store, term, .. } = &self.shared;
        let closing = closing::of_end(store.as_ref(), &self.id, &self.state).await?;
        store
            .append(term.fence(), &self.id, self.seq, events, summary, closing.as_ref())
            .await
    }

    async fn has_been_written(&self, events: &[Event]) -> bool {
        match self.shared.store.events(&self.id, self.seq).await {
            Ok(recorded) => !recorded.is_empty() && recorded.iter().map(|r| &r.event).eq(events),
            Err(_) => false,
        }
    }

    fn carry_out(&self, effect: Effect, origin: Origin) {
        match effect {
            Effect::Dispatch {
                step,
                direction,
                attempt,
            } => self.dispatch(step, direction, attempt, origin),
            // The scope was given back in the transaction that wrote the end.
            Effect::Close => {}
        }
    }

    fn dispatch(&self, step: StepId, direction: Direction, attempt: u32, origin: Origin) {
        let Some(planned) = self.state.step(step).cloned() else {
            return;
        };
        let host = &planned.target.host;
        let order = Order {
            rollback: self.id.clone(),
            ledger: match origin {
                Origin::Now => self.shared.dispatcher.ledger_of(host.as_str()),
                Origin::Journal => self.state.run().and_then(|run| run.creation.ledgers.get(host).cloned()),
            },
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
        let (dispatcher, term) = (self.shared.dispatcher.clone(), self.shared.term.clone());
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
                biased;
                () = term.ended() => return,
                outcome = dispatcher.execute(&order, &progress) => outcome,
            };
            let at = Timestamp::now();
            // The runner is gone only when the term is over; the next leader asks the agent again.
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
}

/// `None`: nobody's approval is awaited.
fn awaits_approval_until(state: &State) -> Option<Timestamp> {
    let summary = state.summary()?;
    let awaited = summary.approval.filter(|approval| approval.approved.is_none())?;
    summary.ending.is_none().then_some(awaited.expires_at)
}

/// From now on; nothing when it has passed.
fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

/// Ends the trouble with the append that it is about, however that ends.
struct Stuck(Option<(Troubles, String)>);

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Some((troubles, subject)) = &self.0 {
            troubles.over(subject);
        }
    }
}

/// Where an effect comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// From events that were written a moment ago.
    Now,
    /// From a journal that somebody else may have written, at a time that nobody here remembers.
    Journal,
}
