//! What operators did, against what happened then: nothing begins while it stands still, an abort ends as it was said, and
//! what was answered is written.

use rollback_engine::event::{AbortThen, Act, Ending, Event};

use super::journal::Journal;
use crate::operator::hands::name;
use crate::recorder::{Line, Seen};

pub fn violations(lines: &[Line], journal: &Journal<'_>) -> Vec<String> {
    let mut found = standing_still(journal);
    found.extend(ended_as_said(journal));
    found.extend(answered_and_not_written(lines, journal));
    found
        .into_iter()
        .map(|what| format!("{}: {what}", journal.id))
        .collect()
}

/// From a pause to the act that ends it, only what was in flight ends.
fn standing_still(journal: &Journal<'_>) -> Vec<String> {
    let mut still = false;
    let mut found = Vec::new();
    for event in journal.events() {
        match event {
            Event::Paused { .. } | Event::Steered { act: Act::Pause, .. } => still = true,
            // What else failed may keep it where it is.
            Event::Steered { .. } => still = false,
            Event::StepEnded { .. } | Event::Created { .. } => {}
            Event::PhaseStarted { .. }
            | Event::BatchStarted { .. }
            | Event::StepIntended { .. }
            | Event::PhaseEnded { .. }
            | Event::UndoStarted { .. }
            | Event::Ended { .. } => {
                if still {
                    found.push(format!("it stood still, and went on by itself: {event:?}"));
                }
            }
        }
    }
    found
}

fn ended_as_said(journal: &Journal<'_>) -> Option<String> {
    let said = journal.aborted()?;
    let fits = match (said, journal.ending()?) {
        // What cannot be reversed is held.
        (AbortThen::Undo, Ending::Undone { .. } | Ending::Held { .. }) | (AbortThen::Hold, Ending::Held { .. }) => true,
        // Nothing was touched yet, so there is nothing to hold.
        (AbortThen::Hold, Ending::Undone { blocked, .. }) => *blocked,
        (AbortThen::Undo | AbortThen::Hold, Ending::Verified | Ending::Partial { .. }) => false,
    };
    (!fits).then(|| format!("it was aborted ({said:?}), and ended otherwise"))
}

fn answered_and_not_written(lines: &[Line], journal: &Journal<'_>) -> Vec<String> {
    let acted = lines.iter().enumerate().filter_map(|(n, line)| match &line.seen {
        Seen::Acted { rollback, act } if rollback == journal.id => Some((n, act)),
        _ => None,
    });
    let is_written = |n: usize, act: &str| {
        lines[..n].iter().any(|line| match &line.seen {
            Seen::Written { rollback, events, .. } if rollback == journal.id => {
                events.iter().any(|event| match event {
                    Event::Steered { act: written, .. } => name(written) == act,
                    // Whoever wants it to stand still is told that it does.
                    Event::Paused { .. } => act == name(&Act::Pause),
                    _ => false,
                })
            }
            _ => false,
        })
    };
    let lost = acted.filter(|(n, act)| !is_written(*n, act));
    lost.map(|(_, act)| format!("{act} was answered before it was written"))
        .collect()
}
