//! Places at which the agent can be killed, and finding out which there are: by a rollback in which nobody is killed, and
//! whose agent writes down every one that it passes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Kills the agent at a point.
pub const KILL_AT: &str = "ROLLBACK_KILL_AT";
/// Where the agent writes the points that it passes.
pub const KILL_LOG: &str = "ROLLBACK_KILL_LOG";

/// One passing of a place by an agent that was started for this rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub name: String,
    /// From 1.
    pub nth: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.nth)
    }
}

/// All passings that a log tells of, in their order.
pub fn passed(log: &Path) -> Result<Vec<Point>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let mut times = BTreeMap::<&str, u32>::new();
    let points = text.lines().map(|name| {
        let nth = times.entry(name).or_default();
        *nth += 1;
        Point {
            name: name.to_owned(),
            nth: *nth,
        }
    });
    let points: Vec<Point> = points.collect();
    ensure!(!points.is_empty(), "{} names no points", log.display());
    Ok(points)
}

/// What an undone rollback passes that a verified one does not: all from where they part.
pub fn undoing(undone: Vec<Point>, verified: &[Point]) -> Vec<Point> {
    let alike = undone.iter().zip(verified).take_while(|(a, b)| a == b).count();
    undone.into_iter().skip(alike).collect()
}

/// So many of them, spread evenly over the whole, beginning `offset` behind the first. All of them where there is no limit.
pub fn sample(points: &[Point], limit: Option<usize>, offset: usize) -> Vec<Point> {
    let all = points.len();
    match limit {
        Some(limit) if limit < all => (0..limit)
            .map(|n| points[(n * all / limit + offset) % all].clone())
            .collect(),
        Some(_) | None => points.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Point, sample, undoing};

    fn points(names: &[&str]) -> Vec<Point> {
        let point = |name: &&str| Point {
            name: (*name).to_owned(),
            nth: 1,
        };
        names.iter().map(point).collect()
    }

    #[test]
    fn a_sample_is_spread_and_its_members_differ() {
        let all = points(&["a", "b", "c", "d", "e"]);
        for offset in 0..7 {
            let mut some: Vec<String> = sample(&all, Some(3), offset).iter().map(Point::to_string).collect();
            some.sort();
            some.dedup();
            assert_eq!(some.len(), 3);
        }
        assert_eq!(sample(&all, Some(9), 2), all);
        assert_eq!(sample(&all, None, 2), all);
    }

    #[test]
    fn undoing_begins_where_the_ways_part() {
        let (undone, verified) = (points(&["a", "b", "x", "c"]), points(&["a", "b", "c"]));
        assert_eq!(undoing(undone, &verified), points(&["x", "c"]));
    }
}
