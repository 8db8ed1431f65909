//! The spans of a rollback, read off its journal: rollback → phase → step.
//!
//! A span is written when it has ended, with the times that the journal holds and an id that follows from the rollback's
//! id and the span's place. So a leader that takes over writes the same trace that its predecessor would have written,
//! and the agents' spans, whose parents are these ids, are never orphans.

use std::collections::HashMap;
use std::time::SystemTime;

use jiff::Timestamp;
use opentelemetry::trace::{Span, SpanBuilder, SpanId, Status, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use rollback_engine::event::{Direction, Ending, Event};
use rollback_engine::ids::{Epoch, RollbackId, StepId};
use rollback_engine::machine::State;
use rollback_engine::machine::judge::{Judgement, judge};
use rollback_engine::plan::PhaseName;
use rollback_proto::telemetry::{remote_context, with_span_id};
use sha2::{Digest as _, Sha256};

/// A span's place in its rollback.
#[derive(Clone, Copy, Debug)]
enum Place {
    Rollback,
    Phase(PhaseName),
    Undo,
    Step(StepId, Direction, u32),
}

/// Follows one rollback's events.
#[derive(Debug)]
pub struct JournalSpans {
    tracer: Option<SdkTracer>,
    rollback: RollbackId,
    epoch: Epoch,
    /// Set by `Created`: trace id, the caller's span id, when.
    origin: Option<(String, String, Timestamp)>,
    phase: Option<(PhaseName, Timestamp)>,
    undo: Option<Timestamp>,
    begun: HashMap<(StepId, Direction, u32), Timestamp>,
}

impl JournalSpans {
    pub fn new(tracer: Option<SdkTracer>, rollback: RollbackId, epoch: Epoch) -> Self {
        Self {
            tracer,
            rollback,
            epoch,
            origin: None,
            phase: None,
            undo: None,
            begun: HashMap::new(),
        }
    }

    /// Takes note of an event and writes the spans that it ends; while replaying, too: a coordinator that was killed took
    /// its last spans along unsent. Who has them already gets them again under the same ids.
    pub fn follow(&mut self, state: &State, event: &Event) {
        match event {
            Event::Created {
                at,
                trace_id,
                parent_span_id,
                ..
            } => {
                self.origin = Some((trace_id.clone(), parent_span_id.clone(), *at));
            }
            Event::PhaseStarted { at, phase } => self.phase = Some((*phase, *at)),
            Event::BatchStarted { .. } | Event::Steered { .. } | Event::Paused { .. } => {}
            Event::StepIntended {
                at,
                step,
                direction,
                attempt,
            } => {
                self.begun.insert((*step, *direction, *attempt), *at);
            }
            Event::StepEnded {
                at,
                step,
                direction,
                attempt,
                outcome,
            } => {
                let started = self.begun.remove(&(*step, *direction, *attempt));
                let (Some(started), Some(planned)) = (started, state.step(*step)) else {
                    return;
                };
                let Some(asked) = planned.in_direction(*direction) else {
                    return;
                };
                let judgement = judge(planned, *direction, outcome);
                let (word, status) = match &judgement {
                    Judgement::Good => ("succeeded", Status::Ok),
                    Judgement::Bad { problem, .. } => ("failed", Status::error(problem.message.clone())),
                    Judgement::Unknown(problem) => ("indeterminate", Status::error(problem.message.clone())),
                };
                let mut attributes = vec![
                    KeyValue::new("step.id", i64::from(step.0)),
                    KeyValue::new("step.undo", matches!(direction, Direction::Undo)),
                    KeyValue::new("host", planned.target.host.0.clone()),
                    KeyValue::new("component", planned.target.component.0.clone()),
                    KeyValue::new("attempt", i64::from(*attempt)),
                    KeyValue::new("outcome", word),
                ];
                if let Some(backend) = asked.backend {
                    attributes.push(KeyValue::new("backend", backend.to_string()));
                }
                let name = format!("step_{}", asked.action.as_str());
                self.write(
                    Place::Step(*step, *direction, *attempt),
                    name,
                    started,
                    *at,
                    status,
                    attributes,
                );
            }
            Event::PhaseEnded { at, .. } => self.end_phase(*at, Status::Ok),
            Event::UndoStarted { at, cause } => {
                self.end_phase(*at, Status::error(cause.message.clone()));
                self.undo = Some(*at);
            }
            Event::Ended { at, ending } => {
                let (word, status) = match ending {
                    Ending::Verified => ("verified", Status::Ok),
                    Ending::Undone { cause, .. } => ("undone", Status::error(cause.message.clone())),
                    Ending::Partial { cause, .. } => ("partial", Status::error(cause.message.clone())),
                    Ending::Held { cause } => ("held", Status::error(cause.message.clone())),
                };
                self.end_phase(*at, status.clone());
                if let Some(started) = self.undo {
                    self.write(
                        Place::Undo,
                        "phase_undo".to_owned(),
                        started,
                        *at,
                        status.clone(),
                        Vec::new(),
                    );
                }
                if let Some((_, _, started)) = self.origin.clone() {
                    let release = state.plan().map(|p| p.body.release.0.clone()).unwrap_or_default();
                    let attributes = vec![KeyValue::new("outcome", word), KeyValue::new("release", release)];
                    self.write(Place::Rollback, "rollback".to_owned(), started, *at, status, attributes);
                }
            }
        }
    }

    fn end_phase(&mut self, at: Timestamp, status: Status) {
        if let Some((phase, started)) = self.phase.take() {
            let name = format!("phase_{phase}");
            self.write(
                Place::Phase(phase),
                name,
                started,
                at,
                status,
                vec![KeyValue::new("phase", phase.as_str())],
            );
        }
    }

    /// The context that an agent continues for this step.
    pub fn step_context(&self, step: StepId, direction: Direction, attempt: u32) -> Context {
        self.context(Place::Step(step, direction, attempt))
    }

    fn context(&self, place: Place) -> Context {
        let span = self.id(place).to_string();
        self.origin
            .as_ref()
            .and_then(|(trace, _, _)| remote_context(trace, &span))
            .unwrap_or_default()
    }

    fn id(&self, place: Place) -> SpanId {
        let place = match place {
            Place::Rollback => "rollback".to_owned(),
            Place::Phase(phase) => format!("phase {phase}"),
            Place::Undo => "undo".to_owned(),
            Place::Step(step, direction, attempt) => format!("step {step} {direction:?} {attempt}"),
        };
        let digest = Sha256::digest(format!("{} {place}", self.rollback));
        let mut id = [0u8; 8];
        id.copy_from_slice(&digest[..8]);
        SpanId::from_bytes(id)
    }

    fn parent(&self, place: Place) -> Context {
        match place {
            Place::Rollback => self
                .origin
                .as_ref()
                .and_then(|(trace, caller, _)| remote_context(trace, caller))
                .unwrap_or_default(),
            Place::Phase(_) | Place::Undo => self.context(Place::Rollback),
            Place::Step(_, Direction::Undo, _) => self.context(Place::Undo),
            Place::Step(_, Direction::Forward, _) => match self.phase {
                Some((phase, _)) => self.context(Place::Phase(phase)),
                None => self.context(Place::Rollback),
            },
        }
    }

    fn write(
        &self,
        place: Place,
        name: String,
        started: Timestamp,
        ended: Timestamp,
        status: Status,
        mut attributes: Vec<KeyValue>,
    ) {
        let Some(tracer) = &self.tracer else { return };
        attributes.push(KeyValue::new("rollback.id", self.rollback.0.clone()));
        attributes.push(KeyValue::new(
            "leader.epoch",
            i64::try_from(self.epoch.0).unwrap_or(i64::MAX),
        ));
        let builder = SpanBuilder::from_name(name)
            .with_start_time(SystemTime::from(started))
            .with_attributes(attributes);
        let parent = self.parent(place);
        let mut span = with_span_id(self.id(place), || tracer.build_with_context(builder, &parent));
        span.set_status(status);
        span.end_with_timestamp(SystemTime::from(ended));
    }
}
