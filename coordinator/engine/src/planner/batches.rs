//! Cuts a list of lanes into batches of the runbook's sizes.

use crate::runbook::BatchSize;

/// Every size is relative to the whole, not to what is left; the last batch takes the rest, and none takes more than `limit`.
/// Never an empty batch.
pub(super) fn cut<T>(lanes: Vec<T>, sizes: &[BatchSize], limit: usize) -> Vec<Vec<T>> {
    let total = lanes.len();
    let mut lanes = lanes.into_iter();
    let mut batches = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let last = i + 1 == sizes.len();
        let mut left = if last { total } else { size.of(total) };
        while left > 0 {
            let batch: Vec<T> = lanes.by_ref().take(left.min(limit)).collect();
            if batch.is_empty() {
                return batches;
            }
            left -= batch.len();
            batches.push(batch);
        }
    }
    batches
}
