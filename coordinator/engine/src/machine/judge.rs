//! What an outcome means. The journal keeps what the agent said; this is what the engine makes of it.
//!
//! Success is never taken on trust: a switch or a verification counts only with the expected revision *observed*, in
//! both directions, and a preparation that found a blocker is a failure however well it ran.

use crate::event::{Direction, Outcome, Problem, Severity, StepResult};
use crate::plan::Step;
use crate::problems;
use crate::release::{Action, Revision};

/// The meaning of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Good,
    /// `count`: how many things are wrong. More than one only for the blockers of a preparation.
    Bad {
        problem: Problem,
        count: u32,
    },
    /// Whether it took effect is unknown, and it matters.
    Unknown(Problem),
}

/// Judges the outcome of a step that ran in this direction.
pub fn judge(step: &Step, direction: Direction, outcome: &Outcome) -> Judgement {
    // A step that has no way back is never sent back, so there is nothing that its outcome could break.
    let Some(asked) = step.in_direction(direction) else {
        return Judgement::Good;
    };
    match &outcome.result {
        StepResult::Failed(problem) => bad(problem.clone()),
        StepResult::Indeterminate(problem) if matters(asked.action) => Judgement::Unknown(problem.clone()),
        StepResult::Indeterminate(problem) => bad(problem.clone()),
        StepResult::Succeeded => match asked.action {
            Action::Prepare => judge_findings(outcome),
            Action::Switch | Action::Verify => expect_observed(step, asked.to, outcome.observed.as_ref()),
            // Drivers that can, say what came up.
            Action::Start if outcome.observed.is_some() => expect_observed(step, asked.to, outcome.observed.as_ref()),
            Action::Start
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Finish => Judgement::Good,
        },
    }
}

/// Does it matter whether the action took effect, when nobody can tell? Preparing reads, and what discarding or
/// finishing leave behind is litter: for these, not knowing is an ordinary failure and no reason to wake anybody.
fn matters(action: Action) -> bool {
    match action {
        Action::Prepare | Action::Discard | Action::Finish => false,
        Action::Stage
        | Action::Snapshot
        | Action::Drain
        | Action::Resume
        | Action::Stop
        | Action::Start
        | Action::Switch
        | Action::Verify => true,
    }
}

fn judge_findings(outcome: &Outcome) -> Judgement {
    let mut blockers = outcome.findings.iter().filter(|f| f.severity == Severity::Blocker);
    match blockers.next() {
        None => Judgement::Good,
        Some(first) => Judgement::Bad {
            problem: Problem {
                code: first.code.clone(),
                message: first.message.clone(),
                remedy: first.remedy.clone(),
            },
            count: blockers.fold(1, |n, _| n + 1),
        },
    }
}

fn expect_observed(step: &Step, expected: &Revision, observed: Option<&Revision>) -> Judgement {
    if observed == Some(expected) {
        Judgement::Good
    } else {
        bad(problems::wrong_revision(&step.target, expected, observed))
    }
}

fn bad(problem: Problem) -> Judgement {
    Judgement::Bad { problem, count: 1 }
}
