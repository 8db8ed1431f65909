//! A batch that begins nothing new: what failed in it, lane by lane, and what that leads to when the last answer is in.
//!
//! Operators take failures out of it, by having the step tried again or by going on without its hosts. When nothing is
//! left in it, the batch goes on. Where only some failures were taken out, no more than those lanes go on, and the
//! others wait for an operator whatever the runbook says: somebody is at it.

use std::collections::{BTreeMap, BTreeSet};

use super::run::{Failure, Run};
use crate::event::Problem;
use crate::ids::HostName;
use crate::plan::Step;
use crate::problems;

/// Empty: the batch goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stop {
    /// By lane: a lane ends with its first failure.
    failed: BTreeMap<usize, (Then, Failure)>,
    /// Lanes that were sent on while failures of others stand, and that are not through.
    retried: BTreeSet<usize>,
}

/// In the order of precedence: what nobody knows must not be undone, whatever else failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Then {
    Pause,
    Undo,
    Hold,
    HoldUnknown,
}

impl Stop {
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    /// May this lane go on?
    pub fn lets(&self, lane: usize) -> bool {
        self.is_empty() || self.retried.contains(&lane)
    }

    /// One more failure; it stops also what had been sent on.
    pub fn stand(&mut self, lane: usize, then: Then, failure: Failure) {
        self.failed.insert(lane, (then, failure));
        self.retried.clear();
    }

    /// The lane is through.
    pub fn through(&mut self, lane: usize) {
        self.retried.remove(&lane);
    }

    /// Lanes that were sent on are under way.
    pub fn is_at_it(&self) -> bool {
        !self.retried.is_empty()
    }

    /// What it leads to, and why: the first in plan order of those that lead there, and how many these are.
    pub fn leads_to(&self) -> Option<(Then, Failure)> {
        let then = self.failed.values().map(|(then, _)| *then).max()?;
        let mut same = self.failed.values().filter(|(t, _)| *t == then).map(|(_, f)| f);
        let mut failure = same.next()?.clone();
        same.for_each(|other| failure.merge(other.clone()));
        Some((then, failure))
    }

    /// The first failure of which nobody knows what it did.
    pub fn unknown(&self) -> Option<&Failure> {
        let mut unknown = self.failed.values().filter(|(then, _)| *then == Then::HoldUnknown);
        unknown.next().map(|(_, failure)| failure)
    }

    /// Hosts with a failure that stands.
    pub fn hosts(&self, run: &Run) -> BTreeSet<HostName> {
        let steps = self.failed.values().filter_map(|(_, failure)| run.step(failure.step));
        steps.flat_map(Step::hosts).cloned().collect()
    }

    /// Failures that concern one of these hosts, in plan order.
    pub fn concerning(&self, run: &Run, hosts: &BTreeSet<HostName>) -> Vec<(usize, Failure)> {
        let concerned = |failure: &Failure| {
            let mut of_step = run.step(failure.step).into_iter().flat_map(Step::hosts);
            of_step.any(|host| hosts.contains(host))
        };
        let failures = self.failed.iter().filter(|(_, (_, failure))| concerned(failure));
        failures.map(|(lane, (_, failure))| (*lane, failure.clone())).collect()
    }

    /// These lanes' failures stand no more: an operator goes on without what they left.
    pub fn forget(&mut self, lanes: impl IntoIterator<Item = usize>) {
        for lane in lanes {
            self.failed.remove(&lane);
        }
        if self.is_empty() {
            self.retried.clear();
        }
    }

    /// These lanes go on; what failed in others awaits an operator.
    pub fn send_on(&mut self, lanes: &[usize]) {
        self.forget(lanes.iter().copied());
        for (then, _) in self.failed.values_mut() {
            *then = Then::Pause;
        }
        if !self.is_empty() {
            self.retried.extend(lanes);
        }
    }

    /// For people: why it stopped.
    pub fn cause(&self, run: &Run, in_preflight: bool) -> Option<Problem> {
        let (then, failure) = self.leads_to()?;
        Some(match run.step(failure.step) {
            None => failure.problem,
            Some(step) if then == Then::HoldUnknown => problems::indeterminate(step, failure.problem),
            Some(step) if in_preflight => problems::blocked(step, failure.problem, failure.count),
            Some(step) => {
                let others = failure.count.saturating_sub(1);
                problems::of_step(step, step.action, failure.problem, others)
            }
        })
    }
}
