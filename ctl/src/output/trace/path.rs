//! What the end of a rollback waited for.

use jiff::Timestamp;
use rollback_proto::v1::StepReport;

use crate::output::text::timestamp;

/// Indices of steps, in the order of time: the step that ended last, the one that ended last before that began, and so on.
/// The engine begins a step as soon as what it waits for has ended, so that is what it waited for, or something that took
/// exactly as long. Steps that have not ended count as ending at `end`. The cost is that of sorting.
pub fn of(steps: &[StepReport], end: Timestamp) -> Vec<usize> {
    let mut by_end: Vec<(Timestamp, Timestamp, usize)> = steps
        .iter()
        .enumerate()
        .filter_map(|(index, step)| {
            let start = timestamp(step.started_at.as_ref())?;
            Some((timestamp(step.ended_at.as_ref()).unwrap_or(end), start, index))
        })
        .collect();
    by_end.sort_unstable();
    let mut path = Vec::new();
    let mut before = None;
    while let Some((ended, started, index)) = by_end.pop() {
        // One clock writes all of them; a clock that went back must not end the path.
        if before.is_none_or(|before| ended <= before) {
            path.push(index);
            before = Some(started);
        }
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{at, proto_at};

    fn step(start: i64, end: Option<i64>) -> StepReport {
        StepReport {
            started_at: Some(proto_at(start)),
            ended_at: end.map(proto_at),
            ..StepReport::default()
        }
    }

    #[test]
    fn goes_back_from_the_last_end() {
        // Two lanes: 0→2→4 is slower than 1→3; step 5 waits for both.
        let steps = [
            step(0, Some(10)),
            step(0, Some(4)),
            step(11, Some(30)),
            step(5, Some(9)),
            step(31, Some(50)),
            step(51, None),
        ];
        assert_eq!(of(&steps, at(60)), [0, 2, 4, 5]);
        assert_eq!(of(&[], at(60)), Vec::<usize>::new());
    }
}
