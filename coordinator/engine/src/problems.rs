//! The problems that the engine itself finds. Codes are those of the one list of error codes that operators search.

use std::collections::BTreeSet;

use crate::event::Problem;
use crate::ids::{HostName, Target};
use crate::machine::TooMany;
use crate::plan::{DatabaseChoice, Excused, PlanBody, Selection, Step};
use crate::release::{Action, OBJECTIVES, Revision};

/// How many names a message spells out before it only counts.
pub(crate) const NAMED: usize = 5;

fn problem(code: &str, message: String, remedy: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        message,
        remedy: remedy.to_owned(),
    }
}

/// "a, b, c and 4 more".
pub(crate) fn name_some<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    let total = items.len();
    let named: Vec<String> = items.take(NAMED).map(|i| i.to_string()).collect();
    let mut text = named.join(", ");
    if total > NAMED {
        text.push_str(&format!(" and {} more", total - NAMED));
    }
    text
}

/// A step says that it succeeded, but the host does not show it.
pub(crate) fn wrong_revision(target: &Target, expected: &Revision, observed: Option<&Revision>) -> Problem {
    let seen = match observed {
        Some(r) => format!("observed {} ({})", r.version, r.digest),
        None => "observed nothing".to_owned(),
    };
    problem(
        "RB0400",
        format!("{target}: {seen} instead of {} ({})", expected.version, expected.digest),
        "look at the component by hand; something else changed it at the same time",
    )
}

/// Puts the step in front of what its agent said, and says how many others failed beside it.
pub(crate) fn of_step(step: &Step, action: Action, problem: Problem, others: u32) -> Problem {
    let more = match others {
        0 => String::new(),
        n => format!(" (and {n} more of this batch)"),
    };
    Problem {
        message: format!("{action} of {}: {}{more}", step.subject(), problem.message),
        ..problem
    }
}

/// Preflight's findings, counted, with the first in full.
pub(crate) fn blocked(first: &Step, problem: Problem, count: u32) -> Problem {
    let message = match count {
        1 => format!("1 blocker: {}: {}", first.target, problem.message),
        n => format!("{n} blockers; the first: {}: {}", first.target, problem.message),
    };
    Problem { message, ..problem }
}

/// A step ended, and nobody can tell how.
pub(crate) fn indeterminate(step: &Step, problem: Problem) -> Problem {
    Problem {
        message: format!(
            "nobody can tell whether {} of {} took effect: {}",
            step.action,
            step.subject(),
            problem.message
        ),
        ..problem
    }
}

/// The way back is barred by a step that cannot be reversed.
pub(crate) fn irreversible(cause: &Problem) -> Problem {
    Problem {
        message: format!(
            "{}; a step that cannot be reversed has begun, so nothing was undone",
            cause.message
        ),
        ..cause.clone()
    }
}

/// A step of the undo did not succeed.
pub(crate) fn undo_failed(step: &Step, action: Action, why: &Problem, cause: &Problem) -> Problem {
    problem(
        "RB0404",
        format!(
            "{action} to put {} back to {} did not succeed: {} [{}]. It was being undone because: {}",
            step.subject(),
            step.from.version,
            why.message,
            why.code,
            cause.message
        ),
        &why.remedy,
    )
}

/// Why it is held, and the way on: the planner starts from what it finds, also from what is stopped or drained.
pub(crate) fn held(cause: Problem, plan: &PlanBody) -> Problem {
    let go_on = go_on_with(plan);
    let no_backup = if plan.restored_databases().next().is_some() {
        " (it restores no backup: look first which database is live)"
    } else {
        ""
    };
    // That runbook would take along what this plan was to leave.
    let emergency = if plan.changes.iter().all(|change| change.left.is_none()) {
        "; with `--runbook emergency` hosts that cannot come back are left out"
    } else {
        ""
    };
    Problem {
        remedy: format!(
            "{}; then go on with `{go_on}`{no_backup}, or go to another release in the same way{emergency}",
            cause.remedy
        ),
        ..cause
    }
}

/// The command that does the rest of what this plan was to do, and nothing that it was to leave alone. It never restores a
/// backup: that may be done already, and a second time it would lose what was written since.
fn go_on_with(plan: &PlanBody) -> String {
    let mut command = match &plan.undo_of {
        // Where these go was put together for them, and can be named by nobody.
        Some(undone) => format!("rollbackctl rollback undo {undone}"),
        None if plan.release.as_str() == OBJECTIVES => "rollbackctl fleet converge".to_owned(),
        None => format!("rollbackctl fleet rollback --to {}", plan.release),
    };
    let runbook = plan.runbook.split('@').next().unwrap_or_default();
    if !["default", "restore"].contains(&runbook) {
        command.push_str(&format!(" --runbook {runbook}"));
    }
    match plan.database {
        DatabaseChoice::Auto | DatabaseChoice::Restore => {}
        DatabaseChoice::Keep => command.push_str(" --database keep"),
        DatabaseChoice::Migrate => command.push_str(" --database migrate"),
    }
    if plan.undo_of.is_none() {
        let Selection {
            services,
            hosts,
            labels,
            exclude_services,
            exclude_hosts,
        } = &plan.selection;
        name_all(&mut command, "--service", services);
        name_all(&mut command, "--host", hosts);
        name_all(&mut command, "--label", labels);
        name_all(&mut command, "--exclude-service", exclude_services);
        name_all(&mut command, "--exclude-host", exclude_hosts);
    }
    command
}

/// A command is copied: here every name counts.
fn name_all<T: ToString>(command: &mut String, option: &str, names: &BTreeSet<T>) {
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(T::to_string).collect();
        command.push_str(&format!(" {option} {}", names.join(",")));
    }
}

/// Hosts failed where the runbook says to go on; `why` is the first failure.
pub(crate) fn partial(hosts: &[HostName], why: &Problem) -> Problem {
    Problem {
        message: format!("not reached on {}; {}", name_some(hosts.iter()), why.message),
        ..why.clone()
    }
}

/// The rest is at the target; these hosts were left out by policy and nobody knows where they are.
pub(crate) fn excused(excused: &[Excused]) -> Problem {
    problem(
        "RB0300",
        format!(
            "left out by the runbook: {}",
            name_some(excused.iter().map(|e| format!("{} ({})", e.host, e.reason)))
        ),
        "when the host is back, start the rollback again before it serves",
    )
}

/// With one more, more hosts would be left behind than the plan allows.
pub(crate) fn too_many(cause: Problem, too_many: &TooMany) -> Problem {
    Problem {
        message: format!("{}; {too_many}", cause.message),
        ..cause
    }
}

/// An operator ended it. `before`: what had gone wrong by then.
pub(crate) fn aborted(by: &str, reason: &str, before: Option<&Problem>) -> Problem {
    let mut message = format!("{by} ended it");
    if !reason.is_empty() {
        message.push_str(&format!(": {reason}"));
    }
    if let Some(before) = before {
        message.push_str(&format!(" (before that: {})", before.message));
    }
    problem("RB0218", message, "look at what runs: rollbackctl fleet status")
}

/// It was on its way back when somebody stopped it.
pub(crate) fn undo_left(cause: &Problem) -> Problem {
    Problem {
        message: format!("it was being undone because: {}", cause.message),
        ..cause.clone()
    }
}

/// Nobody approved in time.
pub(crate) fn not_approved(within_ms: u64) -> Problem {
    problem(
        "RB0212",
        format!("no second operator approved it within {}", duration(within_ms)),
        "nothing was touched; ask a second operator to be ready, then start again",
    )
}

/// "90 s", "15 min".
fn duration(ms: u64) -> String {
    match ms / 1000 {
        seconds if seconds > 0 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
