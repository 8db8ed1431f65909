//! Cuts a list of lanes into batches of the runbook's sizes.

use crate::plan::{Batch, Lane};
use crate::runbook::BatchSize;

/// Every size is relative to the whole, not to what is left; the last batch takes the rest. Never an empty batch.
pub(super) fn cut(lanes: Vec<Lane>, sizes: &[BatchSize]) -> Vec<Batch> {
    let total = lanes.len();
    let mut lanes = lanes.into_iter();
    let mut batches = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let last = i + 1 == sizes.len();
        let take = if last { total } else { size.of(total) };
        let batch: Vec<Lane> = lanes.by_ref().take(take).collect();
        if batch.is_empty() {
            break;
        }
        batches.push(Batch { lanes: batch });
    }
    batches
}
