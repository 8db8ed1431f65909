//! One batch under way, in either direction: lanes side by side, in each lane one step at a time.
//!
//! Invariants: a lane is ready (its next step is due), in flight, or done; `ready` and `in_flight` count exactly
//! these, so that asking what is due, or whether anything is, never walks over the lanes that are neither. A lane that
//! a failure ended keeps the steps that it did not get to: somebody may send it on.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::StepId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wave {
    /// Steps not begun, by lane, the next one last.
    lanes: BTreeMap<usize, Vec<StepId>>,
    ready: BTreeSet<usize>,
    in_flight: usize,
}

impl Wave {
    /// Lanes without steps are done from the start.
    pub fn new(lanes: impl IntoIterator<Item = (usize, Vec<StepId>)>) -> Self {
        let lanes: BTreeMap<usize, Vec<StepId>> = lanes.into_iter().filter(|(_, steps)| !steps.is_empty()).collect();
        let ready = lanes.keys().copied().collect();
        Self {
            lanes,
            ready,
            in_flight: 0,
        }
    }

    /// Every ready lane with its next step, in plan order.
    pub fn due(&self) -> impl Iterator<Item = (usize, StepId)> {
        self.ready
            .iter()
            .filter_map(|lane| self.lanes.get(lane).and_then(|steps| Some((*lane, *steps.last()?))))
    }

    /// Marks the step as begun; false when it is not due.
    #[must_use]
    pub fn begin(&mut self, lane: usize, step: StepId) -> bool {
        let Some(steps) = self.lanes.get_mut(&lane) else {
            return false;
        };
        if steps.last() != Some(&step) || !self.ready.remove(&lane) {
            return false;
        }
        steps.pop();
        self.in_flight += 1;
        true
    }

    /// The lane's step in flight has ended. With `go_on` the next one is due, otherwise the lane is done. True: its next
    /// step is due.
    pub fn end(&mut self, lane: usize, go_on: bool) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let more = go_on && self.lanes.get(&lane).is_some_and(|steps| !steps.is_empty());
        if more {
            self.ready.insert(lane);
        }
        more
    }

    /// The lane was done with this step; now the step is due once more, and after it the rest of the lane.
    pub fn again(&mut self, lane: usize, step: StepId) {
        self.lanes.entry(lane).or_default().push(step);
        self.ready.insert(lane);
    }

    /// Nothing is in flight.
    pub fn is_still(&self) -> bool {
        self.in_flight == 0
    }

    /// Nothing is in flight and nothing is due.
    pub fn is_done(&self) -> bool {
        self.is_still() && self.ready.is_empty()
    }
}
