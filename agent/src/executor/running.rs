//! A running step as its callers see it: how far it is, its progress, and in the end its outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollback_proto::problem::Problem;
use rollback_proto::v1::accepted::How;
use rollback_proto::v1::execute_event::Event;
use rollback_proto::v1::{Accepted, ExecuteEvent, Outcome, Progress};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};

use super::stopping;
use crate::ledger::ArgsDigest;
use crate::step::ProgressSink;

/// Lines that a slow caller may lag behind; it loses the oldest then.
const LINES: usize = 64;
/// Bytes of one line.
const LINE: usize = 400;
/// Bytes of all lines of a step: a driver that floods is not worth a network.
const ALL_LINES: usize = 64 * 1024;

/// How far a step is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Nothing is durable yet.
    Asked,
    /// The intent is durable.
    Started,
    /// The outcome is durable.
    Ended(Arc<Outcome>),
    /// The ledger knew the outcome.
    Known(Arc<Outcome>),
    /// Nothing was done.
    Refused(Problem),
}

/// An entry of the executor's map.
#[derive(Debug)]
pub(super) struct Running {
    pub digest: ArgsDigest,
    stage: watch::Receiver<Stage>,
    /// Weak: the step's own task decides when there is no more progress.
    progress: broadcast::WeakSender<Progress>,
}

/// The task's end.
#[derive(Debug)]
pub(super) struct Reporter {
    stage: watch::Sender<Stage>,
    progress: broadcast::Sender<Progress>,
}

impl Running {
    pub fn start(digest: ArgsDigest) -> (Self, Reporter, Events) {
        let (stage_in, stage) = watch::channel(Stage::Asked);
        let (progress_in, lines) = broadcast::channel(LINES);
        let running = Self {
            digest,
            stage: stage.clone(),
            progress: progress_in.downgrade(),
        };
        let events = Events {
            how: How::Started,
            stage,
            lines: Some(lines),
            at: At::Accepting,
        };
        (
            running,
            Reporter {
                stage: stage_in,
                progress: progress_in,
            },
            events,
        )
    }

    pub fn join(&self) -> Events {
        let lines = self.progress.upgrade().map(|progress| progress.subscribe());
        Events {
            how: How::Joined,
            stage: self.stage.clone(),
            lines,
            at: At::Accepting,
        }
    }
}

impl Reporter {
    pub fn report(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    pub fn sink(&self) -> Arc<dyn ProgressSink> {
        Arc::new(Lines {
            progress: self.progress.clone(),
            left: AtomicUsize::new(ALL_LINES),
        })
    }
}

#[derive(Debug)]
struct Lines {
    progress: broadcast::Sender<Progress>,
    left: AtomicUsize,
}

impl ProgressSink for Lines {
    fn progress(&self, message: &str, fraction: Option<f64>) {
        let end = (0..=message.len().min(LINE))
            .rev()
            .find(|at| message.is_char_boundary(*at))
            .unwrap_or(0);
        let message = message[..end].to_owned();
        let cost = message.len().max(16);
        if self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost))
            .is_ok()
        {
            // Nobody may be watching.
            let _ = self.progress.send(Progress {
                message,
                fraction: fraction.unwrap_or(-1.0),
            });
        }
    }
}

/// What one caller is told: accepted, progress, outcome. Dropping it does not stop the step.
#[derive(Debug)]
pub struct Events {
    how: How,
    stage: watch::Receiver<Stage>,
    lines: Option<broadcast::Receiver<Progress>>,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Accepting,
    Following,
    Over,
}

impl Events {
    /// Waits until the step was accepted; an error when it is refused.
    pub async fn accepted(&mut self) -> Result<(), Problem> {
        match self.settled(|stage| !matches!(stage, Stage::Asked)).await {
            Stage::Refused(problem) => Err(problem),
            Stage::Asked => Err(stopping()),
            Stage::Known(_) => {
                self.how = How::FromLedger;
                Ok(())
            }
            Stage::Started | Stage::Ended(_) => Ok(()),
        }
    }

    /// Somebody else started the step.
    pub(super) fn joined(&self) -> bool {
        self.how == How::Joined
    }

    /// The next event; `None` after the outcome, or after an error. An error after acceptance means that the agent
    /// stops inside the step: ask again with the same key when it is back.
    pub async fn next(&mut self) -> Option<Result<ExecuteEvent, Problem>> {
        let event = match self.at {
            At::Over => return None,
            At::Accepting => self.accepted().await.map(|()| {
                self.at = At::Following;
                Event::Accepted(Accepted { how: self.how.into() })
            }),
            At::Following => match self.line().await {
                Some(progress) => Ok(Event::Progress(progress)),
                None => self.outcome().await.map(|outcome| {
                    self.at = At::Over;
                    Event::Outcome(outcome)
                }),
            },
        };
        if event.is_err() {
            self.at = At::Over;
        }
        Some(event.map(|event| ExecuteEvent { event: Some(event) }))
    }

    /// The next line of progress; `None` when the step is over and every line was given.
    async fn line(&mut self) -> Option<Progress> {
        loop {
            let lines = self.lines.as_mut()?;
            let over = matches!(
                *self.stage.borrow(),
                Stage::Ended(_) | Stage::Known(_) | Stage::Refused(_)
            );
            if over {
                // Progress was sent before the outcome was: whatever is coming is here already.
                match lines.try_recv() {
                    Ok(progress) => return Some(progress),
                    Err(TryRecvError::Lagged(_)) => continue,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
                }
            }
            // Both arms keep what they did not deliver when the other one wins.
            // In this order, so that a simulation repeats.
            tokio::select! {
                biased;
                changed = self.stage.changed() => if changed.is_err() { return None },
                line = lines.recv() => match line {
                    Ok(progress) => return Some(progress),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => self.lines = None,
                },
            }
        }
    }

    /// The outcome, once it is durable.
    pub async fn outcome(&mut self) -> Result<Outcome, Problem> {
        let over = |stage: &Stage| !matches!(stage, Stage::Asked | Stage::Started);
        match self.settled(over).await {
            Stage::Ended(outcome) | Stage::Known(outcome) => Ok((*outcome).clone()),
            Stage::Refused(problem) => Err(problem),
            Stage::Asked | Stage::Started => Err(stopping()),
        }
    }

    /// The first stage that fits, or the last one that there was when the step's task is gone.
    async fn settled(&mut self, fits: impl Fn(&Stage) -> bool) -> Stage {
        let reached = self
            .stage
            .wait_for(|stage| fits(stage))
            .await
            .map(|stage| stage.clone());
        reached.unwrap_or_else(|_| self.stage.borrow().clone())
    }
}
