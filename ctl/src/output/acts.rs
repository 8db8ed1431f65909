//! What was done to a rollback, and by whom: its start, and every act of an operator or of its runbook.

use rollback_proto::v1::RollbackEvent;
use rollback_proto::v1::rollback_event::Kind;

use super::paint::{Paint, Tone};
use super::problem::brief;
use super::table::{Table, cell, plain};
use super::text::{clean, name_some, or_none, stamp, timestamp};

/// Hosts of one act that are named before they are only counted.
const NAMED_HOSTS: usize = 6;

/// One act.
pub struct Told {
    /// "retried"
    pub word: &'static str,
    pub tone: Tone,
    /// Empty: the runbook, or nobody knows.
    pub by: String,
    /// "app-2; the port was taken".
    pub why: String,
}

/// `None` for what is no act: phases and steps.
pub fn told(event: &RollbackEvent) -> Option<Told> {
    let (word, tone) = match Kind::try_from(event.kind).unwrap_or(Kind::Unspecified) {
        Kind::Created => ("started", Tone::Plain),
        Kind::Paused if event.by.is_empty() => ("paused by its runbook", Tone::Warn),
        Kind::Paused => ("paused", Tone::Warn),
        Kind::Resumed => ("resumed", Tone::Plain),
        Kind::Retried => ("retried", Tone::Plain),
        Kind::Skipped => ("skipped", Tone::Warn),
        Kind::Aborted => ("aborted", Tone::Bad),
        Kind::Approved => ("approved", Tone::Good),
        Kind::PhaseStarted
        | Kind::PhaseEnded
        | Kind::BatchStarted
        | Kind::StepStarted
        | Kind::StepSucceeded
        | Kind::StepFailed
        | Kind::StepIndeterminate
        | Kind::UndoStarted
        | Kind::Ended
        | Kind::Progress
        | Kind::Unspecified => return None,
    };
    let mut why = Vec::new();
    if !event.hosts.is_empty() {
        why.push(name_some(event.hosts.iter().map(String::as_str), NAMED_HOSTS));
    }
    why.extend(event.problem.as_ref().map(brief));
    // The message may say more than the reason ("agreed to 120 rows"), or the same in a sentence of its own.
    let (reason, message) = (clean(&event.reason), clean(&event.message));
    let caused = |p: &rollback_proto::v1::Problem| brief(p).contains(&message);
    let said_already = !reason.is_empty() && message.contains(&reason) || event.problem.as_ref().is_some_and(caused);
    let texts = [reason, if said_already { String::new() } else { message }];
    why.extend(texts.into_iter().filter(|text| !text.is_empty()));
    Some(Told {
        word,
        tone,
        by: clean(&event.by),
        why: why.join("; "),
    })
}

/// A line for each act; empty when there is only the start.
pub fn lines(events: &[RollbackEvent], paint: Paint) -> String {
    let acts: Vec<(&RollbackEvent, Told)> = events.iter().filter_map(|e| Some((e, told(e)?))).collect();
    if acts.len() < 2 {
        return String::new();
    }
    let mut table = Table::new(paint, &["AT", "WHAT", "BY", "WHY"]);
    for (event, act) in acts {
        table.row([
            plain(stamp(timestamp(event.at.as_ref()))),
            cell(act.tone, act.word),
            plain(or_none(&act.by)),
            plain(act.why),
        ]);
    }
    table.render(2)
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::Problem;

    use super::*;

    /// The cause, the reason and the sentence of an act often hold the same words.
    #[test]
    fn nothing_is_said_twice() {
        let cause = "start of app-1/api: not healthy";
        let paused = RollbackEvent {
            kind: Kind::Paused.into(),
            message: cause.to_owned(),
            problem: Some(Problem {
                code: "RB0500".to_owned(),
                message: cause.to_owned(),
                ..Problem::default()
            }),
            ..RollbackEvent::default()
        };
        assert_eq!(told(&paused).expect("an act").why, format!("RB0500: {cause}"));
        let started = RollbackEvent {
            kind: Kind::Created.into(),
            reason: "errors".to_owned(),
            message: "ana rolls back to v2.9.0: errors".to_owned(),
            ..RollbackEvent::default()
        };
        assert_eq!(told(&started).expect("an act").why, "errors");
    }
}
