//! Operators' acts: which of them fit what the rollback is doing, what they become in the journal, and what they do.
//!
//! ```text
//!               Pause, Event::Paused                  Abort
//!   it runs ─────────────────────────▶ it stands ───────────────▶ it ends: when all is still, undone or held
//!      ▲ ▲                              still  │                     ▲
//!      │ └─────Resume, Retry, Skip──────────────┘                     │
//!      └─Approve── approval is awaited ──Abort, Expire───────────────┘
//! ```
//!
//! Rejections are read by a person in a hurry: each says what it found and what would fit instead.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::forward::Forward;
use super::hands::{Abort, Approved, Standstill};
use super::run::Run;
use super::stop::Then;
use super::{Corrupt, Rejected, State};
use crate::event::{AbortThen, Act, Ending, Event};
use crate::ids::HostName;
use crate::plan::PhaseName;
use crate::problems::{self, name_some};

/// The act as it is written down: with its hosts by name. Changes nothing.
pub(super) fn decide(state: &State, at: Timestamp, by: &str, act: &Act) -> Result<Act, Rejected> {
    match state {
        State::New => Err(Rejected::NotCreated),
        State::Ended { ending, .. } => Err(unfit(after_the_end(ending, act))),
        State::Forward { run, .. } if run.awaits_approval() => awaiting_approval(run, at, by, act),
        State::Forward { run, forward } => match act {
            Act::Pause => may_pause(run).map(|()| Act::Pause),
            Act::Resume => may_go_on(run, forward).map(|()| Act::Resume),
            Act::Retry { hosts } => failed_among(run, forward, hosts).map(|hosts| Act::Retry { hosts }),
            Act::Skip { hosts } => {
                let hosts = failed_among(run, forward, hosts)?;
                may_skip(run, forward, &hosts).map(|()| Act::Skip { hosts })
            }
            Act::Abort { then } => {
                can_be_left(run, forward, *then)?;
                may_abort(run, *then).map(|()| act.clone())
            }
            Act::Approve { .. } => Err(unfit(needs_no_approval(run))),
        },
        State::Undoing { run, undoing } => {
            let because = &undoing.cause().message;
            match act {
                Act::Pause => may_pause(run).map(|()| Act::Pause),
                Act::Resume => is_paused(run).map(|_| Act::Resume),
                Act::Retry { .. } | Act::Skip { .. } => Err(unfit(format!(
                    "it is being undone, because: {because}. What fails now holds it in the end; to stop it where it is: \
                     rollback abort --hold"
                ))),
                Act::Abort { then: AbortThen::Undo } => Err(unfit(format!(
                    "it is being undone already, because: {because}. To stop that where it is: rollback abort --hold"
                ))),
                Act::Abort { then: AbortThen::Hold } => may_abort(run, AbortThen::Hold).map(|()| act.clone()),
                Act::Approve { .. } => Err(unfit(needs_no_approval(run))),
            }
        }
    }
}

/// The time for approval may be over.
pub(super) fn expire(state: &State, at: Timestamp) -> Option<Event> {
    let State::Forward { run, .. } = state else {
        return None;
    };
    let rule = run.plan().body.approval?;
    let over = run.awaits_approval() && run.approval_expires_at().is_some_and(|expires| at >= expires);
    over.then(|| Event::Ended {
        at,
        ending: Ending::Undone {
            blocked: true,
            cause: problems::not_approved(rule.within_ms),
        },
    })
}

/// Does what was decided. What may be asked for is decided above and may change from version to version; here only what
/// would leave the state without a meaning is refused.
pub(super) fn apply(state: &mut State, at: Timestamp, by: &str, reason: &str, act: &Act) -> Result<(), Corrupt> {
    let out_of_place = Corrupt::OutOfPlace {
        event: "Steered",
        state: state.name(),
    };
    let undoing = matches!(state, State::Undoing { .. });
    let (run, forward) = match state {
        State::New | State::Ended { .. } => return Err(out_of_place),
        State::Forward { run, forward } => (run, Some(forward)),
        State::Undoing { run, .. } => (run, None),
    };
    let paused = run.standstill().is_some();
    let ending = run.abort().map(|abort| abort.then);
    let fits = match act {
        Act::Pause => {
            run.hands.standstill = Some(Standstill::ByOperator {
                by: by.to_owned(),
                reason: reason.to_owned(),
                at,
            });
            !paused && ending.is_none() && !run.awaits_approval()
        }
        Act::Resume => run.hands.standstill.take().is_some(),
        Act::Retry { hosts } => {
            run.hands.standstill = None;
            paused && forward.is_some_and(|forward| forward.retry(run, hosts))
        }
        Act::Skip { hosts } => {
            let skipped = forward.is_some_and(|forward| {
                let skipped = forward.skip(run, hosts);
                // What else failed still waits for somebody.
                if forward.stop().is_none_or(|stop| stop.is_empty()) {
                    run.hands.standstill = None;
                }
                skipped
            });
            paused && skipped
        }
        Act::Abort { then } => {
            run.hands.standstill = None;
            run.hands.abort = Some(Abort {
                by: by.to_owned(),
                reason: reason.to_owned(),
                at,
                then: *then,
            });
            match (ending, then) {
                (None, AbortThen::Undo) => !undoing,
                (None | Some(AbortThen::Undo), AbortThen::Hold) => true,
                (Some(AbortThen::Undo), AbortThen::Undo)
                | (Some(AbortThen::Hold), AbortThen::Undo | AbortThen::Hold) => false,
            }
        }
        Act::Approve { .. } => {
            let awaited = run.awaits_approval();
            run.hands.approved = Some(Approved { by: by.to_owned(), at });
            awaited
        }
    };
    if fits { Ok(()) } else { Err(out_of_place) }
}

fn awaiting_approval(run: &Run, at: Timestamp, by: &str, act: &Act) -> Result<Act, Rejected> {
    let expires = run.approval_expires_at().unwrap_or(Timestamp::MAX);
    let starter = &run.creation.started_by;
    match act {
        Act::Abort { .. } => Ok(act.clone()),
        Act::Approve { .. } if by == starter => Err(Rejected::NotApproved(format!(
            "{by} has started it: somebody else has to look at the plan and approve, until {expires:.0}"
        ))),
        Act::Approve { digest } if *digest != run.plan().digest => Err(Rejected::NotApproved(format!(
            "what was looked at is plan {digest}, but this rollback carries out {}: look at that one (rollback show), then \
             approve it",
            run.plan().digest
        ))),
        Act::Approve { .. } if at >= expires => Err(Rejected::NotApproved(format!(
            "the time to approve was over at {expires:.0}; nothing was touched: start it again, and approve then"
        ))),
        Act::Approve { .. } => Ok(act.clone()),
        Act::Pause | Act::Resume | Act::Retry { .. } | Act::Skip { .. } => Err(unfit(format!(
            "nothing has begun: until {expires:.0} it waits for another operator than {starter} to approve. Have it approved \
             (rollback approve) or end it (rollback abort --undo)"
        ))),
    }
}

fn may_pause(run: &Run) -> Result<(), Rejected> {
    not_ending(run)?;
    match run.standstill() {
        None => Ok(()),
        Some(standstill) => Err(unfit(format!(
            "{}: rollback show says what it waits for",
            of_standstill(standstill)
        ))),
    }
}

/// It is paused by this, and nobody ends it.
fn is_paused(run: &Run) -> Result<&Standstill, Rejected> {
    not_ending(run)?;
    run.standstill().ok_or_else(|| {
        let to_come = match run.in_flight() {
            0 => String::new(),
            n => format!(" ({n} in flight)"),
        };
        unfit(format!("it is not paused{to_come}: rollback pause comes first"))
    })
}

fn may_go_on(run: &Run, forward: &Forward) -> Result<(), Rejected> {
    is_paused(run)?;
    let Some(stop) = forward.stop().filter(|stop| !stop.is_at_it()) else {
        return Ok(());
    };
    match stop.leads_to() {
        Some((Then::Pause, _)) => Err(unfit(format!(
            "what failed on {} would only pause it again: {}",
            name_some(stop.hosts(run).iter()),
            what_fits_a_failure(run, forward)
        ))),
        None | Some((Then::Undo | Then::Hold | Then::HoldUnknown, _)) => Ok(()),
    }
}

/// Those of these hosts whose steps failed in this batch, all when none is named; and nothing else may be named.
fn failed_among(run: &Run, forward: &Forward, hosts: &BTreeSet<HostName>) -> Result<BTreeSet<HostName>, Rejected> {
    is_paused(run)?;
    let failed = forward.stop().map(|stop| stop.hosts(run)).unwrap_or_default();
    if let Some(unknown) = forward.stop().and_then(|stop| stop.unknown()) {
        let step = run.step(unknown.step);
        return Err(unfit(format!(
            "nobody can tell whether {} took effect, so nothing here is tried again or left out: rollback resume holds it for \
             you to look, and so does rollback abort",
            step.map_or_else(String::new, |s| format!("{} of {}", s.action, s.subject()))
        )));
    }
    if failed.is_empty() {
        let left: Vec<&HostName> = run.failures.tolerated().iter().collect();
        let left = match left.len() {
            0 => String::new(),
            _ => format!(
                " (it went on without {}: when it has ended, rollback retry takes them along)",
                name_some(left.into_iter())
            ),
        };
        return Err(unfit(format!(
            "no failed step waits here{left}: go on with rollback resume"
        )));
    }
    let others: Vec<&HostName> = hosts.difference(&failed).collect();
    if !others.is_empty() {
        return Err(unfit(format!(
            "nothing that failed here concerns {}; it failed on {}: name those, or none for all",
            name_some(others.into_iter()),
            name_some(failed.iter())
        )));
    }
    Ok(if hosts.is_empty() { failed } else { hosts.clone() })
}

fn may_skip(run: &Run, forward: &Forward, hosts: &BTreeSet<HostName>) -> Result<(), Rejected> {
    let Some(phase) = forward.phase(run) else {
        return Ok(());
    };
    if !can_do_without_hosts(phase.name) {
        return Err(unfit(format!(
            "in {} no host can be left out, only in app, proxy and verify: retry, or rollback abort --undo and start again with \
             --exclude-host",
            phase.name
        )));
    }
    let failed = forward
        .stop()
        .map(|stop| stop.concerning(run, hosts))
        .unwrap_or_default();
    match run.too_many(phase.max_unavailable, failed.iter().map(|(_, failure)| failure.step)) {
        None => Ok(()),
        Some(too_many) => Err(unfit(format!("{too_many}: retry, or rollback abort --undo or --hold"))),
    }
}

/// Where the policy "continue" may stand, too: before, a host that is left out would be left half-way.
fn can_do_without_hosts(phase: PhaseName) -> bool {
    match phase {
        PhaseName::App | PhaseName::Proxy | PhaseName::Verify => true,
        PhaseName::Preflight
        | PhaseName::Stage
        | PhaseName::Protect
        | PhaseName::Quiesce
        | PhaseName::Database
        | PhaseName::Finish => false,
    }
}

fn what_fits_a_failure(run: &Run, forward: &Forward) -> &'static str {
    match forward.phase(run) {
        Some(phase) if can_do_without_hosts(phase.name) => "rollback retry, skip or abort",
        Some(_) | None => "rollback retry or abort",
    }
}

/// In the last phase hosts throw away what the way back needs: an undo would stop what serves, and then find nothing to go
/// back to.
fn can_be_left(run: &Run, forward: &Forward, then: AbortThen) -> Result<(), Rejected> {
    let finishes = forward.phase(run).is_some_and(|phase| phase.name == PhaseName::Finish);
    match then {
        AbortThen::Undo if finishes => Err(unfit(
            "everything is at the target, and hosts are tidying up what the way back would need: let it end, then take it back \
             with a new one: rollback undo"
                .to_owned(),
        )),
        AbortThen::Undo | AbortThen::Hold => Ok(()),
    }
}

fn may_abort(run: &Run, then: AbortThen) -> Result<(), Rejected> {
    match (run.abort().map(|abort| abort.then), then) {
        (None, AbortThen::Undo | AbortThen::Hold) | (Some(AbortThen::Undo), AbortThen::Hold) => Ok(()),
        (Some(AbortThen::Undo), AbortThen::Undo) | (Some(AbortThen::Hold), AbortThen::Undo | AbortThen::Hold) => {
            not_ending(run)
        }
    }
}

fn not_ending(run: &Run) -> Result<(), Rejected> {
    let Some(abort) = run.abort() else {
        return Ok(());
    };
    let (end, instead) = match abort.then {
        AbortThen::Undo => (
            "is then undone",
            "; to leave it as it is instead: rollback abort --hold",
        ),
        AbortThen::Hold => ("is then held", ""),
    };
    Err(unfit(format!(
        "{} ends it already, since {:.0}: it waits for {} in flight and {end}{instead}",
        abort.by,
        abort.at,
        run.in_flight()
    )))
}

fn needs_no_approval(run: &Run) -> String {
    match run.approved() {
        Some(approved) => format!("{} has approved it already, at {:.0}", approved.by, approved.at),
        None => "nobody has to approve it: its runbook does not ask for that, and it runs".to_owned(),
    }
}

fn of_standstill(standstill: &Standstill) -> String {
    match standstill {
        Standstill::ByOperator { by, reason, at } => {
            let why = if reason.is_empty() {
                String::new()
            } else {
                format!(" ({reason})")
            };
            format!("{by} has paused it already, at {at:.0}{why}")
        }
        Standstill::ByPolicy { cause, at } => {
            format!("its runbook has paused it already, at {at:.0} ({})", cause.message)
        }
    }
}

fn after_the_end(ending: &Ending, act: &Act) -> String {
    let (word, all_there) = match ending {
        Ending::Verified => ("verified", true),
        Ending::Undone { .. } => ("undone", false),
        Ending::Partial { .. } => ("partial", false),
        Ending::Held { .. } => ("held", false),
    };
    let instead = match act {
        Act::Retry { .. } | Act::Resume if !all_there => {
            "a new one over the hosts that were not reached: rollback retry, without other words"
        }
        Act::Abort { .. } => "a new one that takes it back: rollback undo",
        Act::Pause | Act::Resume | Act::Retry { .. } | Act::Skip { .. } | Act::Approve { .. } => {
            "look at it: rollback show"
        }
    };
    format!("it has ended ({word}): {instead}")
}

fn unfit(text: String) -> Rejected {
    Rejected::Unfit(text)
}
