//! What is known of a running rollback: its phases, the steps that run, and how far each has come. Built from the plan
//! and the events, nothing else; drawing it is `output::tree`'s part.
//!
//! Events may come twice or late (after a reconnect); each is applied at most once per step and changes only its own
//! row, so the picture is right again as soon as the journal was read to its end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{Plan, RollbackEvent, RollbackState, Standstill};

use crate::output::standstill::Down;
use crate::output::text::{clean, timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseState {
    Waiting,
    Running,
    Done,
    /// One of its steps did not succeed, and the phase was left.
    Failed,
}

#[derive(Clone, Debug)]
pub struct PhaseRow {
    pub name: String,
    pub state: PhaseState,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    /// Steps of the plan; grows when an event names a step that the plan did not.
    pub total: usize,
    pub done: BTreeSet<u32>,
    pub failed: BTreeSet<u32>,
    /// Counted from 0.
    pub batch: u32,
    pub batches: usize,
}

/// A step that runs now.
#[derive(Clone, Debug)]
pub struct Running {
    pub phase: String,
    pub host: String,
    pub component: String,
    /// Of a proxy: the one backend that it concerns; empty: the component as a whole.
    pub backend: String,
    pub action: i32,
    pub since: Option<Timestamp>,
    /// What it said last.
    pub says: String,
    /// 0 to 1, negative when unknown.
    pub fraction: f64,
}

#[derive(Clone, Debug, Default)]
pub struct Undo {
    pub started: Option<Timestamp>,
    pub done: usize,
    pub failed: usize,
}

#[derive(Clone, Debug, Default)]
pub struct AwaitedApproval {
    pub started_by: String,
    pub until: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
pub struct Board {
    pub id: String,
    pub release: String,
    pub started: Option<Timestamp>,
    pub phases: Vec<PhaseRow>,
    /// By step and direction (true: undo).
    pub running: BTreeMap<(u32, bool), Running>,
    pub undo: Option<Undo>,
    /// What the coordinator itself waits for; gone with the next event of the journal.
    pub waits: Option<String>,
    /// Nothing new begins until somebody acts; see [`Board::stands_still`].
    standstill: Option<Standstill>,
    /// A second operator has not approved yet.
    pub approval: Option<AwaitedApproval>,
    /// An operator wants it to end; what is in flight ends first.
    pub aborted: Option<String>,
    /// What users miss now.
    pub down: Down,
    /// Hosts whose steps failed in this batch and can be tried again, by step.
    failed: BTreeMap<u32, Failed>,
    /// Phases whose failures are gone on from.
    goes_on: BTreeSet<String>,
    /// Of the plan.
    approve_within: Option<SignedDuration>,
    pub ended: Option<(RollbackState, bool)>,
    pub ended_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Failed {
    host: String,
    /// Whom a proxy's step was for: leaving that host out leaves the step out, too.
    backend: String,
}

impl Failed {
    /// As an operator names it: by either.
    fn hosts(&self) -> impl Iterator<Item = &str> {
        let of_backend = self.backend.split('/').next().unwrap_or_default();
        [self.host.as_str(), of_backend]
            .into_iter()
            .filter(|host| !host.is_empty())
    }

    fn is_of(&self, hosts: &[String]) -> bool {
        self.hosts().any(|host| hosts.iter().any(|of| of == host))
    }
}

/// A word of no step: the coordinator's own.
pub fn is_of_coordinator(progress: &RollbackEvent) -> bool {
    progress.host.is_empty()
}

impl Board {
    pub fn new(id: &str, plan: Option<&Plan>) -> Self {
        let phases = plan
            .map(|plan| plan.phases.iter().map(PhaseRow::of_plan).collect())
            .unwrap_or_default();
        let release = plan.map(|plan| plan.release.clone()).unwrap_or_default();
        Self {
            id: id.to_owned(),
            release,
            phases,
            goes_on: plan
                .iter()
                .flat_map(|plan| &plan.phases)
                .filter(|phase| phase.on_failure == "continue")
                .map(|phase| phase.name.clone())
                .collect(),
            approve_within: plan
                .and_then(|plan| plan.approve_within.as_ref())
                .map(|within| SignedDuration::new(within.seconds, within.nanos)),
            ..Self::default()
        }
    }

    pub fn apply(&mut self, event: &RollbackEvent) {
        let at = timestamp(event.at.as_ref());
        let key = (event.step_id, event.undo);
        if event.seq != 0 {
            self.waits = None;
        }
        match Kind::try_from(event.kind).unwrap_or(Kind::Unspecified) {
            Kind::Created => {
                self.started = at;
                self.approval = self.approve_within.map(|within| AwaitedApproval {
                    started_by: event.by.clone(),
                    until: at.and_then(|at| at.checked_add(within).ok()),
                });
            }
            Kind::PhaseStarted => {
                let row = self.phase(&event.phase);
                row.state = PhaseState::Running;
                row.started = at;
            }
            Kind::PhaseEnded => {
                let row = self.phase(&event.phase);
                row.state = if row.failed.is_empty() {
                    PhaseState::Done
                } else {
                    PhaseState::Failed
                };
                row.ended = at;
            }
            Kind::BatchStarted => {
                self.phase(&event.phase).batch = event.batch;
                // What failed in an earlier one was gone on from.
                self.failed.clear();
            }
            Kind::StepStarted => {
                let running = Running {
                    phase: event.phase.clone(),
                    host: event.host.clone(),
                    component: event.component.clone(),
                    backend: event.backend.clone(),
                    action: event.action,
                    since: at,
                    says: String::new(),
                    fraction: -1.0,
                };
                self.running.insert(key, running);
                self.down
                    .begun(event.action, &event.host, &event.component, &event.backend);
                // Another attempt of a step that failed.
                if !event.undo && self.failed.remove(&event.step_id).is_some() {
                    self.phase(&event.phase).failed.remove(&event.step_id);
                }
            }
            Kind::Progress if is_of_coordinator(event) => self.waits = Some(event.message.clone()),
            Kind::Progress => {
                if let Some(running) = self.running.get_mut(&key) {
                    running.says.clone_from(&event.message);
                    running.fraction = event.fraction;
                }
            }
            Kind::StepSucceeded => {
                self.running.remove(&key);
                self.down
                    .succeeded(event.action, &event.host, &event.component, &event.backend);
                if event.undo {
                    self.undo.get_or_insert_default().done += 1;
                } else {
                    let row = self.phase(&event.phase);
                    row.done.insert(event.step_id);
                    row.failed.remove(&event.step_id);
                }
            }
            Kind::StepFailed | Kind::StepIndeterminate => {
                self.running.remove(&key);
                let problem = event.problem.as_ref();
                self.down
                    .refused(event.action, &event.host, &event.component, &event.backend, problem);
                if event.undo {
                    self.undo.get_or_insert_default().failed += 1;
                } else {
                    self.phase(&event.phase).failed.insert(event.step_id);
                    if !self.goes_on.contains(&event.phase) {
                        let (host, backend) = (event.host.clone(), event.backend.clone());
                        self.failed.insert(event.step_id, Failed { host, backend });
                    }
                }
            }
            Kind::UndoStarted => {
                self.leave_running_phases(at);
                self.undo.get_or_insert_default().started = at;
                self.failed.clear();
                self.aborted = None;
            }
            Kind::Ended => {
                self.leave_running_phases(at);
                self.running.clear();
                let state = RollbackState::try_from(event.state).unwrap_or(RollbackState::Unspecified);
                self.ended = Some((state, event.blocked));
                self.ended_at = at;
                (self.standstill, self.approval, self.aborted) = (None, None, None);
            }
            Kind::Paused => self.pause(event),
            Kind::Resumed | Kind::Retried => self.standstill = None,
            Kind::Skipped => {
                self.down.skipped(&event.hosts);
                self.failed.retain(|_, failed| !failed.is_of(&event.hosts));
                // What else failed still waits for somebody.
                if self.failed.is_empty() {
                    self.standstill = None;
                }
            }
            Kind::Aborted => {
                self.standstill = None;
                let (by, reason) = (clean(&event.by), clean(&event.reason));
                self.aborted = Some(format!("{by} ends it, {}: {reason}", clean(&event.message)));
            }
            Kind::Approved => self.approval = None,
            Kind::Unspecified => {}
        }
    }

    fn pause(&mut self, event: &RollbackEvent) {
        self.standstill = Some(Standstill {
            since: event.at,
            by: event.by.clone(),
            reason: event.reason.clone(),
            problem: event.problem.clone(),
            ..Standstill::default()
        });
    }

    /// It stands still, as that is now: steps go on ending after the pause.
    pub fn stands_still(&self) -> Option<Standstill> {
        let standstill = self.standstill.clone()?;
        let failed: BTreeSet<&str> = self.failed.values().flat_map(Failed::hosts).collect();
        Some(Standstill {
            in_flight: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
            failed_hosts: failed.into_iter().map(str::to_owned).collect(),
            ..standstill
        })
    }

    /// Phases that were left before their end was written.
    fn leave_running_phases(&mut self, at: Option<Timestamp>) {
        for row in self.phases.iter_mut().filter(|row| row.state == PhaseState::Running) {
            row.state = PhaseState::Failed;
            row.ended = at;
        }
    }

    /// The row of a phase; a phase that the plan did not show gets one at the end.
    fn phase(&mut self, name: &str) -> &mut PhaseRow {
        let index = self.phases.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.phases.push(PhaseRow::named(name));
            self.phases.len() - 1
        });
        &mut self.phases[index]
    }
}

impl PhaseRow {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: PhaseState::Waiting,
            started: None,
            ended: None,
            total: 0,
            done: BTreeSet::new(),
            failed: BTreeSet::new(),
            batch: 0,
            batches: 0,
        }
    }

    fn of_plan(phase: &rollback_proto::v1::PlanPhase) -> Self {
        let total = phase
            .batches
            .iter()
            .flat_map(|b| &b.lanes)
            .map(|lane| lane.steps.len())
            .sum();
        Self {
            total,
            batches: phase.batches.len(),
            ..Self::named(&phase.name)
        }
    }

    pub fn total(&self) -> usize {
        self.total.max(self.done.len() + self.failed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn a_failed_phase_is_left_when_the_undo_begins() {
        let mut board = Board::new("r1", samples::plan_response().plan.as_ref());
        for event in samples::undone_events() {
            board.apply(&event);
        }
        let app = board.phases.iter().find(|p| p.name == "app").expect("planned");
        assert_eq!(app.state, PhaseState::Failed);
        assert_eq!(board.ended, Some((RollbackState::Undone, false)));
        assert!(board.running.is_empty());
        assert!(board.undo.expect("was undone").done > 0);
    }

    /// One of two that failed was skipped: the other one still waits.
    #[test]
    fn a_standstill_lasts_while_something_that_failed_waits() {
        let mut board = Board::new("r1", None);
        let event = |kind: Kind, step_id: u32, host: &str| RollbackEvent {
            seq: 1,
            kind: kind.into(),
            phase: "app".to_owned(),
            step_id,
            host: host.to_owned(),
            hosts: vec![host.to_owned()],
            ..RollbackEvent::default()
        };
        board.apply(&event(Kind::StepFailed, 9, "app-9"));
        board.apply(&event(Kind::BatchStarted, 0, ""));
        for (id, host) in [(1, "app-1"), (2, "app-2")] {
            board.apply(&event(Kind::StepStarted, id, host));
            board.apply(&event(Kind::StepFailed, id, host));
        }
        board.apply(&event(Kind::Paused, 0, ""));
        let failed = |board: &Board| board.stands_still().map(|still| still.failed_hosts);
        assert_eq!(failed(&board), Some(vec!["app-1".to_owned(), "app-2".to_owned()]));
        board.apply(&event(Kind::Skipped, 0, "app-1"));
        assert_eq!(failed(&board), Some(vec!["app-2".to_owned()]));
        board.apply(&event(Kind::Skipped, 0, "app-2"));
        assert_eq!(failed(&board), None);

        // What a proxy could not do for a host goes with that host.
        let mut drain = event(Kind::StepFailed, 3, "proxy-1");
        drain.backend = "app-3/api".to_owned();
        board.apply(&drain);
        board.apply(&event(Kind::Paused, 0, ""));
        assert_eq!(failed(&board), Some(vec!["app-3".to_owned(), "proxy-1".to_owned()]));
        board.apply(&event(Kind::Skipped, 0, "app-3"));
        assert_eq!(failed(&board), None);
    }

    #[test]
    fn events_that_come_twice_count_once() {
        let mut board = Board::new("r1", samples::plan_response().plan.as_ref());
        for event in samples::undone_events().iter().filter(|e| !e.undo) {
            board.apply(event);
            board.apply(event);
        }
        assert!(board.phases.iter().all(|p| p.done.len() <= p.total));
    }
}
