//! Who failed, and what the rollback goes on without.

use std::collections::BTreeSet;
use std::fmt;

use super::run::Failure;
use crate::event::Direction;
use crate::ids::{HostName, StepId};
use crate::plan::Step;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Executions that mattered and did not succeed, and were not tried again with success.
    steps: BTreeSet<(StepId, Direction)>,
    /// Their hosts.
    hosts: BTreeSet<HostName>,
    /// Hosts that are not at the target, where it goes on without them: the runbook's policy, or an operator.
    tolerated: BTreeSet<HostName>,
    /// Of these, the hosts whose own components are not there. A proxy that goes on without one of its backends is not
    /// left behind by that.
    behind: BTreeSet<HostName>,
    /// Of these, the ones that an operator said to go on without.
    skipped: BTreeSet<HostName>,
    first_tolerated: Option<Failure>,
}

/// To go on without them would leave more hosts behind than the plan allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany {
    pub hosts: usize,
    pub most: u32,
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, most } = self;
        write!(
            f,
            "with that, {hosts} hosts would be left behind, and the runbook allows {most}"
        )
    }
}

/// The hosts that are left behind when nobody carries out these steps of a lane: where a proxy is told of a backend, it is
/// the backend's.
fn left_behind(rest: &[Step]) -> impl Iterator<Item = &HostName> {
    rest.iter()
        .map(|step| step.backend.as_ref().map_or(&step.target.host, |backend| &backend.host))
}

impl Failures {
    pub fn hosts(&self) -> &BTreeSet<HostName> {
        &self.hosts
    }

    pub fn tolerated(&self) -> &BTreeSet<HostName> {
        &self.tolerated
    }

    pub fn skipped(&self) -> &BTreeSet<HostName> {
        &self.skipped
    }

    pub fn first_tolerated(&self) -> Option<&Failure> {
        self.first_tolerated.as_ref()
    }

    pub fn note(&mut self, step: &Step, direction: Direction) {
        self.steps.insert((step.id, direction));
        self.hosts.extend(step.hosts().cloned());
    }

    /// The step was tried again and succeeded. `step_of` finds those that failed beside it.
    pub fn recovered<'p>(&mut self, step: &Step, step_of: impl Fn(StepId) -> Option<&'p Step>) {
        if !self.steps.remove(&(step.id, Direction::Forward)) {
            return;
        }
        let others: Vec<&Step> = self.steps.iter().filter_map(|(id, _)| step_of(*id)).collect();
        for host in step.hosts() {
            if !others.iter().any(|other| other.hosts().any(|h| h == host)) {
                self.hosts.remove(host);
            }
        }
    }

    /// How many hosts are left behind when the rests of these lanes are not carried out either.
    pub fn would_be_behind<'p>(&self, rests: impl Iterator<Item = &'p [Step]>) -> usize {
        let new: BTreeSet<&HostName> = rests
            .flat_map(left_behind)
            .filter(|host| !self.behind.contains(*host))
            .collect();
        self.behind.len() + new.len()
    }

    /// The rollback goes on without what the rest of the failed step's lane would have reached: also a proxy to which the
    /// lane would have given a backend back.
    pub fn tolerate(&mut self, failure: Failure, rest: &[Step]) {
        self.behind.extend(left_behind(rest).cloned());
        self.tolerate_known(failure, rest);
    }

    /// Of what is tolerated already: the verification of a host that cannot pass.
    pub fn tolerate_known(&mut self, failure: Failure, rest: &[Step]) {
        self.tolerated.extend(rest.iter().flat_map(Step::hosts).cloned());
        match &mut self.first_tolerated {
            Some(first) => first.merge(failure),
            none @ None => *none = Some(failure),
        }
    }

    /// As [`Failures::tolerate`], said by an operator.
    pub fn skip(&mut self, failure: Failure, rest: &[Step]) {
        self.skipped.extend(left_behind(rest).cloned());
        self.tolerate(failure, rest);
    }
}
