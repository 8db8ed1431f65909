//! Where a database is between two revisions, and which part of which leg comes next from there.
//!
//! A route has two trails, there and back, each a leg with its waypoints: the state before its first part, after each part.
//! The rehearsal saw them all; those in between are kept with its account. A live database that was left half-way (the
//! agent was killed, a part failed) is at one of them, or at one where an index that a CONCURRENTLY statement was making or
//! taking away is invalid. From a waypoint a database goes on to the end of its trail; and to the beginning by the other
//! trail, from a waypoint that is on both.
//!
//! All of this is thinking: nothing here talks to a server.

use std::collections::BTreeSet;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::catalog::Schema;
use super::route::{Leg, Part};

/// What tells one state of a database from another, as far as migrations go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waypoint {
    pub applied: BTreeSet<i64>,
    pub schema: Schema,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    There,
    Back,
}

impl Way {
    pub fn other(self) -> Self {
        match self {
            Self::There => Self::Back,
            Self::Back => Self::There,
        }
    }
}

/// A waypoint of one of the trails, by number: so many parts were run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub way: Way,
    pub at: usize,
    /// The version row of this migration is there where the waypoint has none, or the other way round: the other leg was
    /// left in the midst of its statements. The migration's own note sets it right.
    pub unlike: Option<i64>,
}

impl Place {
    pub fn new(way: Way, at: usize) -> Self {
        Self { way, at, unlike: None }
    }

    /// After the part that leads on from here.
    pub fn next(self, leg: &Leg) -> Self {
        let noted = match leg.parts.get(self.at) {
            Some(Part::Note(step)) => leg.steps.get(*step).map(|s| s.number),
            Some(Part::Together(_) | Part::Alone { .. } | Part::Tool) | None => None,
        };
        Self {
            at: self.at + 1,
            unlike: self.unlike.filter(|number| Some(*number) != noted),
            ..self
        }
    }
}

/// Where a database was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    At(Place),
    /// The statement after this place was interrupted. These indexes are invalid, in the order of their names.
    Interrupted {
        place: Place,
        /// It was making them, and they have to go before it is run again.
        leftovers: Vec<String>,
        /// It was taking them away, or making them anew: only it leads on from here.
        invalid: Vec<String>,
    },
    Nowhere,
}

#[derive(Clone, Debug)]
struct Trail<'a> {
    leg: &'a Leg,
    /// One more than there are parts.
    points: Vec<Waypoint>,
}

impl<'a> Trail<'a> {
    fn new(leg: &'a Leg, from: Waypoint, between: &[Waypoint], to: Waypoint) -> Option<Self> {
        let points: Vec<Waypoint> = [from].into_iter().chain(between.iter().cloned()).chain([to]).collect();
        (points.len() == leg.parts.len() + 1).then_some(Self { leg, points })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Map<'a> {
    there: Trail<'a>,
    back: Trail<'a>,
}

impl<'a> Map<'a> {
    /// `None` when the waypoints are not those of these legs. Each list has the waypoints between the ends.
    pub fn new(there: &'a Leg, between: &[Waypoint], back: &'a Leg, between_back: &[Waypoint]) -> Option<Self> {
        let (from, to) = (back.end(), there.end());
        Some(Self {
            there: Trail::new(there, from.clone(), between, to.clone())?,
            back: Trail::new(back, to, between_back, from)?,
        })
    }

    fn trail(&self, way: Way) -> &Trail<'a> {
        match way {
            Way::There => &self.there,
            Way::Back => &self.back,
        }
    }

    pub fn leg(&self, way: Way) -> &'a Leg {
        self.trail(way).leg
    }

    pub fn point(&self, place: Place) -> Option<Waypoint> {
        let mut point = self.trail(place.way).points.get(place.at)?.clone();
        if let Some(number) = place.unlike {
            toggle(&mut point.applied, number);
        }
        Some(point)
    }

    /// Where a database is. `goal` is where it is wanted: the end of that trail.
    pub fn find(&self, seen: &Waypoint, goal: Way) -> Found {
        for way in [goal, goal.other()] {
            // The first of several that look alike: what changes nothing that is seen can be run again.
            if let Some(at) = self.trail(way).points.iter().position(|p| p == seen) {
                return Found::At(Place::new(way, at));
            }
        }
        for way in [goal, goal.other()] {
            let trail = self.trail(way);
            for (at, (point, part)) in trail.points.iter().zip(&trail.leg.parts).enumerate() {
                if trail.leg.is_transaction(part) || point.applied != seen.applied {
                    continue;
                }
                let next = trail.points.get(at + 1);
                if let Some((leftovers, invalid)) = invalid_only(&seen.schema, &point.schema, next.map(|p| &p.schema)) {
                    let place = Place::new(way, at);
                    return Found::Interrupted {
                        place,
                        leftovers,
                        invalid,
                    };
                }
            }
        }
        Found::Nowhere
    }

    /// The same place on the trail that ends at `goal`, if it is on both. In the midst of a migration's statements the two
    /// differ by its version row.
    pub fn seen_from(&self, place: Place, goal: Way) -> Place {
        if place.way == goal {
            return place;
        }
        let Some(here) = self.point(place) else { return place };
        let trail = self.trail(goal);
        if let Some(at) = trail.points.iter().position(|p| *p == here) {
            return Place::new(goal, at);
        }
        let unlike = trail
            .points
            .iter()
            .zip(&trail.leg.parts)
            .enumerate()
            .find_map(|(at, (point, part))| {
                let (Part::Alone { step, .. } | Part::Note(step)) = part else {
                    return None;
                };
                let number = trail.leg.steps.get(*step)?.number;
                let mut applied = point.applied.clone();
                toggle(&mut applied, number);
                (point.schema == here.schema && applied == here.applied).then_some(Place {
                    way: goal,
                    at,
                    unlike: Some(number),
                })
            });
        unlike.unwrap_or(place)
    }

    /// The part that leads on from here; `None` at the end of the trail.
    pub fn part_after(&self, place: Place) -> Option<&'a Part> {
        self.trail(place.way).leg.parts.get(place.at)
    }

    /// "after 1 of 3 parts of the way down"
    pub fn describe(&self, place: Place) -> String {
        let leg = self.leg(place.way);
        let (of, way) = (leg.parts.len(), leg.direction.word());
        match place.at {
            0 => format!("before the first of {of} parts of the way {way}"),
            at => format!("after {at} of {of} parts of the way {way}"),
        }
    }

    /// What a database that is nowhere on the map has that the nearest waypoint has not, and the other way round.
    pub fn nearest(&self, seen: &Waypoint) -> Problem {
        let points = [Way::There, Way::Back].map(|way| {
            let points = self.trail(way).points.iter().enumerate();
            points.map(move |(at, point)| (Place::new(way, at), point))
        });
        let distance = |point: &Waypoint| {
            let lines = |a: &Schema, b: &Schema| a.0.iter().filter(|(k, d)| b.0.get(*k) != Some(*d)).count();
            let applied = point.applied.symmetric_difference(&seen.applied).count();
            lines(&point.schema, &seen.schema) + lines(&seen.schema, &point.schema) + applied
        };
        let nearest = points.into_iter().flatten().min_by_key(|(_, point)| distance(point));
        let message = match nearest {
            Some((place, point)) => {
                let differences = seen.schema.differences(&point.schema);
                let differences = differences.unwrap_or_else(|| "other migrations are noted as applied".to_owned());
                format!("nearest to {}, but: {differences}", self.describe(place))
            }
            None => "no waypoints are known".to_owned(),
        };
        Problem::new(Code::DatabaseUnclear, message)
    }
}

fn toggle(applied: &mut BTreeSet<i64>, number: i64) {
    if !applied.remove(&number) {
        applied.insert(number);
    }
}

/// Names of indexes that are invalid in `seen` and are all that tells it from `point`: those that are new, and those that
/// were valid. `next` is what the statement was about to reach.
fn invalid_only(seen: &Schema, point: &Schema, next: Option<&Schema>) -> Option<(Vec<String>, Vec<String>)> {
    const INVALID: &str = " invalid";
    let (mut leftovers, mut invalid) = (Vec::new(), Vec::new());
    for (key, definition) in &seen.0 {
        let expected = point.0.get(key);
        if expected == Some(definition) {
            continue;
        }
        let name = key.strip_prefix("index ")?;
        let valid = definition.strip_suffix(INVALID)?;
        match expected {
            Some(expected) if expected == valid => invalid.push(name.to_owned()),
            Some(_) => return None,
            None => {
                let wanted = next.is_some_and(|next| next.0.contains_key(key));
                if !wanted && !is_rebuilt_copy(key, point) {
                    return None;
                }
                leftovers.push(name.to_owned());
            }
        }
    }
    let gone = point.0.keys().any(|key| !seen.0.contains_key(key));
    let some = !leftovers.is_empty() || !invalid.is_empty();
    (some && !gone).then_some((leftovers, invalid))
}

/// What an interrupted REINDEX CONCURRENTLY leaves: the new copy of an index, or the old one.
fn is_rebuilt_copy(key: &str, point: &Schema) -> bool {
    let plain = key.trim_end_matches('"').trim_end_matches(|c: char| c.is_ascii_digit());
    let of = plain.strip_suffix("_ccnew").or_else(|| plain.strip_suffix("_ccold"));
    // Of an index that belongs to a constraint, the constraint's line says the name last.
    of.is_some_and(|of| {
        let bare = of.rsplit(['.', '"']).next().unwrap_or(of);
        point.0.contains_key(of)
            || point
                .0
                .keys()
                .any(|k| k.starts_with("constraint ") && k.ends_with(&format!(" {bare}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::postgres::route::{Direction, Single, Step};

    fn schema(lines: &[(&str, &str)]) -> Schema {
        Schema(lines.iter().map(|(k, d)| ((*k).to_owned(), (*d).to_owned())).collect())
    }

    fn point(applied: &[i64], lines: &[(&str, &str)]) -> Waypoint {
        Waypoint {
            applied: applied.iter().copied().collect(),
            schema: schema(lines),
        }
    }

    fn leg(direction: Direction, end: &Waypoint) -> Leg {
        let single = Single {
            sql: String::new(),
            autocommit: true,
            shown: String::new(),
            prelude: Vec::new(),
        };
        let step = Step {
            number: 2,
            digits: "2".to_owned(),
            name: "2_index".to_owned(),
            sql: String::new(),
            alone: vec![single],
            apart: true,
            checks_before: Vec::new(),
            checks_after: Vec::new(),
            notes_itself: false,
        };
        Leg {
            direction,
            steps: vec![step],
            parts: vec![Part::Alone { step: 0, statement: 0 }, Part::Note(0)],
            applied_after: end.applied.clone(),
            schema_after: end.schema.clone(),
        }
    }

    #[test]
    fn a_state_between_the_ends_is_found_and_leads_both_ways() {
        let (t, i) = (("table s.t", ""), ("index s.i", "def"));
        let (from, to) = (point(&[1, 2], &[t, i]), point(&[1], &[t]));
        let (down, between) = (leg(Direction::Down, &to), point(&[1, 2], &[t]));
        let (up, between_back) = (leg(Direction::Up, &from), point(&[1], &[t, i]));
        let map = Map::new(
            &down,
            std::slice::from_ref(&between),
            &up,
            std::slice::from_ref(&between_back),
        )
        .expect("a map");
        let at = |way, at| Found::At(Place::new(way, at));
        assert_eq!(map.find(&from, Way::There), at(Way::There, 0));
        assert_eq!(map.find(&from, Way::Back), at(Way::Back, 2));
        assert_eq!(map.find(&between, Way::There), at(Way::There, 1));
        assert_eq!(
            map.find(&between, Way::Back),
            at(Way::There, 1),
            "it is on that trail only"
        );
        assert_eq!(map.find(&between_back, Way::There), at(Way::Back, 1));
        let end = Place::new(Way::There, 2);
        assert_eq!(map.seen_from(end, Way::Back), Place::new(Way::Back, 0));
        assert_eq!(map.part_after(end), None);
        // The index is gone, its row is not: the way up makes it again, and finds the row noted.
        let place = map.seen_from(Place::new(Way::There, 1), Way::Back);
        assert_eq!((place.way, place.at, place.unlike), (Way::Back, 0, Some(2)));
        assert_eq!(map.point(place), Some(between.clone()));
        assert_eq!(map.point(place.next(&up)), Some(from.clone()));
        assert_eq!(place.next(&up).next(&up), Place::new(Way::Back, 2));

        // Interrupted on the way down, and on the way up.
        let going = point(&[1, 2], &[t, ("index s.i", "def invalid")]);
        let Found::Interrupted {
            place,
            leftovers,
            invalid,
        } = map.find(&going, Way::There)
        else {
            panic!("not recognised");
        };
        assert_eq!(
            (place.way, leftovers.len(), invalid),
            (Way::There, 0, vec!["s.i".to_owned()])
        );
        let coming = point(&[1], &[t, ("index s.i", "def invalid")]);
        let Found::Interrupted { place, leftovers, .. } = map.find(&coming, Way::There) else {
            panic!("not recognised");
        };
        assert_eq!((place.way, place.at, leftovers), (Way::Back, 0, vec!["s.i".to_owned()]));
        // An invalid index that is none of the statement's.
        let other = point(&[1], &[t, ("index s.other", "def invalid")]);
        assert_eq!(map.find(&other, Way::There), Found::Nowhere);
        let other = point(&[1], &[t, ("table s.u", "")]);
        assert!(map.nearest(&other).message.contains("not expected: table s.u"));
        assert!(Map::new(&down, &[], &up, &[]).is_none());
    }

    #[test]
    fn what_reindex_leaves_is_known_by_its_name() {
        let before = schema(&[("index s.i", "def"), ("constraint s.t t_pkey", "")]);
        for (name, known) in [
            ("s.i_ccnew", true),
            ("s.i_ccold1", true),
            ("s.t_pkey_ccnew", true),
            ("s.j_ccnew", false),
        ] {
            let mut seen = before.clone();
            seen.0.insert(format!("index {name}"), "def invalid".to_owned());
            assert_eq!(invalid_only(&seen, &before, Some(&before)).is_some(), known, "{name}");
        }
    }
}
