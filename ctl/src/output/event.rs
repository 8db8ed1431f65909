//! One line per event, for logs and pipes: `time  phase  host/component  what  took  message`.

use std::collections::HashMap;

use jiff::Timestamp;
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{Plan, RollbackEvent, RollbackState};

use super::paint::{Paint, Tone};
use super::problem::brief;
use super::text::{NONE, clean, millis, name_some, or_none, revision, stamp_ms, subject, timestamp};
use super::{tree, words};
use crate::board::{Board, is_of_coordinator};

/// Hosts that an act names before they are only counted.
const NAMED_HOSTS: usize = 6;

/// Names one run of one step.
type Run = (u32, bool, u32);

/// Writes events as lines. Remembers when steps began, to say how long they took.
#[derive(Debug, Default)]
pub struct Lines {
    begun: HashMap<Run, Timestamp>,
    phases: HashMap<String, Timestamp>,
    created: Option<Timestamp>,
    said: HashMap<Run, String>,
    /// Knows what a standstill means.
    board: Board,
}

impl Lines {
    pub fn new(id: &str, plan: Option<&Plan>) -> Self {
        Self {
            board: Board::new(id, plan),
            ..Self::default()
        }
    }

    /// `None` for a progress line that says what the one before said.
    pub fn line(&mut self, event: &RollbackEvent, paint: Paint) -> Option<String> {
        self.board.apply(event);
        let at = timestamp(event.at.as_ref());
        let run = (event.step_id, event.undo, event.attempt);
        let kind = Kind::try_from(event.kind).unwrap_or(Kind::Unspecified);
        let since = |begun: Option<&Timestamp>| begun.zip(at).map(|(begun, at)| millis(*begun, at));
        let action = || {
            let undo = if event.undo { "undo: " } else { "" };
            format!("{undo}{}", words::action(event.action))
        };
        let (what, tone, took) = match kind {
            Kind::Created => {
                self.created = at;
                ("created".to_owned(), Tone::Plain, None)
            }
            Kind::PhaseStarted => {
                self.phases.extend(at.map(|at| (event.phase.clone(), at)));
                ("phase begins".to_owned(), Tone::Strong, None)
            }
            Kind::PhaseEnded => (
                "phase ends".to_owned(),
                Tone::Plain,
                since(self.phases.get(&event.phase)),
            ),
            Kind::BatchStarted => (format!("batch {}", event.batch + 1), Tone::Plain, None),
            Kind::StepStarted => {
                self.begun.extend(at.map(|at| (run, at)));
                let again = if event.attempt > 1 {
                    format!(" (attempt {})", event.attempt)
                } else {
                    String::new()
                };
                (format!("{}{again} …", action()), Tone::Plain, None)
            }
            Kind::StepSucceeded => (format!("{} ok", action()), Tone::Good, since(self.begun.get(&run))),
            Kind::StepFailed => (format!("{} FAILED", action()), Tone::Bad, since(self.begun.get(&run))),
            Kind::StepIndeterminate => (format!("{} UNCLEAR", action()), Tone::Bad, since(self.begun.get(&run))),
            Kind::UndoStarted => ("UNDO begins".to_owned(), Tone::Warn, None),
            Kind::Ended => {
                let state = RollbackState::try_from(event.state).unwrap_or(RollbackState::Unspecified);
                let (word, tone) = words::state_told(state, event.blocked);
                (format!("ended: {word}"), tone, since(self.created.as_ref()))
            }
            Kind::Progress => {
                if self.said.get(&run) == Some(&event.message) {
                    return None;
                }
                self.said.insert(run, event.message.clone());
                if is_of_coordinator(event) {
                    ("COORDINATOR WAITS".to_owned(), Tone::Warn, None)
                } else {
                    (format!("{} …", action()), Tone::Dim, since(self.begun.get(&run)))
                }
            }
            Kind::Paused => ("PAUSED".to_owned(), Tone::Warn, None),
            Kind::Resumed => ("resumed".to_owned(), Tone::Plain, None),
            Kind::Retried => ("retry".to_owned(), Tone::Plain, None),
            Kind::Skipped => ("skip".to_owned(), Tone::Warn, None),
            Kind::Aborted => ("ABORT".to_owned(), Tone::Warn, None),
            Kind::Approved => ("approved".to_owned(), Tone::Plain, None),
            Kind::Unspecified => ("unknown event".to_owned(), Tone::Dim, None),
        };
        let took = took.map_or_else(|| NONE.to_owned(), |ms| format!("{ms} ms"));
        // Padded before it is painted: colours have no width.
        let what = paint.tone(tone, &format!("{what:<18}"));
        let line = format!(
            "{}  {:<9}  {:<16}  {what}  {took:>9}  {}",
            stamp_ms(at),
            or_none(&event.phase),
            match subject(&event.host, &event.component, &event.backend) {
                empty if empty.is_empty() => NONE.to_owned(),
                subject => subject,
            },
            self.message(event, kind),
        );
        Some(line.trim_end().to_owned())
    }
}

impl Lines {
    /// Who acts and why; what happened; and where a person is needed, what that means and what can be done.
    fn message(&self, event: &RollbackEvent, kind: Kind) -> String {
        let by_somebody = || {
            let (by, reason) = (clean(&event.by), clean(&event.reason));
            let hosts = name_some(event.hosts.iter().map(String::as_str), NAMED_HOSTS);
            let hosts = if hosts.is_empty() { hosts } else { format!(" ({hosts})") };
            let reason = if reason.is_empty() {
                reason
            } else {
                format!(": {reason}")
            };
            match by {
                runbook if runbook.is_empty() => format!("by the runbook{hosts}"),
                by => format!("by {by}{hosts}{reason}"),
            }
        };
        let told = message(event);
        let needed = || {
            let needed = tree::needs_a_person(&self.board, Paint { colored: false });
            needed
                .iter()
                .skip(1)
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        };
        let parts: Vec<String> = match kind {
            Kind::Paused => [by_somebody(), told].into_iter().chain(needed()).collect(),
            Kind::Resumed | Kind::Retried | Kind::Skipped | Kind::Aborted | Kind::Approved => vec![by_somebody(), told],
            Kind::Created => {
                let awaited = tree::needs_a_person(&self.board, Paint { colored: false });
                let awaited = awaited.iter().map(|line| line.trim().to_owned());
                std::iter::once(told).chain(awaited).collect()
            }
            Kind::Unspecified
            | Kind::PhaseStarted
            | Kind::PhaseEnded
            | Kind::BatchStarted
            | Kind::StepStarted
            | Kind::StepSucceeded
            | Kind::StepFailed
            | Kind::StepIndeterminate
            | Kind::UndoStarted
            | Kind::Ended
            | Kind::Progress => return told,
        };
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" | ")
    }
}

fn message(event: &RollbackEvent) -> String {
    let mut parts = Vec::new();
    if !event.message.is_empty() {
        parts.push(clean(&event.message));
    }
    if let Some(problem) = &event.problem {
        // Coordinators may put the problem's text into the message as well; once is enough.
        if clean(&problem.message) == clean(&event.message) {
            parts.clear();
        }
        parts.push(brief(problem));
        if !problem.remedy.is_empty() {
            parts.push(format!("what to do: {}", clean(&problem.remedy)));
        }
    }
    if parts.is_empty() && event.observed.is_some() {
        parts.push(format!("at {}", revision(event.observed.as_ref())));
    }
    parts.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn one_line_per_event() {
        let mut lines = Lines::default();
        let text: Vec<String> = samples::undone_events()
            .iter()
            .filter_map(|event| lines.line(event, Paint::PLAIN))
            .collect();
        golden!("events", text.join("\n"));
    }

    #[test]
    fn a_backend_is_named_with_its_proxy() {
        let mut lines = Lines::default();
        let events = samples::rolling::events();
        let text: Vec<String> = events
            .iter()
            .filter_map(|event| lines.line(event, Paint::PLAIN))
            .collect();
        golden!("events_backends", text.join("\n"));
    }
}
