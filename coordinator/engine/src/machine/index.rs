//! From a step's number to its place in the plan, built once: the way back from an answer to its lane must not search.

use super::Corrupt;
use crate::ids::StepId;
use crate::plan::{Plan, Step};

/// Indices into `phases`, `batches`, `lanes`, `steps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub phase: usize,
    pub batch: usize,
    pub lane: usize,
    position: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    places: Vec<Place>,
}

impl Index {
    /// Refuses plans whose numbering has gaps: a step's number is its index everywhere in this module.
    pub fn of(plan: &Plan) -> Result<Self, Corrupt> {
        let mut places = Vec::new();
        for (phase, p) in plan.body.phases.iter().enumerate() {
            for (batch, b) in p.batches.iter().enumerate() {
                for (lane, l) in b.lanes.iter().enumerate() {
                    for (position, step) in l.steps.iter().enumerate() {
                        let expected = u32::try_from(places.len()).map(StepId).ok();
                        if expected != Some(step.id) {
                            let expected = expected.unwrap_or(StepId(u32::MAX));
                            return Err(Corrupt::Misnumbered {
                                expected,
                                found: step.id,
                            });
                        }
                        places.push(Place {
                            phase,
                            batch,
                            lane,
                            position,
                        });
                    }
                }
            }
        }
        Ok(Self { places })
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn place(&self, step: StepId) -> Option<Place> {
        self.places.get(usize::try_from(step.0).ok()?).copied()
    }

    pub fn step<'p>(&self, plan: &'p Plan, step: StepId) -> Option<&'p Step> {
        let place = self.place(step)?;
        let batch = plan.body.phases.get(place.phase)?.batches.get(place.batch)?;
        batch.lanes.get(place.lane)?.steps.get(place.position)
    }

    /// The step and those that follow it in its lane; empty for a step that is not in the plan.
    pub fn rest_of_lane<'p>(&self, plan: &'p Plan, step: StepId) -> &'p [Step] {
        let lane = self.place(step).and_then(|place| {
            let batch = plan.body.phases.get(place.phase)?.batches.get(place.batch)?;
            batch.lanes.get(place.lane)?.steps.get(place.position..)
        });
        lane.unwrap_or_default()
    }
}
