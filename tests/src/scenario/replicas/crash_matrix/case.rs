//! What can be killed, when, and which cases there are.

use std::collections::BTreeMap;

use crate::scenario::points::{Point, sample};

/// What else happens to the rollback. The process that is killed at a point is another matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Undisturbed,
    /// Its leader is killed in the middle, and a coordinator goes on: the same one started again, or the other one.
    TakenOver,
    /// Its leader is asked to end in the middle, and a coordinator goes on.
    HandedOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Undisturbed, and where it hands over: the leader. Where it is taken over: whoever takes over.
    Coordinator,
    Agent(&'static str),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    pub victim: Victim,
    pub point: Point,
}

impl Case {
    pub fn describe(&self) -> String {
        let when = match self.kind {
            Kind::Undisturbed => "",
            Kind::TakenOver => " while it is taken over",
            Kind::HandedOver => " while it is handed over",
        };
        let who = match self.victim {
            Victim::Coordinator => "the coordinator",
            Victim::Agent(host) => host,
        };
        format!("{who} at {}{when}", self.point)
    }
}

/// The cases of one kind: of every place `passings` passings, spread over all that there were.
pub fn all_cases(kind: Kind, passed: Vec<(Victim, Vec<Point>)>, passings: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (victim, points) in passed {
        let mut by_name = BTreeMap::<String, Vec<Point>>::new();
        for point in points {
            by_name.entry(point.name.clone()).or_default().push(point);
        }
        for points in by_name.into_values() {
            let chosen = sample(&points, Some(passings), 0);
            cases.extend(chosen.into_iter().map(|point| Case { kind, victim, point }));
        }
    }
    cases
}
